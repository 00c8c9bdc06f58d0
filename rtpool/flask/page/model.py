"""
What the debug page shows, in words: made once, for the page as it is served and for the script that keeps it up to
date. So both show the same, and the script knows nothing of pools.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from rtpool.debug import figures
from rtpool.debug.picture import ChannelRow, Picture, Rates, channel_rows, connection_rows
from rtpool.engine.engine import Engine
from rtpool.engine.flight_recorder import Entry
from rtpool.engine.joins import Join
from rtpool.flask.page.layout import TABLES
from rtpool.flask.streams import FeedStats
from rtpool.protocol.refusals import printable

__all__ = ["model_of", "model_without_pool"]

#: Rows of a table, entries of the recorder, issues and reasons that are shown: a page is for a person.
MAX_ROWS, MAX_ENTRIES, MAX_ISSUES = 200, 60, 50
#: Characters of one text; of an issue's stack.
MAX_TEXT, MAX_STACK = 300, 4_000

#: What a state is like, by which it is coloured; the word itself is always there.
TONES = {
    "ok": "good",
    "connected": "good",
    "open": "good",
    "joined": "good",
    "degraded": "warn",
    "connecting": "warn",
    "reconnecting": "warn",
    "dialing": "warn",
    "waiting": "warn",
    "joining": "warn",
    "leaving": "warn",
    "homeless": "warn",
    "down": "bad",
    "error": "bad",
    "errored": "bad",
    "refused": "bad",
    "closed": "bad",
}


#: What a verdict is called, and what is said of it where the pool has nothing to say.
VERDICTS = {"ok": "OK", "degraded": "Degraded", "down": "Down"}
FINE = "All that was asked for is there"


class _Words:
    """Texts that users and servers made: on one line, of bounded length, without secrets."""

    def __init__(self, hide: Callable[[str], str]) -> None:
        self._hide = hide

    def __call__(self, text: object, limit: int = MAX_TEXT) -> str:
        shown = printable(self._hide(str(text)))
        return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"

    def lines(self, text: str) -> str:
        """The same of several lines."""
        return "\n".join(self(line) for line in text[-MAX_STACK:].splitlines())


def model_of(
    engine: Engine, told: Mapping[str, Any], before: Picture | None, *, streams: int, feeds: Sequence[FeedStats]
) -> dict[str, Any]:
    """
    The page of a pool.

    Args:
        engine: the pool's.
        told: what `rtpool.debug.serving.picture_of` made.
        before: an earlier picture, for the rates.
        streams, feeds: how many streams to browsers are open, this page's included; what they are fed from.
    """
    now, words = Picture.of(told), _Words(engine.logs.hide)
    stats = told["stats"]
    rows: dict[str, tuple[list[dict[str, Any]], str]] = {
        "connections": _connections(engine, now, before),
        "channels": _channels(now, before, stats, words),
        "joins": _joins(engine, words),
        "streams": _feeds(streams, feeds, words),
        "recorder": _recorder(engine, words),
    }
    issues = [_issue(each, words) for each in told["issues"][:MAX_ISSUES]]
    more = len(told["issues"]) - len(issues)
    return {
        "pool": f"pool {now.name} of process {now.pid}",
        "url": words(now.url),
        "at": f"{datetime.now(timezone.utc):%H:%M:%S} UTC",
        "verdict": now.verdict,
        "word": VERDICTS.get(now.verdict, now.verdict),
        "status": now.status,
        "reasons": [words(reason) for reason in now.reasons[:MAX_ISSUES]] or [_fine(told["health"]["age"])],
        "figures": _figures(now, Rates.between(before, now), streams),
        "tables": {key: {"rows": found, "note": note} for key, (found, note) in rows.items()},
        "issues": issues,
        "issues_note": _count(len(told["issues"]), "issue") + (f", the worst {len(issues)} shown" if more else ""),
    }


def model_without_pool(trouble: str) -> dict[str, Any]:
    """The page of an app that can have no pool, and why."""
    return {
        "pool": "no pool",
        "url": "",
        "at": f"{datetime.now(timezone.utc):%H:%M:%S} UTC",
        "verdict": "down",
        "word": VERDICTS["down"],
        "status": "not configured",
        "reasons": [printable(trouble)[:MAX_TEXT]],
        "figures": [],
        "tables": {table.key: {"rows": [], "note": ""} for table in TABLES},
        "issues": [],
        "issues_note": "0 issues",
    }


def _fine(age: float | None) -> str:
    return f"{FINE}." if age is None else f"{FINE}; the server was last heard {_ago(age)}."


def _row(state: str, *cells: str) -> dict[str, Any]:
    return {"tone": TONES.get(state, ""), "cells": list(cells)}


def _count(number: int, what: str) -> str:
    return f"{figures.whole(number)} {what}{'' if number == 1 else 's'}"


def _ago(seconds: float) -> str:
    if seconds < 1:
        return "just now"
    return f"{seconds:.0f} s ago" if seconds < 60 else f"{figures.age(seconds)} ago"


def _shown(rows: Sequence[Any], words: str) -> str:
    return words if len(rows) <= MAX_ROWS else f"{words}; {MAX_ROWS} shown, those in trouble first"


def _figures(now: Picture, rates: Rates, streams: int) -> list[dict[str, str]]:
    of = now.stats
    queued = sum(each["queued"] for each in of["subscription_details"])

    def figure(label: str, value: str, note: str = "", *, bad: bool = False) -> dict[str, str]:
        return {"label": label, "value": value, "note": note, "tone": "bad" if bad else ""}

    def counted(label: str, key: str) -> dict[str, str]:
        return figure(label, figures.whole(of[key]), bad=bool(of[key]))

    def part(label: str, key: str, total: str) -> dict[str, str]:
        return figure(label, figures.whole(of[key]), f"of {figures.whole(of[total])}", bad=of[key] < of[total])

    return [
        part("Connections", "active_connections", "total_connections"),
        figure("Joins", figures.whole(of["total_joins"])),
        part("Channels ready", "active_subscriptions", "total_subscriptions"),
        figure("Browser streams", figures.whole(streams)),
        figure("Received", figures.rate(rates.received), "messages/s"),
        figure("Delivered", figures.rate(rates.delivered), "events/s"),
        figure("Pushed", figures.rate(rates.pushes), "pushes/s"),
        figure("In", figures.size(rates.bytes_in), "per second"),
        figure("Out", figures.size(rates.bytes_out), "per second"),
        figure("Latency", figures.latency(of["heartbeat_latency"]), "last heartbeat"),
        figure("Queued", figures.whole(queued), "events"),
        counted("Dropped", "messages_dropped"),
        counted("Gaps", "gaps"),
        counted("Callback errors", "callback_errors"),
        figure("Reconnects", figures.whole(of["reconnect_attempts"])),
        figure("Age", figures.age(now.age)),
    ]


def _connections(engine: Engine, now: Picture, before: Picture | None) -> tuple[list[dict[str, Any]], str]:
    ages = {each.connection_id: each.age for each in engine.coordinator.connections.all if each.epoch}
    rows = connection_rows(now, before)
    shown = [
        _row(
            row.state,
            str(row.number),
            row.state,
            figures.whole(row.epoch),
            figures.whole(row.joins),
            figures.whole(row.attempts),
            figures.latency(row.latency),
            _ago(ages[row.number]) if row.number in ages else "-",
            figures.rate(row.messages),
            figures.size(row.bytes_in),
            figures.size(row.bytes_out),
        )
        for row in sorted(rows, key=lambda row: (row.state == "open", row.number))[:MAX_ROWS]
    ]
    of = now.stats
    return shown, _shown(rows, f"{of['active_connections']} of {of['total_connections']} open")


def _channels(
    now: Picture, before: Picture | None, stats: Mapping[str, Any], words: _Words
) -> tuple[list[dict[str, Any]], str]:
    both = list(zip(channel_rows(now, before), stats["subscription_details"], strict=True))
    if len(both) > MAX_ROWS:  # else in the order in which they were subscribed, so that lines stay where they are
        both.sort(key=lambda pair: (pair[0].state == "joined", -pair[0].queued, -pair[0].dropped))
    rows = [_channel(row, details, words) for row, details in both[:MAX_ROWS]]
    ready = f"{figures.whole(stats['active_subscriptions'])} of {figures.whole(stats['total_subscriptions'])} ready"
    return rows, _shown(both, ready)


def _channel(row: ChannelRow, details: Mapping[str, Any], words: _Words) -> dict[str, Any]:
    return _row(
        row.state,
        words(row.topic),
        row.state,
        figures.whole(details["callbacks"]),
        figures.whole(row.queued),
        figures.whole(details["received"]),
        figures.whole(details["delivered"]),
        figures.whole(row.dropped),
        figures.rate(row.rate),
        figures.milliseconds(row.call),
    )


def _joins(engine: Engine, words: _Words) -> tuple[list[dict[str, Any]], str]:
    joins = [(join, _state_of(join)) for join in _list(lambda: engine.coordinator.joins.values())]
    if len(joins) > MAX_ROWS:
        joins.sort(key=lambda pair: pair[1] == "joined")
    rows = []
    for join, state in joins[:MAX_ROWS]:
        connection = join.connection
        name = words(join.name) + (" (private)" if join.share.key.private else "")
        where = str(connection.connection_id) if connection is not None else "-"
        rows.append(_row(state, name, state, where, figures.whole(len(join.members))))
    return rows, _shown(joins, _count(len(joins), "server channel"))


def _feeds(streams: int, feeds: Sequence[FeedStats], words: _Words) -> tuple[list[dict[str, Any]], str]:
    rows = [
        _row(
            feed.status,
            words(feed.topic) + (" (private)" if feed.private else "") + (" (a user's)" if feed.own_token else ""),
            words(feed.status),
            figures.whole(feed.browsers),
            figures.whole(feed.total),
            figures.whole(feed.skipped),
            figures.whole(feed.events),
            figures.size(feed.size),
        )
        for feed in sorted(feeds, key=lambda feed: feed.status == "joined")[:MAX_ROWS]
    ]
    return rows, _shown(feeds, f"{_count(streams, 'stream')} open, open pages like this one included")


def _list(look: Callable[[], Iterable[Join]]) -> list[Join]:
    """What the I/O thread's own table holds; it may grow meanwhile, and is not waited for."""
    for _ in range(5):
        try:
            return list(look())
        except RuntimeError:
            continue
    return []


def _state_of(join: Join) -> str:
    if join.blocked is not None:
        return "refused"
    connection = join.connection
    if connection is None:
        return "homeless"
    return "leaving" if join.leaving else connection.session.state(join.topic).value


def _recorder(engine: Engine, words: _Words) -> tuple[list[dict[str, Any]], str]:
    recorder = engine.logs.recorder
    if recorder is None:
        return [], "off: the option recorder_size is 0"
    entries = recorder.entries()
    shown = [_entry(entry, words) for entry in entries[: -MAX_ENTRIES - 1 : -1]]
    return shown, f"the last {len(shown)} of {figures.whole(len(entries))} entries, newest first"


def _entry(entry: Entry, words: _Words) -> dict[str, Any]:
    level = logging.getLevelName(entry.level).lower()
    tone = "bad" if entry.level >= logging.ERROR else "warn" if entry.level >= logging.WARNING else ""
    at = f"{entry.at.astimezone(timezone.utc):%H:%M:%S}.{entry.at.microsecond // 1000:03}"
    return {"tone": tone, "cells": [at, level, words(entry.text)]}


def _issue(each: Mapping[str, Any], words: _Words) -> dict[str, str]:
    shown = {key: words(each[key], 1_000) for key in ("code", "severity", "title", "subject", "observed")}
    shown |= {key: words(each[key], 1_000) for key in ("meaning", "advice")}
    return shown | {"stack": words.lines(str(each.get("details", {}).get("stack", "")))}

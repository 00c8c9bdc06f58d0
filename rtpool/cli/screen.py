"""
The screen of `rtpool top`: from two pictures and what the person chose to lines. Pure, and so are the keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import attrs
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rtpool.debug import figures
from rtpool.debug.picture import ChannelRow, ConnectionRow, Picture, Rates, channel_rows, connection_rows
from rtpool.protocol.refusals import printable

__all__ = ["Frame", "View", "draw", "press"]

#: Lines that are always there: two of the head, two of totals, title and header of each table, the issues' title, keys.
FIXED_LINES = 10
KEYS = "q quit  s sort  r reverse  c table  j/k scroll  p pause  f clean up  ? help"
HELP = """\
q, Ctrl-C    quit
c            the other table: it gets the keys below, and most of the lines
s            sort it by the next column
r            sort it the other way round
j, k         one line down, up; so do the arrows
space, b     a page down, up; so do PgDn, PgUp
g, G         to the first line, to the last
n, Tab       the next program, where there are several
p            pause, and go on
f            have the program close idle connections, if it allows commands
Ctrl-Z       suspend

events/s     events that came for the Channel
ms/call      milliseconds its callbacks took for an event, since the last look
queue        events that wait, of those that may

Any key closes this."""

COLOURS = {
    **dict.fromkeys(("open", "joined", "connected", "ok"), "green"),
    **dict.fromkeys(("dialing", "waiting", "joining", "leaving", "connecting", "reconnecting"), "yellow"),
    **dict.fromkeys(("error", "errored", "down"), "red"),
    "degraded": "yellow",
    "warning": "yellow",
    "info": "cyan",
}


class Column(NamedTuple):
    """
    A column: its heading, its width (0 takes the rest), a value of a row to sort by, and that value as text.
    """

    heading: str
    width: int
    value: Callable[[Any], Any]
    text: Callable[[Any], str]


CONNECTIONS = (
    Column("id", 5, lambda row: row.number, lambda row: str(row.number)),
    Column("state", 8, lambda row: row.state, lambda row: row.state),
    Column("epoch", 6, lambda row: row.epoch, lambda row: figures.whole(row.epoch)),
    Column("joins", 6, lambda row: row.joins, lambda row: figures.whole(row.joins)),
    Column("tries", 6, lambda row: row.attempts, lambda row: figures.whole(row.attempts)),
    Column("latency", 9, lambda row: row.latency, lambda row: figures.latency(row.latency)),
    Column("msgs/s", 9, lambda row: row.messages, lambda row: figures.rate(row.messages)),
    Column("in/s", 9, lambda row: row.bytes_in, lambda row: figures.size(row.bytes_in)),
    Column("out/s", 9, lambda row: row.bytes_out, lambda row: figures.size(row.bytes_out)),
)
CHANNELS = (
    Column("topic", 0, lambda row: row.topic, lambda row: row.topic),
    Column("state", 8, lambda row: row.state, lambda row: row.state),
    Column("queue", 14, lambda row: row.queued, lambda row: figures.whole(row.queued)),
    Column("events/s", 10, lambda row: row.rate, lambda row: figures.rate(row.rate)),
    Column("ms/call", 8, lambda row: row.call, lambda row: figures.milliseconds(row.call)),
    Column("dropped", 8, lambda row: row.dropped, lambda row: figures.whole(row.dropped)),
)
#: Text is sorted from its beginning, numbers from the largest.
TEXTS = {"topic", "state", "id"}


@attrs.frozen
class Listing:
    """How one table is looked at: by which column it is sorted, whether the other way round, the first line shown."""

    sort: int
    reverse: bool = False
    offset: int = 0


@attrs.frozen
class View:
    """
    What the person chose.

    Attributes:
        focus: the table that has the keys: ``"connections"`` or ``"channels"``.
        connections, channels: how each is looked at.
        paused, help: whether nothing is asked for; whether the keys are explained.
        program: which of the programs is looked at.
        message: what the last key led to, shown in place of the keys.
    """

    focus: str = "channels"
    connections: Listing = Listing(0)
    channels: Listing = Listing(3)
    paused: bool = False
    help: bool = False
    program: int = 0
    message: str = ""

    @property
    def listing(self) -> Listing:
        """That of the table that has the keys."""
        return self.connections if self.focus == "connections" else self.channels

    def with_listing(self, **changes: Any) -> View:
        """Look at the table that has the keys in another way."""
        listing = attrs.evolve(self.listing, **changes)
        if self.focus == "connections":
            return attrs.evolve(self, connections=listing)
        return attrs.evolve(self, channels=listing)


@attrs.frozen
class Frame:
    """
    What is to be drawn.

    Attributes:
        before, now: the two last pictures of a program.
        path: where it is served.
        interval: seconds between two looks.
        programs: how many programs there are.
        trouble: why there is no newer picture; empty when there is.
    """

    before: Picture | None
    now: Picture | None
    path: str
    interval: float
    programs: int = 1
    trouble: str = ""


def press(view: View, key: str, frame: Frame, height: int) -> tuple[View, str]:
    """
    What a key leads to.

    Returns:
        The view after it, and what is to be done beyond: ``"quit"``, ``"cleanup"``, or nothing.
    """
    if view.help:
        return attrs.evolve(view, help=False), "quit" if key == "q" else ""
    view = attrs.evolve(view, message="")
    if key == "q":
        return view, "quit"
    if key == "f":
        if frame.now is None or frame.trouble:
            return attrs.evolve(view, message="there is no program to do that"), ""
        if not frame.now.commands:
            words = "the program allows no commands: it would by serve_debug(…, allow_commands=True)"
            return attrs.evolve(view, message=words), ""
        return attrs.evolve(view, message="cleaning up …"), "cleanup"
    if key == "p":
        return attrs.evolve(view, paused=not view.paused), ""
    if key == "?":
        return attrs.evolve(view, help=True), ""
    if key == "c":
        return attrs.evolve(view, focus="channels" if view.focus == "connections" else "connections"), ""
    if key in ("n", "tab"):
        return attrs.evolve(view, program=(view.program + 1) % frame.programs), ""
    if key == "s":
        columns = CONNECTIONS if view.focus == "connections" else CHANNELS
        return view.with_listing(sort=(view.listing.sort + 1) % len(columns), reverse=False, offset=0), ""
    if key == "r":
        return view.with_listing(reverse=not view.listing.reverse, offset=0), ""
    return _scrolled(view, key, frame, height), ""


def _scrolled(view: View, key: str, frame: Frame, height: int) -> View:
    rows = _rows(frame, view.focus)
    page = max(1, _lines(frame, view, height)[view.focus])
    last = max(0, len(rows) - page)
    offset = min(view.listing.offset, last)
    steps = {"j": 1, "down": 1, "k": -1, "up": -1, " ": page, "pgdn": page, "b": -page, "pgup": -page}
    steps |= {"g": -len(rows), "home": -len(rows), "G": len(rows), "end": len(rows)}
    return view.with_listing(offset=max(0, min(last, offset + steps.get(key, 0))))


def _rows(frame: Frame, table: str) -> Sequence[ConnectionRow | ChannelRow]:
    if frame.now is None:
        return ()
    return (connection_rows if table == "connections" else channel_rows)(frame.now, frame.before)


def _lines(frame: Frame, view: View, height: int) -> dict[str, int]:
    """Lines for each part: issues get a quarter at the most, the table without the keys a third of the rest."""
    free = max(0, height - FIXED_LINES)
    wanted = {table: len(_rows(frame, table)) for table in ("connections", "channels")}
    issues = min(len(frame.now.issues) if frame.now is not None else 0, free, max(1, free // 4))
    other = "connections" if view.focus == "channels" else "channels"
    free = max(0, free - issues)
    lines = {"issues": issues, other: min(wanted[other], max(free // 3, free - wanted[view.focus]))}
    lines[view.focus] = free - lines[other]
    return lines


def draw(frame: Frame, view: View, width: int, height: int | None = None) -> RenderableType:
    """
    The screen.

    Args:
        frame: what there is.
        view: how it is looked at.
        width, height: of the terminal; without a height all of it is drawn, without the keys.
    """
    if view.help:
        return Group(*(Text(line, no_wrap=True) for line in HELP.splitlines()[: height and height - 1]))
    lines = _lines(frame, view, height) if height is not None else None
    parts: list[RenderableType] = [*_head(frame, view, width)]
    if frame.now is not None:
        parts += _totals(frame.now, Rates.between(frame.before, frame.now))
        parts += _table(frame, view, "connections", CONNECTIONS, lines)
        parts += _table(frame, view, "channels", CHANNELS, lines)
        parts += _issues(frame.now, lines["issues"] if lines is not None else len(frame.now.issues))
    if height is None:
        return Group(*parts)
    # Each part is one line, but for the tables.
    used = sum(part.row_count + 1 if isinstance(part, Table) else 1 for part in parts)
    parts += [Text("")] * max(0, height - 1 - used)
    keys = (
        Text(view.message, style="bold", no_wrap=True)
        if view.message
        else Text(_keys(width), style="reverse", no_wrap=True)
    )
    return Group(*parts, keys)


def _keys(width: int) -> str:
    """As many of the keys as there is room for, and always that which shows all."""
    shown = KEYS.split("  ")
    while len(shown) > 2 and len("  ".join(shown)) > width:
        shown.pop(-2)
    return "  ".join(shown)


def _line(*pieces: tuple[str, str] | str) -> Text:
    return Text.assemble(*pieces, no_wrap=True, overflow="ellipsis")


def _head(frame: Frame, view: View, width: int) -> list[Text]:
    now = frame.now
    several = f" [{view.program + 1} of {frame.programs}, n next]" if frame.programs > 1 else ""
    if now is None:
        return [
            _line(("rtpool top", "bold"), several, f"  {printable(frame.path)}"),
            _line((frame.trouble, "bold red")),
        ]
    first = _line(("rtpool top", "bold"), several, f"  pool {now.name} of process {now.pid}  {now.url}")
    state: list[tuple[str, str] | str] = [
        (now.status, COLOURS.get(now.status, "")),
        "  health ",
        (now.verdict, COLOURS.get(now.verdict, "")),
        f"  up {figures.age(now.age)}  every {frame.interval:g} s",
    ]
    if view.paused:
        state.append(("  PAUSED", "bold reverse"))
    if frame.trouble:
        state = [(frame.trouble, "bold red")]
    elif now.reasons:
        state.append(f"  {now.reasons[0]}")
    return [first, _line(*state)]


def _totals(now: Picture, rates: Rates) -> list[Text]:
    stats = now.stats
    queued = sum(each["queued"] for each in stats["subscription_details"])

    def count(words: str, key: str) -> tuple[str, str]:
        return f"{words} {figures.whole(stats[key])}", "bold red" if stats[key] and key != "reconnect_attempts" else ""

    return [
        _line(
            f"in {figures.rate(rates.received):>9}/s {figures.size(rates.bytes_in):>9}/s   ",
            f"out {figures.rate(rates.pushes):>9}/s {figures.size(rates.bytes_out):>9}/s   ",
            f"delivered {figures.rate(rates.delivered):>9}/s",
        ),
        _line(
            f"queued {figures.whole(queued)}   ",
            *(count("gaps", "gaps"), "   ", count("dropped", "messages_dropped"), "   "),
            *(count("callback errors", "callback_errors"), "   ", count("reconnects", "reconnect_attempts")),
        ),
    ]


def _table(
    frame: Frame, view: View, name: str, columns: Sequence[Column], lines: dict[str, int] | None
) -> list[RenderableType]:
    assert frame.now is not None
    stats, listing = frame.now.stats, view.connections if name == "connections" else view.channels
    rows = _sorted(_rows(frame, name), columns, listing)
    shown = len(rows) if lines is None else lines[name]
    offset = max(0, min(listing.offset, len(rows) - shown))
    active, total = (
        (stats["active_connections"], stats["total_connections"])
        if name == "connections"
        else (stats["active_subscriptions"], stats["total_subscriptions"])
    )
    words = (
        f"Connections: {active} of {total} open, {stats['total_joins']} joins"
        if name == "connections"
        else f"Channels: {active} of {total} ready"
    )
    if 0 < shown < len(rows):
        words += f", lines {offset + 1} to {min(len(rows), offset + shown)}"
    focused = lines is not None and view.focus == name
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, expand=not columns[0].width, header_style="bold")
    for index, column in enumerate(columns):
        sign = ("^" if _ascends(column, listing) else "v") if index == listing.sort else ""
        left = column.heading in TEXTS - {"id"}
        table.add_column(
            column.heading + sign,
            justify="left" if left else "right",
            no_wrap=True,
            overflow="ellipsis",
            width=column.width or None,
            ratio=None if column.width else 1,
        )
    for row in rows[offset : offset + shown]:
        table.add_row(*(_cell(column, row, frame.now.mailbox_limit) for column in columns))
    return [_line((words, "bold reverse" if focused else "bold")), table]


def _cell(column: Column, row: Any, limit: int) -> Text:
    text = column.text(row)
    if column.heading == "queue":
        share = row.queued / limit
        return Text(f"{text}/{figures.whole(limit)}", style="red" if share >= 0.8 else "yellow" if share >= 0.2 else "")
    if column.heading == "state":
        return Text(text, style=COLOURS.get(text, ""))
    worrying = column.heading in ("dropped", "tries") and text != "0"
    return Text(text, style="red" if worrying else "")


def _ascends(column: Column, listing: Listing) -> bool:
    return (column.heading in TEXTS) is not listing.reverse


def _sorted(rows: Sequence[Any], columns: Sequence[Column], listing: Listing) -> list[Any]:
    """Rows that show the same stay in the order of their first column; those that have no value come last."""
    column = columns[listing.sort]
    ordered = sorted(rows, key=lambda row: _shown_value(columns[0], row))
    known = [row for row in ordered if column.value(row) is not None]
    # What is shown counts, so that lines do not jump for what nobody sees.
    known.sort(key=lambda row: _shown_value(column, row), reverse=not _ascends(column, listing))
    return known + [row for row in ordered if column.value(row) is None]


def _shown_value(column: Column, row: Any) -> Any:
    value = column.value(row)
    if isinstance(value, str):  # "room 2" comes before "room 10"
        return [int(part) if at % 2 else part for at, part in enumerate(re.split(r"(\d+)", value))]
    return float(f"{value:.3g}") if isinstance(value, float) else value


def _issues(now: Picture, lines: int) -> list[Text]:
    if not now.issues:
        return [_line(("No issues", "bold green"))]
    title = f"Issues: {len(now.issues)}"
    if lines < len(now.issues):
        title += f", the worst {lines}"
    found = [
        _line((issue.code, COLOURS.get(issue.severity, "bold red")), f" {issue.subject}: {issue.words}")
        for issue in now.issues[:lines]
    ]
    return [_line((title, "bold")), *found]

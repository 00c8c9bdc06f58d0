"""
What a program told of its pool, read, and how fast it changed since it was told before. No terminal in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import attrs

from rtpool.errors import ProtocolError
from rtpool.protocol.refusals import printable

__all__ = ["ChannelRow", "ConnectionRow", "Picture", "Problem", "Rates", "channel_rows", "connection_rows"]

#: What `Rates` has, by where the statistics have it.
RATES = {
    "received": "messages_received",
    "delivered": "messages_delivered",
    "pushes": "pushes_sent",
    "bytes_in": "bytes_received",
    "bytes_out": "bytes_sent",
}


class Problem(NamedTuple):
    """An issue: its code, how bad it is, what it is about and what was seen."""

    code: str
    severity: str
    subject: str
    words: str


@attrs.frozen
class Picture:
    """
    One answer of a program.

    Attributes:
        at, age: monotonic seconds of the program's clock; seconds since the pool was made.
        name, pid, url: of the pool, of its process, where it connects to.
        status, verdict, reasons: what the pool is at; whether that is well, and why not.
        stats: as `PoolStats.as_dict`.
        issues: worst first.
        mailbox_limit: events that may wait for a Channel.
        commands: whether the program takes any.
    """

    at: float
    age: float
    name: str
    pid: int
    url: str
    status: str
    verdict: str
    reasons: tuple[str, ...]
    stats: Mapping[str, Any] = attrs.field(repr=False)
    issues: tuple[Problem, ...]
    mailbox_limit: int
    commands: bool

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Picture:
        """
        Raises:
            ProtocolError: something is missing: another version's, or no pool's.
        """
        try:
            health = answer["health"]
            picture = cls(
                at=float(answer["at"]),
                age=float(answer["age"]),
                name=printable(answer["name"]),
                pid=int(answer["pid"]),
                url=printable(answer["url"]),
                status=printable(health["status"]),
                verdict=printable(health["verdict"]),
                reasons=tuple(printable(reason) for reason in health["reasons"]),
                stats=answer["stats"],
                issues=tuple(
                    Problem(*(printable(each[name]) for name in ("code", "severity", "subject", "observed")))
                    for each in answer["issues"]
                ),
                mailbox_limit=int(answer["mailbox_limit"]),
                commands=bool(answer["commands"]),
            )
            connection_rows(picture, None), channel_rows(picture, None), Rates.between(None, picture)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProtocolError(f"the program tells no such picture as this version reads: {error!r}") from error
        return picture

    def follows(self, before: Picture | None) -> bool:
        """Whether it was told by the same pool, later."""
        return before is not None and (before.pid, before.name) == (self.pid, self.name) and before.at < self.at


@attrs.frozen
class Rates:
    """
    How fast the pool's counters grow, a second; None before two pictures.
    """

    received: float | None
    delivered: float | None
    pushes: float | None
    bytes_in: float | None
    bytes_out: float | None

    @classmethod
    def between(cls, before: Picture | None, now: Picture) -> Rates:
        """From one picture to the next."""
        told = before if before is not None and now.follows(before) else None
        span = now.at - told.at if told is not None else 0.0
        old = told.stats if told is not None else {}
        return cls(**{name: _rate(old.get(key), now.stats[key], span) for name, key in RATES.items()})


class ConnectionRow(NamedTuple):
    """One connection; rates a second, latency in seconds."""

    number: int
    state: str
    epoch: int
    joins: int
    attempts: int
    latency: float | None
    messages: float | None
    bytes_in: float | None
    bytes_out: float | None


class ChannelRow(NamedTuple):
    """One Channel; `call` is how many seconds a call of its callbacks took, in the mean since the picture before."""

    topic: str
    state: str
    queued: int
    rate: float | None
    call: float | None
    dropped: int


def _rate(before: float | None, now: float, span: float) -> float | None:
    """A second; of a counter that went back nothing can be told: it is another's."""
    return (now - before) / span if before is not None and span > 0 and now >= before else None


def connection_rows(now: Picture, before: Picture | None) -> list[ConnectionRow]:
    """The connections of a picture."""
    told = before if before is not None and now.follows(before) else None
    span = now.at - told.at if told is not None else 0.0
    old = {each["connection_id"]: each for each in told.stats["connection_details"]} if told is not None else {}

    def rate(each: Mapping[str, Any], key: str) -> float | None:
        return _rate(old.get(each["connection_id"], {}).get(key), each[key], span)

    return [
        ConnectionRow(
            number=int(each["connection_id"]),
            state=printable(each["state"]),
            epoch=int(each["epoch"]),
            joins=int(each["joins"]),
            attempts=int(each["attempts"]),
            latency=None if each["heartbeat_latency"] is None else float(each["heartbeat_latency"]),
            messages=rate(each, "messages_received"),
            bytes_in=rate(each, "bytes_received"),
            bytes_out=rate(each, "bytes_sent"),
        )
        for each in now.stats["connection_details"]
    ]


def channel_rows(now: Picture, before: Picture | None) -> list[ChannelRow]:
    """The Channels of a picture. Several of one topic are told apart by their order."""
    told = before if before is not None and now.follows(before) else None
    span = now.at - told.at if told is not None else 0.0
    old = dict(_numbered(told.stats["subscription_details"])) if told is not None else {}
    rows = []
    for key, each in _numbered(now.stats["subscription_details"]):
        then = old.get(key)
        if then is not None and then["received"] > each["received"]:  # another one has taken its place
            then = None
        calls = each["delivered"] - then["delivered"] if then is not None else 0
        seconds = each["callback_seconds"] - then["callback_seconds"] if then is not None else 0.0
        rows.append(
            ChannelRow(
                topic=printable(each["topic"]) + (" (private)" if each["private"] else ""),
                state=printable(each["state"]),
                queued=int(each["queued"]),
                rate=_rate(then["received"] if then is not None else None, each["received"], span),
                call=seconds / calls if calls > 0 else None,
                dropped=int(each["dropped"]),
            )
        )
    return rows


def _numbered(details: Sequence[Mapping[str, Any]]) -> list[tuple[tuple[str, bool, int], Mapping[str, Any]]]:
    seen: Counter[tuple[str, bool]] = Counter()
    numbered = []
    for each in details:
        name = each["topic"], each["private"]
        numbered.append(((*name, seen[name]), each))
        seen[name] += 1
    return numbered

"""One topic, one callback: how many messages a second arrive in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from tests.benchmarks.model import Case, Goal, Place, Row, Settings
from tests.benchmarks.peers import receiver
from tests.benchmarks.processes import server

__all__ = ["CASE"]

#: Messages of a round, by payload size in bytes, for rtpool; a round takes a second or so.
MESSAGES = {50: 120_000, 250: 120_000, 2_000: 60_000, 100_000: 2_000}
#: How many times that each of the others gets, so that its round takes as long.
SHARES = {
    "rtpool": 1.0,
    "rtpool, no orjson": 0.3,
    "realtime": 0.15,
    "realtime-js": 1.5,
    "websocket-client": 0.05,
    "websocket-client, no UTF-8 check": 0.3,
    "websockets": 0.5,
    "floor": 2.0,
}
BINARY = ("rtpool", "realtime-js", "websocket-client", "websockets")


def row(variant: str, size: int, shares: Mapping[str, float], settings: Settings, *, binary: bool = False) -> Row:
    """All who can receive messages of this size."""
    whole = settings.messages(MESSAGES[size] * max(shares.values()))
    plan = {"topics": 1, "messages": whole, "size": size, "binary": binary}
    participants = [
        receiver(name, messages=settings.messages(MESSAGES[size] * share), binary=binary)
        for name, share in shares.items()
    ]
    return Row(variant, participants, partial(server, "traffic", plan))


def rows(settings: Settings) -> Sequence[Row]:
    """JSON text in four sizes, and binary frames in two."""
    binary = {name: SHARES[name] for name in BINARY}
    return [
        row("50 B", 50, SHARES, settings),
        row("250 B", 250, SHARES, settings),
        row("2 kB", 2_000, SHARES, settings),
        row("100 kB", 100_000, SHARES, settings),
        row("250 B, binary", 250, binary, settings, binary=True),
        row("2 kB, binary", 2_000, binary, settings, binary=True),
    ]


def _goal(variant: str, factor: float, peer: str, text: str, who: str = "rtpool") -> Goal:
    of, over = (Place(variant, name, "messages/s") for name in (who, peer))
    return Goal(text=text, of=of, over=over, at_least=factor)


CASE = Case(
    "receive",
    "one topic, one callback, JSON text and binary frames of several sizes",
    rows,
    (
        _goal("250 B", 10, "realtime", "at least 10 x realtime"),
        _goal("250 B", 1.2, "realtime-js", "at least 1.2 x realtime-js on Node"),
        _goal("250 B", 2, "websocket-client", "at least 2 x a plain websocket-client loop"),
        _goal("250 B", 2, "websocket-client, no UTF-8 check", "at least 2 x that loop without its UTF-8 check"),
        _goal("250 B", 0.5, "floor", "at least 0.5 x the floor"),
        _goal("250 B", 6, "realtime", "without orjson at least 6 x realtime", "rtpool, no orjson"),
        _goal("100 kB", 3, "realtime", "at least 3 x realtime"),
    ),
)

"""One topic, one callback: how many messages a second arrive in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from tests.benchmarks.model import Case, Row, Settings
from tests.benchmarks.peers import receiver
from tests.benchmarks.processes import server

__all__ = ["CASE"]

#: Messages of a round, by payload size in bytes, for rtpool; a round takes a second or two.
MESSAGES = {50: 200_000, 250: 200_000, 2_000: 80_000, 100_000: 2_500}
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


CASE = Case("receive", "one topic, one callback, JSON text and binary frames of several sizes", rows)

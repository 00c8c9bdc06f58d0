"""
From the call that sends a broadcast to the callback that hears it, as the server sends it back.

One message at a time with a pause after each, and a steady rate: half of what the slowest participant still carries.
Both against rtpool's embedded server, which does what a real one does, and against one that does next to nothing, where
what the client itself takes shows most.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tests.benchmarks.model import Case, Goal, Place, Row, Settings
from tests.benchmarks.peers import sender
from tests.benchmarks.processes import server

__all__ = ["CASE"]

PARTICIPANTS = ("rtpool", "realtime", "realtime-js", "websocket-client", "websockets")
SERVERS = {"embedded server": "embedded", "lean server": "exchange"}
#: Messages of a round, and a second; None is one at a time.
LOADS = {"low rate": (400, None), "half load": (2_000, 1_000.0)}


def rows(settings: Settings) -> Sequence[Row]:
    """Each load with each server."""
    return [
        _row(f"{load}, {name}", process, settings.messages(messages), rate)
        for load, (messages, rate) in LOADS.items()
        for name, process in SERVERS.items()
    ]


def _row(variant: str, process: str, messages: int, rate: float | None) -> Row:
    participants = [sender(name, what="round trip", messages=messages, rate=rate) for name in PARTICIPANTS]
    return Row(variant, participants, partial(server, process, {}))


def _goal(figure: str, peer: str, factor: float, text: str) -> Goal:
    of, over = (Place("low rate, embedded server", name, figure) for name in ("rtpool", peer))
    return Goal(text=text, of=of, over=over, at_most=factor)


GOALS = (
    _goal("us p50", "websocket-client", 1.15, "p50 at most 1.15 x a plain websocket-client loop"),
    _goal("us p50", "realtime", 1, "p50 below realtime"),
    _goal("us p99", "websocket-client", 2, "p99 at most 2 x a plain websocket-client loop"),
)
CASE = Case("roundtrip", "a broadcast of 250 B to the server and back into a callback", rows, GOALS)

"""1,000 joins on which nothing happens, on ten sockets with a heartbeat each: processor time and wake-ups."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tests.benchmarks.model import Case, Figures, Goal, Participant, Place, Row, Settings
from tests.benchmarks.processes import module, run, server

__all__ = ["CASE"]

TOPICS, SOCKETS = 1_000, 10
#: One `heartbeat_interval`, so that each socket has one heartbeat in it.
SECONDS = 25.0


def _measure(served: dict[str, object]) -> Figures:
    return run(module("clients.idle"), {**served, "topics": TOPICS, "sockets": SOCKETS, "seconds": SECONDS})


def rows(_settings: Settings) -> Sequence[Row]:
    """One row."""
    return [Row(f"{TOPICS:,} joins", [Participant("rtpool", _measure)], partial(server, "lean", {}))]


def _goal(figure: str, most: float, text: str) -> Goal:
    return Goal(text=text, of=Place(f"{TOPICS:,} joins", "rtpool", figure), at_most=most)


GOALS = (
    _goal("% of a core", 0.2, "at most 0.2 % of a core, heartbeats included"),
    _goal("wake-ups/s, less heartbeats", 2, "at most 2 wake-ups/s beyond heartbeats"),
)
CASE = Case("idle", "processor time and wake-ups while nothing happens", rows, GOALS)

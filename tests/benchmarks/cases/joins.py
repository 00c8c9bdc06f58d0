"""
How long it takes to join many topics, and to join them anew after the server dropped every socket, with pacing off.

What the server itself needs is what a client needs that only sends the frames and counts the replies. Both dial as many
sockets, a hundred topics each, and the time of that is in it, the first time and after the drop. rtpool's back-off is
set to a millionth of a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tests.benchmarks.model import Case, Figures, Goal, Participant, Place, Row, Settings
from tests.benchmarks.processes import module, run, server

__all__ = ["CASE"]

TOPICS = (100, 1_000)
CLIENTS = {"rtpool": module("clients.rtpool_joins"), "only frames": module("clients.raw_joins")}
SERVERS = {"embedded server": "embedded", "lean server": "lean"}


def _participant(name: str, topics: int) -> Participant:
    def measure(served: dict[str, object]) -> Figures:
        return run(CLIENTS[name], {**served, "topics": topics})

    return Participant(name, measure)


def rows(_settings: Settings) -> Sequence[Row]:
    """A row for each number of topics and each server."""
    return [
        Row(f"{topics:,}, {variant}", [_participant(name, topics) for name in CLIENTS], partial(server, name, {}))
        for topics in TOPICS
        for variant, name in SERVERS.items()
    ]


def _goal(figure: str) -> Goal:
    of, over = (Place(f"1,000, {next(iter(SERVERS))}", name, figure) for name in CLIENTS)
    return Goal(text=f"{figure} at most 1.2 x the server's own", of=of, over=over, at_most=1.2)


CASE = Case(
    "joins", "many topics joined, and joined anew after a loss", rows, (_goal("ms to join"), _goal("ms to rejoin"))
)

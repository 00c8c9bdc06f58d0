"""
How long it takes to join many topics, and to join them anew after the server dropped every socket, with pacing off.

What the server itself needs is what a client needs that only sends the frames and counts the replies. Both dial as many
sockets, a hundred topics each, and the time of that is in it, the first time and after the drop. rtpool's back-off is
set to a millionth of a second.

A real server takes 2.3 ms for a join on loopback, one after the other on each socket; so does the embedded one where a
row says so. Without that it answers as fast as it can, which tells what a client itself takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from tests.benchmarks.model import Case, Figures, Goal, Participant, Place, Row, Settings
from tests.benchmarks.processes import module, run, server

__all__ = ["CASE"]

TOPICS = (100, 1_000)
CLIENTS = {"rtpool": module("clients.rtpool_joins"), "only frames": module("clients.raw_joins")}
#: The module of each, and what it is told.
SERVERS: Mapping[str, tuple[str, Mapping[str, float]]] = {
    "a join takes 2.3 ms": ("embedded", {"join_latency": 0.0023}),
    "embedded server": ("embedded", {}),
    "lean server": ("lean", {}),
}


def _participant(name: str, topics: int) -> Participant:
    def measure(served: dict[str, object]) -> Figures:
        return run(CLIENTS[name], {**served, "topics": topics})

    return Participant(name, measure)


def rows(_settings: Settings) -> Sequence[Row]:
    """A row for each number of topics and each server."""
    return [
        Row(f"{topics:,}, {variant}", [_participant(who, topics) for who in CLIENTS], partial(server, name, told))
        for topics in TOPICS
        for variant, (name, told) in SERVERS.items()
    ]


def _goal(variant: str, figure: str) -> Goal:
    of, over = (Place(f"1,000, {variant}", name, figure) for name in CLIENTS)
    return Goal(text=f"{figure} at most 1.2 x the server's own", of=of, over=over, at_most=1.2)


GOALS = [_goal(variant, figure) for variant in list(SERVERS)[:2] for figure in ("ms to join", "ms to rejoin")]
CASE = Case("joins", "many topics joined, and joined anew after a loss", rows, GOALS)

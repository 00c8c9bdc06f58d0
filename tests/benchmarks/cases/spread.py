"""
The same messages over more topics and sockets: what routing costs. A peer has one socket; rtpool has as many as asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tests.benchmarks.model import Case, Goal, Place, Row, Settings
from tests.benchmarks.peers import receiver
from tests.benchmarks.processes import server

__all__ = ["CASE"]

#: Messages of a round, over all topics; for rtpool.
MESSAGES = 100_000
ONE_SOCKET = {"rtpool": 1.0, "realtime": 0.25, "realtime-js": 2.0}
TEN_SOCKETS = {"rtpool": 1.0}


def rows(settings: Settings) -> Sequence[Row]:
    """1 to 1,000 topics on one socket, and as many on ten as there can be."""
    one = [_row(topics, 1, settings) for topics in (1, 10, 100, 1_000)]
    return [*one, *(_row(topics, 10, settings) for topics in (10, 100, 1_000))]


def _row(topics: int, sockets: int, settings: Settings) -> Row:
    shares = ONE_SOCKET if sockets == 1 else TEN_SOCKETS
    plan = {"topics": topics, "messages": settings.messages(MESSAGES * max(shares.values())), "size": 250}
    told = {"topics": topics, "sockets": sockets}
    options = {"max_channels_per_connection": topics // sockets, "max_connections": sockets}
    participants = [
        receiver(name, messages=settings.messages(MESSAGES * share), options=options, **told)
        for name, share in shares.items()
    ]
    return Row(variant(topics, sockets), participants, partial(server, "traffic", plan))


def variant(topics: int, sockets: int) -> str:
    """How a row is named."""
    return f"{topics:,} topic{'s' * (topics > 1)}, {sockets} socket{'s' * (sockets > 1)}"


GOAL = Goal(
    text="within 15 % of one topic on one socket",
    of=Place(variant(1_000, 10), "rtpool", "messages/s"),
    over=Place(variant(1, 1), "rtpool", "messages/s"),
    at_least=0.85,
)
CASE = Case("spread", "messages of 250 B over many topics and sockets, a callback on each topic", rows, (GOAL,))

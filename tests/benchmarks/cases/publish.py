"""How many broadcasts a second go out, from one thread and from eight, until the server has the last of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tests.benchmarks.model import Case, Goal, Place, Row, Settings
from tests.benchmarks.peers import sender
from tests.benchmarks.processes import server

__all__ = ["CASE"]

#: Messages of a round.
MESSAGES = 40_000
#: How many times that each of the others sends, so that its round takes as long.
ONE = {"rtpool": 1.0, "realtime": 0.5, "realtime-js": 1.0, "websocket-client": 1.0, "websockets": 1.0}
EIGHT = {"rtpool": 1.0, "websocket-client": 0.5, "websockets": 0.5}


def rows(settings: Settings) -> Sequence[Row]:
    """One thread, and eight that share a Channel; asyncio and Node have one."""
    return [_row("1 thread", 1, ONE, settings), _row("8 threads", 8, EIGHT, settings)]


def _row(variant: str, threads: int, shares: dict[str, float], settings: Settings) -> Row:
    participants = [
        sender(name, what="publish", threads=threads, messages=settings.messages(MESSAGES * share) // threads * threads)
        for name, share in shares.items()
    ]
    return Row(variant, participants, partial(server, "exchange", {}))


RATE = "messages/s"
OURS = Place("1 thread", "rtpool", RATE)
GOALS = (
    Goal(text="at least 2 x realtime", of=OURS, over=Place("1 thread", "realtime", RATE), at_least=2),
    Goal(text="at least 0.8 x one thread", of=Place("8 threads", "rtpool", RATE), over=OURS, at_least=0.8),
)
CASE = Case("publish", "broadcasts of 250 B without acknowledgement, until the server has the last one", rows, GOALS)

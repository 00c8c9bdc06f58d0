"""
What cannot be undercut: the pieces of receiving measured alone, the prototype made of nothing but them, and how much
faster than all of it the traffic is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tests.benchmarks.model import Case, Figures, Participant, Row, Settings
from tests.benchmarks.peers import receiver
from tests.benchmarks.processes import module, run, server

__all__ = ["CASE"]

#: Messages, by payload size; for the whole, and for the pieces.
MESSAGES = {50: 400_000, 250: 400_000, 2_000: 100_000, 100_000: 2_500}
PIECES_SHARE = 0.25
#: The name of each piece in the table, and in `clients/floor.py`.
PIECES = {
    "recv of 64 KiB": "recv",
    "frame cut": "cut",
    "decode, orjson": "orjson",
    "decode, json": "json",
    "hand-over, callback": "hand-over",
}
FLOOR = module("clients.floor")


def _piece(name: str, piece: str, messages: int, size: int) -> Participant:
    def measure(served: dict[str, object]) -> Figures:
        return run(FLOOR, {**served, "piece": piece, "messages": messages, "size": size})

    return Participant(name, measure)


def rows(settings: Settings) -> Sequence[Row]:
    """Two rows a size, of the whole and of its pieces; and one of what a wake-up costs."""
    made = []
    for size, count in MESSAGES.items():
        variant = f"{size:,} B"
        messages = settings.messages(count)
        serve = partial(server, "traffic", {"topics": 1, "messages": messages, "size": size})
        whole = [receiver("floor", messages=messages), _piece("traffic into recv", "into recv", messages, size)]
        part = settings.messages(count * PIECES_SHARE)
        pieces = [_piece(name, piece, part, size) for name, piece in PIECES.items()]
        made += [Row(variant, whole, serve), Row(f"{variant}, pieces", pieces, serve, compared=False)]
    wake = _piece("wake a thread", "wake", 1, 50)
    return [*made, Row("thread", [wake], partial(server, "traffic", {"topics": 1, "messages": 1, "size": 50}))]


CASE = Case("floor", "the pieces of receiving alone, the prototype of nothing else, and the rate of the traffic", rows)

"""
What objects take: a Channel on a join there is, a join with its first Channel, a socket with its first join; and what
is left of a message.

By `tracemalloc` it is what Python allocated for them, by the resident set what the process grew by. The latter is what
counts, but for a message, of which a resident set of ten thousand pages says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tests.benchmarks.model import Case, Figures, Goal, Participant, Place, Row, Settings
from tests.benchmarks.processes import module, run, server

__all__ = ["CASE"]

CLIENT = module("clients.memory")
TRACED, RESIDENT = "rtpool, tracemalloc", "rtpool, resident"
#: What, how many of it, over TLS or not, and the bytes one may take.
OBJECTS = {
    "Channel": ("channel", 2_000, False, 2_048),
    "join": ("join", 2_000, False, 6_144),
    "socket": ("socket", 1_000, False, 204_800),
    "socket, TLS": ("socket", 1_000, True, 204_800),
}
MESSAGES = 50_000
#: Bytes a message may leave: what a garbage collection earlier or later makes of thousands of messages.
NOTHING = 0.5


def _participant(name: str, what: str, count: int) -> Participant:
    def measure(served: dict[str, object]) -> Figures:
        return run(CLIENT, {**served, "of": what, "count": count, "traced": name == TRACED})

    return Participant(name, measure)


def rows(settings: Settings) -> Sequence[Row]:
    """A row for each kind of object."""
    made = []
    for variant, (what, count, tls, _) in OBJECTS.items():
        participants = [_participant(name, what, count) for name in (TRACED, RESIDENT)]
        made.append(Row(variant, participants, partial(server, "lean", {"tls": tls}), compared=False))
    messages = settings.messages(MESSAGES)
    left = [_participant(name, "message", messages) for name in (TRACED, RESIDENT)]
    return [*made, Row("message", left, partial(server, "lean", {}), compared=False)]


GOALS = [
    *(
        Goal(text=f"at most {most / 1024:g} KiB", of=Place(variant, name, "B"), at_most=most)
        for variant, (_, _, _, most) in OBJECTS.items()
        for name in (TRACED, RESIDENT)
    ),
    Goal(text="nothing after its delivery", of=Place("message", TRACED, "B"), at_most=NOTHING),
]
CASE = Case("memory", "bytes of each object, and of a message that was delivered", rows, GOALS)

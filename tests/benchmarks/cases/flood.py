"""
A flood on one Channel whose callback is slow: how long do messages of others take from the sender to their callback?

Behind a flood that comes faster than it can be read, a message on the same socket waits in the kernel's buffers of both
sides, megabytes deep, whatever the client does: that is told, and held to no goal, but for a flood at half the rate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from tests.benchmarks.model import Case, Figures, Goal, Participant, Place, Row, Settings
from tests.benchmarks.processes import module, run, server

__all__ = ["CASE"]

#: Seconds of a round, and from one message of the others to the next.
SECONDS, EVERY = 1.5, 0.005
PLAN = {"size": 250, "messages": 50_000}
#: Messages a second of a flood that is no more than can be read.
HALF = 60_000
POLICIES = ("drop_oldest", "drop_newest", "block", "close")
RTPOOL = "rtpool"
#: Milliseconds a message may take, and the answer to a heartbeat; MiB a full mailbox may, of 10,000 messages.
IN_TIME, ON_TIME, FULL = 50.0, 1_000.0, 64.0

VARIANTS: dict[str, dict[str, Any]] = {
    "no flood": {"flood": False},
    **{policy: {"overflow": policy} for policy in POLICIES},
    **{f"{policy}, computing": {"overflow": policy, "callback": "computing"} for policy in POLICIES},
    "half the rate": {"rate": HALF},
}


def rows(settings: Settings) -> Sequence[Row]:
    """A row for each policy and kind of slowness."""
    return [_row(variant, settings) for variant in VARIANTS]


def _row(variant: str, settings: Settings) -> Row:
    common = {"flood": True, "overflow": "drop_oldest", "callback": "sleeping", "rate": None, "every": EVERY}
    told = {**common, **VARIANTS[variant], "seconds": SECONDS * settings.scale}

    def measure(served: dict[str, Any]) -> Figures:
        return run(module("clients.rtpool_flood"), {**told, "port": served["port"]})

    return Row(variant, [Participant(RTPOOL, measure)], partial(server, "flood", PLAN))


def _goals() -> Iterator[Goal]:
    """For each row the same, and where the flood is no more than can be read, for the neighbour on its socket, too."""
    others, neighbour, beats = "p99 ms, own socket", "p99 ms, same socket", "heartbeat p99 ms"
    for variant in VARIANTS:
        others_of, beats_of, memory = (Place(variant, RTPOOL, figure) for figure in (others, beats, "MiB of memory"))
        yield Goal(text=f"p99, own socket: at most {IN_TIME:.0f} ms", of=others_of, at_most=IN_TIME)
        yield Goal(text=f"heartbeats, p99: at most {ON_TIME:,.0f} ms", of=beats_of, at_most=ON_TIME)
        yield Goal(text=f"at most {FULL:.0f} MiB", of=memory, at_most=FULL)
    place = Place("half the rate", RTPOOL, neighbour)
    yield Goal(text=f"p99, same socket: at most {IN_TIME:.0f} ms", of=place, at_most=IN_TIME)


CASE = Case("flood", "others beside a flood of 250 B for a callback that takes 1 ms", rows, tuple(_goals()))

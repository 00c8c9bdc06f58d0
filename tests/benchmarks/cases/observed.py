"""What it costs to look: the same messages while nothing, a debugger, Prometheus or the recorder of frames does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tests.benchmarks.model import Case, Goal, Place, Row, Settings
from tests.benchmarks.peers import receiver
from tests.benchmarks.processes import server

__all__ = ["CASE"]

#: A round takes some seconds, for what looks does so once a second.
MESSAGES = 900_000
LOOKING = ("rtpool, debugger", "rtpool, Prometheus", "rtpool, frames recorded")


def rows(settings: Settings) -> Sequence[Row]:
    """One row, for everything off to be among them."""
    messages = settings.messages(MESSAGES)
    participants = [receiver(name, messages=messages) for name in ("rtpool", *LOOKING)]
    return [Row("250 B", participants, partial(server, "traffic", {"topics": 1, "messages": messages, "size": 250}))]


def _goal(who: str) -> Goal:
    of, over = (Place("250 B", name, "messages/s") for name in (who, "rtpool"))
    return Goal(text=f"{who.partition(', ')[2]}: at least 0.97 x everything off", of=of, over=over, at_least=0.97)


CASE = Case(
    "observed",
    "receive at 250 B while a debugger, Prometheus or the recorder of frames looks",
    rows,
    (_goal("rtpool, debugger"), _goal("rtpool, Prometheus")),
)

"""
Ordinary requests to a Flask app in gunicorn while other requests in the same processes open and leave Channels.

Beside them come as many requests a second that do nothing of rtpool's: what any request costs its neighbours is in the
figures of both. What a Channel itself costs the request that opens it is told by its view.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import partial

from tests.benchmarks.model import Case, Figures, Goal, Participant, Place, Row, Settings
from tests.benchmarks.processes import module, run, server

__all__ = ["CASE"]

#: Requests a second: those that are looked at, and the others.
RATE, OTHERS = 200, 100
SECONDS = 10.0
#: What the others ask for.
ASKED = {
    "beside none": "",
    "beside ordinary ones": "/",
    "beside Channels of a topic that is joined": "/visit?topic=room&left=with",
    "beside Channels left by the request's end": "/visit?topic=room",
    "beside Channels of topics of their own": "/visit?topic=own-{number}&left=with",
    "beside own topics, left by the request's end": "/visit?topic=own-{number}",
}
NEEDED = ("flask", "gunicorn")


def _participant(name: str, others: str, seconds: float) -> Participant:
    def measure(served: dict[str, object]) -> Figures:
        plan = {"rate": RATE, "others_rate": OTHERS, "others": others, "seconds": seconds}
        return run(module("clients.web_requests"), {**served, **plan})

    missing = [package for package in NEEDED if importlib.util.find_spec(package) is None]
    return Participant(name, measure, f"run: pip install {' '.join(missing)}" if missing else None)


def rows(settings: Settings) -> Sequence[Row]:
    """One row, in which the ways take turns."""
    seconds = max(1.0, SECONDS * settings.scale)
    participants = [_participant(name, others, seconds) for name, others in ASKED.items()]
    return [Row("requests", participants, partial(server, "web", {}))]


def _goal(figure: str, most: float) -> Goal:
    return Goal(
        text=f"{figure} beside Channels at most {most} x that beside ordinary requests",
        of=Place("requests", "beside own topics, left by the request's end", figure),
        over=Place("requests", "beside ordinary ones", figure),
        at_most=most,
    )


#: The server that is joined shares the two cores, and p99 varies by half from round to round.
GOALS = (_goal("ms, p50", 1.5), _goal("ms, p99", 1.5))
CASE = Case("flask", "ordinary requests beside those that open and leave Channels, in the same gunicorn", rows, GOALS)

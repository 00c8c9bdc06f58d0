"""
How long the import takes in a fresh interpreter, beside that of the three dependencies and of the official client.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.benchmarks.model import Case, Figures, Goal, Participant, Place, Row, Settings
from tests.benchmarks.processes import module, run
from tests.interop import install

__all__ = ["CASE"]

#: Interpreters of a round.
TIMES = 20
DEPENDENCIES = "websocket, attrs, tenacity"


def _participant(name: str, modules: str, missing: str | None = None, **told: Any) -> Participant:
    def measure(_served: object, times: int = TIMES) -> Figures:
        return run(module("clients.importing"), {"modules": modules, "times": times, **told})

    return Participant(name, measure, missing)


def rows(_settings: Settings) -> Sequence[Row]:
    """One row."""
    official = [str(install.PYTHON), "-I"]
    others = [
        _participant("its dependencies", DEPENDENCIES),
        _participant("realtime", "realtime", install.missing("py"), python=official),
    ]
    return [Row("alone", [_participant("rtpool", "rtpool"), *others])]


GOALS = [
    Goal(
        text="at most 1.3 x importing its dependencies",
        of=Place("alone", "rtpool", "ms"),
        over=Place("alone", "its dependencies", "ms"),
        at_most=1.3,
    )
]
CASE = Case("import", "the import in a fresh interpreter", rows, GOALS)

"""Holds what was measured against what is to be reached. The goals themselves stand in the cases."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from tests.benchmarks.model import Case, Goal, Results
from tests.benchmarks.runner import number

__all__ = ["Verdict", "judge", "table"]


@attrs.frozen
class Verdict:
    """What became of a goal of a case: what was measured, None where nothing was, and then why not."""

    case: str
    goal: Goal
    measured: float | None
    why_not: str = ""

    @property
    def missed(self) -> bool:
        """Whether it was measured and is not reached."""
        if self.measured is None:
            return False
        low, high = self.goal.at_least, self.goal.at_most
        return (low is not None and self.measured < low) or (high is not None and self.measured > high)

    @property
    def word(self) -> str:
        """For the table."""
        return f"not measured ({self.why_not})" if self.measured is None else "MISSED" if self.missed else "met"


def judge(results: Results, cases: Sequence[Case]) -> list[Verdict]:
    """Hold results against the goals of the cases that were run."""
    return [_judge(results, case.name, goal) for case in cases for goal in case.goals]


def _judge(results: Results, case: str, goal: Goal) -> Verdict:
    medians = []
    for place in (goal.of, goal.over):
        if place is None:
            continue
        summary = results.summary(case, place)
        if summary is None:
            figures = [
                p.figure
                for name, p in results.values
                if (name, p.variant, p.participant) == (case, place.variant, place.participant)
            ]
            if figures:
                raise ValueError(f"a goal of {case} looks at {place}, but what was measured there is {figures}")
            why = results.missing.get((case, place.variant, place.participant))
            return Verdict(case, goal, None, why or f"nothing came of {place.participant}, {place.variant}")
        medians.append(summary.median)
    return Verdict(case, goal, medians[0] / medians[1] if len(medians) == 2 else medians[0])


def table(verdicts: Sequence[Verdict]) -> list[str]:
    """The lines of the final table: case, measured, goal, and whether it is met."""
    rows = [("case", "measured", "goal", "")]
    for verdict in verdicts:
        goal, measured = verdict.goal, verdict.measured
        unit = f" {goal.of.figure}" if goal.over is None else " x"
        shown = "-" if measured is None else f"{number(measured)}{unit}"
        rows.append((f"{verdict.case}, {goal.of.variant}", shown, goal.text, verdict.word))
    first, second, third = (max(len(row[column]) for row in rows) for column in range(3))
    return [f"{a:<{first}}  {b:>{second}}  {c:<{third}}  {d}".rstrip() for a, b, c, d in rows]

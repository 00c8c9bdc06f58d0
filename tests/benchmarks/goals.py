"""What is to be reached, as data: ratios of medians within one run, and a few plain bounds."""

from __future__ import annotations

import attrs

from tests.benchmarks.model import Key, Results
from tests.benchmarks.runner import number

__all__ = ["GOALS", "Goal", "Verdict", "judge", "table"]


@attrs.frozen(kw_only=True)
class Goal:
    """
    One goal.

    Attributes:
        text: in words, as it stands in the table.
        of: the figure that is looked at.
        over: the figure it is divided by, None where the figure itself is bounded.
        at_least, at_most: the bound; one of them.
    """

    text: str
    of: Key
    over: Key | None = None
    at_least: float | None = None
    at_most: float | None = None

    def __attrs_post_init__(self) -> None:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"{self.text}: a goal has one bound")


@attrs.frozen
class Verdict:
    """What became of a goal: what was measured, None where nothing was, and then why not."""

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


def judge(results: Results, goals: tuple[Goal, ...] | None = None) -> list[Verdict]:
    """Hold results against goals, all of them where none are given."""
    verdicts = []
    for goal in GOALS if goals is None else goals:
        keys = [goal.of] if goal.over is None else [goal.of, goal.over]
        medians = []
        for key in keys:
            summary = results.summary(key)
            if summary is None:
                why = results.missing.get((key.case, key.variant, key.participant))
                verdicts.append(Verdict(goal, None, why or f"{key.case} was not run"))
                break
            medians.append(summary.median)
        else:
            verdicts.append(Verdict(goal, medians[0] if goal.over is None else medians[0] / medians[1]))
    return verdicts


def table(verdicts: list[Verdict]) -> list[str]:
    """The lines of the final table: case, measured, goal, and whether it is met."""
    lines = [f"{'case':<34} {'measured':>12}  {'goal':<58} "]
    for verdict in verdicts:
        key, measured = verdict.goal.of, verdict.measured
        unit = "" if verdict.goal.over is None else " x"
        shown = "-" if measured is None else f"{number(measured)}{unit}"
        lines.append(f"{f'{key.case}, {key.variant}':<34} {shown:>12}  {verdict.goal.text:<58} {verdict.word}")
    return lines


RATE = "messages/s"


def _receive(variant: str, peer: str, factor: float, text: str, who: str = "rtpool") -> Goal:
    of, over = (Key("receive", variant, name, RATE) for name in (who, peer))
    return Goal(text=text, of=of, over=over, at_least=factor)


#: The goals, for medians on a machine with two cores.
GOALS: tuple[Goal, ...] = (
    _receive("250 B", "realtime", 10, "at least 10 x realtime"),
    _receive("250 B", "realtime-js", 1.2, "at least 1.2 x realtime-js on Node"),
    _receive("250 B", "websocket-client", 2, "at least 2 x a plain websocket-client loop"),
    _receive("250 B", "websocket-client, no UTF-8 check", 2, "at least 2 x that loop without its UTF-8 check"),
    _receive("250 B", "floor", 0.5, "at least 0.5 x the floor"),
    _receive("250 B", "realtime", 6, "without orjson at least 6 x realtime", who="rtpool, no orjson"),
    _receive("100 kB", "realtime", 3, "at least 3 x realtime"),
)

"""
What a case is made of, and what came out of it.

A case has rows, one for each variant (a payload size, a number of Channels); a row has participants, and each
participant is measured in a process of its own, once a round, in turn with the others of its row.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import attrs

__all__ = ["Case", "Figures", "Goal", "Participant", "Place", "Results", "Row", "Settings", "Summary", "nothing"]

#: What one participant measured in one round. A figure's name is its unit, as it is printed: ``"messages/s"``.
Figures = Mapping[str, float]


@attrs.frozen
class Settings:
    """
    How much is measured.

    Attributes:
        rounds: how often each participant is measured.
        scale: messages are multiplied by it; less than 1 for a quick run.
        only: names of participants, up to a comma at least; empty for all of them.
    """

    rounds: int = 5
    scale: float = 1.0
    only: Sequence[str] = ()

    def messages(self, count: float) -> int:
        """So many messages, at this scale; two at least, for there is time between two."""
        return max(2, round(count * self.scale))

    def wants(self, participant: str) -> bool:
        """Whether a participant is measured."""
        return not self.only or participant in self.only or participant.partition(",")[0] in self.only


@contextlib.contextmanager
def nothing() -> Iterator[None]:
    """The server of a row that needs none."""
    yield None


@attrs.frozen
class Participant:
    """
    Who is measured.

    Attributes:
        name: ``"rtpool"``, ``"realtime"``…
        measure: one round in a process of its own; it is given what the row's `server` yields, and raises when
            something is wrong, a message that is lost or out of order included.
        missing: what is to be done to have it here; None when it is here. It is then named in the table, not measured.
    """

    name: str
    measure: Callable[[Any], Figures]
    missing: str | None = None


@attrs.frozen
class Row:
    """
    One variant of a case.

    Attributes:
        server: entered once, before the first round; a process of its own, too.
        compared: whether the participants do the same, so that a ratio of their figures means something.
    """

    variant: str
    participants: Sequence[Participant]
    server: Callable[[], AbstractContextManager[Any]] = nothing
    compared: bool = True


@attrs.frozen
class Place:
    """Where a figure stands in the table of a case."""

    variant: str
    participant: str
    figure: str


@attrs.frozen(kw_only=True)
class Goal:
    """
    What is to be reached in a case, for medians of one run on a machine with two cores.

    Attributes:
        text: in words, as it stands in the table of goals.
        of: the figure that is looked at.
        over: the figure it is divided by, None where the figure itself is bounded.
        at_least, at_most: the bound; one of them.
    """

    text: str
    of: Place
    over: Place | None = None
    at_least: float | None = None
    at_most: float | None = None

    def __attrs_post_init__(self) -> None:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"{self.text}: a goal has one bound")


@attrs.frozen
class Case:
    """A case: its name on the command line, one line of what it does, its rows and what is to be reached in them."""

    name: str
    about: str
    rows: Callable[[Settings], Sequence[Row]]
    goals: Sequence[Goal] = ()


@attrs.frozen
class Summary:
    """The values of one figure, a value a round."""

    values: Sequence[float]

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        """The lowest value."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The highest value."""
        return max(self.values)


@attrs.define
class Results:
    """
    What a run measured.

    Attributes:
        values: by case and place, in the order in which they were measured; a value a round.
        missing: who was not measured and why, by case, variant and participant.
        failures: what went wrong, in words, in full.
    """

    values: dict[tuple[str, Place], list[float]] = attrs.field(factory=dict)
    missing: dict[tuple[str, str, str], str] = attrs.field(factory=dict)
    failures: list[str] = attrs.field(factory=list)

    def add(self, case: str, variant: str, participant: str, figures: Figures) -> None:
        """Note one round of a participant."""
        for figure, value in figures.items():
            self.values.setdefault((case, Place(variant, participant, figure)), []).append(value)

    def summary(self, case: str, place: Place) -> Summary | None:
        """What came out, None where nothing did."""
        values = self.values.get((case, place))
        return Summary(values) if values else None

    def fail(self, case: str, variant: str, participant: str, words: str) -> None:
        """Note that a participant did not do what it should: nothing that it measured in this row counts."""
        self.failures.append(f"{case}, {variant}, {participant}: {words}")
        self.missing[case, variant, participant] = "FAILED, see the end"
        for key in [
            k for k in self.values if k[0] == case and (k[1].variant, k[1].participant) == (variant, participant)
        ]:
            del self.values[key]

    def figures(self, case: str, variant: str) -> list[str]:
        """The figures of a row, in order."""
        return list(dict.fromkeys(p.figure for name, p in self.values if (name, p.variant) == (case, variant)))

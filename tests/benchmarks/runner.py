"""Runs the rows of cases: all participants in turn, round after round, and tells a table a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.benchmarks.model import Case, Key, Results, Row, Settings

__all__ = ["measure", "number"]


def measure(cases: Sequence[Case], settings: Settings, tell: Callable[[str], None] = print) -> Results:
    """
    Measure cases.

    Args:
        tell: is given the lines of each row's table as soon as the row is measured.

    Raises:
        Failed: a participant did not do what it should; nothing is measured on.
    """
    results = Results()
    for case in cases:
        tell(f"\n{case.name}: {case.about}")
        for row in case.rows(settings):
            _measure_row(case.name, row, settings.rounds, results)
            for line in _table(case.name, row, results):
                tell(line)
    return results


def _measure_row(case: str, row: Row, rounds: int, results: Results) -> None:
    for participant in row.participants:
        if participant.missing is not None:
            results.missing[case, row.variant, participant.name] = participant.missing
    there = [participant for participant in row.participants if participant.missing is None]
    with row.server() as served:
        for _ in range(rounds):
            for participant in there:
                results.add(case, row.variant, participant.name, participant.measure(served))


def number(value: float) -> str:
    """A figure with three digits that count, or all before the point."""
    if abs(value) >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.{1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3}f}"


def _table(case: str, row: Row, results: Results) -> list[str]:
    """A line for each participant and figure; the last column says how many times its figure the first one's is."""
    lines = []
    for figure in results.figures(case, row.variant):
        first = None
        for participant in row.participants:
            summary = results.summary(Key(case, row.variant, participant.name, figure))
            if summary is None:
                continue
            first = first or summary
            ratio = f"{first.median / summary.median:.2f} x" if summary.median and summary is not first else ""
            spread = f"({number(summary.low)} to {number(summary.high)})"
            lines.append(
                f"  {row.variant:<20} {participant.name:<34} {number(summary.median):>12} {figure:<14} "
                f"{spread:<28} {ratio:>8}"
            )
    for participant in row.participants:
        if participant.missing is not None:
            lines.append(f"  {row.variant:<20} {participant.name:<34} not measured: {participant.missing}")
    return lines

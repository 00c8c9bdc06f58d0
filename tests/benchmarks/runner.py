"""Runs the rows of cases: all participants in turn, round after round, and tells a table a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tests.benchmarks.model import Case, Place, Results, Row, Settings
from tests.benchmarks.processes import Failed

__all__ = ["measure", "number"]


def measure(cases: Sequence[Case], settings: Settings, tell: Callable[[str], None] = print) -> Results:
    """
    Measure cases. A participant that fails is measured no further in that row, and told of in the results.

    Args:
        tell: is given the lines of each row's table as soon as the row is measured.
    """
    results = Results()
    for case in cases:
        tell(f"\n{case.name}: {case.about}")
        rows = case.rows(settings)
        variants = max(len(row.variant) for row in rows)
        names = max(len(participant.name) for row in rows for participant in row.participants)
        for row in rows:
            _measure_row(case.name, row, settings, results)
            for variant, name, rest in _table(case.name, row, results):
                tell(f"  {variant:<{variants}}  {name:<{names}}  {rest}".rstrip())
    return results


def _measure_row(case: str, row: Row, settings: Settings, results: Results) -> None:
    there = []
    for participant in row.participants:
        if not settings.wants(participant.name):
            results.missing[case, row.variant, participant.name] = f"{participant.name} was left out"
        elif participant.missing is not None:
            results.missing[case, row.variant, participant.name] = participant.missing
        else:
            there.append(participant)
    if not there:
        return
    try:
        with row.server() as served:
            for _ in range(settings.rounds):
                for participant in list(there):
                    try:
                        results.add(case, row.variant, participant.name, participant.measure(served))
                    except Failed as error:
                        results.fail(case, row.variant, participant.name, str(error))
                        there.remove(participant)
    except Failed as error:
        results.failures.append(f"{case}, {row.variant}, its server: {error}")


def number(value: float) -> str:
    """A figure with three digits that count, or all before the point."""
    if abs(value) >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.{1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3}f}"


def _table(case: str, row: Row, results: Results) -> Iterator[tuple[str, str, str]]:
    """Variant, name and the rest of each line; its last column says how many times its median the first one's is."""
    for figure in results.figures(case, row.variant):
        first = None
        for participant in row.participants:
            summary = results.summary(case, Place(row.variant, participant.name, figure))
            if summary is None:
                continue
            compared = row.compared and first is not None and summary.median
            ratio = f"{first.median / summary.median:.2f} x" if compared and first is not None else ""
            first = first or summary
            spread = f"({number(summary.low)} to {number(summary.high)})"
            rest = f"{number(summary.median):>10} {figure:<11} {spread:<26} {ratio:>7}"
            yield row.variant, participant.name, rest
    for participant in row.participants:
        why = results.missing.get((case, row.variant, participant.name))
        if why is not None and "left out" not in why:
            yield row.variant, participant.name, f"not measured: {why}"

"""What the tests of the doctor share: an examination, and which step it was that failed."""

from __future__ import annotations

import json
import re
from typing import Any

from rtpool.doctor import CHECKS, Case, Examination, Report, Step
from rtpool.doctor.examination import CHANNEL
from tests.support.secrets_watch import watch

NAMES = [check.name for check in CHECKS]
#: Seconds for what never comes.
PATIENCE = 1.0


def examine(url: str, key: str | None = None, **given: Any) -> Report:
    """A report, in which no secret is to be seen."""
    watch.learn(key, given.get("token"))
    case = Case(url, key, **{"patience": 10.0, "messages": 10, **given})
    report = Examination(case).run()
    watch.look("a report", json.dumps(report.as_dict()), report.summary(), *map(repr, report.steps))
    assert [step.name for step in report.steps] == NAMES
    return report


def step_of(report: Report, name: str) -> Step:
    """The step of that name."""
    return report.steps[NAMES.index(name)]


def fails_at(report: Report, name: str, words: str, advice: str, *, warned: tuple[str, ...] = ()) -> Step:
    """
    Exactly this step failed, with these words and advice; all before it are ticked, and what needs it was left out.

    Args:
        words, advice: regular expressions.
        warned: steps that warn of something else.
    """
    found = step_of(report, name)
    assert found.status == "failed", found
    assert re.search(words, found.words), found
    assert re.search(advice, found.advice), found
    assert report.exit_code == 1
    assert f"first {name}" in report.summary()
    left_out = {name}
    for check, step in zip(CHECKS, report.steps, strict=True):
        needs = {("private" if _private(report) else "join") if need == CHANNEL else need for need in check.needs}
        if needs & left_out:
            left_out.add(check.name)
            assert (step.status, step.words) == ("skipped", f"needs {name}"), step
        elif step.name in warned:
            assert step.status == "warning", step
        elif step.name != name:
            assert step.status in ("ok", "skipped"), step
            assert not step.words.startswith("needs"), step
    return found


def _private(report: Report) -> bool:
    return step_of(report, "join").words.startswith("--private")


def fine(report: Report, *, warned: tuple[str, ...] = ()) -> dict[str, Step]:
    """Nothing failed, and only these warned; the steps by name."""
    assert report.exit_code == 0, report.steps
    for step in report.steps:
        assert (step.status == "warning") is (step.name in warned), step
        assert not step.words.startswith("needs"), step
    return {step.name: step for step in report.steps}

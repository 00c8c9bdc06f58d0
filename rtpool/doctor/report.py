"""
What the doctor says: a finding a step, and all of them together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import attrs

__all__ = ["Finding", "Report", "Status", "Step", "cleaned", "failed", "ok", "skipped", "warning"]

Status = Literal["ok", "warning", "failed", "skipped"]


@attrs.frozen
class Finding:
    """
    What a step found.

    Attributes:
        status: ``ok``, ``warning``, ``failed`` or ``skipped``.
        words: what was found, on one line.
        advice: what to do about it; may be empty, and may have lines of SQL.
        details: JSON-able numbers and names.
    """

    status: Status
    words: str
    advice: str = ""
    details: Mapping[str, Any] = attrs.field(factory=dict)


def ok(words: str, advice: str = "", **details: Any) -> Finding:
    """All is well."""
    return Finding("ok", words, advice, details)


def warning(words: str, advice: str, **details: Any) -> Finding:
    """It works, and there is something to see to."""
    return Finding("warning", words, advice, details)


def failed(words: str, advice: str, **details: Any) -> Finding:
    """It does not work."""
    return Finding("failed", words, advice, details)


def skipped(words: str, **details: Any) -> Finding:
    """It was not looked at."""
    return Finding("skipped", words, "", details)


@attrs.frozen
class Step:
    """
    One step that was done, or left out.

    Attributes:
        name: ``url``, ``dns`` …, as in `CHECKS`.
        status, words, advice, details: as of `Finding`, without secrets.
        seconds: that it took.
    """

    name: str
    status: Status
    words: str
    advice: str = ""
    seconds: float = 0.0
    details: Mapping[str, Any] = attrs.field(factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The same as a JSON-able dictionary."""
        return {**attrs.asdict(self, recurse=False), "details": dict(self.details), "seconds": round(self.seconds, 6)}


@attrs.frozen
class Report:
    """
    All steps, in order.

    Attributes:
        steps: each one, also those that were left out.
        seconds: that it took.
        interrupted: whether Ctrl-C ended it early.
        timed_out: whether the time was over before the last step.
    """

    steps: Sequence[Step]
    seconds: float
    interrupted: bool = False
    timed_out: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing failed; warnings are no failure, and an end before the last step is one."""
        early = self.interrupted or self.timed_out
        return not early and not any(step.status == "failed" for step in self.steps)

    @property
    def exit_code(self) -> int:
        """0 when `ok`, else 1."""
        return 0 if self.ok else 1

    def summary(self) -> str:
        """How many steps came out how, in words."""
        counts = {status: sum(step.status == status for step in self.steps) for status in ("failed", "warning", "ok")}
        first = next((step.name for step in self.steps if step.status == "failed"), None)
        said = [
            f"{counts['failed']} failed, first {first}" if first else "",
            f"{counts['warning']} warning{'s' * (counts['warning'] != 1)}" if counts["warning"] else "",
            f"{counts['ok']} fine",
        ]
        early = "interrupted: " if self.interrupted else "out of time: " if self.timed_out else ""
        return early + ", ".join(filter(None, said))

    def as_dict(self) -> dict[str, Any]:
        """The same as a JSON-able dictionary."""
        return {
            "ok": self.ok,
            "interrupted": self.interrupted,
            "timed_out": self.timed_out,
            "seconds": round(self.seconds, 6),
            "steps": [step.as_dict() for step in self.steps],
        }


def cleaned(value: Any, hide: Callable[[str], str]) -> Any:
    """A JSON-able value with `hide` done to every text in it."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, Mapping):
        return {name: cleaned(item, hide) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [cleaned(item, hide) for item in value]
    return value

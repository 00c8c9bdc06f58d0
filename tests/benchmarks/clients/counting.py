"""What every client in Python counts: whether each message came once and in order, and how fast they came."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

__all__ = ["PATIENCE", "Counted", "arguments", "rate", "say"]

#: Seconds a client waits for the last message; less than `processes.PATIENCE`, so that it says itself what is missing.
PATIENCE = 40


class Counted:
    """
    The messages of one topic, numbered from 0, as one callback gets them.

    Args:
        expected: how many will come, two or more.
    """

    __slots__ = ("expected", "first_at", "last_at", "numbers")

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.numbers: list[int] = []
        self.first_at = self.last_at = 0.0

    def take(self, number: int) -> bool:
        """Count a message; whether it is the last. The work of the callback: no more than it needs to be checked."""
        self.numbers.append(number)
        if not number:
            self.first_at = time.perf_counter()
        elif number == self.expected - 1:
            self.last_at = time.perf_counter()
            return True
        return False

    def check(self) -> None:
        """Raise unless every message came once and in order."""
        came, expected = self.numbers, range(self.expected)
        if len(came) == len(expected) and all(a == b for a, b in zip(came, expected, strict=True)):
            return
        at = next((i for i, (a, b) in enumerate(zip(came, expected, strict=False)) if a != b), None)
        at = min(len(came), len(expected)) if at is None else at
        raise SystemExit(
            f"{len(came)} of {self.expected} messages came; the first wrong one is at {at}: {came[at:][:3]}"
        )


def rate(counted: Sequence[Counted]) -> float:
    """Messages a second between the first of all and the last of all: joining is not in it."""
    for each in counted:
        each.check()
    seconds = max(each.last_at for each in counted) - min(each.first_at for each in counted)
    return (sum(each.expected for each in counted) - 1) / seconds


def arguments() -> dict[str, Any]:
    """What this program was told."""
    told: dict[str, Any] = json.loads(sys.argv[1])
    return told


def say(figures: dict[str, float]) -> None:
    """Tell what was measured."""
    print(json.dumps(figures), flush=True)

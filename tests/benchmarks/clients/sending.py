"""What every client in Python that sends has in common: what it sends, and how it tells what came of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

__all__ = ["Latencies", "message", "publishing"]

#: Seconds between two messages at a low rate.
PAUSE = 0.005


def message(number: int, thread: int = 0) -> dict[str, Any]:
    """A payload of some 250 bytes."""
    return {"n": number, "t": thread, "pad": "x" * 225}


def publishing(messages: int, seconds: float, wrong: str) -> dict[str, float]:
    """The figures of a client that published; ends the program when something is wrong."""
    if wrong:
        raise SystemExit(wrong)
    return {"messages/s": messages / seconds}


class Latencies:
    """
    When each message was sent, and how long it took to come back.

    Args:
        messages: how many are sent; the first tenth warms up and is not counted.
        rate: messages a second, None for one at a time with a pause.
    """

    def __init__(self, messages: int, rate: float | None) -> None:
        self.messages, self.rate = messages, rate
        self._sent: list[float] = []
        self._took: list[float] = []
        self._began = 0.0

    def pause(self) -> float:
        """Seconds to wait before the next message."""
        if self.rate is None:
            return PAUSE
        self._began = self._began or time.perf_counter()
        return self._began + len(self._sent) / self.rate - time.perf_counter()

    def sends(self) -> dict[str, Any]:
        """The next message, to be sent now."""
        payload = message(len(self._sent))
        self._sent.append(time.perf_counter())
        return payload

    def came(self, number: int) -> bool:
        """Note a message that came back, in the order in which it was sent; whether it is the last."""
        now = time.perf_counter()
        if number != len(self._took):
            raise SystemExit(f"message {number} came back where {len(self._took)} was expected")
        self._took.append(now - self._sent[number])
        return len(self._took) == self.messages

    def figures(self) -> dict[str, float]:
        """What was measured."""
        took = sorted(self._took[self.messages // 10 :])
        return {f"us p{percent}": _percentile(took, percent) * 1e6 for percent in (50, 95, 99)}


def _percentile(ordered: Sequence[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]

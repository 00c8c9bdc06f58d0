"""A callback that keeps what it got and can be waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from tests.support.wait import CAP


class Recorder:
    def __init__(self) -> None:
        self.events: list[Any] = []
        self._changed = threading.Condition()

    def __call__(self, event: Any) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait_for(self, predicate: Callable[[list[Any]], object], cap: float = CAP) -> list[Any]:
        with self._changed:
            # Predicates look at what came last, and so there must be something.
            assert self._changed.wait_for(lambda: self.events and predicate(self.events), cap), (
                f"got {self.events[-5:]}"
            )
            return list(self.events)

    def wait(self, count: int, cap: float = CAP) -> list[Any]:
        return self.wait_for(lambda events: len(events) >= count, cap)

    def first(self, wanted: Callable[[Any], object]) -> Any:
        """The first event that is `wanted`, however many came after it."""
        return next(filter(wanted, self.wait_for(lambda events: any(map(wanted, events)))))

    @property
    def numbers(self) -> list[int]:
        """The ``n`` of each payload."""
        return [event.payload["n"] for event in list(self.events)]

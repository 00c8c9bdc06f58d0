"""A debugger that looks often, and the issues of its next look."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

import rtpool
from rtpool.debug import Debugger, Issue
from tests.support.wait import CAP, wait_until

#: Seconds between two looks, and for which what has happened counts as present.
INTERVAL, RECENT = 0.05, 0.3


class Gate:
    """A callback that does not return until it is told to."""

    def __init__(self) -> None:
        self.entered, self.open = threading.Event(), threading.Event()

    def hold(self, _event: object) -> None:
        self.entered.set()
        self.open.wait(CAP)


class Watch:
    """A pool's debugger, enabled."""

    def __init__(self, pool: rtpool.RealtimePool, **thresholds: float) -> None:
        self.pool = pool
        self.debugger = Debugger(pool, **{"recent": RECENT, **thresholds})
        self._changed = threading.Condition()
        self._begun = self._ended = 0
        self._issues: list[Issue] = []
        look = self.debugger._inspector.look

        def counted(*args: object, **named: object) -> list[Issue]:
            with self._changed:
                self._begun += 1
            issues = look(*args, **named)  # type: ignore[arg-type]
            with self._changed:
                self._ended, self._issues = self._ended + 1, issues
                self._changed.notify_all()
            return issues

        self.debugger._inspector.look = counted  # type: ignore[method-assign]
        self.debugger.enable(INTERVAL)

    def look(self) -> list[Issue]:
        """What the first look finds that begins from now on."""
        with self._changed:
            wanted = self._begun + 1
            assert self._changed.wait_for(lambda: self._ended >= wanted, CAP), "no look"
            return self._issues

    def of(self, code: str) -> list[Issue]:
        return [issue for issue in self.look() if issue.code == code]

    def finds(self, code: str, subject: str, observed: str = "") -> Issue:
        """What is wrong now is found by the next look."""
        issues = self.look()
        (issue,) = [issue for issue in issues if issue.code == code and issue.subject == subject]
        assert observed in issue.observed
        return issue

    def finds_in_time(self, code: str, subject: str, observed: str = "") -> Issue:
        """What must have lasted for a while is found by the first look after that."""
        wait_until(lambda: any((i.code, i.subject) == (code, subject) for i in self.look()), f"{code} {subject}")
        return self.finds(code, subject, observed)

    def is_cured_of(self, code: str) -> None:
        """What is right again is issue no more, once it is no news either."""
        wait_until(lambda: not self.of(code), f"{code} is over")


WatchPool = Callable[..., Watch]


@pytest.fixture
def gate() -> Iterator[Gate]:
    it = Gate()
    yield it
    it.open.set()


@pytest.fixture
def watch() -> Iterator[WatchPool]:
    """Debuggers that look often."""
    watches: list[Watch] = []

    def begin(pool: rtpool.RealtimePool, **thresholds: float) -> Watch:
        watches.append(Watch(pool, **thresholds))
        return watches[-1]

    yield begin
    for each in watches:
        each.debugger.disable()


PassTime = Callable[[float], None]


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> PassTime:
    """Has so many seconds pass, for looks alone."""
    passed = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + sum(passed))
    for module in ("inspector", "observation"):
        monkeypatch.setattr(f"rtpool.debug.{module}.time", clock)
    return passed.append

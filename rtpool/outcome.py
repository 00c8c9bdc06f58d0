"""
What a thread waits for: a value or an error that another thread gives, once.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Generic, TypeVar

__all__ = ["Outcome"]

T = TypeVar("T")


class Outcome(Generic[T]):
    """
    A value or an error to come. A `concurrent.futures.Future` does the same and takes 1.3 KiB, for a condition of its
    own; there are two of these for every subscribed Channel.

    It has no lock: every step is one that the interpreter does not divide. So who waits, or forks, within a signal
    handler finds none held.

    Thread-safety: every method may be called from any thread, but only one thread gives the outcome.
    """

    __slots__ = ("_done", "_ears", "_error", "_value")

    _value: T

    def __init__(self) -> None:
        self._done = False
        self._error: BaseException | None = None
        self._ears: list[Callable[[], object]] = []  # each is called once, by who takes it out

    def done(self) -> bool:
        """Whether it is known."""
        return self._done

    @property
    def error(self) -> BaseException | None:
        """The error, None when it is none or is not known yet."""
        return self._error

    def set_result(self, value: T) -> None:
        """Give the value, and wake who waits."""
        self._value = value
        self._tell()

    def set_exception(self, error: BaseException) -> None:
        """Give the error, and wake who waits."""
        self._error = error
        self._tell()

    def result(self, timeout: float) -> T:
        """
        The value, or the error raised.

        Args:
            timeout: seconds to wait for it.

        Raises:
            concurrent.futures.TimeoutError: it is not known by then.
        """
        if not self._done:
            ear = threading.Lock()
            ear.acquire()
            self._ears.append(ear.release)
            try:
                if not self._done and not ear.acquire(timeout=timeout) and not self._done:
                    raise FutureTimeout
            finally:
                with contextlib.suppress(ValueError):  # it was heard
                    self._ears.remove(ear.release)
        error = self._error
        if error is None:
            return self._value
        try:
            raise error
        finally:
            del self, error  # the traceback refers to this frame

    def _tell(self) -> None:
        assert not self._done, "it is given once"
        self._done = True  # before anybody is woken: who listens only now looks here afterwards
        while self._ears:
            with contextlib.suppress(IndexError):  # who has just given up took its own
                self._ears.pop(0)()

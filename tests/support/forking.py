"""Forked children that run a function of the test and tell it what they saw."""

from __future__ import annotations

import os
import signal
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from types import TracebackType
from typing import Any

from tests.support.wait import CAP, wait_until


class Link:
    """The child's side: `tell` the test something, `wait` until it says go."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def tell(self, value: Any) -> None:
        self._pipe.send(("told", value))

    def wait(self) -> None:
        assert self._pipe.poll(2 * CAP), "the test never said go"
        self._pipe.recv()


class Child:
    """
    A child made by `os.fork` that runs `body(link)` and ends without the interpreter's own ending.

    Leaving the block waits for its end; one that hangs is killed with SIGABRT, so that its stack is shown, and fails.
    """

    def __init__(self, body: Callable[[Link], Any]) -> None:
        ours, theirs = Pipe()
        self.pid = fork()
        if self.pid == 0:
            ours.close()
            _run(body, theirs)
        theirs.close()
        self._pipe = ours

    def told(self) -> Any:
        """What the child says next."""
        try:
            assert self._pipe.poll(CAP), "the child said nothing"
            kind, value = self._pipe.recv()
        except EOFError:
            raise AssertionError("the child ended without a word") from None
        assert kind != "raised", f"the child failed:\n{value}"
        return value

    def go(self) -> None:
        self._pipe.send(None)

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            os.kill(self.pid, signal.SIGKILL)
        status: list[int] = []

        def ended() -> bool:
            pid, code = os.waitpid(self.pid, os.WNOHANG)
            status.extend([code] if pid else [])
            return bool(pid)

        try:
            wait_until(ended, "the child did not end")
        except AssertionError:
            os.kill(self.pid, signal.SIGABRT)
            os.waitpid(self.pid, 0)
            raise
        finally:
            self._pipe.close()
        if kind is None:
            assert os.waitstatus_to_exitcode(status[0]) == 0


def fork() -> int:
    """`os.fork`, without the warning of Python 3.12 and later that this process has threads: that is what is tested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def ask(body: Callable[[], Any]) -> Any:
    """What `body()` returns in a forked child."""
    with Child(lambda link: link.tell(body())) as child:
        return child.told()


def _run(body: Callable[[Link], Any], pipe: Connection) -> None:
    code = 1
    try:
        signal.alarm(60)  # whatever happens to the test, no child stays
        body(Link(pipe))
        code = 0
    except BaseException:
        pipe.send(("raised", traceback.format_exc()))
    finally:
        pipe.close()
        os._exit(code)

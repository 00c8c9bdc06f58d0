"""
A dump of every pool of the process at a signal, in the way of `faulthandler.register`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, TextIO

from rtpool.engine.dump import dump_of
from rtpool.engine.engine import engines
from rtpool.errors import InvalidType, InvalidValue

__all__ = ["DumpOnSignal", "dump_on_signal"]


class DumpOnSignal:
    """
    What `dump_on_signal` set up, and its end: `restore`, or `with`.

    Thread-safety: as `signal.signal`, for the main thread only.
    """

    def __init__(self, signum: int, file: TextIO | None, as_json: bool) -> None:
        self._signum = signum
        self._file = file
        self._as_json = as_json
        self._active = True
        self._busy = False
        self._before: Any = signal.signal(signum, self._handle)

    def restore(self) -> None:
        """Put the handler from before back. One that was set after this one stays, and goes on calling this one."""
        self._active = False
        if signal.getsignal(self._signum) == self._handle:
            before = self._before
            while isinstance(ended := getattr(before, "__self__", None), DumpOnSignal) and not ended._active:
                before = ended._before  # it could not be taken out of the chain
            # None: it was set by C code, which Python can neither name nor put back.
            signal.signal(self._signum, signal.SIG_DFL if before is None else before)

    def __enter__(self) -> DumpOnSignal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.restore()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._active and not self._busy:  # a signal that comes during a dump is told of by it
            self._busy = True
            try:
                # What goes wrong here would be raised in whatever the main thread is doing.
                with contextlib.suppress(Exception):
                    _write(self._file or sys.stderr, self._text(frame))
            finally:
                self._busy = False
        if callable(self._before):
            self._before(signum, frame)

    def _text(self, frame: FrameType | None) -> str:
        dumps = [dump_of(engine, as_json=self._as_json) for engine in engines()]
        if self._as_json:
            return "".join(f"{dump}\n" for dump in dumps)
        stack = "".join(traceback.format_stack(frame))
        return "\n".join([*(dumps or ["no pools\n"]), f"the main thread of process {os.getpid()}\n{stack}\n"])


def dump_on_signal(signum: int | None = None, file: TextIO | None = None, *, as_json: bool = False) -> DumpOnSignal:
    """
    Write `RealtimePool.debug_dump` of every pool of the process, and the stack of the main thread, when a signal comes.

    The handler from before, if it is a function, is called afterwards. A forked child has the handler too, and tells of
    its own pools. The signal is heeded when the main thread runs Python code next: one that is stuck in a C library
    keeps it waiting, and `faulthandler` does not mind that.

    Args:
        signum: a `signal.Signals`; None is ``SIGUSR1``.
        file: a text file that stays open, None for `sys.stderr`. Where it has a descriptor that is written to directly,
            for the signal may have come in the middle of a write.
        as_json: one JSON object a line and pool, and nothing else.

    Returns:
        What ends it, also as a context manager.

    Raises:
        InvalidValue: on Windows, which has no such signals; not in the main thread; a signal that cannot be handled.
        InvalidType: `file` has no ``write``.
    """
    if signum is None:
        signum = getattr(signal, "SIGUSR1", None)
        if signum is None:
            raise InvalidValue("this system (Windows, for one) has no SIGUSR1; call pool.debug_dump() from a thread")
    if file is not None and not callable(getattr(file, "write", None)):
        raise InvalidType(f"file must be a text file or None, not {type(file).__name__}")
    if threading.current_thread() is not threading.main_thread():
        name = threading.current_thread().name
        raise InvalidValue(f"dump_on_signal() works in the main thread only, and this is {name!r}")
    try:
        return DumpOnSignal(signum, file, as_json)
    except (OSError, ValueError, TypeError) as error:
        raise InvalidValue(f"signal {signum!r} cannot be handled: {error}") from error


def _write(file: TextIO, text: str) -> None:
    descriptor: Callable[[], int] | None = getattr(file, "fileno", None)
    try:
        number = descriptor() if descriptor is not None else None
    except (OSError, ValueError):  # of `io.StringIO`, for one
        number = None
    if number is None:
        file.write(text)
        return
    data = memoryview(text.encode("utf-8", "backslashreplace"))
    while data:
        data = data[os.write(number, data) :]

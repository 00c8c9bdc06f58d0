"""
SIGTERM, for the one call that asks for it. Nothing else of rtpool touches the signal handlers of a program.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from rtpool.errors import InvalidValue

__all__ = ["sigterm_calls"]


@contextlib.contextmanager
def sigterm_calls(call: Callable[[], object]) -> Iterator[None]:
    """
    Have SIGTERM call `call` within, in the main thread, amidst whatever that does: it must take no lock.

    Raises:
        InvalidValue: this is not the main thread, and Python's signal handlers belong to that.
    """
    if threading.current_thread() is not threading.main_thread():
        name = threading.current_thread().name
        raise InvalidValue(f"handle_sigterm=True works in the main thread only, and this is {name!r}")
    before = signal.signal(signal.SIGTERM, lambda number, frame: call())
    try:
        yield
    finally:
        # None: it was set by C code, which Python can neither name nor put back.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)

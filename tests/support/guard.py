"""
Watches code that is to act on nothing but its arguments: says where it opens a socket, starts a thread, reads a clock,
sleeps, or draws a random number that no seed decides.

A profile function sees each call that Python code makes, under whatever name it was imported. What pytest, hypothesis
and other tools do for themselves is theirs; what the standard library does is the doing of who called it. Not seen are
calls that C code makes, such as ``map(time.sleep, pauses)``.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import random
import socket
import sys
import sysconfig
import threading
import time
import types
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

__all__ = ["watched"]

_CLOCKS = [
    *("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time"),
    *("process_time_ns", "thread_time", "thread_time_ns", "clock_gettime", "clock_gettime_ns"),
]
#: What the functions of the interpreter do.
_BUILTINS: dict[Callable[..., Any], str] = {
    time.sleep: "sleeps",
    **{getattr(time, name): "reads a clock" for name in _CLOCKS if hasattr(time, name)},
    **dict.fromkeys((datetime.datetime.now, datetime.datetime.utcnow), "reads a clock"),
    **dict.fromkeys((datetime.datetime.today, datetime.date.today), "reads a clock"),
    **dict.fromkeys((os.urandom, random.random, random.getrandbits), "draws a random number"),
}
#: What functions written in Python do.
_CODES: dict[types.CodeType, str] = {
    socket.socket.__init__.__code__: "opens a socket",  # type: ignore[attr-defined, unused-ignore]
    threading.Thread.start.__code__: "starts a thread",
    random.Random.seed.__code__: "draws a random number",  # to begin with, without a seed
}

_STDLIB = tuple(os.path.join(sysconfig.get_path(name), "") for name in ("stdlib", "platstdlib"))
_PACKAGES = tuple(os.path.join(sysconfig.get_path(name), "") for name in ("purelib", "platlib"))
_SPECS = map(find_spec, ("_pytest", "pytest", "pluggy", "hypothesis", "mutmut"))
_TOOLS = tuple(os.path.join(os.path.dirname(spec.origin), "") for spec in _SPECS if spec and spec.origin)


def _is_stdlib(path: str) -> bool:
    generated = path.startswith("<")  # importlib's, or a class's that attrs made
    return generated or (path.startswith(_STDLIB) and not path.startswith(_PACKAGES))


def _blame(frame: types.FrameType | None) -> str | None:
    """The file and line behind a call, None when it is a tool's."""
    while frame and _is_stdlib(frame.f_code.co_filename):
        frame = frame.f_back
    if frame is None or frame.f_code.co_filename.startswith(_TOOLS):
        return None
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """What the code within did that it may not, in words, each once; nothing is prevented. Of this thread only."""
    found: dict[str, None] = {}
    lookup, lookup_code, seed = _BUILTINS.get, _CODES.get, random.Random.seed.__code__

    def profile(frame: types.FrameType, event: str, arg: Any) -> None:
        caller: types.FrameType | None
        if event == "c_call":
            does = lookup(arg)
            if does is None:
                return
            name, caller = f"{arg.__module__ or type(arg.__self__).__name__}.{arg.__name__}", frame
        elif event == "call":
            does = lookup_code(frame.f_code)
            if does is None or (frame.f_code is seed and frame.f_locals.get("a") is not None):
                return
            name, caller = f"{frame.f_globals['__name__']}.{frame.f_code.co_name}", frame.f_back
        else:
            return
        where = _blame(caller)
        if where is not None:
            found[f"{does}: {name} at {where}"] = None

    listed: list[str] = []
    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield listed
    finally:
        sys.setprofile(before)
        listed += found

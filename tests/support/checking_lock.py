"""
A lock that watches its holder, in place of every lock of rtpool while the tests run.

Whoever holds one must take no other, enter no user code, wait for nothing and write no log: a `logging.Handler` is user
code. Between `acquire` and `release` every call the holder makes is looked at, Python's and C's, by a profile function,
so that no place can be forgotten; of a place that is passed hundreds of times in one test, a part of the passages. From
Python 3.12 on a profile function that comes and goes makes the interpreter instrument the whole program anew: there
only second locks are found, and the rest is left to older ones.
"""

from __future__ import annotations

import gc
import importlib
import linecache
import pkgutil
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from types import BuiltinFunctionType, CodeType, FrameType, ModuleType
from typing import Any

import rtpool
from rtpool.engine.threads import Bell

__all__ = ["WATCHES_CALLS", "CheckingLock", "install", "take_violations"]

WATCHES_CALLS = sys.version_info < (3, 12)

#: Where code of ours, or code that neither waits nor calls back, comes from.
_OURS = rtpool.__file__.removesuffix("__init__.py")
_HARMLESS = tuple(
    importlib.import_module(name).__file__
    for name in (
        "_collections_abc",
        "_weakrefset",
        "abc",
        "collections",
        "enum",
        "functools",
        "types",
        "typing",
        "weakref",
    )
)
#: The parts of these modules that take no lock but a new one of their own.
_HARMLESS_PARTS = {
    threading.__file__: {"RLock", "__init__", "_make_invoke_excepthook", "current_thread", "ident", "is_set", "name"},
    sys.modules["concurrent.futures._base"].__file__: {"__init__"},
}
#: C functions that may wait, or hand over to what may: by the module that has them, or that has their type.
_WAITING = {
    "_io": {"open", "read", "readinto", "readline", "write", "flush", "close"},
    "_queue": {"get"},
    "_socket": None,
    "_ssl": None,
    "_thread": {"acquire", "acquire_lock", "start_new_thread", "start_joinable_thread"},
    "builtins": {"input", "print"},
    "posix": {"fork", "fsync", "open", "read", "system", "waitpid", "write"},
    "select": None,
    "socket": None,
    "ssl": None,
    "time": {"sleep"},
}

#: Passages of a place, in a test, that are watched without exception; of more every so manieth is.
ALWAYS, SOMETIMES = 200, 16

_violations: list[str] = []
#: How often each place that takes a lock was watched in this test, by id() of its code.
_seen: dict[int, int] = {}
_get_ident = threading.get_ident


class _Here(threading.local):
    """What this thread holds, where it took it, and whether it is told of already."""

    lock: CheckingLock | None = None
    frame: FrameType | None = None
    line = 0
    told = False
    passes = 0
    collects = False
    watches = False
    profile: Any = None  # what watched before, and goes on watching


_here = _Here()


class CheckingLock:
    """
    A `threading.Lock` for `with`, `acquire`, `release` and `threading.Condition`.

    Attributes:
        pause: called, where one is set, before each acquisition and after each release; for tests that shuffle threads.
    """

    pause: Callable[[], None] | None = None

    def __init__(self) -> None:
        frame = sys._getframe(1)
        self.made_at = frame.f_code.co_filename, frame.f_lineno
        self._lock = threading.Lock()
        self._owner: int | None = None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        here = _here
        held = here.lock
        if held is not None:
            _tell(f"takes a second lock, {self!r},", sys._getframe(1))
            if held is self:
                raise RuntimeError(f"{self!r} is held by this very thread, which would wait for ever")
        elif CheckingLock.pause is not None:
            CheckingLock.pause()
        if not self._lock.acquire(blocking, timeout):
            return False
        self._owner = _get_ident()
        if held is None:
            frame = sys._getframe(1)
            while frame.f_code.co_filename in _PLUMBING and frame.f_back is not None:
                frame = frame.f_back
            here.lock, here.frame, here.line = self, frame, frame.f_lineno
            if WATCHES_CALLS:
                here.passes += 1
                place = id(frame.f_code)
                seen = _seen.get(place, 0)
                if seen < ALWAYS or here.passes % SOMETIMES == 0:
                    _seen[place] = seen + 1
                    here.profile, here.watches = sys.getprofile(), True
                    sys.setprofile(_watch)
        return True

    __enter__ = acquire

    def release(self) -> None:
        here = _here
        mine = here.lock is self
        if mine:
            if here.watches:
                sys.setprofile(here.profile)
                here.profile, here.watches = None, False
            here.lock, here.frame, here.told = None, None, False
        self._owner = None
        self._lock.release()
        if mine and CheckingLock.pause is not None:
            CheckingLock.pause()

    def __exit__(self, *_: object) -> None:
        self.release()

    def locked(self) -> bool:
        """Whether this thread holds it: rtpool asks in assertions alone, and means that."""
        return self._is_owned()

    def _is_owned(self) -> bool:  # for threading.Condition
        return self._owner == threading.get_ident()

    def __repr__(self) -> str:
        return f"<the lock made at {self.made_at[0].removeprefix(_OURS)}:{self.made_at[1]}>"


_PLUMBING = (__file__, threading.__file__)


def install() -> None:
    """Have every lock that rtpool makes from now on, and those its modules hold already, be a `CheckingLock`."""
    real = type(threading.Lock())
    for module in _modules():
        for name, value in list(vars(module).items()):
            if value is threading.Lock:
                setattr(module, name, CheckingLock)
            elif isinstance(value, real) and name != "making":  # which is for system calls, and is held over a fork
                setattr(module, name, CheckingLock())
            elif isinstance(value, threading.Condition):
                setattr(module, name, threading.Condition(CheckingLock()))
    gc.callbacks.append(_collecting)


def _modules() -> list[ModuleType]:
    names = [m.name for m in pkgutil.walk_packages(rtpool.__path__, "rtpool.") if m.name != "rtpool.__main__"]
    return [rtpool, *map(importlib.import_module, names)]


def take_violations() -> list[str]:
    """What was found since the last call, each with both stacks."""
    _seen.clear()
    taken = list(_violations)
    del _violations[: len(taken)]
    return taken


def _collecting(phase: str, _info: object) -> None:
    # What the collector finds it finalizes wherever it strikes: that is in nobody's hands, and rtpool's own finalizers
    # take no lock. What is finalized because the holder let go of it is the holder's doing.
    _here.collects = phase == "start"


def _tell(what: str, frame: FrameType | None) -> None:
    here = _here
    if here.told or here.lock is None:
        return
    here.told = True
    _violations.append(
        f"thread {threading.current_thread().name} {what} while it holds {here.lock!r}, taken at\n"
        f"{_stack(here.frame, here.line)}and now at\n{_stack(frame, frame.f_lineno if frame else 0)}"
    )


def _stack(frame: FrameType | None, line: int) -> str:
    entries = []
    while frame is not None:
        name = frame.f_code.co_filename
        entries.append((name, line, frame.f_code.co_name, linecache.getline(name, line)))
        frame = frame.f_back
        line = frame.f_lineno if frame is not None else 0
    return "".join(traceback.format_list(entries[:8][::-1]))


def _watch(frame: FrameType, event: str, function: Any) -> None:
    if _here.profile is not None:
        _here.profile(frame, event, function)
    if event == "c_call":
        if type(getattr(function, "__self__", None)) in _PLAIN:  # most are these, and they are many
            return
    elif event != "call":
        return
    here = _here
    if here.told or here.collects or here.lock is None:
        return
    code = frame.f_code
    if event == "call":
        harmless = _harmless.get(id(code))
        if harmless is None:
            harmless = _harmless[id(code)] = (code, _is_harmless(code))  # the code is kept, and so is its id
        if not harmless[1] and not _is_own_condition(frame, here.lock) and not _is_clock(frame):
            _tell(f"calls {code.co_name}() of {code.co_filename}", frame)
    elif _may_wait(function) and code.co_filename not in _PLUMBING and code is not Bell.ear.__code__:
        # An ear is taken by who has just made it.
        _tell(f"calls {getattr(function, '__qualname__', function)}()", frame)


_harmless: dict[int, tuple[CodeType, bool]] = {}
_PLAIN = {deque, dict, list, set, str, tuple}


def _is_harmless(code: CodeType) -> bool:
    name = code.co_filename
    if name == __file__ or name.startswith(("<attrs generated", "<string>", "<frozen")) or name in _HARMLESS:
        return True
    if name.startswith(_OURS):
        return code.co_name != "__del__"
    return code.co_name in _HARMLESS_PARTS.get(name, ()) or "/hypothesis/" in name  # it has a hook for the collector


def _is_own_condition(frame: FrameType, held: CheckingLock) -> bool:
    """A method of a Condition over the lock held: `wait` lets go of it."""
    if frame.f_code.co_filename != threading.__file__:
        return False
    condition = frame.f_locals.get("self")
    return isinstance(condition, threading.Condition) and getattr(condition, "_lock", None) is held


def _is_clock(frame: FrameType) -> bool:
    """A clock that a test put in place of the system's."""
    caller = frame.f_back.f_locals.get("self") if frame.f_back is not None else None
    return getattr(getattr(caller, "_wall", None), "__code__", None) is frame.f_code


def _may_wait(function: Any) -> bool:
    owner = getattr(function, "__self__", None) if isinstance(function, BuiltinFunctionType) else None
    kind = type(owner)
    module = owner.__name__ if isinstance(owner, ModuleType) else kind.__module__
    if module not in _WAITING or (module == "builtins" and kind is not ModuleType):
        return False
    names = _WAITING[module]
    return names is None or function.__name__ in names

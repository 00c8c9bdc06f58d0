"""
Every key and token of the tests, and a look for them in all that rtpool lets be seen.

Looked at, while and where it is made: what is logged by anybody in this process but the test server's own library, with
the tracebacks in it; every error that leaves a public method or reaches a callback, with its causes; statuses, stats,
health, warnings, the names of threads; the reprs of pools, Channels, options and of what they are made of; what was
captured of stdout and stderr. Of the frames in a traceback, those of rtpool are looked at with the values of their
local variables, as some reporters of errors show them.

Not looked at: local variables of other libraries' frames; the arguments of the very call that a user passed a secret
to, where that call raises, see `HANDED_OVER`; the contents of messages; other processes.
"""

from __future__ import annotations

import base64
import functools
import json
import logging
import os
import sys
import threading
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, quote_plus, urlsplit

import rtpool
from rtpool.engine import engine, mailboxes, threads
from rtpool.testing import RealtimeServer, tokens

__all__ = ["SecretsWatch", "install", "watch"]

#: Characters of a secret that give it away; of a shorter secret, all of it, and what is shorter still is any word.
FRAGMENT, SHORTEST = 12, 8
#: Every fragment holds one of these windows whole at a multiple of the step: so a long text is gone through in steps.
STEP = 6
WINDOW = FRAGMENT - STEP + 1
#: Parameters by which a user hands a secret over, and the calls that take one. While such a call raises it is on the
#: stack as what was given, and when it is refused for what it is, so it is in the checks.
HANDED_OVER = {"access_token", "api_key", "key", "option_overrides", "options", "overrides", "token", "value"}
TAKERS = {"__init__", "channel", "from_env", "get_pool", "set_auth"}
#: The loggers of the test server's library, which tells what its peer sends.
THE_OTHER_SIDE = ("websockets",)

_OURS = rtpool.__file__.removesuffix("__init__.py")
_THEIRS = (f"{_OURS}testing/", f"{_OURS}demo.py")


def _forms(secret: str) -> Iterator[str]:
    """The secret as it is, as URLs have it, and as it is found in the base64 of a text that has it anywhere."""
    yield from (secret, quote(secret, safe=""), quote_plus(secret))
    for before in range(3):
        data = b" " * before + secret.encode()
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            # The first and the last characters depend on what is around it.
            text = encode(data).decode().rstrip("=")
            yield text[(0, 2, 3)[before] : len(data) * 8 // 6]


def _secret_part(text: str) -> str:
    """Of a JWT what comes after its head, which is the same for all."""
    head, dot, rest = text.partition(".")
    return rest if dot and head.startswith("eyJ") else text


class SecretsWatch(logging.Handler):
    """
    What is secret, and where it was seen.

    Thread-safety: every method may be called from any thread.
    """

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self._guard = threading.RLock()  # of all below
        self._lasting: set[str] = set()  # of fixtures that outlive a test
        self._passing: set[str] = set()
        self._in_test = False
        self._whole: set[str] = set()
        self._fragments: set[str] = set()
        self._windows: set[str] = set()
        self._leaks: list[str] = []

    def after_fork(self) -> None:
        """In a forked child: whoever held the guard is not here."""
        self._guard = threading.RLock()

    # What is secret

    def learn(self, *texts: object) -> None:
        """Have these be secret, if they are text that can be."""
        for text in texts:
            if isinstance(text, str) and len(text) >= SHORTEST and text not in self._lasting | self._passing:
                with self._guard:
                    (self._passing if self._in_test else self._lasting).add(text)
                    self._add(text)

    def begin(self) -> None:
        """A test begins; what the one before it made is no secret any more."""
        with self._guard:
            self._in_test = True
            self._passing.clear()
            for known in (self._whole, self._fragments, self._windows):
                known.clear()
            for text in self._lasting:
                self._add(text)

    def end(self) -> None:
        """A test has ended."""
        self._in_test = False

    def _add(self, text: str) -> None:
        for form in _forms(_secret_part(text)):
            if len(form) < FRAGMENT:
                self._whole.add(form)
            self._fragments |= {form[at : at + FRAGMENT] for at in range(len(form) - FRAGMENT + 1)}
            self._windows |= {form[at : at + WINDOW] for at in range(len(form) - WINDOW + 1)}

    # Where it is seen

    def shows_secret(self, text: str) -> bool:
        """Whether a text has a secret in it, or a part of one."""
        with self._guard:
            if any(whole in text for whole in self._whole):
                return True
            for at in range(0, len(text) - WINDOW + 1, STEP):
                if text[at : at + WINDOW] in self._windows:
                    for start in range(max(0, at - STEP), at + 1):
                        if text[start : start + FRAGMENT] in self._fragments:
                            return True
            return False

    def look(self, where: str, *texts: str) -> None:
        """Look at what can be read at a place."""
        for text in texts:
            if self.shows_secret(text):
                self._leaks.append(f"{where} shows a secret: {text}")

    def take_leaks(self) -> list[str]:
        """What was found since the last call."""
        taken = list(self._leaks)
        del self._leaks[: len(taken)]
        return taken

    def emit(self, record: logging.LogRecord) -> None:
        """Look at what is logged."""
        if record.name.startswith(THE_OTHER_SIDE):
            return
        where = f"a line of {record.name} at {record.pathname}:{record.lineno}"
        self.look(where, record.getMessage(), repr(record.args), record.threadName or "")
        if record.exc_info is not None and record.exc_info[1] is not None:
            self.look_at_error(where, record.exc_info[1])

    def look_at_error(self, where: str, error: BaseException) -> None:
        """Look at all that an error and its causes tell."""
        refused = isinstance(error, (rtpool.InvalidValue, rtpool.InvalidType))
        seen: list[BaseException] = []
        waiting: list[BaseException | None] = [error]
        while waiting:
            at = waiting.pop()
            if at is None or any(at is other for other in seen):
                continue
            seen.append(at)
            waiting += [at.__cause__, at.__context__, *getattr(at, "exceptions", ())]
            place = f"{type(at).__name__} in {where}"
            self.look(place, *map(_shown, [str(at), at, at.args, vars(at), getattr(at, "__notes__", ())]))
            for frame, line in traceback.walk_tb(at.__traceback__):
                code = frame.f_code
                if code.co_filename.startswith(_OURS) and not code.co_filename.startswith(_THEIRS):
                    given = HANDED_OVER if refused or code.co_name in TAKERS else set()
                    self._look_at_frame(f"{place}, at {code.co_filename}:{line}", frame, given)

    def _look_at_frame(self, place: str, frame: types.FrameType, given: set[str]) -> None:
        for variable, value in list(frame.f_locals.items()):  # other threads may look at the same frame
            if variable not in given:
                self.look(f"{place}, the variable {variable}", _shown(value))

    def look_at_pool(self, pool: rtpool.RealtimePool) -> None:
        """Look at what a pool shows of itself and of its parts."""
        engine = pool._engine
        stats, health = pool.stats(), pool.health()
        parts = [pool, pool.options, pool._endpoint, pool._rest, engine, *vars(engine).values()]
        parts += [*vars(engine.coordinator).values(), *engine.coordinator.joins.values()]
        for channel in pool.channels():
            parts += [channel, channel._subscriber, channel._subscriber.key, channel._subscriber.attachment]
        self.look(f"the repr of a part of {pool!r}", *map(_shown, parts))
        self.look("stats", repr(stats), json.dumps(stats.as_dict(), default=repr))
        self.look("health", repr(health), json.dumps(health.as_dict(), default=repr))
        self.look("the dump", pool.debug_dump(), pool.debug_dump(as_json=True))
        self.look("the name of a thread", *(thread.name for thread in threading.enumerate()))


def _shown(value: object) -> str:
    try:
        return value if isinstance(value, str) else repr(value)
    except Exception:  # of a user, or half made
        return ""


#: The one that watches the tests.
watch = SecretsWatch()


def install() -> None:
    """Watch from now on."""
    os.register_at_fork(after_in_child=watch.after_fork)
    logging.getLogger().addHandler(watch)
    logging.getLogger().setLevel(logging.DEBUG)
    for name in THE_OTHER_SIDE:
        logging.getLogger(name).setLevel(logging.INFO)
    _learn_from_the_server()
    for kind in (rtpool.RealtimePool, rtpool.Channel, rtpool.Push):
        for name in dir(kind):
            function = getattr(kind, name)
            if isinstance(function, types.FunctionType) and (not name.startswith("_") or name == "__init__"):
                setattr(kind, name, _watched(function))
    rtpool.get_pool = _watched(rtpool.get_pool)
    for caller in (engine, mailboxes):
        caller.enter_user_code = _called_back(threads.enter_user_code)  # type: ignore[attr-defined]
    for module in list(sys.modules.values()):
        if module.__name__.startswith("rtpool.") and getattr(module, "warnings", None) is warnings:
            module.warnings = _Warnings()  # type: ignore[attr-defined]


def _learn_from_the_server() -> None:
    sign, init = tokens._sign, RealtimeServer.__init__

    def signing(secret: str, text: str, algorithm: str) -> str:
        signature = sign(secret, text, algorithm)
        watch.learn(secret, f"{text}.{signature}")
        return signature

    @functools.wraps(init)
    def serving(self: RealtimeServer, *args: Any, **named: Any) -> None:
        init(self, *args, **named)
        watch.learn(self.api_key, self.secret)

    tokens._sign = signing
    RealtimeServer.__init__ = serving  # type: ignore[method-assign]


def _watched(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def watched(*args: Any, **named: Any) -> Any:
        watch.learn(*(named.get(name) for name in ("api_key", "access_token", "token")))
        watch.learn(urlsplit(named["proxy"]).password if isinstance(named.get("proxy"), str) else None)
        try:
            result = function(*args, **named)
        except rtpool.RtpoolError as error:
            watch.look_at_error(f"{function.__qualname__}()", error)
            raise
        if function.__name__ in ("stats", "health"):
            watch.look(f"what {function.__qualname__}() returns", repr(result), str(result.as_dict()))
        if function.__name__ == "debug_dump":
            watch.look(f"what {function.__qualname__}() returns", result)
        return result

    return watched


def _called_back(function: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(function)
    def watched(callback: Any, value: Any) -> None:
        if isinstance(value, (rtpool.StatusChange, rtpool.Gap, rtpool.SystemMessage, rtpool.Push, rtpool.Heartbeat)):
            watch.look("what a callback is told", repr(value), type(value).__name__)
            error = getattr(value, "error", None)
            if error is not None:
                watch.look_at_error("what a callback is told", error)
        function(callback, value)

    return watched


class _Warnings:
    """The module, as a module of rtpool sees it."""

    @staticmethod
    def warn(message: str, category: type[Warning], stacklevel: int = 1, **more: Any) -> None:
        watch.look("a warning", message)
        warnings.warn(message, category, stacklevel + 1, **more)

"""
How a subscription stands, on standard error: a status line where that is a terminal, else a line for each change.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from datetime import datetime
from types import TracebackType

import click
from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from rtpool.errors import ConnectionFailed, RtpoolError
from rtpool.events import Event, Gap, StatusChange
from rtpool.protocol.refusals import printable

__all__ = ["Standing"]

#: Seconds between two drawings while events pour in.
DRAWING = 0.1
#: What it is called when events can come.
WORKS = "connected"
#: What a Channel's status means to a person, where its connection is open.
CHANNEL_WORDS = {"joined": WORKS, "timed_out": "no answer, joining again", "refused": "refused, joining again"}


class Standing:
    """
    Args:
        console: standard error.
        name: the topic that is listened on, to say so when it is for the first time.
        live: draw a status line; False writes a line for each change.
        quiet: show nothing at all.

    Attributes:
        failure: why nothing comes any more, None while something may.

    Thread-safety: every method may be called from any thread.
    """

    def __init__(self, console: Console, name: str, *, live: bool, quiet: bool) -> None:
        self._console, self._live, self._quiet = console, live and not quiet, quiet
        self._pool = StatusChange(None, "connecting")
        self._channel = StatusChange(None, "joining")
        self._due = 0.0
        self._received = self._gaps = self._reconnects = 0
        self._last: float | None = None
        self._said = ""
        self._greeting = f"listening on {name!r}; Ctrl-C ends it"
        self._drawn_at = 0.0
        self._shown = self._ended = False
        self._lock = threading.Lock()  # Guards: all above, and what is written
        self.failure: Exception | None = None

    def __enter__(self) -> Standing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._ended = True
            self._erase()

    # What happens

    def pool_changed(self, change: StatusChange) -> None:
        """Take a status of the pool's."""
        with self._lock:
            if change.status == "connected" and self._pool.status in ("reconnecting", "error"):
                self._reconnects += 1
            self._pool, self._due = change, time.monotonic() + (change.delay or 0.0)
            if change.status == "error" and change.delay is None:
                self.failure = change.error
            self._changed()

    def channel_changed(self, change: StatusChange) -> None:
        """Take a status of the Channel's."""
        with self._lock:
            self._channel = change
            if change.status == "refused" and isinstance(change.error, RtpoolError) and not change.error.retryable:
                self.failure = change.error
            elif change.status == "joined":
                self.failure = None
            if self._live or not isinstance(change.error, ConnectionFailed):  # the pool says that, and more
                self._changed()

    @property
    def works(self) -> bool:
        """Whether events can come at the moment."""
        return self.words == WORKS

    @property
    def words(self) -> str:
        """How it stands, in words."""
        with self._lock:
            return self._words()

    def show(self, event: Event, write: Callable[[], None], *, counts: bool) -> None:
        """Count an event and have it written, on a line that is free."""
        with self._lock:
            self._received += counts
            self._gaps += isinstance(event, Gap)
            self._last = now = time.monotonic()
            self._erase()
            write()
            if now - self._drawn_at >= DRAWING:
                self._draw()

    def tick(self) -> None:
        """Time has passed."""
        with self._lock:
            self._draw()

    # What is shown

    def _changed(self) -> None:
        """The caller must hold `self._lock`."""
        assert self._lock.locked()
        words, error = self._words(), self._trouble()
        why = f"{type(error).__name__}: {error}" if error is not None else ""
        if self.failure is not None and self.failure is error:
            why = ""  # whoever ends for it says it
        line = why if self._live else f"{words}: {why}" if why else words
        if words == WORKS and self._live:
            self._said = ""  # the next trouble is told, also when it is the same
        if line and line != self._said and not self._quiet and not self._ended:
            self._said = line
            now = datetime.now()
            self._erase()
            self._write(f"{now:%H:%M:%S}.{now.microsecond // 1000:03} {'status':9} {line}")
        if words == WORKS and self._greeting and not self._quiet and not self._ended:
            self._erase()
            self._write(self._greeting)
            self._greeting = ""
        self._draw()

    def _words(self, left: float | None = None) -> str:
        """How it stands; `left` are the seconds to the next attempt, None those that were announced."""
        pool = self._pool
        if left is None:
            left = pool.delay or 0.0
        if pool.status == "reconnecting":
            return f"reconnecting (attempt {pool.attempt}, in {left:.1f} s)" if pool.attempt else "reconnecting"
        if pool.status == "error":
            return f"no connection (attempt {pool.attempt + 1}, in {left:.0f} s)" if pool.delay else "no connection"
        if pool.status == "connected":
            if self._channel.status == "refused" and self.failure is not None:
                return "refused"
            return CHANNEL_WORDS.get(self._channel.status, self._channel.status)
        return pool.status

    def _trouble(self) -> Exception | None:
        if self._pool.status != "connected":
            return self._pool.error
        return None if isinstance(self._channel.error, ConnectionFailed) else self._channel.error

    def _draw(self) -> None:
        """The caller must hold `self._lock`."""
        assert self._lock.locked()
        if not self._live or self._ended:
            return
        now = self._drawn_at = time.monotonic()
        words = self._words(max(0.0, self._due - now))
        line = Text(words, style="bold green" if words == WORKS else "bold yellow")
        parts = [
            (f"{self._received:,} received", ""),
            (_number(self._gaps, "gap"), "bold red" if self._gaps else ""),
            (_number(self._reconnects, "reconnect"), ""),
        ]
        if self._last is not None:
            parts.append((f"last {_age(now - self._last)} ago", ""))
        room = self._console.width - 1  # in the last column the line would go on in the next
        line.truncate(room)
        for part, style in parts:
            if len(line) + len(part) + 3 <= room:
                line.append(" · ", style="default not bold").append(part, style=style or "default not bold")
        self._erase()
        self._shown = True
        with contextlib.suppress(OSError):  # the terminal is gone
            self._console.print(line, end="", soft_wrap=True)

    def _erase(self) -> None:
        """The caller must hold `self._lock`."""
        assert self._lock.locked()
        if self._shown:
            self._shown = False
            with contextlib.suppress(OSError):
                self._console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError):  # nobody reads it
            click.echo(printable(line), err=True)


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _age(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds // 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"

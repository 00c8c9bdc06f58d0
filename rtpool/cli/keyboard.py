"""
A terminal's keys, one by one, and the signals that a screen has to know of; both as something to wait for.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import termios
from collections.abc import Iterator
from types import FrameType

__all__ = ["Signals", "keys_of", "read_keys", "single_keys"]

#: What the keys that are no characters send.
SEQUENCES = {
    "\x1b[A": "up",
    "\x1b[B": "down",
    "\x1bOA": "up",
    "\x1bOB": "down",
    "\x1b[5~": "pgup",
    "\x1b[6~": "pgdn",
    "\x1b[H": "home",
    "\x1b[F": "end",
    "\x1bOH": "home",
    "\x1bOF": "end",
    "\x1b[1~": "home",
    "\x1b[4~": "end",
    "\t": "tab",
}
LONGEST = max(map(len, SEQUENCES))


@contextlib.contextmanager
def single_keys(fd: int) -> Iterator[None]:
    """
    Within this each key of a terminal can be read at once, and is not shown. Ctrl-C and Ctrl-Z are signals as ever.
    """
    before = termios.tcgetattr(fd)
    mode = termios.tcgetattr(fd)
    mode[0] &= ~termios.IXON  # Ctrl-S would stop the screen, and with it whoever writes to it
    mode[3] &= ~(termios.ECHO | termios.ICANON)
    mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
    try:
        termios.tcsetattr(fd, termios.TCSANOW, mode)
        yield
    finally:
        termios.tcflush(fd, termios.TCIFLUSH)  # what was typed at the screen is not for the shell
        termios.tcsetattr(fd, termios.TCSANOW, before)


def keys_of(text: str) -> list[str]:
    """The keys in what a terminal sent at a time; what is no key of ours is left out."""
    keys = []
    while text:
        size = next((size for size in range(LONGEST, 0, -1) if text[:size] in SEQUENCES), 0)
        if size:
            keys.append(SEQUENCES[text[:size]])
        elif text[0] == "\x1b":  # Esc alone, or some other key's: all of it
            return [*keys, "escape"] if text == "\x1b" else keys
        else:
            size = 1
            keys += [text[0]] if text[0].isprintable() else []
        text = text[size:]
    return keys


class Signals:
    """
    Within this, signals interrupt nothing: they are waited for, so that whatever is under way is finished, and a
    terminal is left as it was found.

    Thread-safety: for the main thread.
    """

    CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGTSTP, signal.SIGWINCH)

    def __enter__(self) -> Signals:
        self._in, self._out = socket.socketpair()
        self._in.setblocking(False)
        self._out.setblocking(False)
        self._catch()
        return self

    def _catch(self) -> None:
        self._before_fd = signal.set_wakeup_fd(self._out.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, _heard) for number in self.CAUGHT}

    def _let_be(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._before_fd)

    def __exit__(self, *_: object) -> None:
        self._let_be()
        self._in.close()
        self._out.close()

    def fileno(self) -> int:
        """The descriptor to wait with."""
        return self._in.fileno()

    def take(self) -> set[int]:
        """The numbers of those that came since the last call."""
        with contextlib.suppress(BlockingIOError):
            return set(self._in.recv(4_096))
        return set()

    def suspend(self) -> None:
        """Do what Ctrl-Z does, and go on when the shell says so."""
        self._let_be()
        try:
            signal.raise_signal(signal.SIGTSTP)
        finally:
            self._catch()


def _heard(_number: int, _frame: FrameType | None) -> None:
    """The wake-up descriptor tells it."""


def read_keys(fd: int) -> list[str] | None:
    """The keys that were pressed, None when there is no terminal any more."""
    ready, _, _ = select.select([fd], [], [], 0)
    if not ready:
        return []
    try:
        data = os.read(fd, 1_024)
    except OSError:
        return None
    return keys_of(data.decode("utf-8", "replace")) if data else None

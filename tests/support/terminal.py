"""A shell in a terminal of 80 columns and 24 lines, typed at as a person would, and what is on its screen."""

from __future__ import annotations

import copy
import fcntl
import os
import pathlib
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import pyte

from tests.support.secrets_watch import watch
from tests.support.wait import CAP

COLUMNS, LINES = 80, 24
PROMPT = "$ "
#: The private mode of the alternate screen.
ALTERNATE = 1049
#: Seconds without a byte after which a screen is drawn.
QUIET = 0.05


class _Screen(pyte.Screen):
    """With the alternate screen, which pyte has not: what was there before comes back when a program leaves it."""

    _main: tuple[Any, Any] | None = None

    def set_mode(self, *modes: int, **how: Any) -> None:
        if ALTERNATE in modes and self._main is None:
            self._main = copy.deepcopy(self.buffer), copy.copy(self.cursor)
            self.erase_in_display(2)
        super().set_mode(*modes, **how)

    def reset_mode(self, *modes: int, **how: Any) -> None:
        super().reset_mode(*modes, **how)
        if ALTERNATE in modes and self._main is not None:
            (self.buffer, self.cursor), self._main = self._main, None


class Terminal:
    """
    Args:
        folder: for the shell's own file.
        env: of the shell, on top of this process's own.
    """

    def __init__(self, folder: pathlib.Path, **env: str) -> None:
        start = folder / "shrc"
        start.write_text(f'PS1="{PROMPT}"\nrtpool() {{ "{sys.executable}" -W error -m rtpool "$@"; }}\n')
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SUPABASE", "RTPOOL"))}
        for name in ("COLUMNS", "LINES", "NO_COLOR", "PYTHONWARNINGS"):
            inherited.pop(name, None)
        #: All that was written to it.
        self.raw = b""
        self._screen = _Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self._screen)
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        # A session's first process gets the terminal it opens for its own, and so Ctrl-C.
        inner = f'exec sh -i <"{os.ttyname(slave)}" >"{os.ttyname(slave)}" 2>&1'
        self._shell = subprocess.Popen(
            ["sh", "-c", inner],
            env={**inherited, "TERM": "xterm-256color", "ENV": str(start), "PYTHONUTF8": "1", **env},
            start_new_session=True,
        )
        os.set_blocking(self._master, False)
        self._slave = slave

    def __enter__(self) -> Terminal:
        self.wait_for_prompt()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._shell.kill()
        self._shell.wait(10)
        os.close(self._slave)
        os.close(self._master)

    @property
    def lines(self) -> list[str]:
        """What the screen shows, without what is blank at the ends."""
        return [line.rstrip() for line in "\n".join(self._screen.display).rstrip().split("\n")]

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self._master, text.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Drag the window's corner."""
        self._screen.resize(lines, columns)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    @property
    def mode(self) -> object:
        """How the terminal treats what is typed."""
        return termios.tcgetattr(self._slave)

    def wait_for(self, what: Callable[[list[str]], object], cap: float = CAP) -> list[str]:
        """Read until the screen shows it; its lines then."""
        deadline = time.monotonic() + cap
        while not what(self.lines):
            ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise AssertionError(f"not within {cap} s; the screen:\n" + "\n".join(self.lines))
            self._read()
        return self.lines

    def wait_for_drawn(self, what: Callable[[list[str]], object], cap: float = CAP) -> list[str]:
        """The same of a screen that nothing is added to at the moment: not of half of one."""
        while True:
            self.wait_for(what, cap)
            if not select.select([self._master], [], [], QUIET)[0] and what(self.lines):
                return self.lines
            self._read()

    def _read(self) -> None:
        data = os.read(self._master, 65_536)
        self.raw += data
        self._stream.feed(data)

    def wait_for_prompt(self) -> list[str]:
        """Read until the shell asks for the next command."""
        return self.wait_for(lambda lines: lines[-1] == PROMPT.rstrip())

    def run(self, command: str) -> list[str]:
        """
        Type a command, and wait for its end; what the screen shows then, with ``exit code 0`` or whichever it was in
        the last line, and without the prompt.
        """
        self.type(f"clear; {command}; echo exit code $?\n")
        return self.wait_for_exit_code()

    def wait_for_exit_code(self) -> list[str]:
        """Read until ``echo exit code $?`` was answered; all above the prompt."""
        done = re.compile(r".*\nexit code \d+\n" + re.escape(PROMPT.rstrip()), re.DOTALL)
        return self.wait_for(lambda lines: done.fullmatch("\n".join(lines)))[:-1]


def assert_screen(kept: pathlib.Path, lines: list[str], masked: Callable[[list[str]], str]) -> None:
    """
    The screen is the one that is kept; RTPOOL_KEEP_SCREENS=1 keeps the new one.

    Args:
        kept: where, masked.
        masked: what a screen is without all that differs from run to run.
    """
    assert all(len(line) <= COLUMNS for line in lines)
    assert len(lines) <= LINES
    watch.look("the screen", "\n".join(lines), "".join(lines))
    if os.environ.get("RTPOOL_KEEP_SCREENS"):
        kept.write_text(masked(lines))
    assert masked(lines) == kept.read_text()

"""
`rtpool top`.
"""

from __future__ import annotations

import contextlib
import io
import select
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs
import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from rtpool.cli.app import fail, say
from rtpool.cli.lines import json_text
from rtpool.cli.screen import Frame, View, draw, press
from rtpool.debug.picture import Picture, Rates
from rtpool.debug.remote import Remote, ask_all
from rtpool.debug.sockets import default_directory, living_sockets
from rtpool.errors import ConnectionFailed, InvalidValue, RtpoolError
from rtpool.protocol.refusals import printable

if TYPE_CHECKING:
    from rtpool.cli.keyboard import Signals

__all__ = ["top"]

#: Seconds a program may take to answer before that is shown.
PATIENCE = 5.0
#: Seconds all of them may take where one picture is printed.
ANSWER_SECONDS = 10.0
#: Columns of a picture that goes to a file.
PLAIN_WIDTH = 80
#: What to do where no program answers.
ADVICE = "a running program serves its pool by pool.serve_debug(PATH); `rtpool top --list` shows those without a PATH."


@click.command()
@click.argument("paths", metavar="[PATH]...", nargs=-1, type=click.Path())
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 60.0),
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--once", is_flag=True, help="Print one picture, with the rates of one interval, and end.")
@click.option("--json", "as_json", is_flag=True, help="The same as one JSON object a program.")
@click.option("--list", "as_list", is_flag=True, help="Print the programs found, and end.")
def top(paths: tuple[str, ...], interval: float, once: bool, as_json: bool, as_list: bool) -> None:
    """
    Watch the pools of running programs, which serve them by pool.serve_debug(PATH).

    Without PATH it shows those that were given no path either. Exit code 0: q or Ctrl-C; 1: there is no program, or
    with --once, --json or --list one went away or did not answer; 2: wrong usage.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # topics are of any script, terminals are not
    programs: list[Program] = []
    try:
        for path in paths or _found():
            programs.append(Program(path))
        if as_list:
            _print_list(programs)
        elif once or as_json:
            _print_once(programs, interval, as_json=as_json)
        elif not sys.stdout.isatty():
            raise click.UsageError("the output is no terminal; use --once or --json")
        else:
            raise SystemExit(_watch(programs, interval))
    except InvalidValue as error:
        raise click.UsageError(str(error)) from error
    except RtpoolError as error:
        fail(error, advice=ADVICE)
    except BrokenPipeError:
        raise SystemExit(0) from None
    except KeyboardInterrupt:  # before or after the screen, or with --once
        raise SystemExit(1 if once or as_json or as_list else 0) from None
    finally:
        for program in programs:
            program.close()


def _found() -> list[str]:
    directory = default_directory()
    found = living_sockets(directory)
    if not found:
        raise ConnectionFailed(f"no program serves in {directory}: call pool.serve_debug() in yours, or name its PATH")
    return found


class Program:
    """
    A program that is looked at; asked for one thing at a time.

    Args:
        path: of its socket.

    Raises:
        ConnectionFailed, InvalidValue: nobody serves there.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.before: Picture | None = None
        self.now: Picture | None = None
        self.trouble = ""
        self.message = ""
        self._refusal = ""
        self.remote: Remote | None = Remote(path)
        self._asked: str | None = None
        self._asked_at = 0.0
        self._wanted: deque[str] = deque()

    def close(self) -> None:
        """Look no longer."""
        if self.remote is not None:
            self.remote.close()
            self.remote = None

    def look(self, now: float) -> None:
        """Ask for a picture, unless one is on its way; look for the program where it is gone."""
        if self._asked is not None and now - self._asked_at > PATIENCE:
            self.trouble = f"the program has not answered for {now - self._asked_at:.0f} s"
        if "stats" not in (self._asked, *self._wanted):
            self.want("stats", now)

    def want(self, ask: str, now: float) -> None:
        """Ask for something as soon as nothing else is on its way."""
        self._wanted.append(ask)
        self._go_on(now)

    def _go_on(self, now: float) -> None:
        try:
            if self.remote is None:
                self.remote = Remote(self.path)
            if self._asked is None and self._wanted:
                self.remote.request(self._wanted[0])
                self._asked, self._asked_at = self._wanted.popleft(), now
        except RtpoolError as error:
            self._lost(error)

    def _lost(self, error: RtpoolError) -> None:
        self.close()
        self._asked = None
        self._wanted.clear()
        gone = self.now is not None and isinstance(error, ConnectionFailed)
        who = f"process {self.now.pid} is gone" if self.now is not None and gone else printable(str(error))
        self.trouble = self._refusal or f"{who}; waiting for another at {printable(self.path)}"

    def hear(self, now: float) -> None:
        """Take what has come, if it is a whole answer."""
        assert self.remote is not None
        try:
            answer = self.remote.receive()
            if answer is None:
                return
            asked, self._asked = self._asked, None
            self._take(asked, answer)
        except RtpoolError as error:
            unused = self._asked is None and not self._wanted and not self.trouble
            self._lost(error)
            if unused:  # it closes such connections, and that is no trouble unless it does not come back
                self._go_on(now)
                self.trouble = "" if self.remote is not None else self.trouble
            return
        self._go_on(now)

    def _take(self, asked: str | None, answer: dict[str, Any]) -> None:
        error = answer.get("error")
        if asked == "cleanup":
            closed = answer.get("closed")
            self.message = (
                printable(str(error)) if error else f"clean-up closed {closed} connection{'s' * (closed != 1)}"
            )
            return
        if error:
            self.trouble = self._refusal = printable(str(error))
            return
        self.before, self.now = self.now, Picture.of(answer)
        self.trouble = self._refusal = ""


def _pictures(programs: Sequence[Program], missing: list[RtpoolError]) -> dict[Program, tuple[Picture, dict[str, Any]]]:
    """Ask for pictures, of all programs at once, and wait; to `missing` comes why there is none of one."""
    found: dict[Program, tuple[Picture, dict[str, Any]]] = {}
    asked = [(program, program.remote) for program in programs if program.remote is not None]
    answers = ask_all([remote for _, remote in asked], "stats", ANSWER_SECONDS)
    for (program, _), answer in zip(asked, answers, strict=True):
        try:
            if isinstance(answer, RtpoolError):
                raise answer
            if "error" in answer:
                raise ConnectionFailed(f"{program.path}: {answer['error']}")
            found[program] = Picture.of(answer), answer
        except RtpoolError as error:
            missing.append(error)
    return found


def _end(missing: list[RtpoolError]) -> None:
    """Some programs did not answer, perhaps."""
    for error in missing[:-1]:
        say("failed:", "red", f"{type(error).__name__}: {error}")
    if missing:
        raise missing[-1]


def _print_list(programs: Sequence[Program]) -> None:
    missing: list[RtpoolError] = []
    for program, (now, _) in _pictures(programs, missing).items():
        click.echo(f"{printable(program.path)}  pool {now.name} of process {now.pid}  {now.status}  {now.url}")
    _end(missing)


def _print_once(programs: Sequence[Program], interval: float, *, as_json: bool) -> None:
    missing: list[RtpoolError] = []
    before = _pictures(programs, missing)
    if before:
        threading.Event().wait(interval)
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else PLAIN_WIDTH
    for program, (now, answer) in _pictures([*before], missing).items():
        earlier, _ = before[program]
        if as_json:
            rates = attrs.asdict(Rates.between(earlier, now))
            told = {"path": program.path, **answer, "rates": rates}
            click.echo(json_text(told, ascii_only=not console.encoding.lower().startswith("utf")))
        else:
            frame = Frame(earlier, now, program.path, interval, len(programs))
            console.print(draw(frame, View(program=programs.index(program)), console.width))
    _end(missing)


def _watch(programs: Sequence[Program], interval: float) -> int:
    """The screen, until the person has seen enough; the exit code."""
    from rtpool.cli.keyboard import Signals, single_keys

    keyboard = sys.stdin.fileno() if sys.stdin.isatty() else None
    console = Console(highlight=False)
    with Signals() as signals:
        screen = Screen(programs, interval, console, signals, keyboard)
        while True:
            with contextlib.ExitStack() as terminal:
                if keyboard is not None:
                    terminal.enter_context(single_keys(keyboard))
                live = terminal.enter_context(Live(Text(""), console=console, screen=True, auto_refresh=False))
                ended_by = screen.run(live)
            if ended_by != signal.SIGTSTP:
                return 128 + signal.SIGTERM if ended_by == signal.SIGTERM else 0
            signals.suspend()


class Screen:
    """
    What a person looks at.

    Args:
        programs: at least one.
        interval: seconds between two looks.
        console: where it is drawn.
        signals: that have to be known of.
        keyboard: the descriptor of a terminal, None without one.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        interval: float,
        console: Console,
        signals: Signals,
        keyboard: int | None,
    ) -> None:
        self._programs = programs
        self._interval = interval
        self._console = console
        self._signals = signals
        self._keyboard = keyboard
        self._view = View()
        self._next_look = 0.0
        self._trouble = ""

    def run(self, live: Live) -> int:
        """Draw until it is to end, or to be suspended; the signal that says so, 0 for the key."""
        from rtpool.cli.keyboard import read_keys

        while True:
            live.update(draw(self._frame(), self._view, *self._console.size), refresh=True)
            ready = self._wait()
            caught = self._signals.take() if self._signals in ready else set()
            ending = caught & {signal.SIGINT, signal.SIGTERM, signal.SIGTSTP}
            if ending:
                return min(ending)
            now = time.monotonic()
            for program in self._programs:
                if program.remote is not None and program.remote in ready:
                    program.hear(now)
            if self._keyboard is not None and self._keyboard in ready:
                keys = read_keys(self._keyboard)
                self._keyboard = self._keyboard if keys is not None else None
                if any(self._press(key, now) for key in keys or ()):
                    return 0
            self._look(now)

    def _wait(self) -> set[Any]:
        waited_for: list[Any] = [self._signals, *(p.remote for p in self._programs if p.remote is not None)]
        waited_for += [] if self._keyboard is None else [self._keyboard]
        timeout = None if self._view.paused else max(0.0, self._next_look - time.monotonic())
        return set(select.select(waited_for, [], [], timeout)[0])

    def _look(self, now: float) -> None:
        if self._view.paused or now < self._next_look:
            return
        self._next_look = now + self._interval
        for program in self._programs:
            program.look(now)

    def _frame(self) -> Frame:
        program = self._programs[self._view.program]
        if program.trouble != self._trouble:  # what the last key led to may be true no more
            self._view, self._trouble = attrs.evolve(self._view, message=""), program.trouble
        if program.message:
            self._view, program.message = attrs.evolve(self._view, message=program.message), ""
        return Frame(program.before, program.now, program.path, self._interval, len(self._programs), program.trouble)

    def _press(self, key: str, now: float) -> bool:
        """Whether that was the end."""
        self._view, wish = press(self._view, key, self._frame(), self._console.height)
        if wish == "cleanup":
            self._programs[self._view.program].want(wish, now)
        return wish == "quit"

"""Programs that use rtpool in processes of their own, beside a server in the test's."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest

from rtpool.testing import RealtimeServer
from tests.servers.gunicorn import Shop
from tests.support.wait import CAP, wait_until

ROOT = pathlib.Path(__file__).parents[2]


def need(package: str) -> None:
    """Skip a test whose package is not installed; where all must run, fail."""
    if importlib.util.find_spec(package) is not None:
        return
    words = f"{package} is not installed; run: pip install -e '.[dev]'"
    if os.environ.get("RTPOOL_REQUIRE_INTEROP") == "1":
        pytest.fail(words)
    pytest.skip(words)


class Program:
    """A process and what it writes."""

    def __init__(self, arguments: list[str], environment: dict[str, str], folder: pathlib.Path) -> None:
        self._files = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115 - closed in `kill`
        out, err = self._files
        self.process = subprocess.Popen(
            arguments, env=environment, cwd=folder, stdout=out, stderr=err, start_new_session=True
        )
        self.pid = self.process.pid

    def out(self) -> str:
        """What it wrote so far."""
        return self._read(0)

    def err(self) -> str:
        """What it complained about so far."""
        return self._read(1)

    def _read(self, which: int) -> str:
        file = self._files[which]
        return os.pread(file.fileno(), 1_000_000, 0).decode(errors="replace")

    def wait_for(self, predicate: Callable[[], object], what: str, cap: float = 2 * CAP) -> None:
        """Wait, and say what it complained about where that is in vain."""
        try:
            wait_until(lambda: predicate() or self.process.poll() is not None, what, cap)
        except AssertionError as error:
            raise AssertionError(f"{error}; {self._words()}") from None
        assert predicate(), f"it ended with {self.process.poll()} before {what}; {self._words()}"

    def _words(self) -> str:
        return f"it said:\n{self.out()[-2000:]}\nand:\n{self.err()[-6000:]}"

    def ends(self, number: signal.Signals | None = None, *, code: int = 0, within: float = CAP) -> str:
        """Wait for its end, after a signal if one is given; return what it complained about."""
        if number is not None:
            self.process.send_signal(number)
        try:
            assert self.process.wait(within) == code, self._words()
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end within {within} s; {self._words()}") from None
        return self.err()

    def kill(self) -> None:
        """End it and all its children at once; harmless when they have ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        for file in self._files:
            file.close()


@attrs.frozen
class Answer:
    """What one process says of itself, and the number of its connection."""

    connection: int
    pid: int
    parent: int
    heard: list[int]
    gaps: list[str]
    threads: int


class Guests:
    """Every process whose guest is in the room, as the server sees them."""

    def __init__(self, server: RealtimeServer) -> None:
        self.server = server
        self._numbers = itertools.count(1)

    def wait(self, count: int, cap: float = 2 * CAP) -> None:
        """Wait until so many are in the room."""
        wait_until(lambda: self.server.members("room") == count, f"{count} in the room", cap)

    def call(self, count: int, **words: Any) -> dict[int, Answer]:
        """Call the roll of so many and return what each answers, by process."""
        self.wait(count)
        number = next(self._numbers)
        self.server.broadcast("room", "who", {"call": number})
        found: list[Answer] = []

        def answered() -> bool:
            found[:] = [
                Answer(message.connection_id, **{k: v for k, v in message.payload["payload"].items() if k != "call"})
                for message in self.server.received
                if message.event == "broadcast"
                and message.payload["event"] == "here"
                and message.payload["payload"]["call"] == number
            ]
            return len(found) == count

        wait_until(answered, f"{count} answers to a roll-call")
        answers = {answer.pid: answer for answer in found}
        assert len(answers) == len({answer.connection for answer in found}) == count, "each has a connection of its own"
        return answers

    def say(self, number: int) -> None:
        """Broadcast a word to all."""
        self.server.broadcast("room", "word", {"number": number})


class Goodbyes:
    """With which close codes the connections end that are open now; 1000 each where their clients say goodbye."""

    def __init__(self, server: RealtimeServer) -> None:
        self._sockets = [connection._ws for connection in server.connections]
        assert self._sockets

    def all_said(self) -> bool:
        wait_until(lambda: all(sock.close_code is not None for sock in self._sockets), "the sockets end")
        codes = [sock.close_code for sock in self._sockets]
        assert codes == [1000] * len(codes)
        return True


@pytest.fixture
def guests(server: RealtimeServer) -> Guests:
    return Guests(server)


#: From 3.12 on Python warns of a fork with threads; the servers have some of their own, and a pool's are known to it.
WARNINGS = "default,ignore:This process (pid="

Run = Callable[..., Program]


@pytest.fixture
def run(server: RealtimeServer, tmp_path: pathlib.Path) -> Iterator[Run]:
    """Starts programs that know the test's server; gone at the end."""
    programs: list[Program] = []

    def start(*arguments: str, script: str = "", **environment: str) -> Program:
        if script:
            (tmp_path / "program.py").write_text(script)
            arguments = (sys.executable, str(tmp_path / "program.py"), *arguments)
        known = {"GUEST_URL": server.url, "GUEST_KEY": server.api_key, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
        environment = {**os.environ, "PYTHONWARNINGS": WARNINGS, **known, **environment}
        program = Program(list(arguments), environment, tmp_path)
        programs.append(program)
        return program

    yield start
    for program in programs:
        program.kill()


@pytest.fixture
def shop(run: Run, tmp_path: pathlib.Path) -> Shop:
    """Starts gunicorns that serve the app with rtpool's extension."""
    need("flask")
    need("gunicorn")
    return Shop(run, tmp_path)

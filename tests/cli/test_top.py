"""`rtpool top` as a person uses it: in a terminal of 80 columns, at a program of another process, key by key."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner

from rtpool.cli import cli
from rtpool.testing import RealtimeServer
from tests.support.secrets_watch import watch
from tests.support.wait import CAP

pytest.importorskip("termios", reason="this system has no pseudo-terminals")
from tests.support.terminal import Terminal, assert_screen

SCREENS = pathlib.Path(__file__).parent / "screens"
#: Lines whose numbers are not in columns.
PROSE = re.compile(r"rtpool top|\w+  health|queued|Connections:|Channels:|Issues:|RTP|process|clean-up|/")

#: A program with some Channels on sockets of four; it ends with its standard input.
PROGRAM = """
import sys, threading, rtpool
url, key, path, leave, *topics = sys.argv[1:]
never = threading.Event()
callbacks = {"stuck": lambda _: never.wait()}
pool = rtpool.RealtimePool(url, api_key=key, max_channels_per_connection=4, mailbox_limit=100)
for topic in topics:
    pool.channel(topic).on_broadcast("*", callbacks.get(topic, lambda _: None)).subscribe()
pool.serve_debug(path or None, allow_commands=leave == "may clean up")
print("serves", flush=True)
sys.stdin.read()
pool.close(1)
"""
TOPICS = ("bikes", "cars", "docks", "ferries", "gliders", "horses", "jets", "kayaks", "lorries", "mopeds")
TOPICS += ("rafts", "scooters", "sleds", "trams", "trucks", "vans")


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "pool.sock")


@contextlib.contextmanager
def program(
    server: RealtimeServer, path: str, *topics: str, leave: str = "", **env: str
) -> Iterator[subprocess.Popen[str]]:
    arguments = [sys.executable, "-c", PROGRAM, server.url, server.api_key, path, leave, *topics]
    process = subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **env}
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "serves\n"
        yield process
        process.communicate(timeout=30)


@contextlib.contextmanager
def traffic(server: RealtimeServer, **per_turn: int) -> Iterator[None]:
    """So many messages on each topic, again and again."""
    over = threading.Event()

    def send() -> None:
        while not over.wait(0.02):
            for topic, count in per_turn.items():
                for _ in range(count):
                    server.broadcast(topic, "moved", {})

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture
def terminal(tmp_path: pathlib.Path) -> Iterator[Terminal]:
    with Terminal(tmp_path) as terminal:
        yield terminal


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "rtpool", "top", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONUTF8": "1", **env}, check=False
    )
    watch.look("what rtpool top says", done.stdout, done.stderr)
    assert "Traceback" not in done.stdout + done.stderr
    return done


def masked(lines: list[str]) -> str:
    """A screen without what differs from run to run; what is in columns stays there."""
    text = []
    for line in lines:
        line = re.sub(r"(?<= )/\S+", "/…", line)
        if PROSE.match(line):
            text.append(re.sub(r"(?<![A-Z\d])\d[\d,.:]*( ms| s)?", "#", line))
        else:
            number = r" *(?<![A-Z\d])\d[\d,.]*( (B|kB|MB|ms|s)\b)?"
            text.append(re.sub(number, lambda match: "#".rjust(len(match[0])), line))
    return "\n".join(text) + "\n"


def shows(name: str, lines: list[str]) -> None:
    assert_screen(SCREENS / f"{name}.txt", lines, masked)


def topics(lines: list[str]) -> list[str]:
    """The Channels' topics that the screen shows."""
    heads = [index for index, line in enumerate(lines) if line.startswith("topic")]
    ends = [index for index, line in enumerate(lines) if line.startswith(("Issues", "No issues"))]
    return [line.split()[0] for line in lines[heads[0] + 1 : ends[0]]] if heads and ends else []


def busiest(*names: str) -> Callable[[list[str]], bool]:
    """The screen shows these first, each with a rate and the time of its calls."""

    def is_shown(lines: list[str]) -> bool:
        rows = [line.split() for line in lines if line.startswith(names)]
        measured = all(row[3] not in ("-", "0.0") and row[4] != "-" for row in rows)
        return topics(lines)[: len(names)] == list(names) and measured

    return is_shown


def test_a_person_watches_sorts_scrolls_pauses_and_quits(server: RealtimeServer, path: str, terminal: Terminal) -> None:
    with program(server, path, *TOPICS, leave="may clean up"), traffic(server, cars=3, bikes=2, mopeds=1):
        terminal.type(f"clear; rtpool top {path} --interval 0.5\n")
        shows("channels", terminal.wait_for_drawn(busiest("cars", "bikes", "mopeds")))
        terminal.type("sss")
        shows("sorted_by_topic", terminal.wait_for_drawn(lambda lines: topics(lines)[:2] == ["bikes", "cars"]))
        terminal.type("G")
        terminal.wait_for_drawn(lambda lines: topics(lines)[-1:] == ["vans"])
        terminal.type("\x1b[A")
        terminal.wait_for_drawn(lambda lines: topics(lines)[-1:] == ["trucks"])
        terminal.type("r")
        terminal.wait_for_drawn(lambda lines: topics(lines)[:2] == ["vans", "trucks"])
        terminal.type("c")
        terminal.wait_for_drawn(lambda lines: "Connections: 4 of 4 open, 16 joins" in lines)
        terminal.type("ssssss")
        shows("connections", terminal.wait_for_drawn(lambda lines: any("msgs/sv" in line for line in lines)))
        terminal.type("p")
        paused = terminal.wait_for_drawn(lambda lines: "PAUSED" in lines[1])
        shows("paused", paused)
        terminal.type("?")
        shows("help", terminal.wait_for_drawn(lambda lines: lines[0].startswith("q, Ctrl-C")))
        terminal.type("\x1b")
        assert terminal.wait_for_drawn(lambda lines: "PAUSED" in lines[1]) == paused
        terminal.type("p")
        terminal.wait_for_drawn(lambda lines: "PAUSED" not in lines[1])
        terminal.type("q")
        terminal.wait_for_prompt()


def test_a_person_sees_a_callback_that_is_stuck_and_what_it_costs(
    server: RealtimeServer, path: str, terminal: Terminal
) -> None:
    with program(server, path, "stuck", "fine"), traffic(server, stuck=9, fine=1):
        terminal.type(f"clear; rtpool top {path} --interval 0.5\n")
        expected = {"RTP008", "RTP009", "RTP018"}
        lines = terminal.wait_for_drawn(
            lambda lines: {line[:6] for line in lines} >= expected and "-/s" not in lines[2]
        )
        shows("stuck", lines)
        row = next(line for line in lines if line.startswith("stuck "))
        assert re.fullmatch(r"stuck +joined +\d+/100 +[\d.,]+ +- +[\d,]+", row)
        terminal.type("q")
        terminal.wait_for_prompt()


def test_a_person_has_idle_connections_closed(server: RealtimeServer, path: str, terminal: Terminal) -> None:
    with program(server, path, leave="may clean up"):
        terminal.type(f"clear; rtpool top {path} --interval 0.2\n")
        terminal.wait_for_drawn(lambda lines: "No issues" in lines)
        terminal.type("f")
        lines = terminal.wait_for_drawn(lambda lines: lines[-1].startswith("clean-up"))
        assert lines[-1] == "clean-up closed 0 connections"
        terminal.type("q")
        terminal.wait_for_prompt()


def test_a_person_who_may_not_is_told_so(server: RealtimeServer, path: str, terminal: Terminal) -> None:
    with program(server, path, "room"):
        terminal.type(f"clear; rtpool top {path}\n")
        terminal.wait_for_drawn(lambda lines: "No issues" in lines)
        terminal.type("f")
        shows("not_allowed", terminal.wait_for_drawn(lambda lines: "allows no commands" in lines[-1]))
        terminal.type("q")
        terminal.wait_for_prompt()


def test_a_program_that_goes_away_is_waited_for(server: RealtimeServer, path: str, terminal: Terminal) -> None:
    with program(server, path, "room") as first:
        terminal.type(f"clear; rtpool top {path} --interval 0.2\n")
        terminal.wait_for_drawn(lambda lines: f"process {first.pid}" in lines[0])
        terminal.type("f")
        terminal.wait_for_drawn(lambda lines: "allows no commands" in lines[-1] and "-/s" not in lines[2])
    shows("gone", terminal.wait_for_drawn(lambda lines: f"process {first.pid} is gone" in lines[1]))
    with program(server, path, "room") as second:
        lines = terminal.wait_for_drawn(lambda lines: f"process {second.pid}" in lines[0])
        assert "gone" not in lines[1]
        terminal.type("q")
        terminal.wait_for_prompt()


def test_of_several_programs_each_can_be_watched(server: RealtimeServer, path: str, terminal: Terminal) -> None:
    with program(server, path, "one"), program(server, path + "2", "two"):
        terminal.type(f"clear; rtpool top {path} {path}2 --interval 0.2\n")
        terminal.wait_for_drawn(lambda lines: topics(lines) == ["one"] and "[1 of 2, n next]" in lines[0])
        terminal.type("n")
        terminal.wait_for_drawn(lambda lines: topics(lines) == ["two"] and "[2 of 2, n next]" in lines[0])
        terminal.type("\t")
        terminal.wait_for_drawn(lambda lines: topics(lines) == ["one"])
        terminal.type("q")
        terminal.wait_for_prompt()


def test_the_screen_follows_the_window(server: RealtimeServer, path: str, terminal: Terminal) -> None:
    with program(server, path, *TOPICS):
        terminal.type(f"clear; rtpool top {path} --interval 60\n")
        terminal.wait_for_drawn(lambda lines: "q quit" in lines[-1] and "lines 1 to 8" in "".join(lines))
        terminal.resize(100, 40)
        lines = terminal.wait_for_drawn(lambda lines: len(lines) == 40 and len(topics(lines)) == 16)
        assert lines[-1].startswith("q quit")
        terminal.type("q")
        terminal.wait_for_prompt()


# Ways out


def started(terminal: Terminal, command: str, tmp_path: pathlib.Path) -> int:
    """Start a command in the terminal's foreground; its process."""
    note = tmp_path / "pid"
    terminal.type(f"clear; sh -c 'echo $$ >{note}.new; mv {note}.new {note}; exec {command}'\n")
    terminal.wait_for_drawn(lambda lines: lines[-1].startswith("q quit"))
    return int(note.read_text())


def left_as_found(terminal: Terminal, mode: object) -> None:
    """The terminal is as it was: its mode, the main screen, the cursor."""
    assert terminal.mode == mode
    assert terminal.raw.count(b"\x1b[?1049h") == terminal.raw.count(b"\x1b[?1049l") > 0
    assert terminal.raw.rindex(b"\x1b[?1049l") > terminal.raw.rindex(b"\x1b[?1049h")
    assert terminal.raw.rindex(b"\x1b[?25h") > terminal.raw.rindex(b"\x1b[?25l")


def exit_code(terminal: Terminal) -> int:
    terminal.wait_for_prompt()
    terminal.type("echo exit code $?\n")
    return int(terminal.wait_for_exit_code()[-1].split()[-1])


TOP = f"{sys.executable} -W error -m rtpool top"
#: A top that fails while it draws, as if it had a bug.
CRASHING = """
import importlib
from rtpool.cli import cli
top = importlib.import_module("rtpool.cli.top")
draw, left = top.draw, [3]
def failing(*args):
    left[0] -= 1
    if not left[0]:
        raise LookupError("a bug")
    return draw(*args)
top.draw = failing
cli()
"""


@pytest.mark.parametrize(("way", "code"), [("q", 0), ("Ctrl-C", 0), ("SIGINT", 0), ("SIGTERM", 143)])
def test_every_way_out_leaves_the_terminal_as_it_was(
    way: str, code: int, server: RealtimeServer, path: str, terminal: Terminal, tmp_path: pathlib.Path
) -> None:
    mode = terminal.mode
    with program(server, path, "room"):
        pid = started(terminal, f"{TOP} {path} --interval 0.2", tmp_path)
        assert terminal.mode != mode
        if way.startswith("SIG"):
            os.kill(pid, getattr(signal, way))
        else:
            terminal.type({"q": "q", "Ctrl-C": "\x03"}[way])
        assert exit_code(terminal) == code
    left_as_found(terminal, mode)
    assert b"Traceback" not in terminal.raw


def test_a_crash_leaves_the_terminal_as_it_was_and_is_told(
    server: RealtimeServer, path: str, terminal: Terminal, tmp_path: pathlib.Path
) -> None:
    mode = terminal.mode
    (tmp_path / "crashing.py").write_text(CRASHING)
    with program(server, path, "room"):
        terminal.type(f"clear; {sys.executable} {tmp_path}/crashing.py top {path} --interval 0.2\n")
        terminal.wait_for_drawn(lambda lines: any("LookupError: a bug" in line for line in lines))
        assert exit_code(terminal) == 1
    left_as_found(terminal, mode)


def test_ctrl_z_suspends_and_fg_goes_on(
    server: RealtimeServer, path: str, terminal: Terminal, tmp_path: pathlib.Path
) -> None:
    with program(server, path, "room"):
        started(terminal, f"{TOP} {path} --interval 0.2", tmp_path)
        terminal.type("\x1a")
        terminal.wait_for_drawn(lambda lines: lines[-1] == "$" and any("Stopped" in line for line in lines))
        assert terminal.raw.count(b"\x1b[?1049h") == terminal.raw.count(b"\x1b[?1049l") == 1
        terminal.type("clear; fg\n")
        terminal.wait_for_drawn(lambda lines: topics(lines) == ["room"] and lines[-1].startswith("q quit"))
        terminal.type("q")
        terminal.wait_for_prompt()
        assert terminal.raw.count(b"\x1b[?1049l") == 2


# For scripts


def test_once_prints_one_plain_picture(server: RealtimeServer, path: str) -> None:
    with program(server, path, *TOPICS), traffic(server, cars=1):
        done = run(path, "--once", "--interval", "0.3")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert topics(lines)[0] == "cars"
    assert sorted(topics(lines)) == sorted(TOPICS)
    assert lines[4] == "Connections: 4 of 4 open, 16 joins"
    assert "q quit" not in done.stdout


def test_json_is_what_the_program_says_and_the_rates(server: RealtimeServer, path: str) -> None:
    with program(server, path, "room") as process, traffic(server, room=1):
        done = run(path, "--json", "--interval", "0.3")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert (told["pid"], told["path"], told["health"]["verdict"]) == (process.pid, path, "ok")
    assert told["stats"]["active_subscriptions"] == 1
    assert told["rates"]["received"] > 0


def test_json_does_nothing_to_a_terminal_and_asks_nothing_of_it(server: RealtimeServer, path: str) -> None:
    topic = "\u202ertl\x9b2J\u2028界"
    with program(server, path, topic):
        for encoding in ("utf-8", "ascii"):
            done = run(path, "--json", "--interval", "0.1", PYTHONUTF8="0", PYTHONIOENCODING=encoding)
            assert "\\u202ertl\\u009b2J\\u2028" in done.stdout
            assert ("界" in done.stdout) is (encoding == "utf-8")
            assert json.loads(done.stdout)["stats"]["subscription_details"][0]["topic"] == topic


def test_programs_that_gave_no_path_are_found(server: RealtimeServer, tmp_path: pathlib.Path) -> None:
    place = {"XDG_RUNTIME_DIR": str(tmp_path)}
    nobody = run("--list", **place)
    assert nobody.returncode == 1
    assert "call pool.serve_debug()" in " ".join(nobody.stderr.split())
    with program(server, "", "one", **place) as first, program(server, "", "two", **place) as second:
        done = run("--list", **place)
        assert done.returncode == 0
        assert {int(re.findall(r"process (\d+)", line)[0]) for line in done.stdout.splitlines()} == {
            first.pid,
            second.pid,
        }
        objects = [json.loads(line) for line in run("--json", "--interval", "0.1", **place).stdout.splitlines()]
        assert {told["pid"] for told in objects} == {first.pid, second.pid}


def test_what_does_not_work_says_why(server: RealtimeServer, path: str) -> None:
    done = run(path)
    assert done.returncode == 1
    assert "nobody serves at" in done.stderr
    assert "advice: a running program serves its pool by pool.serve_debug(PATH)" in done.stderr
    assert "doctor" not in done.stderr
    done = run("x" * 200)
    assert done.returncode == 2
    assert "103 bytes" in done.stderr
    assert run("--interval", "0", path).returncode == 2
    with program(server, path, "room"):
        done = run(path)
    assert done.returncode == 2
    assert "no terminal; use --once" in done.stderr


@pytest.mark.parametrize(
    ("said", "why"), [(b"", "is gone"), (b'{"stats": {}}\n', "no such picture")], ids=["goes away", "is no pool"]
)
def test_once_fails_when_who_serves_there(said: bytes, why: str, path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        process = subprocess.Popen(
            [sys.executable, "-m", "rtpool", "top", "--once", path], stderr=subprocess.PIPE, text=True
        )
        listener.settimeout(CAP)
        other, _ = listener.accept()
        with other:
            other.recv(1 << 10)
            other.sendall(said)
        _, told = process.communicate(timeout=30)
    assert process.returncode == 1
    assert why in " ".join(told.split())


@pytest.mark.parametrize("option", ["--list", "--json", "--once"])
def test_a_program_that_is_stopped_delays_no_other_and_is_told_of(
    option: str, server: RealtimeServer, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("rtpool.cli.top"), "ANSWER_SECONDS", 3.0)
    with program(server, path, "one") as stopped, program(server, path + "2", "two") as runs:
        os.kill(stopped.pid, signal.SIGSTOP)
        try:
            done = CliRunner().invoke(cli, ["top", option, "--interval", "0.1", path, path + "2"])
        finally:
            os.kill(stopped.pid, signal.SIGCONT)
    assert done.exit_code == 1
    assert str(runs.pid) in done.output
    assert str(stopped.pid) not in done.output
    assert f"the program at {path} did not answer within 3 s" in done.output

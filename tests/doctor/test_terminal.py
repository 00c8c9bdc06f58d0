"""`rtpool doctor` in a terminal, as a person sees it; the screens are kept beside this."""

from __future__ import annotations

import pathlib
import re

import pytest

from rtpool.testing import JoinReply, RealtimeServer
from rtpool.testing.refusals import Join
from rtpool.testing.tokens import make_token
from tests.support.ways import SECRET, closed_port

pytest.importorskip("termios", reason="this system has no pseudo-terminals")
from tests.support.terminal import COLUMNS, Terminal, assert_screen

SCREENS = pathlib.Path(__file__).parent / "screens"


def masked(lines: list[str]) -> str:
    """A screen without what differs from run to run: times, ports, random names."""
    text = []
    for line in lines:
        timed = len(line) == COLUMNS and re.search(r" +\d+ ms$", line)
        line = line[: timed.start()] if timed else line
        line = re.sub(r"rtpool-doctor-[0-9a-f]{8}", "rtpool-doctor-########", line)
        line = re.sub(r"\d[\d.,]*(?= ms|,| days| used)|(?<=127.0.0.1:)\d+|(?<=port )\d+", "#", line)
        text.append(f"{line:{COLUMNS - 4}}# ms" if timed else line)
    return "\n".join(text) + "\n"


def shows(name: str, lines: list[str]) -> None:
    assert_screen(SCREENS / f"{name}.txt", lines, masked)


def test_a_person_sees_that_all_is_well(server: RealtimeServer, tmp_path: pathlib.Path) -> None:
    server.table("cars", {"id": "int8"})
    token = server.token()
    env = {"SUPABASE_URL": server.url, "SUPABASE_KEY": server.api_key, "SUPABASE_ACCESS_TOKEN": token}
    with Terminal(tmp_path, **env) as terminal:
        lines = terminal.run("rtpool doctor --table cars")
    assert sum(line.startswith("✔") for line in lines) == 14
    assert re.fullmatch(r"✔ dns         127.0.0.1 +\d+ ms", lines[3])
    assert all(len(line) == COLUMNS for line in lines if re.match("[✔!✘]", line))
    assert lines[-1] == "exit code 0"
    shows("all_is_well", lines)


def test_a_person_sees_what_failed_and_what_to_do(server: RealtimeServer, tmp_path: pathlib.Path) -> None:
    server.policy = lambda request: False
    token = server.token()
    env = {"SUPABASE_URL": server.url, "SUPABASE_KEY": server.api_key, "SUPABASE_ACCESS_TOKEN": token}
    with Terminal(tmp_path, **env) as terminal:
        lines = terminal.run("rtpool doctor --topic room --private")
    assert any(line.startswith("✘ private") for line in lines)
    assert lines[-1] == "exit code 1"
    shows("reading_is_denied", lines)


def test_a_person_sees_that_nobody_listens(tmp_path: pathlib.Path) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    with Terminal(
        tmp_path, SUPABASE_URL=url, SUPABASE_KEY=make_token(SECRET, {"role": "anon", "exp": 4e9})
    ) as terminal:
        lines = terminal.run("rtpool doctor")
    assert lines[-1] == "exit code 1"
    shows("nobody_listens", lines)


def test_a_terminal_that_knows_ascii_only_is_given_that(server: RealtimeServer, tmp_path: pathlib.Path) -> None:
    server.on_join = lambda *_: Join.UNKNOWN_EXCEPTION(error="größer")
    env = {"SUPABASE_URL": server.url, "SUPABASE_KEY": server.api_key}
    ascii_only = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    with Terminal(tmp_path, **env, **ascii_only) as terminal:
        lines = terminal.run("rtpool doctor")
    assert lines[-1] == "exit code 1"
    assert any(line.startswith("+ heartbeat") for line in lines)
    assert "x join        refused: UnknownErrorOnChannel: gr??er" in "\n".join(lines)


def test_a_terminal_is_not_given_what_it_would_act_on(server: RealtimeServer, tmp_path: pathlib.Path) -> None:
    server.table("cars", {"id": "int8"})
    role = "\x1b[35mrole\n"
    env = {"SUPABASE_URL": server.url, "SUPABASE_KEY": server.api_key, "SUPABASE_ACCESS_TOKEN": server.token(role=role)}
    with Terminal(tmp_path, **env) as terminal:
        lines = terminal.run("clear; rtpool doctor --table \"$(printf '\\033[35mtable\\ny')\"")
        for word in (b"role", b"table"):
            assert rb"\x1b[35m" + word in terminal.raw
            assert b"\x1b[35m" + word not in terminal.raw
    assert lines[-1] == "exit code 1"


def test_a_person_presses_ctrl_c(server: RealtimeServer, tmp_path: pathlib.Path) -> None:
    server.on_join = lambda *_: JoinReply(delay=30.0)
    with Terminal(tmp_path, SUPABASE_URL=server.url, SUPABASE_KEY=server.api_key) as terminal:
        terminal.type("clear; rtpool doctor\n")
        terminal.wait_for(lambda lines: re.search(r". join …", lines[-1]))
        terminal.type("\x03")
        terminal.wait_for_prompt()
        terminal.type("echo exit code $?\n")
        lines = terminal.wait_for_exit_code()
        lines.remove("$ echo exit code $?")
    assert lines[-2:] == ["interrupted: 8 fine", "exit code 1"]
    shows("interrupted", [line.replace("^C", "") for line in lines])

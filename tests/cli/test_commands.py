"""The command, as a person at a terminal runs it: in processes of its own."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys

import pytest
import websocket

import rtpool
from rtpool.testing import RealtimeServer
from rtpool.testing.tokens import make_token
from tests.support.commands import RTPOOL, environment, interrupt, run, start
from tests.support.wait import CAP, wait_until


def test_the_demo_counts_right_and_says_so_to_a_machine() -> None:
    done = run("demo", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["ok"] is True
    assert (result["sockets_before"], result["sockets_after"], result["joins_after"]) == (9, 1, 1)
    assert set(result["received"].values()) == {2_000}
    assert len(result["received"]) == 9
    assert result["most_sockets_at_once"] == 1
    assert (result["gaps_announced"], result["sockets_left"], result["threads_left"]) == (9, 0, [])


def test_the_demo_shows_a_table_to_a_person() -> None:
    done = run("demo")
    assert done.returncode == 0
    assert "Nine components, one channel" in done.stdout
    assert "Every count is right." in done.stdout


def test_the_demo_fails_when_a_count_is_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rtpool import demo

    received = demo.Component._received
    monkeypatch.setattr(demo, "PATIENCE", 2.0)
    monkeypatch.setattr(demo.Component, "_received", lambda self, m: None if m.payload["n"] == 7 else received(self, m))
    assert demo.run_demo(as_json=True) is False
    result = json.loads(capsys.readouterr().out)
    assert set(result["received"].values()) == {1_999}
    assert result["ok"] is False


def test_serve_offers_a_server_until_ctrl_c() -> None:
    process = start("serve", "--key", "some-key")
    assert process.stdout is not None
    url = process.stdout.readline().strip().removeprefix("SUPABASE_URL=")
    assert process.stdout.readline().strip() == "SUPABASE_KEY=some-key"
    sent = run("send", "room", "moved", '{"n": 1}', "--url", url, "--key", "some-key")
    assert sent.returncode == 0, sent.stderr
    out, err = interrupt(process)
    assert process.returncode == 0
    assert "Traceback" not in out + err


def served(*arguments: str) -> tuple[subprocess.Popen[str], dict[str, str]]:
    process = start("serve", *arguments)
    assert process.stdout is not None
    said: dict[str, str] = {}
    while "#" not in said:
        name, _, value = process.stdout.readline().strip().replace("# ", "#=").partition("=")
        said[name] = value
    return process, said


def test_any_client_can_use_what_serve_prints_and_the_limits_are_real() -> None:
    process, said = served("--secret", "for tokens")
    try:
        assert (
            said["#"] == f"ws{said['SUPABASE_URL'][4:]}/realtime/v1/websocket?apikey={said['SUPABASE_KEY']}&vsn=2.0.0"
        )
        socket = websocket.create_connection(said["#"], timeout=10)
        token = make_token("for tokens", {"role": "x", "exp": 4e9})
        socket.send(json.dumps(["1", "1", "realtime:a", "phx_join", {"config": {}, "access_token": token}]))
        assert json.loads(socket.recv())[4]["status"] == "ok"
        for ref in range(6):
            socket.send(json.dumps(["1", str(ref), "realtime:a", "presence", {"event": "untrack"}]))
        replies = [json.loads(socket.recv()) for _ in range(6)]
        assert replies[-1][4]["message"] == "Client presence rate limit exceeded"
        socket.shutdown()
        done = run("send", "a", "x", "{}", "--url", said["SUPABASE_URL"], "--key", said["SUPABASE_KEY"])
        assert done.returncode == 0, done.stderr
    finally:
        out, err = interrupt(process)
    assert process.returncode == 0
    assert "Traceback" not in out + err


def test_a_plain_server_passes_on_what_is_pushed() -> None:
    process, said = served("--plain", "--no-limits")
    try:
        socket = websocket.create_connection(said["#"], timeout=10)
        socket.send(json.dumps(["1", "1", "room:lobby", "phx_join", {}]))
        assert json.loads(socket.recv())[4] == {"status": "ok", "response": {}}
        socket.send(json.dumps(["1", "2", "room:lobby", "hello", {"n": 1}]))
        assert json.loads(socket.recv()) == [None, None, "room:lobby", "hello", {"n": 1}]
        assert json.loads(socket.recv())[4] == {"status": "ok", "response": {"n": 1}}
        socket.shutdown()
    finally:
        interrupt(process)


def test_serve_on_a_port_that_is_taken_fails_with_its_reason(server: RealtimeServer) -> None:
    done = run("serve", "--port", str(server.port))
    assert done.returncode == 1
    assert "in use" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["send", "room", "x", "{}"], 2, "--url"),
        (["listen"], 2, "TOPIC"),
        (["frobnicate"], 2, "No such command"),
        (["send", "room", "x", "{not json", "--url", "http://127.0.0.1:1", "--key", "k"], 2, "JSON"),
        (["send", "room", "x", "[1]", "--url", "http://127.0.0.1:1", "--key", "k"], 1, "ConnectionFailed"),
        (["send", "", "x", "{}", "--url", "http://127.0.0.1:1", "--key", "k"], 2, "topic must not be empty"),
        (["listen", "room", "--url", "ftp://x", "--key", "k"], 2, "scheme"),
        (["listen", "room", "--url", "http://127.0.0.1:1"], 2, "api_key is missing"),
        (["serve", "--port", "99999"], 2, "99999"),
    ],
)
def test_wrong_usage_is_2_and_failure_is_1_and_both_say_why(arguments: list[str], code: int, words: str) -> None:
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_payload_that_is_no_object_is_wrong_usage(server: RealtimeServer) -> None:
    done = run("send", "room", "x", "[1]", server=server)
    assert done.returncode == 2
    assert "JSON object" in done.stderr


def test_a_refused_key_fails_with_the_servers_words(server: RealtimeServer) -> None:
    done = run("send", "room", "x", "{}", "--url", server.url, "--key", "wrong")
    assert done.returncode == 1
    assert "HTTP 401" in done.stderr
    assert "wrong" not in done.stderr.replace("wrong usage", "")


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="asks Linux for the threads of a process")
def test_ctrl_c_ends_the_demo() -> None:
    process = start("demo", "--json")
    wait_until(lambda: len(os.listdir(f"/proc/{process.pid}/task")) > 1, "the demo starts its server")
    _, err = interrupt(process)
    assert process.returncode == 1
    assert "Exception ignored" not in err


def test_a_missing_extra_says_what_to_install() -> None:
    code = "import sys; sys.modules['click'] = None; from rtpool.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "pip install 'rtpool[cli]'" in done.stderr


#: What a terminal acts on: a colour, another line, C1's CSI, a direction.
NASTY = "\x1b[31mred\nline\x9b2J\u202eback"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["top", f"/tmp/{NASTY}"], 1),
        (["send", "room", "x", "{}", NASTY], 2),
        (["listen", NASTY * 20], 2),
        (["listen", "room", f"--{NASTY}"], 2),
        ([NASTY], 2),
    ],
)
def test_words_of_a_user_do_nothing_to_a_terminal(arguments: list[str], code: int, server: RealtimeServer) -> None:
    done = run(*arguments, server=server)
    assert done.returncode == code, done.stderr
    assert "back" in done.stderr
    assert "line\\x9b2J\\u202eback" in done.stderr
    assert not set(done.stderr) & set("\x1b\x9b\u202e")
    assert "red\n" not in done.stderr


@pytest.mark.parametrize("arguments", [["send", "room", "x", "{}"], ["-v", "send", "room", "x", "{}"]])
def test_words_of_an_error_do_nothing_to_a_terminal(
    arguments: list[str], server: RealtimeServer, tmp_path: pathlib.Path
) -> None:
    failing = tmp_path / "failing.py"
    failing.write_text(FAILING.format(words=NASTY))
    done = subprocess.run(
        [sys.executable, str(failing), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(server),
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\\x1b[31mred\\nline\\x9b2J\\u202eback") == 1 + ("-v" in arguments)
    assert not set(done.stderr) & set("\x1b\x9b\u202e")


#: The command, where connecting fails with words that somebody else chose.
FAILING = """
import logging
import rtpool
from rtpool.cli import cli
def subscribe(*_, **__):
    logging.getLogger("rtpool.x").warning({words!r})
    raise rtpool.ConnectionFailed({words!r})
rtpool.Channel.subscribe = subscribe
cli()
"""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no disk that is always full")
@pytest.mark.parametrize(
    "arguments",
    [
        ["listen", "room", "--count", "1"],
        ["listen", "room", "--count", "1", "--json"],
        ["doctor"],
        ["doctor", "--json"],
        ["top", "--once"],
        ["top", "--json"],
        ["top", "--list"],
    ],
)
def test_a_full_disk_is_told_in_a_line(arguments: list[str], server: RealtimeServer, tmp_path: pathlib.Path) -> None:
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(open("/dev/full", "w"))
        if arguments[0] == "top":
            path = str(tmp_path / "pool.sock")
            pool = stack.enter_context(rtpool.RealtimePool(server.url, api_key=server.api_key))
            stack.enter_context(pool.serve_debug(path))
            arguments = [*arguments, path, *([] if "--list" in arguments else ["--interval", "0.1"])]
        process = subprocess.Popen(
            [*RTPOOL, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, env=environment(server)
        )
        stack.enter_context(process)
        if arguments[0] == "listen":
            server.wait_for(lambda s: s.members("room"), CAP)
            server.broadcast("room", "x", {})
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    lines = [line for line in err.splitlines() if "listening" not in line and "status" not in line]
    assert lines == ["failed: OSError: [Errno 28] No space left on device"]

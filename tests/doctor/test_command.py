"""`rtpool doctor` as programs run it: in a pipe, with --json, to its exit code."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
from typing import Any

import pytest
import trustme

from rtpool.testing import JoinReply, Permissions, RealtimeServer
from rtpool.testing.tokens import make_token
from tests.doctor.examining import NAMES
from tests.support.secrets_watch import watch
from tests.support.ways import SECRET, serving

RTPOOL = [sys.executable, "-W", "error", "-m", "rtpool", "doctor"]


def environment(server: RealtimeServer, **more: str) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("SUPABASE")}
    return {**env, "SUPABASE_URL": server.url, "SUPABASE_KEY": server.api_key, "PYTHONUTF8": "1", **more}


def run(server: RealtimeServer, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    env = environment(server, **more)
    done = subprocess.run([*RTPOOL, *arguments], capture_output=True, text=True, timeout=60, env=env, check=False)
    watch.look("what rtpool doctor says", done.stdout, done.stderr)
    assert "Traceback" not in done.stdout + done.stderr
    return done


def by_name(text: str) -> dict[str, Any]:
    report = json.loads(text)
    assert [step["name"] for step in report["steps"]] == NAMES
    return {**report, "steps": {step["name"]: step for step in report["steps"]}}


def test_a_machine_is_given_one_json_object(server: RealtimeServer) -> None:
    server.table("cars", {"id": "int8"})
    done = run(server, "--json", "--table", "cars", SUPABASE_ACCESS_TOKEN=server.token())
    assert (done.returncode, done.stderr) == (0, "")
    report = by_name(done.stdout)
    assert (report["ok"], report["interrupted"]) == (True, False)
    steps = report["steps"]
    assert set(steps["url"]) == {"name", "status", "words", "advice", "seconds", "details"}
    assert steps["key"]["details"]["role"] == "anon"
    assert steps["token"]["details"]["role"] == "authenticated"
    assert steps["broadcast"]["details"]["sent"] == 50
    assert all(0 <= step["seconds"] <= report["seconds"] for step in steps.values())


def test_a_failure_is_exit_code_1_and_is_in_the_json(server: RealtimeServer) -> None:
    key = make_token(SECRET, {"role": "anon", "exp": 4e9})
    done = run(server, "--json", "--key", key)
    assert done.returncode == 1
    report = by_name(done.stdout)
    assert report["ok"] is False
    assert report["steps"]["upgrade"]["status"] == "failed"
    assert report["steps"]["upgrade"]["details"]["status"] == 401
    assert report["steps"]["join"]["words"] == "needs upgrade"


def test_a_pipe_is_given_plain_lines(server: RealtimeServer) -> None:
    server.table("cars", {"id": "int8"})
    done = run(server, "--table", "orders")
    assert done.returncode == 1
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"ok       url          ws://127.0.0.1:\d+/realtime/v1/websocket \(\d+ ms\)", lines[0])
    assert "skipped  token        none was given: joins use the key" in lines
    at = next(index for index, line in enumerate(lines) if line.startswith("failed   replication"))
    assert lines[at + 1] == f"{'':22}> Look at the spelling, then:"
    assert lines[at + 2] == f"{'':24}alter publication supabase_realtime add table public.orders;"
    assert re.fullmatch(r"1 failed, first replication, \d+ fine", lines[-1])


def test_a_warning_is_no_failure(server: RealtimeServer) -> None:
    server.policy = lambda request: Permissions(read_broadcast=True, read_presence=True)
    server.api_key = key = server.token(role="service_role")
    done = run(server, "--key", key)
    assert done.returncode == 0
    assert "warning  key          role service_role" in done.stdout
    assert "1 warning, " in done.stdout.splitlines()[-1]


def test_an_authority_of_ones_own_is_given_by_the_environment(authority: trustme.CA, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    with RealtimeServer(ssl_context=serving(authority, "127.0.0.1")) as server:
        assert run(server, SSL_CERT_FILE=str(path)).returncode == 0
        done = run(server, SSL_CERT_FILE="")
    assert done.returncode == 1
    assert "SSL_CERT_FILE" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--timeout", "0"], "--timeout"),
        (["--timeout", "-1"], "--timeout"),
        (["--timeout", "soon"], "--timeout"),
        (["--timeout", "nan"], "timeout must be a finite number"),
        (["--timeout", "inf"], "--timeout"),
        (["--table", "a."], "name or schema.name"),
        (["--table", ".a"], "name or schema.name"),
        (["--topic", "x" * 300], "topic has 300 bytes"),
        (["--topic", ""], "topic must not be empty"),
        (["--proxy", "hush-hush:3128"], "must look like http://host:port"),
        (["extra"], "unexpected extra argument"),
    ],
)
def test_wrong_usage_is_2_and_says_why(arguments: list[str], words: str, server: RealtimeServer) -> None:
    done = run(server, *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert SECRET not in done.stderr
    assert done.stdout == ""


def test_no_url_is_wrong_usage() -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("SUPABASE")}
    done = subprocess.run(RTPOOL, capture_output=True, text=True, timeout=60, env=env, check=False)
    assert done.returncode == 2
    assert "--url" in done.stderr


def test_a_wrong_url_is_a_failure_of_its_step(server: RealtimeServer) -> None:
    done = run(server, "--url", "https://supabase.com/dashboard/project/abcdef")
    assert done.returncode == 1
    assert done.stdout.startswith("failed   url          this address is the dashboard's")


def test_ctrl_c_is_1_and_leaves_what_is_known(server: RealtimeServer) -> None:
    server.on_join = lambda *_: JoinReply(delay=30.0)
    env = environment(server)
    process = subprocess.Popen([*RTPOOL, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    server.wait_for(lambda s: any(message.event == "phx_join" for message in s.received), timeout=30)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (1, "")
    report = by_name(out)
    assert (report["ok"], report["interrupted"]) == (False, True)
    assert report["steps"]["heartbeat"]["status"] == "ok"
    assert report["steps"]["join"]["words"] == "interrupted"


def test_the_time_given_is_kept_to(server: RealtimeServer) -> None:
    server.on_join = lambda *_: JoinReply(delay=60.0)
    done = run(server, "--timeout", "1.5", "--json")
    report = by_name(done.stdout)
    assert done.returncode == 1
    assert report["steps"]["join"]["status"] == "failed"
    assert report["seconds"] < 8


def test_a_run_without_the_time_for_all_steps_is_a_failure(server: RealtimeServer) -> None:
    done = run(server, "--timeout", "0.000001", "--json")
    report = by_name(done.stdout)
    assert done.returncode == 1
    assert (report["ok"], report["timed_out"], report["interrupted"]) == (False, True, False)
    assert report["steps"]["broadcast"]["words"] == "no time was left"
    done = run(server, "--timeout", "0.000001")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("out of time: ")

"""``flask rtpool …``, as a person at a terminal runs it beside the app's own processes."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask

from rtpool.flask.processes import prefix_of
from rtpool.testing import RealtimeServer
from tests.support.wait import CAP, wait_until

APP = """
from flask import Flask
from rtpool.flask import Realtime

realtime = Realtime()

@realtime.on_broadcast("cars")
def moved(message):
    raise ValueError("no such car")

def create_app():
    app = Flask(__name__)
    app.config.from_prefixed_env()
    realtime.init_app(app)
    return app
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


class Serving:
    """``flask run``."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str = "/", **headers: str) -> int:
        """The status of an answer."""
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, headers=headers), timeout=CAP) as found:
                return int(found.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Where the app is."""
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


@pytest.fixture
def sockets() -> Iterator[pathlib.Path]:
    """Where the processes have their sockets; the path of one may have 103 bytes."""
    with tempfile.TemporaryDirectory(prefix="rtpool-") as found:
        yield pathlib.Path(found)


@pytest.fixture
def environment(sockets: pathlib.Path, server: RealtimeServer) -> dict[str, str]:
    """Of every process: no project of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SUPABASE", "FLASK", "RTPOOL"))}
    return {
        **kept,
        "COLUMNS": "100",
        "FLASK_APP": "app",
        "FLASK_RTPOOL_URL": server.url,
        "FLASK_RTPOOL_API_KEY": f'"{server.api_key}"',
        "FLASK_RTPOOL_SERVE_DEBUG": "true",
        "PYTHONUNBUFFERED": "1",
        "XDG_RUNTIME_DIR": str(sockets),
    }


@pytest.fixture
def run(folder: pathlib.Path, environment: dict[str, str]) -> Run:
    """Runs ``flask rtpool`` and waits for its end."""

    def run(*arguments: str, code: int = 0, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", "-m", "flask", "rtpool", *arguments]
        env = {**environment, **more}
        ended = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == code, (ended.stdout, ended.stderr)
        return ended

    return run


@pytest.fixture
def serve(folder: pathlib.Path, environment: dict[str, str]) -> Iterator[Callable[..., Serving]]:
    """Starts ``flask run``, and has it asked for something."""
    started: list[subprocess.Popen[str]] = []

    def serve(*options: str, **more: str) -> Serving:
        log = folder / f"log-{len(started)}"
        with log.open("w") as out:
            command = [sys.executable, "-m", "flask", "run", "--port", "0", *options]
            env = {**environment, **more}
            process = subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=out, start_new_session=True)
        started.append(process)

        def port() -> int:
            assert process.poll() is None, log.read_text()
            _, _, rest = log.read_text().partition("Running on http://127.0.0.1:")
            return int(rest.split()[0]) if rest and "\n" in rest else 0

        wait_until(port, "the app serves", 2 * CAP)
        serving = Serving(process, port())
        assert serving.get() == 404
        return serving

    yield serve
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(CAP)


def answering(run: Run, *arguments: str, **more: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(*arguments, "--json", **more).stdout.splitlines()]


def test_stats_and_issues_tell_of_every_process_of_the_app(
    serve: Callable[..., Serving], run: Run, server: RealtimeServer
) -> None:
    serving = [serve(), serve()]
    wait_until(lambda: server.members("cars") == 2)
    server.broadcast("cars", "moved", {})
    told: list[dict[str, Any]] = []

    def both() -> bool:
        told[:] = answering(run, "stats")
        return sum(each["stats"]["callback_errors"] for each in told) == 2

    wait_until(both, cap=4 * CAP)
    assert sorted(each["pid"] for each in told) == sorted(each.process.pid for each in serving)
    assert [each["stats"]["total_joins"] for each in told] == [1, 1]

    words = run("stats").stdout
    for each in serving:
        assert f"process {each.process.pid}  pool 1  connected  health ok" in words
    assert words.count("1 of 1 open, 1 joins, 1 of 1 Channels ready") == 2
    assert words.count("1 received, 1 delivered, 0 dropped, 0 gaps") == 2

    found = answering(run, "issues")
    assert [[issue["code"] for issue in each["issues"]] for each in found] == [["RTP024"], ["RTP024"]]
    words = run("issues").stdout
    assert words.count("RTP024 warning  callbacks raise: pool 1, 1 lately, 1 ever") == 2
    assert words.count("set pool.on_callback_error()") == 2
    for output in (words, run("stats", "--json").stdout):
        assert server.api_key not in output


def test_in_debug_mode_it_is_served_and_the_reloaders_parent_is_not(
    serve: Callable[..., Serving], run: Run, server: RealtimeServer
) -> None:
    serving = serve("--debug", FLASK_RTPOOL_SERVE_DEBUG="null")
    assert serving.get("/_rtpool/") == 200
    wait_until(lambda: server.members("cars") == 1)
    (told,) = answering(run, "stats")
    assert told["pid"] != serving.process.pid
    assert server.connections_total == 1


def test_who_does_not_serve_is_not_told_of(serve: Callable[..., Serving], run: Run, server: RealtimeServer) -> None:
    for command in ("stats", "issues"):
        ended = run(command, code=1)
        assert ended.stdout == ""
        assert ended.stderr.startswith("Error: no process of this app answers.")
        assert "RTPOOL_SERVE_DEBUG=True" in ended.stderr
    serving = serve(FLASK_RTPOOL_SERVE_DEBUG="false")
    wait_until(lambda: server.members("cars") == 1)
    assert serving.get("/_rtpool/") == 404
    run("stats", code=1)
    assert server.connections_total == 1, "a command connects nothing"


def test_another_apps_processes_are_not_this_ones(
    serve: Callable[..., Serving], run: Run, server: RealtimeServer, folder: pathlib.Path
) -> None:
    serve()
    wait_until(lambda: server.members("cars") == 1)
    wait_until(lambda: answering(run, "stats"))
    (folder / "another.py").write_text(APP)
    run("stats", code=1, FLASK_APP="another")


def test_a_process_that_cannot_answer_is_told_of(run: Run, folder: pathlib.Path, sockets: pathlib.Path) -> None:
    directory = sockets / "rtpool"
    directory.mkdir(mode=0o700)
    path = directory / f"{prefix_of(Flask('app', root_path=str(folder)))}1-1.sock"
    with socket.socket(socket.AF_UNIX) as odd:
        odd.bind(str(path))
        odd.listen()

        def answer() -> None:
            for _ in range(2):  # whether it lives; and what it is asked
                with contextlib.closing(odd.accept()[0]) as client:
                    if client.recv(1_000):
                        client.sendall(b"no pool\n")

        thread = threading.Thread(target=answer)
        thread.start()
        ended = run("stats", code=1)
        thread.join(CAP)
    assert f"{path}: what serves at {path} is no pool: its answer is not JSON" in ended.stderr
    assert "no process of this app answers" in ended.stderr


def test_an_app_started_in_another_way_is_the_same_app(tmp_path: pathlib.Path) -> None:
    (tmp_path / "app.py").write_text("")
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    one, another = Flask("app", root_path=str(tmp_path)), Flask("app", root_path=str(link))
    assert prefix_of(one) == prefix_of(another)
    assert prefix_of(one) != prefix_of(Flask("other", root_path=str(tmp_path)))


def test_doctor_and_listen_use_the_apps_config(run: Run, server: RealtimeServer) -> None:
    report = json.loads(run("doctor", "--json").stdout)
    assert report["ok"] is True
    report = json.loads(run("doctor", "--json", code=1, FLASK_RTPOOL_PROXY='"http://127.0.0.1:9"').stdout)
    assert [step["name"] for step in report["steps"] if step["status"] == "failed"] == ["tcp"]
    ended = run("listen", "room", "--timeout", "0.1", "--count", "1", code=1, FLASK_RTPOOL_PROXY='"http://127.0.0.1:9"')
    assert "proxy" in ended.stderr

    ended = run("listen", "room", "--count", "1", "--timeout", "0.1", code=1)
    assert "0 of 1 came within 0.1 s" in ended.stderr
    assert server.joins("room")
    assert "give a TOPIC, or a --table" in run("listen", code=2).stderr
    for command in ("doctor", "listen"):
        assert f"Usage: python -m flask rtpool {command} [OPTIONS]" in run(command, "--help").stdout


def test_listen_prints_what_arrives(folder: pathlib.Path, environment: dict[str, str], server: RealtimeServer) -> None:
    command = [sys.executable, "-m", "flask", "rtpool", "listen", "room", "--json", "--count", "1"]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_until(lambda: server.members("room") == 1, cap=2 * CAP)
        server.broadcast("room", "moved", {"to": "the <b>north</b>"})
        out, _ = process.communicate(timeout=CAP)
    assert json.loads(out)["payload"] == {"to": "the <b>north</b>"}
    assert process.returncode == 0


def test_another_server_gets_none_of_the_apps_keys_and_tokens(run: Run, server: RealtimeServer) -> None:
    token = server.token(sub="app")
    own = {"FLASK_RTPOOL_ACCESS_TOKEN": f'"{token}"'}
    asked = ("listen", "room", "--count", "1", "--timeout", "0.5")
    with RealtimeServer() as other:
        assert "api_key is missing" in run(*asked, "--url", other.url, code=2, **own).stderr
        run(*asked, f"--url={other.url}", "--key", other.api_key, code=1, **own)
        (join,) = other.joins()
        assert (join.accepted, join.payload.get("access_token")) == (True, None)
    assert not server.connections_total
    run(*asked, code=1, **own)
    assert server.joins()[0].payload["access_token"] == token


def test_without_a_url_it_says_which_key_is_missing(run: Run) -> None:
    for command in ("doctor", "listen"):
        assert "the app's config has no RTPOOL_URL" in run(command, code=2, FLASK_RTPOOL_URL="null").stderr


def test_without_rich_the_words_say_what_to_install(run: Run, folder: pathlib.Path) -> None:
    (folder / "rich.py").write_text('raise ImportError("no rich here", name="rich")')
    for command in ("doctor", "listen"):
        ended = run(command, "room", code=1, PYTHONPATH=f"{folder}:{os.environ.get('PYTHONPATH', '')}")
        assert ended.stderr == f"Error: flask rtpool {command} needs rich: pip install 'rtpool[cli]'\n"
    assert "listen" in run("--help", PYTHONPATH=f"{folder}:{os.environ.get('PYTHONPATH', '')}").stdout

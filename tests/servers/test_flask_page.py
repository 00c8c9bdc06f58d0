"""The debug page of an app whose workers are several, in a real gunicorn."""

from __future__ import annotations

import http.client
import json
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest

from rtpool.testing import RealtimeServer
from tests.servers.conftest import ROOT, Run, need
from tests.servers.gunicorn import Gunicorn
from tests.support.wait import wait_until

APP = """
import os
from flask import Flask
from rtpool.flask import Realtime

realtime = Realtime()

@realtime.on_broadcast("room")
def hear(message):
    pass

def create_app():
    app = Flask(__name__)
    app.config.from_prefixed_env()
    realtime.init_app(app)
    app.add_url_rule("/", view_func=lambda: {"pid": os.getpid()})
    return app
"""
TOKEN = "the-token-of-several-workers"


@pytest.fixture
def sockets() -> Iterator[str]:
    """Where the workers have their sockets; the path of one may have 103 bytes."""
    with tempfile.TemporaryDirectory(prefix="rtpool-") as found:
        yield found


class Visitor:
    """A browser with cookies; each request is on a connection of its own, so any worker answers."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._cookie = ""

    def ask(self, path: str, form: dict[str, str] | None = None, **headers: str) -> tuple[int, str]:
        """The status and the text of an answer."""
        host, port = self._address
        connection = http.client.HTTPConnection(host, port, timeout=30)
        headers = {"Cookie": self._cookie, "Accept": "application/json", **headers}
        if form is not None:
            headers |= {"Origin": f"http://{host}:{port}", "Content-Type": "application/x-www-form-urlencoded"}
        connection.request("GET" if form is None else "POST", path, urlencode(form) if form else None, headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        self._cookie = answer.getheader("Set-Cookie", self._cookie).partition(";")[0]
        connection.close()
        return answer.status, text


@pytest.mark.parametrize("kind", ["sync", "gthread"])
def test_a_token_shown_to_one_worker_is_good_for_all_and_commands_see_them_all(
    server: RealtimeServer, run: Run, tmp_path: pathlib.Path, sockets: str, kind: str
) -> None:
    need("gunicorn")
    (tmp_path / "app.py").write_text(APP)
    environment = {
        "FLASK_RTPOOL_URL": server.url,
        "FLASK_RTPOOL_API_KEY": json.dumps(server.api_key),
        "FLASK_RTPOOL_DEBUG_PAGE": "true",
        "FLASK_RTPOOL_DEBUG_TOKEN": TOKEN,
        "FLASK_RTPOOL_SERVE_DEBUG": "true",
        "XDG_RUNTIME_DIR": sockets,
    }
    threads = ["--threads", "4"] if kind == "gthread" else []  # with threads, gunicorn makes sync ones gthread
    gunicorn = Gunicorn(run, "--worker-class", kind, *threads, app="app:create_app()", **environment)
    workers = gunicorn.ask_all()
    wait_until(lambda: server.members("room") == 2)

    visitor = Visitor(gunicorn.address)
    # The server lets somebody in a moment before that one knows.
    wait_until(lambda: visitor.ask("/_rtpool/health") == (200, '{"status": "ok"}\n'))
    assert visitor.ask("/_rtpool/metrics")[0] == 403
    assert "rtpool_joins{" in visitor.ask("/_rtpool/metrics", Authorization=f"Bearer {TOKEN}")[1]
    assert visitor.ask("/_rtpool/sign-in", {"token": TOKEN})[0] == 303
    seen: dict[int, str] = {}

    def all_seen() -> bool:
        status, text = visitor.ask("/_rtpool/")
        assert status == 200
        assert ("data-look=" in text) is (kind == "sync")
        found = re.search(r"pool \d+ of process (\d+)", text)
        csrf = re.search(r'name="csrf" value="([^"]+)"', text)
        assert found
        assert csrf
        seen[int(found[1])] = csrf[1]
        return len(seen) == 2

    wait_until(all_seen, "both workers show their pages", 60)
    assert seen.keys() == workers
    for csrf in [*seen.values()] * 3:
        assert visitor.ask("/_rtpool/actions/log-stats", {"csrf": csrf})[0] == 200

    command = [sys.executable, "-m", "flask", "--app", "app:create_app", "rtpool", "stats", "--json"]
    known = {**environment, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    told = subprocess.run(command, cwd=tmp_path, env=known, capture_output=True, text=True, timeout=60, check=True)
    assert {json.loads(line)["pid"] for line in told.stdout.splitlines()} == workers
    gunicorn.ends()

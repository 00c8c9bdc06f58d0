"""The examples that are run by gunicorn and Celery, as they are and in a given project."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import sys
import urllib.request

import pytest

from rtpool.testing import RealtimeServer
from tests.servers.conftest import ROOT, Goodbyes, Program, Run, need
from tests.servers.crowd import Crowd
from tests.servers.gunicorn import STREAMING, Gunicorn
from tests.support.wait import wait_until

EXAMPLES = ROOT / "examples"


@pytest.fixture(autouse=True)
def no_project_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whoever runs the tests."""
    need("flask")
    for name in [name for name in os.environ if name.startswith(("SUPABASE_", "FLASK_", "CELERY_"))]:
        monkeypatch.delenv(name)


def _keys(server: RealtimeServer) -> dict[str, str]:
    return {"SUPABASE_URL": server.url, "SUPABASE_KEY": server.api_key}


# gunicorn


def _serve(run: Run, kind: str, **environment: str) -> Gunicorn:
    need("gunicorn")
    if kind == "gevent":
        need("gevent")
    config = str(EXAMPLES / "gunicorn" / "gunicorn.conf.py")
    settings = {"WORKER_CLASS": kind, "WEB_CONCURRENCY": "2", "BIND": "127.0.0.1:0", **environment}
    return Gunicorn(run, "-c", config, app=None, **settings)


def _servers(parent: int) -> list[int]:
    """The demonstration servers that a process has started."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            ours = "demo_project.py" in (path / "cmdline").read_text()
            status = (path / "status").read_text()
        except OSError:  # it has ended meanwhile
            continue
        if ours and f"\nPPid:\t{parent}\n" in status:
            found.append(int(path.name))
    return found


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="/proc tells of other processes")
def test_gunicorns_example_brings_a_server_of_its_own_for_all_workers(run: Run) -> None:
    gunicorn = _serve(run, "gthread")
    (demo,) = _servers(gunicorn.program.pid)
    with Crowd(2, "/cars/stream") as crowd:
        crowd.open(gunicorn.address)
        crowd.read_until(lambda: all(len(b.of("change")) >= 2 for b in crowd.browsers), "both see changes")
        changes = [event.data["record"] for browser in crowd.browsers for event in browser.of("change")]
        assert {tuple(record) for record in changes} == {("id", "status")}
        crowd.come_back = False
        gunicorn.program.process.send_signal(signal.SIGTERM)
        crowd.read_until(lambda: not any(b.sock for b in crowd.browsers), "all streams have ended", 10)
    gunicorn.ends()
    assert not os.path.exists(f"/proc/{demo}")


@pytest.mark.parametrize("kind", STREAMING)
def test_gunicorns_example_serves_a_given_project_with_a_connection_for_each_worker(
    server: RealtimeServer, run: Run, kind: str
) -> None:
    gunicorn = _serve(run, kind, **_keys(server))
    assert not _servers(gunicorn.program.pid)
    server.wait_for(lambda s: s.connections_total == 2 and len(s.joins()) == 2, 30)
    host, port = gunicorn.address
    with Crowd(1, "/cars/stream") as crowd:
        (browser,) = crowd.browsers
        crowd.open(gunicorn.address)
        crowd.read_until(lambda: browser.status, "the stream is open")
        server.wait_for(lambda s: s.members("cars"))
        horn = urllib.request.Request(f"http://{host}:{port}/cars/7/horn", method="POST")
        with urllib.request.urlopen(horn, timeout=30) as answer:
            assert answer.status == 204
        server.change("public", "cars", "UPDATE", {"id": 1, "status": "rented"}, {"id": 1})
        crowd.read_until(lambda: browser.of("change") and browser.of("broadcast"), "it was told of both")
        assert browser.of("broadcast")[0].data["payload"] == {"car": 7}
        wait_until(lambda: gunicorn.get("/worker")["seen"] == {"UPDATE": 1}, "a worker's callback heard of it")
        assert server.connections_total == 2
        crowd.come_back = False
        goodbyes = Goodbyes(server)
        gunicorn.program.process.send_signal(signal.SIGTERM)
        crowd.read_until(lambda: browser.sock is None, "the stream has ended", 10)
    gunicorn.ends(with_greenlets=kind == "gevent")
    assert goodbyes.all_said()


# Celery

TOLD = "told the renter of car"


def _work(run: Run, **environment: str) -> Program:
    need("celery")
    return run(sys.executable, str(EXAMPLES / "celery_worker"), **environment)


def _change(server: RealtimeServer, number: int) -> None:
    """Change a car, when somebody listens."""
    car = {"id": number, "status": "rented"}
    wait_until(lambda: server.change("public", "cars", "UPDATE", car, {"id": number}), "somebody listens", 30)


def test_celerys_example_has_a_task_done_for_each_change_once_though_many_processes_run(
    server: RealtimeServer, run: Run
) -> None:
    need("gunicorn")
    alone = _work(run)  # with a server of its own, meanwhile: Celery's workers take some seconds to end
    program = _work(run, **_keys(server))
    program.wait_for(lambda: "ready." in program.err(), "the workers are ready", 60)
    web = Gunicorn(
        run, "--chdir", str(EXAMPLES / "celery_worker"), app="app:create_app()", CELERY_FOLDER=".", **_keys(server)
    )
    web.ask_all()
    server.wait_for(lambda s: s.joins(), 30)
    assert server.connections_total == 1, "nobody but the listener"
    for number in range(10):
        _change(server, number)
    server.wait_for(lambda s: len(s.requests) >= 10, 30)
    server.disconnect_all()
    program.wait_for(lambda: "read anew what changed in" in program.err(), "a task catches up", 30)
    _change(server, 10)
    server.wait_for(lambda s: len(s.requests) == 11, 30)
    told = [json.loads(record.body)["car"]["id"] for record in server.requests]
    assert sorted(told) == list(range(11))
    assert server.connections_total == 2
    web.ends()
    alone.wait_for(lambda: alone.err().count(TOLD) >= 3, "three tasks were done", 60)
    for each in (alone, program):
        each.process.send_signal(signal.SIGTERM)
    for each in (alone, program):
        each.ends(within=30)

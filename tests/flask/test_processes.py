"""Flask apps whose process forks, is reloaded, or serves nobody."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import re
import signal
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import rtpool
from rtpool.flask import Realtime
from rtpool.testing import RealtimeServer
from tests.flask.conftest import MakeApp, state_of, wait_for_callbacks
from tests.servers.conftest import Goodbyes, Program, Run, run
from tests.support.forking import Child, Link, ask
from tests.support.wait import wait_until

__all__ = ["run"]

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """A file that a thread writes to at a fork is locked in the child for ever, the log's too; CPython has it so."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


# Forks


@forks
def test_a_child_hears_what_its_parent_had_subscribed_once_however_many_requests_it_gets(
    server: RealtimeServer, realtime: Realtime, make_app: MakeApp
) -> None:
    heard: list[Any] = []
    gaps: list[Any] = []
    realtime.on_broadcast("room")(heard.append)
    realtime.on_gap()(gaps.append)
    app = make_app(RTPOOL_AUTOSTART=True)
    app.test_client().get("/")
    wait_for_callbacks(app)

    def serve(link: Link) -> None:
        for _ in range(2):
            app.test_client().get("/")
        wait_for_callbacks(app)
        wait_until(lambda: gaps)
        link.tell([gap.cause for gap in gaps])
        wait_until(lambda: heard)
        link.tell([message.payload for message in heard])
        state_of(app).close(10)

    with Child(serve) as child:
        assert child.told() == ["fork"]
        assert server.members("room") == 2
        server.broadcast("room", "x", {"n": 1})
        assert child.told() == [{"n": 1}]
    wait_until(lambda: heard)
    assert len(heard) == 1
    assert not gaps
    assert (len(server.joins("room")), server.connections_total) == (2, 2)


@forks
def test_a_child_that_is_to_begin_anew_does_so_at_its_first_request(
    server: RealtimeServer, realtime: Realtime, make_app: MakeApp
) -> None:
    heard: list[Any] = []
    realtime.on_broadcast("room")(heard.append)
    app = make_app(RTPOOL_AUTOSTART=True, RTPOOL_AFTER_FORK="close")
    app.test_client().get("/")
    wait_for_callbacks(app)

    def serve(link: Link) -> None:
        link.tell([channel.is_subscribed for channel in state_of(app).pool.channels()])
        link.wait()
        app.test_client().get("/")
        wait_for_callbacks(app)
        link.tell("ready")
        wait_until(lambda: heard)
        link.tell(len(heard))
        state_of(app).close(10)

    with Child(serve) as child:
        assert child.told() == []
        assert server.members("room") == 1
        child.go()
        assert child.told() == "ready"
        server.broadcast("room", "x", {"n": 1})
        assert child.told() == 1
    wait_until(lambda: len(heard) == 1)


@forks
def test_a_preloaded_app_connects_in_the_children_alone(
    server: RealtimeServer, realtime: Realtime, make_app: MakeApp
) -> None:
    realtime.on_broadcast("room")(print)
    app = make_app(RTPOOL_AUTOSTART=True)
    with app.app_context():
        _ = realtime.pool  # whoever looked at it connected nothing

    def serve(link: Link) -> None:
        app.test_client().get("/")
        wait_for_callbacks(app)
        link.tell("joined")
        link.wait()
        state_of(app).close(10)

    with Child(serve) as one, Child(serve) as two:
        assert [one.told(), two.told()] == ["joined", "joined"]
        server.wait_for(lambda s: s.members("room") == 2)
        assert server.connections_total == 2
        one.go()
        two.go()


@forks
def test_a_lock_that_was_held_at_the_fork_holds_up_no_child(
    server: RealtimeServer, realtime: Realtime, make_app: MakeApp
) -> None:
    realtime.on_broadcast("room")(print)
    app = make_app(RTPOOL_AUTOSTART=True)
    state = state_of(app)
    _ = state.pool
    running = state._running
    assert running is not None
    running._at_work = True  # as if another thread subscribed just now, and yet another looked for the pool
    state._lock = threading.Lock()
    state._lock.acquire()

    def serve() -> Any:
        app.test_client().get("/")
        wait_for_callbacks(app)
        with app.app_context():
            return realtime.close(10)

    try:
        assert ask(serve) is True
    finally:
        state._lock.release()
        running._at_work = False


@forks
@pytest.mark.parametrize("mode", ["close", "resubscribe"])
def test_a_request_s_channel_stays_with_the_parent(
    server: RealtimeServer, realtime: Realtime, make_app: MakeApp, mode: str
) -> None:
    app = make_app(RTPOOL_AFTER_FORK=mode)
    answers: list[Any] = []

    @app.get("/")
    def view() -> str:
        channel = realtime.channel("room").on_broadcast("*", print).subscribe()

        def child() -> Any:
            errors = []
            for use in (channel.subscribe, lambda: channel.send_broadcast("x", {})):
                try:
                    use()
                except rtpool.RtpoolError as error:
                    errors.append(str(error))
            channels = len(state_of(app).pool.channels())
            fresh = realtime.channel("another").subscribe()
            subscribed = fresh.is_subscribed
            state_of(app).close(10)
            return errors, channels, subscribed

        answers.append(ask(child))
        assert channel.is_subscribed
        server.wait_for(lambda s: s.members("room") == 1)
        return "done"

    assert app.test_client().get("/").text == "done"
    words = "'room' was a request's, which is the parent process's"
    assert answers == [([words, words], 0, True)]
    server.wait_for(lambda s: s.members("room") == 0)


# Flask's own commands

PROGRAM = """
import os
from flask import Flask
from rtpool.flask import Realtime

realtime = Realtime()

@realtime.on_broadcast("room")
def heard(message):
    print("heard", message.payload["n"], os.getpid(), flush=True)

def create_app():
    app = Flask(__name__)
    app.config["RTPOOL_URL"] = os.environ["GUEST_URL"]
    app.config["RTPOOL_API_KEY"] = os.environ["GUEST_KEY"]
    realtime.init_app(app)

    @app.get("/")
    def index():
        return {"pid": os.getpid(), "version": VERSION}

    @app.shell_context_processor
    def names():
        print("has a pool:", realtime.state.has_pool)
        return {"realtime": realtime}

    return app

VERSION = 1
"""


@pytest.fixture
def flask_command(run: Run, tmp_path: pathlib.Path) -> Callable[..., Program]:
    """Runs ``flask`` with an app factory."""
    (tmp_path / "cars.py").write_text(PROGRAM)

    def start(*arguments: str, **environment: str) -> Program:
        return run(sys.executable, "-m", "flask", "--app", "cars", *arguments, **environment)

    return start


def url_of(program: Program) -> str:
    def found() -> re.Match[str] | None:
        return re.search(r"Running on (http://\S+)", program.err() + program.out())

    program.wait_for(found, "it serves")
    match = found()
    assert match is not None
    return match[1]


def ask_index(url: str) -> dict[str, int]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        told: dict[str, int] = json.load(answer)
        return told


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (("routes",), "index"),
        (("shell",), "has a pool: False"),
        (("--debug", "shell"), "has a pool: False"),
    ],
)
def test_a_command_that_serves_nobody_connects_nothing(
    server: RealtimeServer,
    flask_command: Callable[..., Program],
    command: tuple[str, ...],
    shown: str,
) -> None:
    program = flask_command(*command)
    program.wait_for(lambda: shown in program.out(), "it says so")
    program.ends()
    assert server.connections_total == 0


def test_under_the_reloader_only_the_serving_process_connects_and_a_change_of_code_leaves_nothing(
    server: RealtimeServer, flask_command: Callable[..., Program], tmp_path: pathlib.Path
) -> None:
    program = flask_command("run", "--debug", "--port", "0")
    url = url_of(program)
    assert server.connections_total == 0
    before = ask_index(url)
    assert before["pid"] != program.pid
    server.wait_for(lambda s: s.members("room") == 1, 30)
    server.broadcast("room", "x", {"n": 1})
    program.wait_for(lambda: f"heard 1 {before['pid']}\n" in program.out(), "the serving process heard it")
    goodbyes = Goodbyes(server)

    (tmp_path / "cars.py").write_text(PROGRAM.replace("VERSION = 1", "VERSION = 2"))
    assert goodbyes.all_said()
    assert server.members("room") == 0
    after = ask_index(url)
    assert after["version"] == 2
    assert after["pid"] not in (before["pid"], program.pid)
    server.wait_for(lambda s: s.members("room") == 1, 30)
    server.broadcast("room", "x", {"n": 2})
    program.wait_for(lambda: f"heard 2 {after['pid']}\n" in program.out(), "the new process heard it")
    assert (len(server.joins("room")), server.connections_total) == (2, 2)

    goodbyes = Goodbyes(server)
    os.killpg(program.pid, signal.SIGINT)  # as Ctrl-C at a terminal
    assert goodbyes.all_said()
    program.ends()
    assert program.out().count("heard") == 2
    assert "rtpool" not in program.err()
    assert "Traceback" not in program.err()

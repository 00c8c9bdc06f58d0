"""Pools in the workers of a real Celery."""

from __future__ import annotations

import pathlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rtpool.testing import RealtimeServer
from tests.servers.conftest import Goodbyes, Guests, Program, Run, need

Call = Callable[..., Any]


@pytest.fixture
def call(tmp_path: pathlib.Path) -> Iterator[Call]:
    """Has a task done by a worker; returns a function that waits for what it returned."""
    need("celery")
    from tests.servers.broker import make_app

    with make_app(tmp_path) as app:

        def send(task: str, *arguments: Any) -> Callable[[], Any]:
            result = app.send_task(f"tests.servers.tasks.{task}", arguments)
            return lambda: result.get(timeout=60, interval=0.05)

        yield send


@pytest.fixture
def work(run: Run, tmp_path: pathlib.Path) -> Callable[..., Program]:
    """Starts a worker; it is ready when this returns."""

    def start(pool: str, **environment: str) -> Program:
        options = ["worker", "--pool", pool, "--concurrency", "2", "--without-gossip", "--without-mingle"]
        program = run(
            sys.executable,
            *("-m", "celery", "--app", "tests.servers.tasks", *options, "--loglevel", "info"),
            GUEST_FOLDER=str(tmp_path),
            **environment,
        )
        program.wait_for(lambda: "ready." in program.err(), "the worker is ready")
        return program

    return start


@pytest.mark.parametrize("mode", ["close", "resubscribe"])
def test_the_children_of_prefork_have_connections_of_their_own(
    server: RealtimeServer, guests: Guests, call: Call, work: Callable[..., Program], mode: str
) -> None:
    worker = work("prefork", GUEST_AT_IMPORT="1", GUEST_AFTER_FORK=mode)
    guests.wait(1 if mode == "close" else 3)
    waits = [call("subscribe") for _ in range(2)]
    children = {wait() for wait in waits}
    assert len(children) == 2
    assert {call("say", number)() for number in range(3)} <= children
    answers = guests.call(3)
    assert set(answers) == {worker.pid, *children}
    assert {tuple(answer.heard) for answer in answers.values()} == {(0, 1, 2)}
    assert {tuple(answers[child].gaps) for child in children} == {("fork",) if mode == "resubscribe" else ()}
    goodbyes = Goodbyes(server)
    worker.ends(signal.SIGTERM)
    assert goodbyes.all_said()


@pytest.mark.parametrize("pool", ["threads", "gevent"])
def test_a_worker_of_one_process_shares_one_connection(
    server: RealtimeServer, guests: Guests, call: Call, work: Callable[..., Program], pool: str
) -> None:
    if pool == "gevent":
        need("gevent")
    worker = work(pool)
    waits = [call("subscribe") for _ in range(2)]
    assert {wait() for wait in waits} == {worker.pid}
    assert call("say", 1)() == worker.pid
    answers = guests.call(1)
    assert answers[worker.pid].heard == [1]
    assert server.connections_total == 1
    goodbyes = Goodbyes(server)
    worker.ends(signal.SIGTERM)
    assert goodbyes.all_said()

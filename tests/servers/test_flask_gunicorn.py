"""Apps with rtpool's extension in a real gunicorn: a connection for each worker, none for the master."""

from __future__ import annotations

import os
import signal

import pytest

from rtpool.testing import RealtimeServer
from tests.servers.conftest import Goodbyes, Guests, need
from tests.servers.crowd import Crowd
from tests.servers.gunicorn import CLASSES, STREAMING, Shop
from tests.support.wait import wait_until

#: The few that take longest, too.
ALL = os.environ.get("RTPOOL_SERVERS") == "all"
ADVICE = "realtime.start(alive=lambda: worker.alive)"
kinds = pytest.mark.parametrize("kind", CLASSES)
streaming = pytest.mark.parametrize("kind", STREAMING)
preloading = pytest.mark.parametrize("preload", [False, True], ids=["each loads", "preloaded"])


@pytest.fixture(autouse=True)
def gevent(request: pytest.FixtureRequest) -> None:
    if "gevent" in request.node.name:
        need("gevent")


@kinds
@preloading
def test_each_worker_hears_from_the_beginning_by_one_connection_and_the_master_has_none(
    server: RealtimeServer, guests: Guests, shop: Shop, kind: str, preload: bool
) -> None:
    gunicorn = shop(kind, preload=preload)
    answers = guests.call(2)
    assert {answer.parent for answer in answers.values()} == {gunicorn.program.pid}
    guests.say(1)
    assert gunicorn.ask_all() == set(answers)
    told = gunicorn.get("/visit?topic=room")  # and leaves again
    assert told["pid"] in answers
    assert {tuple(answer.heard) for answer in guests.call(2).values()} == {(1,)}
    assert (server.connections_total, len(server.joins("room")), len(server.leaves("room"))) == (2, 2, 0)

    killed = min(answers)
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: server.connections_total == 3, "another worker took its place", 30)
    then = guests.call(2)
    assert killed not in then
    assert {tuple(answer.gaps) for answer in then.values()} == {()}
    goodbyes = Goodbyes(server)
    gunicorn.ends(with_greenlets=kind == "gevent")
    assert goodbyes.all_said()


@kinds
def test_a_master_that_listens_too_is_not_disturbed_and_its_workers_begin_with_a_gap(
    server: RealtimeServer, guests: Guests, shop: Shop, kind: str
) -> None:
    gunicorn = shop(kind, preload=True, GUEST_AT_IMPORT="1")
    answers = guests.call(3)
    master = answers.pop(gunicorn.program.pid)
    assert (master.connection, master.gaps) == (1, [])
    assert {(answer.parent, *answer.gaps) for answer in answers.values()} == {(master.pid, "fork")}
    assert server.connections_total == 3
    goodbyes = Goodbyes(server)
    gunicorn.ends(with_greenlets=kind == "gevent")
    assert goodbyes.all_said()


@kinds
def test_without_a_hook_a_worker_hears_from_its_first_request_on(
    server: RealtimeServer, guests: Guests, shop: Shop, kind: str
) -> None:
    gunicorn = shop(kind, hook="")
    assert server.connections_total == 0
    workers = gunicorn.ask_all()
    assert set(guests.call(2)) == workers
    gunicorn.ends(with_greenlets=kind == "gevent")


@pytest.mark.parametrize(("kind", "preload"), [("gthread", False), ("gevent", True)])
def test_a_graceful_stop_is_not_held_up_by_open_streams(
    server: RealtimeServer, guests: Guests, shop: Shop, kind: str, preload: bool
) -> None:
    gunicorn = shop(kind, "--threads", "8", "--graceful-timeout", "60", preload=preload)
    guests.wait(2)
    with Crowd(6) as crowd:
        crowd.come_back = False
        crowd.open(gunicorn.address)
        crowd.read_until(lambda: sum(map(len, crowd.by_process().values())) == 6, "all streams are open")
        goodbyes = Goodbyes(server)
        gunicorn.program.process.send_signal(signal.SIGTERM)
        crowd.read_until(lambda: not crowd.by_process(), "all streams have ended", 10)
        assert {tuple(browser.ends.items()) for browser in crowd.browsers} == {(("finished", 1),)}
        gunicorn.ends(with_greenlets=kind == "gevent")
        assert goodbyes.all_said()
    assert ADVICE not in gunicorn.program.err()


@streaming
def test_without_the_hook_streams_tell_what_they_will_hold_up(shop: Shop, kind: str) -> None:
    gunicorn = shop(kind, "--threads", "8", workers=1, hook="")
    with Crowd(3) as crowd:
        crowd.open(gunicorn.address)
        crowd.read_until(lambda: sum(map(len, crowd.by_process().values())) == 3, "all streams are open")
        assert gunicorn.program.err().count(ADVICE) == 1


@streaming
def test_ctrl_c_is_not_held_up_by_open_streams(server: RealtimeServer, guests: Guests, shop: Shop, kind: str) -> None:
    gunicorn = shop(kind, "--threads", "8", "--graceful-timeout", "60")
    guests.wait(2)
    with Crowd(6) as crowd:
        crowd.come_back = False
        crowd.open(gunicorn.address)
        crowd.read_until(lambda: sum(map(len, crowd.by_process().values())) == 6, "all streams are open")
        goodbyes = Goodbyes(server)
        if kind == "gthread":  # its handler of SIGQUIT waits for a lock that the same thread holds while it accepts
            idle: set[object] = set()
            wait_until(lambda: idle.add(gunicorn.get("/idle")["pid"]) or len(idle) == 2, "none accepts")
        gunicorn.program.ends(signal.SIGINT)
        assert goodbyes.all_said()


@pytest.mark.skipif(not ALL, reason="takes a while: set RTPOOL_SERVERS=all")
@streaming
def test_a_worker_that_has_had_its_share_of_requests_ends_its_streams_and_they_go_on_elsewhere(
    server: RealtimeServer, guests: Guests, shop: Shop, kind: str
) -> None:
    gunicorn = shop(kind, "--threads", "8", "--graceful-timeout", "60", "--max-requests", "5")
    guests.wait(2)
    with Crowd(5) as crowd:
        crowd.open(gunicorn.address)
        crowd.read_until(lambda: sum(map(len, crowd.by_process().values())) == 5, "all streams are open")
        first = set(crowd.by_process())
        for _ in range(8):
            gunicorn.ask()
        crowd.read_until(
            lambda: sum(map(len, crowd.by_process().values())) == 5 and set(crowd.by_process()) - first,
            "a new worker has a stream",
        )
        assert not sum(browser.ends["cut"] for browser in crowd.browsers)
        # A worker that has just been forked has its master's handler of SIGTERM still, and would miss it.
        wait_until(lambda: set(guests.call(2)) == gunicorn.alive(), "the new workers are there")
        crowd.come_back = False
        gunicorn.program.process.send_signal(signal.SIGTERM)
        crowd.read_until(lambda: not crowd.by_process(), "all streams have ended", 10)
    gunicorn.ends(with_greenlets=kind == "gevent")

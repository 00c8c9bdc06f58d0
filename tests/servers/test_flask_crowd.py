"""Two hundred browsers' streams on the workers of a real gunicorn, one of which is killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from rtpool.testing import RealtimeServer
from tests.servers.conftest import Goodbyes, Guests, need
from tests.servers.crowd import Browser, Crowd
from tests.servers.gunicorn import Shop
from tests.servers.requests import Client, in_threads

BROWSERS, WORKERS = 200, 4
#: Seconds of a feed's past in which a browser's last event must be the only one of its kind, and 1 for good measure.
PAST = 6.0


class Words:
    """Numbered broadcasts."""

    def __init__(self, server: RealtimeServer) -> None:
        self._server = server
        self.said = 0

    def say(self, count: int) -> None:
        """So many more, to all."""
        for _ in range(count):
            self._server.broadcast("room", "word", {"number": self.said})
            self.said += 1


def numbers(browser: Browser) -> list[int]:
    """What one was told, in order."""
    return [event.data["payload"]["number"] for event in browser.of("broadcast") if event.data["event"] == "word"]


def heard_all(crowd: Crowd, words: Words) -> None:
    """Read until each stream has the latest word."""
    last = words.said - 1
    crowd.read_until(lambda: all(last in numbers(b)[-1:] for b in crowd.browsers), f"everybody has number {last}")


def all_joined(crowd: Crowd) -> None:
    """Read until each worker has told one of its streams that it is joined: who has a feed begin is told."""

    def joined() -> bool:
        return all(
            any(told.data["status"] == "joined" for browser in browsers for told in browser.of("status"))
            for browsers in crowd.by_process().values()
        )

    crowd.read_until(joined, "every worker's feed is joined")


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    with Crowd(BROWSERS, "/stream?topic=room") as crowd:
        yield crowd


@pytest.mark.parametrize(
    ("kind", "threads"),
    [
        pytest.param("gevent", 1, id="gevent"),
        pytest.param(
            "gthread",
            BROWSERS,
            id="gthread",
            marks=pytest.mark.skipif(
                os.environ.get("RTPOOL_SERVERS") != "all", reason="takes a while: set RTPOOL_SERVERS=all"
            ),
        ),
    ],
)
def test_each_worker_has_one_join_for_all_of_its_streams_and_those_of_one_that_dies_go_on_in_others(
    server: RealtimeServer, guests: Guests, shop: Shop, crowd: Crowd, kind: str, threads: int
) -> None:
    if kind == "gevent":
        need("gevent")
    options = ("--threads", str(threads), "--graceful-timeout", "60")
    gunicorn = shop(kind, *options, preload=True, workers=WORKERS)
    guests.wait(WORKERS)
    words = Words(server)
    crowd.open(gunicorn.address)
    crowd.read_until(lambda: sum(map(len, crowd.by_process().values())) == BROWSERS, "all streams are open")
    all_joined(crowd)
    opened = time.monotonic()
    first = crowd.by_process()
    assert len(first) == WORKERS
    while time.monotonic() - opened < PAST:
        words.say(10)
        heard_all(crowd, words)
        crowd.read_for(0.5)
    assert {tuple(numbers(browser)) for browser in crowd.browsers} == {tuple(range(words.said))}
    assert (server.connections_total, len(server.joins("room")), len(server.joins())) == (WORKERS, WORKERS, WORKERS)

    killed, victims = max(first.items(), key=lambda found: len(found[1]))
    crowd.come_back = False
    os.kill(killed, signal.SIGKILL)
    crowd.read_until(lambda: all(browser.sock is None for browser in victims), "its streams are cut off")
    others = [browser for browser in crowd.browsers if browser not in victims]
    assert not sum(browser.ends.total() for browser in others), "no other stream was lost"
    words.say(10)
    crowd.open(gunicorn.address, victims)
    server.wait_for(lambda s: s.connections_total == WORKERS + 1, 30)
    guests.wait(WORKERS)
    crowd.read_until(lambda: all(browser.process for browser in victims), "they have streams again")
    all_joined(crowd)
    words.say(10)
    heard_all(crowd, words)
    assert {tuple(numbers(browser)) for browser in others} == {tuple(range(words.said))}
    for browser in victims:
        came = numbers(browser)
        if browser.process in first:
            assert (came, browser.of("gap")) == (list(range(words.said)), []), (
                "it lost nothing and was told nothing twice"
            )
        else:
            assert browser.of("gap"), "what it lost it was told of"
        assert came == sorted(set(came))

    one, seen = others[0], len(others[0].of("gap"))
    while one.process in first:  # until the newcomer is the one that takes it
        crowd.leave(one)
        crowd.open(gunicorn.address, [one])
        crowd.read_until(lambda: one.process, "it has a stream again")
    crowd.read_until(lambda: len(one.of("gap")) > seen, "the newcomer tells of the gap before its time")
    words.say(1)
    heard_all(crowd, words)
    assert len(server.joins("room")) == len(server.joins()) == server.connections_total == WORKERS + 1

    goodbyes = Goodbyes(server)
    gunicorn.program.process.send_signal(signal.SIGTERM)
    crowd.read_until(lambda: not crowd.by_process(), "all streams have ended", 10)
    gunicorn.ends(with_greenlets=kind == "gevent")
    assert goodbyes.all_said()


def test_four_workers_of_four_threads_serve_requests_with_a_connection_each(
    server: RealtimeServer, guests: Guests, shop: Shop
) -> None:
    gunicorn = shop("gthread", "--threads", "4", "--keep-alive", "30", preload=True, workers=WORKERS)
    guests.wait(WORKERS)
    pids: set[int] = set()

    def ask(number: int) -> None:
        client = Client(gunicorn.address)
        for turn in range(25):
            pids.add(client.get(("/", "/visit?topic=room", "/visit?topic=room&left=with")[(number + turn) % 3])["pid"])
        client.close()

    in_threads(16, ask)
    assert pids <= set(guests.call(WORKERS)), "which of them accept a connection is up to the system"
    assert (server.connections_total, len(server.joins()), len(server.leaves())) == (WORKERS, WORKERS, 0)
    gunicorn.ends()

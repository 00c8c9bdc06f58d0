"""Requests that open Channels and leave them, or end, leave nothing behind in a real gunicorn."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from rtpool.testing import RealtimeServer
from tests.servers.conftest import Guests
from tests.servers.gunicorn import Shop
from tests.servers.requests import Client, in_threads
from tests.support.wait import wait_until

#: All of them by RTPOOL_REQUESTS=10000.
REQUESTS = int(os.environ.get("RTPOOL_REQUESTS", "800"))
THREADS, WORKERS = 8, 2


@pytest.fixture
def server() -> Iterator[RealtimeServer]:
    """One that remembers every join and leave."""
    with RealtimeServer(record_limit=100_000, max_concurrent_users=1_000) as server:
        yield server


def _path(thread: int, number: int) -> str:
    """By turns a topic that the worker is on already, one that others visit, and one that nobody else does."""
    topic = ("room", f"shared-{number % 3}", f"own-{thread}-{number}")[number % 3]
    return f"/visit?topic={topic}&left={('with', 'teardown')[number // 3 % 2]}"


@pytest.mark.timeout(600)
def test_each_join_for_a_request_is_left_again_and_no_channel_is_forgotten(
    server: RealtimeServer, guests: Guests, shop: Shop
) -> None:
    gunicorn = shop("gthread", "--threads", "4", "--keep-alive", "30")
    guests.wait(WORKERS)

    def visit(thread: int) -> None:
        client = Client(gunicorn.address)
        for number in range(REQUESTS // THREADS):
            client.get(_path(thread, number))
        client.close()

    in_threads(THREADS, visit)
    own = [record for record in server.joins() if record.topic.startswith("own-")]
    assert len(own) == THREADS * len([n for n in range(REQUESTS // THREADS) if n % 3 == 2])
    wait_until(lambda: len(server.joins()) - len(server.leaves()) == WORKERS, "every join but the workers' was left")
    assert len(server.joins("room")) == WORKERS
    assert server.members("room") == WORKERS
    told: dict[int, tuple[int, int]] = {}

    def asked() -> bool:
        answer = gunicorn.get("/stats")
        told[answer["pid"]] = answer["channels"], answer["joins"]  # type: ignore[index, assignment]
        return len(told) == WORKERS

    wait_until(asked, "both workers told what they have")
    assert {joins for _, joins in told.values()} == {1}
    assert {channels for channels, _ in told.values()} == {1}, "a Channel for the callbacks, and no other"
    gunicorn.ends()

"""Bytes are counted over every socket there ever was: no look at any moment sees fewer than one before."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

import rtpool
from rtpool.engine import connection, connections, transport
from rtpool.testing import RealtimeServer
from tests.conftest import MakePool
from tests.support.wait import CAP, wait_until

#: Where sockets come and go, and are counted.
WATCHED = {module.__file__ for module in (connection, connections, transport)}

Counts = tuple[int, int]


def counts(pool: rtpool.RealtimePool) -> Counts:
    stats = pool.stats()
    return stats.bytes_received, stats.bytes_sent


def before_each_line(act: Callable[[str], None]) -> Callable[[FrameType, str, Any], Any]:
    """A trace function that acts before each line of what is watched, told whose line it is."""

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line":
            act(frame.f_code.co_name)
        return trace

    return trace


@pytest.fixture
def pool(make_pool: MakePool) -> rtpool.RealtimePool:
    """With a socket for each Channel."""
    return make_pool(max_channels_per_connection=1, cleanup_interval=60.0)


def test_between_no_two_lines_of_the_thread_that_closes_a_socket_a_count_falls(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    room, other = pool.channel("room").subscribe(), pool.channel("other").subscribe()
    seen = [counts(pool)]
    within: set[str] = set()

    def look(where: str) -> None:
        within.add(where)
        seen.append(counts(pool))

    before: list[Any] = []
    pool._engine.post(lambda: before.append(sys.gettrace()) or sys.settrace(before_each_line(look)))
    server.connections[0].abort()
    server.wait_for(lambda s: s.connections_total == 3 and s.members("room"))
    wait_until(lambda: room.is_subscribed)
    other.unsubscribe()
    assert pool.force_cleanup() == 1
    wait_until(lambda: pool.stats().total_connections == 1)
    pool._engine.post(lambda: sys.settrace(before[0]))
    assert pool.close(CAP)
    seen.append(counts(pool))
    assert within >= {"open", "close_socket", "say_goodbye", "_closed", "_gone", "_account"}
    for counted in zip(*seen, strict=True):
        assert list(counted) == sorted(counted)


class Look(threading.Thread):
    """A look from another thread that stands still before one of its lines, if it has so many."""

    def __init__(self, pool: rtpool.RealtimePool, number: int) -> None:
        super().__init__()
        self._pool, self._left = pool, number
        self.stands, self.goes_on = threading.Event(), threading.Event()
        self.seen: Counts | None = None

    def _pause(self, _: str) -> None:
        self._left -= 1
        if not self._left:
            self.stands.set()
            assert self.goes_on.wait(CAP)

    def run(self) -> None:
        sys.settrace(before_each_line(self._pause))
        try:
            self.seen = counts(self._pool)
        finally:
            sys.settrace(None)
            self.stands.set()


def test_in_the_middle_of_a_look_no_socket_that_is_closed_is_counted_twice_or_not_at_all(
    pool: rtpool.RealtimePool,
) -> None:
    pool.channel("room").subscribe()
    other = pool.channel("other")
    for number in itertools.count(1):
        other.subscribe()
        before, look = counts(pool), Look(pool, number)
        look.start()
        assert look.stands.wait(CAP)
        if look.seen is not None:  # it has no such line
            break
        other.unsubscribe()
        assert pool.force_cleanup() == 1
        wait_until(lambda: pool.stats().total_connections == 1)
        look.goes_on.set()
        look.join(CAP)
        assert look.seen is not None
        for earlier, found, later in zip(before, look.seen, counts(pool), strict=True):
            assert earlier <= found <= later, f"before line {number}"
    assert number > 20

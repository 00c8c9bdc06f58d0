"""Suspends and clock jumps: by injected clocks, and with a real pool that is told it slept."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone

import pytest

import rtpool
from rtpool.engine import clock_watch
from rtpool.engine.clock_watch import CHECK_SECONDS, ClockWatch
from rtpool.engine.clocks import boot_clock
from rtpool.testing import RealtimeServer
from tests.conftest import MakePool
from tests.support.recorder import Recorder


class World:
    """A loop and three clocks; `seen` is what the watch said."""

    def __init__(self, *, boot: bool = True) -> None:
        self.now, self.wall, self.booted = 1_000.0, 2_000.0, 3_000.0
        self.boot = (lambda: self.booted) if boot else None
        self.seen: list[tuple[str, float, float]] = []
        self._call: Callable[[], None] | None = None
        watch = ClockWatch(
            self,  # type: ignore[arg-type]
            resumed=lambda slept, stopped: self.seen.append(("resumed", slept, stopped)),
            stepped=lambda seconds: self.seen.append(("stepped", seconds, 0.0)),
            wall=lambda: self.wall,
        )
        watch.start()

    def clock(self) -> float:
        return self.now

    def call_later(self, delay: float, call: Callable[[], None]) -> None:
        assert delay == CHECK_SECONDS
        self._call = call

    def pass_time(self, *, slept: float = 0.0, stopped: float = 0.0, step: float = 0.0) -> None:
        """Until the next look at the clocks, and what happened meanwhile."""
        self.now += CHECK_SECONDS + stopped
        self.booted += CHECK_SECONDS + stopped + slept
        self.wall += CHECK_SECONDS + stopped + slept + step
        assert self._call is not None
        self._call()


@pytest.mark.parametrize("boot", [True, False])
def test_time_that_passes_says_nothing(boot: bool) -> None:
    world = World(boot=boot)
    for _ in range(100):
        world.pass_time(stopped=0.5, step=0.3)
    assert world.seen == []


@pytest.mark.parametrize("boot", [True, False])
def test_sleep_is_noticed_once(boot: bool) -> None:
    world = World(boot=boot)
    world.pass_time(slept=3_600.0)
    world.pass_time()
    assert world.seen == [("resumed", 3_600.0, 0.0)]


@pytest.mark.parametrize("boot", [True, False])
def test_a_process_that_was_stopped_is_noticed(boot: bool) -> None:
    world = World(boot=boot)
    world.pass_time(stopped=30.0)
    assert world.seen == [("resumed", 0.0, 30.0)]


@pytest.mark.parametrize("step", [-7_200.0, 7_200.0])
def test_a_clock_that_is_set_is_told_from_sleep_where_a_clock_knows(step: float) -> None:
    world = World()
    world.pass_time(step=step)
    world.pass_time()
    assert world.seen == [("stepped", step, 0.0)]


def test_without_such_a_clock_a_step_ahead_passes_for_sleep_and_one_back_does_not() -> None:
    world = World(boot=False)
    world.pass_time(step=60.0)
    world.pass_time(step=-60.0)
    assert world.seen == [("resumed", 60.0, 0.0), ("stepped", -60.0, 0.0)]


def test_sleep_and_a_step_in_one_are_both_told() -> None:
    world = World()
    world.pass_time(slept=60.0, step=-30.0)
    assert world.seen == [("resumed", 60.0, 0.0), ("stepped", -30.0, 0.0)]


@pytest.mark.skipif(sys.platform != "linux", reason="the clock is Linux's")
def test_linux_has_a_clock_that_knows_of_sleep() -> None:
    clock = boot_clock()
    assert clock is not None
    assert clock() <= clock()


def subscribed_long_ago(channel: rtpool.Channel) -> None:
    attachment = channel._subscriber.attachment
    assert attachment is not None
    assert attachment.flowing_since is not None
    attachment.flowing_since -= timedelta(days=1)


def test_after_a_suspend_a_dead_connection_is_left_at_once_and_the_gap_covers_the_sleep(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(clock_watch, "CHECK_SECONDS", 0.05)
    pool, gaps = make_pool(heartbeat_interval=3_600, heartbeat_timeout=0.2), Recorder()
    clock, asleep = boot_clock() or (lambda: 0.0), [0.0]
    pool._engine.loop.boot = lambda: clock() + asleep[0]
    subscribed_long_ago(pool.channel("room").on_gap(gaps).subscribe())
    server.connections[0].freeze()
    before = datetime.now(timezone.utc)
    asleep[0] = 600.0
    (gap,) = gaps.wait(1)
    assert gap.cause == "heartbeat"
    assert gap.lost_from <= before - timedelta(seconds=600)
    assert server.connections_total == 2
    assert "stood still for 600." in caplog.text


def test_after_a_suspend_a_connection_that_lives_is_kept(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock_watch, "CHECK_SECONDS", 0.05)
    beats = Recorder()
    pool = make_pool(heartbeat_interval=3_600).on_heartbeat(beats)
    clock, asleep = boot_clock() or (lambda: 0.0), [0.0]
    pool._engine.loop.boot = lambda: clock() + asleep[0]
    pool.channel("room").subscribe()
    asleep[0] = 600.0
    assert [beat.status for beat in beats.wait(2)][:2] == ["sent", "ok"]
    assert server.connections_total == 1
    assert pool.stats().gaps == 0


def test_a_connection_that_breaks_on_waking_has_a_gap_that_begins_before_the_sleep(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    pool, gaps = make_pool(), Recorder()
    clock, asleep = boot_clock() or (lambda: 0.0), [0.0]
    pool._engine.loop.boot = lambda: clock() + asleep[0]
    subscribed_long_ago(pool.channel("room").on_gap(gaps).subscribe())
    before = datetime.now(timezone.utc)
    asleep[0] = 3_600.0
    server.connections[0].abort()  # before anybody looked at the clocks
    (gap,) = gaps.wait(1)
    assert gap.lost_from <= before - timedelta(seconds=3_590)

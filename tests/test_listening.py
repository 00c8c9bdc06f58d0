"""What a pool tells of itself: heartbeats to listen to, and a logger of one's own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import rtpool
from rtpool.testing import RealtimeServer
from tests.conftest import MakePool
from tests.support.recorder import Recorder


def test_heartbeats_are_told_with_their_latency(server: RealtimeServer, make_pool: MakePool) -> None:
    pool, beats = make_pool(heartbeat_interval=0.05), Recorder()
    assert pool.on_heartbeat(beats) is pool
    pool.channel("room").subscribe()
    events = beats.wait(6)[:6]
    assert [beat.status for beat in events] == ["sent", "ok"] * 3
    assert {beat.connection_id for beat in events} == {1}
    assert all(beat.latency is None for beat in events[::2])
    assert all(0 < beat.latency < 10 for beat in events[1::2])


def test_a_heartbeat_that_is_not_answered_is_told_before_the_connection_is_left(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    pool = make_pool(heartbeat_interval=0.1, heartbeat_timeout=0.2)
    beats: list[rtpool.Heartbeat] = []
    recorder = Recorder()

    @pool.on_heartbeat()
    def heard(beat: rtpool.Heartbeat) -> None:
        beats.append(beat)
        recorder(beat)

    pool.channel("room").subscribe()
    server.connections[0].freeze()
    lost = recorder.wait_for(lambda events: [e for e in events if e.status == "timeout"])
    (timeout,) = [beat for beat in lost if beat.status == "timeout"]
    assert timeout.latency is not None
    assert timeout.latency >= 0.2


def test_a_heartbeat_listener_that_raises_harms_nothing(server: RealtimeServer, make_pool: MakePool) -> None:
    pool, beats = make_pool(heartbeat_interval=0.05), Recorder()
    pool.on_heartbeat(lambda beat: 1 / 0).on_heartbeat(beats)
    pool.channel("room").subscribe()
    beats.wait(4)
    assert pool.stats().callback_errors >= 2


def test_a_heartbeat_listener_must_be_callable(pool: rtpool.RealtimePool) -> None:
    with pytest.raises(rtpool.InvalidType, match="callable"):
        pool.on_heartbeat(7)  # type: ignore[call-overload]


class Keeping(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def mine() -> Iterator[tuple[logging.Logger, Keeping]]:
    """A logger of one's own, and what it got."""
    logger, handler = logging.getLogger("mine"), Keeping()
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(handler)
    yield logger, handler
    logger.removeHandler(handler)
    logger.propagate = True


def use(server: RealtimeServer, make_pool: MakePool, logger: Any) -> None:
    pool = make_pool(logger=logger, debug=True)
    channel = pool.channel("room").on_broadcast("x", lambda m: 1 / 0).subscribe()
    done = Recorder()
    pool.on_callback_error(lambda error, callback, event: done(error))
    server.broadcast("room", "x", {})
    done.wait(1)
    server.connections[0].abort()
    server.wait_for(lambda s: s.connections_total == 2 and s.members("room"))
    channel.unsubscribe()
    assert pool.close()


def test_a_logger_of_ones_own_gets_everything_and_the_librarys_nothing(
    server: RealtimeServer,
    make_pool: MakePool,
    mine: tuple[logging.Logger, Keeping],
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger, handler = mine
    with caplog.at_level(logging.DEBUG):
        use(server, make_pool, logger)
    assert {record.name for record in handler.records} == {"mine.io", "mine.pool", "mine.session"}
    words = [record.getMessage() for record in handler.records]
    assert any("raised" in word for word in words)
    assert any("lost" in word for word in words)
    assert not [r for r in caplog.records if r.name.startswith("rtpool")]
    assert not [word for word in words if server.api_key in word]


def test_a_logger_adapter_adds_its_own_to_every_line(
    server: RealtimeServer, make_pool: MakePool, mine: tuple[logging.Logger, Keeping]
) -> None:
    class Tagging(logging.LoggerAdapter):  # type: ignore[type-arg]
        def process(self, msg: Any, kwargs: Any) -> Any:
            return f"[tenant 7] {msg}", kwargs

    logger, handler = mine
    use(server, make_pool, Tagging(logger, {}))
    assert handler.records
    assert all(record.getMessage().startswith("[tenant 7] ") for record in handler.records)


def test_a_logger_that_is_none_is_refused(server: RealtimeServer) -> None:
    with pytest.raises(rtpool.InvalidType, match="option logger must be Logger or LoggerAdapter or None, not function"):
        rtpool.RealtimePool(server.url, api_key="k", logger=lambda kind, words: None)


class Broken(logging.LoggerAdapter):  # type: ignore[type-arg]
    """A logger of the user's own that fails at every line."""

    def process(self, msg: Any, kwargs: Any) -> Any:
        raise RuntimeError("no disk")


def test_a_logger_that_raises_takes_no_thread_along(
    server: RealtimeServer, make_pool: MakePool, capfd: pytest.CaptureFixture[str]
) -> None:
    use(server, make_pool, Broken(logging.getLogger("mine"), {}))
    assert "the logger of a pool raised RuntimeError('no disk')" in capfd.readouterr().err


def test_a_failure_of_the_loop_is_told_though_the_logger_raises(server: RealtimeServer, make_pool: MakePool) -> None:
    pool = make_pool(logger=Broken(logging.getLogger("mine"), {}))
    pool.channel("room").subscribe()

    def fail() -> None:
        raise RuntimeError("a bug")

    pool._engine.loop.post(fail)
    assert pool._engine.ended.wait(10)
    assert pool.closed


def test_heartbeats_that_nobody_takes_do_not_pile_up(server: RealtimeServer, make_pool: MakePool) -> None:
    release, first = threading.Event(), threading.Event()
    pool = make_pool(heartbeat_interval=0.001)

    @pool.on_heartbeat()
    def stuck(beat: rtpool.Heartbeat) -> None:
        first.set()
        release.wait(30)

    pool.channel("room").subscribe()
    assert first.wait(10)
    server.wait_for(lambda s: [m.event for m in s.received].count("heartbeat") > 120, 30)
    assert pool._engine._heartbeats_waiting <= 100
    release.set()

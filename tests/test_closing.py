"""
Close: wherever a pool is, whoever closes it, whatever is stuck, it is in time, tells the truth and leaves nothing.

The matrix is played in part by default; ``RTPOOL_CLOSE_ROUNDS=200`` plays 200 rounds of it::

    RTPOOL_CLOSE_ROUNDS=200 python -m pytest tests/test_closing.py -k matrix -o faulthandler_timeout=0

A round plays, for each place a pool may be in, the next cell of a shuffled deck of all its cells, which is dealt again
when it is used up. Those that cannot end well get 0.1 s in place of the default 5 s, and those whose peer does not
answer 1 s; of many rounds the first cell of each place gets the default.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import signal
import socket
import ssl
import statistics
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import rtpool
from rtpool.engine import outgoing, streams
from rtpool.engine.dialer import Endpoint, dial
from rtpool.engine.outgoing import SendBudget
from rtpool.engine.streams import Cancelled
from rtpool.testing import RealtimeServer, faults
from tests.conftest import Figure, MakePool
from tests.support import checking_lock
from tests.support.closing import Outsider, cells_of, play
from tests.support.recorder import Recorder
from tests.support.stages import PLACES, Cell, black_hole, pool_threads
from tests.support.wait import CAP, wait_until

ROUNDS = int(os.environ.get("RTPOOL_CLOSE_ROUNDS", "6"))
#: Seconds a close takes at the most that nothing holds up, on a busy machine; a mutual wait is one of 5 s.
PROMPT = 2.0


@pytest.fixture
def outsider(server: RealtimeServer) -> Iterator[Outsider]:
    another = Outsider(server)
    yield another
    assert another.pool.close()


def played(server: RealtimeServer, outsider: Outsider, cell: Cell, **how: Any) -> float:
    try:
        return play(server, outsider, cell, **how)
    except BaseException as error:
        raise AssertionError(f"{cell}: {error!r}") from error


@pytest.mark.timeout(120 + 30 * ROUNDS)
@pytest.mark.parametrize("place", PLACES)
def test_the_close_matrix(server: RealtimeServer, outsider: Outsider, figure: Figure, place: str) -> None:
    cells = cells_of(place)
    deck: list[Cell] = []
    closes: list[tuple[float, str]] = []
    for number in range(ROUNDS):
        deck = deck or random.sample(cells, len(cells))
        cell = deck.pop()
        hasty = number > 0 or ROUNDS <= 6
        closes.append((played(server, outsider, cell, hasty=hasty), str(cell)))
    median, (worst, where) = statistics.median(seconds for seconds, _ in closes), max(closes)
    figure(f"{len(closes)} closes of {len(cells)} cells: median {median:.4f} s, worst {worst:.3f} s ({where})")


@pytest.mark.parametrize("timeout", [0, 0.3])
def test_a_close_that_may_take_hardly_any_time_is_in_time_and_all_ends_afterwards(
    server: RealtimeServer, outsider: Outsider, timeout: float
) -> None:
    for place, where in PLACES.items():
        stuck = "a silent peer" if where.is_open else "nothing"
        played(server, outsider, Cell(place, "another thread", stuck), timeout=timeout)


@pytest.mark.parametrize("place", ["connected and idle", "joined"])
def test_a_close_that_nothing_holds_up_takes_milliseconds(
    server: RealtimeServer, outsider: Outsider, figure: Figure, place: str
) -> None:
    seconds = [played(server, outsider, Cell(place, "the main thread", "nothing")) for _ in range(20)]
    median = statistics.median(seconds)
    figure(f"median {median * 1000:.1f} ms, worst {max(seconds) * 1000:.1f} ms")
    assert median < 0.1


# Who waits for whom


def test_callbacks_that_close_their_pool_at_once_do_not_wait_for_each_other(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    pool, outcomes, barrier, more = make_pool(), Recorder(), threading.Barrier(4), threading.Event()

    def close(message: rtpool.Broadcast) -> None:
        barrier.wait(CAP)
        begun = time.monotonic()
        outcomes((pool.close(), time.monotonic() - begun))
        assert more.wait(CAP)  # what a callback does after close() is its own business

    for number in range(4):
        pool.channel(f"room-{number}").on_broadcast("*", close).subscribe()
    for number in range(4):
        server.broadcast(f"room-{number}", "x", {})
    seen = outcomes.wait(4)
    assert [stopped for stopped, _ in seen] == [True] * 4
    assert max(seconds for _, seconds in seen) < PROMPT
    more.set()
    assert pool.close()
    assert not pool_threads(pool)


def test_pools_whose_callbacks_close_each_other_do_not_wait_for_each_other(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    pools, outcomes, barrier = [make_pool() for _ in range(3)], Recorder(), threading.Barrier(3)

    def closes(other: rtpool.RealtimePool) -> Any:
        def close(message: rtpool.Broadcast) -> None:
            barrier.wait(CAP)
            begun = time.monotonic()
            outcomes((other.close(), time.monotonic() - begun))

        return close

    for number, pool in enumerate(pools):
        pool.channel(f"room-{number}").on_broadcast("*", closes(pools[number - 1])).subscribe()
    for number in range(3):
        server.broadcast(f"room-{number}", "x", {})
    seen = outcomes.wait(3)
    assert [stopped for stopped, _ in seen] == [True] * 3
    assert max(seconds for _, seconds in seen) < PROMPT
    assert all(pool.close() for pool in pools)


@pytest.mark.parametrize("who", ["a token callable", "a dial function", "a strategy"])
def test_user_code_on_a_dial_thread_may_close_the_pool(server: RealtimeServer, make_pool: MakePool, who: str) -> None:
    outcomes = Recorder()

    def close(*args: object) -> Any:
        outcomes(pool.close())
        raise OSError("no more")

    options: dict[str, Any] = {
        "a token callable": {"access_token": close},
        "a dial function": {"dial": close},
        "a strategy": {"reconnect": rtpool.ReconnectPolicy(wait=close)},
    }[who]
    pool = make_pool("http://127.0.0.1:9" if who == "a strategy" else None, **options)
    pool.channel("room").subscribe(wait=False)
    assert outcomes.wait(1) == [True]
    assert pool.close()
    assert not pool_threads(pool)


def test_a_log_handler_that_closes_the_pool_on_its_io_thread_is_not_kept_waiting(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    outcomes = Recorder()

    class Closing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "lost" in record.getMessage():
                begun = time.monotonic()
                outcomes((pool.close(), time.monotonic() - begun, threading.current_thread().name))

    logger = logging.Logger("apart")  # noqa: LOG001 - no other handler is to see what is told from within one
    logger.addHandler(Closing())
    pool = make_pool(logger=logging.LoggerAdapter(logger, {}))
    pool.channel("room").subscribe()
    server.connections[0].abort()
    stopped, seconds, thread = outcomes.wait(1)[0]
    assert thread.endswith("-io")
    assert seconds < PROMPT
    assert not stopped, "it cannot be said yet"
    assert pool.close()
    assert not pool_threads(pool)


@pytest.mark.parametrize("whose", ["engine", "budget", "dispatcher", "dialer"])
def test_a_lock_that_somebody_holds_keeps_no_close_beyond_its_time(
    server: RealtimeServer, make_pool: MakePool, whose: str
) -> None:
    pool, held, release = make_pool(), threading.Event(), threading.Event()
    pool.channel("room").subscribe()
    engine = pool._engine
    lock = (engine if whose == "engine" else getattr(engine, whose))._lock

    def hold() -> None:
        with lock:
            held.set()
            release.wait(CAP)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(CAP)
    begun = time.monotonic()
    stopped = pool.close(0.3)
    seconds = time.monotonic() - begun
    release.set()
    assert not stopped
    assert seconds < 0.3 + PROMPT
    holder.join(CAP)
    checking_lock.take_violations()  # the test's own: that is how to hold a lock well
    assert pool.close()
    assert not pool_threads(pool)


def test_the_handler_of_a_signal_may_close_the_pool_whatever_its_thread_was_at(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, closes = make_pool(), Recorder()
    channel = pool.channel("room").subscribe()

    def handle(number: int, frame: object) -> None:
        begun = time.monotonic()
        closes((pool.close(0.3), time.monotonic() - begun))

    def full(self: SendBudget, outgoing: object) -> None:
        if not closes.events:  # called with the lock of all who send held
            signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, handle)
    try:
        monkeypatch.setattr(SendBudget, "_full", full)
        with contextlib.suppress(rtpool.PoolClosed):  # or it was in time
            channel.send_broadcast("x", {}).result()
    finally:
        signal.signal(signal.SIGTERM, before)
    checking_lock.take_violations()  # a signal asks nobody
    ((stopped, seconds),) = closes.events
    assert not stopped, "the I/O thread waits for who was interrupted"
    assert seconds < 0.3 + PROMPT
    assert pool.close()
    assert not pool_threads(pool)


# Starting and dialling


def test_a_start_that_fails_while_the_pool_is_closed_leaves_nothing(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, errors = make_pool(), Recorder()
    reached, go_on = threading.Event(), threading.Event()

    def start() -> None:
        reached.set()
        assert go_on.wait(CAP)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(pool._engine.loop, "start", start)

    def subscribe() -> None:
        with pytest.raises(rtpool.ConnectionFailed):
            pool.channel("room").subscribe()
        errors(1)

    thread = threading.Thread(target=subscribe)
    thread.start()
    assert reached.wait(CAP)
    assert pool.close(0) is False, "it is being started"
    closing = threading.Thread(target=lambda: errors(pool.close()))
    closing.start()
    go_on.set()
    assert errors.wait(2).count(True) == 2, "the error, and that everything has stopped"
    thread.join(CAP)
    closing.join(CAP)
    assert not pool_threads(pool)
    pool.run_forever()  # which returns, for it has ended


def test_a_dial_is_broken_off_even_before_its_socket_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Cancelled.watch

    def watch_and_cancel(self: Cancelled, sock: socket.socket | None) -> None:
        watch(self, sock)
        self.cancel()  # now, when the dial believes that all is well

    monkeypatch.setattr(streams.Cancelled, "watch", watch_and_cancel)
    with black_hole() as port:
        options = rtpool.PoolOptions(connection_timeout=PROMPT)
        with pytest.raises(rtpool.PoolClosed):
            dial(Endpoint.from_url(f"http://127.0.0.1:{port}", "key"), options, Cancelled())


def test_a_connection_that_is_reset_as_tls_begins_leaves_no_descriptor() -> None:
    descriptors: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        class Resetting(ssl.SSLContext):
            def wrap_socket(self, sock: socket.socket, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
                descriptors.append(sock.fileno())
                peer, _ = listener.accept()
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                peer.close()
                wait_until(lambda: not is_connected(sock))
                return super().wrap_socket(sock, *args, **kwargs)

        options = rtpool.PoolOptions(ssl_context=Resetting(ssl.PROTOCOL_TLS_CLIENT))
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(rtpool.ConnectionFailed) as caught:
            dial(Endpoint.from_url(url, "key"), options, Cancelled())
        with pytest.raises(OSError, match="Bad file descriptor"):  # while the error, which knows every frame, lives
            os.fstat(descriptors[0])
        assert caught.value.retryable


def is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


# What was accepted


def test_a_slow_server_gets_everything_as_long_as_there_is_time(server: RealtimeServer, make_pool: MakePool) -> None:
    heard, outcomes = Recorder(), Recorder()
    listening, pool = make_pool(), make_pool()
    listening.channel("room").on_broadcast("said", heard).subscribe()
    channel = pool.channel("room").subscribe()
    left = pool.channel("left").subscribe()
    slow = server.connections[1]
    slow.pause_reading()
    pushes = [channel.send_broadcast("said", {"n": number, "pad": "x" * 5_000}) for number in range(100)]
    left.unsubscribe(timeout=0)
    wait_until(lambda: all(push.done() for push in pushes), "the kernel has taken everything")
    closing = threading.Thread(target=lambda: outcomes(pool.close()))
    closing.start()
    wait_until(lambda: pool.closed)
    begun = time.monotonic()

    def speaks_up() -> bool:
        server.broadcast("room", "other", {})  # a socket that was closed under it would be reset by this
        return time.monotonic() - begun > 2 * rtpool.engine.connections.GOODBYE_SECONDS

    wait_until(speaks_up, "the time has passed in which an idle peer has to answer")
    slow.resume_reading()
    assert outcomes.wait(1) == [True]
    heard.wait(100)
    assert heard.numbers == list(range(100))
    server.wait_for(lambda s: s.leaves("left"))
    assert [push.result(0) for push in pushes] == [None] * 100
    closing.join()


def test_pushes_that_wait_for_a_join_under_way_are_sent_when_it_is_joined(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    heard, pool = Recorder(), make_pool(max_events_per_second=1_000)
    make_pool().channel("room").on_broadcast("*", heard).subscribe()
    server.inject(faults.Delay(0.3), on=faults.Replying("phx_join", topic="room"))
    channel = pool.channel("room").subscribe(wait=False)
    server.wait_for(lambda s: len(s.joins("room")) == 2)
    pushes = [channel.send_broadcast("x", {"n": number}) for number in range(20)]
    assert pool.close()
    heard.wait(20)
    assert heard.numbers == list(range(20))
    assert [push.result(0) for push in pushes] == [None] * 20


@pytest.mark.parametrize("answer", ["none", "no", "a lost connection"])
def test_pushes_that_wait_for_a_join_in_vain_are_told(server: RealtimeServer, make_pool: MakePool, answer: str) -> None:
    pool, outcomes = make_pool(base_delay=30.0), Recorder()
    pool.connect()
    fault = server.inject(faults.Drop(), on=faults.Replying("phx_join"))
    channel = pool.channel("room").subscribe(wait=False)
    fault.wait()
    push = channel.send_broadcast("x", {})
    closing = threading.Thread(target=lambda: outcomes(pool.close(CAP if answer != "none" else 0.5)))
    closing.start()
    wait_until(lambda: pool._engine.coordinator._parting, "it waits for the join")
    connection, (join,) = server.connections[0], server.joins("room")
    if answer == "no":
        reply = {"status": "error", "response": {"reason": "no"}}
        connection.send_text(json.dumps([join.join_ref, join.join_ref, "realtime:room", "phx_reply", reply]))
    elif answer != "none":
        connection.abort()
    assert outcomes.wait(1) == [True]
    with pytest.raises(rtpool.RtpoolError):
        push.result(0)
    closing.join()


def test_the_servers_answer_is_read_though_a_full_mailbox_blocks_the_socket(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    pool, release, outcomes = make_pool(overflow="block", mailbox_limit=5), threading.Event(), Recorder()
    channel = pool.channel("room").on_broadcast("*", lambda message: release.wait(CAP)).subscribe()
    for number in range(30):
        server.broadcast("room", "x", {"n": number})
    (connection,) = pool._engine.coordinator.connections.all
    wait_until(lambda: connection.paused_by, "the socket is not read")
    channel.send_broadcast("mine", {}).result()

    def close() -> None:
        begun = time.monotonic()
        outcomes((pool.close(), time.monotonic() - begun))

    closing = threading.Thread(target=close)
    closing.start()
    wait_until(lambda: connection.state != "open")
    release.set()
    ((stopped, seconds),) = outcomes.wait(1)
    assert stopped
    assert seconds < PROMPT
    closing.join()


def test_what_cannot_be_sent_in_time_is_told_to_its_push(server: RealtimeServer, make_pool: MakePool) -> None:
    pool, told = make_pool(), Recorder()
    channel, asking = pool.channel("room").subscribe(), pool.channel("asking", ack=True).subscribe()
    server.connections[0].pause_reading()
    pushes = [asking.send_broadcast("x", {})]
    pushes += [channel.send_broadcast("x", bytes(1_000_000)) for _ in range(12)]
    pushes += [channel.send_broadcast("x", {}), channel.track({})]
    for push in pushes:
        push.add_done_callback(told)
    assert pool.close(2.0)
    assert all(push.done() for push in pushes)
    assert len(told.events) == len(pushes), "every callback was called"
    for push in (pushes[0], *pushes[-3:]):
        with pytest.raises((rtpool.ConnectionFailed, rtpool.PoolClosed)):
            push.result(0)


def test_a_push_that_waits_for_room_when_the_pool_closes_is_told_why(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing, "MAX_OUTSTANDING_BYTES", 1_000)
    pool, errors = make_pool(), Recorder()
    channel = pool.channel("room", ack=True).subscribe()
    server.connections[0].freeze()
    channel.send_broadcast("x", {"pad": "x" * 990})

    def push() -> None:
        with pytest.raises(rtpool.RtpoolError) as caught:
            channel.send_broadcast("x", {"pad": "x" * 990}, timeout=CAP).result()
        errors(type(caught.value))

    thread = threading.Thread(target=push)
    thread.start()
    wait_until(lambda: pool._engine.budget._room._ears, "a caller waits for room")
    assert pool.close(0.5)
    assert errors.wait(1) == [rtpool.PoolClosed]
    thread.join()


def test_a_callback_that_is_added_after_the_close_is_told_of_in_the_log(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool()
    push = pool.channel("room").subscribe().send_broadcast("x", {})
    push.result()
    assert pool.close()
    push.add_done_callback(print)
    assert "a callback of push 'x' on 'room' comes after close() and is not called" in caplog.text

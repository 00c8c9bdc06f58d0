"""Forks at the wrong moment: in the middle of a close, an outage, a first dial, a full mailbox; and twice."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

import rtpool
from rtpool.engine import descriptors
from rtpool.engine.connection import UNDER_WAY
from rtpool.testing import RealtimeServer, faults
from tests.conftest import MakePool
from tests.support.checking_lock import WATCHES_CALLS, take_violations
from tests.support.forking import Child, Link, ask, fork
from tests.support.recorder import Recorder
from tests.support.tap import Tap
from tests.support.wait import wait_until

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")

MODES = ("close", "resubscribe")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """A file that a thread writes to at a fork is locked in the child for ever, the log's too; CPython has it so."""
    logging.disable(logging.INFO)
    yield
    logging.disable(logging.NOTSET)


def now() -> datetime:
    return datetime.now(timezone.utc)


def outcome(call: Callable[[], Any]) -> str:
    """What a call returns or the class of what it raises, in words that go through a pipe."""
    try:
        return repr(call())
    except Exception as error:
        return type(error).__name__


# Pools that close, Channels that left


@pytest.mark.parametrize("mode", MODES)
def test_a_pool_that_is_closing_at_the_fork_is_closed_in_the_child_and_so_are_its_channels(
    server: RealtimeServer, make_pool: MakePool, mode: str
) -> None:
    pool = make_pool(after_fork=mode)
    channel = pool.channel("room").subscribe()
    events = channel.events()
    server.broadcast("room", "x", {"n": 1})
    next(events)
    server.connections[0].freeze()
    closing = threading.Thread(target=pool.close, args=(30.0,))
    closing.start()
    wait_until(lambda: pool.closed)

    def in_child() -> Any:
        stats = pool.stats()
        return (
            (str(channel.state), channel.is_subscribed, len(pool.channels())),
            (stats.connection_status, stats.total_connections, stats.total_subscriptions),
            outcome(lambda: next(events, None)),
            outcome(lambda: channel.get(timeout=0)),
            outcome(channel.subscribe),
            (pool.close(), pool.run_forever()),
        )

    assert ask(in_child) == (
        ("closed", False, 0),
        ("closed", 0, 0),
        "None",
        "NotSubscribed",
        "PoolClosed",
        (True, None),
    )
    server.connections[0].thaw()
    closing.join()


def test_an_iterator_of_a_channel_that_had_left_ends_in_the_child_as_it_does_in_the_parent(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    channel = pool.channel("room").subscribe()
    events = channel.events()
    server.broadcast("room", "x", {"n": 1})
    next(events)
    channel.unsubscribe()
    assert ask(lambda: next(events, None)) is None
    assert next(events, None) is None


def test_a_child_of_a_child_knows_as_much_as_the_child(pool: rtpool.RealtimePool) -> None:
    told = Recorder()
    channel = pool.channel("room").on_status(told).subscribe()
    told.wait_for(lambda events: events[-1].status == "joined")

    def grandchild() -> Any:
        errors = [outcome(lambda: channel.get(timeout=0)), outcome(lambda: channel.send_broadcast("x", {}))]
        told.events.clear()
        channel.subscribe()
        events = told.wait_for(lambda events: events[-1].status == "joined")
        return errors, [(event.status, type(event.error).__name__) for event in events]

    assert ask(lambda: ask(grandchild)) == (
        ["PoolForked", "PoolForked"],
        [("closed", "PoolForked"), ("joining", "NoneType"), ("joined", "NoneType")],
    )


def test_the_outcome_of_a_push_that_was_known_before_the_fork_is_known_in_the_child(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    channel = pool.channel("room", ack=True).subscribe()
    good = channel.send_broadcast("x", {})
    good.result()
    server.connections[0].freeze()
    bad = channel.send_broadcast("x", {}, timeout=0.01)
    with pytest.raises(rtpool.PushTimeout):
        bad.result()
    assert ask(lambda: (outcome(good.result), outcome(bad.result))) == ("{}", "PushTimeout")
    server.connections[0].thaw()


# What the Gap of a child covers


@pytest.fixture
def busy(server: RealtimeServer, make_pool: MakePool) -> Any:
    """A pool that subscribes again in a child, whose only worker is busy from a time long ago, and what ends that."""
    started, go = threading.Event(), threading.Event()
    pool = make_pool(
        after_fork="resubscribe",
        num_workers=1,
        mailbox_limit=16,
        base_delay=0.01,
        max_delay=0.01,
        heartbeat_interval=0.1,  # so that what was sent long ago is known to have come
    )
    pool.channel("other").on_broadcast("x", lambda _: (started.set(), go.wait(30))).subscribe()

    def begin() -> None:
        server.broadcast("other", "x", {})
        started.wait(10)

    yield pool, begin
    go.set()


def details(pool: rtpool.RealtimePool) -> Any:
    return next(d for d in pool.stats().subscription_details if d.topic == "room")


def pass_time() -> None:
    """Until what happened before is older than a message may be under way."""
    since = now()
    wait_until(lambda: now() - since > timedelta(seconds=2.5 * UNDER_WAY), "that is long ago")


def test_the_gap_of_a_child_covers_what_waited_before_an_outage_that_lasts_at_the_fork(
    server: RealtimeServer, busy: Any
) -> None:
    pool, begin = busy
    gaps = Recorder()
    channel = pool.channel("room").on_broadcast("*", lambda _: None).on_gap(gaps).subscribe()
    begin()
    sent_at = now()
    server.broadcast("room", "x", {})
    wait_until(lambda: details(pool).queued == 1)
    pass_time()
    server.disconnect_all()
    wait_until(lambda: not channel.is_subscribed)
    assert ask(lambda: gaps.wait(1)[0].lost_from) <= sent_at


def test_the_gap_of_a_child_covers_one_that_nobody_was_told_of(server: RealtimeServer, busy: Any) -> None:
    pool, begin = busy
    gaps = Recorder()
    heard = pool.channel("room").on_broadcast("*", lambda _: None).on_gap(gaps).subscribe()
    read = pool.channel("read").subscribe()
    begin()
    lost_at = now()
    server.disconnect_all()
    wait_until(lambda: pool.stats().gaps == 3 and heard.is_subscribed and read.is_subscribed)
    pass_time()

    def in_child() -> Any:
        gap = read.get(timeout=10)
        assert isinstance(gap, rtpool.Gap)
        return gap.lost_from, gaps.wait(1)[0].lost_from

    assert max(ask(in_child)) <= lost_at


def test_the_gap_of_a_child_covers_what_a_full_mailbox_had_lost_and_not_yet_said(
    server: RealtimeServer, busy: Any
) -> None:
    pool, begin = busy
    gaps = Recorder()
    pool.channel("room").on_broadcast("*", lambda _: None).on_gap(gaps).subscribe()
    begin()
    sent_at = now()
    for number in range(16):
        server.broadcast("room", "x", {"n": number})
    wait_until(lambda: details(pool).queued == 16)
    pass_time()
    for number in range(100):
        server.broadcast("room", "x", {"n": number})
    wait_until(lambda: details(pool).dropped == 100)
    assert ask(lambda: gaps.wait(1)[0].lost_from) <= sent_at


def test_stored_broadcasts_come_once_to_a_child_and_those_it_missed_are_replayed(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    pool = make_pool(
        after_fork="resubscribe",
        access_token=server.token(sub="someone"),
        base_delay=0.01,
        max_delay=0.01,
        max_retries=10_000,
    )
    heard, gaps = Recorder(), Recorder()
    server.database_send("room", "x", {"n": 0})
    channel = pool.channel("room", private=True, replay={"since": int(time.time() * 1000) - 1_000})
    channel.on_broadcast("*", heard).on_gap(gaps).subscribe()
    server.database_send("room", "x", {"n": 1})
    heard.wait(2)

    def child(link: Link) -> None:
        link.tell(gaps.wait(1)[0].replay)
        heard.wait(4)
        link.tell(heard.numbers)

    with server.inject(faults.Refuse(503), times=None) as refusals:
        forked = Child(child)
        refusals.wait(1)
        server.database_send("room", "x", {"n": 2})  # in the child's interruption
    with forked:
        assert forked.told() == 1
        server.database_send("room", "x", {"n": 3})
        assert forked.told() == [0, 1, 2, 3]
    heard.wait(4)
    assert heard.numbers == [0, 1, 2, 3]


# Sockets of the user's


class _Polite(socket.socket):
    """Says goodbye when it is closed, as some do."""

    def close(self) -> None:
        try:
            self.shutdown(socket.SHUT_RDWR)
        finally:
            super().close()


class _Failing(socket.socket):
    def close(self) -> None:
        super().close()
        raise RuntimeError("on purpose")


class _Unhashable(socket.socket):
    def __eq__(self, other: object) -> bool:
        return False


class _WithFile(socket.socket):
    """A file made of it keeps the descriptor open when it is closed."""

    kept: list[Any] = []


def open_in_child(*inodes: int) -> set[int]:
    """Which of these sockets a forked child has open."""

    def look() -> set[int]:
        there = set()
        for number in map(int, os.listdir("/proc/self/fd")):
            with contextlib.suppress(OSError):
                there.add(os.fstat(number).st_ino)
        return there & set(inodes)

    found: set[int] = ask(look)
    return found


@pytest.mark.parametrize("kind", [_Polite, _Failing, _Unhashable, _WithFile])
def test_a_socket_of_a_users_class_is_closed_in_the_child_without_its_own_methods(
    server: RealtimeServer, make_pool: MakePool, kind: type[socket.socket]
) -> None:
    def dial(host: str, port: int, seconds: float) -> socket.socket:
        plain = socket.create_connection((host, port), seconds)
        sock = kind(plain.family, plain.type, plain.proto, fileno=plain.detach())
        if kind is _WithFile:
            _WithFile.kept.append(sock.makefile("rb"))
        return sock

    with Tap(server.port) as tap:
        pools = [make_pool(f"http://127.0.0.1:{tap.port}", dial=given) for given in (dial, None)]
        channels = [pool.channel("room").subscribe() for pool in pools]
        socks = [pool._engine.coordinator.connections.all[0].transport.sock for pool in pools]  # type: ignore[union-attr]
        assert open_in_child(*(os.fstat(sock.fileno()).st_ino for sock in socks)) == set()
        for channel in channels:
            channel.send_broadcast("x", {}).result()
        assert not tap.ended
        for file in _WithFile.kept:
            file.close()
        _WithFile.kept.clear()
        for pool in pools:
            pool.close()


@pytest.mark.parametrize("where", ["made", "wrapped"])
def test_a_fork_never_comes_between_a_socket_and_the_note_of_it(
    make_pool: MakePool,
    certificates: tuple[ssl.SSLContext, ssl.SSLContext],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    inodes, go = Recorder(), threading.Event()

    def pause(sock: socket.socket) -> None:
        if not inodes.events:
            inodes(os.fstat(sock.fileno()).st_ino)
            go.wait(0.5)

    note, wrap = descriptors.note, ssl.SSLContext.wrap_socket

    def noting(sock: socket.socket) -> None:
        if where == "made":
            pause(sock)
        note(sock)

    def wrapping(self: ssl.SSLContext, sock: socket.socket, **options: Any) -> ssl.SSLSocket:
        wrapped = wrap(self, sock, **options)
        if not options.get("server_side") and where == "wrapped":
            pause(wrapped)
        return wrapped

    monkeypatch.setattr(descriptors, "note", noting)
    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", wrapping)
    serving, trusting = certificates
    with RealtimeServer(ssl_context=serving) as server:
        pool = make_pool(server.url, api_key=server.api_key, ssl_context=trusting)
        pool.channel("room").subscribe(wait=False)
        inode = inodes.wait(1)[0]
        assert open_in_child(inode) == set()
        go.set()
        pool.close()


def test_a_connection_ends_though_somebody_has_a_copy_of_its_descriptor(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    with Tap(server.port) as tap:
        pool = make_pool(f"http://127.0.0.1:{tap.port}")
        pool.channel("room").subscribe()
        (port,) = tap.sent
        copy = os.dup(pool._engine.coordinator.connections.all[0].fileno())
        server.connections[0].freeze()
        pool.close(timeout=0.5)
        wait_until(lambda: port in tap.ended, "the copy holds it open")
        os.close(copy)


# Locks that are not ours


def test_a_first_dial_imports_nothing_whose_lock_a_child_would_wait_for(server: RealtimeServer) -> None:
    code = (
        "import sys, rtpool\n"
        "pool = rtpool.RealtimePool(sys.argv[1], api_key=sys.argv[2], proxy=sys.argv[3] or None)\n"
        "before = set(sys.modules)\n"
        "try: pool.channel('room').subscribe(timeout=2)\n"
        "except rtpool.RtpoolError: pass\n"
        "pool.close()\n"
        "print(sorted(set(sys.modules) - before))\n"
    )
    for proxy in ("", f"socks5://127.0.0.1:{server.port}"):
        ran = subprocess.run(
            [sys.executable, "-c", code, server.url, server.api_key, proxy], capture_output=True, text=True, timeout=60
        )
        assert ran.stdout == "[]\n", ran


# Forks within a wait of rtpool's


def waited_for(future: Future[Any]) -> bool:
    return bool(future._condition._waiters)  # type: ignore[attr-defined]


def fork_within(wait: Callable[[], Any], ready: Callable[[], object], then: Callable[[], object]) -> tuple[Any, int]:
    """
    Have a signal handler fork while the main thread is in `wait`, and return in the child as in the parent.

    Returns:
        What `wait` returned in the parent, once `then` was called, and the child's exit code: 7 when it raised
        `PoolForked` there.
    """
    parent, children = os.getpid(), list[int]()

    def handle(_number: int, _frame: object) -> None:
        pid = fork()
        if pid:
            children.append(pid)
        else:
            signal.alarm(30)

    def kick() -> None:
        wait_until(ready)
        os.kill(parent, signal.SIGUSR1)
        wait_until(lambda: children)
        then()

    before = signal.signal(signal.SIGUSR1, handle)
    kicker = threading.Thread(target=kick)
    kicker.start()
    try:
        result = wait()
    except BaseException as error:
        if os.getpid() != parent:
            os._exit(7 if isinstance(error, rtpool.PoolForked) else 8)
        raise
    finally:
        if os.getpid() != parent:
            os._exit(9)
        kicker.join()
        signal.signal(signal.SIGUSR1, before)
    return result, os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1])


def test_a_child_made_within_result_is_told_that_the_push_is_the_parents(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    channel = pool.channel("room", ack=True).subscribe()
    server.connections[0].freeze()
    push = channel.send_broadcast("x", {})
    result = fork_within(push.result, lambda: push._outgoing.listeners, server.connections[0].thaw)
    assert result == ({}, 7)


def test_a_child_made_within_subscribe_is_told_that_the_subscription_is_the_parents(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    pool.connect()
    server.wait_for(lambda s: s.connections)
    server.connections[0].freeze()
    channel = pool.channel("room")

    def waits() -> bool:
        attachment = channel._subscriber.attachment
        return attachment is not None and bool(attachment.ready._ears)

    result = fork_within(channel.subscribe, waits, server.connections[0].thaw)
    assert result == (channel, 7)


def test_a_child_made_within_get_does_not_need_a_lock_that_another_thread_held(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    channel = pool.channel("room").subscribe()
    dispatcher = pool._engine.dispatcher
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        wait_until(lambda: dispatcher._news._ears)
        with dispatcher._lock:
            held.set()
            release.wait(30)

    def go_on() -> None:
        release.set()
        server.broadcast("room", "x", {"n": 1})

    holder = threading.Thread(target=hold)
    holder.start()
    event, code = fork_within(lambda: channel.get(timeout=20), held.is_set, go_on)
    holder.join()
    assert take_violations() or not WATCHES_CALLS  # the holder waits with a lock in hand, which nobody else may
    assert (event.payload, code) == ({"n": 1}, 7)

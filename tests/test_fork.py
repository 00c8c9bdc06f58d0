"""Promise 9: a forked child never touches its parent's sockets, and gets a pool that works."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import pickle
import signal
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

import rtpool
from rtpool.engine.connection import UNDER_WAY
from rtpool.testing import RealtimeServer
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


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("rtpool-")]


def descriptors() -> Counter[str]:
    """What the open sockets and selectors of this process are, and how many of each."""
    found = Counter[str]()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[os.readlink(f"/proc/self/fd/{number}")] += 1
    return Counter({name: count for name, count in found.items() if "socket" in name or "eventpoll" in name})


@pytest.fixture
def tap(server: RealtimeServer) -> Iterator[Tap]:
    with Tap(server.port) as tap:
        yield tap


# The default: closed in the child


def test_a_child_has_no_thread_no_copy_of_a_socket_and_a_pool_that_is_idle(pool: rtpool.RealtimePool) -> None:
    channel = pool.channel("room").on_broadcast("*", print).subscribe()
    sock = pool._engine.coordinator.connections.all[0].transport.sock  # type: ignore[union-attr]
    inode = os.readlink(f"/proc/self/fd/{sock.fileno()}")

    def look() -> Any:
        stats = pool.stats()
        return (
            threads(),
            inode in descriptors(),
            (pool.closed, stats.connection_status, stats.total_subscriptions, stats.messages_received),
            (str(channel.state), channel.is_subscribed, pool.channels()),
        )

    assert ask(look) == ([], False, (False, "idle", 0, 0), ("closed", False, []))
    assert channel.is_subscribed
    assert not pool._engine.forked


def test_every_descriptor_of_a_pool_is_closed_in_the_child_whatever_it_does(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    before = descriptors()
    for _ in range(3):
        make_pool().channel("room").subscribe()
    dialing = make_pool("http://127.0.0.1:9")
    dialing.channel("room").subscribe(wait=False)
    pipe = 1  # by which the child tells
    extra = ask(lambda: descriptors()) - before
    # Each has a selector and a wake-up pair, three a connection; and the server, in this process as well, its ends.
    assert (descriptors() - before).total() == 4 * 3 + 3 + 3
    assert extra.total() == pipe


def test_the_next_subscribe_reopens_with_the_callbacks_that_were_there(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    heard = Recorder()
    channel = pool.channel("room").on_broadcast("x", heard).subscribe()

    def child(link: Link) -> None:
        channel.subscribe()
        link.tell((channel.is_subscribed, sorted(threads()) != []))
        link.tell(heard.wait(1)[0].payload)
        link.tell(pool.close())

    with Child(child) as forked:
        assert forked.told() == (True, True)
        server.wait_for(lambda s: s.members("room") == 2)
        assert len({c.peer for c in server.connections}) == 2
        server.broadcast("room", "x", {"n": 7})
        assert forked.told() == {"n": 7}
        assert forked.told() is True
    server.wait_for(lambda s: s.members("room") == 1)
    assert heard.wait(1)[0].payload == {"n": 7}  # the parent noticed nothing
    assert channel.is_subscribed


def test_a_running_iterator_ends_with_pool_forked_and_so_does_get(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    channel = pool.channel("room").subscribe()
    events = channel.events()
    server.broadcast("room", "x", {"n": 1})
    assert next(events).payload == {"n": 1}  # type: ignore[union-attr]

    def in_child() -> list[str]:
        errors = []
        for call in (lambda: next(events), lambda: channel.get(timeout=1), lambda: channel.send_broadcast("x", {})):
            try:
                call()
            except rtpool.PoolForked as error:
                errors.append(str(error))
        return errors

    errors = ask(in_child)
    assert len(errors) == 3
    assert "'room'" in errors[0]
    assert "subscribe anew" in errors[0]
    server.broadcast("room", "x", {"n": 2})
    assert next(events).payload == {"n": 2}  # type: ignore[union-attr]


def test_a_channel_that_was_never_subscribed_is_no_different_in_a_child(pool: rtpool.RealtimePool) -> None:
    channel = pool.channel("room")
    pool.channel("other").subscribe()

    def in_child() -> str:
        with pytest.raises(rtpool.NotSubscribed):
            channel.send_broadcast("x", {})
        with channel:
            return str(channel.state)

    assert ask(in_child) == "joined"


def test_pushes_of_the_parent_end_in_the_child_and_go_on_in_the_parent(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    channel = pool.channel("room", ack=True).subscribe()
    server.connections[0].freeze()
    push = channel.send_broadcast("x", {"n": 1})

    def in_child() -> tuple[bool, str]:
        with pytest.raises(rtpool.PoolForked) as caught:
            push.result()
        with pytest.raises(rtpool.PoolForked):
            push.add_done_callback(print)
        return push.done(), str(caught.value)

    assert ask(in_child) == (True, "push 'x' on 'room' is the parent process's; it may or may not be sent")
    assert not push.done()
    server.connections[0].thaw()
    push.result(timeout=10)
    assert [m.event for m in server.received if m.topic == "realtime:room"].count("broadcast") == 1


def test_a_status_listener_of_the_child_hears_why_its_channel_was_closed(pool: rtpool.RealtimePool) -> None:
    told = Recorder()
    channel = pool.channel("room").on_status(told).subscribe()
    told.wait_for(lambda events: events[-1].status == "joined")

    def in_child() -> list[Any]:
        told.events.clear()
        channel.subscribe()
        events = told.wait_for(lambda events: events[-1].status == "joined")
        return [(event.status, type(event.error).__name__) for event in events]

    assert ask(in_child) == [("closed", "PoolForked"), ("joining", "NoneType"), ("joined", "NoneType")]


def test_listeners_tokens_and_hooks_of_the_pool_live_on_in_the_child(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    told, trouble = Recorder(), Recorder()
    pool = make_pool().on_status(told)
    pool.on_callback_error(lambda error, callback, event: trouble(str(error)))
    token = server.token(sub="newest")
    pool.set_auth(token)

    def fail(event: object) -> None:
        raise ValueError("on purpose")

    channel = pool.channel("room").on_broadcast("*", fail).subscribe()

    def child(link: Link) -> None:
        told.events.clear()
        channel.subscribe()
        statuses = [event.status for event in told.wait_for(lambda events: events[-1].status == "connected")]
        link.tell(statuses)
        link.tell(trouble.wait(1))

    with Child(child) as forked:
        assert forked.told()[-1] == "connected"
        server.wait_for(lambda s: s.members("room") == 2)
        server.broadcast("room", "x", {})
        assert forked.told() == ["on purpose"]
    assert [join.payload["access_token"] for join in server.joins("room")] == [token, token]


# Subscribed again in the child


def test_with_resubscribe_a_child_has_a_connection_and_joins_of_its_own_at_once(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    pool = make_pool(after_fork="resubscribe")
    heard, told, gaps = Recorder(), Recorder(), Recorder()
    channels = [
        pool.channel(topic).on_broadcast("*", heard).on_status(told).on_gap(gaps).subscribe() for topic in ("a", "b")
    ]
    parent = server.connections[0].peer
    before = len(told.wait_for(lambda events: [e.status for e in events].count("joined") == 2))

    def child(link: Link) -> None:
        events = told.wait_for(lambda events: [e.status for e in events[before:]].count("joined") == 2)
        link.tell([(e.topic, e.status) for e in events[before:]])
        link.tell([(gap.topic, gap.cause, gap.lost_from < gap.lost_to) for gap in gaps.wait(2)])
        heard.wait(2)
        link.tell(heard.numbers)
        assert all(channel.is_subscribed for channel in channels)

    with Child(child) as forked:
        statuses = forked.told()
        assert [s for t, s in statuses if t == "a"] == ["rejoining", "joining", "joined"]
        assert sorted(forked.told()) == [("a", "fork", True), ("b", "fork", True)]
        server.wait_for(lambda s: s.members("a") == s.members("b") == 2)
        assert len(server.connections) == 2
        assert server.connections[0].peer == parent
        server.broadcast("a", "x", {"n": 1})
        heard.wait(1)  # so that the child's two callbacks cannot pass each other
        server.broadcast("b", "x", {"n": 2})
        assert sorted(forked.told()) == [1, 2]
    server.wait_for(lambda s: s.members("a") == s.members("b") == 1)
    assert not gaps.events, "the parent noticed"
    assert server.joins("a")[0].connection_id != server.joins("a")[1].connection_id


def test_with_resubscribe_a_running_iterator_goes_on_with_the_gap_told_first(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    channel = make_pool(after_fork="resubscribe").channel("room").subscribe()
    events = channel.events()
    server.broadcast("room", "x", {"n": 1})
    next(events)

    def child(link: Link) -> None:
        first = next(events)
        assert isinstance(first, rtpool.Gap), first
        link.tell(first.cause)
        link.tell(next(events).payload)  # type: ignore[union-attr]

    with Child(child) as forked:
        assert forked.told() == "fork"
        server.broadcast("room", "x", {"n": 2})
        assert forked.told() == {"n": 2}
    assert next(events).payload == {"n": 2}  # type: ignore[union-attr]


def test_the_gap_of_a_child_covers_what_waited_for_its_callback_in_the_parent(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    pool = make_pool(after_fork="resubscribe")
    started, go = threading.Event(), threading.Event()
    gaps = Recorder()

    def slow(event: object) -> None:
        started.set()
        go.wait(30)

    pool.channel("room").on_broadcast("*", slow).on_gap(gaps).subscribe()
    sent_at = datetime.now(timezone.utc)
    for number in range(3):
        server.broadcast("room", "x", {"n": number})
    assert started.wait(10)
    wait_until(lambda: pool.stats().subscription_details[0].received == 3)
    wait_until(lambda: datetime.now(timezone.utc) - sent_at > timedelta(seconds=UNDER_WAY), "that is long ago")
    try:
        assert ask(lambda: gaps.wait(1)[0].lost_from) <= sent_at
    finally:
        go.set()


def test_with_resubscribe_presence_is_told_again_by_the_child(server: RealtimeServer, make_pool: MakePool) -> None:
    pool = make_pool(after_fork="resubscribe")
    channel = pool.channel("room", presence_key="me").on_presence_sync(lambda _: None).subscribe()
    channel.track({"who": "me"}).result()

    def child(link: Link) -> None:
        link.wait()

    with Child(child) as forked:
        wait_until(lambda: len(server.presence("room")["me"]["metas"]) == 2, "both are present")
        forked.go()
    wait_until(lambda: len(server.presence("room")["me"]["metas"]) == 1, "the parent still is")


def test_with_resubscribe_a_channel_that_left_before_the_fork_stays_away(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    pool = make_pool(after_fork="resubscribe")
    stays, left = pool.channel("stays").subscribe(), pool.channel("left").subscribe()
    left.unsubscribe()

    def in_child() -> tuple[bool, str]:
        wait_until(lambda: stays.is_subscribed)
        return stays.is_subscribed, str(left.state)

    assert ask(in_child) == (True, "closed")
    assert len(server.joins("left")) == 1


# Whoever forks


@pytest.mark.parametrize("mode", MODES)
def test_a_callback_may_fork_and_even_return_in_the_child(
    server: RealtimeServer, make_pool: MakePool, mode: str
) -> None:
    pool = make_pool(after_fork=mode, num_workers=1)
    pids, after = Recorder(), Recorder()
    reading, writing = os.pipe()

    def forks(event: rtpool.Broadcast) -> None:
        if event.payload["n"] == 0:
            pid = fork()
            if pid:
                pids(pid)

    def witness(event: rtpool.Broadcast) -> None:
        os.write(writing, b"%d:%d\n" % (os.getpid(), event.payload["n"]))
        after(event)

    pool.channel("room").on_broadcast("*", forks).on_broadcast("*", witness).subscribe()
    server.broadcast("room", "x", {"n": 0})
    pid = pids.wait(1)[0]
    for number in range(1, 20):
        server.broadcast("room", "x", {"n": number})
    after.wait(20)
    if mode == "resubscribe":
        server.wait_for(lambda s: s.members("room") == 2)
    else:
        assert os.waitpid(pid, 0)[1] == 0  # the worker was the child's only thread, and ended
    seen = os.read(reading, 65_536).split()
    ours = [int(line.split(b":")[1]) for line in seen if line.startswith(b"%d:" % os.getpid())]
    theirs = [line for line in seen if line.startswith(b"%d:" % pid)]
    assert ours == list(range(20))
    assert b"%d:0" % pid not in theirs  # the event in hand is the parent's
    if mode == "resubscribe":
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os.close(reading)
    os.close(writing)


def test_a_token_callable_may_fork_and_return_in_the_child(server: RealtimeServer, make_pool: MakePool) -> None:
    pids = Recorder()

    def token() -> str:
        if not pids.events:
            pid = fork()
            if pid:
                pids(pid)
        return server.token(sub="someone")

    pool = make_pool(access_token=token)
    pool.channel("room").subscribe()
    assert os.waitpid(pids.wait(1)[0], 0)[1] == 0
    assert server.connections_total == 1
    assert len(server.joins("room")) == 1


def test_a_child_may_fork_a_grandchild(server: RealtimeServer, make_pool: MakePool) -> None:
    pool = make_pool(after_fork="resubscribe")
    channel = pool.channel("room").subscribe()

    def child(link: Link) -> None:
        wait_until(lambda: channel.is_subscribed)

        def grandchild(inner: Link) -> None:
            wait_until(lambda: channel.is_subscribed)
            inner.tell(True)
            inner.wait()

        with Child(grandchild) as grand:
            assert grand.told()
            link.tell(True)
            link.wait()
            assert channel.is_subscribed
            grand.go()

    with Child(child) as forked:
        forked.told()
        assert server.members("room") == 3
        assert len({c.peer for c in server.connections}) == 3
        forked.go()
    server.wait_for(lambda s: s.members("room") == 1)


@pytest.mark.parametrize("mode", MODES)
def test_a_pool_that_was_closed_or_closing_stays_closed_in_the_child(make_pool: MakePool, mode: str) -> None:
    pool = make_pool(after_fork=mode)
    channel = pool.channel("room").subscribe()
    pool.close()

    def in_child() -> bool:
        with pytest.raises(rtpool.PoolClosed):
            channel.subscribe()
        assert pool.close()
        return pool.closed

    assert ask(in_child)


def test_get_pool_is_one_pool_per_process(server: RealtimeServer) -> None:
    pool = rtpool.get_pool(server.url, api_key=server.api_key)
    try:
        pool.channel("room").subscribe()

        def in_child() -> bool:
            again = rtpool.get_pool(server.url, api_key=server.api_key)
            with again.channel("room"):
                return again is pool

        assert ask(in_child)
    finally:
        assert pool.close()


def test_every_lock_that_is_held_at_the_fork_is_free_in_the_child(pool: rtpool.RealtimePool) -> None:
    channel = pool.channel("room").on_broadcast("*", print).subscribe()
    engine = pool._engine
    locks = [
        engine._lock,
        engine.registry._lock,
        engine.dispatcher._lock,
        engine.budget._lock,
        *(dialer._lock for dialer in (engine.dialer, engine.callers, engine.deciders)),
    ]
    held, done = threading.Barrier(len(locks) + 1), threading.Event()

    def hold(lock: Any) -> None:
        with lock:
            held.wait(10)
            done.wait(30)

    holders = [threading.Thread(target=hold, args=(lock,)) for lock in locks]
    for holder in holders:
        holder.start()
    held.wait(10)
    try:

        def in_child() -> bool:
            channel.subscribe(timeout=10)
            channel.send_broadcast("x", {}).result(10)
            channel.unsubscribe()
            return pool.close()

        assert ask(in_child)
    finally:
        done.set()
        for holder in holders:
            holder.join()
        assert take_violations() or not WATCHES_CALLS  # the holders wait with a lock in hand, which nobody else may


# The parent's sockets


def test_a_hundred_forks_under_traffic_leave_the_parents_messages_and_bytes_alone(
    server: RealtimeServer, tap: Tap, make_pool: MakePool, figure: Any
) -> None:
    pool = make_pool(f"http://127.0.0.1:{tap.port}", after_fork="resubscribe", heartbeat_interval=1_000.0)
    heard, gaps = Recorder(), Recorder()
    channel = pool.channel("room", receive_own=True).on_broadcast("*", heard).on_gap(gaps).subscribe()
    (port,) = tap.sent
    stop = threading.Event()
    sent = 0

    def publish() -> None:
        nonlocal sent
        while not stop.wait(0.001):
            channel.send_broadcast("x", {"n": sent})
            sent += 1

    publisher = threading.Thread(target=publish)
    publisher.start()
    rounds = int(os.environ.get("RTPOOL_FORKS", "100"))

    def child(link: Link) -> None:
        heard.events.clear()
        wait_until(lambda: channel.is_subscribed, "the child is subscribed")
        heard.wait(3)
        numbers = heard.numbers
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), numbers
        link.tell(pool.stats().connection_details[0].bytes_sent)
        link.wait()
        if os.getpid() % 2:
            pool.close()

    for _ in range(rounds):
        with Child(child) as forked:
            forked.told()
            forked.go()
    stop.set()
    publisher.join()
    heard.wait_for(lambda events: len(events) >= sent)
    assert heard.numbers == list(range(sent)), "the parent's sequence has a hole"
    assert tap.accepted == rounds + 1, "each child had a connection of its own"
    assert not gaps.events
    assert port not in tap.ended
    upgrade = 1_000  # bytes at most of the request that came before
    of_parent = pool.stats().connection_details[0].bytes_sent
    assert of_parent < tap.sent[port] < of_parent + upgrade, "somebody else wrote on the parent's socket"
    assert server.malformed == 0
    figure(
        f"{rounds} forks: {sent} messages unbroken, {tap.accepted} connections, {tap.sent[port]} bytes on the parent's"
    )


@pytest.mark.parametrize("mode", MODES)
def test_over_tls_a_child_neither_closes_nor_spoils_its_parents_session(
    make_pool: MakePool, certificates: tuple[ssl.SSLContext, ssl.SSLContext], mode: str
) -> None:
    serving, trusting = certificates
    with RealtimeServer(ssl_context=serving) as server, Tap(server.port) as tap:
        heard = Recorder()
        pool = make_pool(f"https://127.0.0.1:{tap.port}", api_key=server.api_key, ssl_context=trusting, after_fork=mode)
        channel = pool.channel("room").on_broadcast("*", heard).subscribe()
        (port,) = tap.sent
        for number in range(5):
            before = tap.sent[port]

            def in_child() -> bool:
                channel.subscribe()
                return pool.close()

            assert ask(in_child)
            assert tap.sent[port] == before
            server.broadcast("room", "x", {"n": number})
            heard.wait(number + 1)
        assert port not in tap.ended
        channel.send_broadcast("x", {}).result()
        assert pool.close()


def test_a_connection_that_the_parent_closes_ends_though_a_child_lives(
    server: RealtimeServer, tap: Tap, make_pool: MakePool
) -> None:
    pool = make_pool(f"http://127.0.0.1:{tap.port}")
    pool.channel("room").subscribe()
    (port,) = tap.sent
    with Child(lambda link: (link.tell(True), link.wait())) as forked:
        forked.told()
        pool.close()
        wait_until(lambda: port in tap.ended, "the child holds the parent's socket open")
        forked.go()


def test_a_dial_that_is_under_way_at_the_fork_goes_on_in_the_parent_alone(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    with Tap(server.port) as tap:
        pool = make_pool(f"http://127.0.0.1:{tap.port}", after_fork="resubscribe")
        channel = pool.channel("room").subscribe(wait=False)

        def child(link: Link) -> None:
            wait_until(lambda: channel.is_subscribed)
            link.tell(True)
            link.wait()

        with Child(child) as forked:
            forked.told()
            wait_until(lambda: channel.is_subscribed)
            assert server.members("room") == 2
            forked.go()


# Not by fork


@pytest.mark.parametrize("make", [lambda pool: pool, lambda pool: pool.channel("room")])
def test_pools_and_channels_cannot_be_pickled_or_copied_and_say_what_to_do(
    pool: rtpool.RealtimePool, make: Any
) -> None:
    with pytest.raises(TypeError, match=r"belongs to its process .* make one there"):
        pickle.dumps(make(pool))
    with pytest.raises(TypeError, match="belongs to its process"):
        copy.copy(make(pool))


def test_a_push_cannot_be_pickled(pool: rtpool.RealtimePool) -> None:
    push = pool.channel("room").subscribe().send_broadcast("x", {})
    with pytest.raises(TypeError, match="belongs to its process"):
        pickle.dumps(push)

"""Promise 8: iterators end, and close is prompt from anywhere."""

from __future__ import annotations

import threading

import pytest

import rtpool
from rtpool.testing import NO_REPLY, RealtimeServer
from tests.conftest import MakePool
from tests.support.recorder import Recorder
from tests.support.wait import CAP, wait_until


def rtpool_threads(pool: rtpool.RealtimePool) -> list[str]:
    prefix = f"rtpool-{pool._engine.name}-"
    return sorted(t.name for t in threading.enumerate() if t.name.startswith(prefix))


def test_construction_starts_and_opens_nothing_and_close_then_is_enough(server: RealtimeServer) -> None:
    before = set(threading.enumerate())
    pool = rtpool.RealtimePool(server.url, api_key=server.api_key)
    channel = pool.channel("room").on_broadcast("*", print)
    assert set(threading.enumerate()) == before
    assert pool.stats().connection_status == "idle"
    assert pool.health().ok
    assert channel.state is rtpool.ChannelState.CLOSED
    assert pool.close() is True
    assert pool.close(timeout=CAP) is True
    assert server.connections_total == 0


def test_threads_end_with_close(pool: rtpool.RealtimePool) -> None:
    pool.channel("room").subscribe()
    assert len(rtpool_threads(pool)) >= 5
    assert pool.close()
    assert rtpool_threads(pool) == []


def test_close_from_eight_threads_at_once_returns_true_to_all(pool: rtpool.RealtimePool) -> None:
    pool.channel("room").subscribe()
    outcomes = Recorder()
    threads = [threading.Thread(target=lambda: outcomes(pool.close())) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert outcomes.wait(8) == [True] * 8


def test_close_while_connecting_breaks_the_dial_off(make_pool: MakePool) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers the upgrade
        pool = make_pool(f"http://127.0.0.1:{silent.getsockname()[1]}")
        pool.channel("room").subscribe(wait=False)
        peer, _ = silent.accept()
        assert pool.close(timeout=5) is True
        peer.close()


def test_close_sends_what_was_accepted(server: RealtimeServer, make_pool: MakePool) -> None:
    heard = Recorder()
    with make_pool() as listening:
        listening.channel("room").on_broadcast("*", heard).subscribe()
        pool = make_pool()
        channel = pool.channel("room").subscribe()
        for number in range(200):
            channel.send_broadcast("x", {"n": number})
        pool.close()
        heard.wait(200)
    assert heard.numbers == list(range(200))


@pytest.mark.parametrize("state", ["frozen", "not reading"])
def test_close_is_in_time_with_a_peer_that_is_stuck(server: RealtimeServer, make_pool: MakePool, state: str) -> None:
    pool = make_pool()
    channel = pool.channel("room").subscribe()
    if state == "frozen":
        server.connections[0].freeze()
    else:
        server.connections[0].pause_reading()
    pushes = [channel.send_broadcast("x", bytes(1_000_000)) for _ in range(10)]
    assert pool.close(timeout=2) is True
    assert all(push.done() for push in pushes)
    with pytest.raises((rtpool.ConnectionFailed, rtpool.PoolClosed)):
        pushes[-1].result()


def test_waiters_are_told_when_the_pool_closes(server: RealtimeServer, make_pool: MakePool) -> None:
    from rtpool.testing import NO_REPLY

    server.on_join = lambda topic, payload, connection: NO_REPLY if topic == "mute" else None
    pool, outcomes = make_pool(), Recorder()
    reader, iterated = pool.channel("room").subscribe(), pool.channel("other").subscribe()

    def wait(name: str, call: object) -> None:
        try:
            outcomes((name, call()))  # type: ignore[operator]
        except rtpool.RtpoolError as error:
            outcomes((name, type(error)))

    calls = {
        "subscribe": lambda: pool.channel("mute").subscribe(timeout=CAP),
        "get": lambda: reader.get(timeout=CAP),
        "events": lambda: list(iterated.events()),
        "run_forever": pool.run_forever,
    }
    threads = [threading.Thread(target=wait, args=item) for item in calls.items()]
    for thread in threads:
        thread.start()
    server.wait_for(lambda s: len(s.joins()) == 3)
    pool.close()
    for thread in threads:
        thread.join(CAP)
    assert dict(outcomes.wait(4)) == {
        "subscribe": rtpool.PoolClosed,
        "get": rtpool.NotSubscribed,
        "events": [],
        "run_forever": None,
    }


def test_an_iterator_yields_everything_and_ends_with_the_subscription(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    seen = Recorder()
    channel = pool.channel("room").subscribe()
    events = channel.events()
    thread = threading.Thread(target=lambda: [seen(e) for e in events] and None)
    thread.start()
    server.broadcast("room", "a", {"n": 1})
    server.push("room", "custom", {"n": 2})
    assert [type(e) for e in seen.wait(2)] == [rtpool.Broadcast, rtpool.Message]
    server.connections[0].abort()
    assert isinstance(seen.wait(3)[2], rtpool.Gap)
    channel.unsubscribe()
    thread.join(CAP)
    assert not thread.is_alive()


def test_what_came_before_the_first_get_is_kept(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    channel = pool.channel("room").subscribe()
    for number in range(3):
        server.broadcast("room", "x", {"n": number})
    assert [channel.get(5).payload["n"] for _ in range(3)] == [0, 1, 2]  # type: ignore[union-attr]
    with pytest.raises(rtpool.ReceiveTimeout, match=r"0\.01 s"):
        channel.get(0.01)
    assert list(channel.events(timeout=0.01)) == []


def test_callbacks_and_an_iterator_both_get_everything(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    heard = Recorder()
    channel = pool.channel("room").on_broadcast("*", heard)
    events = channel.events(timeout=CAP)
    channel.subscribe()
    server.broadcast("room", "x", {"n": 1})
    assert next(events) == heard.wait(1)[0]


def test_a_channel_with_callbacks_keeps_nothing_for_readers_that_never_come(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    heard = Recorder()
    channel = pool.channel("room").subscribe().on_broadcast("*", heard)
    server.broadcast("room", "x", {"n": 1})
    heard.wait(1)
    assert channel._subscriber.stream is None


@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest", "block", "close"])
def test_each_overflow_policy_does_what_it_says_end_to_end(
    server: RealtimeServer, make_pool: MakePool, policy: str
) -> None:
    pool = make_pool(overflow=policy, mailbox_limit=10)
    release, begun = threading.Event(), threading.Event()
    got, others, gaps, statuses = Recorder(), Recorder(), Recorder(), Recorder()

    def slow(message: rtpool.Broadcast) -> None:
        begun.set()
        assert release.wait(CAP)
        got(message)

    channel = pool.channel("room").on_broadcast("*", slow).on_gap(gaps).on_status(statuses).subscribe()
    other = make_pool().channel("room").on_broadcast("*", others).subscribe()
    server.broadcast("room", "x", {"n": 0})
    assert begun.wait(CAP)
    for number in range(1, 101):
        server.broadcast("room", "x", {"n": number, "pad": "x" * 2_000})
    others.wait(101)
    if policy == "block":
        wait_until(lambda: len(channel._subscriber.mailbox.items) >= 10)
        release.set()
        got.wait(101)
        assert got.numbers == list(range(101))
        assert pool.stats().messages_dropped == 0
        return
    wait_until(lambda: pool.stats().messages_dropped == 90 or policy == "close")
    release.set()
    gap = gaps.wait(1)[0]
    assert (gap.cause, gap.certain) == ("overflow", True)
    if policy == "close":
        change = statuses.wait_for(lambda seen: seen[-1].status == "closed")[-1]
        assert isinstance(change.error, rtpool.MailboxOverflow)
        assert channel.state is rtpool.ChannelState.CLOSED
        server.wait_for(lambda s: s.members("room") == 1)
    else:
        got.wait(11)
        assert got.numbers == ([0, *range(91, 101)] if policy == "drop_oldest" else list(range(11)))
        assert pool.stats().messages_dropped == 90
    assert other.is_subscribed


def test_a_blocked_mailbox_stays_bounded_over_a_reconnect(server: RealtimeServer, make_pool: MakePool) -> None:
    release, got = threading.Event(), Recorder()
    pool = make_pool(overflow="block", mailbox_limit=10, heartbeat_interval=0.1, heartbeat_timeout=0.1)

    def slow(message: rtpool.Broadcast) -> None:
        assert release.wait(CAP)
        got(message)

    channel = pool.channel("room").on_broadcast("*", slow).subscribe()
    mailbox = channel._subscriber.mailbox
    for _ in range(2):
        for number in range(100):
            server.broadcast("room", "x", {"n": number, "pad": "x" * 60_000})
        wait_until(lambda: pool._engine.coordinator.connections.all[0].paused_by)
        total = server.connections_total
        server.connections[0].abort()  # noticed by the heartbeat, which goes out though nothing is read
        server.wait_for(lambda s, total=total: s.connections_total > total and s.members("room"))
    assert len(mailbox.items) < 80, "two reads' worth, not two hundred messages"
    release.set()
    got.wait(10)


def test_stats_are_json_and_add_up(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    import json

    heard = Recorder()
    channel = pool.channel("room", ack=True).on_broadcast("*", heard).subscribe()
    for number in range(10):
        server.broadcast("room", "x", {"n": number})
    channel.send_broadcast("y", {}).result()
    heard.wait(10)
    wait_until(lambda: pool.stats().messages_delivered == 10)
    stats = pool.stats()
    assert (stats.total_subscriptions, stats.active_subscriptions, stats.total_joins) == (1, 1, 1)
    assert (stats.connection_status, stats.active_connections, stats.pushes_sent) == ("connected", 1, 1)
    assert stats.messages_received == 12, "ten broadcasts and two replies"
    assert stats.bytes_received > 0
    data = json.loads(json.dumps(stats.as_dict()))
    assert data["subscription_details"][0]["topic"] == "room"
    assert data["connection_details"][0]["joins"] == 1
    assert pool.channels() == [channel]


def test_a_failure_of_the_loop_itself_is_told_to_everybody_who_waits(
    server: RealtimeServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    from rtpool.testing import NO_REPLY

    server.on_join = lambda topic, payload, connection: NO_REPLY if topic == "mute" else None
    pool, outcome, statuses = make_pool(), Recorder(), Recorder()
    pool.on_status(statuses)
    channel = pool.channel("room", ack=True).subscribe()

    def subscribe() -> None:
        try:
            pool.channel("mute").subscribe(timeout=CAP)
        except rtpool.RtpoolError as error:
            outcome(error)

    thread = threading.Thread(target=subscribe)
    thread.start()
    server.wait_for(lambda s: s.joins("mute"))
    server.connections[0].freeze()
    push = channel.send_broadcast("x", {})

    def bug() -> None:
        raise LookupError("a bug")

    pool._engine.loop.post(bug)
    assert isinstance(outcome.wait(1)[0], rtpool.PoolClosed)
    with pytest.raises(rtpool.RtpoolError):
        push.result()
    assert statuses.wait_for(lambda seen: seen[-1].status == "closed")
    assert pool.closed
    assert "a bug" in caplog.text
    with pytest.raises(rtpool.PoolClosed):
        channel.send_broadcast("x", {})
    thread.join()


def test_debug_logs_every_message_without_its_secrets(
    server: RealtimeServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="rtpool")
    token = server.token(sub="me")
    channel = make_pool(debug=True, access_token=token).channel("room", ack=True).subscribe()
    channel.send_broadcast("x", {"secret": "payload"}).result()
    assert "> 1 realtime:room phx_join ref 1" in caplog.text
    assert "> 1 realtime:room broadcast ref 2" in caplog.text
    assert "< 1" in caplog.text
    for secret in (token, server.api_key, "payload"):
        assert secret not in caplog.text


@pytest.mark.parametrize("again", [False, True], ids=["for good", "and subscribed anew"])
def test_unsubscribe_wakes_who_waits_and_who_waited_takes_down_no_later_subscription(
    server: RealtimeServer, make_pool: MakePool, again: bool
) -> None:
    server.on_join = lambda topic, payload, connection: NO_REPLY
    channel, outcome = make_pool(join_timeout=1.0).channel("room"), Recorder()

    def wait() -> None:
        try:
            channel.subscribe(timeout=60)
        except rtpool.RtpoolError as error:
            outcome(error)

    thread = threading.Thread(target=wait)
    thread.start()
    server.wait_for(lambda s: s.joins("room"))
    channel.unsubscribe(timeout=0)
    server.on_join = None
    if again:
        channel.subscribe(timeout=30)
    (error,) = outcome.wait(1)
    thread.join()
    assert isinstance(error, rtpool.NotSubscribed)
    assert channel.is_subscribed == again
    assert server.members("room") == int(again)


@pytest.mark.parametrize("which", ["-io", "-worker-0"])
def test_a_system_without_a_thread_left_is_told_at_the_first_use_which_can_be_repeated(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    pool, start = make_pool(), threading.Thread.start

    def no_thread(thread: threading.Thread) -> None:
        if thread.name.endswith(which):
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(rtpool.ConnectionFailed, match="no thread or descriptor left"):
            pool.channel("room").subscribe()
    pool.channel("room").subscribe()


def test_a_system_without_a_descriptor_left_is_told_at_the_first_use_which_can_be_repeated(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_descriptor() -> None:
        raise OSError(24, "Too many open files")

    pool = make_pool()
    with monkeypatch.context() as patch:
        patch.setattr("rtpool.engine.io_loop.socket.socketpair", no_descriptor)
        with pytest.raises(rtpool.ConnectionFailed, match="Too many open files"):
            pool.channel("room").subscribe()
    pool.channel("room").subscribe()


def test_with_fewer_threads_than_asked_for_the_callbacks_run_on_those_there_are(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, start, heard = make_pool(), threading.Thread.start, Recorder()

    def no_thread(thread: threading.Thread) -> None:
        if thread.name.endswith("-worker-2"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        pool.channel("room").on_broadcast("*", heard).subscribe()
    server.broadcast("room", "x", {"n": 1})
    heard.wait(1)


@pytest.mark.parametrize("which", ["-io", "-worker-0", "-worker-3"])
def test_ctrl_c_while_the_threads_start_leaves_a_pool_that_can_be_used_and_closed(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    pool, start = make_pool(), threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name.endswith(which):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.channel("room").subscribe()
    assert len(rtpool_threads(pool)) >= 5
    assert pool.channel("room").subscribe().is_subscribed
    assert pool.close()
    assert rtpool_threads(pool) == []


def test_ctrl_c_before_a_thread_was_made_is_told_as_a_start_that_failed(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, start = make_pool(), threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        if thread.name.endswith("-io"):
            raise KeyboardInterrupt
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        patch.setattr("rtpool.engine.threads.START_SECONDS", 0.01)
        with pytest.raises(rtpool.ConnectionFailed, match="was interrupted"):
            pool.channel("room").subscribe()
    assert pool.channel("room").subscribe().is_subscribed


def test_sigterm_can_be_handled_in_the_main_thread_only(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    outcome = Recorder()

    def run() -> None:
        try:
            pool.run_forever(handle_sigterm=True)
        except rtpool.RtpoolError as error:
            outcome(error)

    thread = threading.Thread(target=run, name="another")
    thread.start()
    (error,) = outcome.wait(1)
    thread.join()
    assert isinstance(error, rtpool.InvalidValue)
    assert "main thread only" in str(error)
    assert "another" in str(error)
    with pytest.raises(rtpool.InvalidType, match="handle_sigterm"):
        pool.run_forever(handle_sigterm=1)  # type: ignore[arg-type]

"""Each kind of issue: made for real, found by the next look, gone after the cure."""

from __future__ import annotations

import threading

import pytest

import rtpool
from rtpool.debug import CODES, Debugger, observation
from rtpool.protocol import pace
from rtpool.testing import RealtimeServer, faults
from tests.conftest import MakePool
from tests.debug.conftest import Gate, PassTime, WatchPool
from tests.engine.test_audit import on_io_thread
from tests.support import merging
from tests.support.recorder import Recorder
from tests.support.wait import CAP, wait_until

# Connections


def test_more_connections_than_needed_are_found_and_gone_when_they_are_merged(
    server: RealtimeServer, make_pool: MakePool, watch: WatchPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    merging.hurry(monkeypatch)
    pool = merging.make_sparse_pool(make_pool)
    watching = watch(pool, spare_connections_after=0.1)
    heard = merging.sparse(pool)
    issue = watching.finds_in_time("RTP001", f"pool {pool._engine.name}", "3 connections, and 1 would do")
    assert (issue.details["connections"], issue.details["needed"]) == (3, 1)
    merging.merge_until_one_is_left(server, pool)
    watching.is_cured_of("RTP001")
    assert heard


def test_sockets_that_one_topic_needs_are_not_more_than_needed(
    server: RealtimeServer, pool: rtpool.RealtimePool, watch: WatchPool
) -> None:
    watching = watch(pool, spare_connections_after=0.01)
    for key in ("a", "b", "c"):
        pool.channel("room", presence_key=key).subscribe()
    for _ in range(3):
        assert not watching.of("RTP001")
    assert pool.stats().total_connections == 3


def test_a_socket_that_presence_keeps_is_not_more_than_needed(
    server: RealtimeServer, make_pool: MakePool, watch: WatchPool
) -> None:
    pool = make_pool(max_channels_per_connection=10, enable_health_check=False)
    channels = [pool.channel(f"room-{number}").subscribe() for number in range(11)]
    ends = channels[0], channels[-1]
    for channel in ends:
        channel.track({}).result()
    for channel in channels[1:-1]:
        channel.unsubscribe()
    watching = watch(pool, spare_connections_after=0.01)
    for _ in range(3):
        assert not watching.of("RTP001")
    ends[0].untrack().result()
    watching.finds_in_time("RTP001", f"pool {pool._engine.name}", "2 connections, and 1 would do")


def test_a_connection_that_has_given_up_is_found_with_its_error_until_it_is_back(
    server: RealtimeServer, make_pool: MakePool, watch: WatchPool
) -> None:
    pool = make_pool(max_retries=1)
    pool.channel("room").subscribe()
    watching = watch(pool)
    refusing = server.inject(faults.Refuse(503, body=f"no {server.api_key}"), times=None)
    server.disconnect_all()
    wait_until(lambda: pool.stats().error_connections == 1)
    issue = watching.finds("RTP002", "connection 1", "HandshakeRefused")
    assert "503" in issue.details["error"]
    assert server.api_key not in str(issue.as_dict())
    assert issue.details["joins"] == 1
    refusing.undo()
    pool.connect()
    watching.is_cured_of("RTP002")


def test_an_outage_of_many_attempts_is_found_until_it_is_over(
    server: RealtimeServer, make_pool: MakePool, watch: WatchPool
) -> None:
    pool = make_pool(max_retries=1_000, max_delay=0.05)
    pool.channel("room").subscribe()
    watching = watch(pool, reconnect_window=0.3)
    refusing = server.inject(faults.Refuse(502), times=None)
    server.disconnect_all()
    wait_until(lambda: pool.stats().connection_details[0].attempts >= 3)
    watching.finds("RTP003", "connection 1", "failed attempts; the last: HandshakeRefused")
    refusing.undo()
    watching.is_cured_of("RTP003")


def test_a_connection_that_breaks_again_and_again_is_found_until_it_holds(
    server: RealtimeServer, pool: rtpool.RealtimePool, watch: WatchPool
) -> None:
    channel = pool.channel("room").subscribe()
    watching = watch(pool, reconnects=2, reconnect_window=0.5)
    for count in range(1, 4):
        server.disconnect_all()
        wait_until(lambda count=count: pool.stats().reconnect_attempts >= count and channel.is_subscribed)
    watching.finds("RTP003", f"pool {pool._engine.name}", "reconnects in")
    watching.is_cured_of("RTP003")


def test_one_outage_of_many_attempts_is_no_connection_that_breaks_again_and_again(
    server: RealtimeServer, make_pool: MakePool, watch: WatchPool
) -> None:
    pool = make_pool(max_retries=1_000, max_delay=0.05)
    channel = pool.channel("room").subscribe()
    watching = watch(pool, reconnects=2, reconnect_window=3600.0)
    refusing = server.inject(faults.Refuse(502), times=None)
    server.disconnect_all()
    wait_until(lambda: pool.stats().reconnect_attempts >= 10)
    refusing.undo()
    wait_until(lambda: channel.is_subscribed)
    assert not watching.of("RTP003")


def test_connections_that_are_gone_had_their_share_of_the_reconnects(
    server: RealtimeServer, make_pool: MakePool, watch: WatchPool
) -> None:
    pool = make_pool(cleanup_interval=0.0)
    channels = [pool.channel("room", presence_key=key).subscribe() for key in ("a", "b", "c")]
    watching = watch(pool, reconnects=2, reconnect_window=3600.0)
    for count in (3, 6):
        watching.look()
        server.disconnect_all()
        wait_until(
            lambda count=count: (
                pool._engine.coordinator.connections.losses >= count
                and all(channel.is_subscribed for channel in channels)
            )
        )
    assert not watching.of("RTP003")
    for channel in channels[1:]:
        channel.unsubscribe()
    wait_until(lambda: pool.stats().total_connections == 1)
    assert not watching.of("RTP003")
    server.disconnect_all()
    wait_until(lambda: bool(watching.of("RTP003")), "that is one too many")


def test_a_join_that_nobody_wants_is_found_and_so_is_that_it_was_mended(
    server: RealtimeServer, make_pool: MakePool, watch: WatchPool
) -> None:
    pool = make_pool(enable_health_check=False)
    channel = pool.channel("room").subscribe()
    watching = watch(pool)
    on_io_thread(pool, lambda: pool._engine.registry.detach(channel._subscriber))
    watching.finds("RTP004", "'room'", "has no Channel")
    wait_until(lambda: watching.debugger.force_cleanup() or pool.stats().repairs)
    watching.finds("RTP004", f"pool {pool._engine.name}", "the health check mended 1")
    watching.is_cured_of("RTP004")


def test_channels_that_are_without_a_join_for_a_moment_each_are_no_issue(
    server: RealtimeServer, make_pool: MakePool, watch: WatchPool
) -> None:
    """Whatever a look meets between a subscribe and the I/O thread's heed of it, it is another one at the next look."""
    pool = make_pool(enable_health_check=False)
    pool.connect()
    watching, registry, over = watch(pool), pool._engine.registry, threading.Event()

    def come_and_go() -> None:
        before: list[rtpool.Channel] = []
        while not over.wait(0.005):
            channel = pool.channel("room")
            for left in before:
                registry.detach(left._subscriber)
            attachment = registry.attach(channel._subscriber)
            assert attachment is not None
            attachment.opened = True
            before = [channel]
        for left in before:
            registry.detach(left._subscriber)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        assert not [issue for _ in range(3) for issue in watching.of("RTP004")]
    finally:
        over.set()
        thread.join()


def test_a_socket_that_belongs_to_nobody_is_found_at_once(
    server: RealtimeServer, make_pool: MakePool, watch: WatchPool
) -> None:
    pool = make_pool(enable_health_check=False)
    pool.channel("room").subscribe()
    watching = watch(pool)
    sockets = pool._engine.coordinator.connections
    (connection,) = sockets.all
    on_io_thread(pool, lambda: (sockets._by_id.clear(), sockets._publish()))
    watching.finds("RTP004", "connection 1", "a socket belongs to nobody")
    on_io_thread(pool, lambda: (sockets._by_id.update({1: connection}), sockets._publish()))
    watching.is_cured_of("RTP004")


@pytest.mark.parametrize("how", ["late", "not at all"])
def test_heartbeats_that_are_answered_late_are_found_until_one_is_answered_in_time(
    server: RealtimeServer, make_pool: MakePool, watch: WatchPool, how: str
) -> None:
    pool = make_pool(heartbeat_interval=1.0, heartbeat_timeout=10.0)
    pool.channel("room").subscribe()
    watching = watch(pool, late_heartbeat=0.03)
    seconds = 0.35 if how == "late" else 1.0
    fault = server.inject(faults.Delay(seconds), on=faults.Replying("heartbeat", topic="phoenix"), times=1)
    fault.wait()
    if how == "late":
        wait_until(lambda: (pool.stats().heartbeat_latency or 0) > 0.3)
    watching.finds_in_time("RTP011", "connection 1")
    watching.is_cured_of("RTP011")


# Subscriptions


def test_a_subscription_to_which_nothing_flows_is_found_until_it_does(
    server: RealtimeServer, pool: rtpool.RealtimePool, watch: WatchPool
) -> None:
    server.configure(postgres_delay=60.0)
    watching = watch(pool, not_ready_after=0.1)
    channel = pool.channel("room").on_postgres_changes("*", print, table="cars").subscribe(wait=False)
    issue = watching.finds_in_time("RTP005", "'room'", "joined for")
    assert issue.details["state"] == "joined"
    server.configure(postgres_delay=0.0)
    server.disconnect_all()
    wait_until(lambda: channel.is_subscribed)
    watching.is_cured_of("RTP005")


def test_a_subscription_that_was_refused_for_good_is_found_until_it_is_let_in(
    server: RealtimeServer, pool: rtpool.RealtimePool, watch: WatchPool
) -> None:
    server.policy = lambda request: request.claims.get("sub") == "ann"
    watching = watch(pool)
    statuses = Recorder()
    channel = pool.channel("room", private=True).on_status(statuses).subscribe(wait=False)
    statuses.first(lambda change: change.status == "refused")
    watching.finds("RTP006", "'room'", "You do not have permissions")
    pool.set_auth(server.token(sub="ann"))
    wait_until(lambda: channel.is_subscribed)
    watching.is_cured_of("RTP006")


def test_events_that_nobody_takes_are_found_until_somebody_does(
    server: RealtimeServer, pool: rtpool.RealtimePool, watch: WatchPool
) -> None:
    channel = pool.channel("room").subscribe()
    channel.send_broadcast("x", {}).result()
    watching = watch(pool, unheard_after=0.1)
    server.broadcast("room", "x", {})
    watching.finds_in_time("RTP007", "'room'", "1 events wait for a reader")
    channel.get(CAP)
    watching.is_cured_of("RTP007")


def test_a_subscription_that_neither_hears_nor_speaks_is_found_until_it_does(
    server: RealtimeServer, pool: rtpool.RealtimePool, watch: WatchPool
) -> None:
    channel = pool.channel("room").subscribe()
    speaks = pool.channel("other").subscribe()
    speaks.send_broadcast("x", {}).result()
    watching = watch(pool, unheard_after=0.1)
    watching.finds_in_time("RTP007", "'room'", "no callback, no reader and no push")
    assert [issue.subject for issue in watching.of("RTP007")] == ["'room'"]
    channel.on_broadcast("*", print)
    watching.is_cured_of("RTP007")


def test_who_only_asks_who_is_present_misses_no_event(
    server: RealtimeServer, make_pool: MakePool, watch: WatchPool
) -> None:
    pool = make_pool(mailbox_limit=10)
    channel = pool.channel("room", presence_key="me").subscribe()
    watching = watch(pool, unheard_after=0.05)
    watching.finds_in_time("RTP007", "'room'")
    assert channel.presence_state() == {}
    for number in range(30):
        server.broadcast("room", "x", {"n": number})
    wait_until(lambda: pool.stats().messages_dropped >= 10)
    for _ in range(3):
        assert {issue.code for issue in watching.look()}.isdisjoint({"RTP007", "RTP008", "RTP018"})
    channel.get(CAP)
    wait_until(lambda: bool(watching.of("RTP007")), "who reads once is missed when it reads no more")


@pytest.mark.parametrize("overflow", ["drop_oldest", "block"])
def test_a_mailbox_that_fills_is_found_until_it_is_drained(
    server: RealtimeServer, make_pool: MakePool, watch: WatchPool, gate: Gate, overflow: str
) -> None:
    pool = make_pool(mailbox_limit=10, overflow=overflow)
    pool.channel("room").on_broadcast("*", gate.hold).subscribe()
    watching = watch(pool)
    server.broadcast("room", "x", {})
    gate.entered.wait(CAP)
    for _ in range(9 if overflow == "drop_oldest" else 11):
        server.broadcast("room", "x", {})
    wait_until(lambda: pool.stats().subscription_details[0].queued >= 10)
    issue = watching.finds("RTP008", "'room'", "of 10 events wait")
    assert issue.details["share"] >= 0.9
    assert issue.details["overflow"] == overflow
    if overflow == "block":
        wait_until(lambda: "not read" in watching.finds("RTP008", "'room'").observed)
    gate.open.set()
    watching.is_cured_of("RTP008")


def test_a_mailbox_whose_events_a_worker_took_at_once_is_found_full_while_the_first_is_slow(
    server: RealtimeServer, make_pool: MakePool, watch: WatchPool, gate: Gate
) -> None:
    pool = make_pool(mailbox_limit=20, num_workers=1)
    busy = Gate()
    pool.channel("other").on_broadcast("*", busy.hold).subscribe()
    pool.channel("room").on_broadcast("*", gate.hold).subscribe()
    watching = watch(pool)
    server.broadcast("other", "x", {})
    busy.entered.wait(CAP)  # so that all the rest waits together
    for _ in range(20):
        server.broadcast("room", "x", {})
    wait_until(lambda: pool.stats().messages_received >= 21)
    busy.open.set()
    gate.entered.wait(CAP)
    assert watching.finds("RTP008", "'room'", "19 of 20 events wait").details["share"] == 0.95
    gate.open.set()
    watching.is_cured_of("RTP008")


def test_dropped_events_are_found_for_as_long_as_they_are_news(
    server: RealtimeServer, make_pool: MakePool, watch: WatchPool, gate: Gate
) -> None:
    pool = make_pool(mailbox_limit=5)
    pool.channel("room").on_broadcast("*", gate.hold).subscribe()
    watching = watch(pool)
    server.broadcast("room", "x", {})
    gate.entered.wait(CAP)
    for _ in range(12):
        server.broadcast("room", "x", {})
    wait_until(lambda: pool.stats().messages_dropped == 7)
    issue = watching.finds("RTP018", "'room'", "7 lately, 7 ever")
    assert issue.details["ever"] == 7
    gate.open.set()
    watching.is_cured_of("RTP018")
    assert not watching.of("RTP019"), "a Gap that says the same"


def test_what_an_unsubscribed_channel_did_not_want_any_more_is_no_issue(
    server: RealtimeServer, make_pool: MakePool, watch: WatchPool, gate: Gate
) -> None:
    pool = make_pool()
    channel = pool.channel("room").on_broadcast("*", gate.hold).subscribe()
    watching = watch(pool, recent=CAP)
    for _ in range(5):
        server.broadcast("room", "x", {})
    gate.entered.wait(CAP)
    wait_until(lambda: pool.stats().subscription_details[0].queued == 5)
    channel.unsubscribe()
    gate.open.set()
    wait_until(lambda: pool.stats().messages_dropped == 4)
    assert not watching.of("RTP018")


def test_gaps_are_found_by_their_cause_for_as_long_as_they_are_news(
    server: RealtimeServer, pool: rtpool.RealtimePool, watch: WatchPool
) -> None:
    gaps = Recorder()
    pool.channel("room").on_gap(gaps).subscribe()
    watching = watch(pool)
    server.connections[0].abort()
    gaps.wait(1)
    watching.finds("RTP019", f"pool {pool._engine.name}, transport", "1 gaps lately, 1 ever")
    watching.is_cured_of("RTP019")


def test_one_topic_on_several_sockets_is_found_with_what_differs(
    server: RealtimeServer, pool: rtpool.RealtimePool, watch: WatchPool
) -> None:
    mine, theirs = server.token(sub="mine"), server.token(sub="theirs")
    pool.channel("room", access_token=mine, private=True).subscribe()
    other = pool.channel("room", access_token=theirs, private=True).subscribe()
    watching = watch(pool)
    issue = watching.finds("RTP020", "'room'", "on connections 1, 2: access_token differ")
    assert issue.details == {"connections": [1, 2], "differing": ["access_token"]}
    other.unsubscribe()
    watching.is_cured_of("RTP020")


# Callbacks


def test_a_slow_callback_is_found_by_name_with_its_stack_until_it_is_no_news(
    server: RealtimeServer, pool: rtpool.RealtimePool, watch: WatchPool, gate: Gate
) -> None:
    pool.channel("room").on_broadcast("*", gate.hold).subscribe()
    watching = watch(pool, slow_callback=0.1)
    server.broadcast("room", "x", {})
    gate.entered.wait(CAP)
    issue = watching.finds_in_time("RTP009", "callback Gate.hold of 'room'", "it has run for")
    assert issue.details["callback"] == "Gate.hold"
    assert "self.open.wait(CAP)" in issue.details["stack"]
    assert "enter_user_code" not in issue.details["stack"]
    gate.open.set()
    watching.is_cured_of("RTP009")


def test_the_stack_of_a_slow_callback_shows_no_key_of_its_program(
    server: RealtimeServer, pool: rtpool.RealtimePool, watch: WatchPool, gate: Gate
) -> None:
    def careless(event: object, key: str = "") -> None:
        gate.hold(key or "sb_secret_0123456789abcdef")

    pool.channel("room").on_broadcast("*", careless).subscribe()
    watching = watch(pool, slow_callback=0.05)
    server.broadcast("room", "x", {})
    stack = watching.finds_in_time("RTP009", f"callback {careless.__qualname__} of 'room'").details["stack"]
    assert "gate.hold(key or" in stack
    assert "sb_secret" not in stack


def test_a_stuck_callback_is_found_until_it_returns(
    server: RealtimeServer, pool: rtpool.RealtimePool, watch: WatchPool, gate: Gate
) -> None:
    pool.channel("room").on_broadcast("*", gate.hold).subscribe()
    watching = watch(pool, slow_callback=0.05, stuck_callback=0.2)
    for _ in range(2):
        server.broadcast("room", "x", {})
    gate.entered.wait(CAP)
    issue = watching.finds_in_time("RTP010", "callback Gate.hold of 'room'", "it has run for")
    assert not watching.of("RTP009")
    assert "in hold" in issue.details["stack"]
    gate.open.set()
    watching.is_cured_of("RTP010")


def test_a_hook_for_errors_that_is_stuck_is_found(
    server: RealtimeServer, pool: rtpool.RealtimePool, watch: WatchPool, gate: Gate
) -> None:
    def raises(event: object) -> None:
        raise ValueError("no")

    pool.on_callback_error(lambda error, callback, event: gate.hold(event))
    pool.channel("room").on_broadcast("*", raises).subscribe()
    watching = watch(pool, slow_callback=0.05, stuck_callback=0.1)
    server.broadcast("room", "x", {})
    gate.entered.wait(CAP)
    wait_until(lambda: bool(watching.of("RTP010")))
    (issue,) = watching.of("RTP010")
    assert "<lambda> of 'room'" in issue.subject
    assert "self.open.wait(CAP)" in issue.details["stack"]
    gate.open.set()
    watching.is_cured_of("RTP010")


def test_a_stuck_status_listener_of_the_pool_is_found(
    server: RealtimeServer, pool: rtpool.RealtimePool, watch: WatchPool, gate: Gate
) -> None:
    pool.on_status(gate.hold)
    pool.channel("room").subscribe()
    watching = watch(pool, slow_callback=0.05, stuck_callback=0.1)
    watching.finds_in_time("RTP010", f"callback Gate.hold of pool {pool._engine.name}")


def test_callbacks_that_raise_are_found_for_as_long_as_they_are_news(
    server: RealtimeServer, pool: rtpool.RealtimePool, watch: WatchPool
) -> None:
    def fails(_event: object) -> None:
        raise ValueError

    pool.channel("room").on_broadcast("*", fails).subscribe()
    watching = watch(pool)
    server.broadcast("room", "x", {})
    wait_until(lambda: pool.stats().callback_errors == 1)
    watching.finds("RTP024", f"pool {pool._engine.name}", "1 lately, 1 ever")
    watching.is_cured_of("RTP024")


# Keys and tokens


def test_a_token_that_nobody_renews_is_found_before_it_expires_and_never_shown(
    server: RealtimeServer, pool: rtpool.RealtimePool, watch: WatchPool
) -> None:
    token = server.token(sub="ann", expires_in=100)
    pool.set_auth(token)
    pool.channel("room").subscribe()
    watching = watch(pool)
    issue = watching.finds("RTP012", f"the access_token of pool {pool._engine.name}", "it expires in")
    assert 90 <= issue.details["seconds"] <= 100
    assert token not in str(issue.as_dict())
    pool.set_auth(server.token(sub="ann"))
    watching.is_cured_of("RTP012")


def test_a_token_of_a_callable_is_no_issue_and_one_of_a_channel_is(
    server: RealtimeServer, make_pool: MakePool, watch: WatchPool
) -> None:
    pool = make_pool(access_token=lambda: server.token(sub="ann", expires_in=100))
    pool.channel("room").subscribe()
    watching = watch(pool)
    assert not watching.of("RTP012")
    own = pool.channel("own", access_token=server.token(sub="eve", expires_in=100)).subscribe()
    watching.finds("RTP012", "the access_token of 'own'")
    own.unsubscribe()
    watching.is_cured_of("RTP012")


def test_an_expired_token_is_found_after_the_join_that_it_was_refused_for_is_gone(
    server: RealtimeServer, make_pool: MakePool, watch: WatchPool
) -> None:
    token = server.token(sub="ann", expires_in=-60)
    pool = make_pool(access_token=token)
    with pytest.raises(rtpool.JoinRefused):
        pool.channel("room").subscribe()
    watching = watch(pool)
    wait_until(lambda: not pool.stats().total_joins, "nothing is left of the join")
    issue = watching.finds("RTP012", f"the access_token of pool {pool._engine.name}", "it expired")
    assert token not in str(issue.as_dict())
    pool.set_auth(server.token(sub="ann"))
    watching.is_cured_of("RTP012")


def test_a_key_that_expires_is_found(make_pool: MakePool, watch: WatchPool) -> None:
    with RealtimeServer() as server:
        key = server.token(role="anon", expires_in=100)
        pool = rtpool.RealtimePool(server.url, api_key=key)
        with pool:
            pool.channel("room").subscribe()
            watch(pool).finds("RTP012", "the api_key", "it expires in")


@pytest.mark.parametrize("form", ["a JWT", "sb_secret_"])
def test_a_service_key_in_the_urls_query_is_found_and_not_in_a_header(watch: WatchPool, form: str) -> None:
    secret = "s" * 32
    key = "sb_secret_" + "x" * 32 if form == "sb_secret_" else RealtimeServer(secret=secret).token(role="service_role")
    with RealtimeServer(secret=secret, api_key=key) as server:
        with rtpool.RealtimePool(server.url, api_key=key) as pool:
            pool.channel("room").subscribe()
            issue = watch(pool).finds("RTP022", f"pool {pool._engine.name}", "in the URL of its connections")
            assert key not in str(issue.as_dict())
        with rtpool.RealtimePool(server.url, api_key=key, api_key_in="header") as pool:
            channel = pool.channel("room").subscribe()
            watching = watch(pool)
            assert not watching.of("RTP022")
            pool.set_auth(server.token(sub="ann"))
            wait_until(lambda: bool(watching.of("RTP022")))
            watching.finds("RTP022", f"pool {pool._engine.name}", "with access tokens of users")
            channel.unsubscribe()
            watching.is_cured_of("RTP022")


def test_a_service_key_in_a_parameter_of_the_url_is_found(
    server: RealtimeServer, make_pool: MakePool, watch: WatchPool
) -> None:
    key = server.token(role="service_role")
    pool = make_pool(params={"token": key})
    pool.channel("room").subscribe()
    issue = watch(pool).finds("RTP022", f"pool {pool._engine.name}", "in the URL of its connections")
    assert key not in str(issue.as_dict())


def test_a_service_key_in_a_header_is_an_issue_only_beside_tokens_of_users(
    server: RealtimeServer, make_pool: MakePool, watch: WatchPool
) -> None:
    key = server.token(role="service_role")
    pool = make_pool(headers={"Authorization": f"Bearer {key}"})
    pool.channel("room").subscribe()
    watching = watch(pool)
    assert not watching.of("RTP022")
    own = pool.channel("own", access_token=server.token(sub="ann")).subscribe()
    watching.finds("RTP022", f"pool {pool._engine.name}", "it is used with access tokens of users")
    own.unsubscribe()
    watching.is_cured_of("RTP022")


# Limits


def test_a_socket_that_is_nearly_full_is_found_until_another_has_room(
    server: RealtimeServer, make_pool: MakePool, watch: WatchPool
) -> None:
    pool = make_pool(max_channels_per_connection=10)
    channels = [pool.channel(f"room-{number}").subscribe() for number in range(10)]
    watching = watch(pool)
    watching.finds("RTP013", "connection 1", "10 channels of 10")
    channels.pop().unsubscribe()
    watching.is_cured_of("RTP013")


def test_a_server_that_takes_fewer_channels_than_the_option_says_is_found(
    server: RealtimeServer, pool: rtpool.RealtimePool, watch: WatchPool
) -> None:
    server.configure(max_channels_per_client=2)
    for number in range(4):
        pool.channel(f"room-{number}").subscribe()
    words = "2 channels of 2; it takes no more, and max_channels_per_connection is 100"
    watching = watch(pool)
    watching.finds("RTP013", "connection 1", words)
    server.configure(max_channels_per_client=100)
    server.disconnect_all()
    wait_until(lambda: pool.stats().reconnect_attempts == 2 and pool.stats().active_subscriptions == 4)
    watching.is_cured_of("RTP013")


def test_a_pool_without_room_is_found_until_there_is_some(
    server: RealtimeServer, make_pool: MakePool, watch: WatchPool
) -> None:
    pool = make_pool(max_channels_per_connection=2, max_connections=1)
    channels = [pool.channel(f"room-{number}") for number in range(3)]
    for channel in channels[:2]:
        channel.subscribe()
    watching = watch(pool)
    watching.finds("RTP014", f"pool {pool._engine.name}", "2 channels on 1 of 1 connections")
    channels[2].subscribe(wait=False)
    wait_until(lambda: pool.stats().total_joins == 3)
    watching.finds("RTP014", f"pool {pool._engine.name}", "1 find no room, 'room-2' for one")
    for channel in channels[:2]:
        channel.unsubscribe()
    watching.is_cured_of("RTP014")


def test_joins_that_the_server_found_too_many_are_found_until_the_pace_is_as_before(
    server: RealtimeServer, make_pool: MakePool, watch: WatchPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "RECOVERY", 0.5)
    pool = make_pool(max_joins_per_second=100)
    server.inject(faults.RefuseJoin("ClientJoinRateLimitReached: Too many joins per second"), times=1)
    watching = watch(pool)
    channel = pool.channel("room").subscribe(wait=False)
    wait_until(lambda: pool.stats().joins_per_second < 100)
    watching.finds("RTP015", f"pool {pool._engine.name}", "50 joins a second at present, of 100")
    watching.is_cured_of("RTP015")
    channel.unsubscribe()


@pytest.mark.parametrize("paced", [True, False])
def test_events_that_the_server_found_too_many_are_found_until_the_pace_is_as_before(
    server: RealtimeServer,
    make_pool: MakePool,
    watch: WatchPool,
    monkeypatch: pytest.MonkeyPatch,
    paced: bool,
) -> None:
    monkeypatch.setattr(pace, "RECOVERY", 0.5)
    pool = make_pool(max_events_per_second=100 if paced else None)
    pool.channel("room").on_broadcast("*", print).subscribe()
    watching = watch(pool)
    server.shut_down("room", "Too many messages per second")
    wait_until(lambda: pool._engine.coordinator.pushes.queue.refusals == 1)
    watching.finds("RTP016", f"pool {pool._engine.name}", "too many events, 1 times")
    watching.is_cured_of("RTP016")


def test_pushes_that_wait_for_their_channel_are_found_until_they_are_sent(
    server: RealtimeServer, make_pool: MakePool, watch: WatchPool
) -> None:
    pool = make_pool(send_buffer_limit=10)
    channel = pool.channel("room").subscribe()
    watching = watch(pool)
    refusing = server.inject(faults.Refuse(503), times=None)
    server.disconnect_all()
    wait_until(lambda: not channel.is_subscribed)
    for _ in range(8):
        channel.send_broadcast("x", {}, timeout=CAP)
    watching.finds("RTP016", "'room'", "8 of 10 pushes wait")
    refusing.undo()
    pool.connect()
    watching.is_cured_of("RTP016")


def test_messages_over_a_limit_are_found_for_as_long_as_they_are_news(
    server: RealtimeServer, make_pool: MakePool, watch: WatchPool
) -> None:
    pool = make_pool(max_payload_size=1_000, max_message_size=2_048)
    channel = pool.channel("room").on_broadcast("*", print).subscribe()
    watching = watch(pool)
    with pytest.raises(rtpool.MessageTooBig):
        channel.send_broadcast("x", {"text": "x" * 2_000})
    watching.finds("RTP017", f"pool {pool._engine.name}, sending", "1 pushes refused lately, 1 ever")
    server.broadcast("room", "x", {"text": "x" * 4_000})
    wait_until(lambda: pool._engine.coordinator.connections.too_big == 1)
    watching.finds("RTP017", f"pool {pool._engine.name}, receiving", "1 larger than 2048 bytes lately")
    watching.is_cured_of("RTP017")


# The pool


def test_a_pool_with_open_sockets_and_nothing_to_do_is_found_until_it_has(
    server: RealtimeServer, pool: rtpool.RealtimePool, watch: WatchPool
) -> None:
    pool.connect()
    watching = watch(pool, forgotten_after=0.1)
    watching.finds_in_time("RTP021", f"pool {pool._engine.name}", "1 connections, no subscription")
    pool.channel("room").subscribe()
    watching.is_cured_of("RTP021")


def test_a_pool_that_broadcasts_by_rest_is_not_forgotten(
    server: RealtimeServer, pool: rtpool.RealtimePool, pass_time: PassTime
) -> None:
    pool.connect()
    it = Debugger(pool, forgotten_after=1_000.0)

    def found() -> bool:
        return "RTP021" in {issue.code for issue in it.issues()}

    assert not found()
    pass_time(2_000)
    assert found()
    pool.broadcast("room", "x", {})
    assert not found()
    pass_time(2_000)
    assert found()


def test_a_pool_whose_starter_has_ended_is_found_even_without_a_socket(
    server: RealtimeServer, make_pool: MakePool, watch: WatchPool
) -> None:
    pool = make_pool(cleanup_interval=0.0)

    def request() -> None:
        with pool.channel("room"):
            pass

    thread = threading.Thread(target=request)
    thread.start()
    thread.join()
    wait_until(lambda: pool.stats().total_connections == 0)
    watching = watch(pool, forgotten_after=0.1)
    issue = watching.finds_in_time("RTP021", f"pool {pool._engine.name}", "the thread that started it has ended")
    assert issue.details["connections"] == 0
    other = make_pool(cleanup_interval=0.0)
    with other.channel("room"):
        pass
    wait_until(lambda: other.stats().total_connections == 0)
    assert not watch(other, forgotten_after=0.01).of("RTP021")


def test_pools_of_one_url_and_key_are_found_until_there_is_one(
    server: RealtimeServer, pool: rtpool.RealtimePool, make_pool: MakePool, watch: WatchPool
) -> None:
    pool.connect()
    watching = watch(pool)
    assert not watching.of("RTP023")
    other = make_pool()
    assert not watching.of("RTP023"), "one that does nothing yet costs nothing"
    other.connect()
    watching.finds("RTP023", f"pool {pool._engine.name}", f"2 pools: {pool._engine.name}, {other._engine.name}")
    other.close()
    watching.is_cured_of("RTP023")


def test_an_io_thread_that_stands_still_is_found_until_it_goes_on(
    server: RealtimeServer, pool: rtpool.RealtimePool, watch: WatchPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observation, "PATIENCE", 0.05)
    pool.connect()
    watching = watch(pool, stalled_after=0.1)
    go_on = threading.Event()
    pool._engine.post(go_on.wait, CAP)
    try:
        watching.finds_in_time("RTP025", f"pool {pool._engine.name}", "nothing for")
    finally:
        go_on.set()
    watching.is_cured_of("RTP025")


def test_every_code_has_a_test_here() -> None:
    with open(__file__) as source:
        text = source.read()
    assert [code for code in CODES if f'"{code}"' not in text] == []

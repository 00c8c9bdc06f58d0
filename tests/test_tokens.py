"""Tokens on a real wire: where they go, what a refusal does, and how a channel comes back."""

from __future__ import annotations

import threading

import pytest

import rtpool
from rtpool.protocol.jwt import expiry_of
from rtpool.testing import PolicyRequest, RealtimeServer
from tests.conftest import MakePool
from tests.support.recorder import Recorder
from tests.support.wait import wait_until


def joined_with(server: RealtimeServer, topic: str = "room") -> list[str | None]:
    return [record.payload.get("access_token") for record in server.joins(topic)]


def renewals(server: RealtimeServer) -> list[str]:
    return [m.payload["access_token"] for m in server.received if m.event == "access_token"]


class Ask:
    """A token callable that makes tokens; records on which thread it was asked."""

    def __init__(self, server: RealtimeServer, *lifetimes: float) -> None:
        self.server = server
        self.lifetimes = list(lifetimes)
        self.given: list[str] = []
        self.threads: set[str] = set()

    def __call__(self) -> str:
        self.threads.add(threading.current_thread().name)
        lifetime = self.lifetimes.pop(0) if self.lifetimes else 3_600.0
        self.given.append(self.server.token(expires_in=lifetime, number=len(self.given)))
        return self.given[-1]


def test_set_auth_reaches_live_joins_and_every_later_rejoin(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    old, new = server.token(sub="old"), server.token(sub="new")
    pool.set_auth(old)
    rooms = [pool.channel(name).subscribe() for name in ("room", "hall")]
    pool.set_auth(new)
    server.wait_for(lambda s: len(renewals(s)) == 2)
    assert renewals(server) == [new, new]
    assert joined_with(server) == [old]
    server.connections[0].abort()
    server.wait_for(lambda s: len(s.joins("room")) == 2)
    assert joined_with(server) == [old, new]
    assert all(room.topic for room in rooms)


def test_a_channels_own_token_is_not_touched_by_the_pools(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    mine, theirs = server.token(sub="mine"), server.token(sub="theirs")
    pool.set_auth(theirs)
    channel = pool.channel("room", access_token=mine).subscribe()
    pool.set_auth(server.token(sub="next"))
    pool.channel("hall").subscribe()
    assert joined_with(server) == [mine]
    assert renewals(server) == []
    channel.unsubscribe()


def test_a_token_is_renewed_before_it_expires_and_nothing_is_interrupted(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    ask = Ask(server, 2.0)
    pool, gaps, statuses = make_pool(access_token=ask), Recorder(), Recorder()
    channel = pool.channel("room").on_gap(gaps).on_status(statuses).subscribe()
    server.wait_for(lambda s: renewals(s) == ask.given[1:2])
    expires = expiry_of(ask.given[0])
    assert expires is not None
    wait_until(lambda: server.clock.now() > expires)
    assert joined_with(server) == ask.given[:1]
    assert channel.is_subscribed
    assert gaps.events == []
    assert [s.status for s in statuses.events] == ["joining", "joined"]
    assert all("-dial-" in name for name in ask.threads)


def test_an_expired_token_of_a_callable_is_replaced_before_anybody_is_told(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    ask = Ask(server)
    pool, gaps, statuses = make_pool(access_token=ask), Recorder(), Recorder()
    pool.channel("room").on_gap(gaps).on_status(statuses).subscribe()
    server.expire_tokens("room")
    assert gaps.wait(1)[0].cause == "token"
    assert joined_with(server) == ask.given
    assert len(ask.given) == 2
    assert "refused" not in [s.status for s in statuses.events]


def test_an_expired_token_of_a_string_is_told_and_the_next_one_brings_the_channel_back(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    pool.set_auth(server.token(sub="first"))
    gaps, statuses, heard = Recorder(), Recorder(), Recorder()
    channel = pool.channel("room").on_gap(gaps).on_status(statuses).on_broadcast("*", heard).subscribe()
    server.expire_tokens("room")
    refused = statuses.wait_for(lambda events: [e for e in events if e.status == "refused"])[-1]
    assert isinstance(refused.error, rtpool.JoinRefused)
    assert refused.error.reason == "Token has expired 0 seconds ago"
    assert not refused.error.retryable
    assert channel.state is rtpool.ChannelState.ERRORED
    assert len(server.joins("room")) == 1, "nothing is tried that cannot succeed"
    pool.set_auth(server.token(sub="second"))
    gap = gaps.wait(1)[0]
    assert gap.cause == "token"
    server.broadcast("room", "x", {"n": 1})
    heard.wait(1)
    assert channel.is_subscribed


def test_a_refused_token_at_the_first_join_is_raised_in_the_servers_words(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    for token, code, words in [
        (server.token(expires_in=-5), "InvalidJWTToken", "expired"),
        ("not.a.token", "MalformedJWT", "not a valid JWT"),
    ]:
        with pytest.raises(rtpool.JoinRefused, match=words) as caught:
            pool.channel("room", access_token=token).subscribe()
        assert caught.value.code == code
        assert not caught.value.retryable
        assert token not in str(caught.value)


def test_a_callable_whose_token_is_refused_is_asked_once_more_before_subscribe_raises(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    server.policy = lambda request: request.claims.get("number") == 1
    ask = Ask(server)
    pool = make_pool(access_token=ask)
    pool.channel("room", private=True).subscribe()
    assert len(joined_with(server)) == 2
    server.policy = lambda request: False
    with pytest.raises(rtpool.JoinRefused, match="permissions to read") as caught:
        pool.channel("hall", private=True).subscribe()
    assert caught.value.code == "Unauthorized"


def test_a_callable_that_fails_is_asked_again_until_it_works(server: RealtimeServer, make_pool: MakePool) -> None:
    answers = iter([RuntimeError("down"), None, server.token()])

    def ask() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[return-value]

    statuses = Recorder()
    channel = make_pool(access_token=ask).channel("room").on_status(statuses).subscribe()
    assert channel.is_subscribed
    failed = [s.error for s in statuses.events if s.error is not None]
    assert [(type(e), e.code) for e in failed] == [(rtpool.JoinRefused, "TokenUnavailable")] * 2


def test_a_token_that_loses_its_permission_ends_in_a_typed_status_and_a_better_one_comes_back(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    server.policy = lambda request: request.claims.get("sub") != "eve"
    pool.set_auth(server.token(sub="ann"))
    statuses = Recorder()
    channel = pool.channel("room", private=True).on_status(statuses).subscribe()
    pool.set_auth(server.token(sub="eve"))
    refused = statuses.wait_for(lambda events: [e for e in events if e.status == "refused"])[-1]
    assert "permission" in refused.error.reason
    pool.set_auth(server.token(sub="bob"))
    statuses.wait_for(lambda events: [e.status for e in events][-1] == "joined")
    assert channel.is_subscribed


def test_a_renewed_token_renews_the_changes_feed_without_a_gap(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    pool.set_auth(server.token(sub="first"))
    gaps, said, changes = Recorder(), Recorder(), Recorder()
    channel = pool.channel("cars").on_gap(gaps).on_system(said).on_postgres_changes("*", changes, table="cars")
    channel.subscribe()
    pool.set_auth(server.token(sub="second"))
    said.wait(2)
    server.change("public", "cars", "INSERT", {"id": 1})
    changes.wait(1)
    assert gaps.events == []
    server.restart_changes_feed()
    assert gaps.wait(1)[0].cause == "feed restart"


def test_different_tokens_never_share_a_join_or_a_row(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    server.policy = lambda request: request.claims.get("sub") == "ann"
    ann = pool.channel("room", private=True, access_token=server.token(sub="ann")).subscribe()
    with pytest.raises(rtpool.JoinRefused):
        pool.channel("room", private=True, access_token=server.token(sub="eve")).subscribe()
    assert ann.is_subscribed
    wait_until(lambda: pool.stats().total_joins == 1)


def test_an_opaque_key_passes_through(server: RealtimeServer, make_pool: MakePool) -> None:
    with RealtimeServer(api_key="sb_publishable_abc") as opaque:
        pool = make_pool(opaque.url, api_key="sb_publishable_abc", access_token="sb_secret_xyz")
        pool.channel("room").subscribe()
        assert joined_with(opaque) == ["sb_secret_xyz"]
        pool.close()


def test_a_policy_sees_the_claims_of_the_token_in_force(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    seen: list[PolicyRequest] = []
    server.policy = lambda request: seen.append(request) or True  # type: ignore[func-returns-value]
    pool.channel("room", private=True, access_token=server.token(sub="ann")).subscribe()
    assert seen[0].topic == "room"
    assert seen[0].claims["sub"] == "ann"


def test_a_token_set_while_a_join_is_under_way_reaches_it_after_the_reply(make_pool: MakePool) -> None:
    with RealtimeServer(join_latency=0.2) as server:
        pool = make_pool(server.url, api_key=server.api_key)
        old, new = server.token(sub="old"), server.token(sub="new")
        pool.set_auth(old)
        channel = pool.channel("room").subscribe(wait=False)
        server.wait_for(lambda s: s.joins("room"))
        pool.set_auth(new)
        channel.subscribe()
        server.wait_for(lambda s: renewals(s) == [new])
        assert joined_with(server) == [old]
        pool.close()


@pytest.mark.parametrize("token", ["\ud800.x.y", "a\nb.c.d", " ", "é.é.é"])
def test_what_can_be_no_token_is_refused_at_the_call_and_harms_nobody(
    server: RealtimeServer, pool: rtpool.RealtimePool, token: str
) -> None:
    channel = pool.channel("room").subscribe()
    for use in (
        lambda: pool.set_auth(token),
        lambda: pool.channel("hall", access_token=token),
        lambda: rtpool.RealtimePool(server.url, api_key="k", access_token=token),
    ):
        with pytest.raises(rtpool.InvalidValue, match="access_token") as caught:
            use()
        assert token.strip() == "" or token not in str(caught.value)
    assert channel.is_subscribed


def test_a_pool_whose_only_timer_is_years_away_lives_on(server: RealtimeServer, make_pool: MakePool) -> None:
    pool = make_pool(access_token=lambda: server.token(expires_in=3e8), cleanup_interval=0.0)
    pool.channel("room").subscribe().unsubscribe()
    server.wait_for(lambda s: not s.connections)
    assert pool.channel("room").subscribe().is_subscribed


def test_a_callable_that_hangs_holds_up_neither_a_new_token_nor_anybodys_dial(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    release = threading.Event()

    def hang() -> str:
        release.wait(60)
        return server.token()

    pool = make_pool()
    try:
        healthy = pool.channel("room").subscribe()
        for number in range(9):  # more than there are threads to call them
            pool.channel(f"stuck-{number}", access_token=lambda: hang()).subscribe(wait=False)
        server.connections[0].abort()
        server.wait_for(lambda s: s.connections_total == 2 and s.members("room"))
        wait_until(lambda: healthy.is_subscribed)
        pool.set_auth(hang)
        late = pool.channel("hall").subscribe(wait=False)
        pool.set_auth(server.token(sub="new"))
        late.subscribe(timeout=10)
    finally:
        release.set()


def test_a_callable_that_would_end_the_process_is_told_and_asked_again(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    asked = []

    def ask() -> str:
        asked.append(1)
        if len(asked) == 1:
            raise SystemExit
        return server.token()

    statuses = Recorder()
    channel = make_pool(access_token=ask).channel("room").on_status(statuses).subscribe()
    assert channel.is_subscribed
    assert any(getattr(s.error, "code", "") == "TokenUnavailable" for s in statuses.events)


def test_a_new_callable_that_fails_once_reaches_live_joins_all_the_same(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    answers = iter([OSError("net"), server.token(sub="new")])

    def ask() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[return-value]

    pool.channel("room").subscribe()
    pool.set_auth(ask)
    server.wait_for(lambda s: len(renewals(s)) == 1)


def test_many_channels_of_one_callable_are_one_call_and_share_their_joins(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    class Auth:
        __hash__ = None  # type: ignore[assignment]
        asked = 0

        def __eq__(self, other: object) -> bool:
            raise AssertionError("user code under a lock")

        def token(self) -> str:
            self.asked += 1
            return server.token()

        def __call__(self) -> str:
            return self.token()

    auth = Auth()
    for _ in range(5):
        pool.channel("room", access_token=auth.token).subscribe()
        pool.channel("hall", access_token=auth.token).subscribe()
    assert auth.asked == 1
    assert pool.stats().total_joins == 2
    pool.channel("room", access_token=auth).subscribe()
    assert pool.stats().total_joins == 3


def test_a_refusal_that_no_token_helps_is_not_tried_with_the_next_one(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    server.configure(private_only=True)
    statuses = Recorder()
    pool.channel("room").on_status(statuses).subscribe(wait=False)
    statuses.wait_for(lambda events: [e for e in events if e.status == "refused"])
    pool.set_auth(server.token())
    pool.channel("vault", private=True).subscribe()
    assert len(server.joins("room")) == 1


def test_a_refused_channel_that_subscribes_again_is_asked_about_again(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    server.policy = lambda request: False
    channel, statuses = pool.channel("room", private=True, access_token=lambda: server.token()), Recorder()
    channel.on_status(statuses).subscribe(wait=False)
    statuses.wait_for(lambda events: [e for e in events if e.status == "refused"])
    server.policy = None
    assert channel.subscribe(timeout=10).is_subscribed


def test_a_token_that_is_refused_for_what_it_is_costs_the_socket_a_few_joins_not_one_for_each_topic(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    pool, told = make_pool(access_token=server.token(expires_in=-60)), Recorder()
    channels = [pool.channel(f"room-{number}").on_status(told) for number in range(40)]
    for channel in channels:
        channel.subscribe(wait=False)
    told.wait_for(lambda events: sum(e.status == "refused" for e in events) == 40)
    assert {e.error.code for e in told.events if e.status == "refused"} == {"InvalidJWTToken"}
    assert {e.error.topic for e in told.events if e.status == "refused"} == {c.topic for c in channels}
    assert len(server.joins()) <= pool.options.max_joins_in_flight
    with pytest.raises(rtpool.JoinRefused, match="'late'"):
        pool.channel("late").subscribe()
    pool.set_auth(server.token())
    wait_until(lambda: all(channel.is_subscribed for channel in channels))


def test_a_topic_that_is_refused_for_itself_says_nothing_about_the_others(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    server.policy = lambda request: request.topic != "secret"
    pool = make_pool(access_token=server.token())
    with pytest.raises(rtpool.JoinRefused, match="Unauthorized"):
        pool.channel("secret", private=True).subscribe()
    pool.channel("room", private=True).subscribe()

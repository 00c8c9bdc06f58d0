"""Private channels: what row-level security lets a token do, and how its silence is put into words."""

from __future__ import annotations

import pytest

import rtpool
from rtpool.testing import Permissions, PolicyRequest, RealtimeServer
from tests.support.recorder import Recorder
from tests.support.wait import wait_until


def test_a_private_channel_and_a_public_one_of_the_same_name_never_hear_each_other(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    public, private = Recorder(), Recorder()
    pool.channel("room").on_broadcast("*", public).subscribe()
    pool.channel("room", private=True).on_broadcast("*", private).subscribe()
    server.broadcast("room", "x", {"n": 1}, private=True)
    server.broadcast("room", "x", {"n": 2})
    assert private.wait(1)[0].payload == {"n": 1}
    assert public.wait(1)[0].payload == {"n": 2}
    assert len(private.events) == len(public.events) == 1


def test_a_join_without_permission_is_refused_once_in_the_servers_words(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    server.policy = lambda request: False
    with pytest.raises(rtpool.JoinRefused, match="You do not have permissions to read from this Channel topic: room"):
        pool.channel("room", private=True).subscribe()
    wait_until(lambda: pool.stats().total_joins == 0)
    assert len(server.joins("room")) == 1
    pool.channel("room").subscribe()  # the public one needs none


def test_a_broadcast_the_policy_denies_is_never_answered_and_the_timeout_says_what_that_may_mean(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    server.policy = lambda request: Permissions(read_broadcast=True)
    heard = Recorder()
    pool.channel("room", private=True).on_broadcast("*", heard).subscribe()
    channel = pool.channel("room", private=True, ack=True).subscribe()
    with pytest.raises(rtpool.PushTimeout, match="write policy denies") as caught:
        channel.send_broadcast("x", {"n": 1}, timeout=0.2).result()
    assert caught.value.sent
    server.policy = lambda request: True
    pool.set_auth(server.token(sub="ann"))
    assert channel.send_broadcast("x", {"n": 2}).result() == {}
    assert heard.wait(1)[0].payload == {"n": 2}, "siblings hear only what the server accepted"


def test_the_same_timeout_on_a_public_channel_blames_no_policy(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    channel = pool.channel("room", ack=True).subscribe()
    server.connections[0].freeze()
    with pytest.raises(rtpool.PushTimeout) as caught:
        channel.send_broadcast("x", {}, timeout=0.2).result()
    assert "policy" not in str(caught.value)
    server.connections[0].thaw()


def test_a_presence_the_policy_denies_is_refused_and_not_said_again(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    server.policy = lambda request: Permissions(read_broadcast=True, write_broadcast=True)
    channel = pool.channel("room", private=True, ack=True).subscribe()
    with pytest.raises(rtpool.PushRefused) as caught:
        channel.track({"name": "Ann"}).result()
    assert (caught.value.status, caught.value.response) == ("error", {})
    channel.send_broadcast("x", {}).result()
    assert [m.event for m in server.received if m.event == "presence"] == ["presence"]
    with pytest.raises(rtpool.PushRefused):  # asked for again it is tried again
        channel.track({"name": "Ann"}).result()


def test_who_may_only_read_presence_hears_no_broadcast(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    def policy(request: PolicyRequest) -> Permissions | bool:
        return Permissions(read_presence=True) if request.claims.get("sub") == "watcher" else True

    server.policy = policy
    heard, joins = Recorder(), Recorder()
    watcher = pool.channel("room", private=True, access_token=server.token(sub="watcher"))
    watcher.on_broadcast("*", heard).on_presence_join(joins).subscribe()
    speaker = pool.channel("room", private=True, ack=True, access_token=server.token(sub="speaker")).subscribe()
    speaker.send_broadcast("x", {}).result()
    speaker.track({"name": "Ann"}).result()
    assert joins.wait(1)[0].metas[0]["name"] == "Ann"
    assert heard.events == []


def test_a_presence_over_the_servers_limit_is_not_said_again_after_the_rejoin() -> None:
    with (
        RealtimeServer(max_payload_kb=1) as server,
        rtpool.RealtimePool(server.url, api_key=server.api_key, base_delay=0.05) as pool,
    ):
        statuses = Recorder()
        channel = pool.channel("room").on_status(statuses).subscribe()
        push = channel.track({"name": "x" * 5_000})
        with pytest.raises(rtpool.RtpoolError, match="Track message size exceeded"):
            push.result()
        statuses.wait_for(lambda events: [e.status for e in events].count("joined") == 2)
        channel.track({"name": "Ann"}).result()
        assert [m.event for m in server.received if m.event == "presence"] == ["presence"] * 2


def test_a_project_of_private_channels_alone_refuses_the_others_for_good(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    server.configure(private_only=True)
    with pytest.raises(rtpool.JoinRefused, match="only allows private channels") as caught:
        pool.channel("room").subscribe()
    assert (caught.value.code, caught.value.retryable) == ("PrivateOnly", False)
    pool.channel("room", private=True).subscribe()


def test_siblings_hear_nothing_the_server_refused_though_nobody_asked_for_its_answer(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    server.policy = lambda request: Permissions(read_broadcast=True)
    heard = Recorder()
    pool.channel("room", private=True).on_broadcast("*", heard).subscribe()
    sender = pool.channel("room", private=True).subscribe()
    assert sender.send_broadcast("x", {"n": 1}).result() is None, "the kernel has it; more was not asked for"
    server.wait_for(lambda s: any(m.event == "broadcast" for m in s.received))
    server.policy = None
    pool.set_auth(server.token())
    sender.send_broadcast("x", {"n": 2}).result()
    assert heard.wait(1)[0].payload == {"n": 2}


def test_a_refused_broadcast_claims_no_strangers_message_of_equal_content_for_ever(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    server.policy = lambda request: Permissions(read_broadcast=True)
    heard, own = Recorder(), Recorder()
    sender = pool.channel("room", private=True).on_broadcast("*", heard).subscribe()
    pool.channel("room", private=True, receive_own=True).on_broadcast("*", own).subscribe()
    push = sender.send_broadcast("x", {}, timeout=0.2)
    push.result()
    server.wait_for(lambda s: any(m.event == "broadcast" for m in s.received))
    wait_until(lambda: not any(j.echoes for j in pool._engine.coordinator.joins.values()))
    server.broadcast("room", "x", {}, private=True)
    heard.wait(1)

"""Being present: on shared joins, over reconnects, and within what a server allows."""

from __future__ import annotations

import threading

import pytest

import rtpool
from rtpool.testing import NO_REPLY, Permissions, RealtimeServer
from tests.conftest import MakePool
from tests.support.recorder import Recorder


def calls(server: RealtimeServer) -> list[str]:
    """The presence calls the server had, by their inner event."""
    return [m.payload["event"] for m in server.received if m.event == "presence"]


def metas(server: RealtimeServer, topic: str = "lobby") -> list[dict[str, object]]:
    """Who is present, without the server's own refs."""
    return [
        {k: v for k, v in meta.items() if not k.startswith("phx_ref")}
        for entry in server.presence(topic).values()
        for meta in entry["metas"]
    ]


def test_a_burst_of_tracks_is_told_as_its_newest_and_every_push_has_its_answer(make_pool: MakePool) -> None:
    with RealtimeServer(presence_max_calls=5) as server:
        pool = make_pool(server.url, api_key=server.api_key)
        statuses = Recorder()
        channel = pool.channel("lobby", presence_key="ann").on_status(statuses).subscribe()
        pushes = [channel.track({"n": n}) for n in range(100)]
        assert [push.result(timeout=10) for push in pushes] == [{}] * 100
        assert metas(server) == [{"n": 99}]
        assert len(calls(server)) <= 5
        assert [s.status for s in statuses.events] == ["joining", "joined"]
        pool.close()


def test_sustained_tracking_is_slowed_down_instead_of_being_thrown_out(make_pool: MakePool) -> None:
    with RealtimeServer(presence_max_calls=3, presence_window=0.3) as server:
        pool = make_pool(server.url, api_key=server.api_key, max_presence_calls=3, presence_window=0.3)
        statuses = Recorder()
        channel = pool.channel("lobby").on_status(statuses).subscribe()
        for n in range(12):  # each waits for its answer, so nothing can be merged
            channel.track({"n": n}).result(timeout=10)
        channel.untrack().result(timeout=10)
        assert calls(server) == ["track"] * 12 + ["untrack"]
        assert [s.status for s in statuses.events] == ["joining", "joined"]
        pool.close()


def test_a_push_that_the_budget_keeps_too_long_times_out_and_its_wish_is_told_all_the_same(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    pool = make_pool(max_presence_calls=1, presence_window=1.0)
    channel = pool.channel("lobby").subscribe()
    channel.track({"n": 1}).result()
    with pytest.raises(rtpool.PushTimeout, match="goes out by itself") as caught:
        channel.track({"n": 2}, timeout=0.05).result()
    assert not caught.value.sent
    server.wait_for(lambda s: metas(s) == [{"n": 2}])


def test_an_identical_payload_costs_no_second_call(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    channel = pool.channel("lobby").subscribe()
    for _ in range(3):
        assert channel.track({"n": 1}).result() == {}
    assert calls(server) == ["track"]
    channel.untrack().result()
    channel.untrack().result()
    assert calls(server) == ["track", "untrack"]


def test_a_presence_two_channels_wish_lasts_until_the_second_ends_it(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    one, two = (pool.channel("lobby").subscribe() for _ in range(2))
    one.track({"name": "Ann"}).result()
    two.track({"name": "Ann"}).result()
    one.untrack().result()
    assert metas(server) == [{"name": "Ann"}]
    with pytest.raises(rtpool.ConfigConflict, match="presence_key"):
        one.track({"name": "Bob"})
    two.unsubscribe()
    server.wait_for(lambda s: not metas(s))
    one.track({"name": "Bob"}).result()
    assert metas(server) == [{"name": "Bob"}]


def test_a_channel_that_never_tracked_cannot_end_its_siblings_presence(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    one, two = (pool.channel("lobby").subscribe() for _ in range(2))
    one.track({"name": "Ann"}).result()
    two.untrack().result()
    two.unsubscribe()
    assert metas(server) == [{"name": "Ann"}]


def test_different_presence_keys_are_present_side_by_side(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    for name in ("ann", "bob"):
        pool.channel("lobby", presence_key=name).subscribe().track({"name": name}).result()
    assert sorted(server.presence("lobby")) == ["ann", "bob"]


def test_a_track_that_a_reconnect_overtakes_is_answered_after_it(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    channel = pool.channel("lobby", presence_key="ann").subscribe()
    server.connections[0].pause_reading()
    push = channel.track({"n": 1})
    server.connections[0].abort()
    assert push.result(timeout=10) == {}
    assert metas(server) == [{"n": 1}]


def test_after_every_reconnect_the_newest_wish_is_told_once(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    seen = Recorder()
    other = rtpool.RealtimePool(server.url, api_key=server.api_key)
    with other:
        other.channel("lobby").on_presence_join(seen).subscribe()
        channel = pool.channel("lobby", presence_key="ann").subscribe()
        channel.track({"n": 1}).result()
        channel.track({"n": 2}).result()
        for round_ in range(3):
            before = len(seen.wait(2 + round_))
            next(c for c in server.connections if "realtime:lobby" in c.topics and c.id != 1).abort()
            joined = seen.wait(before + 1)[-1]
            assert joined.key == "ann"
            assert joined.metas[0]["n"] == 2
        assert calls(server) == ["track"] * 5


def test_threads_that_track_at_once_leave_one_of_their_wishes(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    channel = pool.channel("lobby").subscribe()
    barrier, pushes = threading.Barrier(8), []

    def track(n: int) -> None:
        barrier.wait()
        pushes.append(channel.track({"n": n}))

    threads = [threading.Thread(target=track, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [push.result(timeout=10) for push in pushes] == [{}] * 8
    (present,) = metas(server)
    assert present["n"] in range(8)
    assert len(calls(server)) <= 8


def test_a_channel_with_a_presence_key_has_presence_without_any_callback(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    with pool.channel("lobby", presence_key="ann") as channel:
        channel.track({"n": 1}).result()
        events = iter(channel.events(timeout=10))
        joined = next(e for e in events if isinstance(e, rtpool.Presence) and e.type == "join")
        assert joined.key == "ann"
        next(e for e in events if isinstance(e, rtpool.Presence) and e.type == "sync" and e.state)
        assert channel.presence_state()["ann"][0]["n"] == 1


def test_a_callback_that_replaces_another_is_told_who_is_present(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    first, second = Recorder(), Recorder()
    channel = pool.channel("lobby", presence_key=None).on_presence_sync(first).subscribe()
    pool.channel("lobby").subscribe().track({"n": 1}).result()
    first.wait_for(lambda events: events and events[-1].state)
    channel.off(first)
    channel.on_presence_sync(second)
    assert second.wait(1)[0].state


def test_the_same_payload_in_another_order_is_the_same_presence(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    one, two = (pool.channel("lobby").subscribe() for _ in range(2))
    one.track({"a": 1, "b": 2}).result()
    two.track({"b": 2, "a": 1}).result()
    with pytest.raises(rtpool.ConfigConflict):
        two.track({"b": 2, "a": True})
    assert calls(server) == ["track"]


def test_who_leaves_and_comes_back_at_once_is_told_who_is_present(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    pool.channel("lobby", presence_key="bob").subscribe().track({"n": 1}).result()
    for _ in range(20):
        joins = Recorder()
        channel = pool.channel("lobby").on_presence_join(joins).subscribe()
        joins.wait(1)
        channel.unsubscribe(timeout=0)
        again = channel.subscribe()
        joins.wait(2)
        again.unsubscribe()


def test_a_flood_of_tracks_holds_up_nobody(server: RealtimeServer, make_pool: MakePool) -> None:
    pool = make_pool(max_presence_calls=100_000)
    other = pool.channel("room", ack=True).subscribe()
    channel = pool.channel("lobby").subscribe()
    for n in range(10_000):
        channel.track({"n": n})
    assert other.send_broadcast("x", {}).result(timeout=10) == {}
    server.wait_for(lambda s: metas(s) == [{"n": 9_999}])


def test_a_track_that_finds_no_room_is_not_told_later(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(send_buffer_limit=1)
    server.on_join = lambda topic, payload, connection: NO_REPLY
    channel = pool.channel("lobby").subscribe(wait=False)
    server.wait_for(lambda s: s.joins("lobby"))
    channel.track({"n": 1})
    with pytest.raises(rtpool.SendBufferFull):
        channel.track({"n": 2})
    server.on_join = None
    server.connections[0].abort()
    server.wait_for(lambda s: metas(s) == [{"n": 1}])


def test_a_presence_that_was_denied_is_said_again_under_another_token(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    server.policy = lambda request: request.claims.get("sub") == "ann" or Permissions(read_broadcast=True)
    channel = pool.channel("lobby", private=True).subscribe()
    with pytest.raises(rtpool.PushRefused):
        channel.track({"n": 1}).result()
    pool.set_auth(server.token(sub="ann"))
    server.wait_for(lambda s: metas(s) == [{"n": 1}])

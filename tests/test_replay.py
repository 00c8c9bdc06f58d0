"""Stored broadcasts: what was missed comes once, in order, and what may still be missing is said."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

import rtpool
from rtpool.testing import Permissions, RealtimeServer
from tests.conftest import MakePool
from tests.support.recorder import Recorder


def store(server: RealtimeServer, *numbers: int, topic: str = "room") -> None:
    for n in numbers:
        server.database_send(topic, "x", {"n": n})


class Reader:
    """A Channel and all it hears."""

    def __init__(self, pool: rtpool.RealtimePool, topic: str = "room", **settings: Any) -> None:
        self.heard, self.gaps = Recorder(), Recorder()
        self.channel = pool.channel(topic, private=True, **settings)
        self.channel.on_broadcast("*", self.heard).on_gap(self.gaps).subscribe()


def drop_and_store(server: RealtimeServer, *numbers: int, topic: str = "room") -> None:
    """Cut the socket off and store messages before anybody is back."""
    server.on_connect = lambda request: store(server, *numbers, topic=topic)  # type: ignore[func-returns-value]
    connections = server.connections_total
    server.connections[0].abort()
    server.wait_for(lambda s: s.connections_total > connections and s.members(topic))
    server.on_connect = None


@pytest.mark.parametrize("protocol", ["2.0.0", "1.0.0"])
def test_what_was_missed_in_an_interruption_is_replayed_once_and_in_order(
    server: RealtimeServer, make_pool: MakePool, protocol: str
) -> None:
    reader = Reader(make_pool(protocol=protocol), replay=True)
    store(server, 1, 2, 3)
    reader.heard.wait(3)
    drop_and_store(server, 4, 5)
    gap = reader.gaps.wait(1)[0]
    store(server, 6)
    reader.heard.wait(6)
    assert reader.heard.numbers == [1, 2, 3, 4, 5, 6]
    assert [m.replayed for m in reader.heard.events] == [False, False, False, True, True, False]
    assert (gap.cause, gap.replay, gap.truncated) == ("transport", 2, False)


def test_a_binary_message_is_replayed_too(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    reader = Reader(pool, replay=True)

    def while_away(request: object) -> None:
        server.database_send("room", "x", b"\x00\xff")

    server.on_connect = while_away
    server.connections[0].abort()
    message = reader.heard.wait(1)[0]
    assert (message.payload, message.replayed) == (b"\x00\xff", True)
    assert reader.gaps.wait(1)[0].replay == 1


def test_without_replay_nothing_is_asked_for_and_the_gap_says_so(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    reader = Reader(pool)
    drop_and_store(server, 1)
    assert reader.gaps.wait(1)[0].replay is None
    assert all("replay" not in r.payload["config"]["broadcast"] for r in server.joins("room"))
    assert [m.event for m in server.received if m.event == "presence"] == []


def test_a_replay_that_brought_nothing_says_nothing_was_lost_of_the_stored(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    reader = Reader(pool, replay=True)
    drop_and_store(server)
    assert reader.gaps.wait(1)[0].replay == 0


def test_more_than_the_server_replays_is_reported_as_truncated(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    reader = Reader(pool, replay=True)
    store(server, 0)
    reader.heard.wait(1)
    drop_and_store(server, *range(1, 31))
    gap = reader.gaps.wait(1)[0]
    assert (gap.replay, gap.truncated) == (25, True)
    assert reader.heard.numbers == [0, *range(6, 31)]

    drop_and_store(server, *range(31, 55))
    gap = reader.gaps.wait(2)[1]
    assert (gap.replay, gap.truncated) == (24, False), "the replay reaches back to what was had"
    assert reader.heard.numbers == [0, *range(6, 55)]


def test_a_first_join_gets_the_newest_since_the_time_given(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    now = server.clock.now()
    for n, age in enumerate([90, 50, 40, 30]):
        server.database_send("room", "x", {"n": n}, inserted_at=now - age)
    since = datetime.fromtimestamp(now - 60, timezone.utc)
    reader = Reader(pool, replay={"since": since, "limit": 2})
    reader.heard.wait(2)
    store(server, 4)
    reader.heard.wait(3)
    assert reader.heard.numbers == [2, 3, 4]
    assert reader.gaps.events == []


def test_a_first_replay_that_is_full_is_reported_as_truncated(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    since = int(server.clock.now() * 1000) - 1_000
    store(server, *range(40))
    reader = Reader(pool, replay={"since": since})
    gap = reader.gaps.wait(1)[0]
    assert (gap.cause, gap.replay, gap.truncated) == ("replay", 25, True)
    assert int(gap.lost_from.timestamp() * 1000) == since
    assert reader.heard.numbers == list(range(15, 40))


def test_a_late_channel_gets_what_the_server_would_replay_to_it(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    replay = {"since": int(server.clock.now() * 1000) - 1_000, "limit": 3}
    store(server, 0, 1, 2, 3)
    first = Reader(pool, replay=replay)
    first.heard.wait(3)
    store(server, 4)
    first.heard.wait(4)
    late = Reader(pool, replay=replay)
    late.heard.wait(3)
    store(server, 5)
    late.heard.wait(4)
    first.heard.wait(5)
    assert late.heard.numbers == [2, 3, 4, 5]
    assert first.heard.numbers == [1, 2, 3, 4, 5]
    assert [m.replayed for m in late.heard.events] == [True, True, True, False]
    assert len(server.joins("room")) == 1


def test_channels_that_want_different_replays_each_get_their_own(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    since = int(server.clock.now() * 1000) - 1_000
    store(server, 0, 1, 2)
    two = Reader(pool, replay={"since": since, "limit": 2})
    one = Reader(pool, replay={"since": since, "limit": 1})
    bridged = Reader(pool, replay=True)
    plain = Reader(pool)
    two.heard.wait(2)
    one.heard.wait(1)
    store(server, 3)
    for reader in (two, one, bridged, plain):
        reader.heard.wait_for(lambda events: events and events[-1].payload["n"] == 3)
    assert two.heard.numbers == [1, 2, 3]
    assert one.heard.numbers == [2, 3]
    assert bridged.heard.numbers == plain.heard.numbers == [3]
    assert len(server.joins("room")) == 3, "a plain Channel shares with one that only bridges interruptions"


def test_a_sibling_without_replay_hears_nothing_that_was_replayed(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    bridged, plain = Reader(pool, replay=True), Reader(pool)
    assert len(server.joins("room")) == 1
    drop_and_store(server, 1)
    assert bridged.gaps.wait(1)[0].replay == 1
    assert plain.gaps.wait(1)[0].replay is None
    store(server, 2)
    plain.heard.wait(1)
    bridged.heard.wait(2)
    assert plain.heard.numbers == [2]
    assert bridged.heard.numbers == [1, 2]


def test_what_was_stored_before_the_subscription_is_not_replayed_after_it(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    server.database_send("room", "x", {"n": 0}, inserted_at=server.clock.now() - 5)
    reader = Reader(pool, replay=True)
    drop_and_store(server, 1)
    reader.gaps.wait(1)
    assert reader.heard.numbers == [1]


def test_a_clock_that_is_told_in_rough_has_a_little_too_much_replayed_rather_than_too_little(
    server: RealtimeServer, pool: rtpool.RealtimePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtpool.engine.upgrade._ahead", lambda date: -15.0)  # as if it told quarters of a minute
    server.database_send("room", "x", {"n": 0}, inserted_at=server.clock.now() - 60)
    store(server, 1)
    reader = Reader(pool, replay=True)
    drop_and_store(server, 2)
    assert reader.gaps.wait(1)[0].replay == 2
    assert reader.heard.numbers == [1, 2]


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_wrong_clock_of_ours_loses_nothing(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    pool = make_pool()
    for part in (pool._engine.coordinator, pool._engine.coordinator.joining):
        monkeypatch.setattr(part, "_wall", lambda: datetime.now(timezone.utc) + timedelta(hours=hours))
    monkeypatch.setattr("rtpool.engine.upgrade._ahead", lambda date: -3_600.0 * hours)
    server.database_send("room", "x", {"n": 0}, inserted_at=server.clock.now() - 60)
    reader = Reader(pool, replay=True)
    drop_and_store(server, 1)
    assert reader.gaps.wait(1)[0].replay == 1
    assert reader.heard.numbers == [1]


def test_replay_works_beside_presence_and_does_not_end_it(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    reader = Reader(pool, replay=True, presence_key="ann")
    reader.channel.track({"name": "Ann"}).result()
    drop_and_store(server, 1)
    assert reader.gaps.wait(1)[0].replay == 1
    server.wait_for(lambda s: "ann" in s.presence("room"))


def test_replay_works_where_presence_is_forbidden(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    server.policy = lambda request: Permissions(read_broadcast=True)
    reader = Reader(pool, replay=True)
    drop_and_store(server, 1)
    assert reader.gaps.wait(1)[0].replay == 1
    assert reader.heard.numbers == [1]


@pytest.mark.parametrize(
    ("replay", "words"),
    [(True, "private=True"), ({"since": 1}, "private=True"), ({"since": datetime(2026, 1, 1)}, "naive")],
)
def test_a_replay_that_cannot_be_is_refused_at_the_call(
    server: RealtimeServer, pool: rtpool.RealtimePool, replay: Any, words: str
) -> None:
    with pytest.raises(rtpool.InvalidValue, match=words):
        pool.channel("room", replay=replay)


def test_senders_that_choose_one_id_twice_lose_nothing(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    bridged, plain = Reader(pool, replay=True), Reader(pool)
    for n in range(3):
        server.broadcast("room", "x", {"n": n}, private=True, id="order-5")
    for reader in (bridged, plain):
        reader.heard.wait(3)
        assert reader.heard.numbers == [0, 1, 2]


def test_a_channel_that_comes_while_messages_flow_gets_each_of_them_once(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    replay = {"since": int(server.clock.now() * 1000) - 1_000}
    Reader(pool, replay=replay)
    for n in range(0, 60, 3):
        store(server, n)
        heard = Recorder()
        late = pool.channel("room", private=True, replay=replay).on_broadcast("*", heard)
        late.subscribe(wait=False)
        store(server, n + 1)
        late.subscribe()
        store(server, n + 2)
        heard.wait_for(lambda events, n=n: events and events[-1].payload["n"] == n + 2)
        numbers = heard.numbers
        assert numbers == sorted(set(numbers))
        assert numbers[-3:] == [n, n + 1, n + 2]
        late.unsubscribe()

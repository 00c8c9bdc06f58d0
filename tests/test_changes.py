"""Postgres changes on a shared join: each Channel is ready for itself, and a feed in trouble is told with bounds."""

from __future__ import annotations

from typing import Any

import pytest

import rtpool
from rtpool.testing import RealtimeServer
from tests.conftest import MakePool
from tests.support.recorder import Recorder
from tests.support.wait import wait_until

TROUBLE = '{:error, "Too many database timeouts"}'


def feed_says(server: RealtimeServer, status: str, words: str, topic: str = "room") -> None:
    server.push(topic, "system", {"extension": "postgres_changes", "status": status, "message": words})


class Reader:
    """A Channel with changes and all it is told."""

    def __init__(self, pool: rtpool.RealtimePool, table: str | None = "cars", **settings: Any) -> None:
        self.rows, self.gaps, self.statuses = Recorder(), Recorder(), Recorder()
        self.channel = pool.channel("room").on_gap(self.gaps).on_status(self.statuses)
        if table:
            self.channel.on_postgres_changes("*", self.rows, table=table, **settings)
        else:
            self.channel.on_broadcast("*", self.rows)

    def status(self, word: str) -> rtpool.StatusChange:
        return self.statuses.wait_for(lambda events: [e for e in events if e.status == word])[-1]  # type: ignore[no-any-return]


def test_that_changes_flow_is_said_once_to_each_whether_it_was_there_or_came_late(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    pool, early, late = make_pool(), Recorder(), Recorder()
    Reader(pool).channel.on_system(early).subscribe()
    Reader(pool).channel.on_system(late).subscribe()
    assert len(server.connections) == 1
    feed_says(server, "ok", "the last word")
    for heard in (early, late):
        words = [
            said.message for said in heard.wait_for(lambda events: events[-1].message == "the last word" and events)
        ]
        assert words == ["Subscribed to PostgreSQL", "the last word"]


def test_a_siblings_cold_feed_holds_up_nobody_who_wants_no_changes(make_pool: MakePool) -> None:
    with RealtimeServer(postgres_delay=3_600.0) as server:
        pool = make_pool(server.url, api_key=server.api_key)
        cold, plain = Reader(pool), Reader(pool, table=None)
        cold.channel.subscribe(wait=False)
        server.wait_for(lambda s: s.members("room"))
        plain.channel.subscribe(timeout=10)
        assert plain.channel.is_subscribed
        assert not cold.channel.is_subscribed
        server.connections[0].abort()
        assert plain.gaps.wait(1)[0].cause == "transport"
        assert cold.gaps.events == []
        pool.close()


def test_bindings_the_server_refuses_trouble_those_alone_who_have_bindings(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    good, plain = Reader(pool), Reader(pool, table=None)
    good.channel.subscribe()
    plain.channel.subscribe()
    bad = Reader(pool, filter="id=in.({,)")  # well-formed, and no array to the database
    with pytest.raises(rtpool.JoinRefused, match="malformed array literal"):
        bad.channel.subscribe()
    assert "refused" not in [s.status for s in plain.statuses.events]
    # Without the bad one the others flow again, and were told what they may have missed.
    assert good.gaps.wait(1)
    wait_until(lambda: good.channel.is_subscribed and plain.channel.is_subscribed)
    server.change("public", "cars", "INSERT", {"id": 1})
    good.rows.wait(1)
    later = Reader(pool)
    later.channel.subscribe()
    assert later.channel.is_subscribed


def test_a_feed_in_trouble_is_no_subscription_and_its_return_is_one_gap(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    reader, plain = Reader(pool), Reader(pool, table=None)
    reader.channel.subscribe()
    plain.channel.subscribe()
    server.change("public", "cars", "INSERT", {"id": 1})
    reader.rows.wait(1)
    feed_says(server, "error", TROUBLE)
    assert TROUBLE in str(reader.status("refused").error)
    assert not reader.channel.is_subscribed
    assert plain.channel.is_subscribed
    assert not pool.health().ok
    late = Reader(pool)
    late.channel.subscribe(wait=False)
    feed_says(server, "ok", "Subscribed to PostgreSQL")
    (gap,) = reader.gaps.wait(1)
    assert gap.cause == "feed restart"
    assert gap.lost_from < gap.lost_to
    late.channel.subscribe(timeout=10)
    assert [s.status for s in reader.statuses.wait(4)] == ["joining", "joined", "refused", "joined"]
    assert late.gaps.events == plain.gaps.events == []


def test_a_restarted_feed_is_a_gap_from_its_last_sign_of_life_for_those_with_changes(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    reader, plain = Reader(pool), Reader(pool, table=None)
    reader.channel.subscribe()
    plain.channel.subscribe()
    server.change("public", "cars", "INSERT", {"id": 1})
    change = reader.rows.wait(1)[0]
    server.restart_changes_feed()
    (gap,) = reader.gaps.wait(1)
    assert change.commit_timestamp <= gap.lost_to
    assert gap.lost_from < gap.lost_to
    server.broadcast("room", "x", {})
    plain.rows.wait(1)
    assert plain.gaps.events == []


def test_a_key_the_server_ignores_hides_no_restart(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    reader = Reader(pool)
    reader.channel.subscribe()
    pool.set_auth("sb_secret_abc")
    server.wait_for(lambda s: any(m.event == "access_token" for m in s.received))
    server.restart_changes_feed()
    assert reader.gaps.wait(1)[0].cause == "feed restart"


def test_several_tokens_in_a_row_are_no_restarts(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    reader, said = Reader(pool), Recorder()
    reader.channel.on_system(said).subscribe()
    for number in range(3):
        pool.set_auth(server.token(number=number))
    said.wait(4)
    server.change("public", "cars", "INSERT", {"id": 1})
    reader.rows.wait(1)
    assert reader.gaps.events == []

"""The filters that rtpool builds are those that Supabase's JavaScript client builds, and let the same rows through."""

from __future__ import annotations

from typing import Any

import pytest

import rtpool
from rtpool.filters import Filter, col
from rtpool.testing import RealtimeServer
from tests.interop.conftest import Connect
from tests.interop.driver import Row
from tests.support.recorder import Recorder

#: rtpool's filter, and the calls of the JavaScript client's builder for the same.
SAME: list[tuple[Filter, list[list[Any]]]] = [
    (col("status").eq("rented"), [["eq", "status", "rented"]]),
    (col("note").eq('a, "b" (c) \\ d'), [["eq", "note", 'a, "b" (c) \\ d']]),
    (col("note").neq(" outer blanks "), [["neq", "note", " outer blanks "]]),
    (col("id").gt(5) & col("id").lte(7), [["gt", "id", 5], ["lte", "id", 7]]),
    (col("price").gte(1.5) & col("price").lt(99), [["gte", "price", 1.5], ["lt", "price", 99]]),
    (col("status").in_(["free", "on hold", "a,b"]), [["in", "status", ["free", "on hold", "a,b"]]]),
    (~col("id").in_([1, 2]), [["not", "id", "in", [1, 2]]]),
    (col("note").is_(None) & col("sold").is_(False), [["is", "note", None], ["is", "sold", False]]),
    (~col("note").is_(None), [["not", "note", "is", None]]),
    (col("note").like("a%(_)"), [["like", "note", "a%(_)"]]),
    (col("note").ilike("%B%"), [["ilike", "note", "%B%"]]),
    (col("note").match("^a.*d$") & col("note").imatch("^A"), [["match", "note", "^a.*d$"], ["imatch", "note", "^A"]]),
    (col("status").is_distinct("rented"), [["isDistinct", "status", "rented"]]),
]

ROWS: list[dict[str, Any]] = [
    {"id": 1, "status": "rented", "price": 1.5, "sold": False, "note": None},
    {"id": 2, "status": "free", "price": 99, "sold": True, "note": 'a, "b" (c) \\ d'},
    {"id": 6, "status": "on hold", "price": 1.4, "sold": False, "note": " outer blanks "},
    {"id": 7, "status": "a,b", "price": 50.0, "sold": False, "note": "abb(d)"},
    {"id": 8, "status": None, "price": None, "sold": None, "note": "a(b)"},
]


@pytest.mark.parametrize(("ours", "theirs"), SAME, ids=[str(ours) for ours, _ in SAME])
def test_both_builders_write_the_same_and_receive_the_same_rows(
    server: RealtimeServer, pool: rtpool.RealtimePool, connect: Connect, ours: Filter, theirs: list[list[Any]]
) -> None:
    peer = connect("js")
    built = peer.call("filter", conditions=theirs)
    assert str(ours) == built
    channel = peer.channel().on("system")
    channel.on("postgres_changes", event="*", schema="public", table="cars", filter=built)
    channel.on("postgres_changes", event="*", schema="public", table="end").subscribe()
    recorder = Recorder()
    pool.channel("room").on_postgres_changes("*", recorder, table="cars", filter=ours).on_postgres_changes(
        "*", recorder, table="end"
    ).subscribe()
    channel.wait_for(lambda: channel.heard("system"))
    for row in ROWS:
        server.change("public", "cars", "INSERT", row)
    server.change("public", "end", "INSERT", {"id": 0})
    channel.wait_for(lambda: channel.rows[-1:] == [Row("INSERT", "public", "end", {"id": 0}, {})])
    recorder.wait_for(lambda changes: changes and changes[-1].table == "end")
    assert channel.rows == [Row.of(change) for change in recorder.events]
    assert 1 < len(channel.rows) <= len(ROWS)  # some rows, not all

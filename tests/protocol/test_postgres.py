"""Postgres changes: bindings on the wire, ids and who they are for."""

from __future__ import annotations

from datetime import datetime, timezone

from rtpool.protocol.postgres import ChangeBinding, index_ids, matching, parse_change

CARS = ChangeBinding("UPDATE", "public", "cars", "status=eq.rented")
ALL = ChangeBinding("*", "public", "cars")


def test_absent_keys_are_left_out_because_the_server_refuses_nulls() -> None:
    assert ALL.to_wire() == {"event": "*", "schema": "public", "table": "cars"}
    assert ChangeBinding("INSERT", "public", "t", "a=eq.1", ("a", "b")).to_wire() == {
        "event": "INSERT",
        "schema": "public",
        "table": "t",
        "filter": "a=eq.1",
        "select": ["a", "b"],
    }


def test_ids_are_mapped_by_index_and_zero_is_one_of_them() -> None:
    index = index_ids([CARS, ALL], {"postgres_changes": [{"id": 0}, {"id": 7}]})
    assert index == {0: (CARS,), 7: (ALL,)}


def test_identical_bindings_share_an_id() -> None:
    assert index_ids([ALL, ALL], {"postgres_changes": [{"id": 7}, {"id": 7}]}) == {7: (ALL, ALL)}


def test_a_change_is_for_the_bindings_of_its_ids_and_type() -> None:
    index = {0: (CARS,), 7: (ALL,)}
    assert matching(index, {"ids": [7, 0, 0, 99]}, "UPDATE") == {CARS, ALL}
    assert matching(index, {"ids": [7, 0]}, "DELETE") == {ALL}
    assert matching(index, {"ids": None}, "DELETE") == frozenset()
    assert matching(index, [], "DELETE") == frozenset()


def test_a_reply_without_entries_maps_nothing() -> None:
    assert index_ids([ALL], {}) == {}
    assert index_ids([ALL], "payload") == {}
    assert index_ids([ALL], {"postgres_changes": ["x"]}) == {}


def test_a_row_becomes_an_event_with_an_aware_timestamp() -> None:
    change = parse_change(
        "room",
        {
            "ids": [1],
            "data": {
                "schema": "public",
                "table": "cars",
                "type": "UPDATE",
                "commit_timestamp": "2026-03-01T10:20:31.125Z",
                "errors": None,
                "columns": [{"name": "id", "type": "int8"}],
                "record": {"id": 9007199254740993},
                "old_record": {"id": 1},
            },
        },
    )
    assert change is not None
    assert change.commit_timestamp == datetime(2026, 3, 1, 10, 20, 31, 125000, tzinfo=timezone.utc)
    assert change.record == {"id": 9007199254740993}
    assert change.errors == ()


def test_an_error_row_and_rubbish_are_told_apart() -> None:
    row = parse_change("room", {"data": {"type": "insert", "errors": ["Error 401: Unauthorized"], "record": None}})
    assert row is not None
    assert (row.type, row.errors, row.record, row.commit_timestamp) == (
        "INSERT",
        ("Error 401: Unauthorized",),
        {},
        None,
    )
    assert parse_change("room", {"data": 1}) is None
    assert parse_change("room", None) is None
    bad_time = parse_change("room", {"data": {"commit_timestamp": "yesterday"}})
    assert bad_time is not None
    assert bad_time.commit_timestamp is None

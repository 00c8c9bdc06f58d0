"""Postgres changes: bindings on the wire, ids and who they are for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rtpool
from rtpool.filters import col
from rtpool.protocol import json_engine
from rtpool.protocol.json_engine import NumberText
from rtpool.protocol.postgres import ChangeBinding, index_ids, keep_numerics, matching, parse_change
from rtpool.protocol.serializer import Serializer, SerializerV1, SerializerV2
from tests.support.transcripts import frame_of, load

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


def test_each_binding_has_a_topic_of_its_own_that_says_the_table() -> None:
    bindings = [CARS, ALL, ChangeBinding("*", "public"), ChangeBinding("*", "public", "ü" * 50)]
    topics = [binding.topic for binding in bindings]
    assert len(set(topics)) == len(topics)
    assert ChangeBinding.checked("update", "public", "cars", col("status").eq("rented"), None).topic == topics[0]
    assert [topic.rpartition(":")[0] for topic in topics] == [
        "changes:cars",
        "changes:cars",
        "changes:*",
        f"changes:{'?' * 40}",
    ]


@pytest.mark.parametrize(
    ("binding", "wire"),
    [
        (("*", None, "cars", None), {"event": "*", "table": "cars"}),
        (("*", "public", None, None), {"event": "*", "schema": "public"}),
        (("*", None, "cars", "a=eq.1"), {"event": "*", "schema": "public", "table": "cars", "filter": "a=eq.1"}),
        (("*", "x", None, "a=eq.1"), {"event": "*", "schema": "x", "table": "*", "filter": "a=eq.1"}),
    ],
)
def test_schema_and_table_are_named_with_a_filter_because_the_server_wants_both(
    binding: tuple[str, str | None, str | None, str | None], wire: dict[str, Any]
) -> None:
    assert ChangeBinding(*binding).to_wire() == wire


def test_equal_wishes_make_equal_bindings() -> None:
    one = ChangeBinding.checked("insert", "public", "cars", col("id").gt(5), ["id", "plate", "id"])
    assert one == ChangeBinding.checked("INSERT", "public", "cars", "id=gt.5", ("id", "plate"))
    assert one == ChangeBinding("INSERT", "public", "cars", "id=gt.5", ("id", "plate"))
    assert ChangeBinding.checked("*", None, "cars", " ", None) == ChangeBinding("*", None, "cars")


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        (("*", None, None, None, None), rtpool.InvalidValue, "both schema and table are missing"),
        (("*", "", None, None, None), rtpool.InvalidValue, "schema must not be empty"),
        (("*", "public", "", None, None), rtpool.InvalidValue, "table must not be empty"),
        (("*", 3, "cars", None, None), rtpool.InvalidType, "schema must be str, not int"),
        (("*", "public", 3, None, None), rtpool.InvalidType, "table must be str, not int"),
        (("*", "\ud800", "cars", None, None), rtpool.InvalidValue, "UTF-8"),
        (("UPSERT", "public", "cars", None, None), rtpool.InvalidValue, "INSERT, UPDATE, DELETE, not 'UPSERT'"),
        ((None, "public", "cars", None, None), rtpool.InvalidType, "event must be str, not NoneType"),
        (("*", "public", "cars", "nonsense", None), rtpool.InvalidValue, "position 0: 'nonsense' names no column"),
        (("*", "public", "cars", True, None), rtpool.InvalidType, "Filter, str or None, not bool"),
        (("*", "public", "cars", None, "id"), rtpool.InvalidType, "list or tuple of column names, not str"),
        (("*", "public", "cars", None, {"id"}), rtpool.InvalidType, "list or tuple of column names, not set"),
        (("*", "public", "cars", None, []), rtpool.InvalidValue, "select names no column"),
        (("*", "public", "cars", None, ["id", ""]), rtpool.InvalidValue, "column in select must not be empty"),
        (("*", "public", "cars", None, ["id", 3]), rtpool.InvalidType, "column in select must be str, not int"),
        (("*", "public", None, None, ["id"]), rtpool.InvalidValue, "one table, not schema='public', table=None"),
        (("*", "public", "*", None, ["id"]), rtpool.InvalidValue, "one table"),
        (("*", "*", "cars", None, ("id",)), rtpool.InvalidValue, "one table, not schema='\\*'"),
    ],
)
def test_what_the_server_would_refuse_is_refused(asked: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ChangeBinding.checked(*asked)


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


def test_events_are_compared_in_any_case_and_booleans_are_no_ids() -> None:
    assert index_ids([ALL, CARS], {"postgres_changes": [{"id": False}, {"id": True}]}) == {}
    lower = ChangeBinding("update", "public", "cars")
    assert matching({0: (CARS, lower), 1: (ALL,)}, {"ids": [0]}, "Update") == {CARS, lower}
    assert matching({0: (CARS,), 1: (ALL,)}, {"ids": [False, True, "0", None, 1.0, [0]]}, "UPDATE") == frozenset()


BINDINGS = st.builds(
    ChangeBinding,
    st.sampled_from(["*", "INSERT", "UPDATE", "DELETE", "insert"]),
    st.just("public"),
    st.sampled_from([None, "cars", "boats"]),
)
IDS = st.integers(0, 4) | st.booleans() | st.none() | st.sampled_from(["1", 1.0])


@given(
    bindings=st.lists(BINDINGS, max_size=6),
    entries=st.lists(st.fixed_dictionaries({"id": IDS}) | st.none() | st.just({}), max_size=7),
    ids=st.lists(IDS, max_size=6) | st.none(),
    change=st.sampled_from(["INSERT", "UPDATE", "DELETE", "insert"]),
)
def test_routing_by_ids_equals_a_search_through_every_pair(
    bindings: list[ChangeBinding], entries: list[dict[str, Any] | None], ids: list[Any] | None, change: str
) -> None:
    expected = set()
    for binding, entry in list(zip(bindings, entries, strict=False)):
        named = any(type(i) is type((entry or {}).get("id")) is int and i == (entry or {})["id"] for i in ids or [])
        if named and binding.event.lower() in ("*", change.lower()):
            expected.add(binding)
    index = index_ids(bindings, {"postgres_changes": entries})
    assert matching(index, {"ids": ids, "data": {}}, change) == expected


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


@pytest.mark.parametrize(
    ("text", "microsecond", "offset"),
    [
        ("2026-03-01T10:20:31Z", 0, 0),
        ("2026-03-01T10:20:31.5Z", 500_000, 0),
        ("2026-03-01T10:20:31.125Z", 125_000, 0),
        ("2026-03-01T10:20:31.1234567z", 123_456, 0),
        ("2026-03-01 10:20:31.12+00", 120_000, 0),
        ("2026-03-01T10:20:31.000001+02:00", 1, 120),
        ("2026-03-01T10:20:31-0330", 0, -210),
        ("2026-03-01T10:20:31", 0, 0),
    ],
)
def test_a_commit_timestamp_is_aware_in_every_form(text: str, microsecond: int, offset: int) -> None:
    change = parse_change("room", {"data": {"commit_timestamp": text}})
    assert change is not None
    zone = timezone(timedelta(minutes=offset))
    assert change.commit_timestamp == datetime(2026, 3, 1, 10, 20, 31, microsecond, tzinfo=zone)
    assert change.commit_timestamp.utcoffset() == timedelta(minutes=offset)


@pytest.mark.parametrize(
    "text", ["yesterday", "2026-13-01T10:20:31Z", "2026-03-01T10:20:31+99:00", "2026-03-01", 5, None]
)
def test_a_commit_timestamp_that_is_none_is_none(text: Any) -> None:
    change = parse_change("room", {"data": {"commit_timestamp": text}})
    assert change is not None
    assert change.commit_timestamp is None


@pytest.mark.parametrize(
    ("errors", "told"),
    [
        (["Error 400: Bad Request, no primary key"], ("Error 400: Bad Request, no primary key",)),
        ("Error 413: Payload Too Large", ("Error 413: Payload Too Large",)),
        ([413], ("413",)),
        (None, ()),
        ("", ()),
        (5, ()),
    ],
)
def test_errors_are_a_tuple_of_words(errors: Any, told: tuple[str, ...]) -> None:
    change = parse_change("room", {"data": {"type": "INSERT", "record": [], "columns": 5, "errors": errors}})
    assert change is not None
    assert (change.record, change.old_record, change.columns, change.errors) == ({}, {}, (), told)


SERIALIZERS = [SerializerV1(), SerializerV2()]


@pytest.fixture(params=["fast", "plain"])
def _engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With orjson and without."""
    if request.param == "plain":
        monkeypatch.setattr(json_engine, "orjson", None)
    else:
        pytest.importorskip("orjson")


def decoded(serializer: Serializer, cells: str, columns: Sequence[tuple[str, str]]) -> Any:
    """The payload of a frame with a row of JSON text."""
    names = json.dumps([{"name": name, "type": kind} for name, kind in columns])
    payload = f'{{"ids":[1],"data":{{"type":"UPDATE","columns":{names},"record":{cells},"old_record":{cells}}}}}'
    if serializer.vsn == "1.0.0":
        text = f'{{"topic":"t","event":"postgres_changes","ref":null,"payload":{payload}}}'
    else:
        text = f'[null,null,"t","postgres_changes",{payload}]'
    return serializer.decode(text.encode(), False).payload


@pytest.mark.usefixtures("_engine")
@pytest.mark.parametrize("serializer", SERIALIZERS, ids=lambda s: s.vsn)
def test_numeric_and_int8_lose_no_digit_on_the_wire(serializer: Serializer) -> None:
    digits = "12345678901234567.123456789012345678901234567890"
    payload = decoded(
        serializer,
        f'{{"big":9007199254740993,"huge":{10**40},"n":{digits},"s":1.10,"a":[0.10,null,{digits}],"i":7,"z":null,'
        '"f":0.1,"j":{"x":[0.1,1e2]}}',
        [
            *(("big", "int8"), ("huge", "numeric"), ("n", "numeric"), ("s", "numeric"), ("a", "_numeric")),
            *(("i", "numeric"), ("z", "numeric"), ("f", "float8"), ("j", "jsonb"), ("absent", "numeric")),
        ],
    )
    change = parse_change("room", payload)
    assert change is not None
    assert change.record == change.old_record
    assert change.record == {
        "big": 9007199254740993,
        "huge": Decimal(10**40),
        "n": Decimal(digits),
        "s": Decimal("1.10"),
        "a": [Decimal("0.10"), None, Decimal(digits)],
        "i": Decimal(7),
        "z": None,
        "f": 0.1,
        "j": {"x": [0.1, 100.0]},
    }
    assert (str(change.record["s"]), str(change.record["a"][0])) == ("1.10", "0.10")
    plain = [change.record["f"], *change.record["j"]["x"]]
    assert {type(number) for number in plain} == {float}, "only numeric columns are exact; the rest is plain JSON"
    assert isinstance(change.record["i"], Decimal)
    assert json.loads(json.dumps(payload))["data"]["record"]["s"] == 1.1, "the raw payload is JSON still"


@pytest.mark.usefixtures("_engine")
@pytest.mark.parametrize("serializer", SERIALIZERS, ids=lambda s: s.vsn)
def test_a_row_that_only_speaks_of_numeric_is_plain(serializer: Serializer) -> None:
    payload = decoded(serializer, '{"f":0.1,"t":"numeric"}', [("f", "float8"), ("t", "text")])
    assert payload["data"]["record"] == {"f": 0.1, "t": "numeric"}
    assert type(payload["data"]["record"]["f"]) is float


@pytest.mark.parametrize("serializer", SERIALIZERS, ids=lambda s: s.vsn)
@pytest.mark.parametrize(
    "payload", ['"numeric"', '["numeric"]', '{"data":"numeric"}', '{"data":{"columns":["numeric"]}}']
)
def test_a_change_of_another_shape_is_decoded_all_the_same(serializer: Serializer, payload: str) -> None:
    head = '{"topic":"t","event":"postgres_changes","ref":null,"payload":%s}'
    text = (head if serializer.vsn == "1.0.0" else '[null,null,"t","postgres_changes",%s]') % payload
    assert serializer.decode(text.encode(), False).payload == json.loads(payload)


def test_exact_cells_replace_those_of_numeric_columns_alone() -> None:
    columns = [{"name": "n", "type": "numeric"}, {"name": ["odd"], "type": "numeric"}, {"name": "f", "type": "float8"}]
    payload = {"data": {"columns": columns, "record": {"n": 1.5, "f": 1.5}, "old_record": None}}
    exact = {"data": {"columns": columns, "record": {"n": NumberText("1.50"), "f": NumberText("1.50")}}}
    keep_numerics(payload, exact)
    record: Any = payload["data"]["record"]
    assert (record["n"].text, type(record["f"])) == ("1.50", float)


@pytest.mark.parametrize("name", ["05b_postgres_changes_rls_types.v1", "05b_postgres_changes_rls_types.v2"])
def test_the_recorded_rows_of_every_type_are_exact(name: str) -> None:
    serializer = SerializerV1() if name.endswith("v1") else SerializerV2()
    changes = []
    for line in load(name):
        frame = frame_of(line) if line["dir"] == "<" else None
        message = serializer.decode(*frame) if frame else None
        if message is not None and message.event == "postgres_changes":
            changes.append(parse_change(message.topic, message.payload))
    assert None not in changes
    [typed, *_] = [change for change in changes if change and change.table == "typed"]
    assert typed.type == "INSERT"
    assert {name: typed.record[name] for name in ("n", "big", "f", "b", "a", "ta", "j", "ts", "by")} == {
        "n": Decimal("123.456"),
        "big": 9007199254740993,
        "f": 1.5,
        "b": True,
        "a": [1, 2, None],
        "ta": ["a", "b c"],
        "j": {"k": [1, None]},
        "ts": "2024-01-02T03:04:05.678",
        "by": "deadbeef",
    }
    assert isinstance(typed.record["n"], Decimal)
    assert {change.errors for change in changes if change and not change.columns} == {
        ("Error 401: Unauthorized",),
        ("Error 400: Bad Request, no primary key",),
    }
    assert all(change.commit_timestamp is None and not change.record for change in changes if not change.columns)

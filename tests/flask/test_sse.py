"""Server-Sent Events as text: what is written is what a browser reads, whatever users say."""

from __future__ import annotations

import json
import math
from datetime import datetime, timezone
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtpool.errors import InvalidValue, JoinRefused
from rtpool.events import Broadcast, Gap, Message, PostgresChange, Presence, StatusChange
from rtpool.flask.streams import sse
from rtpool.flask.streams.sse import Position

NOW = datetime(2026, 7, 1, 12, 30, tzinfo=timezone.utc)
HERE = Position("0123456789abcdef", 7, 1_767_000_000_123, "fedcba9876543210")
#: What ends a line somewhere, or a string in C.
ENDS = "\r\n\0\x0b\x0c\x1c\x85\u2028\u2029"


def read(text: bytes) -> tuple[str, str, Any]:
    """A frame's event, id and data by the HTML standard, which knows no other fields."""
    lines = text.decode("ascii").split("\n")
    assert lines[-2:] == ["", ""]
    fields = dict(line.split(": ", 1) for line in lines[:-2])
    assert len(fields) == len(lines) - 2
    assert fields.keys() <= {"event", "id", "data"}
    return fields["event"], fields.get("id", ""), json.loads(fields["data"])


def test_a_frame_is_its_three_lines() -> None:
    text = sse.frame("change", sse.encode({"a": 1}), HERE)
    assert text == (b'event: change\nid: 0123456789abcdef-7-1767000000123-fedcba9876543210\ndata: {"a":1}\n\n')
    assert sse.frame("gap", "{}") == b"event: gap\ndata: {}\n\n"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_json_comes_back_as_it_went(value: Any) -> None:
    assert read(sse.frame("broadcast", sse.encode(value), HERE)) == ("broadcast", str(HERE), value)
    assert sse.encode(value, ordered=True) == sse.encode(json.loads(sse.encode(value)), ordered=True)


@pytest.mark.parametrize("text", [*ENDS, ENDS, "\ndata: x\n\nevent: status\n", "\ud800", "</script>"])
def test_nothing_in_the_data_ends_a_line(text: str) -> None:
    written = sse.frame("broadcast", sse.encode({text: [text]}), HERE)
    assert written.isascii()
    assert written.count(b"\n") == 4
    assert not set(written) & {0, 11, 12, 13, 28}
    assert read(written)[2] == {text: [text]}


@pytest.mark.parametrize("name", ["", "Change", "a b", "a\n", "a\ndata", "a:b", "ä", "x" * 33, "1"])
def test_a_type_that_is_no_plain_word_is_refused(name: str) -> None:
    with pytest.raises(InvalidValue, match="small letters"):
        sse.frame(name, "{}")


@pytest.mark.parametrize("data", ["a\nb", "a\rb", "ä", "\u2028"])
def test_data_that_was_not_encoded_is_refused(data: str) -> None:
    with pytest.raises(InvalidValue, match="one line"):
        sse.frame("change", data)


def test_numbers_that_json_lacks_are_null() -> None:
    value = {"a": [math.inf, -math.inf, math.nan, 1.5], "b": MappingProxyType({"c": math.nan})}
    assert json.loads(sse.encode(value)) == {"a": [None, None, None, 1.5], "b": {"c": None}}


def test_what_json_lacks_is_written_as_text() -> None:
    value = {"bytes": b"\x00\xff", "time": NOW, "exact": Decimal("1.10"), "map": MappingProxyType({"a": (1, 2)})}
    assert json.loads(sse.encode(value)) == {
        "bytes": "AP8=",
        "time": "2026-07-01T12:30:00+00:00",
        "exact": "1.10",
        "map": {"a": [1, 2]},
    }
    assert json.loads(sse.encode({"own": {1}}, default=sorted)) == {"own": [1]}


def test_what_cannot_be_written_is_refused() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value, error in (({1}, TypeError), (cycle, ValueError), (deep, RecursionError)):
        with pytest.raises(error):
            sse.encode(value)


def test_an_id_is_read_as_it_was_written() -> None:
    for position in (HERE, Position("0" * 16, 0, 0, "0" * 16), Position("f" * 16, 10**14, 10**14, sse.STOP)):
        assert sse.parse_id(str(position)) == position


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "x" * 10_240,
        str(HERE) + " ",
        " " + str(HERE),
        str(HERE) + "\n",
        str(HERE).upper(),
        str(HERE).replace("-7-", "--7-"),
        str(HERE).replace("-7-", "-\u0667-"),  # an Arabic digit, which int() reads
        str(HERE).replace("-7-", f"-{'9' * 16}-"),
        str(HERE).replace("-7-", "-+7-"),
        str(HERE).replace("fedc", "\u0430edc"),  # a Cyrillic letter
        str(HERE) + "-stop",
        "'; drop table cars; --",
        "\0",
    ],
)
def test_what_is_no_id_of_ours_is_none(text: str) -> None:
    assert sse.parse_id(text) is None


@given(st.text(max_size=100))
def test_no_text_makes_reading_an_id_fail(text: str) -> None:
    found = sse.parse_id(text)
    assert found is None or str(found).split("-")[0] == text.split("-")[0]


def test_a_mark_moves_the_id_and_is_no_event() -> None:
    assert sse.mark(HERE) == f"id: {HERE}\n\n".encode()
    assert sse.retry(1000) == b"retry: 1000\n\n"
    assert sse.HEARTBEAT.startswith(b":")
    assert sse.HEARTBEAT.endswith(b"\n\n")


def test_each_kind_of_event_has_its_type_and_its_fields() -> None:
    change = PostgresChange("secret topic", "UPDATE", "public", "cars", {"id": 1}, {"id": 1}, (), NOW)
    events = [
        change,
        Broadcast("secret topic", "moved", {"n": 1}, "an-id"),
        Presence("secret topic", "join", "eva", ({"a": 1},)),
        Gap("secret topic", "transport", NOW, NOW),
    ]
    named = [sse.content_of(event) for event in events]
    assert [name for name, _ in named] == ["change", "broadcast", "presence", "gap"]
    assert json.loads(sse.encode(named[0][1])) == {
        "type": "UPDATE",
        "schema": "public",
        "table": "cars",
        "record": {"id": 1},
        "old_record": {"id": 1},
        "columns": [],
        "commit_timestamp": "2026-07-01T12:30:00+00:00",
        "errors": [],
    }
    assert named[1][1] == {"event": "moved", "payload": {"n": 1}, "id": "an-id", "replayed": False}
    assert not any("secret" in sse.encode(data) for _, data in named), "the topic is nobody's business"


def test_bytes_are_base64_and_say_so() -> None:
    name, data = sse.content_of(Broadcast("room", "raw", b"\x00\x01"))
    assert (name, json.loads(sse.encode(data))["payload"], data["encoding"]) == ("broadcast", "AAE=", "base64")


def test_a_status_tells_the_code_and_no_words() -> None:
    error = JoinRefused("for secret reasons", topic="room", code="Unauthorized", reason="secret")
    assert sse.content_of(StatusChange("room", "refused", error)) == (
        "status",
        {"status": "refused", "code": "Unauthorized", "error": "JoinRefused", "retryable": False},
    )
    assert sse.content_of(StatusChange("room", "joined"))[1]["error"] is None


def test_what_a_stream_does_not_tell_is_refused() -> None:
    with pytest.raises(InvalidValue, match="Message"):
        sse.content_of(Message("room", "own", {}))


def test_a_fingerprint_is_the_contents_and_the_keys() -> None:
    key = b"k" * 32
    one = sse.fingerprint("change", sse.encode({"a": 1, "b": 2}, ordered=True), key)
    assert one == sse.fingerprint("change", sse.encode({"b": 2, "a": 1}, ordered=True), key)
    others = {
        sse.fingerprint("change", sse.encode({"a": 1, "b": 3}, ordered=True), key),
        sse.fingerprint("broadcast", sse.encode({"a": 1, "b": 2}, ordered=True), key),
        sse.fingerprint("change", sse.encode({"a": 1, "b": 2}, ordered=True), b"j" * 32),
    }
    assert len(others) == 3
    assert one not in others
    assert sse.parse_id(str(Position("0" * 16, 1, 1, one))) is not None

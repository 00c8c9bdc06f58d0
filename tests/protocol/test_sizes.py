"""How large a server finds what we send: counted alike by client and embedded server, and refused one byte over."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtpool.errors import MessageTooBig
from rtpool.protocol.json_engine import dumps, loads
from rtpool.protocol.messages import BROADCAST, PRESENCE, BinaryBody, Body, JsonBody, UserBroadcast
from rtpool.protocol.presence import track_body
from rtpool.protocol.serializer import Serializer, SerializerV1, SerializerV2
from rtpool.protocol.sizes import MAX_GROWTH, SizeLimits, term_size
from rtpool.testing.wire import size_of

TOPIC = "realtime:room"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)

#: From the documentation of Erlang's external term format, byte by byte.
TERMS: list[tuple[Any, int]] = [
    ("", 1 + 5),
    ("abc", 1 + 5 + 3),
    ("äö", 1 + 5 + 4),
    (0, 1 + 2),
    (255, 1 + 2),
    (256, 1 + 5),
    (-1, 1 + 5),
    (134_217_727, 1 + 5),
    (134_217_728, 1 + 3 + 4),
    (-134_217_728, 1 + 5),
    (-134_217_729, 1 + 3 + 4),
    (2**64, 1 + 3 + 9),
    (256**255 - 1, 1 + 3 + 255),
    (256**255, 1 + 6 + 256),
    (1.5, 1 + 9),
    (None, 1 + 2 + len("nil")),
    (True, 1 + 2 + len("true")),
    (False, 1 + 2 + len("false")),
    ([], 1 + 1),
    ([1, 2, 255], 1 + 3 + 3),
    ([1, 256], 1 + 5 + 2 + 5 + 1),
    ([True], 1 + 5 + 6 + 1),
    ([[]], 1 + 5 + 1 + 1),
    ([0] * 65_534, 1 + 3 + 65_534),
    ([0] * 65_535, 1 + 5 + 2 * 65_535 + 1),
    ({}, 1 + 5),
    ({"a": {"b": 1}}, 1 + 5 + 6 + 5 + 6 + 2),
]


@pytest.mark.parametrize(("value", "size"), TERMS, ids=[str(value)[:20] for value, _ in TERMS])
def test_a_value_has_the_size_of_its_erlang_term(value: Any, size: int) -> None:
    assert term_size(value) == size
    assert size_of(value) == size


@given(json_values)
def test_client_and_server_count_alike_and_no_text_grows_beyond_the_bound(value: Any) -> None:
    assert term_size(value) == size_of(value)
    assert term_size(value) <= len(dumps(value)) * MAX_GROWTH + 128


def test_nesting_costs_no_stack() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert term_size(deep) == 2 + 6 * 100_000


def broadcast(length: int) -> JsonBody:
    return JsonBody(dumps({"type": "broadcast", "event": "e", "payload": {"d": "x" * length}}))


def track(length: int) -> JsonBody:
    return track_body(dumps({"d": "x" * length}))


def binary(length: int) -> UserBroadcast:
    return UserBroadcast("e", b"x" * length)


PAYLOADS = [(BROADCAST, broadcast), (PRESENCE, track), (BROADCAST, binary)]


@pytest.mark.parametrize(("event", "make"), PAYLOADS, ids=["broadcast", "track", "bytes"])
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_the_payload_limit_holds_to_the_byte(event: str, make: Any, extra: int) -> None:
    limits = SizeLimits(SerializerV2(), 10_000, None)
    empty = make(0)
    if make is binary:
        around = 64 + len(empty.event)
    else:
        value = loads(empty.data)
        around = size_of(value["payload"] if event == PRESENCE else value)
    body = make(10_000 - around + extra)
    if extra <= 0:
        limits.check(TOPIC, event, body, name="room")
        return
    with pytest.raises(
        MessageTooBig, match=r"payload that counts 10,001 bytes on 'room'.*10,000.*max_payload"
    ) as caught:
        limits.check(TOPIC, event, body, name="room")
    assert (caught.value.size, caught.value.limit) == (10_001, 10_000)


def test_what_is_neither_broadcast_nor_presence_has_the_limit_of_a_frame_alone() -> None:
    SizeLimits(SerializerV2(), 1_000, 100_000).check(TOPIC, "shout", broadcast(50_000), name="room")
    SizeLimits(SerializerV2(), None, None).check(TOPIC, BROADCAST, broadcast(50_000), name="room")


FRAMES: list[tuple[Serializer, str, Body]] = [
    (SerializerV2(), BROADCAST, broadcast(20_000)),
    (SerializerV1(), BROADCAST, broadcast(20_000)),
    (SerializerV2(), BROADCAST, binary(20_000)),
    (SerializerV2(), "shout", BinaryBody(b"x" * 20_000)),
    (SerializerV2(), "\x01" * 255, JsonBody(b'{"d":"%s"}' % (b"x" * 20_000))),
]


@pytest.mark.parametrize(("serializer", "event", "body"), FRAMES, ids=["v2", "v1", "kind 3", "kind 0", "long name"])
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_the_frame_limit_holds_to_the_byte_with_refs_of_ten_digits(
    serializer: Serializer, event: str, body: Body, extra: int
) -> None:
    size = len(serializer.encode("1234567890", "1234567891", TOPIC, event, body)[1])
    limits = SizeLimits(serializer, None, size - extra)
    if extra <= 0:
        limits.check(TOPIC, event, body, name="room")
        return
    with pytest.raises(MessageTooBig, match=rf"a frame of {size:,} bytes.*{size - 1:,}.*max_frame_size") as caught:
        limits.check(TOPIC, event, body, name="room")
    assert (caught.value.size, caught.value.limit) == (size, size - 1)


def test_a_payload_that_takes_less_as_a_term_than_as_text_is_let_through() -> None:
    numbers = {"n": [1.234567890123456] * 1_000}
    body = JsonBody(dumps({"type": "broadcast", "event": "e", "payload": numbers}))
    assert len(body.data) > 18_000
    SizeLimits(SerializerV2(), 10_000, None).check(TOPIC, BROADCAST, body, name="room")


def test_bytes_of_any_event_count_as_a_payload_where_they_are_a_broadcast() -> None:
    limits = SizeLimits(SerializerV2(), 10_000, None)
    limits.check(TOPIC, BROADCAST, BinaryBody(b"x" * (10_000 - 64)), name="room")
    with pytest.raises(MessageTooBig, match="10,001 bytes"):
        limits.check(TOPIC, BROADCAST, BinaryBody(b"x" * (10_001 - 64)), name="room")


def test_what_is_nested_too_deep_to_be_read_again_counts_as_its_text() -> None:
    deep = JsonBody(b"[" * 100_000 + b"]" * 100_000)
    SizeLimits(SerializerV2(), 200_000, None).check(TOPIC, BROADCAST, deep, name="room")
    with pytest.raises(MessageTooBig, match="200,000 bytes"):
        SizeLimits(SerializerV2(), 199_999, None).check(TOPIC, BROADCAST, deep, name="room")

"""Every recorded vector in the directions that apply to a client, and everything else refused in one way."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtpool.errors import InvalidValue, ProtocolError
from rtpool.protocol.json_engine import dumps
from rtpool.protocol.messages import BinaryBody, Body, Broadcasts, JsonBody, UserBroadcast, WireMessage
from rtpool.protocol.serializer import SerializerV1, SerializerV2, serializer_for
from tests.support.apart import apart

VECTORS = json.loads((pathlib.Path(__file__).parent / "protocol_vectors.json").read_text())


def named(**wanted: Any) -> list[Any]:
    return [
        pytest.param(vector, id=vector["name"])
        for vector in VECTORS
        if all(vector[key] == value for key, value in wanted.items())
    ]


def wire_of(vector: dict[str, Any]) -> bytes:
    return bytes.fromhex(vector["wire_hex"]) if vector["frame"] == "binary" else vector["wire"].encode()


def payload_of(decoded: dict[str, Any], kind: int | None) -> Any:
    if kind == 1:
        return {"status": decoded["status"], "response": bytes.fromhex(decoded["payload_hex"])}
    if kind in (0, 2):
        return bytes.fromhex(decoded["payload_hex"])
    payload = decoded["payload"]
    return {**payload, "payload": bytes.fromhex(decoded["payload_hex"])} if "payload_hex" in decoded else payload


def body_of(vector: dict[str, Any]) -> Body:
    decoded, kind = vector["decoded"], vector.get("kind")
    if kind == 0:
        return BinaryBody(bytes.fromhex(decoded["payload_hex"]))
    if kind == 3:
        payload = decoded["payload"]
        is_json = decoded["encoding"] in (1, "json")
        data = dumps(payload["payload"]) if is_json else bytes.fromhex(decoded["payload_hex"])
        return UserBroadcast(payload["event"], data, is_json, dumps(payload["meta"]) if "meta" in payload else b"")
    return JsonBody(dumps(decoded["payload"]))


def test_all_132_vectors_are_here() -> None:
    assert len(VECTORS) == 132


@pytest.mark.parametrize("vector", [v for v in named(direction="server_to_client") if v.values[0]["decoded"]])
def test_a_server_frame_decodes_to_what_was_recorded(vector: dict[str, Any]) -> None:
    decoded = vector["decoded"]
    message = serializer_for(vector["vsn"]).decode(wire_of(vector), vector["frame"] == "binary")

    expected = (decoded["join_ref"], decoded["ref"], decoded["topic"], decoded["event"])
    assert message[:4] == expected
    assert message.payload == payload_of(decoded, vector.get("kind"))


@pytest.mark.parametrize("vector", [v for v in VECTORS if not v["decoded"]], ids=lambda v: v["name"])
def test_a_malformed_frame_is_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        serializer_for(vector["vsn"]).decode(wire_of(vector), vector["frame"] == "binary")


@pytest.mark.parametrize("vector", [v for v in named(direction="client_to_server") if v.values[0]["decoded"]])
def test_a_client_frame_is_encoded_as_recorded(vector: dict[str, Any]) -> None:
    decoded = vector["decoded"]
    is_binary, data = serializer_for(vector["vsn"]).encode(
        decoded["join_ref"], decoded["ref"], decoded["topic"], decoded["event"], body_of(vector)
    )

    assert is_binary == (vector["frame"] == "binary")
    if is_binary:
        assert data == wire_of(vector)
    else:
        wire = json.loads(vector["wire"])
        if vector["vsn"] == "1.0.0":
            wire.setdefault("join_ref", None)  # optional on the wire; we always write it
        assert json.loads(data) == wire


@pytest.mark.parametrize(
    "vector", [v for v in VECTORS if v["decoded"] and v["frame"] == "text"], ids=lambda v: v["name"]
)
def test_a_text_frame_survives_the_way_there_and_back(vector: dict[str, Any]) -> None:
    serializer, decoded = serializer_for(vector["vsn"]), vector["decoded"]
    message = WireMessage(decoded["join_ref"], decoded["ref"], decoded["topic"], decoded["event"], decoded["payload"])

    is_binary, data = serializer.encode(*message[:4], JsonBody(dumps(message.payload)))
    assert serializer.decode(data, is_binary) == message


@given(data=st.binary(max_size=400), is_binary=st.booleans(), vsn=st.sampled_from(["1.0.0", "2.0.0"]))
def test_arbitrary_bytes_raise_nothing_but_a_protocol_error(data: bytes, is_binary: bool, vsn: str) -> None:
    try:
        serializer_for(vsn).decode(data, is_binary)
    except ProtocolError:
        return


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(value=JSON_VALUES, vsn=st.sampled_from(["1.0.0", "2.0.0"]))
def test_arbitrary_json_raises_nothing_but_a_protocol_error(value: Any, vsn: str) -> None:
    try:
        serializer_for(vsn).decode(json.dumps(value).encode("utf-8", "replace"), False)
    except ProtocolError:
        return


@given(payload=st.dictionaries(st.text(), JSON_VALUES, max_size=4), topic=st.text(), event=st.text(), ref=st.text())
def test_any_json_payload_survives_both_versions(payload: dict[str, Any], topic: str, event: str, ref: str) -> None:
    body = JsonBody(dumps(payload))
    for serializer in (SerializerV1(), SerializerV2()):
        message = serializer.decode(serializer.encode("1", ref, topic, event, body)[1], False)
        assert message == WireMessage("1", ref, topic, event, payload)


def test_version_1_refuses_binary_bodies() -> None:
    with pytest.raises(InvalidValue, match=r"protocol='2\.0\.0'"):
        SerializerV1().encode("1", "1", "t", "e", BinaryBody(b"x"))


@pytest.mark.parametrize("size", [255, 256])
def test_a_binary_name_may_have_255_bytes(size: int) -> None:
    body = UserBroadcast("e" * size, b"")
    if size == 255:
        assert SerializerV2().encode("1", "1", "t", "broadcast", body)[0]
    else:
        with pytest.raises(InvalidValue, match="256 bytes"):
            SerializerV2().encode("1", "1", "t", "broadcast", body)


def test_an_unknown_version_is_refused() -> None:
    with pytest.raises(InvalidValue, match=r"3\.0\.0"):
        serializer_for("3.0.0")


@pytest.mark.parametrize("vsn", ["1.0.0", "2.0.0"])
def test_a_numeric_keeps_the_digits_that_a_float_would_lose(vsn: str) -> None:
    digits = "0.1234567890123456789"
    payload = '{"data":{"columns":[{"name":"n","type":"numeric"}],"record":{"n":' + digits + ',"f":0.5}}}'
    frame = f'[null,null,"realtime:room","postgres_changes",{payload}]'
    if vsn == "1.0.0":
        frame = f'{{"topic":"realtime:room","event":"postgres_changes","ref":null,"payload":{payload}}}'
    record = serializer_for(vsn).decode(frame.encode(), False).payload["data"]["record"]
    assert (record["n"].text, record["f"]) == (digits, 0.5)


def test_a_ref_of_another_type_is_refused() -> None:
    with pytest.raises(ProtocolError, match="not list"):
        SerializerV2().decode(b'[null,["1"],"t","e",{}]', False)
    with pytest.raises(ProtocolError, match="not bool"):
        SerializerV2().decode(b'[true,"1","t","e",{}]', False)


def test_a_topic_or_event_that_is_no_text_is_refused() -> None:
    for frame in (b'[null,"1",7,"e",{}]', b'[null,"1","t",null,{}]'):
        with pytest.raises(ProtocolError, match="must be strings"):
            SerializerV2().decode(frame, False)


def test_a_version_1_socket_hears_no_binary_frame() -> None:
    with pytest.raises(ProtocolError, match=r"1\.0\.0"):
        SerializerV1().decode(b"\0", True)


def test_a_version_1_message_that_lacks_a_key_is_refused_by_its_name() -> None:
    with pytest.raises(ProtocolError, match="lacks the key 'payload'"):
        SerializerV1().decode(b'{"topic":"t","event":"e","ref":null}', False)


def test_a_kind_of_frame_that_nobody_knows_is_refused_by_its_number() -> None:
    with pytest.raises(ProtocolError, match="unknown kind 9"):
        SerializerV2().decode(b"\x09abc", True)


#: Beside the vectors: where decoding many at once takes another way than decoding one.
FRAMES = [
    (1, b'[null,null,"t","broadcast",{"event":"x","payload":{}}]'),
    (1, b'["1",null,"t","broadcast",{}]'),
    (1, b'[null,"2","t","broadcast",{}]'),
    (1, b'[null,null,"t","e",{},"more"]'),
    (1, b'[null,null,"t","e"]'),
    (1, b'[null,null,1,"e",{}]'),
    (1, b'[null,null,"t",["e"],{}]'),
    (1, b'[null,null,"t","postgres_changes",{"data":{"columns":[{"name":"n","type":"numeric"}],"record":{"n":1.10}}}]'),
    (1, b'[null,null,"t","e",{"n":1e999}]'),
    (1, b'{"topic":"t","event":"e","payload":{},"ref":null}'),
    (1, b'[null,null,"t","e",'),
    (2, b"\x02\x01\x01teraw"),
    (2, b"\x09"),
]
LONG = (1, b'[null,null,"t","e",{"n":123456789012345678901234567890}]')


@pytest.mark.parametrize("vsn", ["1.0.0", "2.0.0"])
@pytest.mark.parametrize("more", [[], [LONG]], ids=["short numbers", "a long number"])
def test_many_frames_decode_each_as_it_would_alone(vsn: str, more: list[tuple[int, bytes]]) -> None:
    serializer = serializer_for(vsn)
    recorded = [(2 if vector["frame"] == "binary" else 1, wire_of(vector)) for vector in VECTORS]

    def alone(opcode: int, data: bytes) -> Any:
        try:
            return serializer.decode(data, opcode == 2)
        except ProtocolError as error:
            return error

    frames = FRAMES + recorded + more
    found, wanted = apart(serializer.decode_all(frames)), [alone(*frame) for frame in frames]
    for topic in {message.topic for message in wanted if isinstance(message, WireMessage)} | {None}:
        assert [repr(m) for m in found if getattr(m, "topic", None) == topic] == [
            repr(m) for m in wanted if getattr(m, "topic", None) == topic
        ]
    assert len(found) == len(frames)
    assert [repr(m) for frame in frames for m in apart(serializer.decode_all([frame]))] == [
        repr(alone(*f)) for f in frames
    ]


def broadcast(vsn: str, topic: str, number: int, event: str = "broadcast", join_ref: str | None = None) -> Any:
    message = WireMessage(join_ref, None, topic, event, {"n": number})
    return 1, dumps(list(message) if vsn == "2.0.0" else message._asdict())


@pytest.mark.parametrize("vsn", ["1.0.0", "2.0.0"])
def test_broadcasts_of_a_topic_come_together_until_something_else_is_said(vsn: str) -> None:
    frames = [
        broadcast(vsn, "a", 1),
        broadcast(vsn, "b", 2),
        (1, b"{"),
        broadcast(vsn, "a", 3),
        broadcast(vsn, "b", 4, "system"),
        broadcast(vsn, "a", 5),
        broadcast(vsn, "a", 6, join_ref="1"),
        broadcast(vsn, "a", 7),
    ]
    *said, last = [one for one in serializer_for(vsn).decode_all(frames) if not isinstance(one, ProtocolError)]
    assert said == [
        Broadcasts("a", [{"n": 1}, {"n": 3}]),
        Broadcasts("b", [{"n": 2}]),
        WireMessage(None, None, "b", "system", {"n": 4}),
        Broadcasts("a", [{"n": 5}]),
        WireMessage("1", None, "a", "broadcast", {"n": 6}),
    ]
    assert last == Broadcasts("a", [{"n": 7}])


def test_broadcasts_in_binary_frames_come_together_with_those_in_text() -> None:
    binary = bytes((4, 1, 1, 0, 1)) + b'ax{"n":2}'
    wanted = {"type": "broadcast", "event": "x", "payload": {"n": 2}}
    said = SerializerV2().decode_all([broadcast("2.0.0", "a", 1), (2, binary), broadcast("2.0.0", "a", 3)])
    assert said == [Broadcasts("a", [{"n": 1}, wanted, {"n": 3}])]
    assert apart(said)[1] == SerializerV2().decode(binary, True)

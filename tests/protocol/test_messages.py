"""The protocol's names and values: what the documentation says they are, and what a reader may rely on."""

from __future__ import annotations

import pytest

from rtpool.protocol import messages
from rtpool.protocol.messages import MAX_NAME_BYTES, RESERVED_EVENTS, BinaryBody, JsonBody, UserBroadcast, WireMessage
from rtpool.protocol.serializer import SerializerV2

#: As Phoenix and Realtime write them, letter by letter.
NAMES = {
    "PHX_JOIN": "phx_join",
    "PHX_LEAVE": "phx_leave",
    "PHX_REPLY": "phx_reply",
    "PHX_CLOSE": "phx_close",
    "PHX_ERROR": "phx_error",
    "HEARTBEAT": "heartbeat",
    "PHOENIX_TOPIC": "phoenix",
    "BROADCAST": "broadcast",
    "PRESENCE": "presence",
    "PRESENCE_STATE": "presence_state",
    "PRESENCE_DIFF": "presence_diff",
    "POSTGRES_CHANGES": "postgres_changes",
    "ACCESS_TOKEN": "access_token",
    "SYSTEM": "system",
}


def test_every_name_is_spelled_as_servers_spell_it() -> None:
    assert {name: value for name, value in vars(messages).items() if name.isupper() and type(value) is str} == NAMES


@pytest.mark.parametrize("event", sorted(NAMES.values()))
def test_only_what_drives_the_protocol_is_reserved(event: str) -> None:
    for_users = {"broadcast", "presence", "presence_state", "presence_diff", "postgres_changes", "system", "phoenix"}
    assert (event in RESERVED_EVENTS) is (event not in for_users)


def test_a_name_may_be_as_long_as_one_size_byte_can_say() -> None:
    kind, join_ref, ref, topic = SerializerV2().encode(None, None, "t" * 255, "e", BinaryBody(b""))[1][:4]
    assert (kind, join_ref, ref, topic) == (0, 0, 0, MAX_NAME_BYTES)


def test_bodies_of_other_kinds_are_told_apart_by_their_type() -> None:
    bodies = [JsonBody(b"{}"), BinaryBody(b"{}"), UserBroadcast("e", b"{}")]
    assert [body.data for body in bodies] == [b"{}"] * 3
    frames = {SerializerV2().encode("1", "2", "t", "broadcast", body) for body in bodies}
    assert len(frames) == 3


def test_what_may_hold_a_token_is_not_shown() -> None:
    assert repr(JsonBody(b'{"access_token":"secret"}')) == "<JsonBody of 25 bytes>"


def test_a_broadcast_is_bytes_without_metadata_unless_it_says_otherwise() -> None:
    assert UserBroadcast("e", b"x") == UserBroadcast("e", b"x", is_json=False, metadata=b"")


def test_a_message_reads_as_version_2_writes_it() -> None:
    assert SerializerV2().decode(b'["1","2","t","e",{}]', False) == WireMessage("1", "2", "t", "e", {})
    assert WireMessage._fields == ("join_ref", "ref", "topic", "event", "payload")


def test_broadcasts_that_travel_together_are_messages_without_a_ref() -> None:
    together = messages.Broadcasts("realtime:room", [{"n": 1}, {"n": 2}])
    assert list(together.messages()) == [
        WireMessage(None, None, "realtime:room", "broadcast", {"n": number}) for number in (1, 2)
    ]

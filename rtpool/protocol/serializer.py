"""
Phoenix messages to and from WebSocket payloads, serializer versions 1.0.0 and 2.0.0.

Version 1 is a JSON object per text frame. Version 2 is a JSON array ``[join_ref, ref, topic, event, payload]`` per text
frame, and binary frames whose first byte is the kind: 0 push, 1 reply, 2 broadcast (Phoenix), 3 user broadcast push,
4 user broadcast (Supabase Realtime).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from rtpool.errors import InvalidValue, ProtocolError
from rtpool.protocol.frames import OP_BINARY, WsMessage
from rtpool.protocol.json_engine import dumps, loader_for, loads, quoted
from rtpool.protocol.messages import (
    BROADCAST,
    MAX_NAME_BYTES,
    PHX_REPLY,
    POSTGRES_CHANGES,
    BinaryBody,
    Body,
    Broadcasts,
    JsonBody,
    Ref,
    WireMessage,
)
from rtpool.protocol.postgres import keep_numerics

__all__ = ["Serializer", "SerializerV1", "SerializerV2", "serializer_for"]

KIND_PUSH, KIND_REPLY, KIND_BROADCAST, KIND_USER_PUSH, KIND_USER_BROADCAST = range(5)

NOT_BINARY = "a binary frame on a 1.0.0 socket"
#: Kind 4's encoding byte: 1 is JSON, anything else is raw bytes (realtime-js decodes it so).
ENCODING_BINARY, ENCODING_JSON = 0, 1


class Serializer(Protocol):
    """What a session needs of a serializer version. Implementations hold no state."""

    vsn: str

    def encode(self, join_ref: Ref, ref: Ref, topic: str, event: str, body: Body) -> tuple[bool, bytes]:
        """Return ``(is_binary, data)``; raise `InvalidValue` for a body this version cannot carry."""

    def decode(self, data: bytes, is_binary: bool) -> WireMessage:
        """Return the message; raise `ProtocolError` for anything else."""

    def decode_all(self, messages: Sequence[WsMessage]) -> list[Decoded]:
        """Decode data messages; one that is none of Phoenix gives the error in its place."""


Decoded = WireMessage | Broadcasts | ProtocolError


class _Found:
    """What was decoded so far: `all` of it, and of the broadcasts at its end the payloads by topic."""

    def __init__(self) -> None:
        self.all: list[Decoded] = []
        self.said: dict[str, list[Any]] = {}

    def add(self, message: WireMessage) -> None:
        """Add a message; a broadcast to those of its topic, if only such of other topics came since."""
        join_ref, ref, topic, event, payload = message
        if event == BROADCAST and join_ref is ref is None:
            self.broadcast(topic, payload)
        else:
            self.said.clear()
            self.all.append(message)

    def broadcast(self, topic: str, payload: Any) -> None:
        """Add a broadcast that has no ref."""
        if topic not in self.said:
            payloads = self.said[topic] = []
            self.all.append(Broadcasts(topic, payloads))
        self.said[topic].append(payload)


def _check(message: WireMessage) -> None:
    if not isinstance(message.topic, str) or not isinstance(message.event, str):
        raise ProtocolError("a message's topic and event must be strings")
    for value in (message.join_ref, message.ref):
        if value is not None and (isinstance(value, bool) or not isinstance(value, (str, int))):
            raise ProtocolError(f"a message's ref must be a string, an integer or null, not {type(value).__name__}")


def _loses_digits(data: bytes) -> bool:
    """Whether a float may not hold what the text of a change says; a search, so that other columns cost nothing."""
    return b'numeric"' in data


class SerializerV1:
    """Version 1.0.0: JSON objects. Servers never send a join_ref and have no binary payloads."""

    vsn = "1.0.0"

    def encode(self, join_ref: Ref, ref: Ref, topic: str, event: str, body: Body) -> tuple[bool, bytes]:
        if not isinstance(body, JsonBody):
            raise InvalidValue("protocol 1.0.0 has no binary payloads; use the option protocol='2.0.0'")
        head = quoted(topic), quoted(event), dumps(ref), quoted(join_ref)
        return False, b'{"topic":%s,"event":%s,"ref":%s,"join_ref":%s,"payload":%s}' % (*head, body.data)

    def decode(self, data: bytes, is_binary: bool) -> WireMessage:
        if is_binary:
            raise ProtocolError(NOT_BINARY)
        return self._message(loads(data), data)

    def _message(self, value: Any, data: bytes) -> WireMessage:
        if not isinstance(value, dict):
            raise ProtocolError(f"a 1.0.0 message must be an object, not {type(value).__name__}")
        try:
            topic, event, payload, ref = value["topic"], value["event"], value["payload"], value["ref"]
        except KeyError as error:
            raise ProtocolError(f"a 1.0.0 message lacks the key {error}") from error
        message = WireMessage(value.get("join_ref"), ref, topic, event, payload)
        _check(message)
        if event == POSTGRES_CHANGES and _loses_digits(data):
            keep_numerics(payload, loads(data, exact=True)["payload"])
        return message

    def decode_all(self, messages: Sequence[WsMessage]) -> list[Decoded]:
        load, found = loader_for([data for opcode, data in messages if opcode != OP_BINARY]), _Found()
        for opcode, data in messages:
            try:
                if opcode == OP_BINARY:
                    raise ProtocolError(NOT_BINARY)
                try:
                    value = load(data)
                except ValueError:
                    value = loads(data)
                found.add(self._message(value, data))
            except ProtocolError as error:
                found.all.append(error)
        return found.all


def _fields(data: bytes, header: int, sizes: int) -> tuple[list[str], bytes]:
    """The UTF-8 fields whose sizes are bytes 1 to `sizes`, after a header of `header` bytes, and what follows them."""
    if len(data) < header:
        raise ProtocolError(f"a binary frame of {len(data)} bytes is shorter than its header of {header}")
    position = header
    fields = []
    for size in data[1 : 1 + sizes]:
        field = data[position : position + size]
        if len(field) != size:
            raise ProtocolError(f"a binary frame of {len(data)} bytes ends within a field of {size}")
        try:
            fields.append(field.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ProtocolError(f"a binary frame's field is not UTF-8: {error}") from error
        position += size
    return fields, data[position:]


def _names(kind: int, names: tuple[str, ...], metadata: bytes = b"") -> tuple[bytes, bytes]:
    encoded = [name.encode("utf-8") for name in names]
    if metadata:
        encoded.append(metadata)
    for name in encoded:
        if len(name) > MAX_NAME_BYTES:
            raise InvalidValue(f"a binary frame's name of {len(name)} bytes is over {MAX_NAME_BYTES}: {name[:40]!r}…")
    return bytes((kind, *map(len, encoded))), b"".join(encoded)


def _text(ref: Ref) -> str:
    return "" if ref is None else str(ref)


class SerializerV2:
    """Version 2.0.0: JSON arrays, and binary kinds 0 to 4."""

    vsn = "2.0.0"

    def encode(self, join_ref: Ref, ref: Ref, topic: str, event: str, body: Body) -> tuple[bool, bytes]:
        if isinstance(body, JsonBody):
            head = quoted(join_ref), dumps(ref), quoted(topic), quoted(event)
            return False, b"[%s,%s,%s,%s,%s]" % (*head, body.data)
        if isinstance(body, BinaryBody):
            sizes, names = _names(KIND_PUSH, (_text(join_ref), _text(ref), topic, event))
            return True, sizes + names + body.data
        sizes, names = _names(KIND_USER_PUSH, (_text(join_ref), _text(ref), topic, body.event), body.metadata)
        if not body.metadata:
            sizes += b"\0"
        return True, b"%s%c%s%s" % (sizes, ENCODING_JSON if body.is_json else ENCODING_BINARY, names, body.data)

    def decode(self, data: bytes, is_binary: bool) -> WireMessage:
        return self._decode_binary(data) if is_binary else self._message(loads(data), data)

    def decode_all(self, messages: Sequence[WsMessage]) -> list[Decoded]:
        load, found = loader_for([data for opcode, data in messages if opcode != OP_BINARY]), _Found()
        said = found.said
        for opcode, data in messages:
            try:
                if opcode == OP_BINARY:
                    found.add(self._decode_binary(data))
                    continue
                try:
                    value = load(data)
                except ValueError:
                    value = loads(data)
                # What servers say most, as `found.add` would take it: a call for each costs as much as all this.
                if type(value) is list and len(value) == 5:
                    join_ref, ref, topic, event, payload = value
                    if event == BROADCAST and join_ref is ref is None and type(topic) is str:
                        if topic in said:
                            said[topic].append(payload)
                        else:
                            found.broadcast(topic, payload)
                        continue
                found.add(self._message(value, data))
            except ProtocolError as error:
                found.all.append(error)
        return found.all

    def _message(self, value: Any, data: bytes) -> WireMessage:
        if not isinstance(value, list):
            raise ProtocolError(f"a 2.0.0 message must be an array, not {type(value).__name__}")
        if len(value) < 5:
            raise ProtocolError(f"a 2.0.0 message has 5 elements, not {len(value)}")
        message = WireMessage(*value[:5])
        _check(message)
        if message.event == POSTGRES_CHANGES and _loses_digits(data):
            keep_numerics(message.payload, loads(data, exact=True)[4])
        return message

    def _decode_binary(self, data: bytes) -> WireMessage:
        kind = data[0] if data else None
        if kind == KIND_USER_BROADCAST:
            return self._decode_user_broadcast(data)
        if kind == KIND_PUSH:
            (join_ref, topic, event), rest = _fields(data, 4, 3)
            return WireMessage(join_ref, None, topic, event, rest)
        if kind == KIND_REPLY:
            (join_ref, ref, topic, status), rest = _fields(data, 5, 4)
            return WireMessage(join_ref, ref, topic, PHX_REPLY, {"status": status, "response": rest})
        if kind == KIND_BROADCAST:
            (topic, event), rest = _fields(data, 3, 2)
            return WireMessage(None, None, topic, event, rest)
        raise ProtocolError("an empty binary frame" if kind is None else f"a binary frame of unknown kind {kind}")

    def _decode_user_broadcast(self, data: bytes) -> WireMessage:
        (topic, event, metadata), rest = _fields(data, 5, 3)
        payload = {
            "type": BROADCAST,
            "event": event,
            "payload": loads(rest) if data[4] == ENCODING_JSON else rest,
        }
        if metadata:
            payload["meta"] = loads(metadata.encode("utf-8"))
        return WireMessage(None, None, topic, BROADCAST, payload)


def serializer_for(vsn: str) -> Serializer:
    """
    The serializer of a version.

    Raises:
        InvalidValue: neither ``"1.0.0"`` nor ``"2.0.0"``.
    """
    for serializer in (SerializerV1, SerializerV2):
        if serializer.vsn == vsn:
            return serializer()
    raise InvalidValue(f"protocol must be '1.0.0' or '2.0.0', not {vsn!r}")

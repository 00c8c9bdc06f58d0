"""
The server's side of the wire: decodes what clients send, encodes what servers send. Shares nothing with the client's
codec on purpose, so that neither is tested against itself.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

__all__ = ["ClientMessage", "Malformed", "RawJson", "ServerMessage", "decode", "encode", "parse_json", "size_of"]


class Malformed(Exception):
    """A frame no Realtime server understands; it is logged there and dropped."""


class RawJson(NamedTuple):
    """Bytes a client called JSON and that are none; Realtime relays them unread, broken as they are."""

    data: bytes


class ClientMessage(NamedTuple):
    """What a client sent. A broadcast's payload is ``{"type", "event", "payload"}`` whatever frame it came in."""

    join_ref: Any
    ref: Any
    topic: Any
    event: Any
    payload: Any
    binary_kind: int | None = None


class ServerMessage(NamedTuple):
    """What the server sends; `user_frame` asks for a kind 4 frame on vsn 2."""

    join_ref: Any
    ref: Any
    topic: str
    event: str
    payload: Any
    user_frame: bool = False


def decode(vsn: str, data: str | bytes) -> ClientMessage:
    """Decode a client's frame; `Malformed` for anything else."""
    if isinstance(data, bytes):
        if vsn == "1.0.0":
            raise Malformed("a binary frame on vsn 1")
        return _decode_binary(data)
    value = parse_json(data)
    if vsn == "1.0.0":
        if not isinstance(value, dict) or not {"topic", "event", "payload", "ref"} <= value.keys():
            raise Malformed("a vsn 1 message has topic, event, payload and ref")
        parts = (value.get("join_ref"), value["ref"], value["topic"], value["event"], value["payload"])
    else:
        if not isinstance(value, list) or len(value) < 5:
            raise Malformed("a vsn 2 message is an array of five")
        parts = (value[0], value[1], value[2], value[3], value[4])
    return ClientMessage(*parts)


def _not_json(word: str) -> Any:
    raise Malformed(f"{word} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise Malformed("a number out of range")
    return value


def parse_json(data: str | bytes) -> Any:
    """Strict JSON: neither NaN nor half a surrogate pair, which no encoder could pass on; else `Malformed`."""
    try:
        value = json.loads(data, parse_constant=_not_json, parse_float=_finite)
        if (b"\\u" if isinstance(data, bytes) else "\\u") in data:  # type: ignore[operator]
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise Malformed(str(error)) from error
    return value


def _decode_binary(data: bytes) -> ClientMessage:
    if data[:1] == b"\0" and len(data) >= 5:
        fields, rest = _split(data, 5, data[1:5])
        join_ref, ref, topic, event = fields
        return ClientMessage(join_ref, ref, topic, event, rest, 0)
    if data[:1] == b"\3" and len(data) >= 7:
        fields, rest = _split(data, 7, data[1:6])
        join_ref, ref, topic, event, metadata = fields
        payload = {"type": "broadcast", "event": event, "payload": _user_payload(rest) if data[6] else rest}
        if metadata:
            payload["meta"] = parse_json(metadata)
        return ClientMessage(join_ref or None, ref or None, topic, "broadcast", payload, 3)
    raise Malformed("an unknown kind of binary frame")


def _user_payload(data: bytes) -> Any:
    try:
        return parse_json(data)
    except Malformed:
        return RawJson(data)


def _split(data: bytes, start: int, sizes: bytes) -> tuple[list[str], bytes]:
    if len(data) < start + sum(sizes):
        raise Malformed("a binary frame ends within its fields")
    fields = []
    for size in sizes:
        try:
            fields.append(data[start : start + size].decode())
        except UnicodeDecodeError as error:
            raise Malformed(str(error)) from error
        start += size
    return fields, data[start:]


def encode(vsn: str, message: ServerMessage) -> str | bytes | None:
    """The frame for a socket of `vsn`; None when that version cannot carry it and gets nothing."""
    payload = message.payload
    has_bytes = isinstance(payload, bytes) or (isinstance(payload, dict) and isinstance(payload.get("payload"), bytes))
    if vsn == "1.0.0":
        if isinstance(payload, bytes) and message.event == "broadcast":
            return _relay_bytes(message)
        if has_bytes:
            return None
        frame = {"topic": message.topic, "event": message.event, "payload": payload, "ref": message.ref}
        if isinstance(payload, dict) and isinstance(payload.get("payload"), RawJson):
            return _relay_broken(frame, payload)
        return _dumps(frame)
    if isinstance(payload, dict) and (message.user_frame or has_bytes) and message.event == "broadcast":
        return _user_broadcast(message.topic, payload)
    if isinstance(payload, dict) and isinstance(payload.get("response"), bytes):
        names = (message.join_ref or "", message.ref or "", message.topic, payload["status"])
        return _pack(1, names) + bytes(payload["response"])
    if isinstance(payload, bytes):
        if message.join_ref is None:
            return _pack(2, (message.topic, message.event)) + payload
        return _pack(0, (message.join_ref, message.topic, message.event)) + payload
    return _dumps([message.join_ref, message.ref, message.topic, message.event, payload])


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _relay_broken(frame: dict[str, Any], payload: dict[str, Any]) -> str:
    # protocol: broken JSON of a kind 3 frame is pasted into the object that vsn 1 sockets get
    hole = "\x00hole\x00"
    text = _dumps({**frame, "payload": {**payload, "payload": hole}})
    return text.replace(_dumps(hole), payload["payload"].data.decode(errors="replace"))


def _relay_bytes(message: ServerMessage) -> str:
    # protocol: of a kind 0 broadcast vsn 1 sockets get a printed Elixir term instead of JSON
    hole = "\x00hole\x00"
    text = _dumps({"topic": message.topic, "event": message.event, "payload": hole, "ref": message.ref})
    return text.replace(_dumps(hole), '%{error: "unable to parse response"}')


def _pack(kind: int, names: tuple[str, ...], extra: bytes = b"") -> bytes:
    encoded = [str(name).encode() for name in names]
    return bytes([kind, *(len(name) for name in encoded)]) + extra + b"".join(encoded)


def _user_broadcast(topic: str, payload: dict[str, Any]) -> bytes:
    body = payload.get("payload")
    is_json = not isinstance(body, bytes)
    metadata = _dumps(payload["meta"]) if payload.get("meta") else ""
    if isinstance(body, bytes):
        data = body
    elif isinstance(body, RawJson):
        data = body.data
    else:
        data = _dumps(body).encode()
    return _pack(4, (topic, str(payload["event"]), metadata), bytes([is_json])) + data


def size_of(payload: Any) -> int:
    """The bytes a payload takes as Erlang's external term format, by which the real server counts."""
    return 1 + _term(payload)


def _term(value: Any) -> int:
    if isinstance(value, dict):
        return 5 + sum(_term(name) + _term(inner) for name, inner in value.items())
    if isinstance(value, list):
        if value and all(type(item) is int and 0 <= item <= 255 for item in value) and len(value) < 0xFFFF:
            return 3 + len(value)  # taken for a string
        return 6 + sum(map(_term, value)) if value else 1
    if isinstance(value, RawJson):
        return 5 + len(value.data)
    if isinstance(value, str):
        return 5 + len(value.encode(errors="surrogatepass"))
    if isinstance(value, bytes):
        return 5 + len(value)
    if value is None or isinstance(value, bool):
        return 2 + len({None: "nil", True: "true", False: "false"}[value])
    return _number(value) if isinstance(value, int) else 9


def _number(value: int) -> int:
    if 0 <= value <= 255:
        return 2
    if -(2**27) <= value < 2**27:
        return 5
    digits = -(-abs(value).bit_length() // 8)
    return digits + (3 if digits <= 255 else 6)

"""
What is fuzzed. A target takes any bytes and raises when the code under it did wrong; what it returns says in short what
happened, so that inputs which make something new happen can be told.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from rtpool.errors import InvalidValue, MessageTooBig, ProtocolError
from rtpool.protocol import json_engine
from rtpool.protocol.frames import OP_CLOSE, FrameDecoder, FrameEncoder, WsMessage, close_code
from rtpool.protocol.json_engine import dumps
from rtpool.protocol.messages import JsonBody, WireMessage
from rtpool.protocol.serializer import Serializer, serializer_for
from tests.fuzz.program import Program

__all__ = ["TARGETS", "Target", "frames", "serializer", "session"]

Target = Callable[[bytes], Hashable]

#: Of messages, for the decoder.
LIMITS = [0, 125, 1_000, 70_000]
#: Bytes that arrive at a time.
PIECES = [1, 2, 3, 5, 64, 500]
#: How deep any JSON may go; beyond, orjson has a limit of its own, and Python one that depends on its stack.
SHALLOW = 500
#: RFC 6455 §7.4.1, and what is registered since.
CLOSE_CODES = {1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, *range(3000, 5000)}


def frames(data: bytes) -> Hashable:
    """The bytes of a stream, whole and in pieces, against a naive reader; the first two choose limit and pieces."""
    if len(data) < 2:
        return None
    limit, piece, wire = LIMITS[data[0] % len(LIMITS)], PIECES[data[1] % len(PIECES)], data[2:]
    whole = read_stream(FrameDecoder(limit), [wire], limit)
    pieces = [wire[i : i + piece] for i in range(0, len(wire), piece)]
    assert read_stream(FrameDecoder(limit), pieces, limit) == whole, "it depends on the split"
    assert naive_stream(wire, limit) == whole
    for message in whole[0]:
        masked = FrameEncoder(lambda size: bytes((7 + index) % 256 for index in range(size))).encode(*message)
        assert naive_stream(unmasked(masked), 1 << 40)[0] == [message], "there and back"
        if message[0] == OP_CLOSE:
            assert close_code(message[1]) in {*CLOSE_CODES, 1005}
    return tuple((m[0], len(m[1]).bit_length()) for m in whole[0][:4]), whole[1]


def read_stream(decoder: FrameDecoder, pieces: list[bytes], limit: int) -> tuple[list[WsMessage], str]:
    """What comes out, and the name of the error that ends it."""
    messages = []
    errors = []
    for piece in [*pieces, b""]:  # an error behind a whole message is raised by the next call
        try:
            messages += decoder.receive(piece)
            assert not errors, "it works on after an error"
        except (ProtocolError, MessageTooBig) as raised:
            errors.append(type(raised).__name__)
        kept = sum(map(len, decoder._fragments)) + sum(map(len, decoder._pieces))
        assert kept <= limit + 125, "more is kept than the limit, and a control frame"
    assert decoder.failed == bool(errors)
    assert len(set(errors)) <= 1, "it fails in two ways"
    return messages, errors[0] if errors else ""


def naive_stream(wire: bytes, limit: int) -> tuple[list[WsMessage], str]:
    """The same, read from the RFC with no thought of speed or of splits."""
    messages: list[WsMessage] = []
    opcode, body, at = None, b"", 0
    while len(wire) - at >= 2:
        first, length = wire[at], wire[at + 1]
        fin, op = first >> 7, first & 15
        if first & 0x70 or op not in (0, 1, 2, 8, 9, 10) or length & 0x80:
            return messages, "ProtocolError"
        wide = {126: 2, 127: 8}.get(length, 0)
        if len(wire) < at + 2 + wide:
            break
        start = at + 2 + wide
        length = int.from_bytes(wire[at + 2 : start], "big") if wide else length
        if op >= 8 and (length > 125 or not fin):
            return messages, "ProtocolError"
        if op < 8 and (op == 0) != (opcode is not None):
            return messages, "ProtocolError"
        if op < 8 and len(body) + length > limit:
            return messages, "MessageTooBig"
        at = start + length
        if len(wire) < at:
            break
        data = wire[start:at]
        if op == OP_CLOSE and (len(data) == 1 or (data and int.from_bytes(data[:2], "big") not in CLOSE_CODES)):
            return messages, "ProtocolError"
        if op >= 8:
            messages.append((op, data))
            continue
        opcode, body = opcode or op, body + data
        if fin:
            messages.append((opcode, body))
            opcode, body = None, b""
    return messages, ""


def unmasked(frame: bytes) -> bytes:
    """A client's frame as a server would have sent it."""
    assert frame[1] & 0x80, "a client must mask"
    size = {126: 2, 127: 8}.get(frame[1] & 0x7F, 0) + 2
    key, data = frame[size : size + 4], frame[size + 4 :]
    plain = bytes(byte ^ key[index % 4] for index, byte in enumerate(data))
    return frame[:1] + bytes([frame[1] & 0x7F]) + frame[2:size] + plain


def serializer(data: bytes) -> Hashable:
    """One data message, with and without orjson, and back again; the first byte chooses version and kind of frame."""
    if not data:
        return None
    coder, is_binary, wire = serializer_for(["2.0.0", "1.0.0"][data[0] >> 1 & 1]), bool(data[0] & 1), data[1:]
    fast = decoded(coder, wire, is_binary)
    orjson, json_engine.orjson = json_engine.orjson, None  # type: ignore[assignment]
    try:
        slow = decoded(coder, wire, is_binary)
    finally:
        json_engine.orjson = orjson
    if wire.count(b"[") + wire.count(b"{") <= SHALLOW:
        assert repr(fast) == repr(slow), "it depends on orjson"
    if isinstance(fast, str):
        return fast
    assert isinstance(fast.topic, str)
    assert isinstance(fast.event, str)
    if is_binary:
        check_binary(fast, wire)
    else:
        try:
            body = JsonBody(dumps(fast.payload))
        except InvalidValue:  # what Python reads as infinite
            return "endless"
        try:
            _, again = coder.encode(fast.join_ref, fast.ref, fast.topic, fast.event, body)
        except InvalidValue:
            return "half a character"
        assert repr(coder.decode(again, False)) == repr(fast), "there and back"
    return is_binary, fast.event[:12], type(fast.payload).__name__, type(fast.ref).__name__


def decoded(coder: Serializer, wire: bytes, is_binary: bool) -> WireMessage | str:
    """The message, or that there is none."""
    try:
        return coder.decode(wire, is_binary)
    except ProtocolError:
        return "ProtocolError"


def check_binary(message: WireMessage, wire: bytes) -> None:
    """A binary frame says no more and no less than its bytes (protocol 2.3)."""
    kind = wire[0]
    count, header = {0: (3, 4), 1: (4, 5), 2: (2, 3), 4: (3, 5)}[kind]
    at, fields = header, []
    for size in wire[1 : 1 + count]:
        fields.append(wire[at : at + size].decode())
        at += size
    rest = wire[at:]
    if kind == 0:
        assert message == WireMessage(fields[0], None, fields[1], fields[2], rest)
    elif kind == 1:
        assert message == WireMessage(*fields[:3], "phx_reply", {"status": fields[3], "response": rest})
    elif kind == 2:
        assert message == WireMessage(None, None, fields[0], fields[1], rest)
    else:
        assert message[:4] == (None, None, fields[0], "broadcast")
        assert message.payload["event"] == fields[1]
        assert message.payload["payload"] == rest if wire[4] != 1 else not isinstance(message.payload["payload"], bytes)
        assert ("meta" in message.payload) == bool(fields[2])


def session(data: bytes) -> Hashable:
    """A life of a session: what users do, what passes, what a server says; each byte is a decision."""
    return Program(data).run()


TARGETS: dict[str, Target] = {"frames": frames, "serializer": serializer, "session": session}

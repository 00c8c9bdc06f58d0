"""
What fuzzing starts from: the vectors and the recordings of real servers that the tests carry, as inputs of each target.
"""

from __future__ import annotations

import json
import pathlib
from functools import cache
from typing import Any

from tests.fuzz.program import OPS, TOPICS
from tests.support.transcripts import NAMES, frame_of, load

__all__ = ["DICTIONARY", "seeds"]

VECTORS = pathlib.Path(__file__).parent.parent / "protocol" / "protocol_vectors.json"
#: Of one kind of input; enough to hold every shape, few enough to begin quickly.
MAX_SEEDS = 400
MAX_BYTES = 2_000
#: What random bytes hardly ever hit.
DICTIONARY = [
    *(b"null", b"true", b'""', b"[]", b"{}", b"-0", b"0.0", b"1e999", b"-1e-999", b"9" * 19, b"9" * 400, b"0x1"),
    *(b'"\\ud800"', b'"\\u0000"', b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"NaN", b"Infinity"),
    *(b"[" * 200, b'{"a":' * 200, b'"phx_reply"', b'"phx_close"', b'"phx_error"', b'"realtime:a"', b'"phoenix"'),
    *(b'"postgres_changes"', b'"numeric"', b'"status"', b'"response"', b'"unmatched topic"', b'"topic"', b'"ref"'),
    *(b"\x7e\x00\x7e", b"\x7f" + bytes(7) + b"\x01", b"\x81\x00", b"\x00\x00", b"\x89\x7d", b"\x88\x02\x03\xe8"),
]


def seeds(target: str) -> list[bytes]:
    """The inputs a target starts with."""
    return {"frames": frame_seeds, "serializer": serializer_seeds, "session": session_seeds}[target]()


@cache
def messages() -> list[tuple[str, bytes, bool]]:
    """Every recorded message of moderate size, each shape once: version, bytes, whether it is binary."""
    found: dict[tuple[str, bytes], tuple[str, bytes, bool]] = {}
    for vector in json.loads(VECTORS.read_text()):
        binary = vector["frame"] == "binary"
        data = bytes.fromhex(vector["wire_hex"]) if binary else vector["wire"].encode()
        found[vector["vsn"], data] = vector["vsn"], data, binary
    for name in NAMES:
        lines = load(name)
        vsn = lines[0].get("vsn", "2.0.0")
        for line in lines:
            frame = frame_of(line) if line["dir"] in "<>" else None
            if frame is not None and len(frame[0]) <= MAX_BYTES:
                shape = bytes(b for b in frame[0] if not chr(b).isalnum())
                found.setdefault((vsn, shape), (vsn, *frame))
    kept = list(found.values())
    return kept[:: max(1, len(kept) // MAX_SEEDS)]


def serializer_seeds() -> list[bytes]:
    return [bytes([binary | 2 * (vsn == "1.0.0")]) + data for vsn, data, binary in messages()]


def frame_seeds() -> list[bytes]:
    """Streams of a few frames each: some in fragments, with pings between, and a close frame at the end."""
    streams = []
    recorded = messages()
    for start in range(0, len(recorded), 4):
        stream = bytes([3, start % 9])
        for index, (_, data, binary) in enumerate(recorded[start : start + 4]):
            cut = len(data) // 2 if index % 2 else 0
            first = 1 + binary
            if cut:
                stream += _head(first, cut) + data[:cut] + b"\x89\x04ping"
                first, data = 0, data[cut:]
            stream += _head(0x80 | first, len(data)) + data
        streams.append(stream + b"\x88\x02\x03\xf4")
    return streams


def _head(first: int, length: int) -> bytes:
    return bytes((first, length)) if length < 126 else bytes((first, 126)) + length.to_bytes(2, "big")


def session_seeds() -> list[bytes]:
    """Each recorded connection as the steps that lead a session the same way."""
    programs = []
    for name in NAMES:
        lines = load(name)
        vsn = lines[0].get("vsn", "2.0.0")
        for client in dict.fromkeys(line["c"] for line in lines if line["dir"] in "<>"):
            program = _program([line for line in lines if line.get("c") == client], vsn)
            programs += [program[: MAX_BYTES * 2]] if len(program) > 20 else []
    return programs


def _step(what: str, *more: int) -> bytes:
    return bytes([OPS.index(what), *more])


def _program(lines: list[dict[str, Any]], vsn: str) -> bytes:
    """Theirs become ours: topics by their order, refs by the count of what was sent."""
    topics: dict[str, int] = {}
    refs: dict[str, str] = {}
    program = bytes([(vsn == "1.0.0") | 6])
    for line in lines:
        frame = frame_of(line) if line["dir"] in "<>" else None
        if frame is None:
            continue
        message = None if frame[1] else _parsed(frame[0], vsn)
        if line["dir"] == "<":
            data = _ours(message, topics, refs, vsn) if message else frame[0]
            size = min(len(data), 4_095)
            program += _step("binary" if frame[1] else "text", size & 255, size >> 8) + data[:size]
        elif message is not None:
            topic = topics.setdefault(message[2], len(topics) % 3)
            refs[str(message[1])] = str(len(refs) + 1)
            steps = {"phx_join": _step("join", topic), "phx_leave": _step("leave", topic), "heartbeat": _step("fence")}
            program += steps.get(message[3], _step("push", topic, 255)) + _step("write", 255) + _step("wait", 2)
    return program


def _parsed(data: bytes, vsn: str) -> list[Any] | None:
    try:
        value = json.loads(data)
        parts = (
            [value.get("join_ref")] + [value[key] for key in ("ref", "topic", "event", "payload")]
            if vsn == "1.0.0"
            else value
        )
        return list(parts[:5]) if isinstance(parts[2], str) and isinstance(parts[3], str) else None
    except (ValueError, LookupError, TypeError, AttributeError):  # some were broken on purpose
        return None


def _ours(message: list[Any], topics: dict[str, int], refs: dict[str, str], vsn: str) -> bytes:
    join_ref, ref, topic, event, payload = message
    join_ref, ref = refs.get(str(join_ref), join_ref), refs.get(str(ref), ref)
    topic = TOPICS[topics[topic]] if topic in topics else topic
    if vsn == "1.0.0":
        return json.dumps({"ref": ref, "topic": topic, "event": event, "payload": payload}).encode()
    return json.dumps([join_ref, ref, topic, event, payload]).encode()

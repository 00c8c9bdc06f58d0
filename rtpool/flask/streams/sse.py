"""
Server-Sent Events as text: frames, and the ids by which a browser that comes back says what it had last. Pure: no
clock, no thread, no randomness.

All that users and servers say goes into `data`, as JSON that is ASCII on one line: nothing in it can end a line, or be
taken for another field. Written by the HTML standard, §9.2 "Server-sent events".
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import attrs

from rtpool.errors import InvalidValue
from rtpool.events import Broadcast, Event, Gap, PostgresChange, Presence, StatusChange

__all__ = [
    "HEARTBEAT",
    "Position",
    "STOP",
    "content_of",
    "encode",
    "fingerprint",
    "fingerprint_of_several",
    "frame",
    "mark",
    "parse_id",
    "retry",
]

#: A comment, which browsers drop.
HEARTBEAT = b": \n\n"
#: In place of a fingerprint: the stream said that it can never be, and a browser that comes back is to stop.
STOP = "stop"
#: Characters of the longest id.
MAX_ID = 64

_NAME = re.compile(r"[a-z]{1,32}")
_ID = re.compile(r"(?P<epoch>[0-9a-f]{16})-(?P<seq>[0-9]{1,15})-(?P<ms>[0-9]{1,15})-(?P<fingerprint>[0-9a-f]{16}|stop)")


@attrs.frozen
class Position:
    """
    A place in a feed: behind one event and before the next. As a string it is an SSE id.

    Attributes:
        epoch: which feed of which process; 16 hexadecimal digits.
        seq: what the feed had told so far, counted from 1.
        ms: when the newest change, broadcast or presence among that came, milliseconds since 1970.
        fingerprint: of that one and those just before it, by which the feed of another process knows the place; before
            the first one any; or `STOP`.
    """

    epoch: str
    seq: int
    ms: int
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.epoch}-{self.seq}-{self.ms}-{self.fingerprint}"


def parse_id(text: str) -> Position | None:
    """What a ``Last-Event-ID`` says, None when it is none of ours, however long or odd."""
    found = _ID.fullmatch(text) if len(text) <= MAX_ID else None
    if found is None:
        return None
    return Position(found["epoch"], int(found["seq"]), int(found["ms"]), found["fingerprint"])


def frame(event: str, data: str, position: Position | None = None) -> bytes:
    """
    One event.

    Args:
        event: its type, 1 to 32 small letters; never a user's words.
        data: what `encode` made.
        position: becomes its id.

    Raises:
        InvalidValue: a type or data that could be taken for something else.
    """
    if not _NAME.fullmatch(event):
        raise InvalidValue(f"an event's type is 1 to 32 small letters, not {event[:40]!r}")
    if not data.isascii() or "\n" in data or "\r" in data:
        raise InvalidValue("data must be ASCII on one line, as encode() makes it")
    number = "" if position is None else f"id: {position}\n"
    return f"event: {event}\n{number}data: {data}\n\n".encode("ascii")


def mark(position: Position) -> bytes:
    """What moves a browser's last id and is no event to it."""
    return f"id: {position}\n\n".encode("ascii")


def retry(milliseconds: int) -> bytes:
    """How long a browser waits before it comes back."""
    return b"retry: %d\n\n" % milliseconds


def encode(value: Any, *, default: Callable[[Any], Any] | None = None, ordered: bool = False) -> str:
    """
    JSON as ASCII on one line.

    Numbers without a JSON form (infinite, none at all) become null; bytes become base64, times ISO 8601, decimals
    strings with every digit.

    Args:
        default: says what else is to be written, as `json.dumps` has it.
        ordered: sort the keys, so that equal values are equal texts.

    Raises:
        TypeError: a type that neither JSON nor `default` knows.
        ValueError, RecursionError: a cycle, or nested too deeply.
    """

    def also(thing: Any) -> Any:
        if isinstance(thing, Mapping):
            return dict(thing)
        if isinstance(thing, (bytes, bytearray, memoryview)):
            return base64.b64encode(thing).decode("ascii")
        if default is not None:
            return default(thing)
        if isinstance(thing, (datetime, date)):
            return thing.isoformat()
        if isinstance(thing, Decimal):
            return str(thing)
        raise TypeError(f"{type(thing).__name__} cannot be written as JSON")

    encoder = json.JSONEncoder(allow_nan=False, separators=(",", ":"), sort_keys=ordered, default=also)
    try:
        return encoder.encode(value)
    except ValueError:  # a number without a JSON form, which is rare, or a cycle, which is found again
        lenient = json.JSONEncoder(separators=(",", ":"), sort_keys=ordered, default=also)
        return encoder.encode(json.loads(lenient.encode(value), parse_constant=lambda _: None))


def content_of(event: Event) -> tuple[str, dict[str, Any]]:
    """
    An event's type and its `data`, for `frame` and `encode`: the fields of its class, less the topic. Of a status only
    what may be shown to strangers: no error's words.

    Raises:
        InvalidValue: nothing a stream tells.
    """
    if isinstance(event, PostgresChange):
        return "change", _fields(event, "topic")
    if isinstance(event, Broadcast):
        data = _fields(event, "topic")
        return "broadcast", data | {"encoding": "base64"} if isinstance(event.payload, bytes) else data
    if isinstance(event, Presence):
        return "presence", _fields(event, "topic")
    if isinstance(event, Gap):
        return "gap", _fields(event, "topic")
    if isinstance(event, StatusChange):
        error = event.error
        return "status", {
            "status": event.status,
            "code": getattr(error, "code", None),
            "error": None if error is None else type(error).__name__,
            # What is closed is so for this process; a browser that comes back meets another, or a new pool.
            "retryable": True if event.status == "closed" else getattr(error, "retryable", None),
        }
    raise InvalidValue(f"a stream tells nothing of {type(event).__name__}")


def _fields(event: Any, *less: str) -> dict[str, Any]:
    return {field.name: getattr(event, field.name) for field in attrs.fields(type(event)) if field.name not in less}


def fingerprint(event: str, data: str, key: bytes) -> str:
    """
    By what processes that share a key know an event again.

    Args:
        event, data: as given to `frame`; the data in order.
        key: up to 64 bytes that no browser knows, lest it find by trial what a view left out.
    """
    digest = hashlib.blake2b(f"{event}\n{data}".encode("ascii"), key=key, digest_size=8, person=b"rtpool-sse")
    return digest.hexdigest()


def fingerprint_of_several(fingerprints: Iterable[str], key: bytes) -> str:
    """
    By what processes that share a key know a place again: events in their order.

    Args:
        fingerprints: theirs.
        key: as for `fingerprint`.
    """
    return fingerprint("several", " ".join(fingerprints), key)

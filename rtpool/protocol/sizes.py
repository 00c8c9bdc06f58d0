"""
How large a server finds what we send, and what is too large for it: to be refused at the call, before it costs a socket
or vanishes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from rtpool.errors import MessageTooBig, ProtocolError
from rtpool.protocol.json_engine import loads
from rtpool.protocol.messages import BROADCAST, PRESENCE, BinaryBody, Body, JsonBody, UserBroadcast
from rtpool.protocol.serializer import Serializer

__all__ = ["SizeLimits", "term_size"]

#: Bytes the refs, the topic and the event of a frame take at most: names have up to 255 bytes, each up to six in JSON.
MAX_HEAD = 4_000
#: A ref as long as any will get.
LONG_REF = "9" * 10
#: No JSON value becomes more than so many times as large as its text: ``[[[…]]]`` and ``[0.5]`` do.
MAX_GROWTH = 3
#: Bytes of a binary broadcast that are neither its payload nor the name of its event.
AROUND_BINARY = 64


def term_size(value: Any) -> int:
    """
    The size of a JSON value as a Realtime server counts it, which is as Erlang's external term format.

    It follows `erts_encode_ext_size` of OTP. Close to the length of the text for text, up to thrice as much for short
    numbers, half as much for long ones. Not a single byte off is promised: what the server's decoder makes of a number
    beyond 64 bits is its own business.
    """
    size, stack = 1, [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            size += 5 + (len(item) if item.isascii() else len(item.encode("utf-8", "surrogatepass")))
        elif isinstance(item, dict):
            size += 5
            stack.extend(item)
            stack.extend(item.values())
        elif isinstance(item, list):
            size += _add_list(item, stack)
        elif item is None:
            size += 5
        elif isinstance(item, bool):
            size += 6 if item else 7
        elif isinstance(item, int):
            size += _integer(item)
        else:
            size += 9
    return size


def _add_list(items: list[Any], stack: list[Any]) -> int:
    if not items:
        return 1
    if len(items) < 65_535 and all(type(item) is int and 0 <= item < 256 for item in items):
        return 3 + len(items)  # what Erlang takes for a string
    stack.extend(items)
    return 6


def _integer(value: int) -> int:
    if 0 <= value < 256:
        return 2
    if -(1 << 27) <= value < 1 << 27:
        return 5
    length = (abs(value).bit_length() + 7) // 8
    return (3 if length < 256 else 6) + length


class SizeLimits(NamedTuple):
    """
    What a server takes.

    Attributes:
        serializer: writes the frames.
        payload: bytes of a broadcast or a presence, as the server counts them; None for no such limit.
        frame: bytes of a frame; None for no limit.

    Thread-safety: any thread.
    """

    serializer: Serializer
    payload: int | None
    frame: int | None

    def check(self, topic: str, event: str, body: Body, *, name: str) -> None:
        """
        Refuse what the server would.

        Args:
            topic: on the wire.
            event: of Phoenix.
            name: the topic as the user wrote it.

        Raises:
            MessageTooBig: with the size and the limit.
        """
        length = len(body.data)
        if self.frame is not None and length + MAX_HEAD > self.frame:
            size = self._head(topic, event, body) + length
            if size > self.frame:
                raise _too_big(f"a frame of {size:,} bytes", name, "max_frame_size", size, self.frame)
        if self.payload is not None and event in (BROADCAST, PRESENCE) and length * MAX_GROWTH + 128 > self.payload:
            size = _payload_size(body)
            if size > self.payload:
                raise _too_big(f"a payload that counts {size:,} bytes", name, "max_payload_size", size, self.payload)

    def _head(self, topic: str, event: str, body: Body) -> int:
        """Bytes of the frame that are not the body; the refs are not known yet, and are taken for long ones."""
        empty: Body
        if isinstance(body, UserBroadcast):
            empty = UserBroadcast(body.event, b"", body.is_json, body.metadata)
        else:
            empty = JsonBody(b"") if isinstance(body, JsonBody) else BinaryBody(b"")
        return len(self.serializer.encode(LONG_REF, LONG_REF, topic, event, empty)[1])


def _payload_size(body: Body) -> int:
    if not isinstance(body, JsonBody):
        event = body.event if isinstance(body, UserBroadcast) else ""
        return len(body.data) + len(event.encode("utf-8")) + AROUND_BINARY
    try:
        value = loads(body.data)
    except ProtocolError:  # nested too deep to be read again
        return len(body.data)
    if isinstance(value, dict) and value.get("type") == PRESENCE:
        value = value.get("payload")  # of a presence the server counts no more than that
    return term_size(value)


def _too_big(what: str, name: str, option: str, size: int, limit: int) -> MessageTooBig:
    return MessageTooBig(
        f"{what} on {name!r}, and the server takes at most {limit:,}: nothing was sent (option {option})",
        size=size,
        limit=limit,
    )

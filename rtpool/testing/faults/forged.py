"""
Frames that no server sends, or none should, and the close of a socket.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable

import attrs
from websockets.exceptions import ProtocolError
from websockets.frames import Close as CloseFrame
from websockets.frames import Opcode

from rtpool.testing.faults.base import FROM_OPENING, ConnectionFault
from rtpool.testing.faults.injection import Hit
from rtpool.testing.faults.streams import Raw

__all__ = ["BadUtf8", "Close", "GarbageText", "HugeFrame", "MaskedFrame", "OversizePing"]


@attrs.frozen
class _Frame(Raw):
    moments = FROM_OPENING

    data: bytes = attrs.field(default=b"", init=False, repr=False)


@attrs.frozen
class GarbageText(_Frame):
    """
    A text frame that is not of the protocol. A client must survive it; the frame it strikes at follows as ever.

    A bug of the server, or of a proxy that injects something of its own.
    """

    text: str = "{]not JSON"

    def bytes(self) -> bytes:
        """The frame."""
        return _frame(Opcode.TEXT, self.text.encode())


@attrs.frozen
class BadUtf8(_Frame):
    """A text frame that is not UTF-8: RFC 6455 has the client close with 1007. Corruption on the way."""

    def bytes(self) -> bytes:
        """The frame."""
        return _frame(Opcode.TEXT, b"\xc3\x28\xff")


@attrs.frozen
class HugeFrame(_Frame):
    """
    The head of a binary frame that announces so many bytes; all that follows counts as its content. A client must
    refuse it (1009) rather than wait or make room.

    Args:
        announced: bytes; RFC 6455 allows less than 2 ** 63.
    """

    announced: int = 2**40

    def bytes(self) -> bytes:
        """The frame's head."""
        return _head(Opcode.BINARY, self.announced)


@attrs.frozen
class MaskedFrame(_Frame):
    """A text frame with a mask, which RFC 6455 forbids servers: the client closes with 1002. A broken proxy."""

    text: str = "masked"

    def bytes(self) -> bytes:
        """The frame."""
        mask, text = b"\x01\x02\x03\x04", self.text.encode()
        masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(text))
        return _head(Opcode.TEXT, len(text), masked=True) + mask + masked


@attrs.frozen
class OversizePing(_Frame):
    """A ping of more than 125 bytes, which RFC 6455 forbids: the client closes with 1002."""

    size: int = 126

    def bytes(self) -> bytes:
        """The frame."""
        return _frame(Opcode.PING, b"x" * self.size)


def _head(opcode: Opcode, length: int, *, masked: bool = False) -> bytes:
    first, flag = 0x80 | opcode, 0x80 if masked else 0
    if length < 126:
        return struct.pack("!BB", first, flag | length)
    if length < 2**16:
        return struct.pack("!BBH", first, flag | 126, length)
    return struct.pack("!BBQ", first, flag | 127, length)


def _frame(opcode: Opcode, content: bytes) -> bytes:
    return _head(opcode, len(content)) + content


@attrs.frozen
class Close(ConnectionFault):
    """
    A close frame, and then the end of the connection as RFC 6455 has it. Nothing is sent after it.

    Deployments (1012), shut-downs (1001), limits (1001, 1008), crashes (1011), proxies' own codes.

    Args:
        code: any from 0 to 65535; one that may not be sent (999, 1005, 1006, …) is sent all the same.
        reason: at most 123 bytes.
    """

    code: int = 1000
    reason: str = ""
    moments = FROM_OPENING

    def apply(self, hit: Hit) -> Awaitable[None]:
        """Close."""
        stream = hit.occasion.stream
        try:
            CloseFrame(self.code, self.reason).check()
        except ProtocolError:
            stream.write_raw(_frame(Opcode.CLOSE, struct.pack("!H", self.code) + self.reason.encode()))
            closing: Awaitable[None] = stream.close(1000, "")
            stream.valve.end()
        else:
            closing = stream.close(self.code, self.reason)
        hit.done()
        return closing

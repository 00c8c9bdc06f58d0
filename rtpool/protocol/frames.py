"""
WebSocket frames (RFC 6455 §5), with a limit of size: out of what was read, refusing what a server must not send, with
fragments put together; and to be written, masked.

websocket-client's own parser takes a frame from a socket in several calls, ten times the time of cutting it out; and
its writer twice the time of the one here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from websocket import ABNF

from rtpool.actions import Action
from rtpool.errors import MessageTooBig, ProtocolError

__all__ = ["FrameDecoder", "FrameEncoder", "WsMessage", "close_code"]

#: RFC 6455 §7.4.1.
CLOSE_NORMAL, CLOSE_PROTOCOL_ERROR, CLOSE_TOO_BIG = 1000, 1002, 1009
#: Registered with IANA for a restart; Phoenix sends it when it drains for a deploy.
CLOSE_SERVICE_RESTART = 1012
#: The bits of a frame's first two bytes (§5.2); how many mask keys are drawn at a time.
FIN, MASKED, KEYS_AT_ONCE = 0x80, 0x80, 64
#: What §7.1.5 calls the code of a close frame without one.
CLOSE_NO_STATUS = 1005

OP_TEXT, OP_BINARY, OP_CLOSE, OP_PING, OP_PONG = (
    ABNF.OPCODE_TEXT,
    ABNF.OPCODE_BINARY,
    ABNF.OPCODE_CLOSE,
    ABNF.OPCODE_PING,
    ABNF.OPCODE_PONG,
)


#: A whole WebSocket message, (opcode, payload): a control frame, or a data message with its fragments joined.
WsMessage = tuple[int, bytes]

#: First bytes of a whole message in one frame (RFC 6455 §5.2: FIN, and the opcode).
WHOLE = frozenset((0x80 | OP_TEXT, 0x80 | OP_BINARY))
#: What a close frame may say (RFC 6455 §7.4, and the codes registered with IANA since).
CLOSE_CODES = frozenset((1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)))


class FrameDecoder:
    """
    Bytes in, whole messages out, under any split of the byte stream.

    A message that comes whole is cut out of what was read, one in pieces is joined once: its bytes are copied once.

    Args:
        max_message_size: bytes a message may have, fragments added up.

    Thread-safety: none; confined to the I/O thread.
    """

    def __init__(self, max_message_size: int) -> None:
        self._limit = max_message_size
        self._error: ProtocolError | MessageTooBig | None = None
        #: Control frames that came; who knows their number need not look for them among the messages.
        self.control_frames = 0
        # Of a frame whose header is not here yet, what is; of one whose header is, the first byte, what of its payload
        # is here, and how many bytes are not.
        self._header = b""
        self._first = 0
        self._pieces: list[bytes | memoryview] = []
        self._missing = 0
        # Of a message in fragments.
        self._opcode: int | None = None
        self._fragments: list[bytes] = []
        self._fragments_size = 0

    def receive(self, data: bytes) -> list[WsMessage]:
        """
        Take the next bytes of the stream and return the messages they complete.

        Raises:
            ProtocolError: with the `close_code` to answer; the decoder is of no further use. What was complete before
                is returned first, and `failed` is true: the next call raises.
            MessageTooBig: likewise; a frame or message over the limit was announced; nothing of its payload was kept.
        """
        if self._error is not None:
            raise self._error
        messages: list[WsMessage] = []
        try:
            self._cut(data, messages)
        except (ProtocolError, MessageTooBig) as error:
            self._error = error
            if not messages:
                raise
        return messages

    @property
    def failed(self) -> bool:
        """Whether the next call of `receive` raises, whatever it is given."""
        return self._error is not None

    def _cut(self, data: bytes, messages: list[WsMessage]) -> None:
        position = 0
        if self._missing:
            position = self._go_on(data, messages)
        elif self._header:
            data, self._header = self._header + data, b""
        end, limit, append = len(data), self._limit, messages.append
        alone = self._opcode is None  # no message in fragments is under way
        while (body := position + 2) <= end:
            first, length = data[position], data[position + 1]
            if length == 126 and body + 2 <= end:
                length = data[body] << 8 | data[body + 1]
                body += 2
            elif length > 125:
                _refuse_header(first, length)  # now, not with the rest: that may never come
                body += 2 if length == 126 else 8
                if body > end:
                    break
                length = int.from_bytes(data[position + 2 : body], "big")
            whole = alone and first in WHOLE
            if not whole or length > limit:
                self._check(first, length)
            position = body + length
            if position > end:
                self._first, self._missing = first, position - end
                self._pieces = [memoryview(data)[body:]]  # keeps alive what was read, of which it is the end
                return
            if whole:
                append((first & 0x0F, data[body:position]))
            else:
                self._assemble(first, data[body:position], messages)
                alone = self._opcode is None
        self._header = data[position:]

    def _go_on(self, data: bytes, messages: list[WsMessage]) -> int:
        """Add to the payload that is not complete; how many bytes that took."""
        used = min(self._missing, len(data))
        self._pieces.append(data if used == len(data) else memoryview(data)[:used])
        self._missing -= used
        if not self._missing:
            pieces, self._pieces = self._pieces, []
            self._assemble(self._first, b"".join(pieces), messages)
        return used

    def _check(self, first: int, length: int) -> None:
        """Refuse a frame whose length is known, for what it is or because of where it comes."""
        _refuse_header(first, 0)
        opcode = first & 0x0F
        if opcode >= OP_CLOSE:
            if length > 125 or first < 0x80:
                raise ProtocolError(
                    f"a control frame of {length} bytes, or in fragments (RFC 6455 §5.5)",
                    close_code=CLOSE_PROTOCOL_ERROR,
                )
            return
        if (opcode == ABNF.OPCODE_CONT) != (self._opcode is not None):
            raise ProtocolError("a fragment out of place (RFC 6455 §5.4)", close_code=CLOSE_PROTOCOL_ERROR)
        size = self._fragments_size + length
        if size > self._limit:
            raise MessageTooBig(
                f"the server announced a message of at least {size} bytes, over the option max_message_size "
                f"of {self._limit}",
                size=size,
                limit=self._limit,
                action=Action.BACK_OFF,
            )

    def _assemble(self, first: int, data: bytes, messages: list[WsMessage]) -> None:
        """Take a frame that is complete."""
        opcode = first & 0x0F
        if opcode >= OP_CLOSE:
            if opcode == OP_CLOSE:
                _check_close(data)
            self.control_frames += 1
            messages.append((opcode, data))
            return
        final = first >= 0x80
        if final and self._opcode is None:
            messages.append((opcode, data))
            return
        if self._opcode is None:
            self._opcode = opcode
        self._fragments.append(data)
        self._fragments_size += len(data)
        if final:
            messages.append((self._opcode, b"".join(self._fragments)))
            self._opcode, self._fragments, self._fragments_size = None, [], 0


def _refuse_header(first: int, second: int) -> None:
    if first & 0x70 or (first & 0x0F) not in ABNF.OPCODES or second & 0x80:
        raise ProtocolError(
            f"a frame with reserved bits, an unknown opcode ({first & 0x0F}) or a mask (RFC 6455 §5.1, §5.2)",
            close_code=CLOSE_PROTOCOL_ERROR,
        )


def _check_close(data: bytes) -> None:
    if data and (len(data) == 1 or close_code(data) not in CLOSE_CODES):
        raise ProtocolError(
            f"a close frame of {len(data)} bytes with a code that is none (RFC 6455 §5.5.1, §7.4)",
            close_code=CLOSE_PROTOCOL_ERROR,
        )


class FrameEncoder:
    """
    Messages to masked frames.

    Args:
        mask_key: returns that many unpredictable bytes (RFC 6455 §10.3), always as many as it is asked for; the shell
            gives `os.urandom`.
    """

    def __init__(self, mask_key: Callable[[int], bytes]) -> None:
        self._mask_key = mask_key
        self._keys: list[bytes] = []  # a system call for each would take longer than the mask

    def encode(self, opcode: int, data: bytes) -> bytes:
        """The bytes of one unfragmented frame."""
        size = len(data)
        if size < 126:
            head = bytes((FIN | opcode, MASKED | size))
        elif size < 1 << 16:
            head = struct.pack("!BBH", FIN | opcode, MASKED | 126, size)
        else:
            head = struct.pack("!BBQ", FIN | opcode, MASKED | 127, size)
        if not self._keys:
            drawn = self._mask_key(4 * KEYS_AT_ONCE)
            self._keys = [drawn[start : start + 4] for start in range(0, len(drawn), 4)]
        key = self._keys.pop()
        mask = int.from_bytes((key * (size // 4 + 1))[:size], "little")
        masked = (int.from_bytes(data, "little") ^ mask).to_bytes(size, "little")
        return b"%s%s%s" % (head, key, masked)

    def encode_close(self, code: int) -> bytes:
        """The bytes of a close frame with `code` and no reason."""
        return self.encode(OP_CLOSE, code.to_bytes(2, "big"))


def close_code(data: bytes) -> int:
    """The code in a close frame's payload, 1005 when it has none."""
    return int.from_bytes(data[:2], "big") if len(data) >= 2 else CLOSE_NO_STATUS

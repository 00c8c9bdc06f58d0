"""
WebSocket frames over websocket-client's codec, with the size limit it lacks.

websocket-client parses single frames; this module feeds it from a buffer instead of a socket, refuses what a server must
not send, puts fragments together, and writes the frames of ours (RFC 6455 §5).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from websocket import ABNF, WebSocketException, frame_buffer

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


class WsMessage(NamedTuple):
    """A whole WebSocket message: a control frame, or a data message with its fragments joined."""

    opcode: int
    data: bytes


class _NeedData(Exception):
    """The buffer is empty; websocket-client keeps what it has and goes on at the next call."""


class _Frames(frame_buffer):  # type: ignore[misc, unused-ignore]
    """websocket-client's parser, refusing a frame as soon as its header is known."""

    def __init__(self, recv: Callable[[int], bytes], refuse: Callable[[int, bool, int], None]) -> None:
        super().__init__(recv, skip_utf8_validation=True)
        self._refuse = refuse
        self._have = 0  # bytes in its recv_buffer

    def recv_header(self) -> None:
        super().recv_header()
        _, rsv1, rsv2, rsv3, opcode, has_mask, _ = self.header or (0,) * 7
        if rsv1 or rsv2 or rsv3 or opcode not in ABNF.OPCODES or has_mask:
            # Refused here, not with the whole frame: its length may never come.
            raise ProtocolError(
                f"a frame with reserved bits, an unknown opcode ({opcode}) or a mask (RFC 6455 §5.1, §5.2)",
                close_code=CLOSE_PROTOCOL_ERROR,
            )

    def recv_length(self) -> None:
        super().recv_length()
        fin, _, _, _, opcode, _, _ = self.header or (0,) * 7
        self._refuse(opcode, bool(fin), self.length or 0)

    def recv_strict(self, bufsize: int) -> bytes:
        # The inherited one adds up all it has at each call: a message that comes in n pieces would cost n² steps.
        while (missing := bufsize - self._have) > 0:
            chunk = self.recv(missing)
            self.recv_buffer.append(chunk)
            self._have += len(chunk)
        data = b"".join(self.recv_buffer)
        self.recv_buffer, self._have = [], 0
        return data


class FrameDecoder:
    """
    Bytes in, whole messages out, under any split of the byte stream.

    Args:
        max_message_size: bytes a message may have, fragments added up.

    Thread-safety: none; confined to the I/O thread.
    """

    def __init__(self, max_message_size: int) -> None:
        self._limit = max_message_size
        self._frames = _Frames(self._take, self._check)
        self._data = b""
        self._position = 0
        self._opcode: int | None = None
        self._error: ProtocolError | MessageTooBig | None = None
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
        self._data, self._position = data, 0
        messages: list[WsMessage] = []
        try:
            while True:
                message = self._assemble(self._frames.recv_frame())
                if message is not None:
                    messages.append(message)
        except _NeedData:
            return messages
        except WebSocketException as error:
            self._error = ProtocolError(f"bad WebSocket frame: {error}", close_code=CLOSE_PROTOCOL_ERROR)
            self._error.__cause__ = error
        except (ProtocolError, MessageTooBig) as error:
            self._error = error
        if not messages:
            raise self._error
        return messages

    @property
    def failed(self) -> bool:
        """Whether the next call of `receive` raises, whatever it is given."""
        return self._error is not None

    def _take(self, size: int) -> bytes:
        chunk = self._data[self._position : self._position + size]
        if not chunk:
            raise _NeedData
        self._position += len(chunk)
        return chunk

    def _check(self, opcode: int, fin: bool, length: int) -> None:
        if opcode >= OP_CLOSE:
            if length > 125 or not fin:
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

    def _assemble(self, frame: ABNF) -> WsMessage | None:
        data = bytes(frame.data)  # type: ignore[arg-type, unused-ignore]
        if frame.opcode >= OP_CLOSE:
            return WsMessage(frame.opcode, data)
        if frame.fin and self._opcode is None:
            return WsMessage(frame.opcode, data)
        if self._opcode is None:
            self._opcode = frame.opcode
        self._fragments.append(data)
        self._fragments_size += len(data)
        if not frame.fin:
            return None
        message = WsMessage(self._opcode, b"".join(self._fragments))
        self._opcode, self._fragments, self._fragments_size = None, [], 0
        return message


class FrameEncoder:
    """
    Messages to masked frames. By itself: websocket-client takes more than twice the time for a small one.

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

"""
The frame decoder under any split, with the server's next frame chosen step by step: control frames between fragments,
sizes at the limits, a mistake at any point.

`test_frames.py` says what comes out of a whole stream; this says when: each message as soon as its last byte is here,
and each mistake as soon as it can be seen, whatever of the frame is still to come.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rtpool.errors import MessageTooBig, ProtocolError
from rtpool.protocol.frames import OP_BINARY, OP_CLOSE, OP_PING, OP_PONG, OP_TEXT, FrameDecoder, WsMessage

#: Codes a close frame may carry (RFC 6455 §7.4, and those registered since).
CLOSE_CODES = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4999]
WRONG_CLOSE_CODES = [0, 999, 1004, 1005, 1006, 1015, 2999, 5000]

pieces = st.integers(0, 6).map(lambda n: b"piece!"[:n]) | st.integers(100, 140).map(bytes)


@pytest.fixture(autouse=True)
def nothing_but_arguments() -> None:
    """The module's own tests are watched; watched, this one would take ten times as long."""


def header(first: int, length: int, *, masked: bool = False, wide: int = 0) -> bytes:
    """A frame's head; `wide` says the length with more bytes than it needs."""
    mask = 0x80 * masked
    if length < 126 and not wide:
        return bytes((first, mask | length))
    if length < 1 << 16 and wide < 8:
        return bytes((first, mask | 126)) + length.to_bytes(2, "big")
    return bytes((first, mask | 127)) + length.to_bytes(8, "big")


class FramesModel(RuleBasedStateMachine):
    """`wire` is all the server ever wrote; `due` says after how many of its bytes each message is complete."""

    @initialize(limit=st.sampled_from([0, 1, 125, 126, 300]))
    def begin(self, limit: int) -> None:
        self.limit = limit
        self.decoder = FrameDecoder(limit)
        self.wire = b""
        self.fed = 0
        self.due: list[tuple[int, WsMessage]] = []
        self.received: list[WsMessage] = []
        self.opcode: int | None = None  # of the message in fragments
        self.body = b""
        self.mistake: tuple[int, Any] | None = None  # where it shows, and what it is

    def write(self, wire: bytes) -> None:
        self.wire += wire

    def refuse(self, wire: bytes, seen_after: int, error: Any = ProtocolError) -> None:
        self.mistake = len(self.wire) + seen_after, error
        self.write(wire)

    # What the server writes

    @precondition(lambda self: self.mistake is None)
    @rule(
        opcode=st.sampled_from([OP_TEXT, OP_BINARY]), data=pieces, fin=st.booleans(), wide=st.sampled_from([0, 0, 2, 8])
    )
    def data_frame(self, opcode: int, data: bytes, fin: bool, wide: int) -> None:
        first = (0x80 * fin) | (opcode if self.opcode is None else 0)
        head = header(first, len(data), wide=wide)
        if len(self.body) + len(data) > self.limit:
            self.refuse(head + data, len(head), MessageTooBig)
            return
        self.opcode, self.body = self.opcode or opcode, self.body + data
        self.write(head + data)
        if fin:
            self.due.append((len(self.wire), (self.opcode, self.body)))
            self.opcode, self.body = None, b""

    @precondition(lambda self: self.mistake is None)
    @rule(opcode=st.sampled_from([OP_PING, OP_PONG]), length=st.sampled_from([0, 1, 124, 125]))
    def control_frame(self, opcode: int, length: int) -> None:
        """Also between fragments, and over the limit, which is for messages."""
        self.write(header(0x80 | opcode, length) + bytes(length))
        self.due.append((len(self.wire), (opcode, bytes(length))))

    @precondition(lambda self: self.mistake is None)
    @rule(code=st.sampled_from([*CLOSE_CODES, None]), reason=st.sampled_from([b"", b"bye", bytes(123)]))
    def close_frame(self, code: int | None, reason: bytes) -> None:
        payload = b"" if code is None else code.to_bytes(2, "big") + reason
        self.write(header(0x80 | OP_CLOSE, len(payload)) + payload)
        self.due.append((len(self.wire), (OP_CLOSE, payload)))

    @precondition(lambda self: self.mistake is None)
    @rule(kind=st.sampled_from(["mask", "bit", "opcode", "order", "control", "close"]), data=st.data())
    def mistake_in_a_frame(self, kind: str, data: st.DataObject) -> None:
        start = OP_TEXT if self.opcode is None else 0
        wrong: list[tuple[bytes, int]]  # the frame, and after how many bytes it shows
        if kind == "mask":
            lengths = [0, 5, 1 << 40]
            wrong = [(header(0x80 | start, length, masked=True) + bytes(9), 2) for length in lengths]
        elif kind == "bit":
            wrong = [(header(0x80 | bit | start, 5) + bytes(5), 2) for bit in (0x40, 0x20, 0x10)]
        elif kind == "opcode":
            wrong = [(header(0x80 | opcode, 5) + bytes(5), 2) for opcode in (3, 7, 11, 15)]
        elif kind == "order":  # a fragment of nothing, or a message within another
            wrong = [(header(0x80 | (0 if start else OP_TEXT), 3) + bytes(3), 2)]
        elif kind == "control":
            wrong = [(header(op, 3) + bytes(3), 2) for op in (OP_PING, OP_CLOSE)]
            wrong += [(header(0x80 | op, 126) + bytes(126), 4) for op in (OP_PING, OP_CLOSE)]
        else:
            wrong = [(header(0x80 | OP_CLOSE, 2) + code.to_bytes(2, "big"), 4) for code in WRONG_CLOSE_CODES]
            wrong += [(header(0x80 | OP_CLOSE, 1) + bytes(1), 3)]
        self.refuse(*data.draw(st.sampled_from(wrong)))

    @precondition(lambda self: self.mistake is None)
    @rule(over=st.integers(1, 3), wide=st.sampled_from([0, 8]))
    def announce_too_much(self, over: int, wide: int) -> None:
        length = self.limit - len(self.body) + over
        head = header(0 if self.opcode else OP_BINARY, length, wide=wide)
        self.refuse(head, len(head), MessageTooBig)

    # What arrives

    @precondition(lambda self: self.fed < len(self.wire))
    @rule(size=st.integers(1, 7) | st.integers(1, 400))
    def arrive(self, size: int) -> None:
        data = self.wire[self.fed : self.fed + size]
        self.fed += len(data)
        complete = [message for end, message in self.due if end <= self.fed]
        new = complete[len(self.received) :]
        wrong = self.mistake is not None and self.mistake[0] <= self.fed
        if wrong and (self.decoder.failed or not new):
            self.fails(data)
        else:
            assert self.decoder.receive(data) == new, "each message as soon as it is whole"
            self.received = complete
        assert self.decoder.failed == wrong, "a mistake is seen as soon as it can be"

    def fails(self, data: bytes) -> None:
        assert self.mistake is not None
        with pytest.raises(self.mistake[1]) as caught:
            self.decoder.receive(data)
        if isinstance(caught.value, ProtocolError):
            assert caught.value.close_code == 1002
        else:
            assert caught.value.limit == self.limit
            assert caught.value.size > self.limit

    @rule()
    def nothing_arrives(self) -> None:
        if self.mistake is not None and self.mistake[0] <= self.fed:
            self.fails(b"")
        else:
            assert self.decoder.receive(b"") == []

    @invariant()
    def no_more_is_kept_than_the_limit(self) -> None:
        kept = sum(map(len, self.decoder._fragments)) + sum(map(len, self.decoder._pieces))
        assert kept <= self.limit + 125, "but for a control frame between"

    def teardown(self) -> None:
        if hasattr(self, "wire") and self.fed < len(self.wire):
            self.arrive(len(self.wire))


TestFramesModel = FramesModel.TestCase
TestFramesModel.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)

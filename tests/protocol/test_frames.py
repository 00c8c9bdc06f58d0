"""WebSocket frames under any split of the stream, checked against wsproto; limits and refusals."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.frame_protocol import CloseReason, FrameProtocol, Opcode

from rtpool.errors import MessageTooBig, ProtocolError
from rtpool.protocol.frames import (
    OP_BINARY,
    OP_CLOSE,
    OP_PING,
    OP_TEXT,
    FrameDecoder,
    FrameEncoder,
    WsMessage,
    close_code,
)

LIMIT = 4096


def server_frames(messages: list[tuple[int, bytes, int]]) -> bytes:
    """Frames as a server sends them, by wsproto: (opcode, data, fragments)."""
    protocol = FrameProtocol(client=False, extensions=[])
    wire = b""
    for opcode, data, fragments in messages:
        if opcode == OP_PING:
            wire += protocol.ping(data)
            continue
        cut = max(1, len(data) // fragments)
        parts = [data[i : i + cut] for i in range(0, len(data), cut)] or [b""]
        for index, part in enumerate(parts):
            payload: bytes | str = part.decode("ascii") if opcode == OP_TEXT else part
            wire += protocol.send_data(payload, fin=index == len(parts) - 1)
            if index == 0 and len(parts) > 1:
                wire += protocol.ping(b"between")
    return wire


MESSAGES = st.lists(
    st.one_of(
        st.tuples(st.just(OP_TEXT), st.text("abc{}[]", max_size=300).map(str.encode), st.integers(1, 4)),
        st.tuples(st.just(OP_BINARY), st.binary(max_size=300), st.integers(1, 4)),
        st.tuples(st.just(OP_PING), st.binary(max_size=125), st.just(1)),
    ),
    max_size=8,
)


@given(messages=MESSAGES, cuts=st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_any_split_of_the_stream_yields_the_same_messages(
    messages: list[tuple[int, bytes, int]], cuts: list[int]
) -> None:
    wire = server_frames(messages)
    decoder = FrameDecoder(LIMIT)
    received: list[WsMessage] = []
    position, turn = 0, 0
    while position < len(wire):
        size = cuts[turn % len(cuts)]
        received += decoder.receive(wire[position : position + size])
        position, turn = position + size, turn + 1

    expected = [(opcode, data) for opcode, data, _ in messages]
    assert [tuple(m) for m in received if m[1] != b"between"] == [e for e in expected if e[1] != b"between"]
    assert received == FrameDecoder(LIMIT).receive(wire)


@given(data=st.binary(max_size=600))
def test_arbitrary_bytes_raise_nothing_but_our_own_errors(data: bytes) -> None:
    try:
        FrameDecoder(LIMIT).receive(data)
    except (ProtocolError, MessageTooBig):
        return


@given(data=st.binary(max_size=70_000), opcode=st.sampled_from([OP_TEXT, OP_BINARY]))
def test_what_we_encode_is_a_masked_frame_that_wsproto_reads(data: bytes, opcode: int) -> None:
    data = data.hex().encode() if opcode == OP_TEXT else data
    wire = FrameEncoder(lambda n: b"\x12\x34\x56\x78"[:n]).encode(opcode, data)

    server = FrameProtocol(client=False, extensions=[])
    server.receive_bytes(wire)
    frames = list(server.received_frames())
    payload = b"".join(f.payload.encode() if isinstance(f.payload, str) else bytes(f.payload) for f in frames)
    assert wire[1] & 0x80, "a client must mask"
    assert frames[0].opcode == Opcode(opcode)
    assert payload == data


def test_a_close_frame_carries_its_code() -> None:
    wire = FrameEncoder(lambda n: bytes(n)).encode_close(1009)
    server = FrameProtocol(client=False, extensions=[])
    server.receive_bytes(wire)
    (frame,) = server.received_frames()
    assert frame.payload[0] == CloseReason.MESSAGE_TOO_BIG


@pytest.mark.parametrize(("payload", "code"), [(b"\x03\xe8", 1000), (b"\x03\xf4bye", 1012), (b"", 1005)])
def test_a_received_close_code_is_read(payload: bytes, code: int) -> None:
    assert close_code(payload) == code
    wire = bytes((0x80 | OP_CLOSE, len(payload))) + payload
    assert FrameDecoder(LIMIT).receive(wire) == [(OP_CLOSE, payload)]


@pytest.mark.parametrize("size", [LIMIT - 1, LIMIT, LIMIT + 1])
def test_a_message_up_to_the_limit_passes_and_one_byte_more_is_refused(size: int) -> None:
    wire = server_frames([(OP_BINARY, bytes(size), 1)])
    if size <= LIMIT:
        assert FrameDecoder(LIMIT).receive(wire) == [(OP_BINARY, bytes(size))]
    else:
        with pytest.raises(MessageTooBig) as caught:
            FrameDecoder(LIMIT).receive(wire)
        assert (caught.value.size, caught.value.limit) == (LIMIT + 1, LIMIT)
        assert caught.value.retryable  # the next connection may hear less


def test_fragments_are_added_up_against_the_limit() -> None:
    decoder = FrameDecoder(LIMIT)
    with pytest.raises(MessageTooBig):
        decoder.receive(server_frames([(OP_BINARY, bytes(LIMIT + 2), 2)]))
        decoder.receive(b"")  # a ping may have come between the fragments


def test_what_is_complete_before_an_error_is_returned_and_the_error_raised_ever_after() -> None:
    decoder = FrameDecoder(LIMIT)
    assert decoder.receive(server_frames([(OP_BINARY, b"whole", 1)]) + b"\xff\xff") == [(OP_BINARY, b"whole")]
    assert decoder.failed
    for _ in range(2):
        with pytest.raises(ProtocolError):
            decoder.receive(server_frames([(OP_BINARY, b"more", 1)]))


def test_a_huge_frame_is_refused_by_its_header_alone() -> None:
    header = bytes((0x82, 127)) + (2**40).to_bytes(8, "big")
    with pytest.raises(MessageTooBig):
        FrameDecoder(LIMIT).receive(header)


def test_a_message_byte_by_byte_takes_no_more_work_for_each_byte_the_longer_it_is() -> None:
    def calls(size: int) -> int:
        wire, decoder, count = server_frames([(OP_BINARY, bytes(size), 1)]), FrameDecoder(LIMIT), 0

        def count_calls(frame: object, event: str, argument: object) -> None:
            nonlocal count
            count += 1

        before = sys.getprofile()
        sys.setprofile(count_calls)
        try:
            for index in range(len(wire)):
                decoder.receive(wire[index : index + 1])
        finally:
            sys.setprofile(before)
        return count

    assert calls(2_000) < 2.5 * calls(1_000)


@pytest.mark.parametrize(
    "wire",
    [
        pytest.param(bytes((0x82, 0x81, 1, 2, 3, 4, 5)), id="masked"),
        pytest.param(bytes((0x89, 126, 0, 200)), id="ping of 200 bytes"),
        pytest.param(bytes((0x09, 0)), id="ping in fragments"),
        pytest.param(bytes((0x80, 0)), id="continuation of nothing"),
        pytest.param(bytes((0x01, 0, 0x81, 0)), id="new message within fragments"),
        pytest.param(bytes((0xC1, 0)), id="reserved bit"),
        pytest.param(bytes((0x83, 0)), id="reserved opcode"),
        pytest.param(bytes((0x88, 1, 3)), id="close frame of one byte"),
    ],
)
def test_what_a_server_must_not_send_closes_with_1002(wire: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        FrameDecoder(LIMIT).receive(wire)
    assert caught.value.close_code == 1002


def test_a_message_in_fragments_is_put_together_and_a_ping_between_them_comes_first() -> None:
    decoder = FrameDecoder(LIMIT)
    assert decoder.receive(bytes((0x01, 2)) + b"he") == []
    assert decoder.receive(bytes((0x00, 1)) + b"l" + bytes((0x89, 0))) == [(OP_PING, b"")]
    assert decoder.receive(bytes((0x80, 2)) + b"lo") == [(OP_TEXT, b"hello")]
    assert decoder.receive(bytes((0x82, 1)) + b"n") == [(OP_BINARY, b"n")], "the next begins anew"


def test_bytes_that_come_one_by_one_are_a_message_with_the_last() -> None:
    decoder = FrameDecoder(LIMIT)
    *begun, last = (decoder.receive(bytes((byte,))) for byte in bytes((0x82, 3)) + b"abc")
    assert begun == [[]] * 4
    assert last == [(OP_BINARY, b"abc")]

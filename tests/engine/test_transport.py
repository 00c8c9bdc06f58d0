"""The transport: partial reads and partial writes go on exactly where they stopped."""

from __future__ import annotations

import selectors
import socket
import ssl
import threading
from collections.abc import Iterator

import pytest
from wsproto.frame_protocol import FrameProtocol

from rtpool.engine.transport import Transport, TransportClosed
from rtpool.protocol.frames import OP_BINARY, OP_TEXT, FrameDecoder, FrameEncoder, WsMessage

Pair = tuple[Transport, socket.socket]


@pytest.fixture(params=["plain", "tls"])
def pair(request: pytest.FixtureRequest, certificates: tuple[ssl.SSLContext, ssl.SSLContext]) -> Iterator[Pair]:
    """A transport and its peer, over small kernel buffers."""
    near, far = socket.socketpair()
    for sock in (near, far):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_192)
    peer: socket.socket = far
    if request.param == "tls":
        done: list[ssl.SSLSocket] = []
        thread = threading.Thread(target=lambda: done.append(certificates[0].wrap_socket(far, server_side=True)))
        thread.start()
        near = certificates[1].wrap_socket(near, server_hostname="127.0.0.1")
        thread.join()
        peer = done[0]
    transport = Transport(near, FrameDecoder(10_000_000), FrameEncoder(lambda n: bytes(range(n))))
    yield transport, peer
    transport.close()
    peer.close()


def read_all(peer: socket.socket, protocol: FrameProtocol, messages: list[bytes], stop: int) -> None:
    parts: list[bytes] = []
    while len(messages) < stop:
        protocol.receive_bytes(peer.recv(3_001))
        for frame in protocol.received_frames():
            parts.append(bytes(frame.payload) if not isinstance(frame.payload, str) else frame.payload.encode())
            if frame.message_finished:
                messages.append(b"".join(parts))
                parts.clear()


def test_a_write_that_was_cut_short_goes_on_where_it_stopped(pair: Pair) -> None:
    transport, peer = pair
    payloads = [bytes([n]) * size for n, size in enumerate([10, 200_000, 1, 1_000_003, 0, 77])]
    for number, payload in enumerate(payloads):
        transport.send(OP_BINARY, payload, str(number))
    written = transport.flush()
    assert transport.queued > 0, "the kernel cannot have taken it all"
    assert transport.interest(reading=True) & selectors.EVENT_WRITE

    received: list[bytes] = []
    reader = threading.Thread(
        target=read_all, args=(peer, FrameProtocol(client=False, extensions=[]), received, len(payloads))
    )
    reader.start()
    with selectors.DefaultSelector() as selector:
        selector.register(transport.sock, selectors.EVENT_WRITE)
        while transport.queued:
            selector.select(5)
            written += transport.flush()
    reader.join(20)
    assert received == payloads
    assert written == [str(n) for n in range(len(payloads))]
    assert transport.interest(reading=True) == selectors.EVENT_READ


def test_a_read_that_was_cut_short_goes_on_where_it_stopped(pair: Pair) -> None:
    transport, peer = pair
    protocol = FrameProtocol(client=False, extensions=[])
    wire = b"".join(bytes(protocol.send_data("x" * size, fin=True)) for size in (1, 126, 40_000, 70_000, 0))
    sender = threading.Thread(target=lambda: [peer.sendall(wire[i : i + 777]) for i in range(0, len(wire), 777)])
    sender.start()
    messages: list[WsMessage] = []
    with selectors.DefaultSelector() as selector:
        selector.register(transport.sock, selectors.EVENT_READ)
        while len(messages) < 5:
            if not transport.has_more:
                assert selector.select(10)
            messages += transport.receive()
    sender.join()
    assert [(m[0], len(m[1])) for m in messages] == [(OP_TEXT, n) for n in (1, 126, 40_000, 70_000, 0)]


def test_the_end_of_the_stream_is_told_after_what_came_before_it(pair: Pair) -> None:
    transport, peer = pair
    protocol = FrameProtocol(client=False, extensions=[])
    peer.sendall(protocol.send_data("last words", fin=True))
    peer.close()
    messages: list[WsMessage] = []
    with pytest.raises(TransportClosed):
        for _ in range(10):
            messages += transport.receive()
    assert messages == [(OP_TEXT, b"last words")]


def test_writing_to_a_peer_that_is_gone_is_told(pair: Pair) -> None:
    transport, peer = pair
    peer.close()
    with pytest.raises(TransportClosed, match="sending"):
        for _ in range(50):
            transport.send(OP_BINARY, bytes(100_000))
            transport.flush()


def test_a_paused_transport_asks_for_no_reading(pair: Pair) -> None:
    transport, _ = pair
    assert transport.interest(reading=False) == 0
    assert transport.interest(reading=True) == selectors.EVENT_READ


def test_closing_drops_what_waits_and_forgets_the_socket(pair: Pair) -> None:
    transport, _ = pair
    transport.send(OP_BINARY, bytes(500_000))
    transport.flush()
    transport.close()
    assert transport.queued == 0
    with pytest.raises(TransportClosed):
        transport.receive()

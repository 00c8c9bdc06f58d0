"""
What a server needs to join many topics: a client that does nothing but send the frames of all at once, made before, and
count the replies. As the other it dials, loses all sockets, and dials anew.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Sequence

from tests.benchmarks.clients.counting import arguments, say

PER_SOCKET = 100
REQUEST = (
    b"GET /realtime/v1/websocket?vsn=2.0.0&apikey=k HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
REPLY = b'"phx_reply"'
CONFIG = {
    "broadcast": {"ack": False, "self": False},
    "presence": {"key": "", "enabled": False},
    "postgres_changes": [],
    "private": False,
}


def text(*message: object) -> bytes:
    """A message in a frame with a mask of zeros."""
    data = json.dumps(message, separators=(",", ":")).encode()
    size = bytes((0x80 | len(data),)) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big")
    return b"\x81" + size + bytes(4) + data


def dial(port: int, frames: bytes) -> socket.socket:
    """A socket that was shaken hands on, and was sent everything."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(REQUEST)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    assert head.startswith(b"HTTP/1.1 101"), head
    sock.sendall(frames)
    return sock


def count_replies(sockets: Sequence[socket.socket], replies: int) -> None:
    """Read until so many replies have come, on all sockets together."""
    with selectors.DefaultSelector() as selector:
        tails = dict.fromkeys(sockets, b"")
        for sock in sockets:
            selector.register(sock, selectors.EVENT_READ)
        while replies:
            for key, _ in selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                data = tails[sock] + sock.recv(65_536)
                replies -= data.count(REPLY)
                tails[sock] = data[data.rfind(REPLY) + len(REPLY) :][-len(REPLY) :] if REPLY in data else data[-10:]


def wait_for_the_end(sock: socket.socket) -> None:
    """Read until it is reset."""
    try:
        while sock.recv(65_536):
            continue
    except ConnectionResetError:
        pass
    sock.close()


def main() -> None:
    """Join as many as asked for, once and again."""
    told = arguments()
    count, port = told["topics"], told["port"]
    per_socket = []
    for first in range(0, count, PER_SOCKET):
        topics = range(first, min(count, first + PER_SOCKET))
        frames = [
            text(str(ref), str(ref), f"realtime:join-{index}", "phx_join", {"config": CONFIG})
            for ref, index in enumerate(topics, 1)
        ]
        per_socket.append(b"".join(frames))
    started = time.perf_counter()
    sockets = [dial(port, frames) for frames in per_socket]
    count_replies(sockets, count)
    joined = time.perf_counter()
    time.sleep(0.2)
    drop = {"type": "broadcast", "event": "drop", "payload": {}}
    dropped = time.perf_counter()
    sockets[0].sendall(text("1", "999", "realtime:join-0", "broadcast", drop))
    for sock in sockets:
        wait_for_the_end(sock)
    sockets = [dial(port, frames) for frames in per_socket]
    count_replies(sockets, count)
    rejoined = time.perf_counter()
    for sock in sockets:
        sock.close()
    say({"ms to join": (joined - started) * 1_000, "ms to rejoin": (rejoined - dropped) * 1_000})


if __name__ == "__main__":
    main()

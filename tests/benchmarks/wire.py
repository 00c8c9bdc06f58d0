"""
A server of the benchmarks, as little of one as the clients need: it answers joins, leaves and heartbeats at once.

It has nothing of rtpool and nothing of rtpool's embedded server, so neither can hide a cost of the other. A thread
serves each socket; what is sent at once by several threads is kept apart by the socket's lock.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import ssl
import sys
import tempfile
import threading
from typing import Any, NamedTuple

__all__ = ["BINARY", "TEXT", "Connection", "Message", "Server", "encode", "frame", "serve"]

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
USER_PUSH = 3  # a broadcast in a binary frame
ANSWERED = ("phx_join", "phx_leave", "heartbeat")
OK = {"status": "ok", "response": {"postgres_changes": []}}


class Message(NamedTuple):
    """What a client said, of whichever version."""

    join_ref: str | None
    ref: str | None
    topic: str
    event: str
    payload: Any


def frame(opcode: int, data: bytes) -> bytes:
    """One unmasked frame, as a server sends it."""
    if len(data) < 126:
        return bytes((0x80 | opcode, len(data))) + data
    if len(data) < 65_536:
        return bytes((0x80 | opcode, 126)) + len(data).to_bytes(2, "big") + data
    return bytes((0x80 | opcode, 127)) + len(data).to_bytes(8, "big") + data


def encode(vsn: str, join_ref: str | None, ref: str | None, topic: str, event: str, payload: Any) -> bytes:
    """A message as the frame of a serializer version."""
    array = [join_ref, ref, topic, event, payload]
    whole = array if vsn == "2.0.0" else {"topic": topic, "event": event, "payload": payload, "ref": ref}
    return frame(TEXT, json.dumps(whole, separators=(",", ":")).encode())


def decode(vsn: str, opcode: int, data: bytes) -> Message:
    """What a frame says."""
    if opcode == BINARY:
        sizes, encoding, fields, position = data[1:6], data[6], [], 7
        assert data[0] == USER_PUSH, "clients send no other binary frames here"
        for size in sizes:
            fields.append(data[position : position + size].decode())
            position += size
        join_ref, ref, topic, event, _ = fields
        inner = json.loads(data[position:]) if encoding == 1 else data[position:]
        payload = {"type": "broadcast", "event": event, "payload": inner}
        return Message(join_ref or None, ref or None, topic, "broadcast", payload)
    value = json.loads(data)
    if vsn == "2.0.0":
        return Message(*value)
    return Message(value.get("join_ref"), value.get("ref"), value["topic"], value["event"], value["payload"])


class Connection:
    """One socket; `send` may be called from any thread."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.topics: list[str] = []
        self.vsn = "1.0.0"
        self._reader = sock.makefile("rb", 65_536)
        self._lock = threading.Lock()

    def shake_hands(self) -> None:
        """Answer the upgrade request."""
        request, key = self._reader.readline(), b""
        while line := self._reader.readline().strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"sec-websocket-key":
                key = value.strip()
        self.vsn = "2.0.0" if b"vsn=2.0.0" in request else "1.0.0"
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
        self.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )

    def send(self, *data: bytes) -> None:
        """Send bytes, one after the other and nothing between them."""
        with self._lock:
            for piece in data:
                self.sock.sendall(piece)

    def read(self, size: int) -> bytes:
        """What is there, at most so many bytes; nothing at the end."""
        return self._reader.read1(size)

    def receive(self) -> tuple[int, bytes] | None:
        """The next frame, None at the end. Clients send none in fragments."""
        head = self._reader.read(2)
        if len(head) < 2:
            return None
        size = head[1] & 0x7F
        if size > 125:
            size = int.from_bytes(self._reader.read(2 if size == 126 else 8), "big")
        mask, data = self._reader.read(4), self._reader.read(size)
        if len(data) < size:
            return None
        key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
        return head[0] & 0x0F, (int.from_bytes(data, "big") ^ key).to_bytes(size, "big")


class Server:
    """Sockets at a port of its own; `on_message` is what a subclass adds to."""

    def __init__(self, *, tls: bool = False) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self.listener.getsockname()[1]
        self.connections: list[Connection] = []  # replaced whole under the lock
        self.lock = threading.Lock()
        self.ca: str | None = None  # a file
        self._context: ssl.SSLContext | None = None
        if tls:
            self._make_certificate()

    def _make_certificate(self) -> None:
        import trustme

        ca = trustme.CA()
        self._ca_file = tempfile.NamedTemporaryFile(suffix=".pem")  # noqa: SIM115 - lives as long as the server
        self._ca_file.write(ca.cert_pem.bytes())
        self._ca_file.flush()
        self.ca = self._ca_file.name
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert("127.0.0.1", "localhost").configure_cert(self._context)

    def accept(self) -> None:
        """Serve every client that comes, for ever; a thread each."""
        while True:
            sock, _ = self.listener.accept()
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        # A client is gone when it has what it wants, and does not always say goodbye.
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            whole = sock if self._context is None else self._context.wrap_socket(sock, server_side=True)
            with whole:
                connection = Connection(whole)
                connection.shake_hands()
                with self.lock:
                    self.connections = [*self.connections, connection]
                try:
                    self._talk(connection)
                finally:
                    with self.lock:
                        self.connections = [other for other in self.connections if other is not connection]
                    self.on_gone(connection)

    def _talk(self, connection: Connection) -> None:
        while (received := connection.receive()) is not None:
            opcode, data = received
            if opcode == CLOSE:
                connection.send(frame(CLOSE, data))
                return
            if opcode == PING:
                connection.send(frame(PONG, data))
            elif opcode in (TEXT, BINARY):
                self.on_message(connection, decode(connection.vsn, opcode, data))

    def on_message(self, connection: Connection, message: Message) -> None:
        """A client said something; runs on the socket's own thread."""
        if message.event in ANSWERED:
            if message.event == "phx_join":
                connection.topics.append(message.topic)
            self.reply(connection, message)

    def reply(self, connection: Connection, message: Message) -> None:
        """Say that all is well."""
        connection.send(encode(connection.vsn, message.join_ref, message.ref, message.topic, "phx_reply", OK))

    def on_gone(self, connection: Connection) -> None:
        """A socket is over."""


def serve(server: Server) -> None:
    """Tell the port, then serve until stdin ends: with the process that started this one."""
    threading.Thread(target=server.accept, daemon=True).start()
    print(json.dumps({"port": server.port, "ca": server.ca}), flush=True)
    sys.stdin.read()

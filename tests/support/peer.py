"""A peer that does exactly what a test says: raw answers, silence, dribbling; by TCP, TLS or a Unix socket."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import socket
import ssl
import threading
from collections.abc import Callable
from types import TracebackType

from tests.support.recorder import Recorder

Serve = Callable[["Peer", socket.socket], None]


class Peer:
    """
    Listens on loopback and hands each connection to `serve`, on a thread of its own.

    Args:
        serve: called with this peer and the connected socket, which it need not close.
        tls: speak it with this context.
        path: of a Unix socket in place of TCP.
        host: to listen on.
    """

    def __init__(
        self, serve: Serve, *, tls: ssl.SSLContext | None = None, path: str | None = None, host: str = "127.0.0.1"
    ) -> None:
        self._serve, self._tls = serve, tls
        if path is None:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host, 0), family=family)
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(path)
            self._listener.listen()
        self.port: int = 0 if path else self._listener.getsockname()[1]
        #: Heads and bodies of the HTTP requests read by `request`.
        self.requests = Recorder()
        #: Set when the test is over, for those that keep still or go on and on.
        self.over = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Peer:
        self._spawn(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.over.set()
        for sock in [self._listener, *self._sockets]:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for sock in [self._listener, *self._sockets]:
            sock.close()

    def _spawn(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, name="peer", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(sock)
            self._spawn(self._run, sock)

    def _run(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
                self._sockets.append(sock)
            self._serve(self, sock)

    def request(self, sock: socket.socket) -> tuple[str, bytes]:
        """Read one HTTP request; its head, and its body as long as it says."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = sock.recv(1)
            if not byte:
                raise ConnectionResetError("the request broke off")
            head += byte
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        body = b""
        while length and len(body) < int(length[1]):
            body += sock.recv(65_536)
        request = head.decode(), body
        self.requests(request)
        return request


def saying(answer: bytes) -> Serve:
    """Answer one HTTP request with these bytes, and hang up."""

    def serve(peer: Peer, sock: socket.socket) -> None:
        peer.request(sock)
        sock.sendall(answer)
        sock.close()

    return serve


def answer(status: int, body: bytes = b"", **headers: str) -> bytes:
    """An HTTP answer."""
    lines = [f"HTTP/1.1 {status} Because", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def silence(peer: Peer, sock: socket.socket) -> None:
    """Take everything, say nothing."""
    peer.over.wait(30)


def dribble(start: bytes, more: bytes = b"x") -> Serve:
    """Answer with `start`, then `more` again and again, a byte at a time, and never come to an end."""

    def serve(peer: Peer, sock: socket.socket) -> None:
        sock.sendall(start)
        while not peer.over.wait(0.02):
            sock.sendall(more)

    return serve


def relaying(port: int) -> Serve:
    """Pass everything on to and from a port of loopback."""

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def serve(peer: Peer, sock: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", port)) as onward:
            back = threading.Thread(target=pump, args=(onward, sock), name="peer", daemon=True)
            back.start()
            pump(sock, onward)
            back.join(10)

    return serve


def upgrading(*headers: str) -> Serve:
    """Answer the upgrade with a 101 with these headers too, then keep still."""

    def serve(peer: Peer, sock: socket.socket) -> None:
        head, _ = peer.request(sock)
        key = re.search(r"Sec-WebSocket-Key: (\S+)", head)
        assert key is not None
        digest = hashlib.sha1(f"{key[1]}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
        lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade", *headers]
        lines.append(f"Sec-WebSocket-Accept: {base64.b64encode(digest).decode()}")
        sock.sendall("\r\n".join([*lines, "", ""]).encode() + b"\x81\x02hi")
        silence(peer, sock)

    return serve

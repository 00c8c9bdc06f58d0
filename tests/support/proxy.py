"""A TCP relay that changes how bytes arrive, never which: one by one, or many together."""

from __future__ import annotations

import socket
import threading
from types import TracebackType


class Proxy:
    """
    Relays loopback connections to `target`.

    Args:
        down: bytes per write towards the client; 0 collects until `release`.
        up: bytes per write towards the server.
    """

    def __init__(self, target: int, *, down: int = 65_536, up: int = 65_536) -> None:
        self._target, self._down, self._up = target, down, up
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._released = threading.Event()

    def release(self) -> None:
        """Let collected bytes go, together."""
        self._released.set()

    def __enter__(self) -> Proxy:
        self._spawn(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._released.set()
        for sock in [self._listener, *self._sockets]:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            sock.close()
        for thread in self._threads:
            thread.join(5)

    def _spawn(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, name="proxy", daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets += [client, server]
            self._spawn(self._relay, client, server, self._up)
            self._spawn(self._relay, server, client, self._down)

    def _relay(self, source: socket.socket, sink: socket.socket, size: int) -> None:
        try:
            while data := source.recv(65_536):
                for start in range(0, len(data), size):
                    sink.sendall(data[start : start + size])
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return


class Holder(Proxy):
    """Holds back what the server sends once `hold` was called, until `release` lets it go in one write."""

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self._held: list[bytes] | None = None
        self._lock = threading.Lock()
        self._sink: socket.socket | None = None

    def hold(self) -> None:
        with self._lock:
            self._held = []

    @property
    def held(self) -> int:
        with self._lock:
            return sum(map(len, self._held or []))

    def release(self) -> None:
        with self._lock:
            held, self._held = self._held or [], None
            assert self._sink is not None
            self._sink.sendall(b"".join(held))

    def _relay(self, source: socket.socket, sink: socket.socket, size: int) -> None:
        downwards = source.getpeername()[1] == self._target
        if downwards:
            self._sink = sink
        try:
            while data := source.recv(65_536):
                with self._lock:
                    if downwards and self._held is not None:
                        self._held.append(data)
                        continue
                    sink.sendall(data)
        except OSError:
            return

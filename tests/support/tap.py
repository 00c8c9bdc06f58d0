"""A relay in front of a server that keeps count of every byte a client's port sent, TLS or not."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from types import TracebackType


class Tap:
    """
    Args:
        port: of the server, on loopback.

    Attributes:
        port: where clients connect.
        sent: bytes by the client's port.
        accepted: how many connections there were.
        ended: the client's ports whose stream ended, by whatever side.
    """

    def __init__(self, port: int) -> None:
        self._server = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self.accepted = 0
        self.sent: dict[int, int] = {}
        self.ended: set[int] = set()
        self._selector = selectors.DefaultSelector()
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="tap", daemon=True)

    def __enter__(self) -> Tap:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.close()
        self._thread.join()

    def _serve(self) -> None:
        with contextlib.ExitStack() as opened:
            opened.enter_context(self._selector)
            opened.enter_context(self._listener)
            opened.enter_context(self._stopped)
            self._selector.register(self._stopped, selectors.EVENT_READ, "stop")
            self._selector.register(self._listener, selectors.EVENT_READ, "accept")
            while True:
                for key, _ in self._selector.select():
                    if key.data == "stop":
                        return
                    if key.data == "accept":
                        client, (_, port) = self._listener.accept()
                        upstream = socket.create_connection(("127.0.0.1", self._server))
                        opened.enter_context(client)
                        opened.enter_context(upstream)
                        self.accepted += 1
                        self.sent[port] = 0
                        self._selector.register(client, selectors.EVENT_READ, (client, upstream, port, True))
                        self._selector.register(upstream, selectors.EVENT_READ, (upstream, client, port, False))
                    else:
                        self._relay(*key.data)

    def _relay(self, source: socket.socket, target: socket.socket, port: int, from_client: bool) -> None:
        if source.fileno() < 0:  # the other side ended in the same turn
            return
        data = b""
        with contextlib.suppress(OSError):
            data = source.recv(65_536)
        if from_client:
            self.sent[port] += len(data)
        try:
            if data:
                target.sendall(data)
                return
        except OSError:
            data = b""
        self.ended.add(port)
        for sock in (source, target):
            self._selector.unregister(sock)
            sock.close()

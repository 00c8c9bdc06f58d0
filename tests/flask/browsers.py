"""Browsers, as a stream sees them: raw connections to an app behind Flask's own server, and an EventSource's rules."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import attrs
from flask import Flask
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from tests.support.wait import CAP

__all__ = ["Browser", "Heard", "Serving"]


@attrs.frozen
class Heard:
    """One event, as the HTML standard has it."""

    type: str
    data: Any
    last_id: str


class Browser:
    """
    One connection that asked for a stream.

    Args:
        small: whether it takes as little as can be before it pushes back.
    """

    def __init__(
        self, port: int, path: str = "/stream", *, method: str = "GET", small: bool = False, **headers: str
    ) -> None:
        self.socket = socket.socket()
        if small:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            # The loopback's segments are larger than that, and those that do not fit are held back for a while.
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 512)
        self.socket.settimeout(CAP)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        self._raw = b""  # as it came
        self._body = b""  # without the chunks' edges, and not parsed yet
        self.text = b""  # all of the body
        self.last_id = ""
        self.retry: int | None = None
        self.comments = 0
        self.ended = False
        self._heard: list[Heard] = []
        self._head: tuple[int, dict[str, str]] | None = None

    # HTTP

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise EOFError("the server closed the connection")
        self._raw += data

    @property
    def head(self) -> tuple[int, dict[str, str]]:
        """The answer's status and headers, with names in small letters."""
        if self._head is None:
            while b"\r\n\r\n" not in self._raw:
                self._more()
            head, self._raw = self._raw.split(b"\r\n\r\n", 1)
            first, *lines = head.decode("latin-1").split("\r\n")
            pairs = (line.split(": ", 1) for line in lines)
            self._head = int(first.split()[1]), {name.lower(): value for name, value in pairs}
        return self._head

    @property
    def status(self) -> int:
        return self.head[0]

    def _take(self) -> None:
        """Read at least one chunk of the body; `ended` when there is no more."""
        chunked = self.head[1].get("transfer-encoding") == "chunked"
        while True:
            if not chunked:
                data, self._raw = self._raw, b""
            else:
                found = re.match(rb"([0-9A-Fa-f]+)\r\n", self._raw)
                size = int(found[1], 16) if found else -1
                if found and len(self._raw) >= found.end() + size + 2:
                    data = self._raw[found.end() : found.end() + size]
                    self._raw = self._raw[found.end() + size + 2 :]
                    if not size:
                        self.ended = True
                        return
                else:
                    data = b""
            if data:
                self._body += data
                self.text += data
                return
            try:
                self._more()
            except (EOFError, ConnectionResetError):
                self.ended = True
                return

    def body(self) -> str:
        """The body of an answer that ends."""
        while not self.ended:
            self._take()
        return self.text.decode()

    # Server-Sent Events

    def _parse(self) -> None:
        while b"\n\n" in self._body:
            block, self._body = self._body.split(b"\n\n", 1)
            fields: dict[str, str] = {}
            data: list[str] = []
            for line in re.split("\r\n|\n|\r", block.decode("utf-8")):
                name, _, value = line.partition(":")
                value = value.removeprefix(" ")
                if not name:
                    self.comments += 1
                elif name == "data":
                    data.append(value)
                else:
                    fields[name] = value
            self.last_id = fields.get("id", self.last_id)
            if "retry" in fields:
                self.retry = int(fields["retry"])
            if data:
                self._heard.append(Heard(fields.get("event", "message"), json.loads("\n".join(data)), self.last_id))

    def next(self) -> Heard:
        """The next event. Fails when the stream ended before."""
        assert self.status == 200, self.head
        deadline = time.monotonic() + CAP
        while not self._heard:
            assert not self.ended, "the stream ended"
            assert time.monotonic() < deadline, "no event in time"
            self._take()
            self._parse()
        return self._heard.pop(0)

    def until(self, wanted: Callable[[Heard], object]) -> Heard:
        """The next event that is wanted; those before it are dropped."""
        while not wanted(heard := self.next()):
            pass
        return heard

    def joined(self) -> Browser:
        """Wait until the stream's Channel is joined, which it tells to who came before."""
        self.until(lambda heard: heard.type == "status" and heard.data["status"] == "joined")
        return self

    def opened(self) -> Browser:
        """Wait until the stream has begun, and nothing more."""
        while not self.last_id:
            assert not self.ended, "the stream ended"
            self._take()
            self._parse()
        return self

    def numbers(self, count: int) -> list[int]:
        """The numbers that the next so many broadcasts carry; other events between them are dropped."""
        return [self.until(lambda heard: heard.type == "broadcast").data["payload"]["n"] for _ in range(count)]

    def rest(self) -> list[Heard]:
        """Everything until the stream ends."""
        while not self.ended:
            self._take()
            self._parse()
        heard, self._heard = self._heard, []
        return heard

    def beats(self, count: int) -> None:
        """Wait for so many comments more."""
        wanted = self.comments + count
        while self.comments < wanted:
            assert not self.ended, "the stream ended"
            self._take()
            self._parse()

    def leave(self) -> None:
        """Close the connection."""
        self.socket.close()


class _Handler(WSGIRequestHandler):
    def setup(self) -> None:
        # So that little is on its way to a browser that takes nothing.
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        super().setup()

    def log(self, type: str, message: str, *args: Any) -> None:
        assert type != "error", message % args


class Serving:
    """An app behind Flask's own server with a thread a request, in a thread."""

    def __init__(self, app: Flask) -> None:
        self.app = app
        self.server: BaseWSGIServer = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Handler)
        self.port = self.server.server_port
        self.browsers: list[Browser] = []
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), name="serving")
        self._thread.start()

    def browser(self, path: str = "/stream", **arguments: Any) -> Browser:
        """A browser that asks for a stream."""
        self.browsers.append(Browser(self.port, path, **arguments))
        return self.browsers[-1]

    def close(self) -> None:
        """End it, and every browser."""
        for browser in self.browsers:
            browser.leave()
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()

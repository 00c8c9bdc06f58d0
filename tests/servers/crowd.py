"""Many browsers that each listen to a stream of Server-Sent Events: raw sockets in one selector."""

from __future__ import annotations

import collections
import json
import selectors
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

import attrs

__all__ = ["Browser", "Crowd", "Event"]


@attrs.frozen
class Event:
    """One event as a browser's EventSource hands it over."""

    name: str
    id: str
    data: Any


class Browser:
    """
    One EventSource: its socket, what it was sent, and the id it comes back with.

    Attributes:
        status, process: of the latest answer; the process is what the application's header says, 0 before.
        events: all that came, over all of its connections.
        ends: how often a stream of its ended, by how: ``"finished"``, ``"cut"`` off, or ``"refused"``.
    """

    def __init__(self, name: int) -> None:
        self.name = name
        self.sock: socket.socket | None = None
        self.status = self.process = 0
        self.headers: dict[str, str] = {}
        self.last_id = ""
        self.events: list[Event] = []
        self.comments = 0
        self.ends: collections.Counter[str] = collections.Counter()
        self._raw = self._text = b""
        self._finished, self._left = False, -1

    def connect(self, address: tuple[str, int], path: str) -> socket.socket:
        """Ask for the stream, from where the last one ended."""
        self.status, self.process, self._raw, self._text, self._finished = 0, 0, b"", b"", False
        self.sock = socket.create_connection(address, timeout=30)
        lines = [f"GET {path} HTTP/1.1", f"Host: {address[0]}", "Accept: text/event-stream", "Cache-Control: no-store"]
        if self.last_id:
            lines.append(f"Last-Event-ID: {self.last_id}")
        self.sock.sendall("\r\n".join([*lines, "", ""]).encode())
        self.sock.setblocking(False)
        return self.sock

    def read(self) -> bool:
        """Take what there is; False when this stream is over."""
        assert self.sock is not None
        try:
            data = self.sock.recv(1 << 16)
        except BlockingIOError:
            return True
        except ConnectionError:
            data = b""
        if data:
            self._raw += data
            if not self.status:
                self._read_head()
            if self.status:
                self._read_body()
        if data and not self._finished:
            return True
        self.ends["refused" if self.status not in (0, 200) else "finished" if self._finished else "cut"] += 1
        self.close()
        return False

    def close(self) -> None:
        """Go away, without a word."""
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def _read_head(self) -> None:
        head, found, rest = self._raw.partition(b"\r\n\r\n")
        if not found:
            return
        first, *lines = head.decode().split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        self._left = int(self.headers.get("content-length", -1))
        self.process, self._raw = int(self.headers.get("x-process", 0)), rest

    def _read_body(self) -> None:
        if self.headers.get("transfer-encoding") != "chunked":
            self._raw, data = b"", self._raw
            self._left -= len(data)
            self._finished = self._left == 0
            self._take(data)
            return
        while b"\r\n" in self._raw:
            size, _, rest = self._raw.partition(b"\r\n")
            length = int(size, 16)
            if len(rest) < length + 2:
                return
            self._raw = rest[length + 2 :]
            if length == 0:
                self._finished = True
                return
            self._take(rest[:length])

    def _take(self, data: bytes) -> None:
        self._text += data
        while b"\n\n" in self._text:
            frame, _, self._text = self._text.partition(b"\n\n")
            fields: dict[str, str] = {}
            for line in frame.decode().split("\n"):
                name, _, value = line.partition(":")
                self.comments += not name
                fields[name] = value.removeprefix(" ")
            self.last_id = fields.get("id", self.last_id)
            if "data" in fields:
                name = fields.get("event", "message")
                self.events.append(Event(name, fields.get("id", ""), json.loads(fields["data"])))

    def of(self, name: str) -> list[Event]:
        """Its events of one name."""
        return [event for event in self.events if event.name == name]


class Crowd:
    """
    So many browsers; those whose stream ends come back at once, where that is wanted.

    Args:
        count: of browsers.
        path: what they ask for.
    """

    def __init__(self, count: int, path: str = "/stream") -> None:
        self.browsers = [Browser(number) for number in range(count)]
        self.path = path
        self.come_back = True
        self._address = ("", 0)
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        for browser in self.browsers:
            browser.close()
        self._selector.close()

    def open(self, address: tuple[str, int], browsers: Iterable[Browser] | None = None) -> None:
        """Have browsers, by default all, ask for the stream."""
        self._address = address
        for browser in self.browsers if browsers is None else browsers:
            self._connect(browser)

    def _connect(self, browser: Browser) -> None:
        self._selector.register(browser.connect(self._address, self.path), selectors.EVENT_READ, browser)

    def leave(self, browser: Browser) -> None:
        """Have one go away."""
        if browser.sock is not None:
            self._selector.unregister(browser.sock)
            browser.close()

    def read_until(self, predicate: Callable[[], object], what: str, cap: float = 30.0) -> None:
        """Have all of them read until something is true."""
        deadline = time.monotonic() + cap
        while not predicate():
            if time.monotonic() > deadline:
                open_ = sum(browser.sock is not None for browser in self.browsers)
                ends = sum((browser.ends for browser in self.browsers), collections.Counter[str]())
                raise AssertionError(f"not within {cap} s: {what}; {open_} streams are open, {dict(ends)}")
            self._read()

    def read_for(self, seconds: float) -> None:
        """Have all of them read for so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._read()

    def _read(self) -> None:
        for key, _ in self._selector.select(0.05):
            browser: Browser = key.data
            if not browser.read():
                self._selector.unregister(key.fileobj)
                if self.come_back:
                    self._connect(browser)

    def by_process(self) -> dict[int, list[Browser]]:
        """Whose streams are whose."""
        found: dict[int, list[Browser]] = {}
        for browser in self.browsers:
            if browser.sock is not None and browser.process:
                found.setdefault(browser.process, []).append(browser)
        return found

"""
A flood: a process that sends numbered messages on one topic as fast as its socket takes them, for as long as it is
asked to, and beside it, at a steady pace, messages on other topics that say when they were sent.

    python -m tests.benchmarks.flood '{"size": 250, "messages": 50000}'

A client asks for things with broadcasts on any topic it has joined; what is sent goes to the socket that joined the
topic in question last.

- ``flood`` ``{"topic": …, "messages": n, "rate": r}``: n messages, numbered from 0; with ``null`` without an end,
  numbered from 0 again after every so many as the process was told. At most r a second, where a rate is given.
- ``pace`` ``{"topic": …, "every": seconds, "messages": n}``: n messages, numbered from 0, with the sender's
  `time.monotonic` as ``at``: on Linux all processes have the same.
- ``stop``: no more of either.
- ``tell``: answered on the topic of the question, as ``told``: ``flooded``, the messages of the latest flood so far,
  and ``heartbeats``, for each socket that is open the times at which one came, by the client's port.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from tests.benchmarks.wire import OK, TEXT, Connection, Message, Server, encode, frame, serve

__all__ = ["Flood"]

#: Bytes sent at a time; in between, what else is to be said on the socket is said.
PIECE = 65_536


class Flood(Server):
    """
    The server that floods.

    Args:
        size: bytes of a payload.
        messages: how many are made before, to be sent again and again.
    """

    def __init__(self, size: int, messages: int) -> None:
        super().__init__()
        self._size, self._messages = size, messages
        self._made: dict[str, tuple[list[bytes], list[int]]] = {}  # by topic
        self._beats: dict[Connection, list[float]] = {}
        self._urgent: dict[Connection, deque[bytes]] = {}  # of those that are flooded
        self._running = threading.Event()
        self._running.set()
        self._flooded = [0]  # messages of the latest flood
        self._left: set[str] = set()  # topics; nothing more is sent there

    def on_message(self, connection: Connection, message: Message) -> None:
        """As every server, and what is asked for."""
        if message.event == "heartbeat":
            with self.lock:
                self._beats.setdefault(connection, []).append(time.monotonic())
        if message.event == "phx_leave":
            self._left.add(message.topic)
        elif message.event == "phx_join":
            self._left.discard(message.topic)
            with self.lock:
                if message.topic not in self._made and "flood" in message.topic:  # before the answer: nobody waits
                    self._made[message.topic] = self._make(message.topic)
        super().on_message(connection, message)
        if message.event == "broadcast":
            self._asked(message.topic, message.payload["event"], message.payload["payload"])

    def reply(self, connection: Connection, message: Message) -> None:
        """Between two pieces of a flood, where there is one."""
        self._say(connection, encode(connection.vsn, message.join_ref, message.ref, message.topic, "phx_reply", OK))

    def on_gone(self, connection: Connection) -> None:
        """Its heartbeats are of no interest any more."""
        with self.lock:
            self._beats.pop(connection, None)

    def _asked(self, topic: str, what: str, wanted: dict[str, Any]) -> None:
        if what == "stop":
            self._running.clear()
        elif what == "tell":
            with self.lock:
                beats = {str(c.sock.getpeername()[1]): times for c, times in self._beats.items()}
            self._broadcast(topic, "told", {"flooded": self._flooded[0], "heartbeats": beats})
        else:
            self._running.set()
            target = {"flood": self._flood, "pace": self._pace}[what]
            threading.Thread(target=self._until_gone, args=(target, wanted), daemon=True).start()

    @staticmethod
    def _until_gone(send: Any, wanted: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # a client may leave in the middle of it
            send(**wanted)

    def _home(self, topic: str) -> Connection:
        return next(c for c in reversed(self.connections) if topic in c.topics)

    def _say(self, connection: Connection, data: bytes) -> None:
        with self.lock:
            urgent = self._urgent.get(connection)
            if urgent is not None:
                urgent.append(data)
                return
        connection.send(data)

    def _broadcast(self, topic: str, event: str, payload: dict[str, Any]) -> None:
        connection = self._home(topic)
        whole = {"type": "broadcast", "event": event, "payload": payload}
        self._say(connection, encode(connection.vsn, None, None, topic, "broadcast", whole))

    def _make(self, topic: str) -> tuple[list[bytes], list[int]]:
        """All messages in pieces of whole frames, and how many each piece has."""
        pieces, counts, piece, count = [], [], bytearray(), 0
        pad = "x" * (self._size - len('{"n":,"pad":""}') - 5)
        for number in range(self._messages):
            payload = f'{{"type":"broadcast","event":"x","payload":{{"n":{number},"pad":"{pad}"}}}}'
            piece += frame(TEXT, f'[null,null,"{topic}","broadcast",{payload}]'.encode())
            count += 1
            if len(piece) >= PIECE or number == self._messages - 1:
                pieces.append(bytes(piece))
                counts.append(count)
                piece, count = bytearray(), 0
        return pieces, counts

    def _pieces(self, topic: str, messages: int | None) -> Iterator[tuple[bytes, int]]:
        pieces, counts = self._made[topic]
        if messages is not None:
            assert messages == self._messages, "a flood with an end is of as many as were made"
        while True:
            yield from zip(pieces, counts, strict=True)
            if messages is not None:
                return

    def _flood(self, topic: str, messages: int | None, rate: float | None = None) -> None:
        connection, urgent = self._home(topic), deque[bytes]()
        self._flooded = flooded = [0]
        start = time.monotonic()
        with self.lock:
            self._urgent[connection] = urgent
        try:
            for piece, count in self._pieces(topic, messages):
                if topic in self._left or not self._running.is_set():
                    break
                if rate is not None and (early := start + flooded[0] / rate - time.monotonic()) > 0:
                    time.sleep(early)
                while urgent:
                    connection.send(urgent.popleft())
                connection.send(piece)
                flooded[0] += count
        finally:
            self._say_the_rest(connection, urgent)

    def _say_the_rest(self, connection: Connection, urgent: deque[bytes]) -> None:
        while True:
            with self.lock:
                if not urgent:
                    del self._urgent[connection]
                    return
            connection.send(urgent.popleft())

    def _pace(self, topic: str, every: float, messages: int) -> None:
        start = time.monotonic()
        for number in range(messages):
            due = start + number * every
            if (left := due - time.monotonic()) > 0:
                time.sleep(left)
            if not self._running.is_set():
                return
            self._broadcast(topic, "x", {"n": number, "at": time.monotonic()})


if __name__ == "__main__":
    serve(Flood(**json.loads(sys.argv[1])))

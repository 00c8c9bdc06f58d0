"""
The traffic: a process that sends messages it made before, as fast as the sockets take them, when a client says go.

    python -m tests.benchmarks.traffic '{"topics": 1, "messages": 100000, "size": 250}'

A client joins topics ``realtime:bench-0``, ``realtime:bench-1``… on as many sockets as it likes, and then broadcasts
the event ``go`` with the payload ``{"messages": n}`` on one of them. Each topic gets its equal part of the n messages,
numbered from 0, on the socket that joined it; the topics of a socket take turns. One client at a time.
"""

from __future__ import annotations

import json
import sys
import threading

import attrs

from tests.benchmarks.wire import BINARY, TEXT, Connection, Message, Server, frame, serve

__all__ = ["Traffic", "topic_name"]

#: Frames from this size on are sent one by one: to join them would only take memory.
LARGE = 32_768


def topic_name(index: int) -> str:
    """As on the wire."""
    return f"realtime:bench-{index}"


def _json_payload(number: int, size: int) -> bytes:
    """A JSON object of `size` bytes."""
    head = b'{"n":%d,"pad":"' % number
    return head + b"x" * (size - len(head) - 2) + b'"}'


@attrs.frozen
class Plan:
    """
    What is sent.

    Attributes:
        topics: how many; messages: at most, over all topics; size: bytes of a payload.
        binary: kind 4 frames with bytes as payload, the number in the first eight; else JSON text.
    """

    topics: int
    messages: int
    size: int
    binary: bool = False
    tls: bool = False

    def frames(self, vsn: str, index: int) -> list[bytes]:
        """All the frames of a topic."""
        topic, count = topic_name(index).encode(), self.messages // self.topics
        if self.binary:
            head = bytes((4, len(topic), 1, 0, 0)) + topic + b"x"
            pad = b"x" * (self.size - 8)
            return [frame(BINARY, head + number.to_bytes(8, "big") + pad) for number in range(count)]
        if vsn == "2.0.0":
            before, after = b'[null,null,"%s","broadcast",{"type":"broadcast","event":"x","payload":' % topic, b"}]"
        else:
            before = b'{"ref":null,"topic":"%s","event":"broadcast","payload":' % topic
            before, after = before + b'{"type":"broadcast","event":"x","payload":', b"}}"
        return [frame(TEXT, before + _json_payload(number, self.size) + after) for number in range(count)]


class Traffic(Server):
    """The server that sends the traffic."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(tls=plan.tls)
        self._plan = plan
        self._frames: dict[str, dict[str, list[bytes]]] = {}  # by version and topic; made once

    def on_message(self, connection: Connection, message: Message) -> None:
        """As every server, and the go."""
        with self.lock:
            if connection.vsn not in self._frames:  # the join's answer waits for it, so no client sees the time
                made = {topic_name(i): self._plan.frames(connection.vsn, i) for i in range(self._plan.topics)}
                self._frames[connection.vsn] = made
        super().on_message(connection, message)
        if message.event == "broadcast" and message.payload["event"] == "go":
            self._go(message.payload["payload"]["messages"])

    def _go(self, messages: int) -> None:
        count, sending = messages // self._plan.topics, []
        for connection in self.connections:
            frames = self._frames[connection.vsn]
            chosen = [frames[topic][:count] for topic in connection.topics]
            turns = [each for turn in zip(*chosen, strict=True) for each in turn]
            sending.append((connection, turns if self._plan.size >= LARGE else [b"".join(turns)]))
        for connection, data in sending:
            threading.Thread(target=self._send, args=(connection, data), daemon=True).start()

    @staticmethod
    def _send(connection: Connection, data: list[bytes]) -> None:
        try:
            connection.send(*data)
        except OSError as error:
            print(f"traffic: a client left before it had all: {error}", file=sys.stderr)


if __name__ == "__main__":
    serve(Traffic(Plan(**json.loads(sys.argv[1]))))

"""
The server of clients that send: it sends broadcasts back to who sent them, or counts them.

    python -m tests.benchmarks.exchange '{}'

The broadcast ``count`` with the payload ``{"messages": n}`` has it count the frames that follow on that socket, as fast
as they can be read; it broadcasts ``counted`` when it has the n-th. Only then it looks into them: whether the numbers
``n`` of each thread ``t`` came once and in order. It broadcasts ``checked`` with the payload ``{"wrong": words}``; no
words are all well.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from tests.benchmarks.wire import CLOSE, Connection, Message, Server, decode, encode, serve

__all__ = ["Exchange", "frames_of"]

READ_SIZE = 256 * 1024
#: Control frames are not counted.
FIRST_CONTROL = 8


def frames_of(data: bytes | bytearray, position: int = 0) -> tuple[list[tuple[int, int, int]], int]:
    """The whole masked frames from a position on: opcode, start and end of the payload; and where the next one is."""
    found, have = [], len(data)
    while have - position >= 6:
        size, start = data[position + 1] & 0x7F, position + 6
        if size > 125:
            extra = 2 if size == 126 else 8
            size = int.from_bytes(data[position + 2 : position + 2 + extra], "big")
            start += extra
        if start + size > have:
            break
        found.append((data[position] & 0x0F, start, start + size))
        position = start + size
    return found, position


def _wrong(vsn: str, data: bytes, messages: int) -> str:
    """What is wrong with what was counted; nothing when all is well."""
    expected: dict[Any, int] = {}
    count = 0
    for opcode, start, end in frames_of(data)[0]:
        if opcode >= FIRST_CONTROL:
            continue
        size = end - start
        key = int.from_bytes((data[start - 4 : start] * (size // 4 + 1))[:size], "big")
        payload = (int.from_bytes(data[start:end], "big") ^ key).to_bytes(size, "big")
        message = decode(vsn, opcode, payload)
        if message.event != "broadcast":
            continue
        inner, count = message.payload["payload"], count + 1
        if inner["n"] != expected.get(inner["t"], 0):
            return f"message {inner['n']} of thread {inner['t']} came where {expected.get(inner['t'], 0)} was expected"
        expected[inner["t"]] = inner["n"] + 1
    return "" if count == messages else f"{count} messages of {messages} came"


class Exchange(Server):
    """The server that sends back, or counts."""

    def on_message(self, connection: Connection, message: Message) -> None:
        """As every server; and broadcasts."""
        super().on_message(connection, message)
        if message.event != "broadcast":
            return
        if message.payload["event"] == "count":
            self._count(connection, message.topic, message.payload["payload"]["messages"])
        else:
            self._tell(connection, message.topic, message.payload["event"], message.payload["payload"])

    @staticmethod
    def _tell(connection: Connection, topic: str, event: str, payload: Any) -> None:
        body = {"type": "broadcast", "event": event, "payload": payload}
        connection.send(encode(connection.vsn, None, None, topic, "broadcast", body))

    def _count(self, connection: Connection, topic: str, messages: int) -> None:
        data, position, count = bytearray(), 0, 0
        while count < messages:
            piece = connection.read(READ_SIZE)
            if not piece:
                return
            data += piece
            found, position = frames_of(data, position)
            count += sum(opcode < FIRST_CONTROL for opcode, _, _ in found)
            if any(opcode == CLOSE for opcode, _, _ in found):
                return
        self._tell(connection, topic, "counted", {})
        self._tell(connection, topic, "checked", {"wrong": _wrong(connection.vsn, bytes(data), messages)})


if __name__ == "__main__":
    serve(Exchange(**json.loads(sys.argv[1])))

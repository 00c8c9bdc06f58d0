"""
A server that does no more than answer, in a process of its own: what is measured against it is the client's alone.

    python -m tests.benchmarks.lean '{"tls": false}'

The broadcast event ``drop`` has it reset every socket; ``say``, with ``{"messages": n, "size": bytes}``, send so many
broadcasts ``x`` on every topic that is joined.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import sys

from tests.benchmarks.wire import Connection, Message, Server, encode, serve

__all__ = ["Lean"]

#: Closing does not wait for what was not sent, and says RST.
AT_ONCE = struct.pack("ii", 1, 0)


class Lean(Server):
    """Answers joins, leaves and heartbeats; drops everybody on demand."""

    def on_message(self, connection: Connection, message: Message) -> None:
        """As every server, and what is asked of it."""
        super().on_message(connection, message)
        if message.event == "phx_leave":
            connection.topics.remove(message.topic)
        elif message.event == "broadcast" and message.payload["event"] == "drop":
            self._drop()
        elif message.event == "broadcast" and message.payload["event"] == "say":
            self._say(**message.payload["payload"])

    def _drop(self) -> None:
        for each in self.connections:
            with contextlib.suppress(OSError):  # it has just left by itself
                each.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
                each.sock.shutdown(socket.SHUT_RDWR)

    def _say(self, messages: int, size: int) -> None:
        payload = {"type": "broadcast", "event": "x", "payload": {"pad": "x" * (size - 10)}}
        for each in self.connections:
            for topic in each.topics:
                each.send(encode(each.vsn, None, None, topic, "broadcast", payload) * messages)


if __name__ == "__main__":
    serve(Lean(**json.loads(sys.argv[1])))

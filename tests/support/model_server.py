"""
One socket of a Realtime server as a model: no thread, socket, clock or chance. Its caller says when it reads, when it
answers a join and how, and takes what it says.

It was written from the protocol alone, its codec too: what reads and writes here has nothing of rtpool's.
"""

from __future__ import annotations

import json
from collections import deque
from typing import Any, NamedTuple

__all__ = ["Frame", "ModelServer", "decode", "encode"]


class Frame(NamedTuple):
    """One message; on version 1 a server's has no join_ref."""

    join_ref: str | int | None
    ref: str | int | None
    topic: str
    event: str
    payload: Any


def encode(frame: Frame, vsn: str) -> bytes:
    """What a server of a version puts on the wire, a text frame."""
    if vsn == "1.0.0":
        return json.dumps({k: getattr(frame, k) for k in ("topic", "event", "payload", "ref")}).encode()
    return json.dumps(list(frame)).encode()


def decode(data: bytes, vsn: str) -> Frame:
    """What a client of a version put on the wire, a text frame."""
    value = json.loads(data)
    if vsn == "1.0.0":
        return Frame(value.get("join_ref"), value["ref"], value["topic"], value["event"], value["payload"])
    return Frame(*value[:5])


class ModelServer:
    """
    Args:
        vsn: the version spoken.
        strict: whether a push with another join_ref than its channel's is dropped, as stock Phoenix 1.8.11 does; such a
            leave is always.

    Attributes:
        channels: the join_ref of each joined topic.
        unread: what the client sent and the server has not looked at.
        joining: the join it runs; it does nothing else meanwhile.
        said: what is for the client, in order.
        ignored: how many frames it let fall without a word that deserved one.
    """

    def __init__(self, vsn: str, *, strict: bool) -> None:
        self.vsn = vsn
        self.strict = strict
        self.channels: dict[str, str] = {}
        self.unread: deque[Frame] = deque()
        self.joining: Frame | None = None
        self.said: deque[Frame] = deque()
        self.ignored = 0
        self._count = 0

    def take(self, data: bytes) -> None:
        """Bytes arrived."""
        self.unread.append(decode(data, self.vsn))

    def read(self) -> bool:
        """Look at the next frame; False when there is none, or a join is run."""
        if self.joining is not None or not self.unread:
            return False
        frame = self.unread.popleft()
        join_ref = self.channels.get(frame.topic)
        if frame.event == "phx_join":
            self.joining = frame
        elif frame.topic == "phoenix":
            self._reply(None, frame, "ok", {})
        elif frame.event == "phx_leave":
            self._leave(frame, join_ref)
        elif join_ref is None:
            self._reply(None, frame, "error", {"reason": "unmatched topic"})
        elif frame.join_ref != join_ref and self.strict:
            self.ignored += 1
        elif frame.event in ("ask", "refuse"):
            self._count += 1  # no two answers are alike
            self._reply(join_ref, frame, "ok" if frame.event == "ask" else "error", {"answer": self._count})
        return True

    def answer_join(self, reason: str | None) -> None:
        """The join that is run is done: let in, or refused with `reason`."""
        frame, self.joining = self.joining, None
        assert frame is not None
        old = self.channels.pop(frame.topic, None)
        if reason is None:
            self.channels[frame.topic] = str(frame.join_ref)
            self._reply(frame.join_ref, frame, "ok", {"postgres_changes": [], "of": frame.ref})
        else:
            self._reply(frame.join_ref, frame, "error", {"reason": reason})
        if old is not None:
            self._end(old, frame.topic, "phx_close", {})

    def broadcast(self, topic: str) -> None:
        """Somebody said something to all."""
        self._count += 1
        self._say(None, None, topic, "broadcast", {"type": "broadcast", "event": "e", "payload": {"n": self._count}})

    def tell(self, topic: str) -> None:
        """The channel itself says something."""
        words = {"extension": "postgres_changes", "status": "ok", "message": "Subscribed to PostgreSQL"}
        self._say(self.channels[topic], None, topic, "system", words)

    def crash(self, topic: str) -> None:
        """A channel's process dies."""
        self._end(self.channels.pop(topic), topic, "phx_error", {"reason": "channel_crash"})

    def shut_down(self, topic: str, message: str) -> None:
        """The server ends a channel and says why."""
        join_ref = self.channels.pop(topic)
        self._say(join_ref, None, topic, "system", {"extension": "system", "status": "error", "message": message})
        self._end(join_ref, topic, "phx_close", {})

    def _leave(self, frame: Frame, join_ref: str | None) -> None:
        if join_ref is None:
            self._reply(frame.join_ref, frame, "ok", {})
        elif frame.join_ref == join_ref:
            del self.channels[frame.topic]
            self._reply(join_ref, frame, "ok", {})
            self._end(join_ref, frame.topic, "phx_close", {})
        else:
            self.ignored += 1

    def _reply(self, join_ref: str | int | None, frame: Frame, status: str, response: Any) -> None:
        self._say(join_ref, frame.ref, frame.topic, "phx_reply", {"status": status, "response": response})

    def _end(self, join_ref: str, topic: str, event: str, payload: Any) -> None:
        self._say(join_ref, join_ref, topic, event, payload)

    def _say(self, join_ref: str | int | None, ref: str | int | None, topic: str, event: str, payload: Any) -> None:
        self.said.append(Frame(None if self.vsn == "1.0.0" else join_ref, ref, topic, event, payload))

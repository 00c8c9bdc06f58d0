"""
Bytes as a program: what happens to a session, step by step, and what must hold at each.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable
from typing import Any

from rtpool.errors import ProtocolError
from rtpool.events import ChannelState
from rtpool.protocol.messages import JsonBody
from rtpool.protocol.serializer import serializer_for
from rtpool.protocol.session import Session
from rtpool.protocol.session_events import HeartbeatLost, PushSettled
from tests.support.apart import apart

__all__ = ["EVENTS", "OPS", "PAYLOADS", "TOPICS", "Program"]

TOPICS = ["realtime:a", "realtime:b", "realtime:c", "phoenix"]
#: What a step may be; a byte chooses.
OPS = ["join", "leave", "push", "write", "wait", "due", "connection"]
OPS += ["text", "binary", "reply", "event", "fence", "probe", "deaf"]
EVENTS = ["phx_close", "phx_error", "phx_reply", "system", "broadcast", "presence_diff", "presence_state", "phx_join"]
PAYLOADS: list[Any] = [
    {},
    {"status": "ok", "response": {}},
    {"status": "error", "response": {"reason": "unmatched topic"}},
    {"status": "error", "response": "payload_size_exceeded"},
    {"status": {"x": 1}},
    [],
    None,
    "ok",
]
INTERVAL, TIMEOUT = 25.0, 10.0
MAX_STEPS = 400


class Program:
    """
    A session with the server's side played by the bytes.

    Args:
        data: the first byte chooses the version and how many joins may be in flight; the others are read as they are
            asked for, and are zero when none are left.
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        first = self.byte()
        self.vsn = ["2.0.0", "1.0.0"][first & 1]
        self.session = Session(
            serializer_for(self.vsn),
            heartbeat_interval=INTERVAL,
            heartbeat_timeout=TIMEOUT,
            join_timeout=TIMEOUT,
            max_joins_in_flight=1 + (first >> 1) % 4,
        )
        self.now = 0.0
        self.online = False
        self.unwritten: list[str] = []
        self.last_ref = 0
        self.pushes: dict[int, bool] = {}  # whether a reply is wanted
        self.outcomes: Counter[tuple[int, str]] = Counter()
        self.ended: set[int] = set()
        self.seen: set[str] = set()
        self.peak = 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def chunk(self) -> bytes:
        size = self.byte() + 256 * (self.byte() & 15)
        start, self.at = self.at, min(len(self.data), self.at + size)
        return self.data[start : self.at]

    def topic(self) -> str:
        return TOPICS[self.byte() % len(TOPICS)]

    def run(self) -> Hashable:
        self.connection()
        for _ in range(MAX_STEPS):
            if self.at >= len(self.data):
                break
            getattr(self, OPS[self.byte() % len(OPS)])()
            self.look()
        if self.online:
            self.connection()
            self.look()
        assert self.ended == set(self.pushes), "each push ends"
        assert self.session.next_deadline() is None
        assert set(self.session.topics) == {
            t for t, e in self.session.topics.items() if e.state is not ChannelState.LEAVING
        }
        return frozenset(self.seen)

    # Steps

    def join(self) -> None:
        topic = self.topic()
        if self.online and self.session.state(topic) is not ChannelState.LEAVING:
            self.session.join(topic, JsonBody(b"{}"), self.now)

    def leave(self) -> None:
        self.session.leave(self.topic(), self.now)

    def push(self) -> None:
        topic, flags, token = self.topic(), self.byte(), len(self.pushes)
        joined = self.session.state(topic) is ChannelState.JOINED
        accepted = self.session.push(
            topic,
            "event",
            JsonBody(b"{}"),
            token=token,
            wants_reply=bool(flags & 1),
            tells_sent=bool(flags & 2),
            deadline=self.now + (flags >> 2) - 1,
            now=self.now,
        )
        assert accepted == (joined and self.online)
        if accepted:
            self.pushes[token] = bool(flags & 1)

    def write(self) -> None:
        for _ in range(min(self.byte(), len(self.unwritten))):
            self.session.frame_written(self.unwritten.pop(0), self.now)

    def wait(self) -> None:
        self.now += self.byte() / 8
        self.session.tick(self.now)
        self.nothing_is_overdue()

    def due(self) -> None:
        due = self.session.next_deadline()
        if due is not None:
            self.now = max(self.now, due)
            self.session.tick(self.now)
            self.nothing_is_overdue()

    def nothing_is_overdue(self) -> None:
        due = self.session.next_deadline()
        assert due is None or due > self.now, "it would wake for ever"

    def connection(self) -> None:
        self.online = not self.online
        if self.online:
            self.session.connected(self.now)
        else:
            self.session.disconnected()
            self.unwritten.clear()

    def text(self) -> None:
        self.receive(self.chunk(), False)

    def binary(self) -> None:
        self.receive(self.chunk(), True)

    def reply(self) -> None:
        """To one of the latest things sent, so that much is hit."""
        ref, topic, payload = self.byte(), self.topic(), PAYLOADS[self.byte() % len(PAYLOADS)]
        self.say(None, self.last_ref - ref if ref < 250 else f"x{ref}", topic, "phx_reply", payload)

    def event(self) -> None:
        ref, topic = self.byte(), self.topic()
        event, payload = EVENTS[self.byte() % len(EVENTS)], PAYLOADS[self.byte() % len(PAYLOADS)]
        entry = self.session.topics.get(topic)
        join_ref: Any = [None, entry.join_ref if entry else "", str(self.last_ref - (ref >> 2)), ref][ref & 3]
        own_ref = join_ref if event in ("phx_close", "phx_error") else None
        self.say(join_ref, own_ref, topic, event, payload)

    def say(self, join_ref: Any, ref: Any, topic: str, event: str, payload: Any) -> None:
        message: Any = [join_ref, ref if ref is None else str(ref), topic, event, payload]
        if self.vsn == "1.0.0":
            message = {"ref": message[1], "topic": topic, "event": event, "payload": payload}
        self.receive(json.dumps(message).encode(), False)

    def receive(self, data: bytes, is_binary: bool) -> None:
        if not self.online:
            return
        states = {topic: entry.state for topic, entry in self.session.topics.items()}
        try:
            self.session.receive(data, is_binary, self.now)
        except ProtocolError:
            self.seen.add("ProtocolError")
            assert states == {topic: entry.state for topic, entry in self.session.topics.items()}
            assert not self.session.has_events, "what is no message harms nothing"

    def fence(self) -> None:
        if self.online:
            self.session.fence(self.now)

    def probe(self) -> None:
        self.session.probe(self.now)

    def deaf(self) -> None:
        self.session.not_reading(self.now)

    # What must hold

    def look(self) -> None:
        lost = False
        for event in apart(self.session.events()):
            name = type(event).__name__
            if isinstance(event, PushSettled):
                self.settled(event)
                name += event.outcome
            self.seen.add(name)
            lost = lost or isinstance(event, HeartbeatLost)
        for frame in self.session.frames_to_send():
            assert int(frame.ref) > self.last_ref, "a ref is used once"
            assert self.online, "there is nobody to send it to"
            self.last_ref = int(frame.ref)
            self.unwritten.append(frame.ref)
        session = self.session
        assert len(session._joins_in_flight) <= session._max_joins_in_flight
        assert len(session._join_queue) <= len(session.topics)
        self.peak = max(self.peak, len(session._pending))
        assert len(session._timers) <= 2 * self.peak + 65
        assert len(session.topics) <= len(TOPICS), "a server adds no topic"
        if lost and self.online:
            self.connection()
            self.look()

    def settled(self, event: PushSettled) -> None:
        token = event.token
        assert token not in self.ended, "a push ends once"
        self.outcomes[token, event.outcome] += 1
        assert self.outcomes[token, event.outcome] == 1
        if event.outcome != "sent" or not self.pushes[token]:
            self.ended.add(token)

"""
A session driven by hand: its user's side, its server's, and the time.
"""

from __future__ import annotations

import json
from typing import Any

from rtpool.protocol.messages import JsonBody
from rtpool.protocol.serializer import serializer_for
from rtpool.protocol.session import Session
from rtpool.protocol.session_events import Joined

__all__ = ["BODY", "Driver", "TOPIC"]

TOPIC = "realtime:room"
BODY = JsonBody(b'{"config":{}}')


class Driver:
    """A session and the server's side of the conversation."""

    def __init__(self, vsn: str = "2.0.0", **options: Any) -> None:
        settings = {
            "heartbeat_interval": 25.0,
            "heartbeat_timeout": 10.0,
            "join_timeout": 10.0,
            "max_joins_in_flight": 5,
            **options,
        }
        self.vsn = vsn
        self.session = Session(serializer_for(vsn), **settings)
        self.now = 0.0
        self.session.connected(self.now)

    def sent(self, *, written: bool = True) -> list[list[Any]]:
        """The frames since the last look as ``[join_ref, ref, topic, event, payload]``."""
        frames = []
        for frame in self.session.frames_to_send():
            message = json.loads(frame.data)
            if isinstance(message, dict):
                message = [message[k] for k in ("join_ref", "ref", "topic", "event", "payload")]
            frames.append(message)
            if written:
                self.session.frame_written(frame.ref, self.now)
        return frames

    def frame(self, join_ref: Any, ref: Any, topic: str, event: str, payload: Any) -> bytes:
        """What the server writes; version 1 has no join_ref."""
        message: Any = [join_ref, ref, topic, event, payload]
        if self.vsn == "1.0.0":
            message = {"ref": ref, "topic": topic, "event": event, "payload": payload}
        return json.dumps(message).encode()

    def server(self, join_ref: Any, ref: Any, topic: str, event: str, payload: Any) -> None:
        self.session.receive(self.frame(join_ref, ref, topic, event, payload), False, self.now)

    def reply(self, frame: list[Any], status: str = "ok", response: Any = None) -> None:
        payload = {"status": status, "response": {} if response is None else response}
        self.server(frame[0], frame[1], frame[2], "phx_reply", payload)

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.session.tick(self.now)

    def joined(self, topic: str = TOPIC) -> list[Any]:
        self.session.join(topic, BODY, self.now)
        (join,) = self.sent()
        self.reply(join)
        assert self.session.events()[-1] == Joined(topic, {})
        return join

    def push(self, *, wants_reply: bool = True, token: str = "token", deadline: float = 10.0) -> bool:
        return self.session.push(
            TOPIC, "e", JsonBody(b"{}"), token=token, wants_reply=wants_reply, deadline=deadline, now=self.now
        )

"""
A second opinion on recorded frames: what the Phoenix protocol makes of each, told in the recording's own refs.

It shares no code with rtpool. `Wire` follows one client socket; for each frame of the client it says what a client of
rtpool's kind would be doing (`Act`) or why rtpool never would (`FOREIGN`), and for each frame of the server what the
client has to be told.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = [
    "Act",
    "DROPPED",
    "FOREIGN",
    "Frame",
    "PUSH_TIMEOUT",
    "UserPush",
    "Wire",
    "client_frame",
    "is_true",
    "server_frame",
]

#: Why a recorded client's frame is not one of rtpool's. The server's answers to it are fed as answers to a stranger.
FOREIGN = {
    "no message": "no Phoenix message at all; rtpool encodes every frame it sends",
    "odd ref": "a ref that is null or no string; each frame of a session has a string of its own",
    "odd payload": "a heartbeat with another payload than an empty object",
    "odd join_ref": "a join_ref that is missing, of an earlier join, or, of a join, not its own ref",
    "not joined": "a push or leave on a topic that is not joined here; `Session.push` answers False to it",
    "reserved": "an event that only servers send; `Channel.push` refuses it",
    "not connected": "sent into a socket that is closed",
}

#: Expected of a frame that means nothing to the client.
DROPPED = ("dropped",)
SERVER_EVENTS = frozenset({"phx_reply", "phx_close", "phx_error"})
#: Seconds a push waits for its reply.
PUSH_TIMEOUT = 10.0


class Frame(NamedTuple):
    """One Phoenix message."""

    join_ref: Any
    ref: Any
    topic: str
    event: str
    payload: Any


class UserPush(NamedTuple):
    """The payload of a client's kind 3 frame."""

    event: str
    data: bytes
    is_json: bool
    metadata: bytes


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _json(data: bytes) -> Any:
    return json.loads(data.decode("utf-8"), parse_constant=_no_constant)


def _text_frame(data: bytes, vsn: str) -> Frame:
    value = _json(data)
    if vsn.startswith("1"):
        if not isinstance(value, dict) or not {"topic", "event", "payload", "ref"} <= set(value):
            raise ValueError("no object with the four keys")
        frame = Frame(value.get("join_ref"), value["ref"], value["topic"], value["event"], value["payload"])
    else:
        if not isinstance(value, list) or len(value) != 5:
            raise ValueError("no array of five")
        frame = Frame(*value)
    if not isinstance(frame.topic, str) or not isinstance(frame.event, str):
        raise ValueError("a topic or event that is no string")
    if not all(ref is None or type(ref) in (str, int) for ref in frame[:2]):
        raise ValueError("a ref that is neither string nor number")
    return frame


def _cut(data: bytes, header: int, sizes: bytes) -> list[bytes]:
    """The fields of a binary frame, and the rest."""
    parts = []
    for size in sizes:
        parts.append(data[header : header + size])
        header += size
    if header > len(data):
        raise ValueError("a field beyond the end")
    return [*parts, data[header:]]


def server_frame(data: bytes, is_binary: bool, vsn: str) -> Frame:
    """What a server said; ValueError when it is no Phoenix message."""
    if not is_binary:
        return _text_frame(data, vsn)
    if vsn.startswith("1") or not data:
        raise ValueError("no binary frames here")
    if data[0] == 0:
        join_ref, topic, event, rest = _cut(data, 4, data[1:4])
        return Frame(join_ref.decode() or None, None, topic.decode(), event.decode(), rest)
    if data[0] == 1:
        join_ref, ref, topic, status, rest = _cut(data, 5, data[1:5])
        reply = {"status": status.decode(), "response": rest}
        return Frame(join_ref.decode() or None, ref.decode() or None, topic.decode(), "phx_reply", reply)
    if data[0] == 2:
        topic, event, rest = _cut(data, 3, data[1:3])
        return Frame(None, None, topic.decode(), event.decode(), rest)
    if data[0] == 4:
        topic, event, metadata, rest = _cut(data, 5, data[1:4])
        payload = {"type": "broadcast", "event": event.decode(), "payload": _json(rest) if data[4] == 1 else rest}
        if metadata:
            payload["meta"] = _json(metadata)
        return Frame(None, None, topic.decode(), "broadcast", payload)
    raise ValueError(f"kind {data[0]}")


def client_frame(data: bytes, is_binary: bool, vsn: str) -> Frame:
    """What a client said; ValueError when it is no Phoenix message."""
    if not is_binary:
        return _text_frame(data, vsn)
    if vsn.startswith("1") or not data or data[0] not in (0, 3):
        raise ValueError("no binary frame of a client")
    sizes, header = (data[1:5], 5) if data[0] == 0 else (data[1:6], 7)
    if len(data) < header:
        raise ValueError("shorter than its header")
    join_ref, ref, topic, event, *rest = _cut(data, header, sizes)
    refs = join_ref.decode() or None, ref.decode() or None
    if data[0] == 0:
        return Frame(*refs, topic.decode(), event.decode(), rest[0])
    return Frame(*refs, topic.decode(), "broadcast", UserPush(event.decode(), rest[1], data[6] != 0, rest[0]))


def is_true(value: Any) -> bool:
    """A flag of a join's config as the server reads it: words count too."""
    return value is True or (isinstance(value, str) and value.lower() == "true")


class Act(NamedTuple):
    """What a client's frame does: ``join leave push heartbeat``, or ``foreign`` and why."""

    kind: str
    frame: Frame | None
    reason: str = ""
    wants_reply: bool = True


@dataclass
class _Room:
    join_ref: str
    phase: str  # joining, joined, leaving, errored
    acks: bool


@dataclass
class _Waiting:
    kind: str
    topic: str
    since: float
    token: int


@dataclass
class Wire:
    """One client socket over its reconnects."""

    rooms: dict[str, _Room] = field(default_factory=dict)
    waiting: dict[str, _Waiting] = field(default_factory=dict)
    quiet: dict[str, _Room] = field(default_factory=dict)  # pushes that ask for no reply, by ref
    connected: bool = False

    def phases(self) -> dict[str, str]:
        """Where each topic stands; one that is not named is closed."""
        return {topic: room.phase for topic, room in self.rooms.items()}

    # The client's part

    def act(self, data: bytes, is_binary: bool, vsn: str, now: float, token: int) -> Act:
        """What a frame of the client does; `token` names it."""
        try:
            frame = client_frame(data, is_binary, vsn)
        except ValueError:
            return Act("foreign", None, "no message")
        if not self.connected:
            return Act("foreign", frame, "not connected")
        reason = self._stranger(frame)
        if reason:
            return Act("foreign", frame, reason)
        kind = {"phx_join": "join", "phx_leave": "leave", "heartbeat": "heartbeat"}.get(frame.event, "push")
        wants_reply = True
        if kind == "join":
            config = frame.payload.get("config") if isinstance(frame.payload, dict) else None
            broadcast = config.get("broadcast") if isinstance(config, dict) else None
            acks = is_true(broadcast.get("ack")) if isinstance(broadcast, dict) else not frame.topic.startswith("real")
            self.rooms[frame.topic] = _Room(frame.ref, "joining", acks)
        elif kind == "leave":
            self.rooms[frame.topic].phase = "leaving"
        elif kind == "push":
            acks = self.rooms[frame.topic].acks
            wants_reply = {"access_token": False, "broadcast": acks}.get(frame.event, True)
        if wants_reply:
            self.waiting[frame.ref] = _Waiting(kind, frame.topic, now, token)
        else:
            self.quiet[frame.ref] = self.rooms[frame.topic]
        return Act(kind, frame, wants_reply=wants_reply)

    def _stranger(self, frame: Frame) -> str:
        room = self.rooms.get(frame.topic)
        if not isinstance(frame.ref, str):
            return "odd ref"
        if frame.event in SERVER_EVENTS:
            return "reserved"
        if frame.topic == "phoenix" and frame.event == "heartbeat":
            return "" if frame.payload == {} else "odd payload"
        if frame.event == "phx_join":
            return "" if frame.join_ref == frame.ref else "odd join_ref"
        phases = ("joining", "joined") if frame.event == "phx_leave" else ("joined",)
        if room is None or room.phase not in phases:
            return "not joined"
        return "" if frame.join_ref == room.join_ref else "odd join_ref"

    def expired(self, now: float) -> list[tuple[Any, ...]]:
        """The pushes whose time is over."""
        late = [ref for ref, w in self.waiting.items() if w.kind == "push" and w.since + PUSH_TIMEOUT <= now]
        return [("settled", self.waiting.pop(ref).token, "timeout", "ok", None) for ref in late]

    # The server's part

    def hear(self, frame: Frame, now: float) -> list[tuple[Any, ...]]:
        """What the client has to be told of a frame of the server."""
        if frame.event == "phx_reply":
            return self._reply(frame, now)
        room = self.rooms.get(frame.topic)
        if frame.event in ("phx_close", "phx_error"):
            return self._end(frame, room)
        stale = room is not None and frame.join_ref not in (None, room.join_ref)
        if room is None or stale or room.phase not in ("joining", "joined"):
            return [DROPPED]
        return [("received", *frame[2:])]

    def _reply(self, frame: Frame, now: float) -> list[tuple[Any, ...]]:
        waiting = self.waiting.get(frame.ref) if isinstance(frame.ref, str) else None
        status, response = frame.payload["status"], frame.payload["response"]
        room = self.rooms.get(frame.topic)
        unmatched = status == "error" and response == {"reason": "unmatched topic"}
        if waiting is None or waiting.topic != frame.topic:
            quiet = room is not None and isinstance(frame.ref, str) and self.quiet.get(frame.ref) is room
            lost = self._lose(frame.topic, "unmatched topic", response) if unmatched and quiet else []
            return lost or [DROPPED]
        del self.waiting[frame.ref]
        if waiting.kind == "heartbeat":
            return [("heartbeat", now - waiting.since)]
        if waiting.kind == "push":
            told: list[tuple[Any, ...]] = [("settled", waiting.token, "reply", status, response)]
            return told + (self._lose(frame.topic, "unmatched topic", response) if unmatched else [])
        if waiting.kind == "leave":
            return self._forget(frame.topic) if room is not None and room.phase == "leaving" else []
        if room is None or room.join_ref != frame.ref:
            return [DROPPED]  # a later join took its place
        if room.phase == "leaving":
            return []
        room.phase = "joined" if status == "ok" else "errored"
        return [("joined" if status == "ok" else "refused", frame.topic, response)]

    def _end(self, frame: Frame, room: _Room | None) -> list[tuple[Any, ...]]:
        # Version 1 puts the join's ref where version 2 has it twice; both are null for a join that had none.
        ended = frame.join_ref or frame.ref
        if room is None or ended not in (None, room.join_ref):
            return [DROPPED]
        if room.phase == "leaving":
            return self._forget(frame.topic) if frame.event == "phx_close" else []
        if room.phase == "errored" and frame.event == "phx_error":
            return [DROPPED]  # it crashed already
        return self._lose(frame.topic, frame.event, frame.payload)

    def _lose(self, topic: str, cause: str, payload: Any) -> list[tuple[Any, ...]]:
        room = self.rooms.get(topic)
        if room is None or room.phase not in ("joining", "joined"):
            return []
        room.phase = "errored"
        return [*self._lost_pushes(topic), ("lost", topic, cause, payload)]

    def _forget(self, topic: str) -> list[tuple[Any, ...]]:
        del self.rooms[topic]
        return [*self._lost_pushes(topic), ("left", topic)]

    def _lost_pushes(self, topic: str | None) -> list[tuple[Any, ...]]:
        refs = [ref for ref, w in self.waiting.items() if w.kind == "push" and topic in (None, w.topic)]
        return [("settled", self.waiting.pop(ref).token, "lost", "ok", None) for ref in refs]

    def disconnect(self) -> list[tuple[Any, ...]]:
        """The socket is gone."""
        self.connected = False
        told = self._lost_pushes(None)
        self.waiting.clear()
        self.quiet.clear()
        for topic, room in list(self.rooms.items()):
            if room.phase == "leaving":
                told += self._forget(topic)
            else:
                room.phase = "errored"
        return told

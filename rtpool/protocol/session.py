"""
The Phoenix protocol of one connection: refs, joins, leaves, pushes, heartbeats.

Inputs are method calls with the time as an argument; outputs are drained: `frames_to_send`, `events`. The session
lives as long as its connection's identity: over a disconnect it keeps which topics are its own, not what was in flight.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import attrs

from rtpool.errors import ProtocolError
from rtpool.events import ChannelState
from rtpool.protocol.frames import OP_BINARY, OP_TEXT, WsMessage
from rtpool.protocol.heartbeat import Pulse
from rtpool.protocol.messages import (
    HEARTBEAT,
    PHOENIX_TOPIC,
    PHX_CLOSE,
    PHX_ERROR,
    PHX_JOIN,
    PHX_LEAVE,
    PHX_REPLY,
    Body,
    Broadcasts,
    JsonBody,
    WireMessage,
)
from rtpool.protocol.refusals import words_of
from rtpool.protocol.serializer import Serializer
from rtpool.protocol.session_events import (
    ChannelLost,
    Fenced,
    HeartbeatLost,
    HeartbeatReplied,
    HeartbeatSent,
    Joined,
    JoinFailed,
    Left,
    PushSettled,
    SessionEvent,
)
from rtpool.protocol.states import ChannelInput, next_state

__all__ = ["OutgoingFrame", "Session", "UNMATCHED_TOPIC"]

ANSWERS = frozenset((PHX_REPLY, PHX_CLOSE, PHX_ERROR))
JOINED, JOINING = ChannelState.JOINED, ChannelState.JOINING
EMPTY_OBJECT = JsonBody(b"{}")
#: The reply to a push on a topic the server has no channel for.
UNMATCHED_TOPIC = "unmatched topic"


class OutgoingFrame(NamedTuple):
    """One Phoenix frame to send; `ref` is to be told to `Session.frame_written` once the kernel has it."""

    is_binary: bool
    data: bytes
    ref: str
    topic: str
    event: str

    @property
    def what(self) -> str:
        """Topic and event for the log, which never sees a payload: it may hold a token."""
        return f"{self.topic} {self.event}"

    def __repr__(self) -> str:
        return f"<OutgoingFrame {self.what} ref {self.ref}, {len(self.data)} bytes>"


@attrs.define(eq=False, repr=False)
class _Topic:
    """What this connection knows of one topic."""

    state: ChannelState = ChannelState.CLOSED
    join_ref: str = ""
    join_body: JsonBody = EMPTY_OBJECT
    queued: bool = False  # the join waits for its turn
    leave: _Pending | None = None  # an earlier one of the topic, told by its close, may be answered yet


@attrs.define(eq=False, repr=False)
class _Pending:
    """A frame that awaits its reply."""

    kind: str  # join, leave, push, fence
    topic: str
    deadline: float | None = None  # leaves: None until written; joins: until the one before is answered, too
    token: Any = None
    wants_reply: bool = True
    tells_sent: bool = False
    written: bool = False


class Session:
    """
    The Phoenix protocol of one connection. Sans-I/O.

    Args:
        serializer: of the negotiated version.
        heartbeat_interval, heartbeat_timeout, join_timeout: seconds, see `PoolOptions`.
        max_joins_in_flight: joins awaiting a reply at a time. The server runs joins one by one, and everything else
            on the socket waits meanwhile.

    Thread-safety: none; confined to the I/O thread.
    """

    def __init__(
        self,
        serializer: Serializer,
        *,
        heartbeat_interval: float,
        heartbeat_timeout: float,
        join_timeout: float,
        max_joins_in_flight: int,
    ) -> None:
        self._serializer = serializer
        self._join_timeout = join_timeout
        self._max_joins_in_flight = max_joins_in_flight
        self._connected = False
        self._last_ref = 0  # never reused, over reconnects too: a late reply matches nothing
        self._topics: dict[str, _Topic] = {}
        self._pending: dict[str, _Pending] = {}
        self._join_queue: deque[str] = deque()
        self._joins_in_flight: dict[str, _Pending] = {}  # by ref, oldest first
        self._last_said = self._last_heard = 0  # refs: of a push or a leave, of what was answered
        self._pulse = Pulse(heartbeat_interval, heartbeat_timeout)
        self._timers: list[tuple[float, str]] = []
        # Pushes, which mostly are written, and done with, before anybody asks when the next timer is due.
        self._untimed: list[tuple[float, str]] = []
        self._untimed_due = math.inf
        self._frames: list[OutgoingFrame] = []
        self._events: list[SessionEvent] = []
        #: Messages dropped: of an earlier join, of no topic here, or meaningless in the channel's state.
        self.dropped = 0

    # What is known

    @property
    def topics(self) -> dict[str, _Topic]:
        """The topics of this connection; for placement and for reading only."""
        return self._topics

    def state(self, topic: str) -> ChannelState:
        """The state of a topic, closed when it is not here."""
        entry = self._topics.get(topic)
        return entry.state if entry else ChannelState.CLOSED

    @property
    def joins_available(self) -> int:
        """How many joins may be asked for now without waiting for a reply."""
        if not self._connected or self._pulse.late:  # it answers nothing: more would only wait with the rest
            return 0
        return self._max_joins_in_flight - len(self._joins_in_flight) - len(self._join_queue)

    def frames_to_send(self) -> list[OutgoingFrame]:
        """Drain the frames to write, in order."""
        frames, self._frames = self._frames, []
        return frames

    @property
    def has_events(self) -> bool:
        """Whether `events` would return any."""
        return bool(self._events)

    @property
    def has_output(self) -> bool:
        """Whether `frames_to_send` or `events` would return any."""
        return bool(self._frames or self._events)

    @property
    def unheard(self) -> bool:
        """
        Whether the server may not have read every push and leave: it reads a socket's frames in order, and has answered
        neither the last of them nor anything that was sent later.
        """
        return self._last_said > self._last_heard

    def not_reading(self, now: float) -> None:
        """Nothing is read at present: no answer can be seen, neither to a heartbeat nor to a join."""
        self._pulse.unseen(now)
        for ref, pending in self._joins_in_flight.items():
            if pending.deadline is not None:
                self._arm(pending, ref, now + self._join_timeout)
            return

    def probe(self, now: float) -> None:
        """There is doubt whether the peer is alive: the next `tick` asks."""
        self._pulse.hasten(now)

    def events(self) -> list[SessionEvent]:
        """Drain what happened, in order."""
        events, self._events = self._events, []
        return events

    def next_deadline(self) -> float | None:
        """When `tick` is due next; None when nothing is awaited."""
        if self._untimed:
            self._time_pushes()
        while self._timers:
            at, ref = self._timers[0]
            pending = self._pending.get(ref)
            if pending is not None and pending.deadline == at:
                break
            heapq.heappop(self._timers)
        due = self._pulse.next_deadline
        if self._timers and (due is None or self._timers[0][0] < due):
            return self._timers[0][0]
        return due

    def heartbeat_awaited(self, now: float) -> float:
        """Seconds for which a heartbeat has had no answer; 0 while a join is outstanding, which holds it up."""
        return 0.0 if self._joins_in_flight else self._pulse.awaited(now)

    # What we do

    def connected(self, now: float) -> None:
        """The connection is open; topics are joined only when asked for again."""
        self._connected = True
        self._pulse.start(now)

    def disconnected(self) -> None:
        """The connection is gone: pushes are lost, leaves are done, joined and joining topics are errored."""
        self._connected = False
        self._last_said = 0
        self._pulse.stop()
        self._frames.clear()
        self._join_queue.clear()
        self._joins_in_flight.clear()
        pending, self._pending = self._pending, {}
        self._timers.clear()
        self._untimed.clear()
        for entry in pending.values():
            if entry.kind == "push":
                self._settle(entry, "lost")
        for topic, channel in list(self._topics.items()):
            channel.queued, channel.join_ref = False, ""  # the next connection knows of no join yet
            was_leaving = channel.state is ChannelState.LEAVING
            self._advance(channel, ChannelInput.DISCONNECTED)
            if was_leaving:
                self._forget(topic, timed_out=False)

    def join(self, topic: str, body: JsonBody, now: float) -> None:
        """
        Join a topic, or join it anew with another config; the server replaces the earlier channel in one step.

        The frame is sent as soon as fewer than `max_joins_in_flight` are awaited.
        """
        channel = self._topics.setdefault(topic, _Topic())
        if self._advance(channel, ChannelInput.JOIN) is None:
            raise RuntimeError(f"cannot join {topic!r} while {channel.state}")
        channel.join_body = body
        if not channel.queued:
            channel.queued = True
            self._join_queue.append(topic)
        self._send_joins()

    def leave(self, topic: str, now: float) -> None:
        """Leave a topic; `Left` follows, at once when the server knows nothing of it."""
        channel = self._topics.get(topic)
        if channel is None or channel.state is ChannelState.LEAVING:
            return
        unknown_to_server = channel.queued and not channel.join_ref
        state = self._advance(channel, ChannelInput.LEAVE)
        self._unqueue(topic, channel)
        if state is not ChannelState.LEAVING or unknown_to_server or not self._connected:
            self._forget(topic, timed_out=False)
            return
        # A join in flight is overtaken: the server runs it first, then the leave, and answers both.
        channel.leave = self._send("leave", topic, PHX_LEAVE, EMPTY_OBJECT, channel.join_ref)[1]

    def push(
        self,
        topic: str,
        event: str,
        body: Body,
        *,
        token: Any,
        wants_reply: bool,
        deadline: float,
        now: float,
        tells_sent: bool = False,
    ) -> bool:
        """
        Send a push on a joined topic.

        Args:
            token: comes back in `PushSettled`.
            wants_reply: False settles it as soon as the kernel has the frame.
            tells_sent: settle it so as well as by its reply.
            deadline: when it times out.

        Returns:
            False when the topic is not joined here; nothing was sent then.
        """
        channel = self._topics.get(topic)
        if channel is None or channel.state is not ChannelState.JOINED or not self._connected:
            return False
        ref = self._new_ref()
        self._frame(channel.join_ref, ref, topic, event, body)
        self._pending[ref] = _Pending("push", topic, None, token, wants_reply, tells_sent)
        self._last_said = self._last_ref
        self._untimed.append((deadline, ref))
        if deadline < self._untimed_due:
            self._untimed_due = deadline
        return True

    def awaits_reply(self, topic: str) -> bool:
        """Whether a push on a topic is on its way out, or awaits its reply."""
        return any(pending.kind == "push" and pending.topic == topic for pending in self._pending.values())

    def fence(self, now: float) -> str:
        """Send a heartbeat whose reply, which comes after all that was sent here before, is `Fenced`; its ref."""
        return self._send("fence", PHOENIX_TOPIC, HEARTBEAT, EMPTY_OBJECT, None)[0]

    def frame_written(self, ref: str, now: float) -> None:
        """The kernel has all of the frame `ref`: its reply's time starts now."""
        pending = self._pending.get(ref)
        if pending is None:
            self._pulse.written(ref, now)
            return
        pending.written = True
        if pending.kind == "join":
            self._time_oldest_join(now)
        elif pending.kind == "leave":
            self._arm(pending, ref, now + self._join_timeout)
        elif not pending.wants_reply:
            del self._pending[ref]
            self._settle(pending, "sent")
        elif pending.tells_sent:
            self._settle(pending, "sent")

    def tick(self, now: float) -> None:
        """Do what is due: time-outs, the heartbeat."""
        if self._untimed_due <= now:
            self._time_pushes()
        due: dict[str, _Pending] = {}
        while self._timers and self._timers[0][0] <= now:
            at, ref = heapq.heappop(self._timers)
            pending = self._pending.get(ref)
            if pending is not None and pending.deadline == at:
                due[ref] = pending
        # Pushes first: the end of a topic that is due as well would make those lost that have timed out.
        for ref, pending in sorted(due.items(), key=lambda entry: entry[1].kind != "push"):
            self._expire(ref, pending, now)
        waited = self._pulse.lost(now, self._join_due(now))
        if waited is not None:
            self._events.append(HeartbeatLost(waited))
        if self._pulse.is_due(now):
            ref = self._new_ref()
            self._frame(None, ref, PHOENIX_TOPIC, HEARTBEAT, EMPTY_OBJECT)
            self._pulse.sent(ref, now)
            self._events.append(HeartbeatSent())

    # What the server does

    def receive(self, data: bytes, is_binary: bool, now: float) -> None:
        """
        Take one data message.

        Raises:
            ProtocolError: it is no Phoenix message; the session is unharmed.
        """
        for error in self.receive_all([(OP_BINARY if is_binary else OP_TEXT, data)], now):
            raise error

    def receive_all(self, messages: Sequence[WsMessage], now: float) -> list[ProtocolError]:
        """
        Take data messages.

        Returns:
            What was wrong with those that are no Phoenix messages; the session is unharmed.
        """
        self._pulse.heard = True
        errors: list[ProtocolError] = []
        for message in self._serializer.decode_all(messages):
            if isinstance(message, ProtocolError):
                errors.append(message)
            elif isinstance(message, WireMessage) and message.event in ANSWERS:
                self._answered(message, now)
            elif self._is_for_us(message):
                self._events.append(message)
            else:
                self.dropped += len(message.payloads) if isinstance(message, Broadcasts) else 1
        return errors

    def _is_for_us(self, message: WireMessage | Broadcasts) -> bool:
        """Whether it is of a channel that is live here; while that is joined anew the old one still delivers."""
        channel = self._topics.get(message.topic)
        if channel is None or (channel.state is not JOINED and channel.state is not JOINING):
            return False
        join_ref = message.join_ref if isinstance(message, WireMessage) else None
        return join_ref is None or join_ref == "" or str(join_ref) == channel.join_ref

    def _answered(self, message: WireMessage, now: float) -> None:
        if message.event == PHX_REPLY:
            self._reply(message, now)
        else:
            self._ended(message)

    def _reply(self, message: WireMessage, now: float) -> None:
        ref = str(message.ref)
        pending = self._pending.get(ref)
        payload = message.payload
        if not isinstance(payload, dict):
            self.dropped += 1
            return
        latency = self._pulse.answered(ref, now) if message.topic == PHOENIX_TOPIC else None
        if latency is not None:
            self._last_heard = max(self._last_heard, int(ref))
            self._events.append(HeartbeatReplied(latency))
            self._send_joins()
            return
        status, response = words_of(payload.get("status", "")), payload.get("response")
        if pending is None or pending.topic != message.topic:
            self._stray_reply(ref, message.topic, status, response)
            return
        del self._pending[ref]
        self._last_heard = max(self._last_heard, int(ref))
        channel = self._topics.get(pending.topic)
        if pending.kind == "fence":
            self._events.append(Fenced(ref))
        elif pending.kind == "push":
            self._settle(pending, "reply", status, response)
            if channel is not None and self._says_gone(channel, ref, status, response):
                self._lose(pending.topic, channel, ChannelInput.PHX_CLOSE, UNMATCHED_TOPIC, response)
        elif pending.kind == "leave":
            self._leave_over(pending, channel, ChannelInput.LEAVE_OK)
        else:
            self._join_done(ref, now)
            self._join_answered(ref, pending.topic, channel, status, response)
            self._send_joins()

    def _stray_reply(self, ref: str, topic: str, status: str, response: Any) -> None:
        """Drop a reply that nobody awaits, unless it refuses a push of the present join: then the channel is gone."""
        channel = self._topics.get(topic)
        if channel is not None and self._says_gone(channel, ref, status, response):
            self._lose(topic, channel, ChannelInput.PHX_CLOSE, UNMATCHED_TOPIC, response)
        else:
            self.dropped += 1

    def _says_gone(self, channel: _Topic, ref: str, status: str, response: Any) -> bool:
        """Whether a reply to the push `ref` refuses one of the present join, for want of a channel."""
        return (
            channel.state is ChannelState.JOINED
            and _is_unmatched(status, response)
            and ref.isdecimal()
            and len(ref) < 20  # int() takes no string of any length
            and int(channel.join_ref) < int(ref) <= self._last_ref
        )

    def _join_answered(self, ref: str, topic: str, channel: _Topic | None, status: str, response: Any) -> None:
        if channel is None or channel.join_ref != ref or channel.queued:
            self.dropped += 1  # overtaken by a later join of the same topic
            return
        if status == "ok":
            if self._advance(channel, ChannelInput.JOIN_OK) is ChannelState.JOINED:
                self._events.append(Joined(topic, response))
        elif self._advance(channel, ChannelInput.JOIN_ERROR) is ChannelState.ERRORED:
            self._events.append(JoinFailed(topic, response, False))

    def _ended(self, message: WireMessage) -> None:
        channel = self._topics.get(message.topic)
        # Version 1 carries no join_ref; there the ref of a close is the join_ref it ends (Phoenix V1 serializer).
        ended_ref = message.join_ref or message.ref
        if channel is None or (ended_ref not in (None, "") and str(ended_ref) != channel.join_ref):
            self.dropped += 1  # the close of a channel that a later join replaced
            return
        happened = ChannelInput.PHX_CLOSE if message.event == PHX_CLOSE else ChannelInput.PHX_ERROR
        if channel.state is ChannelState.LEAVING:
            if self._advance(channel, happened) is ChannelState.CLOSED:
                self._forget(message.topic, timed_out=False)
            return
        self._lose(message.topic, channel, happened, message.event, message.payload)

    # Inside

    def _advance(self, channel: _Topic, happened: ChannelInput) -> ChannelState | None:
        state = next_state(channel.state, happened)
        if state is None:
            self.dropped += 1
            return None
        channel.state = state
        return state

    def _lose(self, topic: str, channel: _Topic, happened: ChannelInput, cause: str, payload: Any) -> None:
        before = channel.state
        if self._advance(channel, happened) is ChannelState.ERRORED and before is not ChannelState.ERRORED:
            self._unqueue(topic, channel)  # whoever wants it asks again, now that it is lost
            self._fail_pushes(topic)
            self._events.append(ChannelLost(topic, cause, payload))

    def _leave_over(self, pending: _Pending, channel: _Topic | None, how: ChannelInput) -> None:
        if channel is not None and channel.leave is pending and self._advance(channel, how) is not None:
            self._forget(pending.topic, timed_out=how is ChannelInput.LEAVE_TIMEOUT)

    def _forget(self, topic: str, *, timed_out: bool) -> None:
        del self._topics[topic]
        self._fail_pushes(topic)
        self._events.append(Left(topic, timed_out))

    def _fail_pushes(self, topic: str) -> None:
        for ref in [ref for ref, p in self._pending.items() if p.kind == "push" and p.topic == topic]:
            self._settle(self._pending.pop(ref), "lost")

    def _settle(self, pending: _Pending, outcome: str, status: str = "ok", response: Any = None) -> None:
        self._events.append(PushSettled(pending.token, outcome, status, response, pending.written))

    def _unqueue(self, topic: str, channel: _Topic) -> None:
        if channel.queued:
            channel.queued = False
            self._join_queue.remove(topic)

    def _send_joins(self) -> None:
        while self._connected and self._join_queue and len(self._joins_in_flight) < self._max_joins_in_flight:
            topic = self._join_queue.popleft()
            channel = self._topics[topic]
            channel.queued = False
            channel.join_ref = str(self._last_ref + 1)
            ref = channel.join_ref
            self._joins_in_flight[ref] = self._send("join", topic, PHX_JOIN, channel.join_body, ref)[1]

    def _send(self, kind: str, topic: str, event: str, body: Body, join_ref: str | None) -> tuple[str, _Pending]:
        ref = self._new_ref()
        self._frame(join_ref, ref, topic, event, body)
        pending = self._pending[ref] = _Pending(kind, topic)
        if kind == "leave":
            self._last_said = self._last_ref
        return ref, pending

    def _new_ref(self) -> str:
        self._last_ref += 1
        return str(self._last_ref)

    def _frame(self, join_ref: str | None, ref: str, topic: str, event: str, body: Body) -> None:
        is_binary, data = self._serializer.encode(join_ref, ref, topic, event, body)
        self._frames.append(OutgoingFrame(is_binary, data, ref, topic, event))

    def _time_pushes(self) -> None:
        untimed, self._untimed, self._untimed_due = self._untimed, [], math.inf
        for deadline, ref in untimed:
            pending = self._pending.get(ref)
            if pending is not None:
                self._arm(pending, ref, deadline)

    def _arm(self, pending: _Pending, ref: str, deadline: float) -> None:
        pending.deadline = deadline
        if len(self._timers) > 2 * len(self._pending) + 64:  # answered pushes leave their timers behind
            self._timers = [(p.deadline, r) for r, p in self._pending.items() if p.deadline is not None and r != ref]
            heapq.heapify(self._timers)
        heapq.heappush(self._timers, (deadline, ref))

    def _expire(self, ref: str, pending: _Pending, now: float) -> None:
        del self._pending[ref]
        channel = self._topics.get(pending.topic)
        if pending.kind == "push":
            self._settle(pending, "timeout")
        elif pending.kind == "leave":
            self._leave_over(pending, channel, ChannelInput.LEAVE_TIMEOUT)
        else:
            self._join_done(ref, now)
            self._pulse.hasten(now)  # is it busy, or dead?
            self._join_timed_out(ref, pending.topic, channel)
            self._send_joins()

    def _join_done(self, ref: str, now: float) -> None:
        del self._joins_in_flight[ref]
        self._time_oldest_join(now)

    def _time_oldest_join(self, now: float) -> None:
        """The server runs joins one by one: the time of each begins when the one before is done."""
        for ref, pending in self._joins_in_flight.items():
            if pending.written and pending.deadline is None:
                self._arm(pending, ref, now + self._join_timeout)
            return

    def _join_due(self, now: float) -> float | None:
        for pending in self._joins_in_flight.values():
            return now if pending.deadline is None else pending.deadline
        return None

    def _join_timed_out(self, ref: str, topic: str, channel: _Topic | None) -> None:
        if channel is None or channel.join_ref != ref or channel.queued:
            return
        if self._advance(channel, ChannelInput.JOIN_TIMEOUT) is ChannelState.ERRORED:
            # The server may still let us in later: tell it not to. Its late reply matches no ref.
            self._frame(ref, self._new_ref(), topic, PHX_LEAVE, EMPTY_OBJECT)
            self._events.append(JoinFailed(topic, None, True))


def _is_unmatched(status: str, response: Any) -> bool:
    return status == "error" and isinstance(response, dict) and response.get("reason") == UNMATCHED_TOPIC

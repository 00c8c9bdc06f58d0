"""
Recordings of a real server, played to rtpool: each client socket becomes a `Session`, each of its joins a `Join`
behind the engine's `Router`.

What the recorded client did, the session is made to do; what the server answered is fed with its refs exchanged for the
session's own and every other byte as it was. Beside each outcome stands what the second opinion expected of it.
"""

from __future__ import annotations

import functools
import json
import logging
import re
from datetime import datetime, timezone
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from rtpool.engine.joins import Join, Outage
from rtpool.engine.logs import Log
from rtpool.engine.routing import Router
from rtpool.errors import ProtocolError
from rtpool.events import Broadcast, Gap
from rtpool.protocol.messages import BROADCAST, BinaryBody, Body, JsonBody, UserBroadcast, WireMessage
from rtpool.protocol.postgres import ChangeBinding
from rtpool.protocol.presence import PresenceCalls
from rtpool.protocol.serializer import serializer_for
from rtpool.protocol.session import OutgoingFrame, Session
from rtpool.protocol.session_events import (
    ChannelLost,
    HeartbeatReplied,
    HeartbeatSent,
    Joined,
    JoinFailed,
    Left,
    PushSettled,
    SessionEvent,
)
from rtpool.registry import Attachment, Binding, Delivery, JoinConfig, Share, ShareKey, Subscriber
from tests.support.apart import apart
from tests.support.recorded_events import FEED_RESTART, Listener, bindings_of, wants_presence
from tests.support.recorded_wire import DROPPED, PUSH_TIMEOUT, Act, Frame, UserPush, Wire, client_frame, server_frame
from tests.support.transcripts import frame_of, load

__all__ = ["Outcome", "of_topic", "play", "replay", "told"]

#: A line that is written has a time, and the guard of the protocol's tests lets nobody read a clock.
OFF = logging.getLogger("replayed")
OFF.disabled = True
NOW = datetime(2026, 11, 23, tzinfo=timezone.utc)
JOIN_TIMEOUT = 30.0  # the recorded server took up to 16 s
#: Where the recorder kept only the start of a client's frame.
CUT = re.compile(r"\.\.\.\(\d+ chars\)\Z")
#: The refs at the start of a server's text frame, and what takes their place; by the version's first digit.
HEADS = {
    "1": (re.compile(rb'\{"ref":(null|"[^"]*"|\d+),'), '{{"ref":{1},'),
    "2": (re.compile(rb'\[(null|"[^"]*"|\d+),(null|"[^"]*"|\d+),'), "[{0},{1},"),
}


class Outcome(NamedTuple):
    """
    What one line of a recording came to, and what it was expected to come to.

    Attributes:
        act: what a client's frame was, `sent` what the session sent in its place, told in the recording's refs.
        told, expected: what the session said.
        dropped, expected_dropped: messages it counted as dropped.
        unparsed, expected_unparsed: whether it could not be read.
        states, expected_states: of the topics that are not closed.
        heard, expected_heard: what the users got.
        changes, expected_changes: the table bindings named with each change.
        present, expected_present: who is present in each room that cares.
    """

    line: dict[str, Any]
    vsn: str
    act: Act | None
    sent: list[Frame]
    told: list[tuple[Any, ...]]
    expected: list[tuple[Any, ...]]
    dropped: int
    expected_dropped: int
    unparsed: ProtocolError | None
    expected_unparsed: bool
    states: dict[str, str]
    expected_states: dict[str, str]
    heard: list[Any]
    expected_heard: list[Any]
    changes: list[set[tuple[Any, ...]]]
    expected_changes: list[set[tuple[Any, ...]]]
    present: dict[str, Any]
    expected_present: dict[str, Any]


class _Users:
    """The dispatcher's place, and the one user of every join."""

    def __init__(self, *, supabase: bool) -> None:
        self.router = Router(self, lambda: NOW, supabase=supabase, log=Log(OFF))
        self.plain = not supabase
        self.rooms: dict[str, Join] = {}
        self._heard: list[Delivery] = []

    def deliver(self, batch: list[tuple[Any, list[Delivery]]]) -> list[Any]:
        for _, deliveries in batch:
            self._heard += [
                Delivery(BROADCAST, item.event, item) if isinstance(item, Broadcast) else item for item in deliveries
            ]
        return []

    def deliver_essential(self, mailbox: Any, run: Any, delivery: Delivery) -> None:
        self._heard.append(delivery)

    def heard(self) -> list[Delivery]:
        self.router.flush()
        heard, self._heard = self._heard, []
        return heard

    def run(self, delivery: Delivery) -> None:
        raise AssertionError("nothing runs here")

    def asks(self, topic: str, payload: Any) -> None:
        """A join is asked for: as in the engine, who is present outlives it."""
        bindings = [
            ChangeBinding(b["event"], b.get("schema") or "", b.get("table"), b.get("filter"), _columns(b))
            for b in bindings_of(payload)
        ]
        presence = self.plain or wants_presence(payload)
        before = self.rooms.get(topic)
        subscriber = before.members[0] if before is not None else self._subscriber(topic)
        kinds = ["broadcast", "gap", "system", "raw", *(["presence"] if presence else [])]
        subscriber.bindings = (
            *(Binding(kind, "*", print) for kind in kinds),
            *(Binding("postgres_changes", b.event, print, b) for b in bindings),
        )
        join = Join(
            share=before.share if before is not None else subscriber.attachment.share,
            source=None,
            presence_calls=PresenceCalls(5, 30.0),
            members=(subscriber,),
            config=JoinConfig(presence=presence, changes=tuple(bindings)),
        )
        if before is not None:
            join.presence = before.presence
            join.presence.rejoined()
            join.ids = before.ids  # the old channel delivers until the new one is there
        self.rooms[topic] = join

    def _subscriber(self, topic: str) -> Subscriber:
        subscriber = Subscriber(topic, ShareKey(topic))
        subscriber.mailbox = self
        subscriber.attachment = Attachment(Share(subscriber.key))
        subscriber.attachment.ready.set_result(None)
        return subscriber

    def told(self, event: SessionEvent) -> None:
        """What the engine's coordinator does with it, as far as users hear of it."""
        if isinstance(event, Joined):
            self.rooms[event.topic].answered = True
            self.router.joined(self.rooms[event.topic], event.response)
        elif isinstance(event, WireMessage):
            join = self.rooms[event.topic]
            self.router.route(join, event)
            if join.changes_restarted:
                join.changes_restarted = False
                self.router.announce_gap(join, join.members[0], Outage("feed restart", NOW))
        elif isinstance(event, Left):
            del self.rooms[event.topic]


def _columns(binding: dict[str, Any]) -> tuple[str, ...] | None:
    select = binding.get("select")
    return tuple(select) if isinstance(select, list) else None


class _Socket:
    """One client socket: the session in its place, the users behind it, and the second opinion."""

    def __init__(self, vsn: str, *, plain: bool, heartbeat_interval: float) -> None:
        self.vsn = vsn
        self.session = Session(
            serializer_for(vsn),
            heartbeat_interval=heartbeat_interval,
            heartbeat_timeout=10.0,
            join_timeout=JOIN_TIMEOUT,
            max_joins_in_flight=1_000,
        )
        self.users = _Users(supabase=not plain)
        self.wire = Wire()
        self.listeners: dict[str, Listener] = {}
        self._refs: dict[str, str] = {}  # recorded to the session's
        self._join_refs: dict[str, str] = {}

    def take(self, line: dict[str, Any], token: int) -> Outcome:
        """Play one line; `token` names what it pushes."""
        act, sent, expected, unparsed, unreadable = None, [], [], None, False
        dropped = self.session.dropped
        if line["dir"] == "open":
            expected = self.open(line["t"])
        elif line["dir"] == "close":
            expected = self.close()
        elif line["dir"] == ">":
            act, sent, expected = self.act(line, token)
        else:
            unparsed, expected, unreadable = self.hear(line)
        told = apart(self.session.events())
        for event in told:
            self.users.told(event)
        heard = self.users.heard()
        expected_told = [e for e in expected if e != DROPPED]
        hoped, hoped_changes = self.hoped(expected_told)
        cares = [topic for topic, listener in self.listeners.items() if listener.presence]
        return Outcome(
            line=line,
            vsn=self.vsn,
            act=act,
            sent=sent,
            told=[_told(event) for event in told],
            expected=expected_told,
            dropped=self.session.dropped - dropped,
            expected_dropped=len(expected) - len(expected_told),
            unparsed=unparsed,
            expected_unparsed=unreadable,
            states={topic: str(self.session.state(topic)) for topic in self.session.topics},
            expected_states=self.wire.phases(),
            heard=[_same_event(delivery.event) for delivery in heard],
            expected_heard=hoped,
            changes=[{_shape(b.event, b.to_wire()) for b in d.changes} for d in heard if d.kind == "postgres_changes"],
            expected_changes=hoped_changes,
            present={topic: dict(self.users.rooms[topic].share.presence) for topic in cares},
            expected_present={topic: self.listeners[topic].state() for topic in cares},
        )

    # What the client does

    def open(self, now: float) -> list[tuple[Any, ...]]:
        expected = self.close()  # the recorder missed the end of a few
        self.wire.connected = True
        self._refs.clear()
        self._join_refs.clear()
        self.session.connected(now)
        return expected

    def close(self) -> list[tuple[Any, ...]]:
        if not self.wire.connected:
            return []
        self.session.disconnected()
        return self.wire.disconnect()

    def act(self, line: dict[str, Any], token: int) -> tuple[Act, list[Frame], list[tuple[Any, ...]]]:
        now = line["t"]
        act = self.wire.act(*self._recorded(line), self.vsn, now, token)
        expected = [*self.wire.expired(now), ("heartbeat sent",)] if act.kind == "heartbeat" else []
        if act.kind == "push" and not act.wants_reply:
            expected.append(("settled", token, "sent", "ok", None))
        getattr(self, f"_{act.kind}")(act, now, token)
        return act, [self._sent(frame, act, now) for frame in self.session.frames_to_send()], expected

    def _recorded(self, line: dict[str, Any]) -> tuple[bytes, bool]:
        raw = line.get("raw")
        if raw is None or not CUT.search(raw):
            recorded = frame_of(line)
            assert recorded is not None, "the recorder lost only frames of the server"
            return recorded
        head = CUT.sub("", raw)  # what was sent is of no matter, how long it was neither
        topic = json.loads(head.partition('"topic":')[2].partition(",")[0]) if self.vsn.startswith("1") else ""
        refs = {"ref": str(max(map(int, self._refs)) + 1), "join_ref": topic and self.wire.rooms[topic].join_ref}
        tail = f'"}}}},{json.dumps(refs)[1:]}' if topic else '"}}]'
        return f"{head}{tail}".encode(), False

    def _foreign(self, act: Act, now: float, token: int) -> None:
        """Nothing: but where the session could be asked, it says no."""
        frame = act.frame
        if act.reason == "not joined" and frame is not None and frame.event != "phx_leave":
            body = JsonBody(b"{}")
            deadline = now + PUSH_TIMEOUT
            assert not self.session.push(
                frame.topic, frame.event, body, token=None, wants_reply=True, deadline=deadline, now=now
            )

    def _join(self, act: Act, now: float, token: int) -> None:
        assert act.frame is not None
        _, _, topic, _, payload = act.frame
        self.users.asks(topic, payload)
        self.listeners.setdefault(topic, Listener(topic, plain=self.users.plain)).joins(payload)
        self.session.join(topic, JsonBody(json.dumps(payload).encode()), now)

    def _leave(self, act: Act, now: float, token: int) -> None:
        assert act.frame is not None
        self.session.leave(act.frame.topic, now)

    def _push(self, act: Act, now: float, token: int) -> None:
        assert act.frame is not None
        _, _, topic, event, payload = act.frame
        body: Body
        if isinstance(payload, UserPush):
            body = UserBroadcast(*payload)
        elif isinstance(payload, bytes):
            body = BinaryBody(payload)
        else:
            body = JsonBody(json.dumps(payload).encode())
        assert self.session.push(
            topic, event, body, token=token, wants_reply=act.wants_reply, deadline=now + PUSH_TIMEOUT, now=now
        )

    def _heartbeat(self, act: Act, now: float, token: int) -> None:
        self.session.tick(now)

    def _sent(self, outgoing: OutgoingFrame, act: Act, now: float) -> Frame:
        """What the session sent, in the recording's refs; from here on the two refs are one."""
        frame = client_frame(outgoing.data, outgoing.is_binary, self.vsn)
        assert act.frame is not None
        assert frame.ref == outgoing.ref
        self._refs[act.frame.ref] = frame.ref
        if act.kind == "join":
            self._join_refs[act.frame.ref] = frame.ref
        self.session.frame_written(frame.ref, now)
        back = {mine: theirs for theirs, mine in self._join_refs.items()}
        return frame._replace(ref=act.frame.ref, join_ref=back.get(frame.join_ref, frame.join_ref))

    # What the server says

    def hear(self, line: dict[str, Any]) -> tuple[ProtocolError | None, list[tuple[Any, ...]], bool]:
        recorded = frame_of(line)
        if recorded is None:
            return None, [], False
        data, is_binary = recorded
        try:
            frame = server_frame(data, is_binary, self.vsn)
        except ValueError:
            frame = None
        expected = [] if frame is None else self.wire.hear(frame, line["t"])
        try:
            self.session.receive(self._translated(data, is_binary, frame), is_binary, line["t"])
        except ProtocolError as error:
            return error, expected, frame is None
        return None, expected, frame is None

    def _translated(self, data: bytes, is_binary: bool, frame: Frame | None) -> bytes:
        if frame is None:
            return data
        ends_a_join = frame.event in ("phx_close", "phx_error")
        ref = _exchanged(frame.ref, self._join_refs if ends_a_join else self._refs)
        join_ref = _exchanged(frame.join_ref, self._join_refs)
        if is_binary:
            return _translated_binary(data, join_ref, ref)
        old, new = HEADS[self.vsn[0]]
        head = old.match(data)
        assert head is not None, data
        return new.format(json.dumps(join_ref), json.dumps(ref)).encode() + data[head.end() :]

    def hoped(self, expected: list[tuple[Any, ...]]) -> tuple[list[Any], list[set[tuple[Any, ...]]]]:
        """What the users ought to hear, and which bindings each change ought to name."""
        events, changes = [], []
        for kind, *words in expected:
            topic, *rest = words or [""]
            if kind == "joined":
                self.listeners[topic].joined(rest[0])
            elif kind == "left":
                del self.listeners[topic]
            elif kind == "received":
                listener, event, payload = self.listeners[topic], rest[0], rest[1]
                heard = listener.hears(event, payload)
                events += heard
                if heard and event == "postgres_changes":
                    changes.append({_shape(b["event"], b) for b in listener.matching(payload)})
        return events, changes


def _exchanged(ref: Any, known: dict[str, str]) -> Any:
    """The session's ref, or one that no session has in place of a stranger's."""
    if ref is None or ref in known:
        return ref and known[ref]
    return f"stranger-{ref}" if isinstance(ref, str) else 10**9 + ref


def _translated_binary(data: bytes, join_ref: Any, ref: Any) -> bytes:
    if data[0] > 1:
        return data  # only pushes and replies carry refs
    new = [(value or "").encode() for value in ((join_ref, ref) if data[0] == 1 else (join_ref,))]
    names = data[1 + len(new) : (4, 5)[data[0]]]
    body = data[(4, 5)[data[0]] + sum(data[1 : 1 + len(new)]) :]
    return bytes((data[0], *map(len, new))) + names + b"".join(new) + body


def _shape(event: str, binding: dict[str, Any]) -> tuple[Any, ...]:
    return (event, binding.get("schema") or "", binding.get("table"), binding.get("filter"), _columns(binding))


def _told(event: SessionEvent) -> tuple[Any, ...]:
    """A session's event in the words of the second opinion."""
    if isinstance(event, Joined):
        return ("joined", *event)
    if isinstance(event, JoinFailed):
        return ("timed out" if event.timed_out else "refused", event.topic, event.response)
    if isinstance(event, ChannelLost):
        return ("lost", *event)
    if isinstance(event, Left):
        return ("left", event.topic)
    if isinstance(event, PushSettled):
        return ("settled", event.token, event.outcome, event.status, event.response)
    if isinstance(event, HeartbeatReplied):
        return ("heartbeat", event.latency)
    if isinstance(event, WireMessage):
        return ("received", *event[2:])
    return ("heartbeat sent",) if isinstance(event, HeartbeatSent) else ("heartbeat lost", event.waited)


def _vsn(line: dict[str, Any], default: str) -> str:
    """The protocol version a socket was opened with; a server takes a missing one for 1.0.0."""
    asked = parse_qs(urlsplit(line["uri"]).query).get("vsn", ["1.0.0"])[0] if "uri" in line else default
    return asked.rpartition(".")[0] + ".0"  # 1.0.1 is spoken as 1.0.0


def _same_event(event: Any) -> Any:
    return FEED_RESTART if isinstance(event, Gap) and event.cause == "feed restart" else event


def play(lines: list[dict[str, Any]], *, plain: bool, heartbeat_interval: float = 0.0) -> list[Outcome]:
    """
    Play the lines of a recording.

    Args:
        lines: the recording's.
        plain: whether the server is plain Phoenix.
        heartbeat_interval: the sessions'. They are ticked when the recorded client sends a heartbeat, so with 0 they
            send one whenever it did.

    Returns:
        The outcomes of its sockets' lines, in order.
    """
    sockets: dict[str, _Socket] = {}
    outcomes = []
    for index, line in enumerate(lines):
        name = line.get("c")
        if line["dir"] == "open":
            vsn = _vsn(line, lines[0].get("vsn", "1.0.0"))
            if name not in sockets or sockets[name].vsn != vsn:
                sockets[name] = _Socket(vsn, plain=plain, heartbeat_interval=heartbeat_interval)
        if line["dir"] in ("open", "close", ">", "<") and name in sockets:
            outcomes.append(sockets[name].take(line, index))
    return outcomes


@functools.cache
def replay(name: str) -> list[Outcome]:
    """Play a recording by its name."""
    return play(load(name), plain=name.startswith("15_"))


def of_topic(outcomes: list[Outcome], topic: str, socket: str | None = None) -> list[Any]:
    """What the users of a topic heard, on one socket or on all."""
    return [
        event
        for outcome in outcomes
        if socket in (None, outcome.line["c"])
        for event in outcome.heard
        if getattr(event, "topic", None) == topic
    ]


def told(outcomes: list[Outcome], kind: str) -> list[tuple[Any, ...]]:
    """What sessions said of one kind: ``joined refused lost left settled received heartbeat``."""
    return [event for outcome in outcomes for event in outcome.told if event[0] == kind]

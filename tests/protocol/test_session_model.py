"""
The session against a model server, over a line that delays, loses, repeats and reorders, in any order of things.

Three parties: the session; `ModelServer`, which knows the truth; and a `Belief` for each topic, which is what a client
must hold by the protocol's rules, going by nothing but what was asked, what was sent and what was delivered. The
session must say what the beliefs say, at once. While the line was merely slow it must, once all has arrived, also agree
with the server.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rtpool.errors import ProtocolError
from rtpool.events import ChannelState
from rtpool.protocol.frames import OP_CLOSE, FrameDecoder, close_code
from rtpool.protocol.heartbeat import PATIENCE
from rtpool.protocol.messages import JsonBody, WireMessage
from rtpool.protocol.refusals import classify_close
from rtpool.protocol.serializer import serializer_for
from rtpool.protocol.session import Session
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
from tests.support.apart import apart
from tests.support.model_server import Frame, ModelServer, decode, encode

INTERVAL, TIMEOUT, JOIN_TIMEOUT = 25.0, 10.0, 10.0
TOPICS = ["realtime:a", "realtime:b", "realtime:c"]
#: Frames of connections before that are kept, to come again.
MAX_STALE = 30
BROKEN = [b"", b"{", b"[]", b"[1,2,3]", b'{"topic":1}', b"\xff", b'[null,null,1,"e",{}]']

topics = st.sampled_from(TOPICS)
events = st.sampled_from(["ask", "refuse", "mute"])
seconds = st.sampled_from([0.5, 1.0, 3.0, 9.5, 10.0])


@pytest.fixture(autouse=True)
def nothing_but_arguments() -> None:
    """The module's own tests are watched; watched, this one would take ten times as long."""


@attrs.define(eq=False)
class Belief:
    """What is to be held of a topic. `ref` is that of the newest join sent; `waiting`: another has not gone out yet."""

    state: ChannelState
    ref: str = ""
    waiting: bool = False
    leave: str | None = None


@attrs.define(eq=False)
class Sent:
    """A push, and how it ended."""

    topic: str
    ref: str
    deadline: float
    wants_reply: bool
    tells_sent: bool
    written: bool = False
    outcomes: list[str] = attrs.field(factory=list)

    @property
    def is_over(self) -> bool:
        return any(o != "sent" or not self.wants_reply for o in self.outcomes)


class SessionModel(RuleBasedStateMachine):
    """`kernel` is what was handed over and not written, `line` what the server said and did not arrive yet."""

    @initialize(vsn=st.sampled_from(["1.0.0", "2.0.0"]), strict=st.booleans(), in_flight=st.integers(1, 3))
    def begin(self, vsn: str, strict: bool, in_flight: int) -> None:
        self.vsn, self.strict, self.max_in_flight = vsn, strict, in_flight
        self.session = Session(
            serializer_for(vsn),
            heartbeat_interval=INTERVAL,
            heartbeat_timeout=TIMEOUT,
            join_timeout=JOIN_TIMEOUT,
            max_joins_in_flight=in_flight,
        )
        self.now = 0.0
        self.online = self.faulty = False
        self.beliefs: dict[str, Belief] = {}
        self.queue: list[str] = []  # topics whose join waits
        self.joins: dict[str, tuple[str, float | None]] = {}  # in flight: ref -> topic, until when
        self.leaves: dict[str, tuple[str, float | None]] = {}
        self.fences: set[str] = set()
        self.pushes: dict[int, Sent] = {}
        self.kernel: deque[tuple[str, bytes]] = deque()
        self.line: deque[Frame] = deque()
        self.delivered: list[Frame] = []
        self.stale: deque[Frame] = deque(maxlen=MAX_STALE)
        self.last_ref = self.most_pending = 0
        self.written: set[str] = set()
        self.server = ModelServer(vsn, strict=strict)
        self.connect()

    # What a user and the machine do

    @precondition(lambda self: not self.online)
    @rule(ask_again=st.booleans())
    def come_back(self, ask_again: bool) -> None:
        self.connect()
        for topic in list(self.beliefs) * ask_again:
            self.join(topic)

    def connect(self) -> None:
        self.online, self.faulty = True, False
        self.server = ModelServer(self.vsn, strict=self.strict)
        self.written = set()
        self.beat: tuple[str, float] | None = None  # ref of the heartbeat that is out, and when it was sent
        self.beat_written: float | None = None
        self.heard = self.joined_since = self.excused = False
        self.asked_at = self.now  # the latest sign that starts the interval
        self.session.connected(self.now)
        self.settle([])

    def lose_the_connection(self) -> None:
        expected = [self.end(token, "lost") for token, push in self.pushes.items() if not push.is_over]
        for topic, belief in list(self.beliefs.items()):
            belief.waiting, belief.ref = False, ""
            if belief.state is ChannelState.LEAVING:
                del self.beliefs[topic]
                expected.append(Left(topic, False))
            else:
                belief.state = ChannelState.ERRORED
        self.queue.clear()
        for things in (self.joins, self.leaves, self.fences, self.kernel):
            things.clear()  # type: ignore[attr-defined]
        # A made-up answer to a ref that is yet to be given would be taken for a right one later.
        said = (f for f in (*self.line, *self.server.said, *self.delivered) if has_ref(f))
        self.stale.extend(f for f in said if not str(f.ref).isdecimal() or int(f.ref) <= self.last_ref)
        self.line.clear()
        self.delivered.clear()
        self.online, self.beat = False, None
        self.session.disconnected()
        self.settle(expected, in_order=False)

    @precondition(lambda self: self.online and self.delivered)
    @rule(code=st.sampled_from([1000, 1001, 1006, 1009, 1011, 1012]), arrives=st.booleans(), back=st.booleans())
    def the_connection_ends(self, code: int, arrives: bool, back: bool) -> None:
        """What the server said before may arrive first; the client comes back whatever the code."""
        if code == 1006:  # without a word, and we were about to say something
            self.session.fence(self.now)
            self.last_ref += 1
        else:
            if arrives:
                self.let_arrive(1_000)
            wire = bytes((0x80 | OP_CLOSE, 2)) + code.to_bytes(2, "big")
            assert FrameDecoder(100).receive(wire) == [(OP_CLOSE, wire[2:])]
            assert close_code(wire[2:]) == code
            assert classify_close(code).retryable
        self.lose_the_connection()
        if back:
            self.come_back(True)

    @precondition(lambda self: self.online)
    @rule(topic=topics)
    def join(self, topic: str) -> None:
        belief = self.beliefs.get(topic)
        if belief is not None and belief.state is ChannelState.LEAVING:
            with pytest.raises(RuntimeError):
                self.session.join(topic, JsonBody(b"{}"), self.now)
            self.session.dropped -= 1
            return self.settle([])
        belief = self.beliefs.setdefault(topic, Belief(ChannelState.CLOSED))
        belief.state = ChannelState.JOINING
        if not belief.waiting:
            belief.waiting = True
            self.queue.append(topic)
        self.session.join(topic, JsonBody(b"{}"), self.now)
        return self.settle([])

    @precondition(lambda self: self.online)
    @rule(asked=st.sets(topics, min_size=1))
    def be_let_in(self, asked: set[str]) -> None:
        """The usual case, without which few would get far."""
        for topic in sorted(asked):
            self.join(topic)
        self.come_to_rest()

    @precondition(lambda self: self.beliefs)
    @rule(topic=topics)
    def leave(self, topic: str) -> None:
        belief = self.beliefs.get(topic)
        expected: list[SessionEvent] = []
        if belief is not None and belief.state is not ChannelState.LEAVING:
            never_sent = not belief.ref
            known = belief.state is not ChannelState.ERRORED and not never_sent
            if belief.waiting:
                self.queue.remove(topic)
                belief.waiting = False
            if known and self.online:
                belief.state, belief.leave = ChannelState.LEAVING, str(self.last_ref + 1)
                self.leaves[belief.leave] = topic, None
            else:
                expected = self.forget(topic, timed_out=False)
        self.session.leave(topic, self.now)
        self.settle(expected)

    @precondition(lambda self: self.beliefs)
    @rule(data=st.data(), event=events, wants_reply=st.booleans(), tells_sent=st.booleans(), count=st.integers(1, 3))
    def push(self, data: st.DataObject, event: str, wants_reply: bool, tells_sent: bool, count: int) -> None:
        joined = [t for t, belief in self.beliefs.items() if belief.state is ChannelState.JOINED]
        topic = data.draw(st.sampled_from(sorted((self.online and joined) or self.beliefs)))
        may = self.online and topic in joined
        for _ in range(count):
            token, deadline = len(self.pushes), self.now + data.draw(st.sampled_from([60.0, 10.0, 3.0, 0.0, -1.0]))
            if may:
                self.pushes[token] = Sent(topic, str(self.last_ref + 1), deadline, wants_reply, tells_sent)
            words = {"token": token, "wants_reply": wants_reply, "tells_sent": tells_sent, "deadline": deadline}
            assert self.session.push(topic, event, JsonBody(b"{}"), now=self.now, **words) is may  # type: ignore[arg-type]
            self.settle([])

    @precondition(lambda self: self.online)
    @rule(what=st.sampled_from(["fence", "doubt", "read_nothing_for_a_while"]))
    def ask_for(self, what: str) -> None:
        getattr(self, what)()

    def fence(self) -> None:
        ref = self.session.fence(self.now)
        assert ref == str(self.last_ref + 1)
        self.fences.add(ref)
        self.settle([])

    def doubt(self) -> None:
        self.session.probe(self.now)
        self.excused = True
        self.settle([])

    def read_nothing_for_a_while(self) -> None:
        for ref, (topic, until) in self.joins.items():
            if until is not None:
                self.joins[ref] = topic, self.now + JOIN_TIMEOUT
            break
        if self.beat and self.beat_written is not None and self.now >= self.beat_written + TIMEOUT:
            self.excused = True  # it may be given up for another
        self.session.not_reading(self.now)
        self.settle([])

    @precondition(lambda self: self.kernel)
    @rule(count=st.integers(1, 6))
    def write(self, count: int) -> None:
        for _ in range(min(count, len(self.kernel))):
            ref, data = self.kernel.popleft()
            self.server.take(data)
            self.written.add(ref)
            expected: list[SessionEvent] = []
            if self.beat and ref == self.beat[0]:
                self.beat_written, self.heard, self.joined_since = self.now, False, bool(self.joins)
            elif ref in self.leaves:
                self.leaves[ref] = self.leaves[ref][0], self.now + JOIN_TIMEOUT
            for token, push in self.pushes.items():
                if push.ref == ref and not push.is_over:
                    push.written = True
                    if push.tells_sent or not push.wants_reply:
                        expected.append(self.end(token, "sent"))
            self.session.frame_written(ref, self.now)
            self.settle(expected)

    @rule(passed=seconds)
    def let_time_pass(self, passed: float) -> None:
        self.now += passed
        self.tick()

    @precondition(lambda self: self.session.next_deadline() is not None)
    @rule()
    def sleep_until_something_is_due(self) -> None:
        due = self.session.next_deadline()
        assert due is not None
        before = self.session.dropped
        self.now = max(self.now, due)
        frames, events = len(self.kernel), self.events_seen
        self.tick()
        then = self.session.next_deadline()
        worked = len(self.kernel) > frames or self.events_seen > events or self.session.dropped > before
        assert worked or then is None or then > due, "woken for nothing, and again at once"

    def tick(self) -> None:
        expected: list[SessionEvent] = []
        for token, push in self.pushes.items():
            if not push.is_over and push.deadline <= self.now:
                expected.append(self.end(token, "timeout"))
        for ref, (topic, until) in list(self.leaves.items()):
            if until is not None and until <= self.now:
                del self.leaves[ref]
                if topic in self.beliefs and self.beliefs[topic].leave == ref:
                    expected += self.forget(topic, timed_out=True)
        for ref, (topic, until) in list(self.joins.items()):
            if until is not None and until <= self.now:
                del self.joins[ref]
                self.excused = True
                belief = self.beliefs.get(topic)
                if belief and belief.ref == ref and belief.state is ChannelState.JOINING and not belief.waiting:
                    belief.state = ChannelState.ERRORED
                    expected.append(JoinFailed(topic, None, True))
            break
        self.session.tick(self.now)
        self.settle(expected, in_order=False)
        due = self.session.next_deadline()
        assert due is None or due > self.now, "what is due is done"

    # What the server does

    @precondition(lambda self: self.server.unread and self.server.joining is None)
    @rule(count=st.integers(1, 6))
    def the_server_reads(self, count: int) -> None:
        for _ in range(count):
            self.server.read()
        self.line_up()

    @precondition(lambda self: self.server.joining is not None)
    @rule(reason=st.sampled_from([None, None, None, "Unauthorized: no", "join crashed"]))
    def the_server_answers_a_join(self, reason: str | None) -> None:
        self.server.answer_join(reason)
        self.line_up()

    @precondition(lambda self: self.online and self.server.channels)
    @rule(data=st.data(), words=st.lists(st.sampled_from(["broadcast", "tell"]), max_size=3), ends=st.booleans())
    def the_server_speaks(self, data: st.DataObject, words: list[str], ends: bool) -> None:
        topic = data.draw(st.sampled_from(sorted(self.server.channels)))
        for word in words:
            getattr(self.server, word)(topic)
        if ends and data.draw(st.booleans()):
            self.server.crash(topic)
        elif ends:
            self.server.shut_down(topic, "Too many messages per second")
        self.line_up()

    def line_up(self) -> None:
        self.line.extend(self.server.said)
        self.server.said.clear()

    # What the line does

    @precondition(lambda self: self.line)
    @rule(count=st.integers(1, 9))
    def let_arrive(self, count: int) -> None:
        for _ in range(min(count, len(self.line))):
            self.deliver(self.line.popleft())

    @precondition(lambda self: self.kernel or self.server.unread or self.line)
    @rule()
    def let_all_but_joins_through(self) -> None:
        """Whatever is under way goes on until the server has a join to decide on."""
        while (self.kernel or self.server.unread or self.line) and self.server.joining is None:
            self.step()

    @precondition(lambda self: self.online)
    @rule(data=st.data(), count=st.integers(1, 4))
    def be_unreliable(self, data: st.DataObject, count: int) -> None:
        for _ in range(count):
            ways = [self.arrive_broken, self.arrive_though_nobody_said_it, self.arrive_though_nobody_said_it]
            ways += [self.overtake, self.get_lost] * (2 * bool(self.line))
            ways += [self.arrive_again] * (2 * bool(self.delivered))
            ways += [self.arrive_from_a_connection_before] * (2 * bool(self.stale))
            data.draw(st.sampled_from(ways))(data)

    def overtake(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.line) - 1))
        self.faulty = self.faulty or index > 0
        frame = self.line[index]
        del self.line[index]
        self.deliver(frame)

    def get_lost(self, data: st.DataObject) -> None:
        self.faulty = True
        del self.line[data.draw(st.integers(0, len(self.line) - 1))]

    def arrive_again(self, data: st.DataObject) -> None:
        self.faulty = True
        frame = data.draw(st.sampled_from(self.delivered[-12:]))
        if isinstance(frame.ref, str) and frame.ref.isdecimal() and data.draw(st.booleans()):
            frame = frame._replace(ref=int(frame.ref))
        self.deliver(frame)

    def arrive_from_a_connection_before(self, data: st.DataObject) -> None:
        before = {topic: attrs.astuple(belief) for topic, belief in self.beliefs.items()}
        events = self.events_seen
        self.deliver(data.draw(st.sampled_from(list(self.stale))))
        assert before == {topic: attrs.astuple(belief) for topic, belief in self.beliefs.items()}
        assert self.events_seen == events, "it had an effect"

    def arrive_though_nobody_said_it(self, data: st.DataObject) -> None:
        """Replies with the ref of something else, or of nothing, or without sense."""
        self.faulty = True
        awaited = [p.ref for p in self.pushes.values() if not p.is_over]
        awaited += [*self.joins, *self.leaves, *self.fences, *([self.beat[0]] if self.beat else [])]
        ref = data.draw(st.sampled_from([*awaited, str(self.last_ref + 1), "0", None, "", "x", "9" * 30]))
        unmatched = {"status": "error", "response": {"reason": "unmatched topic"}}
        payload = data.draw(st.sampled_from([{"status": "ok", "response": {}}, unmatched, {}, None, []]))
        self.deliver(Frame(None, ref, data.draw(topics | st.just("phoenix")), "phx_reply", payload))

    def arrive_broken(self, data: st.DataObject) -> None:
        with pytest.raises(ProtocolError):
            self.session.receive(data.draw(st.sampled_from(BROKEN)), False, self.now)
        self.heard = True
        self.settle([])

    @precondition(lambda self: self.online)
    @rule()
    def all_arrives(self) -> None:
        """When nothing is under way any more, both ends agree; after an odd line only on a connection of its own."""
        if self.faulty:
            wanted = [t for t, belief in self.beliefs.items() if belief.state is not ChannelState.LEAVING]
            self.lose_the_connection()
            self.connect()
            for topic in wanted:
                self.join(topic)
        self.come_to_rest()
        if not self.online:
            return
        states = {topic: self.session.state(topic) for topic in TOPICS}
        assert {t for t, s in states.items() if s is ChannelState.JOINED} == set(self.server.channels)
        assert {topic: self.beliefs[topic].ref for topic in self.server.channels} == self.server.channels
        assert set(states.values()) <= {ChannelState.JOINED, ChannelState.ERRORED, ChannelState.CLOSED}
        assert self.server.ignored == 0, "the server let something of ours fall"
        assert self.session.joins_available == self.max_in_flight
        if not self.faulty:
            muted = [p for p in self.pushes.values() if not p.is_over]
            assert len(self.session._pending) == len(muted)

    def come_to_rest(self) -> None:
        for _ in range(1_000):
            if self.server.joining is not None:
                self.the_server_answers_a_join(None)
            elif not self.step():
                return
        raise AssertionError("it never comes to rest")

    def step(self) -> bool:
        """Let what is under way go one station further; False when nothing is."""
        if self.kernel:
            self.write(100)
        elif self.server.unread:
            self.the_server_reads(100)
        elif self.line:
            self.let_arrive(100)
        else:
            return False
        return True

    # What must follow

    def deliver(self, frame: Frame) -> None:
        self.delivered.append(frame)
        self.heard = True
        dropped = self.session.dropped
        expected = self.believe(frame)
        self.session.receive(encode(frame, self.vsn), False, self.now)
        if expected is None:
            assert self.session.dropped == dropped + 1, "dropped, and not counted"
        self.settle(expected or [])

    def believe(self, frame: Frame) -> list[SessionEvent] | None:
        """What a message means by the protocol's rules; None: nothing, and that is counted."""
        if frame.event == "phx_reply":
            return self.believe_reply(frame)
        belief = self.beliefs.get(frame.topic)
        if belief is None:
            return None
        if frame.event in ("phx_close", "phx_error"):
            ended = frame.join_ref or frame.ref
            if ended and str(ended) != belief.ref:
                return None
            if belief.state is ChannelState.LEAVING:
                return self.forget(frame.topic, timed_out=False) if frame.event == "phx_close" else []
            if belief.state is ChannelState.ERRORED:
                return [] if frame.event == "phx_close" else None
            return self.lose(frame.topic, belief, frame.event, frame.payload)
        if frame.join_ref and str(frame.join_ref) != belief.ref:
            return None
        if belief.state not in (ChannelState.JOINING, ChannelState.JOINED):
            return None
        return [WireMessage(*frame)]

    def believe_reply(self, frame: Frame) -> list[SessionEvent] | None:
        ref, topic, payload = str(frame.ref), frame.topic, frame.payload
        if not isinstance(payload, dict):
            return None
        if topic == "phoenix" and self.beat and ref == self.beat[0]:
            latency, self.beat = self.now - self.beat[1], None
            self.asked_at, self.excused = self.now, False
            return [HeartbeatReplied(latency)]
        if topic == "phoenix" and ref in self.fences:
            self.fences.discard(ref)
            return [Fenced(ref)]
        status, response = str(payload.get("status")), payload.get("response")
        belief = self.beliefs.get(topic)
        gone = (
            (status, response) == ("error", {"reason": "unmatched topic"})
            and belief is not None
            and belief.state is ChannelState.JOINED
            and ref.isdecimal()
            and int(belief.ref) < int(ref) <= self.last_ref
        )
        for token, push in self.pushes.items():
            if push.ref == ref and push.topic == topic and not push.is_over:
                done = [self.end(token, "reply", status, response)]
                return done + (self.lose(topic, belief, "unmatched topic", response) if belief and gone else [])
        if ref in self.leaves and self.leaves[ref][0] == topic:
            del self.leaves[ref]
            is_its_own = belief is not None and belief.leave == ref  # the channel may have ended before, and be back
            return self.forget(topic, timed_out=False) if is_its_own else []
        if ref in self.joins and self.joins[ref][0] == topic:
            del self.joins[ref]
            return self.believe_join(ref, belief, topic, status, response)
        return self.lose(topic, belief, "unmatched topic", response) if belief and gone else None

    def believe_join(
        self, ref: str, belief: Belief | None, topic: str, status: str, response: Any
    ) -> list[SessionEvent] | None:
        if belief is None or belief.ref != ref or belief.waiting or belief.state is ChannelState.ERRORED:
            return None
        if belief.state is ChannelState.LEAVING:
            return []
        if status == "ok":
            belief.state = ChannelState.JOINED
            return [Joined(topic, response)]
        belief.state = ChannelState.ERRORED
        return [JoinFailed(topic, response, False)]

    def lose(self, topic: str, belief: Belief, cause: str, payload: Any) -> list[SessionEvent]:
        belief.state = ChannelState.ERRORED
        if belief.waiting:
            belief.waiting = False
            self.queue.remove(topic)
        return [*self.lose_pushes(topic), ChannelLost(topic, cause, payload)]

    def forget(self, topic: str, *, timed_out: bool) -> list[SessionEvent]:
        del self.beliefs[topic]
        return [*self.lose_pushes(topic), Left(topic, timed_out)]

    def lose_pushes(self, topic: str) -> list[SessionEvent]:
        return [self.end(t, "lost") for t, p in self.pushes.items() if p.topic == topic and not p.is_over]

    def end(self, token: int, outcome: str, status: str = "ok", response: Any = None) -> SessionEvent:
        push = self.pushes[token]
        push.outcomes.append(outcome)
        return PushSettled(token, outcome, status, response, push.written)

    events_seen = 0

    def settle(self, expected: list[SessionEvent], *, in_order: bool = True) -> None:
        """What the session says is what was expected, and what it sends is in order."""
        told = apart(self.session.events())
        self.events_seen += len(told)
        lost = [e for e in told if isinstance(e, HeartbeatLost)]
        beats = sum(isinstance(e, HeartbeatSent) for e in told)
        said = [e for e in told if not isinstance(e, (HeartbeatLost, HeartbeatSent))]
        assert (said, expected)[0] == expected if in_order else sorted(map(repr, said)) == sorted(map(repr, expected))
        for frame in self.session.frames_to_send():
            self.sent(frame.ref, frame.data)
            beats -= frame.ref == (self.beat and self.beat[0])
        assert beats == 0, "each heartbeat is told"
        self.time_joins()
        self.check_heartbeat(lost)

    def sent(self, ref: str, data: bytes) -> None:
        join_ref, own_ref, topic, event, _ = decode(data, self.vsn)
        assert ref == own_ref == str(self.last_ref + 1), "refs are never used twice"
        self.last_ref += 1
        self.kernel.append((ref, data))
        belief = self.beliefs.get(topic)
        if topic == "phoenix":
            assert (join_ref, event) == (None, "heartbeat")
            if ref not in self.fences:
                assert self.beat is None or self.excused, "one at a time"
                assert self.excused or self.now >= self.asked_at + INTERVAL
                self.beat, self.beat_written, self.excused = (ref, self.now), None, False
        elif event == "phx_join":
            assert belief is not None
            assert topic == self.queue.pop(0), "first come, first served"
            assert join_ref == ref
            belief.ref, belief.waiting, belief.state = ref, False, ChannelState.JOINING
            self.joins[ref] = topic, None
            self.joined_since = True
            assert len(self.joins) <= self.max_in_flight
        else:
            assert belief is not None
            assert join_ref == belief.ref, "the server would let it fall"

    def time_joins(self) -> None:
        """The time of a join runs once it is written and the one before it is done."""
        for ref, (topic, until) in self.joins.items():
            if until is None and ref in self.written:
                self.joins[ref] = topic, self.now + JOIN_TIMEOUT
            break

    def check_heartbeat(self, lost: list[HeartbeatLost]) -> None:
        if lost:
            assert self.beat is not None
            assert self.beat_written is not None
            assert self.now >= self.beat_written + TIMEOUT
            assert lost == [HeartbeatLost(self.now - self.beat[1])]
            self.lose_the_connection()

    @invariant()
    def a_dead_peer_is_not_waited_for(self) -> None:
        if not self.online:
            assert self.session.next_deadline() is None
            return
        due = self.session.next_deadline()
        if self.beat is None:
            assert due is not None
            assert due <= self.asked_at + INTERVAL
        elif self.beat_written is not None and not self.joined_since and not self.excused:
            longest = INTERVAL + (PATIENCE + 1) * TIMEOUT if self.heard else TIMEOUT
            assert due is not None
            assert due <= (self.beat[1] if self.heard else self.beat_written) + max(
                longest, self.beat_written - self.beat[1] + TIMEOUT
            )

    @invariant()
    def the_states_are_those_that_were_implied(self) -> None:
        assert {topic: entry.state for topic, entry in self.session.topics.items()} == {
            topic: belief.state for topic, belief in self.beliefs.items()
        }
        for topic in TOPICS:
            waits = any(p.topic == topic and not p.is_over for p in self.pushes.values())
            assert self.session.awaits_reply(topic) == waits

    @invariant()
    def no_join_waits_for_nothing(self) -> None:
        assert not (self.online and self.queue and len(self.joins) < self.max_in_flight)
        free = self.max_in_flight - len(self.joins) - len(self.queue)
        late = self.beat_written is not None and self.now >= self.beat_written + TIMEOUT
        assert self.session.joins_available == (free if self.online else 0) or (
            late and self.session.joins_available == 0
        )

    @invariant()
    def what_is_kept_is_bounded(self) -> None:
        waiting = sum(not push.is_over for push in self.pushes.values())
        assert len(self.session._pending) == waiting + len(self.joins) + len(self.leaves) + len(self.fences)
        self.most_pending = max(self.most_pending, len(self.session._pending))
        assert len(self.session._timers) <= 2 * self.most_pending + 65
        assert len(self.session._join_queue) == len(self.queue)

    def teardown(self) -> None:
        if not hasattr(self, "pushes"):
            return
        if self.online:
            self.lose_the_connection()
        for push in self.pushes.values():
            final = [o for o in push.outcomes if o != "sent" or not push.wants_reply]
            assert len(final) == 1, "each push ends, and ends once"
            assert push.outcomes.count("sent") <= 1


def has_ref(frame: Frame) -> bool:
    """Whether it says which join or push it belongs to."""
    return frame.join_ref is not None or frame.ref is not None


TestSessionModel = pytest.mark.timeout(600)(SessionModel.TestCase)  # hypothesis takes its time on a busy machine
TestSessionModel.settings = settings(max_examples=400, stateful_step_count=50, deadline=None)

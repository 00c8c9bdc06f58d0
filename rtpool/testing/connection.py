"""
One socket of the embedded server: what comes in, in turn; what goes out, in order; and faults on demand.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
from websockets.exceptions import ConnectionClosed

from rtpool.testing.admission import admit, ask_policy, given_key, policy_request, refuse_join
from rtpool.testing.faults.injection import SWALLOWED, Deed
from rtpool.testing.policy import Permissions, evaluate
from rtpool.testing.records import JoinRefusal, JoinReply, PushReply, RequestInfo
from rtpool.testing.refusals import Handshake, Join, System
from rtpool.testing.rooms import Member
from rtpool.testing.store import ReplayRefused, StoredMessage
from rtpool.testing.stream import Stream
from rtpool.testing.tokens import claims_of, expiry_of
from rtpool.testing.wire import ClientMessage, Malformed, ServerMessage, decode, encode, size_of

if TYPE_CHECKING:
    from rtpool.testing.server import RealtimeServer

__all__ = ["NO_REPLY", "ServerConnection"]

#: Turns of the loop in which what waits is written, if the client reads.
WRITE_TURNS = 10
#: Seconds after which a token is looked at again at the latest.
TOKEN_CHECK = 300.0


class _NoReply:
    """What an `on_join` or `on_push` hook returns for a server that never answers."""

    def __repr__(self) -> str:
        return "NO_REPLY"


NO_REPLY = _NoReply()

#: protocol: two errors of a token reach a joined channel as printed atoms.
_PRINTED = {
    Handshake.BAD_SIGNATURE.value[1]: System.BAD_SIGNATURE(),
    Handshake.NO_SIGNER.value[1]: System.NO_SIGNER(),
}


@attrs.define(eq=False)
class _Passed:
    """A frame that so many others have still to overtake before it goes."""

    left: int
    go: Callable[[], None]


class ServerConnection:
    """
    A client's socket as the server sees it.

    Attributes:
        id: its number, counted from 1.
        peer: the client's address, ``(host, port)``.
        vsn: the serializer version it asked for.
        token: the key of its upgrade, which channels joined without a token use.
        headers: the ``x-*`` headers of its upgrade.

    Thread-safety: the public methods may be called from any thread; they return once the server has done it.
    """

    def __init__(self, server: RealtimeServer, number: int, ws: Stream, vsn: str, info: RequestInfo) -> None:
        self._server = server
        self.id = number
        self.peer: tuple[str, int] = tuple(ws.remote_address[:2])
        self.vsn = vsn
        self.token = given_key(info)
        self.headers = {name: value for name, value in info.headers.items() if name.startswith("x-")}
        self._ws = ws
        self._members: dict[str, Member] = {}
        self._out: deque[str | bytes | Deed] = deque()  # frames, and what is done in their midst
        self._passed: list[_Passed] = []
        self._out_size = 0
        self._more = asyncio.Event()
        self._may_write = asyncio.Event()  # clear while a join runs: then nothing leaves this socket
        self._may_write.set()
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._over_heap = False  # the frame being handled is more than a channel can hold
        self.counted = False  # joined once: counts as a concurrent user
        self.asked_to_join = False  # once, whatever came of it

    # For tests

    @property
    def topics(self) -> tuple[str, ...]:
        """The wire topics joined now."""
        return tuple(self._members)

    def close(self, code: int = 1000) -> None:
        """Close with a WebSocket close code, without a reason, as Realtime does."""
        self._server.call(lambda: self._server.spawn(self._ws.close(code, "")))

    def abort(self) -> None:
        """Reset the TCP connection (RST): what was sent and not read is lost to the client."""
        self._server.call(self._ws.reset)

    def freeze(self) -> None:
        """Read and write nothing any more: alive to TCP, dead to the client."""
        self._server.call(self._freeze)

    def thaw(self) -> None:
        """Undo `freeze`; what waited goes out in order."""
        self._server.call(self._thaw)

    def pause_reading(self) -> None:
        """Read nothing any more, so that the client's send buffer fills; go on writing."""
        self._server.call(lambda: self._ws.hold("paused"))

    def resume_reading(self) -> None:
        """Undo `pause_reading`."""
        self._server.call(lambda: self._ws.release("paused"))

    def send_raw(self, data: bytes) -> None:
        """Put bytes on the stream as they are, below WebSocket framing, above TLS."""
        self._server.call(lambda: self._ws.write_raw(data))

    def send_text(self, text: str) -> None:
        """Send a text frame with any content."""
        self._server.call(lambda: self.enqueue(text))

    def send_binary(self, data: bytes) -> None:
        """Send a binary frame with any content."""
        self._server.call(lambda: self.enqueue(data))

    def push(self, topic: str, event: str, payload: Any) -> None:
        """Push any event to this socket's channel on a wire topic; `LookupError` when it is not joined."""

        def push() -> None:
            self._members[topic].send(event, payload)

        self._server.call(push)

    def stop(self, topic: str) -> None:
        """End this socket's channel on a wire topic as the server does of its own accord: phx_close."""
        self._server.call(lambda: self._stop(self._members[topic]))

    def __repr__(self) -> str:
        return f"<ServerConnection {self.id} from {self.peer[0]}:{self.peer[1]} with {len(self._members)} topics>"

    # On the server's loop

    @property
    def members(self) -> dict[str, Member]:
        """The joined channels by wire topic."""
        return self._members

    @property
    def stream(self) -> Stream:
        """The connection below the messages."""
        return self._ws

    def send(self, message: ServerMessage, *, frame: str | bytes | None = None, answers: str | None = None) -> bool:
        """
        Queue a message; False when this socket's version cannot carry it.

        Args:
            frame: the message, if it has been encoded for this version already.
            answers: the event it is a reply to.
        """
        frame = encode(self.vsn, message) if frame is None else frame
        if frame is None:
            return False
        for item in self._server.injections.sending(self, message, frame, answers):
            self.enqueue(item)
        return True

    def enqueue(self, item: str | bytes | Deed) -> None:
        """Queue a frame, or what is done at its turn; over `max_socket_heap` the socket is cut off instead."""
        if self._ws.gone():
            return
        self._out.append(item)
        self._more.set()
        if not isinstance(item, (str, bytes)):
            return
        self._out_size += len(item)
        if self._out_size > self._server.options.max_socket_heap:
            self._ws.reset()
        for passed in self._passed:
            passed.left -= 1
        for passed in [passed for passed in self._passed if passed.left == 0]:
            passed.go()

    def let_pass(self, frame: str | bytes, count: int) -> Callable[[], None]:
        """Queue a frame once so many others have been; returns what queues it now, if it has not been yet."""

        def go() -> None:
            if passed in self._passed:
                self._passed.remove(passed)
                self.enqueue(frame)

        passed = _Passed(count, go)
        self._passed.append(passed)
        return go

    async def run(self) -> None:
        """Serve until the socket ends."""
        self._ws.on_end = self._ended
        if self._ws.gone():
            return
        loop = asyncio.get_running_loop()
        helpers = [loop.create_task(self._write()), loop.create_task(self._reap_when_idle())]
        try:
            async for frame in self._ws:
                await self._thawed.wait()
                if self._ws.gone():
                    break
                await self._received(frame)
        except ConnectionClosed:
            return
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            for member in list(self._members.values()):
                self._server.rooms.leave(member)
            self._members.clear()

    async def _write(self) -> None:
        try:
            while True:
                await self._more.wait()
                self._more.clear()
                while self._out:
                    await self._until_free()
                    item = self._out.popleft()
                    if isinstance(item, (str, bytes)):
                        self._out_size -= len(item)
                        await self._ws.send(item)
                    elif (waiting := item()) is not None:
                        await waiting
        except ConnectionClosed:
            self._out.clear()

    async def _until_free(self) -> None:
        while not (self._may_write.is_set() and self._thawed.is_set()):
            await self._may_write.wait()
            await self._thawed.wait()

    def _ended(self) -> None:
        # Whoever waits for a thaw or for a join's end has nothing to wait for any more.
        self._thawed.set()
        self._may_write.set()
        self._more.set()
        self._out.clear()

    async def _reap_when_idle(self) -> None:
        clock, timeout = self._server.clock, self._server.options.idle_timeout
        while (left := self._ws.heard_at + timeout - clock.now()) > 0:
            await clock.sleep(left)
            await self._until_free()
        await self._ws.close(1000, "")

    def _freeze(self) -> None:
        if not self._ws.gone():
            self._thawed.clear()
            self._ws.hold("frozen")

    def _thaw(self) -> None:
        self._ws.release("frozen")
        self._thawed.set()

    async def _received(self, frame: str | bytes) -> None:
        try:
            message = decode(self.vsn, frame)
        except Malformed:
            self._server.count_malformed()
            if self._server.options.plain_phoenix:
                await self._ws.close(1011, "")
            return
        self._server.record(self, message)
        self._over_heap = len(frame) > self._server.options.max_channel_heap
        try:
            await self._handle(message)
        except RecursionError:  # nested deeper than Python's JSON can write again
            self._server.count_malformed()

    async def _handle(self, message: ClientMessage) -> None:
        verdict = await self._server.injections.receiving(self, message)
        if verdict is SWALLOWED or self._ws.gone():
            return
        if message.topic == "phoenix" and message.event == "heartbeat":
            self._reply(message, "ok", {}, join_ref=None)
        elif not isinstance(message.topic, str):  # anything, as JSON has it
            self._unmatched(message)
        elif message.event == "phx_join":
            await self._join(message, verdict if isinstance(verdict, JoinRefusal) else None)
        elif message.event == "phx_leave":
            self._leave(message)
        else:
            self._push(message)

    def _reply(self, message: ClientMessage, status: str, response: Any, *, join_ref: Any = ...) -> None:
        self.send(
            ServerMessage(
                message.join_ref if join_ref is ... else join_ref,
                message.ref,
                message.topic,
                "phx_reply",
                {"status": status, "response": response},
            ),
            answers=message.event if isinstance(message.event, str) else None,
        )

    def _unmatched(self, message: ClientMessage) -> None:
        self._reply(message, "error", {"reason": "unmatched topic"}, join_ref=None)

    async def _take(self, seconds: float) -> None:
        """Be deaf and mute for a while, pings included; ends early with the socket."""
        if seconds <= 0:
            return
        for _ in range(WRITE_TURNS):  # what was said before is on its way before this begins
            if self._out:
                await asyncio.sleep(0)
        self._may_write.clear()
        self._ws.hold("joining")
        await self._server.clock.sleep(seconds, self._ws.ended)
        self._ws.release("joining")
        self._may_write.set()

    async def _join(self, message: ClientMessage, refusal: JoinRefusal | None) -> None:
        """One join at a time; while it runs this socket neither reads nor writes, as with the real server."""
        self.asked_to_join = True
        await self._take(self._server.options.join_latency)
        if self._ws.gone():
            return
        member = Member.from_join(self, message)
        decision, replay = (refusal, []) if refusal is not None else self._decide(member, message)
        reason = decision.reason if isinstance(decision, JoinRefusal) else None
        self._server.record_join(self, message, reason, decision is None or isinstance(decision, JoinReply))
        if isinstance(decision, JoinRefusal):
            held = self._server.options.join_error_backoff if decision.delay is None else decision.delay
            await self._take(held)
        elif isinstance(decision, JoinReply):
            await self._take(decision.delay)
        if self._ws.gone():
            return
        old = self._members.pop(message.topic, None)
        if old is not None:
            self._server.rooms.leave(old)
        if isinstance(decision, JoinRefusal):
            self._refuse(message, decision)
        elif decision is None or isinstance(decision, JoinReply):
            self._let_in(member, message, decision, old, replay)

    def _decide(self, member: Member, message: ClientMessage) -> tuple[Any, list[StoredMessage]]:
        decision = refuse_join(self._server, self, message) or (Join.CRASHED() if self._over_heap else None)
        if decision is not None or self._server.options.plain_phoenix:
            return decision, []
        decision = admit(self._server, member, message.payload)
        if decision is not None:
            return decision, []
        try:
            return None, self._server.stored_for(member, message.payload)
        except ReplayRefused as error:
            return error.refusal(), []

    def _refuse(self, message: ClientMessage, refusal: JoinRefusal) -> None:
        unmatched = refusal.reason == "unmatched topic"
        self._reply(message, "error", {"reason": refusal.reason}, join_ref=None if unmatched else ...)
        if refusal.close_code is not None:
            self._close_in_turn(refusal.close_code)

    def _close_in_turn(self, code: int) -> None:
        self.enqueue(lambda: self._ws.close(code, ""))

    def _let_in(
        self,
        member: Member,
        message: ClientMessage,
        reply: JoinReply | None,
        old: Member | None,
        replay: list[StoredMessage],
    ) -> None:
        self.counted = True
        self._members[message.topic] = member
        self._server.rooms.enter(member)
        self._reply(message, "ok", reply.response if reply else self._server.join_response(member))
        if old is not None:
            # protocol: the reply to the new join precedes the close of the old channel
            self.send(ServerMessage(old.join_ref, old.join_ref, message.topic, "phx_close", {}))
        for event, payload in reply.pushes if reply else ():
            member.send(event, payload)
        self._watch_token(member)
        self._server.after_join(member, replay)

    def _watch_token(self, member: Member) -> None:
        """Look at the token when it expires, and every few minutes."""
        expires = expiry_of(member.claims)
        if expires is None or self._server.options.plain_phoenix:
            return
        clock = self._server.clock

        def look() -> None:
            ago = clock.now() - expires
            if ago >= 0:
                self.shut_down(member, System.TOKEN_EXPIRED(seconds=int(ago)))
            else:
                self._watch_token(member)

        if member.expiry is not None:
            member.expiry.cancel()
        member.expiry = clock.call_later(min(TOKEN_CHECK, max(0.0, expires - clock.now())), look)

    def _leave(self, message: ClientMessage) -> None:
        member = self._members.get(message.topic)
        if member is None:
            self._reply(message, "ok", {})
            return
        if member.join_ref is not None and message.join_ref != member.join_ref:
            return  # a stale leave is ignored without a word
        self.drop(member)
        self._reply(message, "ok", {}, join_ref=member.own_ref)
        self.send(ServerMessage(member.join_ref, member.join_ref, message.topic, "phx_close", {}))
        self._server.record_leave(self, message)

    def drop(self, member: Member) -> None:
        """Forget a joined channel."""
        if self._members.get(member.topic) is member:
            del self._members[member.topic]
        self._server.rooms.leave(member)

    def _stop(self, member: Member) -> None:
        self.drop(member)
        self.send(ServerMessage(member.join_ref, member.join_ref, member.topic, "phx_close", {}))

    def shut_down(self, member: Member, words: str) -> None:
        """End a channel as the server does: a system error, then the close. Nothing when it has ended."""
        if self._members.get(member.topic) is member:
            member.system("system", "error", words)
            self._stop(member)

    def crash(self, member: Member) -> None:
        """End a channel as if its process had died."""
        self.drop(member)
        words = self._server.options.crash_reason
        reason = {} if words is None else {"reason": words}
        self.send(ServerMessage(member.join_ref, member.join_ref, member.topic, "phx_error", reason))

    def request_disconnect(self) -> None:
        """Say so on each channel, then close with 1012."""
        payload = {"extension": "system", "status": "ok", "message": "Server requested disconnect"}
        for topic in self._members:
            self.send(ServerMessage(None, None, topic, "system", payload))
        self._close_in_turn(1012)

    def _push(self, message: ClientMessage) -> None:
        member, server = self._members.get(message.topic), self._server
        if member is None:
            self._unmatched(message)
            return
        strict = server.options.strict_join_ref
        if strict and member.join_ref is not None and message.join_ref != member.join_ref:
            return  # Phoenix 1.8.3 to 1.8.11 drops a stale or missing join_ref without a word
        if self._over_heap:
            self.crash(member)
            return
        if server.on_push is not None and self._ask_hook(member, message):
            return
        if server.options.plain_phoenix:
            return
        if message.event == "broadcast":
            self._broadcast(member, message)
        elif message.event == "presence":
            self._presence(member, message)
        elif message.event == "access_token":
            self._access_token(member, message)

    def _ask_hook(self, member: Member, message: ClientMessage) -> bool:
        """Whether the `on_push` hook took the push; a hook that raises crashes the channel."""
        server = self._server
        assert server.on_push is not None
        try:
            decision = server.on_push(server.short_topic(message.topic), message.event, message.payload, self)
        except Exception:
            self.crash(member)
            return True
        if not isinstance(decision, PushReply):
            return decision is not None
        status, response = decision.status, decision.response

        def reply() -> None:
            self._reply(message, status, response, join_ref=member.own_ref)

        if decision.delay > 0:
            server.clock.call_later(decision.delay, reply)
        else:
            reply()
        return True

    def _writes(self, member: Member) -> Permissions:
        """What a member may write; asked once for a token."""
        if not member.private:
            return member.may
        if member.may_write is None:
            if self._server.database_is_down:
                return Permissions()
            member.may_write = evaluate(self._server.policy, policy_request(member))
        return member.may_write

    def _broadcast(self, member: Member, message: ClientMessage) -> None:
        server = self._server
        if size_of(message.payload) > server.max_payload:
            if member.ack:
                self._reply(message, "error", "payload_size_exceeded", join_ref=member.own_ref)
            return
        if not self._writes(member).write_broadcast:
            return  # protocol: no answer, with ack neither
        payload, kind = message.payload, message.binary_kind
        if kind is None and not isinstance(payload, dict):
            self.crash(member)  # protocol: the vsn 2 encoder raises in the sender's channel
            return
        if kind == 3:
            payload = {name: value for name, value in payload.items() if name != "meta"}  # read there, not passed on
        out = ServerMessage(None, None, member.topic, "broadcast", payload, kind == 3)
        reached = server.rooms.broadcast(out, member.private, but=None if member.receive_own else member)
        if member.ack:
            self._reply(message, "ok", {}, join_ref=member.own_ref)
        reached.enforce()

    def _presence(self, member: Member, message: ClientMessage) -> None:
        options, now = self._server.options, self._server.clock.now()
        if now - member.presence_window >= options.presence_window:
            member.presence_window, member.presence_calls = now, 0
        member.presence_calls += 1
        if options.presence_max_calls is not None and member.presence_calls > options.presence_max_calls:
            self.shut_down(member, System.CLIENT_PRESENCE_RATE())
            return
        payload = message.payload if isinstance(message.payload, dict) else {}
        kind = str(payload.get("event", "")).lower()
        meta = payload.get("payload", {})
        if kind == "track" and not isinstance(meta, dict):
            reason = {"reason": "Presence track payload must be a map"}
            self._reply(message, "error", reason, join_ref=member.own_ref)
        elif kind == "track" and not self._writes(member).write_presence:
            self._reply(message, "error", {}, join_ref=member.own_ref)
        elif kind == "track":
            self._track(member, message, meta)
        elif kind == "untrack":
            self._reply(message, "ok", {}, join_ref=member.own_ref)
            self._server.rooms.track(member, None)
        else:
            self._reply(message, "error" if kind else "ok", {}, join_ref=member.own_ref)

    def _track(self, member: Member, message: ClientMessage, meta: dict[str, Any]) -> None:
        server = self._server
        if server.presence_events.over(server.options.max_presence_events_per_second):
            self.shut_down(member, System.TOO_MANY_PRESENCES())
        elif size_of(meta) > server.max_payload:
            self.shut_down(member, System.TRACK_TOO_LARGE())
        else:
            server.presence_events.count()
            self._reply(message, "ok", {}, join_ref=member.own_ref)
            server.rooms.track(member, meta)

    def _access_token(self, member: Member, message: ClientMessage) -> None:
        token = message.payload.get("access_token") if isinstance(message.payload, dict) else None
        if not isinstance(token, str) or token.startswith("sb_") or token == member.token:
            return  # protocol: none, an opaque key and the token in use already change nothing
        error = self._server.token_error(token)
        if error is not None:
            self.shut_down(member, _PRINTED.get(error[1], error[1]))
            return
        trouble = self._server.try_database(private=member.private)
        if trouble is not None:
            self.shut_down(member, trouble.system())
            return
        member.token, member.claims = token, claims_of(token)
        if not ask_policy(self._server, member):
            self.shut_down(member, System.NO_READ(topic=member.name))
            return
        self._watch_token(member)
        # the subscription is renewed under the new token
        self._server.feed.subscribe(member, self._server.options.postgres_renewal_delay)

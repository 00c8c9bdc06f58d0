"""
`Channel`, the handle on one subscription of a topic: its life, sending, receiving in a loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from rtpool.callbacks import Callbacks
from rtpool.checks import check_name, check_timeout
from rtpool.engine.dispatcher import Mailbox
from rtpool.engine.engine import Engine
from rtpool.engine.fork import forked
from rtpool.engine.mailboxes import ChannelMailbox
from rtpool.engine.outgoing import Outgoing, SentBroadcast
from rtpool.engine.threads import outcome_of
from rtpool.errors import (
    ConnectionFailed,
    InvalidValue,
    JoinRefused,
    JoinTimeout,
    MessageTooBig,
    NotSubscribed,
    PoolClosed,
    PoolForked,
    ReceiveTimeout,
    RtpoolError,
)
from rtpool.events import ChannelState, Event, StatusChange
from rtpool.protocol.json_engine import json_object, quoted
from rtpool.protocol.messages import (
    BROADCAST,
    MAX_NAME_BYTES,
    PRESENCE,
    RESERVED_EVENTS,
    BinaryBody,
    Body,
    JsonBody,
    UserBroadcast,
)
from rtpool.protocol.presence import UNTRACK, track_body
from rtpool.push import Push
from rtpool.registry import Attachment, Delivery, Subscriber, event_of

if TYPE_CHECKING:
    from rtpool.pool import RealtimePool

__all__ = ["Channel"]

#: Realtime's events that have a method of their own: only so does everybody hear what they should.
SUPABASE_EVENTS = {BROADCAST: "send_broadcast()", PRESENCE: "track() and untrack()"}
#: Seconds a push may take when its caller names none; the official clients' push time-out.
PUSH_TIMEOUT = 10.0


class Channel(Callbacks):
    """
    One subscriber's handle on a topic, made by `RealtimePool.channel`.

    Cheap: many may exist for one topic, and those that may share a join do so unseen. Callbacks run on worker threads,
    one Channel's in the server's order and never two at once; they may block, raise, and call anything of rtpool.

    A Channel that is subscribed without any callback keeps its events for `get` and `events`.

    Thread-safety: every method may be called from any thread.
    """

    def __init__(self, pool: RealtimePool, subscriber: Subscriber) -> None:
        self._pool = pool  # keeps the pool alive as long as somebody holds a Channel
        self._subscriber = subscriber
        self._bindings = subscriber.entrust()

    @property
    def _engine(self) -> Engine:
        return self._pool._engine  # another one in a forked child

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Channel belongs to its process and cannot be pickled or copied; make one there with channel()"
        )

    # Life

    @property
    def topic(self) -> str:
        """The topic as the user wrote it."""
        return self._subscriber.topic

    @property
    def state(self) -> ChannelState:
        """Where this Channel is in its life."""
        return self._subscriber.state

    @property
    def is_subscribed(self) -> bool:
        """Whether events really flow now."""
        return self._subscriber.is_ready

    def subscribe(self, *, timeout: float = 10.0, wait: bool = True) -> Channel:
        """
        Subscribe, and return when events really flow. Idempotent.

        Args:
            timeout: seconds to wait for that, connecting included.
            wait: False returns at once; `on_status` tells the rest, and rtpool goes on trying.

        Raises:
            JoinRefused: the server said no, in its words; when that may pass, only after trying until `timeout`.
            JoinTimeout: the server did not answer in time.
            ConnectionFailed: there is no connection; what failed last is chained.
            PoolExhausted: no connection has room.
            PoolClosed: the pool is closed.

        After an error, and after Ctrl-C, the Channel is not subscribed and nothing of it is left on the server.
        """
        check_timeout(timeout)
        engine, subscriber = self._engine, self._subscriber
        engine.start()
        if not subscriber.bindings and subscriber.stream is None:
            subscriber.stream = ChannelMailbox(engine, subscriber, pulled=True)
        fresh = engine.registry.attach(subscriber)
        attachment = fresh or engine.registry.ask_again(subscriber)
        if attachment is not None:
            # Another thread may unsubscribe meanwhile: what it ends is what it detached.
            for sink in (subscriber.mailbox, subscriber.stream):
                if sink is not None:
                    engine.dispatcher.open(sink, attachment.number)
            attachment.opened = True
        if attachment is not None and (fresh is not None or not attachment.ready.done()):
            attachment.share.news = True
            try:
                engine.post(engine.coordinator.asked, subscriber.key)
            except PoolClosed:
                engine.registry.detach(subscriber)
                engine.registry.left(subscriber)
                raise
        if wait and attachment is not None:
            self._wait(attachment, timeout)
        return self

    def _wait(self, attachment: Attachment, timeout: float) -> None:
        try:
            outcome_of(attachment.ready, timeout)
        except KeyboardInterrupt:
            self._leave(0, only=attachment)
            raise
        except RtpoolError as error:
            self._leave(0, only=attachment)
            raise error.again() from error
        except FutureTimeout:
            last = attachment.share.last_error
            self._leave(0, only=attachment)
            if isinstance(last, (ConnectionFailed, JoinRefused)):
                raise last.again() from last
            because = f"; the last trouble was: {last}" if last else ""
            raise JoinTimeout(
                f"{self.topic!r} was not ready within {timeout} s{because}", topic=self.topic, timeout=timeout
            ) from last

    def unsubscribe(self, *, timeout: float = 10.0) -> None:
        """
        Unsubscribe. When this returns no callback of this Channel starts again. Idempotent.

        Other Channels on the topic are not disturbed; the last one leaves the server's channel.

        Args:
            timeout: seconds to wait for the server's word that it forgot the channel; without it the channel is
                closed on our side all the same.
        """
        check_timeout(timeout)
        self._leave(timeout)

    def _end(self, why: str) -> None:
        """Unsubscribe for good, without waiting for the server; who would use it later is told that the topic `why`."""
        self._subscriber.over = why
        self._leave(0)

    def _leave(self, timeout: float, *, only: Attachment | None = None) -> None:
        attachment = self._detach(only)
        if attachment is not None:
            self._await_left(attachment, timeout)

    def _detach(self, only: Attachment | None = None) -> Attachment | None:
        """End the subscription on our side, and ask the server to; None when there was none."""
        engine, subscriber = self._engine, self._subscriber
        attachment = engine.registry.detach(subscriber, only=only)
        # Who detached it before us, another thread or the end of the pool, may not have ended its mailboxes yet.
        ended = attachment or only
        for sink in (subscriber.mailbox, subscriber.stream):
            if sink is not None:
                engine.dispatcher.end(sink, ended.number if ended is not None else subscriber.detached)
        if attachment is None:
            return None
        if any(binding.kind == "status" for binding in subscriber.bindings):
            change = StatusChange(subscriber.topic, "closed")
            engine.dispatcher.deliver_essential(
                subscriber.mailbox, subscriber.mailbox.run, Delivery("status", "closed", change)
            )
        if not engine.loop.post(engine.coordinator.detached, attachment):
            engine.registry.left(subscriber)
            return None
        return attachment

    def _await_left(self, attachment: Attachment, timeout: float) -> None:
        """Wait for the server's word on what `_detach` returned."""
        try:
            outcome_of(attachment.left, timeout)
        except PoolForked:
            return  # the server's word is for the parent
        except FutureTimeout:
            if timeout:
                self._engine.warn(f"no word from the server within {timeout} s that it forgot {self.topic!r}")
        self._engine.registry.left(self._subscriber)

    def __enter__(self) -> Channel:
        return self.subscribe()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.unsubscribe()

    # Sending

    def send_broadcast(self, event: str, payload: Mapping[str, Any] | bytes, *, timeout: float | None = None) -> Push:
        """
        Send a broadcast to everybody else on the topic, siblings in this process included.

        With the option `max_events_per_second` it may wait its turn, behind all pushes of the pool that were made
        before it; and when `send_buffer_limit` pushes of the Channel wait already, so does the caller.

        Args:
            event: its name, 1 to 255 bytes of UTF-8.
            payload: a JSON object, encoded before this returns; or bytes, on protocol 2.0.0.
            timeout: seconds it may take, sending included; None is 10.

        Returns:
            A `Push`. With ``ack=True`` it resolves to the server's reply, else when the kernel has the frame.

        Raises:
            NotSubscribed: `subscribe` first.
            PoolForked: it is subscribed in the parent of this process.
            InvalidType, InvalidValue: the payload is no object, or cannot be written as JSON.
            MessageTooBig: over the server's limit of a payload or a frame (options `max_payload_size`,
                `max_frame_size`), which a server would drop without a word, or the whole socket for it.
            SendBufferFull: too much is waiting already; nothing was accepted.
        """
        self._require_supabase("send_broadcast", "push(event, payload)")
        check_name("event", event, MAX_NAME_BYTES)
        binary = isinstance(payload, (bytes, bytearray, memoryview))
        body: Body
        if binary:
            data = bytes(payload)  # type: ignore[arg-type]
            self._check_binary()
            body = UserBroadcast(event, data)
        else:
            data = json_object(payload)
            body = JsonBody(b'{"type":"broadcast","event":%s,"payload":%s}' % (quoted(event), data))
        return self._push(
            BROADCAST,
            body,
            wants_reply=self._subscriber.ack,
            timeout=timeout,
            broadcast=SentBroadcast(event, data, binary),
        )

    def push(self, event: str, payload: Mapping[str, Any] | bytes, *, timeout: float = PUSH_TIMEOUT) -> Push:
        """
        Push any Phoenix event and await its reply.

        A Realtime server ignores every event but its own, which have methods here; on plain Phoenix it is up to the
        application which events there are and whether they are answered.

        Args:
            event: 1 to 255 bytes of UTF-8, none of the protocol's own.
            payload: a JSON object, or bytes on protocol 2.0.0.
            timeout: seconds until the `Push` ends with `PushTimeout`.

        Raises:
            As `send_broadcast`.
        """
        check_name("event", event, MAX_NAME_BYTES)
        if event in RESERVED_EVENTS and (self._engine.options.is_supabase or event.startswith("phx_")):
            raise InvalidValue(f"event {event!r} belongs to the protocol; rtpool sends it itself")
        if event in SUPABASE_EVENTS and self._engine.options.is_supabase:
            raise InvalidValue(f"event {event!r} has a method of its own: {SUPABASE_EVENTS[event]}")
        body: Body
        if isinstance(payload, (bytes, bytearray, memoryview)):
            self._check_binary()
            body = BinaryBody(bytes(payload))
        else:
            body = JsonBody(json_object(payload))
        return self._push(event, body, wants_reply=True, timeout=timeout)

    def track(self, payload: Mapping[str, Any], *, timeout: float | None = None) -> Push:
        """
        Be present on the topic with `payload`, and again after every reconnect, until `untrack` or `unsubscribe`.

        A Realtime server ends a channel that makes more than 5 presence calls in 30 s (options `max_presence_calls`,
        `presence_window`). So what comes too fast is merged: the newest payload is told as soon as it may be, and the
        `Push` of each call resolves with it.

        Args:
            payload: a JSON object; it replaces the one before.
            timeout: seconds until the `Push` ends with `PushTimeout`; None is 10 more than the `presence_window`.

        Returns:
            A `Push`. Its `PushTimeout` does not take the wish back.

        Raises:
            ConfigConflict: a Channel that shares the join is present with another payload.
            Else as `send_broadcast`.
        """
        self._require_supabase("track", "your application's own event")
        data = json_object(payload)
        body = track_body(data)
        registry, subscriber = self._engine.registry, self._subscriber
        wish = partial(registry.track, subscriber, data)
        return self._push(PRESENCE, body, wants_reply=True, timeout=self._presence_timeout(timeout), wish=wish)

    def untrack(self, *, timeout: float | None = None) -> Push:
        """
        Be present no more. A Channel that shares the join and is present with the same payload stays so.

        Raises:
            NotSubscribed: `subscribe` first.
        """
        self._require_supabase("untrack", "your application's own event")
        wish = partial(self._engine.registry.untrack, self._subscriber)
        return self._push(PRESENCE, UNTRACK, wants_reply=True, timeout=self._presence_timeout(timeout), wish=wish)

    def _presence_timeout(self, timeout: float | None) -> float:
        return PUSH_TIMEOUT + self._engine.options.presence_window if timeout is None else timeout

    def presence_state(self) -> dict[str, tuple[Mapping[str, Any], ...]]:
        """
        Who is present: metas by presence key. Kept while the topic has a Channel with an ``on_presence_…`` callback.
        """
        self._subscriber.polled = True
        attachment = self._subscriber.attachment
        return dict(attachment.share.presence) if attachment is not None else {}

    def _push(
        self,
        event: str,
        body: Body,
        *,
        wants_reply: bool,
        timeout: float | None,
        broadcast: SentBroadcast | None = None,
        wish: Callable[[], object] | None = None,
    ) -> Push:
        if timeout is None:
            timeout = PUSH_TIMEOUT
        else:
            check_timeout(timeout)
        engine, subscriber = self._engine, self._subscriber
        try:
            engine.sizes.check(subscriber.key.topic, event, body, name=self.topic)
        except MessageTooBig:
            engine.count_too_big()
            raise
        if engine.closed:
            raise PoolClosed(f"the pool {engine.name} is closed; make a new one")
        if subscriber.attachment is None:
            raise self._not_subscribed()
        deadline = time.monotonic() + timeout
        outgoing = Outgoing(subscriber, event, body, wants_reply, timeout, deadline, broadcast, wish is not None)
        engine.budget.acquire(outgoing, joined=subscriber.state is ChannelState.JOINED)
        try:
            if wish is not None:
                wish()  # only what is accepted is wished
            engine.post(engine.coordinator.push, outgoing)
        except RtpoolError as error:
            engine.budget.settle(outgoing, None, error)
            raise
        return Push(engine, outgoing)

    def _check_binary(self) -> None:
        if self._engine.options.protocol == "1.0.0":
            raise InvalidValue("protocol 1.0.0 has no binary payloads; use the option protocol='2.0.0'")

    def _not_subscribed(self) -> RtpoolError:
        if self._subscriber.over:
            return NotSubscribed(f"{self.topic!r} {self._subscriber.over}", topic=self.topic)
        if self._subscriber.forked:
            return forked(self.topic)
        return NotSubscribed(f"{self.topic!r} is not subscribed; call subscribe() first", topic=self.topic)

    # Receiving in a loop

    def events(self, *, timeout: float | None = None, maxsize: int | None = None) -> Iterator[Event]:
        """
        Iterate over everything this Channel receives.

        Every iterator of a Channel, and `get`, take from the same stream; make another Channel for another reader.

        Args:
            timeout: seconds without an event after which the loop ends; None waits until the Channel is unsubscribed.
            maxsize: events kept for the reader, None for the option `mailbox_limit`; what happens to more is the
                option `overflow`. Taken from the first call.

        Yields:
            `Broadcast`, `PostgresChange`, `Presence`, `SystemMessage`, `Gap`, or `Message` for any other event.

        Raises:
            PoolForked: the process was forked within the loop, this is the child, and its pool does not subscribe
                anew there (option `after_fork`).
        """
        if timeout is not None:
            check_timeout(timeout)
        stream = self._stream(maxsize)
        return self._iterate(self._engine, stream, timeout)

    def _iterate(self, engine: Engine, stream: Mailbox, timeout: float | None) -> Iterator[Event]:
        while True:
            if engine.forked:  # by whoever iterates, since the last event
                if self._subscriber.forked:
                    raise forked(self.topic)
                if self._subscriber.attachment is None:  # it had left before
                    return
                engine, stream = self._engine, self._stream(None)
            try:
                delivery = engine.dispatcher.take(stream, timeout)
            except (EOFError, TimeoutError):
                if engine.forked:
                    continue
                return
            yield event_of(delivery)

    def get(self, timeout: float | None = None) -> Event:
        """
        Take one event.

        Args:
            timeout: seconds; None waits until one comes or the Channel is unsubscribed.

        Raises:
            ReceiveTimeout: none came in time.
            NotSubscribed: the Channel is not subscribed, or ceased to be.
            PoolForked: it was, in the parent of this process.
        """
        if timeout is not None:
            check_timeout(timeout)
        try:
            delivery = self._engine.dispatcher.take(self._stream(None), timeout)
        except TimeoutError:
            raise ReceiveTimeout(
                f"no event on {self.topic!r} within {timeout} s", topic=self.topic, timeout=timeout or 0.0
            ) from None
        except EOFError:
            raise self._not_subscribed() from None
        event: Event = event_of(delivery)
        return event

    def _stream(self, maxsize: int | None) -> Mailbox:
        if maxsize is not None and (isinstance(maxsize, bool) or not isinstance(maxsize, int) or maxsize < 1):
            raise InvalidValue(f"maxsize must be an integer >= 1 or None, not {maxsize!r}")
        subscriber = self._subscriber
        subscriber.stream_claimed = True
        stream: Mailbox | None = subscriber.stream
        if stream is None:
            subscriber.stream = stream = ChannelMailbox(self._engine, subscriber, limit=maxsize, pulled=True)
            attachment = subscriber.attachment
            if attachment is not None:
                self._engine.dispatcher.open(stream, attachment.number)
        return stream

    def __repr__(self) -> str:
        return f"<rtpool.Channel {self.topic!r} {self.state}>"

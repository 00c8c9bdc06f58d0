"""
A push on its way out, and the budget that bounds how much may be on its way.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import attrs

from rtpool.engine.threads import SLICE_SECONDS, Bell, step_aside
from rtpool.errors import ConnectionFailed, PoolForked, PushRefused, PushTimeout, RtpoolError, SendBufferFull
from rtpool.events import ChannelState
from rtpool.protocol.messages import Body
from rtpool.protocol.refusals import classify_push, words_of
from rtpool.protocol.session_events import PushSettled
from rtpool.registry import Subscriber

__all__ = ["Outgoing", "SendBudget", "SentBroadcast"]

Lock = threading.Lock

#: Bytes of pushes a pool holds at a time, from the call until they are settled. A caller beyond it waits.
MAX_OUTSTANDING_BYTES = 32 * 1024 * 1024


class SentBroadcast(NamedTuple):
    """What a broadcast said, for the Channels that share the sender's join."""

    event: str
    data: bytes
    is_binary: bool


@attrs.define(eq=False, repr=False)
class Outgoing:
    """
    One push, as the I/O thread carries it; the caller's `Push` looks at it. A future would cost more than all else of a
    push: it makes a lock and a condition, and takes them, though mostly nobody waits for it.

    Attributes:
        subscriber: whose it is.
        event, body: the Phoenix event and its encoded payload.
        wants_reply: False settles it once the kernel has the frame.
        timeout, deadline: seconds allowed; the monotonic instant they end.
        broadcast: set when it is one.
        presence: whether it says who is present; then the newest wish of the join is said, not its own body.
        outcome: the result and the error, once it is settled; written by the `SendBudget`, read anywhere.
        listeners: called then; the `SendBudget`'s own.
    """

    subscriber: Subscriber
    event: str
    body: Body
    wants_reply: bool
    timeout: float
    deadline: float
    broadcast: SentBroadcast | None = None
    presence: bool = False
    outcome: tuple[Any, RtpoolError | None] | None = None
    listeners: list[Callable[[], object]] | None = None

    @property
    def name(self) -> str:
        """The event as the user named it."""
        return self.broadcast.event if self.broadcast else self.event

    @property
    def needs_answer(self) -> bool:
        """Whether siblings hear it only once the server let it through, which on a private channel it may not."""
        return self.broadcast is not None and self.subscriber.key.private

    @property
    def size(self) -> int:
        """Bytes of payload."""
        return len(self.body.data)

    def timed_out(self, *, written: bool, paced: bool = False) -> PushTimeout:
        """The error for its deadline; `paced` when it waited for its turn among all pushes of the pool."""
        waited = "no reply to" if written else "could not send"
        why = ""
        if written and self.broadcast and self.subscriber.key.private:
            # protocol 6.1: there is no error frame for either
            why = (
                "; on a private channel the server is also silent when the write policy denies the broadcast, or when "
                "it could not ask the database"
            )
        elif not written and self.presence and self.subscriber.state is ChannelState.JOINED:
            why = "; the server allows few presence calls, so the newest one goes out by itself as soon as it may"
        elif paced:
            why = ": its turn did not come (option max_events_per_second)"
        return PushTimeout(
            f"{waited} push {self.name!r} on {self.subscriber.topic!r} within {self.timeout} s{why}",
            topic=self.subscriber.topic,
            event=self.name,
            timeout=self.timeout,
            sent=written,
        )

    def unsubscribed(self) -> ConnectionFailed:
        """The error for one whose topic was left before it could go out."""
        return ConnectionFailed(f"{self.subscriber.topic!r} was unsubscribed before push {self.name!r} was sent")

    def error_of(self, event: PushSettled, hide: Callable[[str], str]) -> RtpoolError | None:
        """The error that a session's word about it amounts to, `hide` takes secrets out; None when all is well."""
        if event.outcome == "sent":
            return None
        topic = self.subscriber.topic
        if event.outcome == "lost":
            return ConnectionFailed(f"the connection was lost before the reply to push {self.name!r} on {topic!r}")
        if event.outcome == "timeout":
            return self.timed_out(written=event.written)
        if event.outcome == "reply" and event.status != "ok":
            words = words_of(event.response, hide)
            return PushRefused(
                f"the server answered push {self.name!r} on {topic!r} with {event.status}: {words}",
                topic=topic,
                event=self.name,
                status=event.status,
                response=event.response,
                action=classify_push(event.response),
            )
        return None


class SendBudget:
    """
    Bounds what is on its way out: bytes over the pool; pushes per Channel that is not joined, or is paced. It gives
    each push its outcome, too, which frees its room.

    Args:
        send_buffer_limit: pushes of one Channel; more are refused while it is not joined.
        paced: whether pushes wait their turn when it is; then a caller beyond the limit waits too.

    Thread-safety: every method may be called from any thread.
    """

    def __init__(self, send_buffer_limit: int, *, paced: bool = False) -> None:
        self._limit = send_buffer_limit
        self._paced = paced
        # Guards: _outstanding, _closed, every Subscriber.unsettled and every Outgoing.outcome, Outgoing.listeners
        self._lock = Lock()
        self._room = Bell()
        self._outstanding = 0
        self._closed = False

    def acquire(self, outgoing: Outgoing, *, joined: bool) -> None:
        """
        Take room for a push; wait for it until the push's deadline.

        Raises:
            SendBufferFull: the Channel is not joined and has its limit of pushes waiting; or no room in time.
        """
        ear: threading.Lock | None = None
        while (full := self._take(outgoing, joined, ear)) is not None:
            if ear is not None:
                try:
                    remaining = outgoing.deadline - time.monotonic()
                    if remaining <= 0:
                        raise full
                    ear.acquire(timeout=min(remaining, SLICE_SECONDS))
                finally:
                    with self._lock:
                        self._room.forget(ear)
            ear = Bell.ear()  # mostly there is room, and none is needed

    def _take(self, outgoing: Outgoing, joined: bool, ear: threading.Lock | None) -> SendBufferFull | None:
        """Take room, or listen for it with `ear` and return why there is none."""
        subscriber = outgoing.subscriber
        step_aside(self._lock)
        with self._lock:
            if not joined and subscriber.unsettled >= self._limit:
                raise SendBufferFull(
                    f"{subscriber.unsettled} pushes wait on {subscriber.topic!r}, which is not joined; the option "
                    f"send_buffer_limit is {self._limit}",
                    limit=self._limit,
                )
            full = self._full(outgoing)
            if full is None or self._closed:
                self._outstanding += outgoing.size
                subscriber.unsettled += 1
                subscriber.pushed = True
                return None
            if ear is not None:
                self._room.listen(ear)
            return full

    def _full(self, outgoing: Outgoing) -> SendBufferFull | None:
        """Why there is no room now. The caller must hold `self._lock`."""
        if self._outstanding and self._outstanding + outgoing.size > MAX_OUTSTANDING_BYTES:
            why = f"{self._outstanding} bytes wait to be sent and the server takes no more"
            limit = MAX_OUTSTANDING_BYTES
        elif self._paced and not outgoing.presence and outgoing.subscriber.unsettled >= self._limit:
            why = (
                f"{outgoing.subscriber.unsettled} pushes wait for their turn (options max_events_per_second and "
                f"send_buffer_limit, {self._limit})"
            )
            limit = self._limit
        else:
            return None
        told = f"push {outgoing.name!r} on {outgoing.subscriber.topic!r} was not accepted"
        return SendBufferFull(f"{why}; {told}", limit=limit)

    def settle(self, outgoing: Outgoing, result: Any, error: RtpoolError | None) -> bool:
        """
        Give a push its outcome and free its room.

        Returns:
            False when it had one already.
        """
        return bool(self.settle_all([(outgoing, result, error)]))

    def settle_all(self, outcomes: Iterable[tuple[Outgoing, Any, RtpoolError | None]]) -> list[Outgoing]:
        """
        Give pushes their outcomes, a result and an error, and free their room; then tell those who wait for them.

        Returns:
            The pushes that had none before.
        """
        settled: list[Outgoing] = []
        listeners: list[Callable[[], object]] = []
        step_aside(self._lock)
        with self._lock:
            for outgoing, result, error in outcomes:
                if outgoing.outcome is None:
                    outgoing.outcome = result, error
                    self._outstanding -= outgoing.size
                    outgoing.subscriber.unsettled -= 1
                    settled.append(outgoing)
                    if outgoing.listeners is not None:
                        listeners += outgoing.listeners
                        outgoing.listeners = None
            self._room.ring()
        for listener in listeners:
            listener()
        return settled

    def when_settled(self, outgoing: Outgoing, listener: Callable[[], object]) -> None:
        """Have `listener()` called once a push has its outcome: by who gives it, or at once. It must not block."""
        with self._lock:
            waits = outgoing.outcome is None
            if waits:
                outgoing.listeners = [*(outgoing.listeners or ()), listener]
        if not waits:
            listener()

    def wait(self, outgoing: Outgoing, timeout: float) -> tuple[Any, RtpoolError | None] | None:
        """
        Wait for the outcome of a push, heeding Ctrl-C within half a second.

        Returns:
            A result and an error; None when it has none within `timeout` seconds.

        Raises:
            PoolForked: a signal handler forked meanwhile, and this is the child: nobody here settles the push.
        """
        if outgoing.outcome is None:
            ear, deadline, process = Bell.ear(), time.monotonic() + timeout, os.getpid()
            self.when_settled(outgoing, ear.release)
            try:
                while not ear.acquire(timeout=max(0.0, min(SLICE_SECONDS, deadline - time.monotonic()))):
                    if os.getpid() != process:
                        raise PoolForked("what is waited for is the parent process's, which alone hears of it")
                    if time.monotonic() >= deadline:
                        break
            finally:
                with self._lock:
                    if outgoing.listeners is not None:
                        outgoing.listeners = [each for each in outgoing.listeners if each != ear.release]
        return outgoing.outcome

    def after_fork(self) -> None:
        """In a forked child: what is on its way is the parent's."""
        self._lock = Lock()
        self._room = Bell()
        self._closed = True

    def close(self) -> None:
        """Wake everybody who waits for room; nothing is sent any more."""
        with self._lock:
            self._closed = True
            self._room.ring()

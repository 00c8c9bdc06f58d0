"""
Pushes on the I/O thread: to the server, into a join's buffer until it is joined, back to their callers; and the
presence of each join. Everything here runs on the I/O thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rtpool.engine.io_loop import IoLoop
from rtpool.engine.joins import Join
from rtpool.engine.logs import Log
from rtpool.engine.outgoing import Outgoing, SendBudget
from rtpool.engine.push_queue import PushQueue
from rtpool.engine.routing import Router
from rtpool.errors import RtpoolError
from rtpool.options import PoolOptions
from rtpool.protocol.messages import PRESENCE, JsonBody
from rtpool.protocol.presence import UNTRACK, track_body
from rtpool.protocol.session_events import PushSettled

__all__ = ["Pushes"]


class Pushes:
    """
    What is on its way out.

    Args:
        loop: the engine's.
        budget: frees the room of what is settled.
        router: loops broadcasts back to siblings.
        options: the pool's.
        log: where it is told that pushes wait; it hides secrets in refusals.

    Thread-safety: confined to the I/O thread, except `sent`, which may be read anywhere.
    """

    def __init__(self, loop: IoLoop, budget: SendBudget, router: Router, options: PoolOptions, log: Log) -> None:
        self._loop = loop
        self._budget = budget
        self._router = router
        self._log = log
        self._reply_timeout = options.join_timeout  # for what rtpool says of its own accord
        self.queue = PushQueue(loop, options.max_events_per_second, self._send_first, log)
        self._settling: list[tuple[Outgoing, Any, RtpoolError | None]] = []  # what `tell_settled` tells
        self._written: set[Outgoing] = set()
        #: Pushes the kernel has had whole.
        self.sent = 0

    def push(self, join: Join, outgoing: Outgoing) -> None:
        """Send a push now, or keep it until its join is and its turn comes."""
        if outgoing.presence:
            telling = join.presence_calls.is_telling(join.share.wish)
            (join.presence_calling if telling else join.presence_pushes)[outgoing] = None
            self._expire_at_deadline(outgoing, lambda: self._expire_presence(join, outgoing))
            self.say_presence(join)
        elif outgoing.deadline <= self._loop.now:  # who is told that it was not sent may send it again
            self.refuse(outgoing, outgoing.timed_out(written=False))
        elif join.buffer or not self._may_send(join) or not self.queue.passes() or not self._hand_over(join, outgoing):
            self._keep(join, outgoing, first=False)
            if join.joined:
                self.queue.line_up(join, (outgoing,))

    def refuse(self, outgoing: Outgoing, error: RtpoolError) -> None:
        """A push that cannot be carried at all."""
        self._budget.settle(outgoing, None, error)

    def flush(self, join: Join) -> None:
        """A join is joined: send what waited for that."""
        while join.buffer and self.queue.passes() and self._send_first(join):
            continue
        self.queue.line_up(join, tuple(join.buffer))

    def fail(self, join: Join, error: RtpoolError | None = None) -> None:
        """Nothing of a join is sent any more, because of `error`, or because everybody left."""
        for outgoing in join.buffer:
            self._budget.settle(outgoing, None, error.again() if error else outgoing.unsubscribed())
        join.buffer.clear()
        self.fail_presence(join, error)

    def say(self, join: Join, event: str, body: JsonBody) -> None:
        """Push on a live join what is answered by nothing."""
        if join.connection is not None:
            now = self._loop.now
            deadline = now + self._reply_timeout
            join.connection.session.push(
                join.topic, event, body, token=None, wants_reply=False, deadline=deadline, now=now
            )

    def settled(self, event: PushSettled, *, keep: bool) -> tuple[Join, Outgoing] | None:
        """
        A session is done with a push; `tell_settled` tells its outcome.

        Args:
            keep: whether one that was never sent may be sent later.

        Returns:
            What is to be kept, for `keep_unsent`; the frames of one loss come in the order of sending.
        """
        if event.token is None:
            self.sent += event.written
            return None
        join: Join
        outgoing: Outgoing | int
        join, outgoing = event.token
        if isinstance(outgoing, int):
            self._presence_answered(join, outgoing, event)
            return None
        if event.outcome == "lost" and not event.written and keep and not join.leaving:
            return join, outgoing  # the server cannot have seen it whole: it may be sent again
        error = outgoing.error_of(event, self._log.hide)
        if error is None and (event.outcome == "reply" or not outgoing.needs_answer):
            self._router.loop_back(join, outgoing)
        if error is not None:
            join.forget_echo(outgoing)
        self._settling.append((outgoing, event.response, error))
        if event.written:
            self._written.add(outgoing)
        return None

    def tell_settled(self) -> None:
        """Give those their outcomes that sessions are done with, all together."""
        if self._settling:
            settling, self._settling = self._settling, []
            written, self._written = self._written, set()
            self.sent += len(written.intersection(self._budget.settle_all(settling)))

    def keep_unsent(self, unsent: list[tuple[Join, Outgoing]]) -> None:
        """Put back, in their order and before what waits already, pushes that a loss overtook."""
        for join, outgoing in reversed(unsent):
            self._keep(join, outgoing, first=True)

    @staticmethod
    def _may_send(join: Join) -> bool:
        return not join.held and join.joined

    def _hand_over(self, join: Join, outgoing: Outgoing) -> bool:
        assert join.connection is not None
        accepted = join.connection.session.push(
            join.topic,
            outgoing.event,
            outgoing.body,
            token=(join, outgoing),
            wants_reply=outgoing.wants_reply or outgoing.needs_answer,
            tells_sent=not outgoing.wants_reply,
            deadline=outgoing.deadline,
            now=self._loop.now,
        )
        if accepted:
            self._router.sent(join, outgoing)
        return accepted

    def _send_first(self, join: Join) -> bool:
        """Send what has waited longest in a join's buffer."""
        sent = bool(join.buffer) and self._may_send(join) and self._hand_over(join, join.buffer[0])
        if sent:
            del join.buffer[0]
        return sent

    def _keep(self, join: Join, outgoing: Outgoing, *, first: bool) -> None:
        if first:
            join.buffer.insert(0, outgoing)
        else:
            join.buffer.append(outgoing)
        self._expire_at_deadline(outgoing, lambda: self._expire(join, outgoing))

    def _expire_at_deadline(self, outgoing: Outgoing, expire: Callable[[], None]) -> None:
        timer = self._loop.call_at(outgoing.deadline, expire)
        self._budget.when_settled(outgoing, timer.cancel)

    def _expire(self, join: Join, outgoing: Outgoing) -> None:
        if outgoing in join.buffer:
            join.buffer.remove(outgoing)
            paced = outgoing in self.queue
            self._budget.settle(outgoing, None, outgoing.timed_out(written=False, paced=paced))

    # Presence

    def say_presence(self, join: Join) -> None:
        """Tell the server who we are, if it does not know, now or as soon as its budget allows."""
        calls, wish, now = join.presence_calls, join.share.wish, self._loop.now
        if calls.in_flight or join.held or not join.joined or join.connection is None:
            return
        if not calls.has_news(wish, asked=bool(join.presence_pushes)) and not join.replaying:
            pushes, join.presence_pushes = join.presence_pushes, {}
            for outgoing in pushes:  # a sibling has said it already
                self._budget.settle(outgoing, {}, None)
            return
        if not calls.may_call(now):
            if join.presence_timer is None or join.presence_timer.cancelled:
                join.presence_timer = self._loop.call_at(calls.next_at(), lambda: self.say_presence(join))
            return
        join.presence_calling, join.presence_pushes = join.presence_pushes, {}
        calls.called(wish)
        join.connection.session.push(
            join.topic,
            PRESENCE,
            UNTRACK if wish is None else track_body(wish),
            token=(join, calls.join_number),
            wants_reply=True,
            deadline=now + self._reply_timeout,
            now=now,
        )

    def fail_presence(self, join: Join, error: RtpoolError | None = None) -> None:
        """Nobody is to wait for its presence any longer."""
        pushes = (*join.presence_calling, *join.presence_pushes)
        join.presence_calling, join.presence_pushes = {}, {}
        for outgoing in pushes:
            self._budget.settle(outgoing, None, error.again() if error else outgoing.unsubscribed())

    def rejoining(self, join: Join) -> None:
        """A new join begins: what awaits an answer is said again after it, and answered then."""
        join.presence_calls.rejoined()
        join.presence_pushes = {**join.presence_calling, **join.presence_pushes}
        join.presence_calling = {}

    def _presence_answered(self, join: Join, join_number: int, event: PushSettled) -> None:
        if join_number != join.presence_calls.join_number:
            return
        if event.outcome == "lost":
            self.rejoining(join)
            return
        pushes, join.presence_calling = join.presence_calling, {}
        join.presence_calls.answered(self._loop.now, ok=event.outcome == "reply" and event.status == "ok")
        for outgoing in pushes:
            self._settling.append((outgoing, event.response, outgoing.error_of(event, self._log.hide)))
        join.replaying = False  # replays come before the answer: one process sends both
        self.say_presence(join)

    def _expire_presence(self, join: Join, outgoing: Outgoing) -> None:
        if outgoing.outcome is None:
            self._budget.settle(outgoing, None, outgoing.timed_out(written=outgoing in join.presence_calling))
            join.presence_pushes.pop(outgoing, None)

"""
`Push`, the future of one message to the server.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NoReturn

from rtpool.checks import check_callable, check_timeout
from rtpool.engine.engine import Engine
from rtpool.engine.outgoing import Outgoing
from rtpool.errors import PoolForked, PushTimeout, RtpoolError

__all__ = ["Push"]


class Push:
    """
    The future of one message to the server.

    When a reply is wanted it resolves to the server's response (a JSON value, or bytes), else to None as soon as the
    kernel has taken the whole frame.

    Thread-safety: every method may be called from any thread.
    """

    __slots__ = ("__weakref__", "_engine", "_outgoing")

    def __init__(self, engine: Engine, outgoing: Outgoing) -> None:
        self._engine = engine
        self._outgoing = outgoing

    @property
    def topic(self) -> str:
        """The topic as the user wrote it."""
        return self._outgoing.subscriber.topic

    @property
    def event(self) -> str:
        """The event pushed; for a broadcast the user's own."""
        return self._outgoing.name

    def done(self) -> bool:
        """Whether the outcome is known. In a forked child that of the parent's pushes is that they are not here."""
        return self._engine.forked or self._outgoing.outcome is not None

    def result(self, timeout: float | None = None) -> Any:
        """
        Wait for the outcome.

        Args:
            timeout: seconds; None waits as long as the push itself may take.

        Returns:
            The server's response, or None when no reply was wanted.

        Raises:
            PushTimeout: no outcome in time.
            PushRefused: the server answered with a status other than ok.
            ConnectionFailed: the connection was lost before the reply; whether the server acted on it is unknown.
            JoinRefused, PoolClosed: it could not be sent.
            PoolForked: it was under way when the process was forked, and this is the child: the parent alone hears the
                outcome.
        """
        if self._engine.forked:
            return self._known_before_fork()
        if timeout is None:
            # The I/O thread settles every push at its deadline; the second is for a machine that is busy.
            timeout = max(0.0, self._outgoing.deadline - time.monotonic()) + 1.0
        else:
            check_timeout(timeout)
        outcome = self._engine.budget.wait(self._outgoing, timeout)
        if outcome is None:
            raise PushTimeout(
                f"no outcome of push {self.event!r} on {self.topic!r} within {timeout:.1f} s",
                topic=self.topic,
                event=self.event,
                timeout=timeout,
            )
        return self._told(outcome)

    def add_done_callback(self, fn: Callable[[Push], object]) -> None:
        """
        Have `fn(push)` called on a worker, in order with the Channel's callbacks, once the outcome is known. Of what
        one read of the socket brings, outcomes come last.

        Once the pool is closed it is not called any more; a warning in the log says so.

        Raises:
            InvalidType: `fn` is not callable.
            PoolForked: it was made by the parent of this process.
        """
        check_callable(fn)
        if self._engine.forked:
            raise self._parents()
        engine, subscriber = self._engine, self._outgoing.subscriber

        def run(push: Push) -> None:
            engine.run_user_code(fn, push, f"push {push.event!r} on {push.topic!r}")

        def deliver() -> None:  # runs on the I/O thread: hands over, nothing more
            if not engine.dispatcher.deliver_essential(subscriber.mailbox, run, self):
                engine.warn(
                    f"a callback of push {self.event!r} on {self.topic!r} comes after close() and is not called"
                )

        engine.budget.when_settled(self._outgoing, deliver)

    def _known_before_fork(self) -> Any:
        if self._outgoing.outcome is None:
            raise self._parents()
        return self._told(self._outgoing.outcome)

    @staticmethod
    def _told(outcome: tuple[Any, RtpoolError | None]) -> Any:
        result, error = outcome
        if error is not None:
            raise error.again() from error
        return result

    def _parents(self) -> PoolForked:
        return PoolForked(f"push {self.event!r} on {self.topic!r} is the parent process's; it may or may not be sent")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Push belongs to its process and cannot be pickled or copied; take its result() there")

    def __repr__(self) -> str:
        return f"<rtpool.Push {self.event!r} on {self.topic!r} {'done' if self.done() else 'pending'}>"

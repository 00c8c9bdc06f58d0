"""
Callbacks that were declared with ``@realtime.on_…``: called in an app context, for each app that they were given to.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from types import NoneType
from typing import TYPE_CHECKING, Any

import attrs

from rtpool.channel import Channel
from rtpool.checks import check_callable
from rtpool.engine.threads import callback_name
from rtpool.errors import InvalidValue, PoolClosed, PoolForked
from rtpool.events import Gap, StatusChange
from rtpool.flask import signals
from rtpool.pool import RealtimePool

if TYPE_CHECKING:
    from flask import Flask

__all__ = ["Declared", "InAppContext", "Subscriptions"]

Condition = threading.Condition
Callback = Callable[[Any], object]

#: What a declared callback's Channel says when it hears nothing, until it is joined again.
SILENT = ("refused", "timed_out", "closed")


@attrs.frozen(eq=False)
class Declared:
    """
    A declared callback.

    Attributes:
        function: the user's.
        topic, private: where it listens. A topic of None is every one, for gaps alone.
        bind: gives a Channel a callback; None for gaps, which each Channel hears anyway.
    """

    function: Callback = attrs.field(validator=lambda _instance, _attribute, value: check_callable(value))
    topic: str | None
    private: bool = False
    bind: Callable[[Channel, Callback], object] | None = None


class InAppContext:
    """
    A function that runs in a context of the app, as a view does: what is registered with ``app.teardown_appcontext``
    runs after it. Does nothing when the app is gone.
    """

    def __init__(self, app: Flask, function: Callable[..., Any]) -> None:
        self.function = function
        self.__qualname__ = callback_name(function)
        self._app = weakref.ref(app)
        self._call = app.ensure_sync(function)

    def __call__(self, *arguments: Any) -> Any:
        app = self._app()
        if app is None:
            return None
        with app.app_context():
            return self._call(*arguments)


class Subscriptions:
    """
    The declared callbacks of one app on one pool. One topic's share a Channel: they run in the server's order.

    Args:
        app: is known weakly.
        pool: of the app.
        declared: grows.

    Thread-safety: every method may be called from any thread.
    """

    def __init__(self, app: Flask, pool: RealtimePool, declared: Sequence[Declared]) -> None:
        self.pool = pool
        self._app = weakref.ref(app)
        self._declared = declared
        self._channels: dict[tuple[str, bool], Channel] = {}
        self._gap_callbacks: tuple[tuple[str | None, Callback], ...] = ()
        self._bound = 0
        #: How many of the declared are subscribed, or never will be.
        self.done = 0
        self._refused: list[Declared] = []
        # Guards: _at_work. Who is at work changes the five above alone.
        self._idle = Condition()
        self._at_work = False

    @property
    def channels(self) -> tuple[Channel, ...]:
        """One for each topic."""
        return tuple(self._channels.values())

    def subscribe(self, wait: float) -> bool:
        """
        Subscribe what was declared so far. Idempotent; waits for no server.

        Args:
            wait: seconds to wait for another thread that does so already.

        Returns:
            False when another thread does so.

        Raises:
            InvalidValue: a callback cannot be; it is tried again next time.
            ConnectionFailed: as `Channel.subscribe`; to be called again.
            PoolClosed: to be done with another pool.

            The first of what went wrong; every other callback is subscribed.
        """
        deadline = time.monotonic() + wait
        with self._idle:
            while self._at_work:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return False
                self._idle.wait(remaining)
            self._at_work = True
        mine, first = True, None
        try:
            while mine:
                error = self._subscribe_all()
                first = first or error
                with self._idle:
                    if self._bound == len(self._declared):  # who declares from here on finds nobody at work
                        self._at_work = mine = False
                        self._idle.notify_all()
        finally:
            if mine:
                with self._idle:
                    self._at_work = False
                    self._idle.notify_all()
        if first is not None:
            raise first
        return True

    def _subscribe_all(self) -> Exception | None:
        """Subscribe whatever can be, and return the first error."""
        errors: list[Exception] = []
        waiting = tuple(self._declared)[self._bound :]
        waiting, self._bound, self._refused = (*self._refused, *waiting), self._bound + len(waiting), []
        for declared in waiting:
            try:
                self._bind(declared)
            except PoolClosed:
                raise
            except Exception as error:
                self._refused.append(declared)
                words = f"the callback {callback_name(declared.function)} cannot be subscribed: {error}"
                errors.append(InvalidValue(words))
                errors[-1].__cause__ = error
        done = True
        for channel in self.channels:
            try:
                channel.subscribe(wait=False)
            except PoolClosed:
                raise
            except Exception as error:
                done = False
                errors.append(error)
        if done:
            self.done = self._bound
        return errors[0] if errors else None

    def after_fork(self) -> None:
        """In a forked child: whoever was at work is not here, and what is subscribed is up to the pool's options."""
        self.done = 0
        self._idle = Condition()
        self._at_work = False

    def _bind(self, declared: Declared) -> None:
        app = self._app()
        if app is None:
            return
        callback = InAppContext(app, declared.function)
        if declared.bind is None:
            self._gap_callbacks += ((declared.topic, callback),)
            return
        assert declared.topic is not None
        key = declared.topic, declared.private
        channel = self._channels.get(key)
        if channel is None:
            channel = self.pool.channel(declared.topic, private=declared.private)
            channel.on_gap(self._on_gap).on_status(self._on_status)
        declared.bind(channel, callback)
        self._channels[key] = channel

    def _on_gap(self, gap: Gap) -> None:
        app = self._app()
        if app is None:
            return
        with app.app_context():
            app.logger.warning(
                "rtpool: messages on %r may have been lost from %s to %s (%s)",
                gap.topic,
                gap.lost_from,
                gap.lost_to,
                gap.cause,
            )
        for topic, callback in self._gap_callbacks:
            if topic in (None, gap.topic):
                self.pool._engine.run_user_code(callback, gap, repr(gap.topic))
        signals.send(signals.gap, app, gap=gap)

    def _on_status(self, change: StatusChange) -> None:
        app = self._app()
        if app is None:
            return
        with app.app_context():
            if change.status in SILENT and not isinstance(change.error, (NoneType, PoolClosed, PoolForked)):
                app.logger.warning(
                    "rtpool: callbacks on %r are not called (%s): %s", change.topic, change.status, change.error
                )
        signals.send(signals.status_changed, app, change=change)

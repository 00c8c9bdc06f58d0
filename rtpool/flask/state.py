"""
What one app has of rtpool: settings, pool, subscribed callbacks, streams. It is ``app.extensions["rtpool"]``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import rtpool
from rtpool.checks import check_callable, check_timeout, check_type
from rtpool.engine.threads import callback_name
from rtpool.errors import InvalidValue, PoolClosed, RtpoolError
from rtpool.events import StatusChange
from rtpool.flask import processes, signals
from rtpool.flask.callbacks import Declared, InAppContext, Subscriptions
from rtpool.flask.config import API_KEYS, URLS, Settings, read_settings
from rtpool.flask.requests import end_forgotten
from rtpool.flask.streams import Streams

if TYPE_CHECKING:
    from flask import Flask

    from rtpool.channel import Channel
    from rtpool.debug.serving import DebugServer

__all__ = ["AppState", "declared_late"]

Lock = threading.Lock

#: What is told to who uses a request's Channel in a forked child.
FORKED = "was a request's, which is the parent process's"
#: Seconds after which requests try again to subscribe the callbacks that could, or should, not be.
RETRY_SECONDS = 30.0

#: For a forked child, and for what is declared late.
_states: weakref.WeakSet[AppState] = weakref.WeakSet()


class AppState:
    """
    Made by `Realtime.init_app`; gone with its app, and the pool with it.

    Args:
        app: is known weakly.
        declared: the extension's callbacks; grows.

    Attributes:
        settings: as the config was when the pool was made, or at `init_app`.
        request_channels: that end with an app context.
        forgotten: those of contexts whose end was cut short; the next request ends them.
        alive: says whether the process goes on serving; user code, None where nobody said.

    Thread-safety: every method may be called from any thread.
    """

    def __init__(self, app: Flask, declared: Sequence[Declared] = ()) -> None:
        self._app = weakref.ref(app)
        self.declared = declared
        self.settings: Settings = read_settings(app.config)
        self.request_channels: set[Channel] = set()
        self.forgotten: deque[list[Channel]] = deque()
        self.alive: Callable[[], bool] | None = None
        # Guards: _running, _streams
        self._lock = Lock()
        self._running: Subscriptions | None = None
        self._closed = False  # by whoever it was: the declared callbacks wait for `start`
        self._streams: Streams | None = None
        self._asked = False  # for the declared callbacks, by `start` or the first request
        self._again_at = 0.0
        self._told = ""
        self._debug_server: DebugServer | None = None
        _states.add(self)

    @property
    def app(self) -> Flask:
        """The app."""
        app = self._app()
        if app is None:
            raise PoolClosed("the app is gone, and its pool with it")
        return app

    @property
    def pool(self) -> rtpool.RealtimePool:
        """
        The app's pool, made when it is first asked for, and anew when it was closed. Opens nothing.

        The config is read once more when it is made.

        Raises:
            InvalidValue, InvalidType: the config has no URL or key, or a bad value; naming the key.
        """
        return self._subscriptions().pool

    @property
    def has_pool(self) -> bool:
        """Whether there is a pool now."""
        running = self._running
        return running is not None and not running.pool.closed

    @property
    def serving(self) -> bool:
        """Whether the process goes on serving; where it does not, browsers go on with another."""
        alive = self.alive
        return alive is None or alive()

    def _subscriptions(self) -> Subscriptions:
        running = self._running
        if running is None or running.pool.closed:
            app = self.app
            settings = read_settings(app.config)
            fresh = Subscriptions(app, self._make_pool(app, settings), self.declared)
            with self._lock:
                running = self._running
                if running is None or running.pool.closed:
                    self._closed = self._closed or running is not None
                    self.settings, self._running, running = settings, fresh, fresh
        return running

    def _make_pool(self, app: Flask, settings: Settings) -> rtpool.RealtimePool:
        wanted = "the app's config has no {}, and neither it nor the environment {}"
        if not settings.url:
            raise InvalidValue(wanted.format(URLS[0], URLS[1]))
        in_header = any(name.lower() == "x-api-key" for name, _ in settings.options.headers)
        if settings.options.is_supabase and not settings.api_key and not in_header:
            raise InvalidValue(wanted.format(API_KEYS[0], ", ".join(API_KEYS[1:])))
        token = settings.access_token
        if callable(token):
            token = InAppContext(app, token)
        pool = rtpool.RealtimePool(settings.url, api_key=settings.api_key, access_token=token, options=settings.options)
        pool._engine.warn_at_exit = False  # apps have no end of their own
        pool._hooks.report = self._report
        return pool.on_status(self._on_status)

    @property
    def streams(self) -> Streams:
        """The streams to browsers."""
        streams = self._streams
        if streams is None:
            fresh = Streams(self)
            with self._lock:
                streams = self._streams = self._streams or fresh
        return streams

    # The declared callbacks

    def start(self, *, wait: bool = False, timeout: float = 10.0, alive: Callable[[], bool] | None = None) -> None:
        """As `Realtime.start`."""
        check_type("wait", wait, bool)
        check_timeout(timeout)
        if alive is not None:
            check_callable(alive)
            self.alive = alive
        deadline = time.monotonic() + timeout
        self._asked, self._closed = True, False
        running = self._subscriptions()
        running.subscribe(timeout)
        if wait:
            for channel in running.channels:
                channel.subscribe(timeout=max(0.0, deadline - time.monotonic()))

    def before_request(self) -> None:
        """A request is about to be handled: the first one subscribes the declared callbacks, and never fails for it."""
        end_forgotten(self)
        running = self._running
        if len(self.declared) == (running.done if running is not None else 0) or self._closed:
            return
        if time.monotonic() < self._again_at:
            return
        if self._starts_by_itself():
            self._asked = True
            self._subscribe_quietly()
        else:  # a look at the config takes longer than many a request
            self._again_at = time.monotonic() + RETRY_SECONDS

    def _starts_by_itself(self) -> bool:
        app = self.app
        try:
            wanted = read_settings(app.config).autostart
        except RtpoolError:
            wanted = None  # subscribing tells
        return not app.testing if wanted is None else wanted

    def declared_late(self) -> None:
        """Something was declared, perhaps after the others were subscribed."""
        if self._asked and not self._closed:
            self._subscribe_quietly()

    def _subscribe_quietly(self) -> None:
        """Subscribe the callbacks on behalf of who did not ask for it; what goes wrong is told once."""
        try:
            self._subscriptions().subscribe(0.0)
        except Exception as error:  # whatever it is, it is no reason for a request to fail
            self._again_at = time.monotonic() + RETRY_SECONDS
            if self._told != str(error):
                self._told = str(error)
                self.app.logger.error("rtpool: not every declared callback could be subscribed: %s", error)

    # What the pool tells, on its workers

    def _report(self, error: BaseException, callback: Any, event: Any, where: str) -> None:
        """A callback raised, of whatever kind."""
        app = self._app()
        if app is None:
            return
        if isinstance(callback, InAppContext):
            callback = callback.function
        with app.app_context():
            name = callback_name(callback)
            told = (type(error), error, error.__traceback__)
            app.logger.error("rtpool: callback %s of %s raised %s", name, where, type(error).__name__, exc_info=told)
        signals.send(signals.callback_failed, app, exception=error, callback=callback, event=event)

    def _on_status(self, change: StatusChange) -> None:
        app = self._app()
        if app is None:
            return
        with app.app_context():
            if change.status == "connecting":
                self._serve_debug(app)
            elif change.status == "error":
                app.logger.warning("rtpool: there is no connection: %s", change.error)
        signals.send(signals.status_changed, app, change=change)

    def _serve_debug(self, app: Flask) -> None:
        wanted, running, serving = self.settings.serve_debug, self._running, self._debug_server
        if not (app.debug if wanted is None else wanted) or running is None or (serving and not serving.closed):
            return
        try:
            self._debug_server = processes.serve(app, running.pool)
        except PoolClosed:  # meanwhile
            return
        except RtpoolError as error:
            level = logging.WARNING if wanted else logging.INFO
            app.logger.log(level, "rtpool: other processes cannot look at the pool: %s", error)

    # The end

    def close(self, timeout: float = 5.0) -> bool:
        """As `Realtime.close`."""
        check_timeout(timeout)
        deadline = time.monotonic() + timeout
        with self._lock:
            running, self._running = self._running, None
            streams, self._closed = self._streams, True
        ended = streams is None or streams.close(timeout / 2)
        if running is None:
            return ended
        return running.pool.close(max(0.0, deadline - time.monotonic())) and ended

    def after_fork(self) -> None:
        """In a forked child, after the pool's own part: requests and browsers are the parent's."""
        self._lock = Lock()
        self._again_at = 0.0
        self.alive = None
        if self._running is not None:
            self._running.after_fork()
        channels = list(self.request_channels)
        self.request_channels.clear()
        self.forgotten.clear()
        with contextlib.ExitStack() as steps:  # the rest is done even if one fails
            for channel in channels:
                steps.callback(channel._end, FORKED)
            if self._streams is not None:
                steps.callback(self._streams.after_fork)


def declared_late(declared: Sequence[Declared]) -> None:
    """Subscribe what was just added wherever the others are subscribed already."""
    for state in list(_states):
        if state.declared is declared:
            state.declared_late()


def _leave_to_parent() -> None:
    with contextlib.ExitStack() as steps:  # the others go on even if one fails
        for state in list(_states):
            steps.callback(state.after_fork)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_leave_to_parent)

"""
`Realtime`: the extension's face.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from flask import Flask, current_app, has_app_context

import rtpool
from rtpool.checks import check_name, check_type
from rtpool.errors import ConfigConflict, InvalidValue
from rtpool.events import Broadcast, Event, Gap, PostgresChange, Presence
from rtpool.filters import Filter
from rtpool.flask import commands, page
from rtpool.flask.callbacks import Declared
from rtpool.flask.requests import end_with_context, leave
from rtpool.flask.state import AppState, declared_late
from rtpool.flask.streams import Changes, stream
from rtpool.protocol.messages import MAX_NAME_BYTES
from rtpool.protocol.postgres import ChangeBinding

if TYPE_CHECKING:
    from flask import Response

__all__ = ["Realtime"]

NAME = "rtpool"

OnChange = TypeVar("OnChange", bound=Callable[[PostgresChange], object])
OnBroadcast = TypeVar("OnBroadcast", bound=Callable[[Broadcast], object])
OnPresence = TypeVar("OnPresence", bound=Callable[[Presence], object])
OnGap = TypeVar("OnGap", bound=Callable[[Gap], object])

_PRESENCE = {
    "sync": rtpool.Channel.on_presence_sync,
    "join": rtpool.Channel.on_presence_join,
    "leave": rtpool.Channel.on_presence_leave,
}


class Realtime:
    """
    rtpool as a Flask extension: callbacks in an app context, Channels that end with their request, streams to browsers.

    Holds what was declared, nothing of any app: that is in ``app.extensions["rtpool"]``. A declared callback is every
    app's that the extension is given to, whichever came first; one topic's callbacks run in the server's order, never
    two at once, and different topics' in parallel. They are subscribed at the process's first request, or by `start`.

    Args:
        app: to be initialized at once; None for the app factory pattern, with `init_app` later.

    Thread-safety: every method may be called from any thread.
    """

    def __init__(self, app: Flask | None = None) -> None:
        self._declared: list[Declared] = []  # appended to, nothing else
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """
        Make the extension work in an app. Opens nothing; connects at the first use. Idempotent.

        Raises:
            InvalidValue, InvalidType: a config key with ``RTPOOL_`` is none of ours, or has a bad value.
            ConfigConflict: the app has another `Realtime`.
        """
        present = app.extensions.get(NAME)
        if present is not None:
            if present.declared is self._declared:
                return
            raise ConfigConflict(f"the app {app.name!r} has a Realtime already; declare its callbacks with that one")
        state = AppState(app, self._declared)
        page.register(app, state)
        commands.register(app)
        app.before_request_funcs[None].insert(0, state.before_request)  # a probe may be the first request, too
        app.teardown_appcontext(lambda _error: leave(state))
        app.extensions[NAME] = state

    @property
    def state(self) -> AppState:
        """
        The current app's.

        Raises:
            RuntimeError: there is no app context, or its app was never given to `init_app`.
        """
        if not has_app_context():
            raise RuntimeError(
                "rtpool needs to know which app is meant: use it in a request, a declared callback or a command, or "
                "within `with app.app_context():`"
            )
        return _state_of(current_app)

    @property
    def pool(self) -> rtpool.RealtimePool:
        """
        The current app's pool, for what is to outlive a request. Opens nothing until it is used.

        Raises:
            InvalidValue, InvalidType: the config has no URL or key, or a bad value; naming the key.
            RuntimeError: as `state`.
        """
        return self.state.pool

    # Callbacks

    def on_changes(
        self,
        table: str,
        event: str = "*",
        *,
        schema: str | None = "public",
        filter: Filter | str | None = None,
        select: Sequence[str] | None = None,
    ) -> Callable[[OnChange], OnChange]:
        """
        Declare a callback for a table's changes. Equal requests share a join.

        Args:
            table, event, schema, filter, select: as `rtpool.Channel.on_postgres_changes`.

        Returns:
            A decorator; it returns the function as it is.

        Raises:
            InvalidValue, InvalidType: naming the argument.
        """
        check_type("table", table, str)
        change = ChangeBinding.checked(event, schema, table, filter, select)

        def bind(channel: rtpool.Channel, callback: Callable[[PostgresChange], object]) -> object:
            return channel.on_postgres_changes(
                change.event,
                callback,
                schema=change.schema,
                table=change.table,
                filter=change.filter,
                select=change.select,
            )

        return partial(self._declare, topic=change.topic, bind=bind)

    def on_broadcast(
        self, topic: str, event: str = "*", *, private: bool = False
    ) -> Callable[[OnBroadcast], OnBroadcast]:
        """
        Declare a callback for broadcasts.

        Args:
            topic, private: as `rtpool.RealtimePool.channel`.
            event: as `rtpool.Channel.on_broadcast`; ``"*"`` is every name.

        Returns:
            A decorator; it returns the function as it is.

        Raises:
            InvalidValue, InvalidType: naming the argument.
        """
        _check_topic(topic, private)
        check_name("event", event, MAX_NAME_BYTES)

        def bind(channel: rtpool.Channel, callback: Callable[[Broadcast], object]) -> object:
            return channel.on_broadcast(event, callback)

        return partial(self._declare, topic=topic, private=private, bind=bind)

    def on_presence(
        self, topic: str, kind: str = "sync", *, private: bool = False
    ) -> Callable[[OnPresence], OnPresence]:
        """
        Declare a callback for who is present.

        Args:
            topic, private: as `rtpool.RealtimePool.channel`.
            kind: ``"sync"``, ``"join"`` or ``"leave"``.

        Returns:
            A decorator; it returns the function as it is.

        Raises:
            InvalidValue, InvalidType: naming the argument.
        """
        _check_topic(topic, private)
        if kind not in _PRESENCE:
            raise InvalidValue(f"kind must be one of {', '.join(map(repr, _PRESENCE))}, not {kind!r}")
        return partial(self._declare, topic=topic, private=private, bind=_PRESENCE[kind])

    def on_gap(self, topic: str | None = None) -> Callable[[OnGap], OnGap]:
        """
        Declare a callback for interruptions in which declared callbacks may have missed something. It subscribes
        nothing by itself. Each is logged as a warning and sent as `rtpool.flask.gap` anyway.

        Args:
            topic: of broadcasts or presence; None for every one, and for tables.

        Returns:
            A decorator; it returns the function as it is.

        Raises:
            InvalidValue, InvalidType: naming the argument.
        """
        if topic is not None:
            _check_topic(topic, False)
        return partial(self._declare, topic=topic)

    def _declare(self, function: Any, **details: Any) -> Any:
        self._declared.append(Declared(function, **details))
        declared_late(self._declared)
        return function

    # Requests

    def channel(
        self,
        topic: str,
        *,
        private: bool = False,
        receive_own: bool = False,
        ack: bool = False,
        presence_key: str | None = None,
        replay: bool | Mapping[str, int | datetime] | None = None,
        access_token: str | Callable[[], str] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> rtpool.Channel:
        """
        A Channel that ends with the current app context: with the request, the declared callback or the command.

        It is left then without waiting, whatever the view did or raised. Whoever still has it, as a thread may, gets no
        more events, and `rtpool.NotSubscribed`. A response that is streamed goes on after its view: there take one
        within the generator, with ``stream_with_context``, and it lasts as long as the response. Callbacks of a Channel
        run on rtpool's workers, outside of the context.

        Args:
            topic, private, receive_own, ack, presence_key, replay, access_token, params: as
                `rtpool.RealtimePool.channel`; with a user's own `access_token` it shares no join with others'.

        Raises:
            As `rtpool.RealtimePool.channel` and `pool`.
        """
        state = self.state
        channel = state.pool.channel(
            topic,
            private=private,
            receive_own=receive_own,
            ack=ack,
            presence_key=presence_key,
            replay=replay,
            access_token=access_token,
            params=params,
        )
        return end_with_context(state, channel)

    def stream(
        self,
        topic: str,
        *,
        broadcasts: str | Sequence[str] | None = "*",
        changes: str | Changes | Sequence[str | Changes] | None = None,
        presence: bool = False,
        private: bool = False,
        access_token: str | Callable[[], str] | None = None,
        authorize: Callable[[], object] | None = None,
        view: Callable[[Event], object] | None = None,
        slow: Literal["skip", "close"] = "skip",
    ) -> Response:
        """
        A response of Server-Sent Events, for a browser's ``EventSource``: what a topic tells, for as long as the
        browser listens. Any number of browsers that ask the same are told by one Channel. To be returned by a view.

        Events are named ``change``, ``broadcast``, ``presence``, ``gap`` and ``status``, and their data is JSON. A
        browser that comes back says what it had last, and gets what came since, or a ``gap``.

        Args:
            topic, private, access_token: as `rtpool.RealtimePool.channel`. A topic of the visitor's choosing is to be
                checked by the view: an empty or too long one is InvalidValue, which Flask answers with 500.
            broadcasts: names of those to tell; ``"*"`` for every one, None for none.
            changes: tables, or `rtpool.flask.Changes`, whose changes to tell as well.
            presence: whether to tell who is present.
            authorize: called in the request, before anything else: True lets the browser listen, False and None are
                answered with 403, a Response is the answer.
            view: called with each event on the browser's own thread, in an app context; returns what is sent as data, a
                JSON value, or None to leave the event out for this browser. None tells every event as it is.
            slow: what becomes of a browser that falls behind by more than is kept: ``"skip"`` has it go on with the
                oldest there is, after a ``gap``, ``"close"`` ends the stream, and it comes back by itself.

        Returns:
            The response; a 503 beyond ``RTPOOL_MAX_STREAMS``.

        Raises:
            InvalidValue, InvalidType: naming the argument; or as `pool`.
            RuntimeError: as `state`.
        """
        return stream(
            self.state,
            topic,
            broadcasts=broadcasts,
            changes=changes,
            presence=presence,
            private=private,
            access_token=access_token,
            authorize=authorize,
            view=view,
            slow=slow,
        )

    # Life

    def start(
        self,
        app: Flask | None = None,
        *,
        wait: bool = False,
        timeout: float = 10.0,
        alive: Callable[[], bool] | None = None,
    ) -> None:
        """
        Subscribe the declared callbacks now, and those of which an earlier `start` said that they could not be.

        For processes without requests, or before the first one: gunicorn's ``post_worker_init``, Celery's
        ``worker_process_init``, scripts, tests. It connects wherever it is called, so never call it in a factory, which
        the reloader, ``flask shell`` and gunicorn's master call, too. Idempotent.

        Args:
            app: None for the current one.
            wait: whether to return only when events really flow.
            timeout: seconds to wait, for all of them together.
            alive: asked about once a second while streams are open. When it returns False they end, and their browsers
                come back to another process: a server that stops gracefully is not held up by them. For gunicorn,
                ``lambda: worker.alive``. None leaves it as it was.

        Raises:
            InvalidValue, InvalidType: the config has no URL or key, or a bad value; or a callback cannot be in this
                pool, and every other one is subscribed.
            ConnectionFailed: the system has no thread or descriptor left; with `wait`, there is no connection.
            JoinRefused, JoinTimeout, PoolExhausted: with `wait`; this one's topic is not subscribed.
            RuntimeError: as `state`.
        """
        self._of(app).start(wait=wait, timeout=timeout, alive=alive)

    def close(self, timeout: float = 5.0, *, app: Flask | None = None) -> bool:
        """
        End the streams and close the pool, for tests. Idempotent. The next use makes another pool; the declared
        callbacks are subscribed again by `start` alone.

        A process that ends, and an app that is forgotten, need no such call. A signal's handler may have interrupted
        whoever holds a lock of the streams, and would wait for ever: there have another thread call this.

        Args:
            timeout: seconds it may take.
            app: None for the current one.

        Returns:
            True when everything was stopped in time.

        Raises:
            RuntimeError: as `state`.
        """
        return self._of(app).close(timeout)

    def _of(self, app: Flask | None) -> AppState:
        return self.state if app is None else _state_of(app)


def _state_of(app: Flask) -> AppState:
    state = app.extensions.get(NAME)
    if not isinstance(state, AppState):
        raise RuntimeError(f"the app {app.name!r} knows nothing of rtpool: call init_app(app) of a Realtime first")
    return state


def _check_topic(topic: str, private: bool) -> None:
    check_name("topic", topic, MAX_NAME_BYTES)
    check_type("private", private, bool)

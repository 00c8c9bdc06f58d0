"""
`RealtimePool`: the pool's life and its face.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from datetime import datetime
from types import TracebackType
from typing import Any, NoReturn, overload

import attrs

from rtpool.channel import Channel
from rtpool.checks import check_callable, check_name, check_timeout, check_token, check_type
from rtpool.engine.dialer import Endpoint
from rtpool.engine.engine import Engine
from rtpool.engine.fork import inherit
from rtpool.engine.hooks import Hooks
from rtpool.engine.mailboxes import ChannelMailbox
from rtpool.engine.signals import sigterm_calls
from rtpool.engine.threads import SLICE_SECONDS, outcome_of
from rtpool.errors import ConfigConflict, ConnectionFailed, InvalidType, InvalidValue, PoolClosed, RtpoolError
from rtpool.events import Heartbeat, PostgresChange, StatusChange
from rtpool.filters import Filter
from rtpool.insight import Insight
from rtpool.options import PoolOptions, make_options
from rtpool.protocol.json_engine import json_object
from rtpool.protocol.messages import MAX_NAME_BYTES
from rtpool.protocol.postgres import ChangeBinding
from rtpool.protocol.replay import read_replay
from rtpool.registry import ShareKey, Subscriber, identity_of
from rtpool.rest import RestBroadcasts, RestClient

__all__ = ["RealtimePool", "get_pool"]

Lock = threading.Lock

Token = str | Callable[[], str]

#: Seconds `close` may take when nobody says otherwise.
CLOSE_TIMEOUT = 5.0

#: Why a pool is closed that nobody closed.
FORGOTTEN = "nobody refers to it any more, and nobody closed it"

_numbers = itertools.count(1)


#: Pools that somebody holds, for a forked child.
_alive: weakref.WeakSet[RealtimePool] = weakref.WeakSet()


def _forgotten(engine: Engine) -> None:
    # Runs wherever the collector strikes, perhaps within one of our own critical sections: it takes no lock.
    if engine.started and not engine.closed:
        try:
            engine.abandon(FORGOTTEN)
            if engine.warn_at_exit:
                engine.warn_forgotten("never closed")
        except KeyboardInterrupt:  # Python drops what is raised here
            engine.abandon(FORGOTTEN, interrupt=True)


class RealtimePool(RestBroadcasts, Insight):
    """
    Few sockets, many channels: the synchronous way to Supabase Realtime and Phoenix Channels.

    Creating a pool opens nothing and starts nothing; first use does.

    Args:
        url: the project's URL (``https://abc.supabase.co``), a realtime base, or a Phoenix socket's mount
            (``ws://localhost:4000/socket``).
        api_key: the project's key. Required unless `topic_prefix` is empty or a header ``x-api-key`` is given.
        access_token: a user's JWT for joins, or a callable that returns one; it is called on a dial thread. None joins
            with the key.
        options: a base for the options.
        option_overrides: any field of `PoolOptions`.

    Raises:
        InvalidValue, InvalidType: a bad URL, no key, an unknown or bad option.

    Thread-safety: every method may be called from any thread, callbacks included.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        access_token: Token | None = None,
        options: PoolOptions | None = None,
        **option_overrides: Any,
    ) -> None:
        self.options = make_options(options, option_overrides)
        self._endpoint = _endpoint(url, api_key, self.options)
        self._given = (access_token, self.options)
        _check_token(access_token)
        if not self.options.is_supabase:
            _refuse_supabase_only(access_token=access_token)
        # What users hand over is held here: threads know it weakly, for it may refer to this pool.
        self._hooks = Hooks()
        self._handles: weakref.WeakValueDictionary[Subscriber, Channel] = weakref.WeakValueDictionary()
        self._take_engine(str(next(_numbers)), access_token)
        _alive.add(self)

    def _take_engine(self, name: str, token: Token | None) -> None:
        self._engine = engine = Engine(name, self._endpoint, self.options, self._hooks.lend(token), self._hooks)
        self._kept = engine.registry.entrust()
        self._rest = RestClient(engine, token)
        # At exit the engine sees to itself, where locks may be taken.
        self._finalizer = weakref.finalize(self, _forgotten, engine)
        self._finalizer.atexit = False

    @classmethod
    def from_env(cls, prefix: str = "SUPABASE", **options: Any) -> RealtimePool:
        """
        A pool from ``<prefix>_URL`` and the first of ``<prefix>_KEY``, ``_ANON_KEY``, ``_SERVICE_ROLE_KEY``.

        Args:
            prefix: of the variables' names.
            options: as the constructor's keywords.

        Raises:
            InvalidValue: a variable is missing; the error names those looked for.
        """
        check_type("prefix", prefix, str)
        url = os.environ.get(f"{prefix}_URL")
        if not url:
            raise InvalidValue(f"the environment has no {prefix}_URL")
        names = [f"{prefix}_KEY", f"{prefix}_ANON_KEY", f"{prefix}_SERVICE_ROLE_KEY"]
        key = next((value for name in names if (value := os.environ.get(name))), None)
        if key is None and "api_key" not in options:
            raise InvalidValue(f"the environment has none of {', '.join(names)}")
        return cls(url, **{"api_key": key, **options})

    # Channels

    def channel(
        self,
        topic: str,
        *,
        private: bool = False,
        receive_own: bool = False,
        ack: bool = False,
        presence_key: str | None = None,
        replay: bool | Mapping[str, int | datetime] | None = None,
        access_token: Token | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> Channel:
        """
        A new handle on a topic. Opens nothing; `Channel.subscribe` does.

        Args:
            topic: without the prefix; 1 to 255 bytes of UTF-8 with it.
            private: ask for the private channel, which row-level security guards.
            receive_own: hear one's own broadcasts.
            ack: have the server acknowledge broadcasts.
            presence_key: be present under this key; Channels with different keys do not share a join.
            replay: for private channels, whose database broadcasts the server stores. True has those replayed that
                were missed in an interruption; ``{"since": ms since the epoch or an aware datetime, "limit": 1…25}``
                the newest of those since then as well, once at the first join. Each comes once. The server tells its
                clock in whole seconds, so of an interruption soon after the subscription there may be more: what was
                stored up to a second or so before it.
            access_token: a token of its own; Channels with different tokens never share a join.
            params: the payload of the join on a plain Phoenix server, a JSON object.

        Raises:
            InvalidValue, InvalidType: naming the argument.
            PoolClosed: the pool is closed.
        """
        prefix = self.options.topic_prefix
        check_name("topic", topic, MAX_NAME_BYTES - len(prefix.encode("utf-8")))
        for name, flag in (("private", private), ("receive_own", receive_own), ("ack", ack)):
            check_type(name, flag, bool)
        wanted, first = read_replay(replay)
        if wanted and not private:
            raise InvalidValue("replay works on private channels only; pass private=True")
        if not self.options.is_supabase:
            _refuse_supabase_only(
                private=private,
                receive_own=receive_own,
                ack=ack,
                presence_key=presence_key,
                access_token=access_token,
            )
        elif params is not None:
            raise InvalidValue("params are for plain Phoenix servers; Realtime's joins are made of the other arguments")
        if presence_key is not None:
            check_name("presence_key", presence_key, MAX_NAME_BYTES)
        _check_token(access_token)
        engine = self._engine
        if engine.closed:
            raise PoolClosed(f"the pool {engine.name} is closed; make a new one")
        subscriber = Subscriber(
            topic,
            ShareKey(
                prefix + topic,
                private,
                identity_of(access_token),
                presence_key,
                first,
                json_object(params or {}, "params"),
            ),
            receive_own=receive_own,
            ack=ack,
            replay=wanted,
            token=access_token,
        )
        subscriber.mailbox = ChannelMailbox(engine, subscriber)
        return self._handle(subscriber)

    def _handle(self, subscriber: Subscriber) -> Channel:
        handle = self._handles.get(subscriber)
        if handle is None:
            handle = self._handles[subscriber] = Channel(self, subscriber)
        return handle

    def on_changes(
        self,
        table: str,
        callback: Callable[[PostgresChange], object],
        *,
        event: str = "*",
        schema: str | None = "public",
        filter: Filter | str | None = None,
        select: Sequence[str] | None = None,
        timeout: float = 10.0,
    ) -> Channel:
        """
        Subscribe to a table's changes in one line; equal requests share one join.

        Args:
            table, event, schema, filter, select: as `Channel.on_postgres_changes`.
            timeout: seconds until changes flow.

        Returns:
            The subscribed Channel; unsubscribe it when done.

        Raises:
            As `Channel.on_postgres_changes` and `Channel.subscribe`.
        """
        check_type("table", table, str)
        check_callable(callback)
        check_timeout(timeout)
        change = ChangeBinding.checked(event, schema, table, filter, select)
        channel = self.channel(change.topic)
        channel.on_postgres_changes(
            change.event, callback, schema=change.schema, table=table, filter=change.filter, select=change.select
        )
        return channel.subscribe(timeout=timeout)

    def channels(self) -> list[Channel]:
        """
        Every subscribed Channel, whoever made it.
        """
        return [self._handle(subscriber) for subscriber in self._engine.registry.subscribers()]

    def unsubscribe_all(self, *, timeout: float = 10.0) -> None:
        """
        Unsubscribe every Channel.

        Args:
            timeout: seconds for all of them together.
        """
        check_timeout(timeout)
        deadline = time.monotonic() + timeout
        leaving = [(channel, channel._detach()) for channel in self.channels()]  # all of them at once
        try:
            for channel, attachment in leaving:
                if attachment is not None:
                    channel._await_left(attachment, max(0.0, deadline - time.monotonic()))
        except KeyboardInterrupt:
            for channel, _ in leaving:
                self._engine.registry.left(channel._subscriber)
            raise

    # Connection

    def connect(self, timeout: float = 30.0) -> None:
        """
        Have an open connection, or retry at once when the pool waits to reconnect.

        Args:
            timeout: seconds to wait for it.

        Raises:
            ConnectionFailed: there is none in time, or there can be none.
            PoolClosed: the pool is closed.
        """
        check_timeout(timeout)
        self._engine.start()
        waiter: Future[None] = Future()
        self._engine.post(self._engine.coordinator.connections.connect, waiter)
        try:
            outcome_of(waiter, timeout)
        except RtpoolError as error:
            raise error.again() from error
        except FutureTimeout:
            waiter.cancel()
            raise ConnectionFailed(f"no connection to {self._endpoint.url} within {timeout} s") from None

    def set_auth(self, token: Token) -> None:
        """
        Use another access token: on live channels now, on every later join too.

        Args:
            token: a JWT, or a callable that returns one.

        Raises:
            InvalidType: neither.
        """
        if token is None:
            raise InvalidType("token must be a str or a callable that returns one, not None")
        _check_token(token)
        if not self.options.is_supabase:
            _refuse_supabase_only(token=token)
        self._rest.token = token
        self._engine.start()
        self._engine.post(self._engine.coordinator.set_token, self._hooks.lend(token))

    @overload
    def on_status(self, callback: Callable[[StatusChange], object]) -> RealtimePool: ...
    @overload
    def on_status(self) -> Callable[[Callable[[StatusChange], object]], Callable[[StatusChange], object]]: ...
    def on_status(self, callback: Callable[[StatusChange], object] | None = None) -> Any:
        """
        Call back, on a worker, with each `StatusChange` of the pool.

        Returns:
            The pool; without `callback` a decorator.
        """
        return self._listen(self._engine.listen, callback)

    @overload
    def on_heartbeat(self, callback: Callable[[Heartbeat], object]) -> RealtimePool: ...
    @overload
    def on_heartbeat(self) -> Callable[[Callable[[Heartbeat], object]], Callable[[Heartbeat], object]]: ...
    def on_heartbeat(self, callback: Callable[[Heartbeat], object] | None = None) -> Any:
        """
        Call back, on a worker, with each `Heartbeat` of each connection: sent, answered after how long, or not.

        Returns:
            The pool; without `callback` a decorator.
        """
        return self._listen(self._engine.listen_to_heartbeats, callback)

    def _listen(self, add: Callable[[Callable[[Any], object]], None], callback: Callable[[Any], object] | None) -> Any:
        if callback is None:

            def decorate(function: Callable[[Any], object]) -> Callable[[Any], object]:
                self._listen(add, function)
                return function

            return decorate
        check_callable(callback)
        add(callback)
        return self

    def on_callback_error(self, hook: Callable[[BaseException, Callable[[Any], object], Any], object]) -> RealtimePool:
        """
        Call `hook(error, callback, event)`, on a worker, after a callback raised; it was logged and counted already.

        Replaces an earlier hook.
        """
        check_callable(hook)
        self._hooks.error = hook
        return self

    def force_cleanup(self) -> int:
        """
        Close idle connections now instead of after `cleanup_interval`, and run the health check's audit at once.

        Returns:
            How many connections were closed.
        """
        if not self._engine.started or self._engine.closed:
            return 0
        done: Future[int] = Future()
        self._engine.post(self._engine.coordinator.clean_up, done)
        return outcome_of(done, CLOSE_TIMEOUT)

    # Life

    @property
    def closed(self) -> bool:
        """Whether `close` was called, or the pool failed."""
        return self._engine.closed

    def run_forever(self, *, handle_sigterm: bool = False) -> None:
        """
        Block until the pool is closed; Ctrl-C closes it and returns.

        Args:
            handle_sigterm: have SIGTERM, by which service managers and containers stop a program, close the pool and
                return as well. In the main thread only. The handler is rtpool's while this runs, and the one before
                when it returns; further SIGTERMs until then do nothing, for `close` is bounded by its time-out. False
                leaves signals alone, and SIGTERM ends the process at once.

        Raises:
            InvalidValue: `handle_sigterm` outside of the main thread, where Python runs no signal handlers.
        """
        check_type("handle_sigterm", handle_sigterm, bool)
        engine, told = self._engine, []

        def terminate() -> None:
            told.append("SIGTERM")
            if engine.started:
                engine.abandon("SIGTERM", CLOSE_TIMEOUT)

        with sigterm_calls(terminate) if handle_sigterm else contextlib.nullcontext():
            try:
                while not told and not engine.ended.wait(SLICE_SECONDS):
                    continue
            except KeyboardInterrupt:
                told.append("SIGINT")
            if told:
                self.close()

    def close(self, timeout: float = CLOSE_TIMEOUT) -> bool:
        """
        Send what was accepted, leave, close every socket, end every thread. Idempotent, also within a callback.

        With a server that answers this takes milliseconds, with a silent one half a second. As long as there is time it
        waits for one that may not have read every push and leave, for the turn of pushes (option
        `max_events_per_second`), and for joins under way that pushes wait for; for connections it does not. A push that
        could not be sent fails with `PoolClosed` or `ConnectionFailed`.

        Args:
            timeout: seconds it may take; 0 does not wait, and all ends in the background.

        Returns:
            True when everything was stopped in time; what was not is named in the log. A callback that closes its own
            pool gets True although its thread ends only when it returns. A handler of a signal that came in the middle
            of another call of the pool may get False, and then all ends after its return.
        """
        check_timeout(timeout)
        self._finalizer.detach()
        stopped = self._engine.stop(timeout)
        if _pools_lock.acquire(timeout=timeout):  # else this is a handler of a signal that came within get_pool()
            try:
                for key in [key for key, pool in _pools.items() if pool is self]:
                    del _pools[key]
            finally:
                _pools_lock.release()
        return stopped

    def _after_fork(self) -> None:
        """Go on in a forked child, with an engine of its own; one that was closed stays so."""
        old, handles = self._engine, list(self._handles.values())
        self._handles = weakref.WeakValueDictionary({handle._subscriber: handle for handle in handles})
        subscribers = dict.fromkeys((*old.registry.subscribers(), *(handle._subscriber for handle in handles)))
        self._finalizer.detach()
        kept = self._kept  # holds the callbacks of Channels that nobody holds
        self._take_engine(old.name, self._rest.token)
        again = self.options.after_fork == "resubscribe"
        self._engine.warn_at_exit = old.warn_at_exit and not again  # nobody opened it here
        if old.was_closed:
            self._engine.stop(0.0)
        inherit(old, self._engine, subscribers, resubscribe=again)
        kept.clear()

    def __enter__(self) -> RealtimePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a pool belongs to its process and cannot be pickled or copied; make one there, or use get_pool()"
        )

    def __repr__(self) -> str:
        status = "closed" if self.closed else self._engine.coordinator.connections.status
        return f"<rtpool.RealtimePool {self._engine.name} {self._endpoint.url} {status}>"


#: Guards: _pools
_pools_lock = Lock()
_pools: dict[tuple[str, str | None], RealtimePool] = {}


def _after_fork() -> None:
    global _pools_lock
    _pools_lock = Lock()
    with contextlib.ExitStack() as steps:  # the others go on even if one fails
        for pool in list(_alive):
            steps.callback(pool._after_fork)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


def get_pool(
    url: str,
    *,
    api_key: str | None = None,
    access_token: Token | None = None,
    options: PoolOptions | None = None,
    **option_overrides: Any,
) -> RealtimePool:
    """
    The process-wide pool for a URL and key, as `logging.getLogger` is for names.

    Two modules that never heard of each other share sockets. The first call makes the pool; it lives until `close` or
    the end of the process.

    Args:
        url, api_key, access_token, options, option_overrides: as `RealtimePool`. A later call may leave out the token
            and the options and takes the pool as it is.

    Raises:
        ConfigConflict: the pool exists with another token or other options; the error names them.
        InvalidValue, InvalidType: as `RealtimePool`.
    """
    wanted = make_options(options, option_overrides)
    _check_token(access_token)
    key = (_endpoint(url, api_key, wanted).url, api_key)
    fresh = RealtimePool(url, api_key=api_key, access_token=access_token, options=wanted)
    with _pools_lock:
        pool = _pools.get(key)
        if pool is None or pool.closed:
            pool = _pools[key] = fresh
            fresh._engine.warn_at_exit = False
    if pool is fresh:
        return pool
    token, present = pool._given
    if access_token is not None and access_token != token:
        raise ConfigConflict(f"the pool for {key[0]} exists with another access_token; use pool.set_auth()")
    if options is not None or option_overrides:
        differing = [f.name for f in attrs.fields(PoolOptions) if getattr(present, f.name) != getattr(wanted, f.name)]
        if differing:
            raise ConfigConflict(
                f"the pool for {key[0]} exists with other options: {', '.join(differing)} differ; ask with the same "
                "options, with none, or make a RealtimePool of your own"
            )
    return pool


def _endpoint(url: str, api_key: str | None, options: PoolOptions) -> Endpoint:
    check_type("url", url, str)
    if api_key is not None:
        check_type("api_key", api_key, str)
    in_header = any(name.lower() == "x-api-key" for name, _ in options.headers)
    if not api_key and options.is_supabase and not in_header:
        raise InvalidValue(
            "api_key is missing: pass the project's key, use RealtimePool.from_env(), or set topic_prefix='' for a "
            "plain Phoenix server"
        )
    return Endpoint.from_url(url, api_key)


def _check_token(token: object) -> None:
    if token is not None and not callable(token):
        check_token(token)


def _refuse_supabase_only(**arguments: Any) -> None:
    for name, value in arguments.items():
        if value:
            raise InvalidValue(f"{name} is for Supabase Realtime; give a plain Phoenix server params")

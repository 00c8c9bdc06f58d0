"""
Registering callbacks: the half of a `Channel` that says what it wants to hear.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

from rtpool.checks import check_callable, check_name
from rtpool.engine.engine import Engine
from rtpool.errors import InvalidValue
from rtpool.events import Broadcast, Gap, Message, PostgresChange, Presence, StatusChange, SystemMessage
from rtpool.filters import Filter
from rtpool.protocol.messages import MAX_NAME_BYTES
from rtpool.protocol.postgres import ChangeBinding
from rtpool.registry import Binding, Subscriber

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on

__all__ = ["Callbacks"]

E_ = TypeVar("E_")
Handler = Callable[[E_], object]


class Callbacks:
    """
    What a Channel calls back with. Users meet it as `Channel` only.

    Thread-safety: every method may be called from any thread.
    """

    @property
    def _engine(self) -> Engine:
        raise NotImplementedError

    _subscriber: Subscriber

    @overload
    def on_broadcast(self, event: str, callback: Handler[Broadcast]) -> Self: ...
    @overload
    def on_broadcast(self, event: str) -> Callable[[Handler[Broadcast]], Handler[Broadcast]]: ...
    def on_broadcast(self, event: str, callback: Handler[Broadcast] | None = None) -> Any:
        """
        Call back with each `Broadcast` named `event`; ``"*"`` is every name.

        Returns:
            The Channel; without `callback` a decorator.

        Raises:
            InvalidValue, InvalidType: an empty or over-long event, a callback that cannot be called.
        """
        self._require_supabase("on_broadcast", "on(event)")
        check_name("event", event, MAX_NAME_BYTES)
        return self._bind("broadcast", event, callback)

    @overload
    def on_postgres_changes(
        self,
        event: str,
        callback: Handler[PostgresChange],
        *,
        schema: str | None = ...,
        table: str | None = ...,
        filter: Filter | str | None = ...,
        select: Sequence[str] | None = ...,
    ) -> Self: ...
    @overload
    def on_postgres_changes(
        self,
        event: str,
        *,
        schema: str | None = ...,
        table: str | None = ...,
        filter: Filter | str | None = ...,
        select: Sequence[str] | None = ...,
    ) -> Callable[[Handler[PostgresChange]], Handler[PostgresChange]]: ...
    def on_postgres_changes(
        self,
        event: str,
        callback: Handler[PostgresChange] | None = None,
        *,
        schema: str | None = "public",
        table: str | None = None,
        filter: Filter | str | None = None,
        select: Sequence[str] | None = None,
    ) -> Any:
        """
        Call back with each `PostgresChange` that matches.

        On a Channel that is subscribed already this joins anew and announces a `Gap`, unless the join has an equal
        binding.

        Args:
            event: ``"INSERT"``, ``"UPDATE"``, ``"DELETE"`` in any case, or ``"*"``.
            schema: ``"*"`` for all; None for ``public``, and then `table` must be given.
            table: ``"*"`` or None for all that are published.
            filter: made with `rtpool.filters`, or in the server's grammar, e.g. ``"status=eq.rented"``; blank is none.
                Of DELETEs the server compares the replica identity, by default the primary key alone.
            select: names of the columns to receive, of one table; None for all. The primary key always comes.

        Returns:
            The Channel; without `callback` a decorator.

        Raises:
            InvalidValue, InvalidType: naming the argument; for a filter with the position of what is wrong.
        """
        self._require_supabase("on_postgres_changes", "on(event)")
        change = ChangeBinding.checked(event, schema, table, filter, select)
        return self._bind("postgres_changes", change.event, callback, change)

    @overload
    def on_presence_sync(self, callback: Handler[Presence]) -> Self: ...
    @overload
    def on_presence_sync(self) -> Callable[[Handler[Presence]], Handler[Presence]]: ...
    def on_presence_sync(self, callback: Handler[Presence] | None = None) -> Any:
        """Call back with a `Presence` holding the whole state after each change of it."""
        return self._bind("presence", "sync", callback)

    @overload
    def on_presence_join(self, callback: Handler[Presence]) -> Self: ...
    @overload
    def on_presence_join(self) -> Callable[[Handler[Presence]], Handler[Presence]]: ...
    def on_presence_join(self, callback: Handler[Presence] | None = None) -> Any:
        """Call back with a `Presence` for each key whose metas joined."""
        return self._bind("presence", "join", callback)

    @overload
    def on_presence_leave(self, callback: Handler[Presence]) -> Self: ...
    @overload
    def on_presence_leave(self) -> Callable[[Handler[Presence]], Handler[Presence]]: ...
    def on_presence_leave(self, callback: Handler[Presence] | None = None) -> Any:
        """Call back with a `Presence` for each key whose metas left."""
        return self._bind("presence", "leave", callback)

    @overload
    def on_system(self, callback: Handler[SystemMessage]) -> Self: ...
    @overload
    def on_system(self) -> Callable[[Handler[SystemMessage]], Handler[SystemMessage]]: ...
    def on_system(self, callback: Handler[SystemMessage] | None = None) -> Any:
        """Call back with each `SystemMessage`, what the server says of the channel itself."""
        self._require_supabase("on_system", "on('system')")
        return self._bind("system", "*", callback)

    @overload
    def on_gap(self, callback: Handler[Gap]) -> Self: ...
    @overload
    def on_gap(self) -> Callable[[Handler[Gap]], Handler[Gap]]: ...
    def on_gap(self, callback: Handler[Gap] | None = None) -> Any:
        """Call back with a `Gap` for each interruption in which messages may have been lost."""
        return self._bind("gap", "*", callback)

    @overload
    def on_status(self, callback: Handler[StatusChange]) -> Self: ...
    @overload
    def on_status(self) -> Callable[[Handler[StatusChange]], Handler[StatusChange]]: ...
    def on_status(self, callback: Handler[StatusChange] | None = None) -> Any:
        """
        Call back with each `StatusChange` of this Channel: ``joining joined rejoining refused timed_out closed``.

        Subscribing or unsubscribing inside is safe.
        """
        return self._bind("status", "*", callback)

    @overload
    def on(self, event: str, callback: Handler[Message]) -> Self: ...
    @overload
    def on(self, event: str) -> Callable[[Handler[Message]], Handler[Message]]: ...
    def on(self, event: str, callback: Handler[Message] | None = None) -> Any:
        """
        Call back with the raw `Message` of any Phoenix event, e.g. one of your own on a plain Phoenix server.

        Args:
            event: the Phoenix event, ``"*"`` for every one. Supabase's are ``broadcast``, ``presence_state``,
                ``presence_diff``, ``postgres_changes`` and ``system``.
        """
        check_name("event", event, MAX_NAME_BYTES)
        return self._bind("raw", event, callback)

    def off(self, callback: Callable[[Any], object]) -> Self:
        """
        Remove every registration of `callback`. When this returns it does not start again.

        Raises:
            InvalidValue: it is not registered on this Channel.
        """
        if not self._engine.registry.unbind(self._subscriber, callback):
            raise InvalidValue(f"{callback!r} is not registered on {self._subscriber.topic!r}")
        self._engine.dispatcher.quiesce(self._subscriber.mailbox)
        return self

    def _require_supabase(self, what: str, instead: str) -> None:
        if not self._engine.options.is_supabase:
            raise InvalidValue(f"{what} is for Supabase Realtime; on a plain Phoenix server use {instead}")

    def _bind(self, kind: str, name: str, callback: Any, change: ChangeBinding | None = None) -> Any:
        if callback is None:

            def decorate(function: Any) -> Any:
                self._bind(kind, name, function, change)
                return function

            return decorate
        check_callable(callback)
        subscriber = self._subscriber
        stream = subscriber.stream
        if stream is not None and not subscriber.stream_claimed and kind not in ("status", "gap"):
            subscriber.stream = None
            self._engine.dispatcher.end(stream, wait=False)
        if self._engine.registry.bind(subscriber, Binding(kind, name, callback, change)):
            self._engine.loop.post(self._engine.coordinator.asked, subscriber.key)
        return self

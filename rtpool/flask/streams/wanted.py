"""
What a stream is asked to tell: browsers that ask the same are told by one feed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs

from rtpool.channel import Channel
from rtpool.checks import check_name, check_token, check_type
from rtpool.errors import InvalidType, InvalidValue
from rtpool.filters import Filter
from rtpool.pool import RealtimePool
from rtpool.protocol.messages import MAX_NAME_BYTES
from rtpool.protocol.postgres import ChangeBinding
from rtpool.registry import identity_of

__all__ = ["Changes", "Wanted"]


@attrs.frozen
class Changes:
    """
    Which of a table's changes a stream tells.

    Args:
        table: ``"*"`` for all that are published.
        event: ``"INSERT"``, ``"UPDATE"``, ``"DELETE"`` in any case, or ``"*"``.
        schema: ``"*"`` for all.
        filter: made with `rtpool.filters`, or in the server's grammar, e.g. ``"status=eq.rented"``.
        select: names of the columns to receive; None for all.

    Raises:
        InvalidValue, InvalidType: naming the argument.

    Thread-safety: immutable.
    """

    table: str
    event: str = "*"
    schema: str = "public"
    filter: Filter | str | None = None
    select: Sequence[str] | None = None

    def __attrs_post_init__(self) -> None:
        _ = self.binding

    @property
    def binding(self) -> ChangeBinding:
        """In one form for equal wishes."""
        check_type("table", self.table, str)
        return ChangeBinding.checked(self.event, self.schema, self.table, self.filter, self.select)


@attrs.frozen
class Wanted:
    """
    What a feed tells, and as whom it listens. Feeds with other tokens are other feeds: row-level security would leak.

    Attributes:
        topic: without the prefix.
        broadcasts: their names, ``("*",)`` for all.
        changes: without duplicates.
        presence, private: as asked.
        token: what stands for the token in comparisons, None for the app's own. Never shown.
        given_token: the token.
    """

    topic: str
    broadcasts: tuple[str, ...]
    changes: tuple[ChangeBinding, ...]
    presence: bool
    private: bool
    token: Any = attrs.field(repr=False)
    given_token: Any = attrs.field(repr=False, eq=False)

    @classmethod
    def checked(
        cls,
        topic: str,
        broadcasts: str | Sequence[str] | None,
        changes: str | Changes | Sequence[str | Changes] | None,
        presence: bool,
        private: bool,
        access_token: str | Callable[[], str] | None,
    ) -> Wanted:
        """
        What `rtpool.flask.Realtime.stream` was asked, in one form for equal wishes.

        Raises:
            InvalidValue, InvalidType: naming the argument.
        """
        check_name("topic", topic, MAX_NAME_BYTES)
        names = _several("broadcasts", broadcasts, (str,))
        for name in names:
            check_name("a name in broadcasts", name, MAX_NAME_BYTES)
        if "*" in names:
            names = ["*"]
        tables = _several("changes", changes, (str, Changes))
        bindings = [(Changes(table) if isinstance(table, str) else table).binding for table in tables]
        check_type("presence", presence, bool)
        check_type("private", private, bool)
        if access_token is not None and not callable(access_token):
            check_token(access_token)
        if not (names or bindings or presence):
            raise InvalidValue("the stream would tell nothing: ask for broadcasts, changes or presence")
        return cls(
            topic,
            tuple(sorted(set(names))),
            tuple(sorted(set(bindings), key=repr)),
            presence,
            private,
            identity_of(access_token),
            access_token,
        )

    def channel(self, pool: RealtimePool, callback: Callable[[Any], object]) -> Channel:
        """A Channel that calls back with all that is wanted, with gaps and statuses; not subscribed."""
        channel = pool.channel(self.topic, private=self.private, access_token=self.given_token)
        for name in self.broadcasts:
            channel.on_broadcast(name, callback)
        for change in self.changes:
            channel.on_postgres_changes(
                change.event,
                callback,
                schema=change.schema,
                table=change.table,
                filter=change.filter,
                select=change.select,
            )
        if self.presence:
            channel.on_presence_sync(callback).on_presence_join(callback).on_presence_leave(callback)
        return channel.on_gap(callback).on_status(callback)


def _several(name: str, given: Any, kinds: tuple[type, ...]) -> list[Any]:
    """One, several or none, as a list."""
    if given is None:
        return []
    if isinstance(given, kinds):
        return [given]
    if isinstance(given, (bytes, str)) or not isinstance(given, Sequence):
        raise InvalidType(f"{name} must be {_words(kinds)}, a sequence of those or None, not {type(given).__name__}")
    for item in given:
        if not isinstance(item, kinds):
            raise InvalidType(f"{name} must hold {_words(kinds)}, not {type(item).__name__}")
    return list(given)


def _words(kinds: tuple[type, ...]) -> str:
    return " or ".join(kind.__name__ for kind in kinds)

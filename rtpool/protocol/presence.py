"""
The presence of one join: the server's state and diffs, merged by Phoenix's algorithm; and what we say of ourselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from rtpool.protocol.messages import JsonBody

__all__ = ["PresenceCalls", "PresenceChange", "PresenceState", "UNTRACK", "track_body"]

Metas = tuple[Mapping[str, Any], ...]

#: Diffs kept until the state they belong to comes. It follows the join's reply at once, so more is a broken server.
MAX_WAITING = 1_000

#: The payload of a push that ends a presence.
UNTRACK = JsonBody(b'{"type":"presence","event":"untrack"}')


def track_body(data: bytes) -> JsonBody:
    """The payload of a push that makes the join present with an encoded JSON object."""
    return JsonBody(b'{"type":"presence","event":"track","payload":%s}' % data)


class PresenceChange(NamedTuple):
    """One key's metas joined or left; `current` is what it had before a join, or keeps after a leave."""

    type: str
    key: str
    metas: Metas
    current: Metas


class PresenceState:
    """
    Who is present, by key.

    A diff that arrives before the state of the present join is kept and applied after it (Phoenix `presence.js`). The
    state survives a disconnect on purpose: the next one then yields the right joins and leaves.

    Thread-safety: none; confined to the I/O thread. `snapshot` returns a copy to give away.
    """

    __slots__ = ("_metas", "_synced", "_waiting")

    def __init__(self) -> None:
        self._metas: dict[str, Metas] = {}
        self._synced = False
        self._waiting: list[tuple[dict[str, Metas], dict[str, Metas]]] = []  # at most MAX_WAITING, oldest first

    @property
    def synced(self) -> bool:
        """Whether the state of the present join has come."""
        return self._synced

    def rejoined(self) -> None:
        """A new join began: diffs wait for its state."""
        self._synced = False
        self._waiting.clear()

    def snapshot(self) -> dict[str, Metas]:
        """The metas by key."""
        return dict(self._metas)

    def sync_state(self, payload: Any) -> list[PresenceChange]:
        """Apply a ``presence_state`` and the diffs that waited for it."""
        new = _metas_by_key(payload)
        joins: dict[str, Metas] = {}
        leaves: dict[str, Metas] = {k: metas for k, metas in self._metas.items() if k not in new}
        for key, metas in new.items():
            old = self._metas.get(key, ())
            old_refs, new_refs = _refs(old), _refs(metas)
            joined = tuple(m for m in metas if m["phx_ref"] not in old_refs)
            left = tuple(m for m in old if m["phx_ref"] not in new_refs)
            if joined:
                joins[key] = joined
            if left:
                leaves[key] = left
        changes = self._apply(joins, leaves)
        self._synced = True
        waiting, self._waiting = self._waiting, []
        for diff in waiting:
            changes += self._apply(*diff)
        return changes

    def sync_diff(self, payload: Any) -> list[PresenceChange] | None:
        """Apply a ``presence_diff``, or keep it and return None when the state has not come yet."""
        if not isinstance(payload, dict):
            return []
        diff = (_metas_by_key(payload.get("joins")), _metas_by_key(payload.get("leaves")))
        if not self._synced:
            if len(self._waiting) >= MAX_WAITING:
                del self._waiting[0]
            self._waiting.append(diff)
            return None
        return self._apply(*diff)

    def _apply(self, joins: dict[str, Metas], leaves: dict[str, Metas]) -> list[PresenceChange]:
        changes = []
        for key, metas in joins.items():
            current = self._metas.get(key, ())
            refs = _refs(metas)
            self._metas[key] = tuple(m for m in current if m["phx_ref"] not in refs) + metas
            changes.append(PresenceChange("join", key, metas, current))
        for key, metas in leaves.items():
            if key not in self._metas:
                continue
            refs = _refs(metas)
            remaining = tuple(m for m in self._metas[key] if m["phx_ref"] not in refs)
            if remaining:
                self._metas[key] = remaining
            else:
                del self._metas[key]
            changes.append(PresenceChange("leave", key, metas, remaining))
        return changes


class PresenceCalls:
    """
    When a join may tell the server who it is, and whether there is anything to tell.

    The server ends a channel that makes more than `max_calls` presence calls within `window` seconds, whatever they say
    (protocol 7). So not every wish is said but the newest: one call at a time, and none over the budget. A call counts
    from its answer, which is never earlier than the server's own count.

    Args:
        max_calls: calls in a window.
        window: seconds.

    Thread-safety: none; confined to the I/O thread.
    """

    __slots__ = ("_answered_at", "_max_calls", "_told", "_unsure", "_window", "in_flight", "join_number")

    def __init__(self, max_calls: int, window: float) -> None:
        self._max_calls, self._window = max_calls, window
        self._answered_at: list[float] = []  # of the last `max_calls`
        self._told: bytes | None = None
        self._unsure = False
        #: Of how many joins this is; an answer to a call of an earlier one means nothing.
        self.join_number = 0
        #: Whether a call awaits its answer.
        self.in_flight = False

    def rejoined(self) -> None:
        """A new join began: the server knows nothing of us, and counts anew."""
        self._answered_at.clear()
        self._told, self._unsure, self.in_flight = None, False, False
        self.join_number += 1

    def is_telling(self, wish: bytes | None) -> bool:
        """Whether a call that says just this awaits its answer."""
        return self.in_flight and self._told == wish

    def has_news(self, wish: bytes | None, *, asked: bool) -> bool:
        """
        Whether the server is to be told.

        Args:
            wish: the encoded payload to be present with, None to be absent.
            asked: whether somebody asks for it now; a wish that was refused is said again only then.
        """
        return self._told != wish or (self._unsure and asked)

    def permission_changed(self) -> None:
        """Another token is in force: what was refused may be said again."""
        if self._unsure:
            self._told, self._unsure = None, False

    def may_call(self, now: float) -> bool:
        """Whether a call may go out now."""
        times = self._answered_at
        return not self.in_flight and (len(times) < self._max_calls or now - times[0] >= self._window)

    def next_at(self) -> float:
        """When the budget allows another call, after it did not."""
        return self._answered_at[0] + self._window

    def called(self, wish: bytes | None) -> None:
        """A call went out."""
        self._told, self.in_flight = wish, True

    def answered(self, now: float, *, ok: bool) -> None:
        """It was answered, or is given up."""
        if len(self._answered_at) >= self._max_calls:
            del self._answered_at[0]
        self._answered_at.append(now)
        self._unsure, self.in_flight = not ok, False


def _refs(metas: Metas) -> set[Any]:
    return {meta["phx_ref"] for meta in metas}


def _metas_by_key(payload: Any) -> dict[str, Metas]:
    """What is of use in a map of presences: of each key with any, the metas that have a reference, each once."""
    found: dict[str, Metas] = {}
    for key, entry in payload.items() if isinstance(payload, dict) else ():
        metas = entry.get("metas") if isinstance(entry, dict) else None
        with_ref = [m for m in metas if isinstance(m, dict)] if isinstance(metas, list) else []
        by_ref = {m["phx_ref"]: m for m in with_ref if isinstance(m.get("phx_ref"), str)}
        if by_ref:
            found[key] = tuple(by_ref.values())
    return found

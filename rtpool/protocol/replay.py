"""
Replay of stored broadcasts: what to ask of the server, which of them are new, and whether some were cut off.

A Realtime server stores what its database sends to private topics and replays the newest of it after a join, oldest
first. It says neither how much there was nor where the replay ends, and a rejoin replays again what was had before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from rtpool.errors import InvalidType, InvalidValue

__all__ = ["MAX_REPLAYED", "Replay", "ReplayRequest", "read_replay"]

#: The most a server replays at a join, and its default (supabase/realtime `Realtime.Messages`, protocol 6.2).
MAX_REPLAYED = 25
#: The end of the year 9999.
LATEST_MS = 253_402_300_799_999
#: Ids kept to know a message again. A replay holds the newest `MAX_REPLAYED`, so what comes twice is among the last of
#: those we had; the rest is for servers that keep more.
MAX_SEEN = 1_000
#: Milliseconds asked for beyond the last proof of life. Overlap costs nothing: what was had is known by its id.
MARGIN_MS = 10_000


class ReplayRequest(NamedTuple):
    """
    What a join asks for.

    Attributes:
        since: milliseconds since the epoch, by the server's clock.
        limit: how many at the most, the newest of them; 1 to 25.
    """

    since: int
    limit: int = MAX_REPLAYED

    def to_wire(self) -> dict[str, int]:
        """The object for the join's config."""
        return {"since": self.since, "limit": self.limit}


def read_replay(replay: object) -> tuple[bool, ReplayRequest | None]:
    """
    What a user means by ``replay=``.

    Args:
        replay: None or False; True; or ``{"since": …[, "limit": …]}`` with milliseconds since the epoch or an aware
            datetime, and 1 to 25.

    Returns:
        Whether missed messages are wanted, and what the first join asks for.

    Raises:
        InvalidType, InvalidValue: anything else.
    """
    if replay is None or isinstance(replay, bool):
        return bool(replay), None
    if not isinstance(replay, Mapping):
        raise InvalidType(f'replay must be True, None or {{"since": …, "limit": …}}, not {type(replay).__name__}')
    if "since" not in replay or not set(replay) <= {"since", "limit"}:
        raise InvalidValue(f'replay must be {{"since": …[, "limit": …]}}; it has {sorted(map(str, replay))}')
    since, limit = replay["since"], replay.get("limit", MAX_REPLAYED)
    if isinstance(since, datetime):
        if since.utcoffset() is None:
            raise InvalidValue(f"replay['since'] must be an aware datetime, not the naive {since.isoformat()}")
        since = int(since.timestamp() * 1000)
    for name, value in (("since", since), ("limit", limit)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidType(f"replay[{name!r}] must be a whole number, not {type(value).__name__}")
    if not 0 <= since <= LATEST_MS:
        raise InvalidValue(f"replay['since'] must be milliseconds since the epoch, 0 to {LATEST_MS}")
    if not 1 <= limit <= MAX_REPLAYED:
        raise InvalidValue(f"replay['limit'] must be 1 to {MAX_REPLAYED}, not {limit}")
    return True, ReplayRequest(since, limit)


class Replay:
    """
    The stored broadcasts of one join.

    Args:
        first: what the first join asks for, None when only interruptions are to be bridged.

    Thread-safety: none; confined to the I/O thread.
    """

    def __init__(self, first: ReplayRequest | None) -> None:
        self._first = first
        self._floor = first.since if first else 0
        self._seen: dict[str, None] = {}
        self._recent: deque[Any] = deque(maxlen=first.limit if first else 0)
        self._asked: ReplayRequest | None = None
        self._received = 0
        self._overlaps = False
        #: Whether the first join has had all it asked for; only then is there something to bridge.
        self.started = False
        #: Whether a join was let in at all.
        self.has_joined = False
        #: Replayed messages of the present join that were new.
        self.count = 0

    @property
    def recent(self) -> tuple[Any, ...]:
        """The newest stored messages, oldest first: what the server would replay to a Channel that comes now."""
        return tuple(self._recent)

    @property
    def truncated(self) -> bool:
        """Whether the present join's replay may lack its beginning: it is full, and does not reach what was had."""
        return self._received >= MAX_REPLAYED and not self._overlaps

    def request(self, lost_from: int | None) -> ReplayRequest | None:
        """
        What the next join is to ask for.

        Args:
            lost_from: milliseconds since the epoch of the last proof of life, None when nothing was interrupted.
        """
        if not self.started:
            self._asked = self._first
        elif lost_from is None:
            self._asked = None
        else:
            self._asked = ReplayRequest(max(self._floor, lost_from - MARGIN_MS))
        return self._asked

    def joined(self, now: int) -> bool:
        """
        A join was let in at `now`, milliseconds since the epoch, or a little later: what is stored from then on is to
        be had. The clock of a server is known to a second or so, and what is too late here would be lost.

        Returns:
            Whether a replay follows, which `finished` ends.
        """
        self.has_joined = True
        if self._first is None and not self.started:
            self.started, self._floor = True, now
        self._received = self.count = 0
        self._overlaps = False
        return self._asked is not None

    def finished(self) -> bool:
        """The replay is over; whether it was a first one and may lack its beginning."""
        first, self.started = not self.started, True
        return first and self.truncated

    def take(self, message_id: str, *, replayed: bool) -> bool:
        """
        Note a message with an id; False when it is a replay of one that was had before.

        What comes live is always new: senders choose ids too, and may choose one twice.
        """
        known = message_id in self._seen
        if replayed:
            self._overlaps = self._overlaps or (known and not self._received)
            self._received += 1
            self.count += not known
        if not known:
            if len(self._seen) >= MAX_SEEN:
                del self._seen[next(iter(self._seen))]
            self._seen[message_id] = None
        return not (known and replayed)

    def remember(self, message: Any) -> None:
        """Keep a message for Channels that come later."""
        self._recent.append(message)

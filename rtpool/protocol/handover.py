"""
One topic handed over from one socket to another: nothing lost, nothing twice, nothing out of order.

For a while the topic is joined on both. The server sends each message to both, but they carry no ids, they arrive at
different times, and some were sent before the second join and so to the first alone. What is common is found by
content, as multisets, with two facts to rely on:

* A heartbeat's reply leaves a socket after everything that was sent to it before (protocol 4.2): a fence.
* Each publisher's messages keep their order on each socket.

Of each content three things are counted: how often it came by the live channel, how often by the guest, and how often
by the live one alone. The last is not seen; fences bound it from both sides until the bounds meet. From then on each
difference between the two is on its way, and the guest can take over at any instant: what it had more is delivered, in
its order, and what it had less is dropped when it comes.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterable
from typing import Any

import attrs

from rtpool.protocol.json_engine import canonical
from rtpool.protocol.messages import POSTGRES_CHANGES, PRESENCE_DIFF, PRESENCE_STATE, WireMessage

__all__ = ["Handover", "refs_of"]

#: What is kept of the guest until it is known that the live channel delivered it: messages, and bytes of their content.
MAX_MESSAGES, MAX_BYTES = 10_000, 16 * 1024 * 1024
#: Contents counted at a time, and references of presences.
MAX_COUNTED = 20_000


@attrs.define(eq=False, repr=False)
class _Content:
    """
    How often one content came.

    Attributes:
        live, guest: by the live channel, by the guest.
        live_then, guest_then: the same when the latest fence of the live channel began, when that of the guest came.
        least, most: bounds of how often it came by the live channel alone.
        kept: where those of the guest stand among the kept ones.
    """

    most: float
    least: int = 0
    live: int = 0
    guest: int = 0
    live_then: int = 0
    guest_then: int = 0
    kept: deque[int] = attrs.field(factory=deque)

    @property
    def ahead(self) -> int:
        """How many more the live channel has had; the guest still gets them. Known once the bounds meet."""
        return self.live - self.guest - self.least


class Handover:
    """
    The messages of a topic that is joined twice. Sans-I/O.

    The caller tells every message of both channels, from before the second join was asked for, and each fence: a
    heartbeat that was begun after the one before it was answered, the first only when all that was sent to the live
    channel alone must have been sent. Messages of equal content stand for each other. What breaks the rules, or the
    bounds of this, shows as `trouble`: then the live channel goes on and the guest leaves.

    Args:
        max_messages, max_bytes: what may be kept of the guest.

    Thread-safety: none; confined to the I/O thread.
    """

    def __init__(self, *, max_messages: int = MAX_MESSAGES, max_bytes: int = MAX_BYTES) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._contents: dict[bytes, _Content] = {}
        self._kept: dict[int, tuple[WireMessage, int]] = {}  # by a number that only grows
        self._kept_bytes = 0
        self._next = 0
        self._joined: set[str] = set()  # references of presences the live channel knows
        self._left: set[str] = set()
        self._fenced = False
        self._uncertain = True
        self._owed: dict[bytes, int] = {}
        #: Whether the guest has taken over.
        self.is_cut = False
        #: Why the guest must not take over; empty while it may.
        self.trouble = ""

    @property
    def ready(self) -> bool:
        """Whether the guest may take over."""
        return not (self._uncertain or self.trouble or self.is_cut)

    @property
    def owed(self) -> int:
        """After the cut: how many messages of the guest are still to be dropped when they come."""
        return sum(self._owed.values())

    # Before the cut

    def live(self, message: WireMessage) -> None:
        """The live channel delivered a message, or said one of our own that the guest hears from the server."""
        if self.is_cut or message.event == PRESENCE_STATE:
            return
        if message.event == PRESENCE_DIFF:
            self._joined |= refs_of(_section(message.payload, "joins"))
            self._left |= refs_of(_section(message.payload, "leaves"))
            self._limit(len(self._joined) + len(self._left), MAX_COUNTED, "presences")
            return
        key, _ = self._digest(message)
        content = self._content(key)
        content.live += 1
        self._match(key, content)

    def guest(self, message: WireMessage) -> WireMessage | None:
        """The guest got a message; what is to be delivered of it now. Before the cut that is nothing."""
        if message.event == PRESENCE_STATE:
            return message if self.is_cut else None  # who is present is known
        if message.event == PRESENCE_DIFF:
            news = self._news(message)
            if news is None or self.is_cut:
                return news
            self._keep(message, self._digest(message)[1])
            return None
        key, size = self._digest(message)
        if self.is_cut:
            return None if self._is_owed(key) else message
        content = self._content(key)
        content.guest += 1
        content.kept.append(self._keep(message, size))
        self._match(key, content)
        return None

    def live_fence_begun(self) -> None:
        """A fence of the live channel is on its way, behind all that we have said there ourselves."""
        for content in self._contents.values():
            content.live_then = content.live

    def live_fenced(self) -> None:
        """A fence of the live channel came back."""
        self._fenced = True
        for key, content in list(self._contents.items()):
            # The live channel has had at least what the guest had had at its fence.
            content.most = min(content.most, content.live - content.guest_then)
            self._match(key, content)
        self._judge()

    def guest_fenced(self) -> None:
        """A fence of the guest came back."""
        for key, content in list(self._contents.items()):
            # The guest has had at least what the live channel had had, but for what came by that alone.
            content.least = max(content.least, content.live_then - content.guest)
            content.guest_then = content.guest
            self._match(key, content)
        self._judge()

    def _judge(self) -> None:
        contents = self._contents.values()
        self._uncertain = not self._fenced or any(c.least < c.most for c in contents)
        if any(c.least > c.most for c in contents):
            self.trouble = self.trouble or "the two channels do not get the same messages"

    # The cut

    def cut(self, present: Iterable[str]) -> list[WireMessage]:
        """
        The guest takes over; nothing the live channel says from now on counts.

        Args:
            present: references of the presences the live channel knows.

        Returns:
            What the guest had more, in its order.
        """
        self._joined.update(present)
        self._owed = {key: content.ahead for key, content in self._contents.items() if content.ahead > 0}
        kept = [message for message, _ in self._kept.values()]
        self._contents.clear()
        self._kept.clear()
        self.is_cut = True
        news = [self._news(message) if message.event == PRESENCE_DIFF else message for message in kept]
        return [message for message in news if message is not None]

    def forget(self) -> None:
        """The guest's socket is lost, and with it what was owed."""
        self._owed.clear()

    def _is_owed(self, key: bytes) -> bool:
        count = self._owed.pop(key, 0)
        if count > 1:
            self._owed[key] = count - 1
        return count > 0

    # Inside

    def _digest(self, message: WireMessage) -> tuple[bytes, int]:
        try:
            return _digest(message)
        except (RecursionError, TypeError, ValueError):  # nested deeper than Python's JSON can write
            self.trouble = self.trouble or "a message cannot be compared"
            return b"", 0

    def _content(self, key: bytes) -> _Content:
        content = self._contents.get(key)
        if content is None:
            # All that came by the live channel alone is in before its first fence.
            content = self._contents[key] = _Content(0 if self._fenced else math.inf)
            self._limit(len(self._contents), MAX_COUNTED, "different messages")
        return content

    def _match(self, key: bytes, content: _Content) -> None:
        """Forget what both have had, as far as that is certain."""
        if content.least != content.most:
            return
        ahead = content.ahead
        while len(content.kept) > max(0, -ahead):
            self._kept_bytes -= self._kept.pop(content.kept.popleft())[1]
        if ahead == 0:
            del self._contents[key]

    def _keep(self, message: WireMessage, size: int) -> int:
        number, self._next = self._next, self._next + 1
        self._kept[number] = message, size
        self._kept_bytes += size
        self._limit(len(self._kept), self._max_messages, "messages")
        self._limit(self._kept_bytes, self._max_bytes, "bytes")
        return number

    def _limit(self, count: int, limit: int, what: str) -> None:
        if count > limit:
            self.trouble = self.trouble or f"over {limit} {what} came meanwhile"

    def _news(self, message: WireMessage) -> WireMessage | None:
        """
        A presence diff without what the live channel has told.

        Nodes of a cluster bundle presences as they like, so these are matched one by one; each has a reference of its
        own.
        """
        joins = _without(_section(message.payload, "joins"), self._joined | self._left)
        leaves = _without(_section(message.payload, "leaves"), self._left)
        if not joins and not leaves:
            return None
        return message._replace(payload={**message.payload, "joins": joins, "leaves": leaves})


def refs_of(entries: dict[str, Any]) -> set[str]:
    """The references in a map of presences by key, as a presence message has it."""
    return {ref for entry in entries.values() for meta in _metas(entry) if isinstance(ref := _ref(meta), str)}


def _section(payload: Any, name: str) -> dict[str, Any]:
    section = payload.get(name) if isinstance(payload, dict) else None
    return section if isinstance(section, dict) else {}


def _metas(entry: Any) -> list[Any]:
    metas = entry.get("metas") if isinstance(entry, dict) else None
    return metas if isinstance(metas, list) else []


def _ref(meta: Any) -> Any:
    return meta.get("phx_ref") if isinstance(meta, dict) else None


def _without(entries: dict[str, Any], refs: set[str]) -> dict[str, Any]:
    kept = {}
    for key, entry in entries.items():
        metas = [meta for meta in _metas(entry) if not isinstance(_ref(meta), str) or _ref(meta) not in refs]
        if metas:
            kept[key] = {**entry, "metas": metas}
    return kept


def _digest(message: WireMessage) -> tuple[bytes, int]:
    """What stands for a message in a comparison, and how many bytes it has."""
    payload, raw = message.payload, b""
    if isinstance(payload, bytes):
        raw = b"\0" + payload
        payload = None
    elif isinstance(payload, dict) and isinstance(payload.get("payload"), bytes):
        raw = b"\0" + payload["payload"]
        payload = {**payload, "payload": None}
    elif message.event == POSTGRES_CHANGES and isinstance(payload, dict) and isinstance(payload.get("ids"), list):
        # protocol 6.5: in any order, and some twice
        payload = {**payload, "ids": sorted(set(map(str, payload["ids"])))}
    data = canonical([message.event, payload]) + raw
    return hashlib.blake2b(data, digest_size=16).digest(), len(data)

"""
Who wants what: share keys, the Channels behind each, and their callbacks.

The registry is what users asked for; the engine makes the server agree with it. Its lock is held for dictionary work
only. What the engine reads (`Share.subscribers`, `Subscriber.bindings`) are immutable tuples, replaced whole.
"""

from __future__ import annotations

import itertools
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import attrs

from rtpool.errors import ConfigConflict, NotSubscribed, RtpoolError
from rtpool.events import Broadcast, ChannelState, Event
from rtpool.outcome import Outcome
from rtpool.protocol.json_engine import canonical, loads
from rtpool.protocol.messages import WireMessage
from rtpool.protocol.postgres import ChangeBinding
from rtpool.protocol.replay import ReplayRequest
from rtpool.unlocked import read_unlocked

__all__ = [
    "Attachment",
    "Binding",
    "Delivery",
    "JoinConfig",
    "Registry",
    "Share",
    "ShareKey",
    "Subscriber",
    "event_of",
    "identity_of",
    "merge_configs",
]

Lock = threading.Lock
Callback = Callable[[Any], object]


class _Identity:
    """A callable as itself: its `__eq__` and `__hash__`, which are user code and may be missing, are never called."""

    __slots__ = ("_ids", "given")

    def __init__(self, given: Callable[..., Any]) -> None:
        self.given = given
        # A bound method is made anew at each look-up; it is the same when its object and its function are.
        self._ids: tuple[object, ...] = (id(given),)
        if isinstance(given, types.MethodType):
            self._ids = id(given.__self__), id(given.__func__)
        elif isinstance(given, (types.BuiltinMethodType, types.MethodWrapperType)):  # those of lists, queues, iterators
            self._ids = id(given.__self__), given.__name__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and other._ids == self._ids

    def __hash__(self) -> int:
        return hash(self._ids)


def identity_of(given: Any) -> Any:
    """What stands for a value in a comparison: a callable's identity, anything else itself."""
    return _Identity(given) if callable(given) else given


class ShareKey(NamedTuple):
    """
    What may be shared. Two Channels with equal keys share one join.

    Attributes:
        topic: the wire topic.
        private: a private and a public channel of one name are different rooms on the server.
        token: the identity whose row-level security applies, see `identity_of`; None is the pool's own. Never shown.
        presence_key: the key under which the join is present; None lets the server choose.
        replay: the stored broadcasts its first join asks for. Two Channels that want different ones cannot share it:
            the server's messages do not tell which was meant for whom.
        params: the payload of a join on a plain Phoenix server, encoded.
    """

    topic: str
    private: bool = False
    token: Any = None
    presence_key: str | None = None
    replay: ReplayRequest | None = None
    params: bytes = b"{}"

    def __repr__(self) -> str:
        return f"<ShareKey {self.topic}>"


class Delivery(NamedTuple):
    """
    One event on its way to a Channel; made once and shared by every Channel that gets it.

    A `Broadcast` that nobody wants to hear as a Phoenix message goes alone: of what waits by the thousand the collector
    looks at every object, again and again.

    Attributes:
        kind: ``broadcast postgres_changes presence system gap status raw``.
        name: the selector a callback is registered for: a broadcast's or Phoenix event's name, a presence type.
        event: what the callback receives.
        wire: the Phoenix message behind it, None for what rtpool says itself.
        changes: the server-side bindings a change is for.
    """

    kind: str
    name: str
    event: Event
    wire: WireMessage | None = None
    changes: frozenset[ChangeBinding] = frozenset()


def event_of(item: Delivery | Broadcast) -> Event:
    """What the callback receives, of what goes to a Channel."""
    return item if isinstance(item, Broadcast) else item.event


@attrs.frozen(eq=False, repr=False)
class Binding:
    """One callback of one Channel: `kind` and `name` as in `Delivery`, ``"*"`` is every name."""

    kind: str
    name: str
    callback: Callback
    change: ChangeBinding | None = None

    def wants(self, delivery: Delivery) -> bool:
        """Whether `delivery` is for this callback."""
        if self.kind == "raw":
            return delivery.wire is not None and self.name in ("*", delivery.wire.event)
        if self.kind != delivery.kind:
            return False
        if self.change is not None:
            return self.change in delivery.changes
        return self.name == "*" or self.name == delivery.name


class JoinConfig(NamedTuple):
    """
    What a join asks of the server, or what one Channel asks of its join.

    Attributes:
        receive_own, ack, presence: as in the join's config.
        changes: server-side bindings, without duplicates, in the order in which they were asked for.
    """

    receive_own: bool = False
    ack: bool = False
    presence: bool = False
    changes: tuple[ChangeBinding, ...] = ()

    def covers(self, other: JoinConfig) -> bool:
        """Whether a join with this config already gives all that `other` asks."""
        return self is other or (
            self.receive_own >= other.receive_own
            and self.ack >= other.ack
            and self.presence >= other.presence
            and set(self.changes) >= set(other.changes)
        )


#: Those without changes; nearly every Channel asks for one of these.
_PLAIN = {(a, b, c): JoinConfig(a, b, c) for a, b, c in itertools.product((False, True), repeat=3)}


def merge_configs(configs: Iterable[JoinConfig]) -> JoinConfig:
    """The union of what several Channels ask."""
    distinct = {id(config): config for config in configs}.values()  # a thousand Channels mostly ask for the very same
    merged = next(iter(distinct), _PLAIN[False, False, False])
    for config in distinct:
        if config is not merged:
            merged = JoinConfig(
                receive_own=merged.receive_own or config.receive_own,
                ack=merged.ack or config.ack,
                presence=merged.presence or config.presence,
                changes=tuple(dict.fromkeys(merged.changes + config.changes)),
            )
    return merged


@attrs.define(eq=False, repr=False)
class Attachment:
    """
    One subscribe of one Channel, from `subscribe` to `unsubscribe`.

    Attributes:
        share: what it is attached to.
        number: later attachments have higher ones.
        opened: whether its mailboxes take events; until then none are for it.
        ready: done when events really flow, or with the error that says why they never will.
        left: done when the server forgot the channel, or need not because others are on it; made when it is detached.
        caught_up: whether stored broadcasts that are replayed from now on are for it; confined to the I/O thread.
        flowing: whether events flow to it in the present join; confined to the I/O thread, read anywhere.
        flowing_since: when they first flowed, None before; likewise.
        outage: the interruption it is still to be told of, once events flow again; confined to the I/O thread.
        sees_presence: whether it was told who is present, so that changes mean something to it; set by the I/O thread,
            taken back under the registry's lock.
    """

    share: Share
    number: int = attrs.field(factory=itertools.count(1).__next__)
    opened: bool = False
    ready: Outcome[None] = attrs.field(factory=Outcome)
    left: Outcome[None] = attrs.field(init=False)
    caught_up: bool = False
    flowing: bool = False
    flowing_since: datetime | None = None
    outage: Any = None
    sees_presence: bool = False


class Bindings:
    """
    The callbacks of one Channel, a tuple that is replaced whole.

    They belong to the Channel, and to the pool while it is subscribed; the engine knows them weakly, so that a callback
    that refers to its pool keeps no forgotten pool alive.
    """

    __slots__ = ("__weakref__", "all", "config")

    def __init__(self, config: JoinConfig) -> None:
        self.all: tuple[Binding, ...] = ()
        #: What their Channel asks of its join, with these.
        self.config = config


class Subscriber:
    """
    What the engine knows of a Channel: never the handle, so that a forgotten pool can be collected.

    Args:
        topic: as the user wrote it.
        key: what it may share.
        receive_own, ack: its part of the join's config.
        replay: whether it gets stored broadcasts that were missed.

    Thread-safety: `bindings` and `attachment` are written under the registry's lock and read anywhere.
    """

    __slots__ = (
        "_bindings",
        "_own_bindings",
        "_receive_own",
        "ack",
        "attachment",
        "detached",
        "forked",
        "hears_raw",
        "key",
        "leaving",
        "mailbox",
        "over",
        "polled",
        "pushed",
        "replay",
        "stream",
        "stream_claimed",
        "token",
        "topic",
        "unsettled",
    )

    def __init__(
        self,
        topic: str,
        key: ShareKey,
        *,
        receive_own: bool = False,
        ack: bool = False,
        replay: bool = False,
        token: Any = None,
    ) -> None:
        self.topic = topic
        self.key = key
        #: The token of its own, str or callable; None is the pool's. Never shown.
        self.token = token
        self._receive_own = receive_own
        self.ack = ack
        self.replay = replay
        self._own_bindings: Bindings | None = Bindings(self._asks(()))
        self._bindings = weakref.ref(self._own_bindings)
        self.attachment: Attachment | None = None
        #: The number of what it was attached by last, 0 before it was detached ever; under the registry's lock.
        self.detached = 0
        self.leaving = False
        #: The dispatcher's mailboxes: for callbacks, and for iterators once somebody iterates.
        self.mailbox: Any = None
        self.stream: Any = None
        #: Whether it has, or had, a callback for Phoenix messages as they are.
        self.hears_raw = False
        #: Whether somebody iterates; a stream nobody asked for yields to the first callback.
        self.stream_claimed = False
        #: Pushes accepted and not settled; guarded by the send budget's lock.
        self.unsettled = 0
        #: Whether it ever pushed anything; likewise.
        self.pushed = False
        #: Whether anybody ever asked it who is present. Written by who asks.
        self.polled = False
        #: Whether its subscription was the parent's, in a forked child, and it was not subscribed since.
        self.forked = False
        self.over = ""  #: Why it is so for good. Written before it is detached for the last time.

    def inherit(self, mailbox: Any, stream: Any) -> Attachment | None:
        """In a forked child: begin anew with these mailboxes. Returns what it was attached by, the parent's."""
        attachment, self.attachment = self.attachment, None
        self.leaving = False
        self.unsettled = 0
        self.mailbox, self.stream = mailbox, stream
        return attachment

    @property
    def bindings(self) -> tuple[Binding, ...]:
        """The callbacks; none when all that held them is gone."""
        found = self._bindings()
        return () if found is None else found.all

    @bindings.setter
    def bindings(self, bindings: tuple[Binding, ...]) -> None:
        found = self._bindings()
        if found is not None:
            found.all, found.config = bindings, self._asks(bindings)

    def entrust(self) -> Bindings:
        """The callbacks, for a handle to hold: from now on they live as long as somebody does."""
        found = self.held() or Bindings(self._asks(()))
        self._bindings = weakref.ref(found)
        self._own_bindings = None
        return found

    def held(self) -> Bindings | None:
        """The callbacks, unless all that held them is gone."""
        return self._bindings()

    @property
    def receive_own(self) -> bool:
        """Whether it hears its own broadcasts."""
        return self._receive_own

    @property
    def sinks(self) -> tuple[Any, ...]:
        """The mailboxes its events go to."""
        stream = self.stream
        if stream is None:
            return (self.mailbox,)
        return (self.mailbox, stream) if self.bindings else (stream,)

    @property
    def config(self) -> JoinConfig:
        """What it asks of its join, as its callbacks stand."""
        found = self._bindings()
        return self._asks(()) if found is None else found.config

    def _asks(self, bindings: tuple[Binding, ...]) -> JoinConfig:
        # On a private channel siblings are to hear only what the server let through, and its answer alone tells.
        ack = self.ack or self.key.private
        presence = self.key.presence_key is not None or any(b.kind == "presence" for b in bindings)
        changes = tuple(dict.fromkeys(b.change for b in bindings if b.change is not None))
        if changes:
            return JoinConfig(self._receive_own, ack, presence, changes)
        return _PLAIN[self._receive_own, ack, presence]

    @property
    def state(self) -> ChannelState:
        """Where it is in its life."""
        attachment = self.attachment
        if attachment is None:
            return ChannelState.LEAVING if self.leaving else ChannelState.CLOSED
        return attachment.share.state

    @property
    def is_ready(self) -> bool:
        """Whether events really flow to it now."""
        attachment = self.attachment
        return attachment is not None and attachment.flowing and attachment.share.state is ChannelState.JOINED


class Share:
    """
    One join and the Channels that share it.

    Attributes:
        key: what they have in common.
        subscribers: the Channels, oldest first; replaced whole under the registry's lock.
        state, presence: the join's state, and who is present by key; written by the I/O thread alone.
        last_error: why it is not joined, the latest reason; None once it is. Written by the I/O thread alone.
        news: whether anything was asked since the I/O thread looked last. It takes this back before it looks.
        wish, wish_form: the encoded payload to be present with, None to be absent; the form in which equal ones are
            equal. Under the registry's lock.
        trackers: the Channels that wish it; under the registry's lock.
    """

    __slots__ = ("key", "last_error", "news", "presence", "state", "subscribers", "trackers", "wish", "wish_form")

    def __init__(self, key: ShareKey) -> None:
        self.key = key
        self.subscribers: tuple[Subscriber, ...] = ()
        self.state = ChannelState.JOINING
        self.presence: Mapping[str, tuple[Mapping[str, Any], ...]] = {}
        self.last_error: RtpoolError | None = None
        self.news = True
        self.wish: bytes | None = None
        self.wish_form: bytes | None = None
        self.trackers: tuple[Subscriber, ...] = ()


class Registry:
    """
    The lock-protected map of share keys to Channels.

    Thread-safety: every method may be called from any thread; none blocks or calls user code.
    """

    def __init__(self) -> None:
        # Guards: _shares, _kept, Share.subscribers, Subscriber.bindings, Subscriber.attachment, Subscriber.leaving
        self._lock = Lock()
        self._shares: dict[ShareKey, Share] = {}
        self._own_kept: set[Bindings] | None = set()
        self._kept = weakref.ref(self._own_kept)

    def entrust(self) -> set[Bindings]:
        """The callbacks of every attached Channel, for the pool to hold: from now on they live as long as it does."""
        kept = self._kept()
        assert kept is not None, "entrusted once"
        self._own_kept = None
        return kept

    def after_fork(self) -> None:
        """In a forked child: whoever held the lock is not here."""
        self._lock = Lock()

    def attach(self, subscriber: Subscriber) -> Attachment | None:
        """Attach a Channel to its share; None when it already is attached. `NotSubscribed`: it is over."""
        with self._lock:
            if subscriber.over:
                raise NotSubscribed(f"{subscriber.topic!r} {subscriber.over}", topic=subscriber.topic)
            if subscriber.attachment is not None:
                return None
            share = self._shares.get(subscriber.key)
            if share is None:
                share = self._shares[subscriber.key] = Share(subscriber.key)
            subscriber.key = share.key  # an equal one, which need not be kept twice
            share.subscribers += (subscriber,)
            subscriber.leaving = subscriber.forked = False
            subscriber.attachment = attachment = Attachment(share)
            bindings, kept = subscriber.held(), self._kept()
            if bindings is not None and kept is not None:
                kept.add(bindings)
            return attachment

    def ask_again(self, subscriber: Subscriber) -> Attachment | None:
        """Let a Channel whose subscription was refused wait for it anew; its attachment, None when it has none."""
        with self._lock:
            attachment = subscriber.attachment
            if attachment is not None and attachment.ready.error is not None:
                attachment.ready = Outcome()
            return attachment

    def detach(self, subscriber: Subscriber, *, only: Attachment | None = None) -> Attachment | None:
        """
        Detach a Channel and forget a share without Channels.

        Args:
            only: the attachment that is meant; another thread may have attached it anew since.

        Returns:
            What it was attached by, None when it was not, or not by that.
        """
        bindings, kept = subscriber.held(), self._kept()  # held until the lock is free: the last reference is user code
        with self._lock:
            attachment = subscriber.attachment
            if attachment is None or (only is not None and attachment is not only):
                return None
            share = attachment.share
            share.subscribers = tuple(s for s in share.subscribers if s is not subscriber)
            share.news = True
            self._stop_tracking(share, subscriber)
            subscriber.attachment, subscriber.detached = None, attachment.number
            subscriber.leaving = True
            attachment.left = Outcome()
            if bindings is not None and kept is not None:
                kept.discard(bindings)
            if not share.subscribers and self._shares.get(share.key) is share:
                del self._shares[share.key]
            return attachment

    def left(self, subscriber: Subscriber) -> None:
        """The server forgot what `subscriber` had; it is closed unless it was attached again meanwhile."""
        with self._lock:
            subscriber.leaving = False

    def clear(self) -> list[Attachment]:
        """Detach everybody for good; returns what they were attached by."""
        attachments: list[Attachment] = []
        kept = self._kept() or set()
        bindings = tuple(kept)  # held until the lock is free: the last reference is user code
        with self._lock:
            kept.difference_update(bindings)
            for share in self._shares.values():
                for subscriber in share.subscribers:
                    attachment = subscriber.attachment
                    if attachment is not None:
                        attachments.append(attachment)
                        subscriber.attachment, subscriber.detached = None, attachment.number
                share.subscribers = ()
            self._shares.clear()
        return attachments

    def bind(self, subscriber: Subscriber, binding: Binding) -> bool:
        """Add a callback; True when the Channel is attached, so that its join may need another config."""
        with self._lock:
            attachment = subscriber.attachment
            heard = any(b.kind == "presence" for b in subscriber.bindings)
            if attachment is not None and binding.kind == "presence" and not heard:
                attachment.sees_presence = False  # it is told who is present when the I/O thread looks
            subscriber.bindings += (binding,)
            subscriber.hears_raw = subscriber.hears_raw or binding.kind == "raw"
            if attachment is None:
                return False
            attachment.share.news = True
            return True

    def unbind(self, subscriber: Subscriber, callback: Callback) -> bool:
        """Remove every registration of `callback`; False when there was none."""
        removed_callback = identity_of(callback)
        with self._lock:
            kept = tuple(b for b in subscriber.bindings if identity_of(b.callback) != removed_callback)
            removed = len(kept) != len(subscriber.bindings)
            subscriber.bindings = kept
            return removed

    def track(self, subscriber: Subscriber, data: bytes) -> None:
        """
        Make `subscriber` one of those that are present for its join.

        Args:
            data: the encoded payload to be present with.

        One that is not attached has nothing to be present on.

        Raises:
            ConfigConflict: another Channel of the join is present with another payload.
        """
        form = canonical(loads(data))
        with self._lock:
            attachment = subscriber.attachment
            if attachment is None:
                return
            share = attachment.share
            others = tuple(s for s in share.trackers if s is not subscriber)
            same = share.wish is not None and share.wish_form == form
            if not others or same:
                share.trackers = (*others, subscriber)
                if not same:
                    share.wish, share.wish_form = data, form
                return
        raise ConfigConflict(
            f"another Channel on {subscriber.topic!r} shares this join and is present with another payload; pass "
            "presence_key to pool.channel() to be present separately"
        )

    def untrack(self, subscriber: Subscriber) -> None:
        """`subscriber` is present no more; its join stays so while another Channel wishes it."""
        with self._lock:
            if subscriber.attachment is not None:
                self._stop_tracking(subscriber.attachment.share, subscriber)

    def _stop_tracking(self, share: Share, subscriber: Subscriber) -> None:
        assert self._lock.locked()
        share.trackers = tuple(s for s in share.trackers if s is not subscriber)
        if not share.trackers:
            share.wish = None

    def refuse_tracking(self, share: Share) -> None:
        """Nobody of a share is to be present: the server cannot take what they wish."""
        with self._lock:
            share.wish, share.trackers = None, ()

    def share(self, key: ShareKey) -> Share | None:
        """The share of a key, None when nobody wants it."""
        with self._lock:
            return self._shares.get(key)

    def share_keys(self) -> tuple[ShareKey, ...]:
        """The key of every share."""
        with self._lock:
            return tuple(self._shares)

    def subscribers(self) -> tuple[Subscriber, ...]:
        """Every attached Channel; without the lock, which the thread that a signal handler interrupted may hold."""
        return read_unlocked(lambda: tuple(s for share in tuple(self._shares.values()) for s in share.subscribers))

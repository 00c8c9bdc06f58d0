"""
Faults of single messages.
"""

from __future__ import annotations

import json
from typing import ClassVar

import attrs

from rtpool.testing.faults.base import Fault, Frames
from rtpool.testing.faults.injection import SWALLOWED, Hit
from rtpool.testing.faults.moments import Moment, Receiving, Sending, Upgrading
from rtpool.testing.wire import encode

__all__ = ["Delay", "Drop", "Duplicate", "Reorder", "StaleJoinRef", "WrongArity"]


@attrs.frozen
class _OfFrame(Fault):
    moments: ClassVar[tuple[type[Moment], ...]] = (Sending,)

    def alter(self, hit: Hit, items: Frames) -> Frames:
        """What is queued in its place."""
        hit.done()
        return [new for item in items for new in (self.change(hit, item) if isinstance(item, (str, bytes)) else [item])]

    def change(self, hit: Hit, frame: str | bytes) -> Frames:
        """What is queued in place of a frame."""
        raise NotImplementedError


@attrs.frozen
class Drop(_OfFrame):
    """
    A message is lost: at `Sending` and `Replying` the client never gets it, at `Receiving` the server never does.

    A process that died between two messages; a reply that no one sent. TCP itself loses nothing without an end.
    """

    moments = (Sending, Receiving)

    def strike(self, hit: Hit) -> object:
        """Swallow what came."""
        hit.done()
        return SWALLOWED

    def change(self, hit: Hit, frame: str | bytes) -> Frames:
        """Nothing."""
        return []


@attrs.frozen
class Delay(_OfFrame):
    """
    A message comes late, and so does all behind it on its socket; with `overtaken` that message alone.

    At `Receiving` the server is slow to read, at `Upgrading` slow to answer. Undone, it goes on at once.

    Args:
        seconds: how late.
        overtaken: what comes later does not wait; at `Sending` and `Replying` alone.
    """

    seconds: float
    overtaken: bool = False
    moments = (Sending, Receiving, Upgrading)

    def strike(self, hit: Hit) -> object:
        """Say how long to wait."""
        hit.done()
        return float(self.seconds)

    def change(self, hit: Hit, frame: str | bytes) -> Frames:
        """The frame, later."""
        clock, injection, connection = hit.server.clock, hit.injection, hit.occasion.connection
        if not self.overtaken:
            return [lambda: clock.sleep(self.seconds, injection.undone, hit.occasion.stream.ended), frame]
        assert connection is not None
        waiting = [frame]

        def go() -> None:
            while waiting:
                connection.enqueue(waiting.pop())

        clock.call_later(self.seconds, go)
        injection.when_undone(go)
        return []


@attrs.frozen
class Duplicate(_OfFrame):
    """
    A message comes more than once, word for word. Retrying proxies and servers; replay that overlaps.

    Args:
        copies: how many more.
    """

    copies: int = 1

    def change(self, hit: Hit, frame: str | bytes) -> Frames:
        """The frame, and again."""
        return [frame] * (1 + self.copies)


@attrs.frozen
class Reorder(_OfFrame):
    """
    A message comes after those that were sent behind it. Servers with several processes a socket; never TCP.

    Undone, what nothing has overtaken yet goes out.

    Args:
        by: how many frames of its socket overtake it.
    """

    by: int = 1

    def change(self, hit: Hit, frame: str | bytes) -> Frames:
        """Nothing yet."""
        connection = hit.occasion.connection
        assert connection is not None
        hit.injection.when_undone(connection.let_pass(frame, self.by))
        return []


@attrs.frozen
class StaleJoinRef(_OfFrame):
    """
    A message carries the join_ref of a join that is no more: a client ignores it. What was on its way when a channel
    was joined anew. Serializer 1.0.0 has no join_ref on the wire, and there nothing changes.
    """

    join_ref: str = "0"

    def change(self, hit: Hit, frame: str | bytes) -> Frames:
        """The message with the other join_ref."""
        connection = hit.occasion.connection
        assert connection is not None
        message = hit.occasion.message._replace(join_ref=self.join_ref, user_frame=False)
        changed = encode(connection.vsn, message)
        return [frame if changed is None or connection.vsn == "1.0.0" else changed]


@attrs.frozen
class WrongArity(_OfFrame):
    """
    A message lacks its payload: an array of four, or on serializer 1.0.0 an object without ``payload``. A server of a
    newer protocol, or a broken one.
    """

    def change(self, hit: Hit, frame: str | bytes) -> Frames:
        """The message without its payload."""
        connection, message = hit.occasion.connection, hit.occasion.message
        assert connection is not None
        if connection.vsn == "1.0.0":
            return [_json({"topic": message.topic, "event": message.event, "ref": message.ref})]
        return [_json([message.join_ref, message.ref, message.topic, message.event])]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

"""
Callbacks that take long: found by looking at what the workers are at, now and then; nothing is asked of the workers.
"""

from __future__ import annotations

import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rtpool.debug.issues import Issue
from rtpool.debug.thresholds import Thresholds
from rtpool.engine.mailbox import InHand
from rtpool.engine.threads import callback_name, enter_user_code, look_at_frames

__all__ = ["Call", "Calls", "Overdue", "callbacks_of", "calls_of"]

#: Frames of a stack that are shown, the innermost.
FRAMES = 20
#: Slow callbacks that are remembered.
MAX_CALLS = 100


class Call(NamedTuple):
    """
    A callback that has run for long.

    Attributes:
        subject: the callback and whose it is.
        name: the callback's.
        seconds: how long it has run, at least.
        stack: where it was then.
        at: when that was, monotonic.
    """

    subject: str
    name: str
    seconds: float
    stack: str
    at: float


class Overdue(NamedTuple):
    """
    What has been in progress for long.

    Attributes:
        work: what the worker has in hand.
        seconds: how long, at least.
        callback: the `id` of the callback that has, where others are called with the same event; else None.
    """

    work: InHand
    seconds: float
    callback: int | None


class Calls:
    """
    How long the workers have been at what they are at.

    Args:
        limits: from when on that is long.

    Thread-safety: none; its owner's lock guards it.
    """

    def __init__(self, limits: Thresholds) -> None:
        self._limits = limits
        # When each item, and each of several callbacks of an item, was seen in progress first.
        self._since: dict[tuple[int, tuple[int, int], int | None], float] = {}
        self._slow: dict[str, Call] = {}
        self._running: set[str] = set()

    def overdue(self, in_hand: Sequence[InHand], callbacks: Mapping[int, int], at: float) -> list[Overdue]:
        """
        What has been in progress for long at the instant of a look.

        Args:
            callbacks: as `callbacks_of` says of the same.
        """
        places: dict[tuple[int, tuple[int, int], int | None], InHand] = {}
        for each in in_hand:
            callback = callbacks.get(each.worker)
            if callback is not None or not each.several:  # else it is between two of them
                places[id(each.mailbox), each.place, callback] = each
        self._since = {place: self._since.get(place, at) for place in places}
        found = []
        for place, each in places.items():
            since = each.begun if each.first and not each.several else self._since[place]
            if at - since >= self._limits.slow_callback:
                found.append(Overdue(each, at - since, place[2]))
        return found

    def in_doubt(self, in_hand: Sequence[InHand], at: float) -> bool:
        """Whether something may have been in progress for long, and only a second look can tell."""
        slow = self._limits.slow_callback
        return any((each.several or not each.first) and at - each.begun >= slow for each in in_hand)

    def note(self, calls: Sequence[Call], at: float) -> None:
        """These run, and no other has for long."""
        self._running = {call.subject for call in calls}
        for call in calls:
            self._slow.pop(call.subject, None)  # the newest comes last
            self._slow[call.subject] = call
        gone = [subject for subject, call in self._slow.items() if at - call.at > self._limits.recent]
        for subject in [*gone, *list(self._slow)[: -MAX_CALLS or None]]:
            self._slow.pop(subject, None)

    def issues(self) -> Iterator[Issue]:
        """Those that are slow or stuck, and those that were lately."""
        for call in self._slow.values():
            running = call.subject in self._running
            stuck = running and call.seconds >= self._limits.stuck_callback
            observed = f"it {'has run' if running else 'ran'} for {call.seconds:.1f} s"
            details = {"callback": call.name, "seconds": round(call.seconds, 1), "stack": call.stack}
            yield Issue.of("RTP010" if stuck else "RTP009", call.subject, observed, running=running, **details)


def callbacks_of(in_hand: Sequence[InHand]) -> dict[int, int]:
    """
    Where several callbacks are called with an event, the `id` of the one in progress, by its worker's number; 0 for a
    greenlet, whose stack nobody sees.
    """
    workers = [each.worker for each in in_hand if each.several]

    def look(frames: Mapping[int, types.FrameType]) -> dict[int, int]:
        found = {worker: _user_part(frames[worker])[1] for worker in workers if worker in frames}
        unseen = {worker: 0 for worker in workers if worker not in frames}
        return unseen | {worker: id(callback) for worker, callback in found.items() if callback is not None}

    return look_at_frames(look) if workers else {}


def calls_of(overdue: Sequence[Overdue], at: float, hide: Callable[[str], str]) -> list[Call]:
    """
    Which callbacks those are, by name and stack; what is in no callback at present is left out.

    Args:
        overdue: as `Calls.overdue` says.
        at: when it said so.
        hide: takes secrets out of a text; lines of a user's program may hold some.
    """
    return look_at_frames(lambda frames: list(_calls(overdue, frames, at, hide))) if overdue else []


def _calls(
    overdue: Sequence[Overdue],
    frames: Mapping[int, types.FrameType],
    at: float,
    hide: Callable[[str], str],
) -> Iterator[Call]:
    for each, seconds, expected in overdue:
        owner = each.mailbox.owner
        topic = getattr(owner, "topic", None)
        whose = f"pool {owner.name}" if topic is None else repr(topic)
        if each.worker not in frames:  # a greenlet, whose stack nobody sees
            yield Call(f"a callback of {whose}", "unknown", seconds, "", at)
            continue
        stack, callback = _user_part(frames.get(each.worker))
        if callback is not None and expected in (None, id(callback)):
            name = callback_name(callback)
            summary = traceback.StackSummary.extract(((frame, frame.f_lineno) for frame in stack), lookup_lines=True)
            yield Call(f"callback {name} of {whose}", name, seconds, hide("".join(summary.format())), at)


def _user_part(frame: types.FrameType | None) -> tuple[list[types.FrameType], Any]:
    """The innermost frames of a user's callback, outermost first, and the callback; None when there is none."""
    frames: list[types.FrameType] = []
    while frame is not None and frame.f_code is not enter_user_code.__code__:
        frames.append(frame)
        frame = frame.f_back
    return frames[:FRAMES][::-1], None if frame is None else frame.f_locals.get("callback")

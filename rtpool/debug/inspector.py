"""
Looking at a pool for what is wrong with it, with a memory of the looks before; whoever looks says when.
"""

from __future__ import annotations

import threading
import time

from rtpool.debug.callbacks import Calls, callbacks_of, calls_of
from rtpool.debug.issues import Issue
from rtpool.debug.memory import Memory
from rtpool.debug.observation import Observation, observe
from rtpool.debug.rules import begin, judge
from rtpool.debug.thresholds import Thresholds
from rtpool.engine.audit import MOMENT
from rtpool.engine.engine import Engine

__all__ = ["Inspector"]

Lock = threading.Lock

#: Seconds between two looks when one alone cannot tell, and between two when what it saw may be over in a moment.
SECOND_LOOK, PAUSE = 0.1, 0.05
#: Seconds a second look is put off at the most.
LONGEST_DOUBT = 2.0


class Inspector:
    """
    Looks at one pool's engine, which it does not hold, and remembers what it saw: what lasts for long must have been
    seen before.

    Args:
        limits: from when on something is an issue.
        engine: the pool's at present, None when the pool was forgotten; what happened before is no news.

    Thread-safety: every method may be called from any thread. It has a lock of its own, so in a forked child there must
    be a new one.
    """

    def __init__(self, limits: Thresholds, engine: Engine | None) -> None:
        # Guards: _memory, _calls
        self._lock = Lock()
        self._limits = limits
        self._memory = Memory()
        self._calls = Calls(limits)
        if engine is not None:
            begin(engine.coordinator.connections.losses, time.monotonic(), self._memory, limits)

    def look(self, engine: Engine, over: threading.Event, *, patient: bool = False) -> list[Issue]:
        """
        Look, and once more where one look cannot tell; where that takes `MOMENT` seconds only if there is time.

        Args:
            engine: the same each time.
            over: set when whoever looks must end: the wait for a second look ends at once then.
            patient: whether there is time.

        Returns:
            What is wrong, worst first.
        """
        seen = observe(engine)
        issues, in_doubt = self._judge(engine, seen)
        unsure = patient and seen.inside is not None and any(not found.certain for found in seen.inside.misplaced)
        if (in_doubt or unsure) and not over.wait(MOMENT + PAUSE if unsure else SECOND_LOOK):
            deadline = seen.at + min(LONGEST_DOUBT, self._limits.slow_callback + PAUSE)
            while _is_at_the_same(engine, seen) and time.monotonic() < deadline and not over.wait(PAUSE):
                continue
            issues, _ = self._judge(engine, observe(engine))
        return issues

    def sample(self, engine: Engine) -> bool:
        """
        Look only at what the workers are at, for callbacks that take long.

        Returns:
            Whether a second look could tell more.
        """
        at = time.monotonic()
        in_hand = engine.dispatcher.in_hand()
        callbacks = callbacks_of(in_hand)
        with self._lock:
            overdue = self._calls.overdue(in_hand, callbacks, at)
            in_doubt = self._calls.in_doubt(in_hand, at)
        calls = calls_of(overdue, at, engine.logs.hide)
        with self._lock:
            self._calls.note(calls, at)
        return in_doubt

    def _judge(self, engine: Engine, seen: Observation) -> tuple[list[Issue], bool]:
        """What is wrong, and whether a second look is needed."""
        in_doubt = self.sample(engine)
        share = self._limits.mailbox_share
        in_doubt = in_doubt or any(m.waiting >= share * m.limit for c in seen.channels for m in c.mailboxes)
        with self._lock:
            issues = [*judge(seen, self._memory, self._limits), *self._calls.issues()]
        return sorted(issues, key=lambda issue: (-issue.severity.rank, issue.code)), in_doubt


def _is_at_the_same(engine: Engine, seen: Observation) -> bool:
    """Whether a worker is still at something that it was at, and of which one look does not tell when it began."""
    now = {(each.mailbox, each.place) for each in engine.dispatcher.in_hand()}
    return any((each.mailbox, each.place) in now for each in seen.in_hand if each.several or not each.first)

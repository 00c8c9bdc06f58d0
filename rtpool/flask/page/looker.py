"""
Looks at an app's pool for all who watch it: what one has seen serves the others, so that ten open pages cost one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs

from rtpool.debug.debugger import Debugger
from rtpool.debug.picture import Picture
from rtpool.debug.serving import picture_of
from rtpool.errors import RtpoolError
from rtpool.flask.page.model import model_of, model_without_pool

if TYPE_CHECKING:
    from rtpool.debug.issues import Issue
    from rtpool.flask.state import AppState
    from rtpool.pool import RealtimePool

__all__ = ["Looker", "PERIOD", "Snapshot"]

Lock = threading.Lock

#: Seconds for which a look serves, and for which a look for issues does: that may take two.
PERIOD, ISSUES_SECONDS = 1.0, 5.0
#: Seconds between two looks that rates are made of.
LEAST_SPAN, LONGEST_SPAN = 0.5, 60.0
#: Seconds somebody waits for a look that another thread takes.
PATIENCE = 10.0


@attrs.frozen(eq=False)
class Snapshot:
    """
    One look.

    Attributes:
        at: when, by the looker's clock.
        model: what the page shows.
        picture: what the next look makes rates with.
    """

    at: float
    model: dict[str, Any] = attrs.field(repr=False)
    picture: Picture | None


class Looker:
    """
    Takes looks when asked; has no thread. Whoever asks first looks, the others wait for what it sees.

    Thread-safety: every method may be called from any thread.
    """

    def __init__(self, state: AppState, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._state = state
        self._clock = clock
        # Guards: _looking, _latest. The rest is of whoever looks.
        self._changed = threading.Condition(Lock())
        self._looking = False
        self._latest: Snapshot | None = None
        self._before: Picture | None = None
        self._debugger: Debugger | None = None
        self._of: RealtimePool | None = None
        self._issues: tuple[float, list[Issue]] | None = None

    def look(self, fresh_for: float = PERIOD) -> Snapshot:
        """
        What there is to see, at most `fresh_for` seconds old; 0 looks now.
        """
        now = self._clock()
        with self._changed:
            asked = self._latest
            alone = self._changed.wait_for(lambda: not self._looking, PATIENCE)
            latest = self._latest
            if latest is not None:
                serves = latest is not asked or now - latest.at < fresh_for
                if not alone or (serves and fresh_for > 0):
                    return latest
            self._looking = True
        made = None
        try:
            made = self._look(latest, anew=fresh_for <= 0)
        finally:
            with self._changed:
                self._looking = False
                self._latest = made or self._latest
                self._changed.notify_all()
        return made

    def debugger(self, pool: RealtimePool) -> Debugger:
        """The pool's debugger; it remembers what was, so there is one."""
        if self._debugger is None or self._of is not pool:
            self._debugger, self._of, self._issues = Debugger(pool), pool, None
        return self._debugger

    def _look(self, latest: Snapshot | None, *, anew: bool) -> Snapshot:
        at = self._clock()
        if anew:
            self._issues = None
        try:
            pool = self._state.pool
        except RtpoolError as error:
            return Snapshot(at, model_without_pool(str(error)), None)
        debugger, engine = self.debugger(pool), pool._engine
        told = picture_of(engine, lambda: self._find_issues(debugger, at))
        if latest is not None and at - latest.at >= LEAST_SPAN:
            self._before = latest.picture if at - latest.at <= LONGEST_SPAN else None
        streams = self._state.streams
        model = model_of(engine, told, self._before, streams=streams.open, feeds=streams.feeds)
        return Snapshot(at, model, Picture.of(told))

    def _find_issues(self, debugger: Debugger, at: float) -> list[Issue]:
        if self._issues is None or at - self._issues[0] >= ISSUES_SECONDS:
            self._issues = (at, debugger.issues())
        return self._issues[1]

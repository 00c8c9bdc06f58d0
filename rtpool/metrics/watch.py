"""
Which pools are told of, for how long after they were closed, and what there is to tell.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import attrs

from rtpool.engine.engine import Engine, running
from rtpool.engine.snapshot import stats_of
from rtpool.errors import InvalidType
from rtpool.metrics.table import METRICS

if TYPE_CHECKING:
    from rtpool.pool import RealtimePool

__all__ = ["LAST_SECONDS", "Reading", "Watch"]

#: How long a closed pool is still told of: more than two rounds of whoever asks once a minute, so that each of several
#: gets its last values.
LAST_SECONDS = 150.0


@attrs.frozen
class Reading:
    """
    What every metric of one pool was at one moment.

    Attributes:
        pool: the pool's name, as its threads and log lines have it.
        url: where it connects, without a query.
        supabase: False for plain Phoenix.
        values: by the metric's name, and by its label.
    """

    pool: str
    url: str
    supabase: bool
    values: Mapping[str, Mapping[str, float]]


class Watch:
    """
    The pools that are told of: those given, or all that the process uses. A closed one is told of for `LAST_SECONDS`,
    and then no more.

    No pool is kept alive. The engine of one that was told of is, for its last values, until it is told of no more.

    Args:
        pools: as for `add`.
        clock: seconds.

    Raises:
        InvalidType: something is no pool.

    Thread-safety: every method may be called from any thread. There is no lock, for a forked child could find it held.
    """

    def __init__(self, *pools: RealtimePool, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._everything = False
        # Both are replaced whole. The second: engines in use when last looked at, and since when they are seen closed.
        self._pools: tuple[weakref.ref[RealtimePool], ...] = ()
        self._known: dict[Engine, float | None] = {}
        self.add(*pools)

    def add(self, *pools: RealtimePool) -> None:
        """
        Tell of these pools as well; with none, of every pool from its first use on, whoever makes it.

        Raises:
            InvalidType: something is no pool.
        """
        for pool in pools:
            if not isinstance(getattr(pool, "_engine", None), Engine) or not hasattr(pool, "stats"):
                raise InvalidType(f"pools must be RealtimePool, not {type(pool).__name__}")
        self._everything = self._everything or not pools
        self._pools = tuple(dict.fromkeys((*self._pools, *map(weakref.ref, pools))))

    def read(self) -> list[Reading]:
        """Every metric of every pool, the oldest pool first; those of one pool are of one moment."""
        return [_reading(engine) for engine in self._engines()]

    def _engines(self) -> list[Engine]:
        now, before = self._clock(), self._known
        found = dict.fromkeys(running() if self._everything else ())
        found |= dict.fromkeys(pool._engine for ref in self._pools if (pool := ref()) is not None)
        told: list[Engine] = []
        known: dict[Engine, float | None] = {}
        for engine in dict.fromkeys((*before, *found)):
            closed_at = before.get(engine)
            if closed_at is None and engine.closed:
                closed_at = now
            over = closed_at is not None and now - closed_at > LAST_SECONDS
            if engine.forked or (engine not in found and (over or not engine.started)):  # the parent's, or nobody's
                continue
            if engine.started:
                known[engine] = closed_at
            if not over:
                told.append(engine)
        self._known = known
        return told


def _reading(engine: Engine) -> Reading:
    stats = stats_of(engine)
    values = {metric.name: metric.read(stats) for metric in METRICS}
    return Reading(engine.name, engine.endpoint.url, engine.options.is_supabase, values)

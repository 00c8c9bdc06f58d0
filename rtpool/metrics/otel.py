"""
For OpenTelemetry: observable instruments that read pools when a reader collects.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import attrs
from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation, get_meter_provider

from rtpool.metrics.table import METRICS, Metric
from rtpool.metrics.watch import Reading, Watch

if TYPE_CHECKING:
    from rtpool.pool import RealtimePool

__all__ = ["instrument"]

#: What is told by the instruments of each provider that has them: a provider takes instruments of one name once, and
#: drops without a word what comes later. The last is of the process's own provider, perhaps before it was set.
_watches: weakref.WeakKeyDictionary[MeterProvider, Watch] = weakref.WeakKeyDictionary()
_global: list[Watch] = []


def instrument(*pools: RealtimePool, meter_provider: MeterProvider | None = None) -> None:
    """
    Tell OpenTelemetry what pools do, by observable instruments of the meter ``rtpool``.

    Each collection reads `RealtimePool.stats`; between collections nothing happens. What the conventions for messaging
    have a name for has that (``messaging.client.consumed.messages``, ``messaging.client.sent.messages``), the rest is
    ``rtpool.*``. Every point has the attributes ``rtpool.pool.name``, the pool's name as in its threads' names,
    ``server.address`` and ``server.port``; some one more, all of whose values are known beforehand. A closed pool is
    told of for two and a half minutes more, with its last values. In a forked child a pool counts anew.

    Args:
        pools: to tell of; none for every pool of this process from its first use on, those that are made later
            included. They are not kept alive. Another call adds to what is told.
        meter_provider: whose meter; None for the process's own, which may be set later.

    Raises:
        InvalidType: something is no pool.

    Thread-safety: collections may run at the same time, on any threads; call this from one at a time.
    """
    own = get_meter_provider()
    provider = meter_provider or own
    watch = _watches.get(provider) or (_global[0] if _global and provider is own else None)
    if watch is not None:
        watch.add(*pools)
        return
    watch = Watch(*pools)
    _make(provider.get_meter("rtpool"), _Source(watch))
    _watches[provider] = watch
    if meter_provider is None:
        _global[:] = [watch]


@attrs.frozen
class _Round:
    """One reading of all pools, and the metrics that were told of it."""

    readings: Sequence[Reading]
    told: set[str] = attrs.field(factory=set)


class _Source:
    """
    What the instruments of a meter ask. All that are asked in one collection tell of the same moment: each takes a
    reading once, and who asks for it again has begun another collection.

    Thread-safety: collections at the same time cost a reading more, at worst.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._round: _Round | None = None

    def observe(self, metric: Metric) -> list[Observation]:
        """The points of a metric."""
        turn = self._round
        if turn is None or metric.name in turn.told:
            turn = self._round = _Round(self._watch.read())
        turn.told.add(metric.name)
        return [
            Observation(value, _attributes(metric, reading, label))
            for reading in turn.readings
            for label, value in reading.values[metric.name].items()
        ]


def _attributes(metric: Metric, reading: Reading, label: str) -> dict[str, str | int]:
    server = urlsplit(reading.url)
    attributes: dict[str, str | int] = {"rtpool.pool.name": reading.pool, "server.address": server.hostname or ""}
    if server.port is not None:
        attributes["server.port"] = server.port
    if metric.label is not None:
        attributes[metric.label] = label
    if metric.messaging is not None:
        attributes["messaging.system"] = "supabase_realtime" if reading.supabase else "phoenix"
        attributes["messaging.operation.name"] = metric.messaging[1]
    return attributes


def _make(meter: Meter, source: _Source) -> None:
    makers: dict[str, Callable[..., object]] = {
        "counter": meter.create_observable_counter,
        "sum": meter.create_observable_up_down_counter,
        "gauge": meter.create_observable_gauge,
    }
    for metric in METRICS:

        def observe(_: CallbackOptions, metric: Metric = metric) -> Iterable[Observation]:
            return source.observe(metric)

        name, unit = (metric.messaging[0], "{message}") if metric.messaging is not None else (metric.name, metric.unit)
        makers[metric.kind](name, [observe], unit, metric.help)

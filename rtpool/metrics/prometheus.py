"""
For prometheus-client: a collector that reads pools when it is asked to.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from rtpool.metrics.table import METRICS, Metric
from rtpool.metrics.watch import Watch

if TYPE_CHECKING:
    from rtpool.pool import RealtimePool

__all__ = ["PrometheusCollector"]


class PrometheusCollector:
    """
    Tells Prometheus what pools do: ``REGISTRY.register(PrometheusCollector())``.

    Each scrape reads `RealtimePool.stats`; between scrapes nothing happens. Every sample has the labels ``pool``, the
    pool's name as in its threads' names, and ``server``, host and port; some one more, all of whose values are known
    beforehand. A closed pool is told of for two and a half minutes more, with its last values. In a forked child a pool
    counts anew.

    Args:
        pools: to tell of; none for every pool of this process from its first use on, those that are made later
            included. They are not kept alive.

    Raises:
        InvalidType: something is no pool.

    Thread-safety: scrapes may run at the same time, on any threads.
    """

    def __init__(self, *pools: RealtimePool) -> None:
        self._watch = Watch(*pools)

    def describe(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        """The metrics without values, by which a registry finds two collectors of the same name."""
        return [_family(metric) for metric in METRICS]

    def collect(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        """The metrics with the values of this moment; called by the registry."""
        readings = [(reading, urlsplit(reading.url).netloc) for reading in self._watch.read()]
        families = []
        for metric in METRICS:
            family = _family(metric)
            for reading, server in readings:
                for label, value in reading.values[metric.name].items():
                    family.add_metric([reading.pool, server, *([label] if metric.label else [])], value)
            families.append(family)
        return families


def _family(metric: Metric) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    label = metric.label.rpartition(".")[2] if metric.label else None
    return kind(metric.family, metric.help, labels=["pool", "server", *([label] if label else [])])

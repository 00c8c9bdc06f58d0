"""A forked child tells its own numbers from zero, and the parent goes on with its own, whoever exports them."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry

import rtpool
from rtpool.metrics import PrometheusCollector, instrument
from tests.conftest import MakePool
from tests.support.forking import ask
from tests.support.wait import wait_until

if not hasattr(os, "fork"):
    pytest.skip("this platform has no fork", allow_module_level=True)

#: The pushes that each pool has sent, by its name.
Sent = Callable[[], dict[object, float]]


def by_prometheus(*pools: rtpool.RealtimePool) -> Sent:
    registry = CollectorRegistry()
    registry.register(PrometheusCollector(*pools))

    def sent() -> dict[object, float]:
        samples = [sample for family in registry.collect() for sample in family.samples]
        return {s.labels["pool"]: s.value for s in samples if s.name == "rtpool_pushes_sent_total"}

    return sent


def by_otel(*pools: rtpool.RealtimePool) -> Sent:
    reader = InMemoryMetricReader()
    instrument(*pools, meter_provider=MeterProvider([reader], shutdown_on_exit=False))

    def sent() -> dict[object, float]:
        data = reader.get_metrics_data()
        assert data is not None
        metrics = [m for resource in data.resource_metrics for scope in resource.scope_metrics for m in scope.metrics]
        (pushes,) = [metric for metric in metrics if metric.name == "messaging.client.sent.messages"]
        return {point.attributes["rtpool.pool.name"]: point.value for point in pushes.data.data_points}

    return sent


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("exporter", [by_prometheus, by_otel])
def test_a_forked_child_tells_its_own_numbers(exporter: Callable[..., Sent], given: bool, make_pool: MakePool) -> None:
    pool = make_pool(after_fork="resubscribe")
    sent = exporter(*([pool] if given else []))
    name = pool._engine.name
    room = pool.channel("room", receive_own=True).subscribe()
    for _ in range(5):
        room.send_broadcast("x", {}).result(10)
    assert sent() == {name: 5}

    def body() -> dict[object, float]:
        wait_until(lambda: room.is_subscribed)
        room.send_broadcast("x", {}).result(10)
        of_child = sent()
        pool.close()
        return of_child

    assert ask(body) == {name: 1}
    assert sent() == {name: 5}

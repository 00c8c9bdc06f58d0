"""What OpenTelemetry's SDK exports is what `stats()` says, whatever becomes of the pools."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, Sum

import rtpool
from rtpool.metrics import instrument, otel, watch
from rtpool.metrics.watch import LAST_SECONDS
from rtpool.testing import RealtimeServer
from tests.conftest import MakePool
from tests.metrics.expected import COUNTERS, Points, otel_points
from tests.support.recorder import Recorder
from tests.support.wait import wait_until

MESSAGING = {"messaging.client.consumed.messages": "receive", "messaging.client.sent.messages": "send"}
LABELS = {
    "rtpool.status": "rtpool.pool.status",
    "rtpool.connections": "rtpool.connection.state",
    "rtpool.subscriptions": "rtpool.channel.state",
    "rtpool.gaps": "rtpool.gap.cause",
}


class Exported:
    """An application's provider, and what it exports."""

    def __init__(self) -> None:
        self.reader, self.second = InMemoryMetricReader(), InMemoryMetricReader()
        self.provider = MeterProvider([self.reader, self.second], shutdown_on_exit=False)
        self.system = "supabase_realtime"

    def pools(self, reader: InMemoryMetricReader | None = None) -> dict[str, Points]:
        """Values by pool, name and label."""
        pools: dict[str, Points] = {}
        data = (reader or self.reader).get_metrics_data()
        for resource in data.resource_metrics if data is not None else ():
            for scope in resource.scope_metrics:
                assert scope.scope.name == "rtpool"
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        attributes = dict(point.attributes or {})
                        assert attributes.pop("server.address") == "127.0.0.1"
                        assert isinstance(attributes.pop("server.port"), int)
                        if metric.name in MESSAGING:
                            assert attributes.pop("messaging.operation.name") == MESSAGING[metric.name]
                            assert attributes.pop("messaging.system") == self.system
                        points = pools.setdefault(str(attributes.pop("rtpool.pool.name")), {})
                        label = str(attributes.pop(LABELS[metric.name])) if metric.name in LABELS else ""
                        assert not attributes, attributes
                        points[metric.name, label] = point.value
        return pools

    def points(self, pool: rtpool.RealtimePool) -> Points:
        return self.pools()[pool._engine.name]


@pytest.fixture
def exported() -> Iterator[Exported]:
    exported = Exported()
    yield exported
    exported.provider.shutdown()


def test_an_export_equals_the_statistics_while_traffic_flows_and_when_it_stops(
    server: RealtimeServer, make_pool: MakePool, exported: Exported
) -> None:
    pool, heard = make_pool(heartbeat_interval=0.05, max_events_per_second=500.0), Recorder()
    instrument(pool, meter_provider=exported.provider)
    assert exported.points(pool) == otel_points(pool.stats()), "before its first use"
    room = pool.channel("room").on_broadcast("*", heard).subscribe()
    room.send_broadcast("y", {}).result(10)
    for number in range(40):
        server.broadcast("room", "x", {"n": number})
        if number % 10 == 0:
            before, told, after = pool.stats(), exported.points(pool), pool.stats()
            for field, (_, name) in COUNTERS.items():
                assert getattr(before, field) <= told[name, ""] <= getattr(after, field), name
    heard.wait(40)
    server.connections[0].abort()
    wait_until(lambda: pool.stats().gaps == 1 and room.is_subscribed and pool.stats().heartbeat_latency)
    before = None
    while before != pool.stats():  # heartbeats go on
        before, told = pool.stats(), exported.points(pool)
    assert told == otel_points(before)
    assert told["messaging.client.consumed.messages", ""] == 40
    assert told["messaging.client.sent.messages", ""] == told["rtpool.gaps", "transport"] == 1
    assert told["rtpool.connections", "open"] == told["rtpool.status", "connected"] == 1
    assert "rtpool.push.limit" in {name for name, _ in told}


def test_counters_grow_and_gauges_do_not_add_up(pool: rtpool.RealtimePool, exported: Exported) -> None:
    instrument(pool, meter_provider=exported.provider)
    data = exported.reader.get_metrics_data()
    assert data is not None
    metrics = {metric.name: metric for metric in data.resource_metrics[0].scope_metrics[0].metrics}
    counters = {name for name, metric in metrics.items() if isinstance(metric.data, Sum) and metric.data.is_monotonic}
    sums = {name for name, metric in metrics.items() if isinstance(metric.data, Sum)} - counters
    assert counters == {*(name for _, name in COUNTERS.values()), "rtpool.gaps"}
    assert {"rtpool.connections", "rtpool.subscriptions", "rtpool.joins", "rtpool.events.queued"} <= sums
    assert {"rtpool.status", "rtpool.join.limit", "rtpool.mailbox.fullest"} <= {*metrics} - counters - sums
    units = {name: metrics[name].unit for name in ("rtpool.received", "rtpool.callback.duration", *MESSAGING)}
    assert units == {"rtpool.received": "By", "rtpool.callback.duration": "s", **dict.fromkeys(MESSAGING, "{message}")}


def test_all_instruments_of_a_collection_tell_of_one_moment(
    pool: rtpool.RealtimePool, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    instrument(pool, meter_provider=exported.provider)
    read, taken = watch.stats_of, []
    monkeypatch.setattr(watch, "stats_of", lambda engine: taken.append(engine) or read(engine))
    for collections in range(1, 4):
        exported.pools()
        exported.pools(exported.second)
        assert len(taken) == 2 * collections, "one for each reader's"


def test_a_closed_pool_ends_with_its_last_values_for_every_reader_and_nothing_of_it_stays(
    server: RealtimeServer, make_pool: MakePool, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, heard = [0.0], Recorder()
    instrument(meter_provider=exported.provider)
    monkeypatch.setattr(otel._watches[exported.provider], "_clock", lambda: now[0])
    pool = rtpool.RealtimePool(server.url, api_key=server.api_key)
    name, engine = pool._engine.name, weakref.ref(pool._engine)
    assert name not in exported.pools(), "it is not in use"
    pool.channel("room").on_broadcast("*", heard).subscribe()
    assert name in exported.pools()
    server.broadcast("room", "x", {"n": 0})
    heard.wait(1)
    assert pool.close(10)
    for reader in (exported.reader, exported.second):
        last = exported.pools(reader)[name]
        assert last == otel_points(pool.stats())
        assert last["messaging.client.consumed.messages", ""] == last["rtpool.status", "closed"] == 1
    now[0] += LAST_SECONDS + 1
    assert name not in exported.pools()
    del pool
    gc.collect()
    assert engine() is None


def test_another_call_adds_to_what_a_provider_tells(server: RealtimeServer, exported: Exported) -> None:
    one, two, three = (rtpool.RealtimePool(server.url, api_key=server.api_key) for _ in range(3))
    instrument(one, meter_provider=exported.provider)
    instrument(two, meter_provider=exported.provider)
    instrument(two, meter_provider=exported.provider)
    assert set(exported.pools()) == {one._engine.name, two._engine.name}
    with three:
        three.connect()
        assert three._engine.name not in exported.pools()
        instrument(meter_provider=exported.provider)
        assert three._engine.name in exported.pools()


def test_a_thousand_topics_make_no_point_more(make_pool: MakePool, exported: Exported) -> None:
    pool = make_pool(heartbeat_interval=0.05)
    instrument(pool, meter_provider=exported.provider)
    pool.channel("topic-0").subscribe()
    wait_until(lambda: pool.stats().heartbeat_latency is not None)
    few = exported.points(pool)
    for number in range(1, 1_000):
        pool.channel(f"topic-{number}").subscribe(wait=False)
    wait_until(lambda: pool.stats().active_subscriptions == 1_000)
    many = exported.points(pool)
    assert set(many) == set(few)
    assert many["rtpool.subscriptions", "joined"] == 1_000


def test_readers_at_the_same_time_are_told_right(pool: rtpool.RealtimePool, exported: Exported) -> None:
    room = pool.channel("room", receive_own=True).on_broadcast("*", lambda _: None).subscribe()
    instrument(pool, meter_provider=exported.provider)
    errors: list[BaseException] = []

    def collect(reader: InMemoryMetricReader) -> None:
        try:
            seen = [exported.pools(reader)[pool._engine.name]["rtpool.received", ""] for _ in range(50)]
            assert seen == sorted(seen)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=collect, args=(reader,)) for reader in (exported.reader, exported.second) * 2]
    for thread in threads:
        thread.start()
    for _ in range(50):
        room.send_broadcast("x", {}).result(10)
    for thread in threads:
        thread.join(30)
    assert not errors


def test_a_plain_phoenix_server_is_not_called_supabase(exported: Exported) -> None:
    exported.system = "phoenix"
    pool = rtpool.RealtimePool("ws://127.0.0.1:4000/socket", topic_prefix="")
    instrument(pool, meter_provider=exported.provider)
    assert exported.points(pool)["messaging.client.sent.messages", ""] == 0


GLOBAL = """
import rtpool, rtpool.metrics
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

pools = [rtpool.RealtimePool("http://127.0.0.1:9", api_key="k") for _ in range(3)]
rtpool.metrics.instrument(pools[0])
provider = MeterProvider([reader := InMemoryMetricReader()])
metrics.set_meter_provider(provider)
rtpool.metrics.instrument(pools[1])
rtpool.metrics.instrument(pools[2], meter_provider=provider)
(scope,) = reader.get_metrics_data().resource_metrics[0].scope_metrics
(joins,) = [metric for metric in scope.metrics if metric.name == "rtpool.joins"]
print(sorted(point.attributes["rtpool.pool.name"] for point in joins.data.data_points))
"""


def test_the_process_s_provider_may_be_set_later_and_is_told_of_all() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", GLOBAL], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("['1', '2', '3']\n", "")

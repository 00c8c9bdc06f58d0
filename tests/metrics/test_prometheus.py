"""What a real Prometheus client scrapes and parses is what `stats()` says, whatever becomes of the pools."""

from __future__ import annotations

import contextlib
import gc
import itertools
import subprocess
import sys
import threading
import urllib.request
import weakref
from collections.abc import Callable, Iterator

import pytest
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

import rtpool
from rtpool.metrics import PrometheusCollector
from rtpool.metrics.watch import LAST_SECONDS, Watch
from rtpool.testing import RealtimeServer
from tests.conftest import MakePool
from tests.metrics.expected import COUNTERS, Points, prometheus_points
from tests.support.recorder import Recorder
from tests.support.wait import wait_until

#: How each format is asked for, and read.
FORMATS = {"text/plain": parse_text, "application/openmetrics-text;version=1.0.0": parse_openmetrics}


class Scraper:
    """Prometheus: scrapes over HTTP, and parses."""

    def __init__(self, port: int) -> None:
        self._port = port

    def text(self, accept: str = "text/plain") -> str:
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}/metrics", headers={"Accept": accept})
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert accept.partition(";")[0] in answer.headers["Content-Type"]
            return str(answer.read().decode())

    def pools(self, accept: str = "text/plain") -> dict[tuple[str, str], Points]:
        return parsed(self.text(accept), accept)

    def points(self, pool: rtpool.RealtimePool, accept: str = "text/plain") -> Points:
        """Of one pool."""
        return self.pools(accept)[pool._engine.name, netloc(pool)]


def netloc(pool: rtpool.RealtimePool) -> str:
    return pool._endpoint.url.split("/")[2]


def parsed(text: str, accept: str = "text/plain") -> dict[tuple[str, str], Points]:
    """Values by pool and server, name and label."""
    pools: dict[tuple[str, str], Points] = {}
    for family in FORMATS[accept](text):
        for sample in family.samples:
            labels = dict(sample.labels)
            points = pools.setdefault((labels.pop("pool"), labels.pop("server")), {})
            assert len(labels) <= 1
            key = sample.name, next(iter(labels.values()), "")
            assert key not in points, f"{key} is told twice"
            points[key] = sample.value
    return pools


@contextlib.contextmanager
def serving(collector: PrometheusCollector) -> Iterator[Scraper]:
    """The client library's own server."""
    registry = CollectorRegistry()
    registry.register(collector)
    httpd, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        yield Scraper(httpd.server_port)
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def scraped(collector: PrometheusCollector) -> dict[tuple[str, str], Points]:
    """The same without a server."""
    registry = CollectorRegistry()
    registry.register(collector)
    return parsed(generate_latest(registry).decode())


def names(collector: PrometheusCollector) -> set[str]:
    """Of the pools that are told of."""
    return {name for name, _ in scraped(collector)}


def busy(pool: rtpool.RealtimePool, server: RealtimeServer) -> Recorder:
    """A pool with a Channel that hears, one whose callback raises, and a push."""
    heard = Recorder()
    room = pool.channel("room").on_broadcast("*", heard).subscribe()
    pool.channel("broken").on_broadcast("*", lambda _: 1 / 0).subscribe()
    room.send_broadcast("y", {}).result(10)
    server.broadcast("broken", "x", {})
    wait_until(lambda: pool.stats().callback_errors == 1)
    return heard


@pytest.mark.parametrize("accept", FORMATS)
def test_a_scrape_equals_the_statistics_while_traffic_flows_and_when_it_stops(
    server: RealtimeServer, make_pool: MakePool, accept: str
) -> None:
    pool = make_pool(heartbeat_interval=0.05, max_events_per_second=500.0)
    with serving(PrometheusCollector(pool)) as prometheus:
        assert prometheus.points(pool, accept) == prometheus_points(pool.stats()), "before its first use"
        heard = busy(pool, server)
        for number in range(40):
            server.broadcast("room", "x", {"n": number})
            if number % 10 == 0:
                before, told, after = pool.stats(), prometheus.points(pool, accept), pool.stats()
                for field, (name, _) in COUNTERS.items():
                    assert getattr(before, field) <= told[name, ""] <= getattr(after, field), name
        heard.wait(40)
        server.connections[0].abort()
        wait_until(lambda: pool.stats().gaps == 2 and pool.stats().active_subscriptions == 2)
        wait_until(lambda: pool.stats().heartbeat_latency is not None)
        told = at_rest(pool, lambda: prometheus.points(pool, accept))
        assert told["rtpool_events_delivered_total", ""] == 41
        assert told["rtpool_gaps_total", "transport"] == 2
        assert told["rtpool_reconnect_attempts_total", ""] == 1
        assert told["rtpool_connections", "open"] == told["rtpool_status", "connected"] == 1
        assert told["rtpool_heartbeat_latency_seconds", ""] > 0
        assert told["rtpool_push_limit_per_second", ""] == 500


def at_rest(pool: rtpool.RealtimePool, read: Callable[[], Points]) -> Points:
    """What is told between two equal statistics: heartbeats go on."""
    while True:
        before, told, after = pool.stats(), read(), pool.stats()
        if before == after:
            assert told == prometheus_points(before)
            return told


def test_a_closed_pool_ends_with_its_last_values_and_is_then_told_of_no_more(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    now = [1000.0]
    pool, collector = make_pool(), PrometheusCollector()
    collector._watch = Watch(clock=lambda: now[0])
    name, engine = pool._engine.name, weakref.ref(pool._engine)
    assert name not in names(collector), "it is not in use"
    heard = Recorder()
    pool.channel("room").on_broadcast("*", heard).subscribe()
    key = name, netloc(pool)
    assert scraped(collector)[key]["rtpool_status", "connected"] == 1
    for number in range(5):
        server.broadcast("room", "x", {"n": number})
    heard.wait(5)
    assert pool.close(10)
    last = scraped(collector)[key]
    assert last == prometheus_points(pool.stats())
    assert (last["rtpool_events_delivered_total", ""], last["rtpool_status", "closed"]) == (5, 1)
    now[0] += LAST_SECONDS
    assert scraped(collector)[key] == last
    now[0] += 1
    assert name not in names(collector)
    assert name not in names(collector), "nor ever again"
    del pool
    make_pool.__closure__[0].cell_contents.clear()  # type: ignore[attr-defined,index]
    gc.collect()
    assert engine() is None, "a collector keeps nothing of it"


def test_a_pool_that_was_given_is_told_of_no_more_after_its_end_though_somebody_holds_it(
    pool: rtpool.RealtimePool, server: RealtimeServer
) -> None:
    now = [0.0]
    watch = Watch(pool, clock=lambda: now[0])
    pool.connect()
    assert pool.close(10)
    assert [reading.pool for reading in watch.read()] == [pool._engine.name]
    now[0] += LAST_SECONDS + 1
    assert [watch.read(), watch.read()] == [[], []]


def test_pools_are_not_kept_alive(server: RealtimeServer) -> None:
    unused, used = (rtpool.RealtimePool(server.url, api_key=server.api_key) for _ in range(2))
    now = [0.0]
    watch = Watch(unused, used, clock=lambda: now[0])
    used.connect()
    assert len(watch.read()) == 2
    dead = [weakref.ref(unused), weakref.ref(used), weakref.ref(unused._engine), weakref.ref(used._engine)]
    name = used._engine.name
    del unused
    gc.collect()
    assert [dead[0](), dead[2]()] == [None, None], "not even its engine, for it was never used"
    held = [used]
    del used
    with pytest.warns(ResourceWarning, match="was never closed"):
        held.clear()
    assert dead[1]() is None
    (last,) = watch.read()
    assert last.pool == name
    wait_until(lambda: watch.read()[0].values["rtpool.status"]["closed"])
    now[0] += LAST_SECONDS + 1
    assert watch.read() == []
    wait_until(lambda: gc.collect() is not None and dead[3]() is None, "the engine's thread has ended")


def test_without_a_pool_given_all_are_told_of_and_add_up(server: RealtimeServer, make_pool: MakePool) -> None:
    everything, one = PrometheusCollector(), make_pool()
    only_one = PrometheusCollector(one)
    later = [make_pool() for _ in range(2)]
    for pool in (one, *later):
        pool.channel("room", receive_own=True).subscribe().send_broadcast("x", {}).result(10)
    wait_until(lambda: sum(pool.stats().events_received for pool in (one, *later)) == 3 + 2 + 1)
    mine = {pool._engine.name for pool in (one, *later)}
    assert mine <= names(everything)
    assert names(only_one) == {one._engine.name}
    told = scraped(everything)
    total = sum(points["rtpool_messages_received_total", ""] for key, points in told.items() if key[1] == netloc(one))
    assert total == sum(pool.stats().messages_received for pool in (one, *later))


def test_a_thousand_topics_make_no_sample_more_and_none_is_named(server: RealtimeServer, make_pool: MakePool) -> None:
    pool = make_pool(heartbeat_interval=0.05)
    with serving(PrometheusCollector(pool)) as prometheus:
        pool.channel("topic-0").subscribe()
        wait_until(lambda: pool.stats().heartbeat_latency is not None)
        few = prometheus.points(pool)
        for number in range(1, 1_000):
            pool.channel(f"topic-{number}").subscribe(wait=False)
        wait_until(lambda: pool.stats().active_subscriptions == 1_000)
        text = prometheus.text()
        many = parsed(text)[pool._engine.name, netloc(pool)]
    assert set(many) == set(few)
    assert (many["rtpool_subscriptions", "joined"], many["rtpool_connections", "open"]) == (1_000, 10)
    assert "topic-" not in text
    assert server.api_key not in text
    assert "apikey" not in text


def test_scrapes_at_the_same_time_go_well_while_pools_come_and_go(server: RealtimeServer, make_pool: MakePool) -> None:
    stays, over, errors = make_pool(), threading.Event(), []
    room = stays.channel("room", receive_own=True).on_broadcast("*", lambda _: None).subscribe()
    key = stays._engine.name, netloc(stays)
    with serving(PrometheusCollector()) as prometheus:

        def scrape() -> None:
            seen = [0.0]
            try:
                while not over.is_set():
                    seen.append(prometheus.pools()[key]["rtpool_received_bytes_total", ""])
            except BaseException as error:
                errors.append(error)
            if seen != sorted(seen) or len(seen) < 3:
                errors.append(AssertionError(seen))

        scrapers = [threading.Thread(target=scrape) for _ in range(3)]
        for thread in scrapers:
            thread.start()
        for _ in range(10):
            with rtpool.RealtimePool(server.url, api_key=server.api_key) as goes:
                goes.connect()
                room.send_broadcast("x", {}).result(10)
        over.set()
        for thread in scrapers:
            thread.join(30)
    assert not errors


def test_a_registry_finds_a_second_collector_of_the_same_names(pool: rtpool.RealtimePool) -> None:
    registry = CollectorRegistry()
    registry.register(PrometheusCollector(pool))
    with pytest.raises(ValueError, match="rtpool_messages_received"):
        registry.register(PrometheusCollector())


def test_what_is_no_pool_is_refused(pool: rtpool.RealtimePool) -> None:
    with pytest.raises(rtpool.InvalidType, match="pools must be RealtimePool, not Channel"):
        PrometheusCollector(pool.channel("room"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("PrometheusCollector", "prometheus_client", "prometheus"), ("instrument", "opentelemetry", "otel")],
)
def test_a_missing_extra_is_named_when_its_exporter_is_asked_for(name: str, package: str, extra: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; import rtpool.metrics; from rtpool.metrics import {name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(
        f"rtpool.metrics.{name} needs {package}: pip install 'rtpool[{extra}]'"
    )


def test_counters_never_fall_over_the_life_of_a_pool(server: RealtimeServer, make_pool: MakePool) -> None:
    pool = make_pool(max_channels_per_connection=1, cleanup_interval=0.05)
    collector, seen = PrometheusCollector(pool), []
    for _ in range(3):
        room, other = (pool.channel(topic).subscribe() for topic in ("room", "other"))
        seen += scraped(collector).values()
        server.connections[0].abort()
        seen += scraped(collector).values()
        wait_until(lambda: room.is_subscribed and other.is_subscribed)  # noqa: B023 - called at once
        pool.unsubscribe_all()
        pool.force_cleanup()
        seen += scraped(collector).values()
    assert pool.close(10)
    seen += scraped(collector).values()
    for earlier, later in itertools.pairwise(seen):
        for key in earlier:
            if key[0].endswith("_total"):
                assert earlier[key] <= later[key], key

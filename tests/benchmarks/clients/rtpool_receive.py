"""rtpool receives: a callback on each Channel, on the pool's own workers. Something may look at the pool meanwhile."""

from __future__ import annotations

import contextlib
import ssl
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

from tests.benchmarks.clients.counting import PATIENCE, Counted, arguments, rate, say


def callback(counter: Counted, last: Callable[[], None], *, binary: bool) -> Callable[[Any], None]:
    """What a Channel calls back."""

    def receive(message: Any) -> None:
        if counter.take(message.payload["n"]):
            last()

    def receive_bytes(message: Any) -> None:
        if counter.take(int.from_bytes(message.payload[:8], "big")):
            last()

    return receive_bytes if binary else receive


@contextlib.contextmanager
def debugged(pool: Any) -> Iterator[None]:
    """A debugger looks at it once a second."""
    from rtpool.debug import Debugger

    debugger = Debugger(pool)
    debugger.enable(1.0)
    yield
    debugger.disable()


@contextlib.contextmanager
def scraped(pool: Any) -> Iterator[None]:
    """Prometheus does, over HTTP. What scrapes is in this process as well, so that is counted, too."""
    from prometheus_client import CollectorRegistry, start_http_server

    from rtpool.metrics import PrometheusCollector

    registry, over = CollectorRegistry(), threading.Event()
    registry.register(PrometheusCollector(pool))
    page, serving = start_http_server(0, "127.0.0.1", registry)

    def scrape() -> None:
        while not over.wait(1.0):
            with urllib.request.urlopen(f"http://127.0.0.1:{page.server_port}/metrics", timeout=10) as answer:
                assert b"rtpool_messages_received_total" in answer.read()

    scraping = threading.Thread(target=scrape)
    scraping.start()
    yield
    over.set()
    page.shutdown()
    for thread in (scraping, serving):
        thread.join()
    page.server_close()


WATCHERS = {"debugger": debugged, "prometheus": scraped}


def main() -> None:
    """Receive what is asked for and say the rate."""
    told = arguments()
    if not told.get("orjson", True):
        sys.modules["orjson"] = None  # type: ignore[assignment]  # its import then fails, as where it is not installed
    import rtpool

    topics = told.get("topics", 1)
    counted = [Counted(told["messages"] // topics) for _ in range(topics)]
    over = threading.Semaphore(0)
    context = ssl.create_default_context(cafile=told["ca"]) if told.get("ca") else None
    options = {
        "overflow": "block",
        "max_joins_per_second": 1_000_000,
        "ssl_context": context,
        **told.get("options", {}),
    }
    url = f"{'https' if context else 'http'}://127.0.0.1:{told['port']}"
    watched = WATCHERS.get(told.get("watched", ""), contextlib.nullcontext)
    with rtpool.RealtimePool(url, api_key="k", **options) as pool, watched(pool):
        channels = [pool.channel(f"bench-{index}") for index in range(topics)]
        for channel, counter in zip(channels, counted, strict=True):
            channel.on_broadcast("x", callback(counter, over.release, binary=told.get("binary", False)))
            channel.subscribe(wait=False)
        for channel in channels:
            channel.subscribe(timeout=30)
        sockets = pool.stats().total_connections
        channels[0].send_broadcast("go", {"messages": told["messages"]})
        for _ in counted:
            assert over.acquire(timeout=PATIENCE), f"{[len(each.numbers) for each in counted][:10]} messages came"
        time.sleep(0.02)  # what comes twice comes now
        stats = pool.stats()
    assert not stats.messages_dropped, f"{stats.messages_dropped} messages were dropped"
    assert not stats.callback_errors, f"{stats.callback_errors} callbacks raised"
    assert sockets == told.get("sockets", 1), f"{sockets} sockets"
    say({"messages/s": rate(counted)})


if __name__ == "__main__":
    main()

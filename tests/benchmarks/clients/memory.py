"""
What rtpool's objects take: a Channel on a join there is, a join with one Channel, a socket with one join, a message.

Told ``"traced"`` it counts what Python allocates, by `tracemalloc`; else by how much the process has grown, its
resident set, in which is what allocators, OpenSSL and the kernel's pages cost on top. One process does one of both:
tracing takes memory itself. Traced, each Channel has received a message; the resident set is looked at before, for a
message to a thousand Channels at once leaves it as large as it was when all of them had to wait.
"""

from __future__ import annotations

import gc
import os
import resource
import ssl
import threading
import time
import tracemalloc
from collections.abc import Callable

import rtpool
from tests.benchmarks.clients.counting import arguments, say

PAGE = os.sysconf("SC_PAGE_SIZE")
#: Objects made and dropped before: what is made once, and what allocators keep, is then there.
WARM_UP = 50
#: Bytes of a message's payload.
SIZE = 250
PATIENCE = 50.0


def resident() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE


def traced() -> int:
    """Bytes that Python has allocated since tracing began."""
    return tracemalloc.get_traced_memory()[0]


def wait_until(reached: Callable[[], bool]) -> None:
    """Wait, for what other threads do."""
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)


class Measured:
    """
    The Channels of one measurement.

    Args:
        told: what this program was told.
    """

    def __init__(self, pool: rtpool.RealtimePool, told: dict[str, object]) -> None:
        self._pool = pool
        self._one_topic = told["of"] == "channel"
        self._traced = bool(told["traced"])
        self._heard = threading.Semaphore(0)
        self.channels: list[rtpool.Channel] = []

    def hear(self, message: rtpool.Broadcast) -> None:
        """The callback of all."""
        self._heard.release()

    def size(self) -> int:
        """Bytes, when all that is done with is gone."""
        time.sleep(0.2)
        gc.collect()
        return traced() if self._traced else resident()

    def subscribe(self, count: int) -> None:
        """Make Channels and wait until all are served."""
        self.channels = [self._pool.channel("it" if self._one_topic else f"it-{i}") for i in range(count)]
        for channel in self.channels:
            channel.on_broadcast("x", self.hear)
        for channel in self.channels:
            channel.subscribe(wait=False)
        for channel in self.channels:
            channel.subscribe(timeout=PATIENCE)
        if self._traced:
            self.channels[0].send_broadcast("say", {"messages": 1, "size": SIZE})
            for _ in range(count):
                assert self._heard.acquire(timeout=PATIENCE)

    def unsubscribe(self) -> None:
        """Drop them all, and the sockets nobody needs."""
        for channel in self.channels:
            channel.unsubscribe(timeout=0)
        self.channels = []
        wait_until(lambda: self._pool.stats().total_joins <= 1)
        self._pool.force_cleanup()
        wait_until(lambda: self._pool.stats().total_connections <= 1)
        self._pool.force_cleanup()


def objects(pool: rtpool.RealtimePool, told: dict[str, object], count: int) -> dict[str, float]:
    """What one of so many takes, and what is left of it when all are unsubscribed."""
    measured = Measured(pool, told)
    measured.subscribe(WARM_UP)
    measured.unsubscribe()
    if told["traced"]:
        tracemalloc.start()
    before = measured.size()
    measured.subscribe(count)
    with_all = measured.size()
    assert pool.stats().total_joins == (2 if told["of"] == "channel" else count + 1)
    assert pool.stats().total_connections == (count + 1 if told["of"] == "socket" else 1)
    measured.unsubscribe()
    left = measured.size()
    if not told["traced"]:
        measured.subscribe(count)  # the allocator keeps what was freed: the second time is to need nothing more
        return {"B": (with_all - before) / count, "B more, 2nd time": (measured.size() - with_all) / count}
    return {"B": (with_all - before) / count, "B left": (left - before) / count}


def messages(pool: rtpool.RealtimePool, told: dict[str, object], count: int) -> dict[str, float]:
    """What is left of a message after it was delivered."""
    heard, over = 0, threading.Event()

    def hear(message: rtpool.Broadcast) -> None:
        nonlocal heard
        heard += 1
        if heard % count == 0:
            over.set()

    channel = pool.channel("it").on_broadcast("x", hear).subscribe()
    size: Callable[[], int] = traced if told["traced"] else resident

    def receive() -> int:
        over.clear()
        channel.send_broadcast("say", {"messages": count, "size": SIZE})
        assert over.wait(PATIENCE)
        time.sleep(0.2)
        gc.collect()
        return size()

    if told["traced"]:
        tracemalloc.start()
    receive()
    before = receive()
    return {"B": (receive() - before) / count}


def main() -> None:
    """Measure what is asked for."""
    told = arguments()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    context = ssl.create_default_context(cafile=told["ca"]) if told.get("ca") else None
    url = f"{'https' if context else 'http'}://127.0.0.1:{told['port']}"
    count = told["count"]
    options = {
        "max_connections": count + 1,
        "max_channels_per_connection": 1 if told["of"] == "socket" else count + 1,
        "max_joins_per_second": 1_000_000,
        "max_joins_in_flight": 1_000,
        "ssl_context": context,
        "overflow": "block",
    }
    with rtpool.RealtimePool(url, api_key="k", **options) as pool:
        # What a first socket and a first join take is not an object's.
        pool.channel("other").on_broadcast("x", lambda message: None).subscribe(timeout=PATIENCE)
        say((messages if told["of"] == "message" else objects)(pool, told, count))


if __name__ == "__main__":
    main()

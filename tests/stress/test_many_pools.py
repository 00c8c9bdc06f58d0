"""
Pools opened, used and closed one after the other in one process: nothing of them stays.

A hundred by default; ``RTPOOL_POOLS=1000`` makes it a thousand, any number from 100 on any other::

    RTPOOL_POOLS=1000 python -m pytest tests/stress/test_many_pools.py
"""

from __future__ import annotations

import gc
import itertools
import logging
import os
import statistics
import threading
import time
import tracemalloc
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import clear_cache

import pytest

import rtpool
from rtpool.testing import RealtimeServer
from tests.conftest import Figure
from tests.support.recorder import Recorder

POOLS = max(100, int(os.environ.get("RTPOOL_POOLS", "100")))
#: What is counted is counted so often, each time before a new server, whose records are no business of a pool's.
BLOCKS = 10
#: Bytes a pool may leave: less than any object of it.
BYTES_PER_POOL = 40
#: Bytes that come in a block whatever is done: caches and free lists that fill up.
SLACK = 10 * 1024


class Count(NamedTuple):
    """What there is at one moment."""

    threads: int
    descriptors: int
    traced: int


def count() -> Count:
    clear_cache()  # of the last 128 URLs of whoever asked
    for _ in range(3):  # what finalizers let go of
        gc.collect()
    return Count(threading.active_count(), len(os.listdir("/proc/self/fd")), tracemalloc.get_traced_memory()[0])


@pytest.fixture
def traced() -> Iterator[None]:
    """What is allocated is counted, and nothing logged: pytest would keep it all."""
    logging.disable()
    tracemalloc.start()
    yield
    tracemalloc.stop()
    logging.disable(logging.NOTSET)


def use(server: RealtimeServer, number: int) -> float:
    """Open a pool, use most of what it can do, and close it; the seconds of its close."""
    heard, told, statuses = Recorder(), Recorder(), Recorder()
    pool = rtpool.RealtimePool(server.url, api_key=server.api_key, max_joins_per_second=10_000)
    pool.on_status(statuses)
    channel = pool.channel("room", ack=True, receive_own=True, presence_key="me")  # orjson keeps the last 2048 keys
    channel.on_broadcast("*", heard).on_presence_sync(told)
    channel.subscribe()
    push = channel.send_broadcast("mine", {"n": number})
    push.add_done_callback(told)
    push.result()
    channel.track({"n": number}).result()
    server.broadcast("room", "theirs", {"n": number})
    heard.wait(2)
    reader = pool.channel(f"room-{number}").subscribe()
    server.broadcast(f"room-{number}", "x", {"n": number})
    assert isinstance(reader.get(10), rtpool.Broadcast)
    begun = time.monotonic()
    assert pool.close()
    return time.monotonic() - begun


@pytest.mark.stress
@pytest.mark.timeout(120 + POOLS)
def test_pools_that_come_and_go_leave_nothing(traced: None, figure: Figure) -> None:
    counts: list[Count] = []
    closes: list[float] = []
    for block in range(BLOCKS):
        with RealtimeServer(api_key="the-key-of-many-pools", secret="the-secret-of-many-pools") as server:
            closes += [use(server, number) for number in range(block * POOLS // BLOCKS, (block + 1) * POOLS // BLOCKS)]
        counts.append(count())
    early, half, end = counts[0], counts[BLOCKS // 2 - 1], counts[-1]
    # Half of the blocks grow by more, half by less: a dictionary that doubles its size once counts once.
    grown = statistics.median(after.traced - before.traced for before, after in itertools.pairwise(counts))
    figure(
        f"{len(closes)} pools; after the first tenth, half, all: {early}, {half}, {end}, {grown:g} bytes more "
        f"for each {POOLS // BLOCKS}; closes: median "
        f"{statistics.median(closes):.4f} s, worst {max(closes):.3f} s"
    )
    assert {(each.threads, each.descriptors) for each in counts} == {(early.threads, early.descriptors)}
    assert grown <= SLACK + BYTES_PER_POOL * POOLS / BLOCKS, f"{grown} bytes for each {POOLS // BLOCKS} pools"

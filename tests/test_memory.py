"""
What Channels take beside their callbacks, as `tracemalloc` counts it, on a join there is: the embedded server, which is
in this process, has nothing of them. The benchmarks measure the rest.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator

import pytest

import rtpool
from rtpool.testing import RealtimeServer
from tests.support.wait import wait_until

CHANNELS = 300
#: Bytes of a Channel that is subscribed.
MOST = 2_048
#: Bytes of one that was: what sets and dicts that held them do not give back.
LEFT = 256


@pytest.fixture
def pool() -> Iterator[rtpool.RealtimePool]:
    with RealtimeServer() as server, rtpool.RealtimePool(server.url, api_key=server.api_key) as pool:
        yield pool


@pytest.fixture
def tracing() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def subscribe(pool: rtpool.RealtimePool, heard: list[rtpool.Broadcast]) -> list[rtpool.Channel]:
    """Channels of one topic that have heard a message."""
    channels = [pool.channel("room").on_broadcast("x", heard.append) for _ in range(CHANNELS)]
    for channel in channels:
        channel.subscribe(wait=False)
    for channel in channels:
        channel.subscribe()
    channels[0].send_broadcast("x", {}).result()
    wait_until(lambda: len(heard) == CHANNELS - 1)  # all but who said it
    heard.clear()
    return channels


@pytest.mark.usefixtures("tracing")
def test_a_channel_on_a_join_takes_little_and_gives_it_back(pool: rtpool.RealtimePool) -> None:
    heard: list[rtpool.Broadcast] = []
    pool.channel("room").on_broadcast("x", print).off(print).on_status(lambda _: None).subscribe()
    for channel in subscribe(pool, heard):  # what is made once is there
        channel.unsubscribe()
    del channel
    before = traced()
    channels = subscribe(pool, heard)
    took = (traced() - before) / CHANNELS
    while channels:
        channels.pop().unsubscribe()
    left = (traced() - before) / CHANNELS
    assert took <= MOST
    assert left <= LEFT

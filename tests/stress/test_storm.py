"""Eight threads do everything at random against a server that drops sockets, at the finest thread switching."""

from __future__ import annotations

import random
import sys
import threading
import time
from typing import Any

import pytest

import rtpool
from rtpool.testing import RealtimeServer
from tests.conftest import MakePool

SECONDS = 20.0
TOPICS = [f"topic-{number}" for number in range(5)]


@pytest.mark.stress
@pytest.mark.timeout(180)
def test_twenty_seconds_of_everything_at_once_leave_every_push_resolved_and_nothing_behind(
    server: RealtimeServer, make_pool: MakePool, request: pytest.FixtureRequest
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    stop = time.monotonic() + SECONDS
    escaped: list[BaseException] = []
    pushes: list[rtpool.Push] = []
    settled: dict[int, int] = {}
    lock = threading.Lock()
    counts: dict[str, int] = {}
    pools = [make_pool(max_delay=0.2, max_joins_in_flight=20, num_workers=2, cleanup_interval=0.1)]

    def count(what: str) -> None:
        with lock:
            counts[what] = counts.get(what, 0) + 1

    def resolved(push: rtpool.Push) -> None:
        with lock:
            settled[id(push)] = settled.get(id(push), 0) + 1

    def act(chance: random.Random, channels: list[rtpool.Channel]) -> None:
        what = chance.choice(["subscribe"] * 3 + ["unsubscribe"] * 2 + ["send"] * 6 + ["close", "off", "track"])
        count(what)
        if what == "subscribe" and len(channels) < 8:
            channel = pools[-1].channel(chance.choice(TOPICS), ack=chance.random() < 0.3)
            channel.on_broadcast("*", lambda message: None)
            channels.append(channel)
            channel.subscribe(timeout=5, wait=chance.random() < 0.5)
        elif what == "close" and chance.random() < 0.03:
            pools[-1].close()
            with lock:
                if pools[-1].closed:
                    pools.append(make_pool(max_delay=0.2, num_workers=2, cleanup_interval=0.1))
        elif channels and what == "unsubscribe":
            channels.pop(chance.randrange(len(channels))).unsubscribe(timeout=5)
        elif channels and what == "send":
            push = chance.choice(channels).send_broadcast("x", {"n": chance.random()}, timeout=5)
            push.add_done_callback(resolved)
            with lock:
                pushes.append(push)
        elif channels and what == "track":
            chance.choice(channels).track({"n": chance.randrange(2)})

    def run(number: int) -> None:
        chance, channels = random.Random(seed + number), []  # type: ignore[var-annotated]
        try:
            while time.monotonic() < stop:
                try:
                    act(chance, channels)
                except rtpool.RtpoolError as error:
                    count(type(error).__name__)
                    if isinstance(error, rtpool.PoolClosed):
                        channels.clear()
            for channel in channels:
                channel.unsubscribe(timeout=5)
        except BaseException as error:
            escaped.append(error)

    def saboteur() -> None:
        chance = random.Random(seed - 1)
        while time.monotonic() < stop:
            for connection in server.connections:
                if chance.random() < 0.5:
                    fault: Any = chance.choice([connection.abort, lambda c=connection: c.close(1001)])
                    fault()
                    count("drops")
            threading.Event().wait(chance.uniform(0.05, 0.3))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=run, args=(n,)) for n in range(8)] + [threading.Thread(target=saboteur)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS + 60)
        deadlocked = [thread.name for thread in threads if thread.is_alive()]
    finally:
        sys.setswitchinterval(interval)
    print(counts, f"{len(pushes)} pushes, {len(pools)} pools")

    assert not deadlocked
    assert escaped == []
    for push in pushes:
        try:
            push.result(timeout=10)
        except rtpool.RtpoolError:
            continue
    assert all(push.done() for push in pushes)
    for pool in pools:
        assert pool.close(10)
        assert pool._engine.registry.subscribers() == ()
        assert pool.stats().total_joins == 0
    assert all(times == 1 for times in settled.values()), "a push was resolved twice"
    assert counts["drops"] > 10
    assert len(pushes) > 100
    server.wait_for(lambda s: not s.connections)

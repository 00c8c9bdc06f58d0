"""
Three pools in daily use while faults strike at random, round after round.

Twenty seconds by default; ``RTPOOL_SOAK=600`` makes it ten minutes, any number of seconds any other::

    RTPOOL_SOAK=600 python -m pytest tests/stress/test_soak.py

Each round of ten seconds ends in a calm, in which all must be as it was: every resident Channel is joined and hears a
message, every push is resolved once, the books of every Channel balance, no thread has died or come to stay, and no
more descriptors are open than before the first round. Memory is compared from the middle of the time to its end.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import itertools
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

import rtpool
from rtpool.testing import RealtimeServer
from tests.conftest import Figure, MakePool
from tests.stress.saboteur import Saboteur
from tests.support.storms import Traffic
from tests.support.wait import wait_until

SECONDS = float(os.environ.get("RTPOOL_SOAK", "20"))
ROUND = 10.0
TOPICS = [f"topic-{number}" for number in range(12)]
#: By what the process may have grown in the second half of the time: a twentieth, and what its allocator keeps: each
#: thread's arena fills up to the most it ever needed, which takes minutes, though no object is added.
GROWTH, SLACK = 0.05, 16 * 2**20


class Resident:
    """A Channel that stays; what it heard from the server comes in order, and nothing twice."""

    def __init__(self, channel: rtpool.Channel, pause: float = 0.0) -> None:
        self.channel = channel
        self.heard = 0
        self.last = -1
        self.disorder: list[tuple[int, int]] = []
        self._pause = threading.Event()
        channel.on_broadcast("n", lambda message: self._hear(message.payload["n"], pause))
        channel.on_gap(lambda gap: None)
        channel.on_presence_sync(lambda presence: None)

    def _hear(self, number: int, pause: float) -> None:
        if number <= self.last and len(self.disorder) < 10:
            self.disorder.append((self.last, number))
        self.heard, self.last = self.heard + 1, number
        self._pause.wait(pause)  # who is slow falls behind and loses


class Pushes:
    """Counts outcomes: each push has one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys = itertools.count()
        self._open: set[int] = set()
        self.made = self.twice = 0

    def watch(self, push: rtpool.Push) -> None:
        with self._lock:
            key = next(self._keys)
            self._open.add(key)
            self.made += 1
        push.add_done_callback(lambda push: self._resolved(key))

    def _resolved(self, key: int) -> None:
        with self._lock:
            self.twice += key not in self._open
            self._open.discard(key)

    @property
    def unresolved(self) -> int:
        with self._lock:
            return len(self._open)


class Actors:
    """Threads that subscribe, publish, are present and leave, at random."""

    def __init__(self, seed: int, pools: list[rtpool.RealtimePool], pushes: Pushes) -> None:
        self._seed, self._pools, self._pushes = seed, pools, pushes
        self._lock = threading.Lock()
        self.counts: collections.Counter[str] = collections.Counter()
        self.escaped: list[BaseException] = []

    def run(self, number: int, until: float) -> None:
        chance, channels = random.Random(f"{self._seed} {number}"), []  # type: ignore[var-annotated]
        try:
            while time.monotonic() < until:
                try:
                    self._act(chance, channels)
                except rtpool.RtpoolError as error:
                    self._count(type(error).__name__)
                threading.Event().wait(chance.uniform(0, 0.02))
            for channel in channels:
                channel.unsubscribe(timeout=10)
        except BaseException as error:
            self.escaped.append(error)

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def _act(self, chance: random.Random, channels: list[rtpool.Channel]) -> None:
        what = chance.choice(["subscribe"] * 2 + ["unsubscribe"] + ["send"] * 6 + ["track", "untrack", "rest"])
        self._count(what)
        if what == "subscribe" and len(channels) < 6:
            pool = chance.choice(self._pools)
            channel = pool.channel(chance.choice(TOPICS), ack=chance.random() < 0.3, private=chance.random() < 0.3)
            channel.on_broadcast("*", lambda message: None)
            channels.append(channel)
            channel.subscribe(timeout=2, wait=chance.random() < 0.3)
        elif what == "rest":
            chance.choice(self._pools).broadcast(chance.choice(TOPICS), "rest", {"a": 1}, timeout=2)
        elif channels and what == "unsubscribe":
            channels.pop(chance.randrange(len(channels))).unsubscribe(timeout=5)
        elif channels and what == "send":
            channel, payload = chance.choice(channels), {"n": "x" * chance.choice([1, 100, 20_000])}
            self._pushes.watch(channel.send_broadcast("x", payload, timeout=2))
        elif channels and what == "track":
            self._pushes.watch(chance.choice(channels).track({"n": chance.randrange(2)}, timeout=2))
        elif channels and what == "untrack":
            self._pushes.watch(chance.choice(channels).untrack(timeout=2))


@pytest.fixture
def quiet() -> Iterator[logging.Logger]:
    """A logger that says nothing: pytest would keep all of it, and memory would never be flat."""
    logger = logging.getLogger("soak")
    logger.setLevel(logging.CRITICAL + 1)
    yield logger
    logger.setLevel(logging.NOTSET)


@pytest.mark.stress
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="memory and descriptors are read from /proc")
@pytest.mark.timeout(SECONDS * 3 + 120)
def test_after_any_number_of_faults_everything_is_as_it_was(
    make_pool: MakePool, quiet: logging.Logger, figure: Figure
) -> None:
    seed = random.randrange(2**32)
    figure(f"seed {seed}, {SECONDS:.0f} s")
    options: dict[str, Any] = {"record_limit": 100, "join_error_backoff": 0.1, "connect_error_backoff": 0.05}
    with RealtimeServer(**options) as server:
        pools = [make_pool(server.url, **_options(server, quiet, number)) for number in range(3)]
        residents = [
            Resident(pool.channel(topic), pause=0.03 if number == 2 else 0.0)
            for number, pool in enumerate(pools)
            for topic in TOPICS[number * 3 :][:6]
        ]
        for resident in residents:
            resident.channel.subscribe(wait=False)
        pushes = Pushes()
        actors = Actors(seed, pools, pushes)
        saboteur = Saboteur(server, random.Random(f"{seed} saboteur"), TOPICS)
        chance = random.Random(f"{seed} traffic")
        calms: list[dict[str, float]] = []
        storming = threading.Event()
        began = time.monotonic()
        with Traffic(
            server, lambda: chance.sample(TOPICS, 4) if storming.is_set() else [], pause=0.005, keep=1
        ) as traffic:
            calm = partial(_calm, server, pools, residents, pushes, lambda: traffic.burst(TOPICS))
            before = calm(None)
            while len(calms) < 2 or time.monotonic() < began + SECONDS - ROUND / 2:
                for pool in pools:
                    pool.set_auth(_tokens_of(server))
                storming.set()
                _round(saboteur, actors, time.monotonic() + min(ROUND, SECONDS / 2))
                storming.clear()
                calm_at = time.monotonic()
                saboteur.make_peace()
                for pool in pools:
                    pool.set_auth(server.token(sub="soak"))
                    with contextlib.suppress(rtpool.ConnectionFailed):  # of an attempt made before the peace
                        pool.connect()
                calms.append(calm(before["descriptors"]))
                calms[-1]["seconds"] = time.monotonic() - calm_at
                assert (traffic.errors, actors.escaped, saboteur.escaped) == ([], [], [])
        figure(f"{len(calms)} rounds; done: {dict(actors.counts)}; faults: {dict(saboteur.counts)}")
        figure(f"{pushes.made} pushes; heard {sum(r.heard for r in residents)}")
        for number, found in [("before", before), *enumerate(calms)]:
            if number in ("before", len(calms) - 1) or int(number) % max(1, len(calms) // 10) == 0:
                figure(f"calm {number}: " + ", ".join(f"{name} {value:,.0f}" for name, value in found.items()))
        for pool in pools:
            assert pool.close(10)
    half, last = calms[(len(calms) - 1) // 2], calms[-1]
    assert {found["threads"] for found in calms} == {before["threads"]}
    assert last["memory"] <= half["memory"] * (1 + GROWTH) + SLACK
    assert last["objects"] <= half["objects"] * (1 + GROWTH)
    assert sum(saboteur.counts.values()) >= SECONDS
    assert pushes.made >= SECONDS
    assert last["dropped"] > 0, "nobody was slow enough to lose anything"


def _tokens_of(server: RealtimeServer) -> Callable[[], str]:
    """A callable whose tokens sometimes expire soon."""
    return lambda: server.token(sub="soak", expires_in=random.choice([2, 3, 3_600]))


def _options(server: RealtimeServer, logger: logging.Logger, number: int) -> dict[str, Any]:
    common: dict[str, Any] = {
        "api_key": server.api_key,
        "logger": logger,
        "max_delay": 0.3,
        "max_retries": 5,
        "health_check_interval": 0.5,
        "heartbeat_interval": 0.5,
        "heartbeat_timeout": 0.5,
        "join_timeout": 1.0,
        "cleanup_interval": 0.5,
        "num_workers": 2,
        "presence_window": 1.0,
    }
    own: list[dict[str, Any]] = [
        {},
        {"protocol": "1.0.0", "max_channels_per_connection": 4},
        {"mailbox_limit": 5, "overflow": "drop_oldest"},
    ]
    return {**common, **own[number]}


def _round(saboteur: Saboteur, actors: Actors, until: float) -> None:
    threads = [threading.Thread(target=actors.run, args=(n, until), name=f"actor-{n}") for n in range(4)]
    threads.append(threading.Thread(target=saboteur.run, args=(until,), name="saboteur"))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [thread.name for thread in threads if thread.is_alive()] == []


def _calm(
    server: RealtimeServer,
    pools: list[rtpool.RealtimePool],
    residents: list[Resident],
    pushes: Pushes,
    speak: Callable[[], None],
    descriptors: float | None,
) -> dict[str, float]:
    """Wait until all is well, and no more `descriptors` are open beside those of the pools' sockets; what there is."""

    wanted = collections.Counter(resident.channel.topic for resident in residents)

    def away() -> list[Any]:
        channels = [repr(r.channel) for r in residents if not r.channel.is_subscribed]
        channels += [
            topic for topic, count in wanted.items() if server.members(topic) < count
        ]  # a loss not yet noticed
        return [*channels, *((pool.health(), pool.stats().connection_details) for pool in pools)] if channels else []

    _none(away, cap=30)
    _none(lambda: [pushes.unresolved] if pushes.unresolved else [])
    assert pushes.twice == 0
    heard = {resident: resident.heard for resident in residents}
    speak()
    _none(lambda: [f"{r.channel!r} heard nothing" for r in residents if r.heard == heard[r]])
    _none(lambda: [f"{pool}: {reason}" for pool in pools for reason in pool.health().reasons])
    assert [resident.disorder for resident in residents if resident.disorder] == []
    _none(lambda: _odd_threads(pools))

    def sockets() -> int:
        return sum(pool.stats().total_connections for pool in pools)

    def others() -> int:
        return len(os.listdir("/proc/self/fd")) - 2 * sockets()

    _none(lambda: [f"{c}" for c in server.connections[sockets() :]])
    _none(lambda: [others()] if descriptors is not None and others() > descriptors else [])
    gc.collect()
    return {
        "threads": sum("-dial-" not in thread.name for thread in threading.enumerate()),
        "descriptors": others(),
        "sockets": sockets(),
        "memory": _resident_bytes(),
        "objects": len(gc.get_objects()) + gc.get_freeze_count(),
        **_books_balance(pools),
    }


def _none(trouble: Callable[[], list[Any]], cap: float = 15.0) -> None:
    """Wait until there is no trouble left; what is left after so many seconds is told."""
    try:
        wait_until(lambda: not trouble(), cap=cap)
    except AssertionError as error:
        if left := trouble():
            raise AssertionError(f"after {cap} s: {left}") from error


def _odd_threads(pools: list[rtpool.RealtimePool]) -> list[str]:
    bases = [f"rtpool-{pool._engine.name}-" for pool in pools]
    names = collections.Counter(t.name for t in threading.enumerate() if t.name.startswith(tuple(bases)))
    wanted = {base + what: 1 for base in bases for what in ("io", "worker-0", "worker-1")}
    return [name for name in {*names, *wanted} if names[name] != wanted.get(name, 0)]


def _books_balance(pools: list[rtpool.RealtimePool]) -> dict[str, float]:
    totals: collections.Counter[str] = collections.Counter()
    for pool in pools:

        def unbalanced(pool: rtpool.RealtimePool = pool) -> list[rtpool.SubscriptionDetails]:
            return [
                d
                for d in pool.stats().subscription_details
                if d.queued or d.received != d.delivered + d.dropped + d.queued
            ]

        _none(unbalanced)
        stats = pool.stats()
        assert stats.events_received == stats.messages_delivered + stats.messages_dropped
        totals.update(received=stats.events_received, delivered=stats.messages_delivered)
        totals.update(dropped=stats.messages_dropped, gaps=stats.gaps, callback_errors=stats.callback_errors)
        totals.update(reconnects=stats.reconnect_attempts)
    assert totals["callback_errors"] == 0
    return dict(totals)


def _resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

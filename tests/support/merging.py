"""Pools whose sockets have become sparse, those that talk meanwhile, and the steps of a move."""

from __future__ import annotations

import random
import socket
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import rtpool
from rtpool.engine import mover
from rtpool.engine.mover import Mover
from rtpool.testing import RealtimeServer
from rtpool.testing.connection import ServerConnection
from tests.conftest import MakePool
from tests.support.proxy import Proxy
from tests.support.recorder import Recorder
from tests.support.wait import wait_until

#: Topics on each of three sockets that stay, of ten.
STAY = 3
#: What `Mover` does in a move, in this order.
STEPS = ["_begin", "_invite", "_watch", "_fenced", "_cut_when_answered", "_cut", "_left_source"]


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let moves take no longer than they must on loopback, where everything has arrived within a moment."""
    monkeypatch.setattr(mover, "CALM_SECONDS", 0.0)
    monkeypatch.setattr(mover, "SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(mover, "CHANGES_SETTLE_SECONDS", 0.2)
    monkeypatch.setattr(mover, "MARGIN_SECONDS", 0.02)
    monkeypatch.setattr(mover, "PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(mover, "RETRY_SECONDS", 0.0)


class Heard:
    """What one Channel was told."""

    def __init__(self, channel: rtpool.Channel) -> None:
        self.messages, self.gaps, self.statuses = Recorder(), Recorder(), Recorder()
        self.channel = channel.on_broadcast("*", self.messages).on_gap(self.gaps)

    def listen_for_trouble(self) -> None:
        """From now on nothing is to be told but messages."""
        self.channel.on_status(self.statuses)

    def of(self, who: str) -> list[int]:
        return [m.payload["n"] for m in list(self.messages.events) if m.event == who]

    def until_end(self, server: RealtimeServer, *, private: bool = False) -> None:
        server.broadcast(self.channel.topic, "end", {"n": -1}, private=private)
        self.messages.wait_for(lambda events: any(m.event == "end" for m in events))


def sparse(
    pool: rtpool.RealtimePool, prepare: Callable[[rtpool.Channel], object] = lambda channel: None, **settings: Any
) -> dict[str, Heard]:
    """Nine Channels on three sockets that once had ten each."""
    names = [f"topic-{number}" for number in range(30)]
    heard = {name: Heard(pool.channel(name, **settings)) for name in names}
    for each in heard.values():
        prepare(each.channel)
        each.channel.subscribe()
    for number, name in enumerate(names):
        if number % 10 >= STAY:
            heard.pop(name).channel.unsubscribe()
    wait_until(lambda: sorted(d.joins for d in pool.stats().connection_details) == [STAY] * 3)
    for each in heard.values():
        each.listen_for_trouble()
    return heard


def make_sparse_pool(make_pool: MakePool, **options: Any) -> rtpool.RealtimePool:
    return make_pool(
        **{
            "max_channels_per_connection": 10,
            "cleanup_interval": 0.05,
            "heartbeat_interval": 1.0,
            "enable_health_check": False,
            **options,
        }
    )


def merge(pool: rtpool.RealtimePool) -> None:
    """What the audit does."""
    engine = pool._engine
    engine.post(engine.coordinator.mover.merge)


def merge_until_one_is_left(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    def one_is_left() -> bool:
        merge(pool)
        return pool.stats().total_connections == 1

    wait_until(one_is_left, "one socket is left", cap=60)


def is_resting(pool: rtpool.RealtimePool) -> bool:
    it: Mover = pool._engine.coordinator.mover
    return it.move is None and it._source is None


class Publishers:
    """Threads that talk on every topic until they are told to stop; what each said, by topic."""

    def __init__(self, topics: list[str]) -> None:
        self._topics = topics
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.said: dict[str, Counter[str]] = {topic: Counter() for topic in topics}
        self.failures: list[BaseException] = []

    def add(self, who: str, say: Callable[[str, str, dict[str, Any]], object], every: float) -> None:
        """`say(topic, event, payload)` again and again; ticks say the same each time."""

        def run() -> None:
            try:
                number = 0
                while not self._stop.wait(every):
                    for topic in self._topics:
                        say(topic, who, {"n": 0 if who.startswith("tick") else number})
                        self.said[topic][who] += 1
                    number += 1
            except BaseException as error:
                self.failures.append(error)

        self._threads.append(threading.Thread(target=run, daemon=True))

    def __enter__(self) -> Publishers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        assert not self.failures


def one_channel_each(server: RealtimeServer, topics: list[str], others: int = 0) -> None:
    server.wait_for(lambda s: all(s.members(topic) == 1 + others for topic in topics), 15)


class Laggard(Proxy):
    """
    Holds up what goes down to the client, or up to the server, by times that differ.

    Args:
        slow: ``new`` is the first connection, to which joins are moved; ``old`` is every other.
        up: whether it is what the client says.
    """

    def __init__(self, target: int, slow: str, *, up: bool = False) -> None:
        super().__init__(target)
        self._slow, self._upwards = slow, up

    def _relay(self, source: socket.socket, sink: socket.socket, size: int) -> None:
        index = self._sockets.index(source)
        slow = (index % 2 == 0) is self._upwards and ("new" if index < 2 else "old") == self._slow
        lags = random.Random(index)
        try:
            while data := source.recv(65_536):
                if slow:
                    self._released.wait(lags.uniform(0.01, 0.03))
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return


def at_step(monkeypatch: pytest.MonkeyPatch, step: str, do: Callable[[Any], None]) -> threading.Event:
    """Have `do(move)` called on the I/O thread the first time a move has taken a step."""
    done, original = threading.Event(), getattr(Mover, step)

    def wrapper(self: Mover, *args: Any) -> Any:
        move = self.move
        result = original(self, *args)
        move = move or self.move
        if move is not None and not done.is_set():
            done.set()
            do(move)
        return result

    monkeypatch.setattr(Mover, step, wrapper)
    return done


def server_side(server: RealtimeServer, connection: Any) -> ServerConnection:
    """The same socket as the server sees it."""
    port = connection.transport.sock.getsockname()[1]
    return next(c for c in server.connections if c.peer[1] == port)


def guest_joins(server: RealtimeServer, topics: list[str]) -> Callable[[str], bool]:
    """Says whether a join is that of a guest: the topic is joined on another socket."""
    return lambda topic: topic in topics and any(f"realtime:{topic}" in c.topics for c in server.connections)

"""
Every call of the public face from many threads at once, shuffled where it matters: around each lock. What a user is
promised holds whatever thread goes first.
"""

from __future__ import annotations

import faulthandler
import itertools
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import rtpool
from rtpool.engine import mailboxes
from rtpool.engine.threads import enter_user_code
from rtpool.testing import RealtimeServer
from tests.conftest import Figure, MakePool
from tests.support.checking_lock import CheckingLock
from tests.support.storms import Traffic
from tests.support.wait import wait_until

#: The option of the long run: seconds; and the seed of an earlier one, which begins with the same choices.
SECONDS = float(os.environ.get("RTPOOL_INTERLEAVE", "5"))
SEED = int(os.environ.get("RTPOOL_INTERLEAVE_SEED", random.randrange(2**32)))
ROUND = 1.0
THREADS = 6
TOPICS = ["north", "south", "east"]
#: Of all passages of a lock, how many let another thread run, and how many wait for some to get far.
YIELDS, NAPS, NAP = 0.3, 0.01, 0.002
#: And of all callbacks, how many begin so much later than they were decided on. It is less than rtpool waits for them.
LATE, LATE_BY = 0.05, 0.01
#: Nothing that a thread calls here may take longer.
DEADLINE = 60.0


@pytest.fixture
def shuffled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Threads change as often as they can, and at random around each lock of rtpool and before each callback."""
    chance = random.Random(SEED)

    def pause() -> None:
        drawn = chance.random()
        if drawn < YIELDS:
            time.sleep(NAP if drawn < NAPS else 0.0)

    def enter_late(callback: Any, value: Any) -> None:
        if chance.random() < LATE:
            time.sleep(LATE_BY)
        enter_user_code(callback, value)

    monkeypatch.setattr(mailboxes, "enter_user_code", enter_late)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    CheckingLock.pause = staticmethod(pause)
    yield
    CheckingLock.pause = None
    sys.setswitchinterval(interval)


class Seat:
    """A Channel that one thread alone subscribes and unsubscribes, and so knows what it may hear."""

    def __init__(self, channel: rtpool.Channel, faults: list[str]) -> None:
        self.channel = channel
        self.faults = faults
        self.open = False
        self.took = 0.0  # seconds of the last call that ended something
        self.listeners: list[Listener] = []
        self.inside = threading.Lock()

    def listen(self) -> None:
        listener = Listener(self)
        self.listeners.append(listener)
        self.channel.on_broadcast("n", listener)

    def stop_listening(self, chance: random.Random) -> None:
        listener = self.listeners.pop(chance.randrange(len(self.listeners)))
        began = time.monotonic()
        self.channel.off(listener)
        self.took = time.monotonic() - began
        listener.over = True

    def subscribe(self, *, wait: bool) -> None:
        self.open = True
        try:
            self.channel.subscribe(timeout=3, wait=wait)
        except rtpool.PoolClosed:  # what it had before, it may still have
            self.unsubscribe()
            raise
        except rtpool.RtpoolError:
            self.open = False
            raise

    def unsubscribe(self) -> None:
        began = time.monotonic()
        self.channel.unsubscribe(timeout=3)
        self.took = time.monotonic() - began
        self.open = False


class Listener:
    """A callback that knows whether it may be called; what it hears is in order, and one at a time."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.over = False
        self.last = -1

    def __call__(self, message: rtpool.Broadcast) -> None:
        seat, number = self.seat, message.payload["n"]
        if self.over or not seat.open:
            call = "off" if self.over else "unsubscribe"
            seat.faults.append(f"{message} came after {call}() had returned, which took {seat.took:.3f} s")
        if not seat.inside.acquire(blocking=False):
            seat.faults.append(f"{message} came while another callback of the Channel ran")
            return
        if number <= self.last:
            seat.faults.append(f"{message} came after number {self.last}")
        self.last = number
        seat.inside.release()


class Round:
    """One pool, from its first use to its end, in the hands of all threads."""

    def __init__(self, server: RealtimeServer, pool: rtpool.RealtimePool, seed: int) -> None:
        self.server, self.pool, self.seed = server, pool, seed
        self.faults: list[str] = []
        self.counts: Counter[str] = Counter()
        self.pushes: list[rtpool.Push] = []
        self.settled: list[rtpool.Push] = []
        #: Channels that every thread subscribes and unsubscribes.
        self.shared = [pool.channel(topic).on_broadcast("n", lambda message: None) for topic in TOPICS]
        self.channels = list(self.shared)
        self.tokens = [server.token(role="authenticated", sub=name) for name in ("ann", "bob")]
        self.over = threading.Event()

    def act(self, chance: random.Random, seat: Seat, reader: rtpool.Channel) -> str:
        shared = chance.choice(self.shared)
        acts: dict[str, tuple[int, Callable[[], object]]] = {
            "subscribe": (4, lambda: seat.subscribe(wait=chance.random() < 0.5)),
            "unsubscribe": (3, seat.unsubscribe),
            "subscribe the shared": (3, lambda: shared.subscribe(timeout=3, wait=chance.random() < 0.5)),
            "unsubscribe the shared": (2, lambda: shared.unsubscribe(timeout=chance.choice([0, 3]))),
            "on": (3, seat.listen),
            "off": (3, lambda: seat.stop_listening(chance) if seat.listeners else None),
            "send": (6, lambda: self.send(chance.choice([seat.channel, shared]))),
            "track": (1, lambda: self.keep(seat.channel.track({"n": 1}, timeout=3))),
            "read": (3, lambda: self.read(reader, chance)),
            "set_auth": (1, lambda: self.pool.set_auth(chance.choice(self.tokens))),
            "look": (1, lambda: (self.pool.stats(), self.pool.health(), self.pool.channels(), repr(seat.channel))),
            "clean up": (1, self.pool.force_cleanup),
            "connect": (1, lambda: self.pool.connect(3)),
        }
        (name,) = chance.choices(list(acts), [weight for weight, _ in acts.values()])
        acts[name][1]()
        return name

    def send(self, channel: rtpool.Channel) -> None:
        self.keep(channel.send_broadcast("x", {}, timeout=3))

    def keep(self, push: rtpool.Push) -> None:
        self.pushes.append(push)
        push.add_done_callback(self.settled.append)

    def read(self, reader: rtpool.Channel, chance: random.Random) -> None:
        reader.subscribe(timeout=3, wait=False)
        events = itertools.islice(reader.events(timeout=0.01), 20)
        numbers = [e.payload["n"] for e in events if isinstance(e, rtpool.Broadcast) and e.event == "n"]
        if numbers != sorted(set(numbers)):
            self.faults.append(f"a reader got {numbers}")
        if chance.random() < 0.3:
            reader.unsubscribe(timeout=3)

    def run(self, number: int, begin: threading.Barrier) -> None:
        chance = random.Random(self.seed + number)
        try:
            seat = Seat(self.pool.channel(chance.choice(TOPICS)), self.faults)
            reader = self.pool.channel(chance.choice(TOPICS))
            self.channels += (seat.channel, reader)
            seat.listen()
            begin.wait(DEADLINE)
            while not self.over.is_set():
                try:
                    self.counts[self.act(chance, seat, reader)] += 1
                except rtpool.RtpoolError as error:
                    self.counts[type(error).__name__] += 1
            seat.unsubscribe()
            reader.unsubscribe(timeout=3)
        except BaseException as error:
            self.faults.append(f"{type(error).__name__} escaped: {error}")

    def sabotage(self, begin: threading.Barrier) -> None:
        chance = random.Random(self.seed - 1)
        begin.wait(DEADLINE)
        while not self.over.wait(chance.uniform(0.02, 0.3)):
            for connection in self.server.connections:
                if chance.random() < 0.5:
                    connection.abort()
                    self.counts["resets"] += 1

    def play(self, *, close_amid: bool) -> None:
        begin = threading.Barrier(THREADS + 2)
        threads = [threading.Thread(target=self.run, args=(n, begin), name=f"user-{n}") for n in range(THREADS)]
        threads.append(threading.Thread(target=self.sabotage, args=(begin,), name="saboteur"))
        for thread in threads:
            thread.start()
        begin.wait(DEADLINE)
        self.over.wait(ROUND)
        if close_amid:
            self.end_pool()
        self.over.set()
        in_time(threads)

    def end_pool(self) -> None:
        """Close it from several threads at once."""
        threads = [threading.Thread(target=self.close, name=f"closer-{n}") for n in range(3)]
        for thread in threads:
            thread.start()
        in_time(threads)

    def close(self) -> None:
        if not self.pool.close(10):
            self.faults.append("close() was not in time")

    def balance(self) -> None:
        """What every round ends with, however it went."""
        wait_until(lambda: all(push.done() for push in self.pushes), "every push settled")
        wait_until(lambda: not any(map(self.server.members, TOPICS)), "nobody left on the server")
        engine, stats = self.pool._engine, self.pool.stats()
        assert engine.registry.subscribers() == ()
        assert engine.budget._outstanding == 0
        assert stats.total_joins == 0
        unread = [c._subscriber.stream.ordinary for c in self.channels if c._subscriber.stream is not None]
        assert stats.events_received == stats.messages_delivered + stats.messages_dropped + sum(unread)
        assert max(Counter(map(id, self.settled)).values(), default=1) == 1, "a push was settled twice"


def in_time(threads: list[threading.Thread]) -> None:
    """Join them; a deadlock is shown with every thread's stack."""
    deadline = time.monotonic() + DEADLINE
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    stuck = [thread.name for thread in threads if thread.is_alive()]
    if stuck:
        faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
    assert not stuck, f"after {DEADLINE} s there still run {stuck}; seed {SEED}"


@pytest.mark.stress
@pytest.mark.timeout(SECONDS * 3 + 3 * DEADLINE)
def test_whatever_thread_goes_first_promises_hold_and_nothing_is_left(
    server: RealtimeServer, make_pool: MakePool, shuffled: None, figure: Figure
) -> None:
    print(f"RTPOOL_INTERLEAVE_SEED={SEED}")
    end, rounds, total = time.monotonic() + SECONDS, 0, Counter[str]()
    while time.monotonic() < end:
        pool = make_pool(max_delay=0.2, num_workers=3, cleanup_interval=0.05, max_presence_calls=1_000)
        played = Round(server, pool, SEED + 1_000 * rounds)
        with Traffic(server, lambda: TOPICS, pause=0.002, keep=1) as traffic:
            played.play(close_amid=rounds % 2 == 1)
        assert traffic.errors == []
        assert played.faults == [], f"seed {SEED}, round {rounds}"  # who met one left its Channels as they were
        if rounds % 2 == 0:  # nothing is cut short: what was left is forgotten by the server, pool open or not
            for channel in played.shared:
                channel.unsubscribe(timeout=10)
            wait_until(lambda pool=pool: pool.stats().total_joins == 0, "no join left")  # type: ignore[misc]
            played.end_pool()
        played.balance()
        assert played.faults == [], f"seed {SEED}, round {rounds}"
        rounds += 1
        total += played.counts
    acts = sum(count for name, count in total.items() if name[0].islower())
    figure(f"{rounds} rounds, {acts} calls, seed {SEED}: {dict(sorted(total.items()))}")
    assert total["subscribe"]
    assert total["resets"]

"""No false alarm: a busy pool that uses everything, whose joins are moved, made anew and given other tokens."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections.abc import Callable

import pytest

import rtpool
from rtpool.debug import Debugger, Issue
from rtpool.testing import RealtimeServer
from tests.conftest import Figure, MakePool
from tests.support import merging
from tests.support.recorder import Recorder
from tests.support.wait import CAP, wait_until

#: Seconds of traffic; ten minutes with RTPOOL_HEALTHY=600.
SECONDS = float(os.environ.get("RTPOOL_HEALTHY", "4"))
LOOK = 0.05


class Alarm:
    """Everything a debugger finds, which looks all the time."""

    def __init__(self, pool: rtpool.RealtimePool, monkeypatch: pytest.MonkeyPatch, **thresholds: float) -> None:
        self.found: list[Issue] = []
        self.looks = 0
        self.debugger = Debugger(pool, **thresholds)
        look = self.debugger._inspector.look

        def noted(*args: object, **named: object) -> list[Issue]:
            issues = look(*args, **named)  # type: ignore[arg-type]
            self.found += issues
            self.looks += 1
            return issues

        monkeypatch.setattr(self.debugger._inspector, "look", noted)
        self.debugger.enable(LOOK)

    def is_silent(self) -> None:
        self.debugger.issues()
        self.debugger.disable()
        assert self.looks > 3
        assert [str(issue) for issue in self.found] == []


class Traffic:
    """Threads that each do something again and again until the end; none may fail."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.turns: dict[str, int] = {}
        self.failures: list[BaseException] = []
        self._threads: list[threading.Thread] = []

    def add(self, every: float, do: Callable[[int], object]) -> None:
        def run() -> None:
            try:
                for turn in itertools.count():
                    if self.over.wait(every):
                        return
                    do(turn)
                    self.turns[do.__name__] = turn + 1
            except BaseException as error:
                self.failures.append(error)

        self._threads.append(threading.Thread(target=run, daemon=True))

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join(30)


@pytest.fixture
def quick_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    merging.hurry(monkeypatch)


@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.usefixtures("quick_moves")
def test_a_busy_pool_that_uses_everything_is_no_issue(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, figure: Figure
) -> None:
    server.table("cars", columns={"id": "int8", "status": "text"})
    tokens, rng = itertools.count(), random.Random(1)
    lifetime = 30 if SECONDS > 60 else 3_600  # one that expires before it is renewed, on a busy machine, is an issue

    def new_token() -> str:
        return server.token(expires_in=lifetime, number=next(tokens))

    pool = make_pool(
        access_token=new_token,
        max_channels_per_connection=20,
        health_check_interval=0.2,
        cleanup_interval=0.2,
        heartbeat_interval=0.2,
        mailbox_limit=1_000,
        max_events_per_second=500,
    )
    # Sockets are filled and emptied all the time, so that joins are moved.
    thresholds = {"channels_share": 1.0}
    alarm, heard, traffic = Alarm(pool, monkeypatch, **thresholds), Recorder(), Traffic()
    rooms = [pool.channel(f"room-{n}").on_broadcast("*", heard).on_gap(heard).subscribe() for n in range(6)]
    twins = [pool.channel(f"room-{n}", ack=True).on_broadcast("*", heard).subscribe() for n in range(3)]
    private = pool.channel("private", private=True, replay=True).on_broadcast("*", heard).subscribe()
    changes = pool.on_changes("cars", heard)
    present = pool.channel("present").on_presence_sync(heard).subscribe()
    read = pool.channel("read").subscribe()
    readers = [threading.Thread(target=lambda: [heard(event) for event in read.events()], daemon=True)]
    for reader in readers:
        reader.start()
    guests: list[rtpool.Channel] = []

    def broadcasts(turn: int) -> None:
        for number in range(6):
            server.broadcast(f"room-{number}", "x", {"n": turn})
        server.broadcast("read", "x", {"n": turn})
        server.database_send("private", "x", {"n": turn})

    def changing(turn: int) -> None:
        server.change("public", "cars", "INSERT", {"id": turn, "status": "new"})

    def sends(turn: int) -> None:
        rooms[turn % 6].send_broadcast("mine", {"n": turn}).result(CAP)
        twins[turn % 3].send_broadcast("acked", {"n": turn}).result(CAP)

    def tracks(turn: int) -> None:
        present.track({"turn": turn})

    def comes_and_goes(turn: int) -> None:
        grows = turn % 100 < 50
        if len(guests) < 25 and rng.random() < (0.9 if grows else 0.1):
            guests.append(pool.channel(f"guest-{turn}").on_broadcast("*", heard).subscribe(timeout=CAP))
        elif guests:
            guests.pop(rng.randrange(len(guests))).unsubscribe()

    def asks_for_more(turn: int) -> None:
        """A binding that the server has to be told of: the topic is joined anew."""
        room = rooms[turn % 6]
        room.on_postgres_changes("*", heard, table="cars", filter=f"id=eq.{turn}")
        wait_until(lambda: room.is_subscribed)

    def takes_another_token(turn: int) -> None:
        pool.set_auth(lambda: new_token())

    def checks(turn: int) -> None:
        assert alarm.debugger.check_lifecycle(timeout=CAP).ok

    def asks(turn: int) -> None:
        alarm.found += Debugger(pool, **thresholds).issues()

    for every, do in [(0.005, broadcasts), (0.01, changing), (0.01, sends), (0.5, tracks)]:
        traffic.add(every, do)
    for every, do in [
        (0.02, comes_and_goes),
        (0.3, asks_for_more),
        (1.0, checks),
        (0.1, asks),
        (1.0, takes_another_token),
    ]:
        traffic.add(every, do)
    began = time.monotonic()
    with traffic:
        wait_until(lambda: traffic.failures or time.monotonic() - began >= SECONDS, cap=SECONDS + 60)
    stats = pool.stats()
    assert traffic.failures == []
    alarm.is_silent()
    assert len(traffic.turns) == 9, "each did something"
    assert next(tokens) > SECONDS / 2, "there were other tokens"
    assert stats.gaps_by_cause["rejoin"] > 0
    assert (private.is_subscribed, changes.is_subscribed) == (True, True)
    figure(f"{alarm.looks} looks in {SECONDS:g} s, {stats.events_received} events, {stats.joins_moved} joins moved")
    read.unsubscribe()


@pytest.mark.usefixtures("quick_moves")
def test_joins_that_are_moved_are_no_issue(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = merging.make_sparse_pool(make_pool)
    alarm = Alarm(pool, monkeypatch)
    heard = merging.sparse(pool)
    with merging.Publishers(list(heard)) as publishers:
        merging.merge_until_one_is_left(server, pool)
    assert not publishers.failures
    assert pool.stats().joins_moved == 6
    alarm.is_silent()


@pytest.mark.parametrize("channels", [1, 25])
def test_a_pool_that_begins_and_ends_is_no_issue(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    pool = make_pool(max_channels_per_connection=10, cleanup_interval=0.1)
    alarm = Alarm(pool, monkeypatch)
    for _ in range(5):
        for number in range(channels):
            pool.channel(f"room-{number}").on_broadcast("*", print).subscribe(wait=False)
        wait_until(lambda: pool.stats().active_subscriptions == channels)
        pool.unsubscribe_all()
        wait_until(lambda: pool.stats().total_connections == 0)
    pool.close()
    alarm.is_silent()


def test_a_pool_without_health_check_and_one_of_plain_phoenix_are_no_issue(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RealtimeServer(plain_phoenix=True) as phoenix:
        pool = make_pool(f"{phoenix.url}/socket", api_key=None, topic_prefix="", enable_health_check=False)
        alarm = Alarm(pool, monkeypatch)
        for number in range(5):
            pool.channel(f"room:{number}").on("*", print).subscribe()
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 0.5)
        alarm.is_silent()
        pool.close()

"""A thousand Channels over ten sockets, and a server that is killed and started again and again."""

from __future__ import annotations

import random
import time
from datetime import datetime, timezone
from typing import NamedTuple

import pytest

import rtpool
from rtpool.testing import RealtimeServer
from tests.conftest import Figure, MakePool
from tests.support.recorder import Recorder
from tests.support.storms import Books, Traffic, fullest_window
from tests.support.wait import wait_until

TOPICS = [f"topic-{number}" for number in range(1_000)]
SOCKETS, RESTARTS = 10, 20
JOINS_PER_SECOND = 800


class Kill(NamedTuple):
    """When the server died, and whether the pool was still joining."""

    since: datetime
    until: datetime
    midway: bool


@pytest.mark.stress
@pytest.mark.timeout(180)
def test_twenty_killings_of_the_server_cost_no_channel_and_no_message_unannounced(
    make_pool: MakePool, figure: Figure
) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    figure(f"seed {seed}")
    began = time.monotonic()
    stamps: list[float] = []
    most_sockets = 0
    with RealtimeServer() as server:

        def on_join(topic: str, payload: object, connection: object) -> None:
            nonlocal most_sockets
            stamps.append(time.monotonic())
            most_sockets = max(most_sockets, len(server.connections))

        server.on_join = on_join
        pool = make_pool(
            server.url,
            api_key=server.api_key,
            max_joins_per_second=JOINS_PER_SECOND,
            max_delay=0.2,
            max_retries=1_000,
            stable_after=0.0,
        )
        failures = Recorder()
        pool.on_status(lambda change: failures(change) if change.status == "reconnecting" else None)
        books = [Books(pool.channel(topic)) for topic in TOPICS]
        for book in books:
            book.channel.subscribe(wait=False)
        _everybody_is_back(server, pool, books)
        kills: list[Kill] = []
        with Traffic(server, lambda: chance.sample(TOPICS, 50), pause=0.03) as traffic:
            for number in range(RESTARTS):
                midway = number % 3 == 2
                if midway:  # the rejoin after the kill before this is under way
                    enough = len(stamps) + chance.randrange(1, 900)
                    wait_until(lambda enough=enough: len(stamps) >= enough)
                else:
                    _everybody_is_back(server, pool, books)
                    enough = traffic.total + chance.randrange(1, 600)
                    wait_until(lambda enough=enough: traffic.total >= enough)
                since = datetime.now(timezone.utc)
                server.close()
                kills.append(Kill(since, datetime.now(timezone.utc), midway))
                failures.events.clear()
                failures.wait(chance.choice([1, 1, 15, 40]))  # at once, or after attempts on a port where nobody is
                traffic.life += 1
                server.start()
            _everybody_is_back(server, pool, books)
        traffic.burst(TOPICS)
        latest = {topic: traffic.published[topic][-1].number for topic in TOPICS}
        wait_until(lambda: all(b.numbers[-1:] == [latest[b.channel.topic]] for b in books), "the last message of each")
        assert traffic.errors == []
        assert pool.close(10)
    _tell(figure, began, stamps, kills, traffic, books)

    assert most_sockets == SOCKETS, "a socket too many"
    assert fullest_window(stamps, 1.0) <= JOINS_PER_SECOND
    wrong = [fault for book in books for fault in book.faults(traffic.published[book.channel.topic])]
    assert not wrong, "\n".join([f"{len(wrong)} faults", *wrong[:10]])
    for book in books:
        for gap in book.gaps:
            assert gap.cause == "transport"
            assert any(gap.lost_from <= k.until and k.since <= gap.lost_to for k in kills), "a gap without a kill"
        assert sum(not kill.midway for kill in kills) <= len(book.gaps) <= len(kills), "a kill without a gap, or two"


def _everybody_is_back(server: RealtimeServer, pool: rtpool.RealtimePool, books: list[Books]) -> None:
    wait_until(
        lambda: all(b.channel.is_subscribed for b in books) and sum(len(c.topics) for c in server.connections) >= 1_000,
        "every Channel joined",
        cap=30,
    )
    homes = [topic for connection in server.connections for topic in connection.topics]
    assert sorted(homes) == sorted(f"realtime:{topic}" for topic in TOPICS), "a topic joined twice, or not at all"
    assert len(server.connections) == SOCKETS
    assert pool.stats().active_subscriptions == len(books)


def _tell(
    figure: Figure, began: float, stamps: list[float], kills: list[Kill], traffic: Traffic, books: list[Books]
) -> None:
    published = [(book, p) for book in books for p in traffic.published[book.channel.topic]]
    got = {book: set(book.numbers) for book in books}
    received = sum(len(book.numbers) for book in books)
    missing = [(book, p) for book, p in published if p.number not in got[book]]
    figure(
        f"{len(books)} Channels, {SOCKETS} sockets, {len(kills)} kills ({sum(k.midway for k in kills)} amid a rejoin) "
        f"in {time.monotonic() - began:.1f} s\n"
        f"joins seen {len(stamps)}; fullest second {fullest_window(stamps, 1.0)}, allowed "
        f"{JOINS_PER_SECOND}\n"
        f"published {len(published)}, while joined {sum(p.reached > 0 for _, p in published)}, received {received}, "
        f"missing {len(missing)} (of those on their way to a joined Channel {sum(p.reached > 0 for _, p in missing)}), "
        f"of the missing in an announced gap {sum(book.covered(p.at) for book, p in missing)}; "
        f"gaps {sum(len(book.gaps) for book in books)}"
    )

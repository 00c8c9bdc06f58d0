"""Trouble in one place that is none of another's business: topics that are refused, a peer that freezes."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import rtpool
from rtpool.testing import JoinRefusal, RealtimeServer, ServerConnection
from rtpool.testing.refusals import Join
from tests.conftest import MakePool
from tests.support.recorder import Recorder
from tests.support.storms import Books, Traffic
from tests.support.wait import wait_until

#: The real server's times and the options' defaults, all of them, go so many times faster.
FASTER = 20
#: For two minutes.
WATCHED = 120.0 / FASTER
#: How long a refused join holds up everything on its socket.
BLOCK = 5.0 / FASTER


@pytest.mark.stress
@pytest.mark.parametrize("failing", [1, 10])
def test_topics_that_are_always_refused_cost_their_neighbours_on_the_socket_nothing(
    make_pool: MakePool, failing: int
) -> None:
    refused_at: list[float] = []
    delays: list[float] = []
    with RealtimeServer(join_error_backoff=BLOCK, idle_timeout=60.0 / FASTER) as server:

        def on_join(topic: str, payload: Any, connection: ServerConnection) -> JoinRefusal | None:
            if not topic.startswith("bad"):
                return None
            refused_at.append(time.monotonic())
            return Join.UNKNOWN()

        server.on_join = on_join
        pool = make_pool(
            server.url,
            api_key=server.api_key,
            heartbeat_interval=25.0 / FASTER,
            heartbeat_timeout=10.0 / FASTER,
            join_timeout=10.0 / FASTER,
            base_delay=1.0 / FASTER,
            max_delay=30.0 / FASTER,
        )
        beats, trouble, refusals = Recorder(), Recorder(), Recorder()
        pool.on_heartbeat(beats)
        books = [Books(pool.channel(f"good-{number}")) for number in range(100 - failing)]
        bad = [pool.channel(f"bad-{number}").on_status(refusals) for number in range(failing)]
        for channel in [*bad, *(book.channel for book in books)]:
            channel.subscribe(wait=False)
        wait_until(lambda: all(book.channel.is_subscribed for book in books), "the good ones joined")
        wait_until(lambda: len({r.topic for r in refusals.events if r.status == "refused"}) == failing, "the bad ones")
        for book in books:
            book.channel.on_status(trouble)
            book.channel.on_broadcast("n", lambda message: delays.append(time.time() - message.payload["at"]))
        topics, chance = [book.channel.topic for book in books], random.Random(1)
        since, beats_before = time.monotonic(), len(beats.events)
        never_less = len(books)
        with Traffic(server, lambda: chance.sample(topics, 10), pause=0.01) as traffic:
            while (until := time.monotonic()) < since + WATCHED:
                never_less = min(never_less, sum(book.channel.is_subscribed for book in books))
                threading.Event().wait(0.01)
        latest = {topic: len(published) for topic, published in traffic.published.items()}
        wait_until(lambda: all(len(b.numbers) == latest.get(b.channel.topic, 0) for b in books), "every message")
        during = beats.events[beats_before:]
        blocked = sum(min(BLOCK, until - at) for at in refused_at if since <= at < until) / (until - since)
        print(
            f"{failing} refused, {len(books)} good for {until - since:.1f} s ({(until - since) * FASTER:.0f} s of real "
            f"time): socket blocked {blocked:.0%} by {sum(since <= at < until for at in refused_at)} refusals; "
            f"{traffic.total} messages, slowest {max(delays):.3f} s; heartbeats "
            f"{ {status: sum(b.status == status for b in during) for status in ('sent', 'ok', 'timeout')} }, "
            f"slowest {max(b.latency for b in during if b.status == 'ok'):.3f} s"
        )

        assert (traffic.errors, trouble.events) == ([], [])
        assert never_less == len(books)
        assert [fault for book in books for fault in book.faults(traffic.published.get(book.channel.topic, []))] == []
        assert not [book for book in books if book.gaps]
        assert {beat.status for beat in during} == {"sent", "ok"}
        assert sum(beat.status == "ok" for beat in during) >= 3
        assert (server.connections_total, pool.stats().reconnect_attempts) == (1, 0)
        assert sum(since <= at < until for at in refused_at) >= 3, "it was not even tried"
        assert blocked <= 0.5, "the refused take more of the socket than they leave"
        for channel in bad:
            channel.unsubscribe()
        assert pool.close(10)

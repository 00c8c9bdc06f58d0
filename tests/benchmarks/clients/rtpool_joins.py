"""rtpool joins many topics, pacing off, loses all sockets and joins anew: how long each takes."""

from __future__ import annotations

import threading
import time

import rtpool
from tests.benchmarks.clients.counting import arguments, say

#: Channels of a socket, as a server allows them.
PER_SOCKET = 100


def main() -> None:
    """Join as many as asked for, once and again."""
    told = arguments()
    count = told["topics"]
    sockets = -(-count // PER_SOCKET)
    lost = threading.Semaphore(0)

    def status(change: rtpool.StatusChange) -> None:
        if change.status == "rejoining":
            lost.release()

    with rtpool.RealtimePool(
        f"http://127.0.0.1:{told['port']}",
        api_key="k",
        max_connections=sockets,
        max_joins_per_second=1_000_000,
        max_joins_in_flight=PER_SOCKET,
        stable_after=0,  # a loss is a loss, however early
        base_delay=1e-6,  # the back-off is not what is measured
        max_delay=1e-6,
    ) as pool:
        channels = [pool.channel(f"join-{index}") for index in range(count)]
        for channel in channels:
            channel.on_broadcast("x", print)
        for channel in channels[::PER_SOCKET]:  # the first of each socket tells that it was lost
            channel.on_status(status)
        started = time.perf_counter()
        for channel in channels:
            channel.subscribe(wait=False)
        for channel in channels:
            channel.subscribe(timeout=30)
        joined = time.perf_counter()
        assert pool.stats().total_connections == sockets
        time.sleep(0.2)  # what was said meanwhile is done
        dropped = time.perf_counter()
        channels[0].send_broadcast("drop", {})
        for _ in range(sockets):
            assert lost.acquire(timeout=30)
        for channel in channels:
            while not channel.is_subscribed:
                time.sleep(0.0005)
        rejoined = time.perf_counter()
    say({"ms to join": (joined - started) * 1_000, "ms to rejoin": (rejoined - dropped) * 1_000})


if __name__ == "__main__":
    main()

"""rtpool with many joins on which nothing happens: how much of a core it takes, and how often a thread wakes up."""

from __future__ import annotations

import pathlib
import time

import rtpool
from tests.benchmarks.clients.counting import arguments, say

#: Seconds in which what the joins left to do is done.
CALM = 3.0


def wake_ups() -> int:
    """How often a thread of this process went to sleep of its own accord, and so woke up."""
    told = [path.read_text() for path in pathlib.Path("/proc/self/task").glob("*/status")]
    lines = [line for text in told for line in text.splitlines() if line.startswith("voluntary_ctxt_switches")]
    assert lines, "the kernel does not tell"
    return sum(int(line.split()[1]) for line in lines)


def main() -> None:
    """Join, and do nothing for as long as asked for."""
    told = arguments()
    with rtpool.RealtimePool(
        f"http://127.0.0.1:{told['port']}", api_key="k", max_joins_per_second=1_000_000, max_joins_in_flight=100
    ) as pool:
        channels = [pool.channel(f"idle-{index}").on_broadcast("x", print) for index in range(told["topics"])]
        for channel in channels:
            channel.subscribe(wait=False)
        for channel in channels:
            channel.subscribe(timeout=30)
        time.sleep(CALM)
        woken, used, sent = wake_ups(), time.process_time(), pool.stats().bytes_sent
        started = time.monotonic()
        time.sleep(told["seconds"])
        seconds = time.monotonic() - started
        woken, used = wake_ups() - woken, time.process_time() - used
        stats = pool.stats()
        assert stats.active_subscriptions == len(channels)
        assert stats.total_connections == told["sockets"]
        assert stats.bytes_sent > sent, "heartbeats are in it"
    # This thread's own sleep is one of them. A heartbeat wakes the I/O thread when it is due and when it is answered.
    beats = 2 * told["sockets"]
    say(
        {
            "% of a core": 100 * used / seconds,
            "wake-ups/s": (woken - 1) / seconds,
            "wake-ups/s, less heartbeats": max(0, woken - 1 - beats) / seconds,
        }
    )


if __name__ == "__main__":
    main()

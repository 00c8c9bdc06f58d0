"""
rtpool under a flood: one Channel's callback is slow, and how is everything else? Told are the latencies of two other
Channels, on the flooded socket and on one of its own, the latencies of heartbeats, and the memory that it takes.
"""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable
from typing import Any

import rtpool
from tests.benchmarks.clients.counting import arguments, say


def sleeping(message: Any) -> None:
    """A callback that waits for something, as for a database."""
    time.sleep(0.001)


def computing(message: Any) -> None:
    """A callback that has something to compute, for a millisecond or so."""
    until = time.perf_counter() + 0.001
    while time.perf_counter() < until:
        continue


def stuck(message: Any) -> None:
    """A callback that does not return for as long as it is measured."""
    OVER.wait(100)


OVER = threading.Event()
CALLBACKS: dict[str, Callable[[Any], None]] = {f.__name__: f for f in (sleeping, computing, stuck)}


def percentile(values: list[float], part: float) -> float:
    """In milliseconds."""
    ordered = sorted(values)
    return 1000 * ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def peak() -> float:
    """MiB of memory at the most, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Paced:
    """The latencies of a Channel's messages, all of which are to come, in order."""

    def __init__(self, expected: int) -> None:
        self.latencies: list[float] = []
        self.expected = expected
        self.over = threading.Event()

    def __call__(self, message: Any) -> None:
        self.latencies.append(time.monotonic() - message.payload["at"])
        assert message.payload["n"] == len(self.latencies) - 1, "a message was lost or came twice"
        if len(self.latencies) == self.expected:
            self.over.set()


def main() -> None:
    """Be flooded for as long as is asked, and say how it was."""
    told = arguments()

    blocks = told["overflow"] == "block"
    every, count = told["every"], round(told["seconds"] / told["every"])
    beats: list[float] = []

    def heard(beat: rtpool.Heartbeat) -> None:
        if beat.status == "ok":
            beats.append(beat.latency or 0.0)
        assert beat.status != "timeout", "a heartbeat was lost"

    # Three topics on two sockets.
    with rtpool.RealtimePool(
        f"http://127.0.0.1:{told['port']}", api_key="k", overflow=told["overflow"], max_channels_per_connection=2,
        heartbeat_interval=told["every"] * 5,
        **told.get("options", {})
    ) as pool:  # fmt: skip
        pool.on_heartbeat(heard)
        same, apart = (Paced(count) for _ in range(2))
        pool.channel("flood").on_broadcast("x", CALLBACKS[told["callback"]]).subscribe()
        pool.channel("same").on_broadcast("x", same).subscribe()
        control = pool.channel("apart").on_broadcast("x", apart).subscribe()
        for asked, payload in (
            ("pace", {"topic": "realtime:apart", "every": every, "messages": count}),
            ("pace", {"topic": "realtime:same", "every": every, "messages": count}),
        ):
            if not (blocks and payload["topic"] == "realtime:same"):
                control.send_broadcast(asked, payload)
        time.sleep(0.1)
        before = peak()
        if told.get("flood", True):
            control.send_broadcast("flood", {"topic": "realtime:flood", "messages": None})
        assert apart.over.wait(told["seconds"] * 3 + 20), f"{len(apart.latencies)} of {count} messages came"
        figures = {
            "p99 ms, own socket": percentile(apart.latencies, 0.99),
            "p50 ms, own socket": percentile(apart.latencies, 0.5),
        }
        if not blocks:
            assert same.over.wait(told["seconds"] * 3 + 20), f"{len(same.latencies)} of {count} messages came"
            figures |= {
                "p99 ms, same socket": percentile(same.latencies, 0.99),
                "p50 ms, same socket": percentile(same.latencies, 0.5),
            }
        stats = pool.stats()
        assert not stats.callback_errors, f"{stats.callback_errors} callbacks raised"
        control.send_broadcast("stop", {})
        figures |= {
            "heartbeat p99 ms": percentile(beats, 0.99),
            "heartbeats": float(len(beats)),
            "MiB": peak() - before,
            "flooded/s": sum(d.messages_received for d in stats.connection_details) / told["seconds"],
            "gaps": float(stats.gaps),
        }
        OVER.set()
    say(figures)


if __name__ == "__main__":
    main()

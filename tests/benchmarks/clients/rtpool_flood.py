"""
rtpool under a flood: one Channel's callback is slow, and how is everything else? Told are the latencies of two other
Channels, one on the flooded socket and one on a socket of its own, those of heartbeats, and the memory it took.
"""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import rtpool
from tests.benchmarks.clients.counting import arguments, say

#: Seconds of one call of a slow callback, of which there are far more to be made than there is time.
SLOW = 0.001
FLOODED = 1  # the number of the flooded connection: the first


def sleeping(message: Any) -> None:
    """A callback that waits for something, as for a database."""
    time.sleep(SLOW)


def computing(message: Any) -> None:
    """A callback that computes, in Python, and lets go of the interpreter's lock only when it is made to."""
    until = time.perf_counter() + SLOW
    while time.perf_counter() < until:
        continue


CALLBACKS: dict[str, Callable[[Any], None]] = {each.__name__: each for each in (sleeping, computing)}


def percentile(seconds: Sequence[float], part: float) -> float:
    """In milliseconds."""
    ordered = sorted(seconds)
    return 1_000 * ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def peak() -> float:
    """MiB this process took at the most, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_024


class Paced:
    """The latencies of a Channel's messages, from the sender's call to the callback. All are to come, in order."""

    def __init__(self, expected: int) -> None:
        self.latencies: list[float] = []
        self.expected = expected
        self.over = threading.Event()

    def __call__(self, message: Any) -> None:
        self.latencies.append(time.monotonic() - message.payload["at"])
        assert message.payload["n"] == len(self.latencies) - 1, "a message was lost, or came twice"
        if len(self.latencies) == self.expected:
            self.over.set()

    def wait(self, seconds: float) -> None:
        """For the last message."""
        assert self.over.wait(4 * seconds + 10), f"{len(self.latencies)} of {self.expected} messages came"


class Beats:
    """The latencies of heartbeats, those of the flooded socket apart."""

    def __init__(self) -> None:
        self.flooded: list[float] = []
        self.apart: list[float] = []
        self.lost = 0

    def __call__(self, beat: rtpool.Heartbeat) -> None:
        self.lost += beat.status == "timeout"
        if beat.status == "ok" and beat.latency is not None:
            (self.flooded if beat.connection_id == FLOODED else self.apart).append(beat.latency)


def main() -> None:
    """Be flooded for as long as is asked, and say how it was."""
    told = arguments()
    policy, every, seconds = told["overflow"], told["every"], told["seconds"]
    # Two Channels on the first socket, the third on another. The neighbour of one that blocks waits with it.
    same, apart, beats = Paced(round(seconds / every)), Paced(round(seconds / every)), Beats()
    served = {"apart": apart} if policy == "block" else {"same": same, "apart": apart}
    options = {"overflow": policy, "max_channels_per_connection": 2, "heartbeat_interval": 0.02}
    with rtpool.RealtimePool(f"http://127.0.0.1:{told['port']}", api_key="k", **options) as pool:
        pool.on_heartbeat(beats)
        pool.channel("flood").on_broadcast("x", CALLBACKS[told["callback"]]).subscribe()
        pool.channel("same").on_broadcast("x", same).subscribe()
        control = pool.channel("apart").on_broadcast("x", apart).subscribe()
        before = peak()
        if told["flood"]:
            flood = {"topic": "realtime:flood", "messages": None, "rate": told["rate"]}
            control.send_broadcast("flood", flood).result()
            time.sleep(0.2)  # the kernel's buffers are full, and the mailbox is
        for topic, paced in served.items():
            wanted = {"topic": f"realtime:{topic}", "every": every, "messages": paced.expected}
            control.send_broadcast("pace", wanted).result()
        for paced in served.values():
            paced.wait(seconds)
        grown, stats = peak() - before, pool.stats()
        control.send_broadcast("stop", {}).result()
    assert not stats.callback_errors, f"{stats.callback_errors} callbacks raised"
    assert not beats.lost, f"{beats.lost} heartbeats had no answer"
    assert len(beats.apart) > 5, "heartbeats stood still"
    assert [each.epoch for each in stats.connection_details] == [1, 1], "a socket was lost"
    figures = {f"p99 ms, {'own' if name == 'apart' else name} socket": percentile(paced.latencies, 0.99)
               for name, paced in reversed(served.items())}  # fmt: skip
    figures["p50 ms, own socket"] = percentile(apart.latencies, 0.5)
    figures["heartbeat p99 ms"] = percentile(beats.apart, 0.99)
    if policy != "block":
        figures["heartbeat p99 ms, flooded socket"] = percentile(beats.flooded, 0.99)
    figures["MiB of memory"] = grown
    figures["received/s"] = sum(each.messages_received for each in stats.connection_details) / seconds
    say(figures)


if __name__ == "__main__":
    main()

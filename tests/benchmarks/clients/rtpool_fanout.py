"""
One message to many: Channels of one topic in one pool, which share one join.

The callback is `list.append` of a list of its own, the least that can be called; what came is checked afterwards.
"""

from __future__ import annotations

import time

import rtpool
from tests.benchmarks.clients.counting import PATIENCE, arguments, say


def main() -> None:
    """Receive what is asked for in so many Channels and say the callbacks a second, all Channels together."""
    told = arguments()
    messages = told["messages"]
    heard: list[list[rtpool.Broadcast]] = [[] for _ in range(told["channels"])]
    with rtpool.RealtimePool(f"http://127.0.0.1:{told['port']}", api_key="k", overflow="block") as pool:
        channels = [pool.channel("bench-0").on_broadcast("x", each.append) for each in heard]
        for channel in channels:
            channel.subscribe(wait=False)
        for channel in channels:
            channel.subscribe(timeout=30)
        assert pool.stats().total_joins == 1
        channels[0].send_broadcast("go", {"messages": messages})
        while not any(heard):
            time.sleep(0.0005)
        started = time.perf_counter()
        while not all(len(each) >= messages for each in heard):  # looks no further than the first that lacks some
            assert time.perf_counter() - started < PATIENCE, f"{sum(map(len, heard))} callbacks"
            time.sleep(0.001)
        seconds = time.perf_counter() - started
        time.sleep(0.02)  # what comes twice comes now
        stats = pool.stats()
    expected = list(range(messages))
    for each in heard:
        assert [message.payload["n"] for message in each] == expected, "every message once and in order, in each"
    assert not stats.messages_dropped, f"{stats.messages_dropped} messages were dropped"
    assert not stats.callback_errors, f"{stats.callback_errors} callbacks raised"
    say({"callbacks/s": len(heard) * messages / seconds})


if __name__ == "__main__":
    main()

"""rtpool receives: a callback on each Channel, on the pool's own workers."""

from __future__ import annotations

import ssl
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from tests.benchmarks.clients.counting import PATIENCE, Counted, arguments, rate, say


def callback(counter: Counted, last: Callable[[], None], *, binary: bool) -> Callable[[Any], None]:
    """What a Channel calls back."""

    def receive(message: Any) -> None:
        if counter.take(message.payload["n"]):
            last()

    def receive_bytes(message: Any) -> None:
        if counter.take(int.from_bytes(message.payload[:8], "big")):
            last()

    return receive_bytes if binary else receive


def main() -> None:
    """Receive what is asked for and say the rate."""
    told = arguments()
    if not told.get("orjson", True):
        sys.modules["orjson"] = None  # type: ignore[assignment]  # its import then fails, as where it is not installed
    import rtpool

    topics = told.get("topics", 1)
    counted = [Counted(told["messages"] // topics) for _ in range(topics)]
    over = threading.Semaphore(0)
    context = ssl.create_default_context(cafile=told["ca"]) if told.get("ca") else None
    options = {
        "overflow": "block",
        "max_joins_per_second": 1_000_000,
        "ssl_context": context,
        **told.get("options", {}),
    }
    url = f"{'https' if context else 'http'}://127.0.0.1:{told['port']}"
    with rtpool.RealtimePool(url, api_key="k", **options) as pool:
        channels = [pool.channel(f"bench-{index}") for index in range(topics)]
        for channel, counter in zip(channels, counted, strict=True):
            channel.on_broadcast("x", callback(counter, over.release, binary=told.get("binary", False)))
            channel.subscribe(wait=False)
        for channel in channels:
            channel.subscribe(timeout=30)
        sockets = pool.stats().total_connections
        channels[0].send_broadcast("go", {"messages": told["messages"]})
        for _ in counted:
            assert over.acquire(timeout=PATIENCE), f"{[len(each.numbers) for each in counted][:10]} messages came"
        time.sleep(0.02)  # what comes twice comes now
        stats = pool.stats()
    assert not stats.messages_dropped, f"{stats.messages_dropped} messages were dropped"
    assert not stats.callback_errors, f"{stats.callback_errors} callbacks raised"
    assert sockets == told.get("sockets", 1), f"{sockets} sockets"
    say({"messages/s": rate(counted)})


if __name__ == "__main__":
    main()

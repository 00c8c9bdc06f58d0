"""rtpool sends: from one thread or several without waiting, or there and back to a callback."""

from __future__ import annotations

import threading
import time
from typing import Any

import rtpool
from tests.benchmarks.clients.counting import arguments, say
from tests.benchmarks.clients.sending import Latencies, message, publishing


def publish(pool: rtpool.RealtimePool, messages: int, threads: int) -> dict[str, float]:
    """Send all, wait until the last is on its way, and until the server has them."""
    counted, checked, wrong = threading.Event(), threading.Event(), [""]

    def check(received: Any) -> None:
        wrong[0] = received.payload["wrong"]
        checked.set()

    channel = pool.channel("bench-0")
    channel.on_broadcast("counted", lambda _: counted.set()).on_broadcast("checked", check).subscribe()
    channel.send_broadcast("count", {"messages": messages}).result()

    def work(thread: int) -> None:
        for number in range(messages // threads):
            push = channel.send_broadcast("x", message(number, thread))
        push.result()

    workers = [threading.Thread(target=work, args=(thread,)) for thread in range(1, threads)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    work(0)
    for worker in workers:
        worker.join()
    assert counted.wait(30)
    seconds = time.perf_counter() - started
    assert checked.wait(30)
    return publishing(messages, seconds, wrong[0])


def round_trips(pool: rtpool.RealtimePool, latencies: Latencies) -> dict[str, float]:
    """Send each message when its time is there."""
    came, over = threading.Semaphore(0), threading.Event()

    def back(received: Any) -> None:
        if latencies.came(received.payload["n"]):
            over.set()
        came.release()

    channel = pool.channel("bench-0", receive_own=True).on_broadcast("x", back).subscribe()
    for _ in range(latencies.messages):
        time.sleep(max(0.0, latencies.pause()))
        channel.send_broadcast("x", latencies.sends())
        if latencies.rate is None:
            assert came.acquire(timeout=10)
    assert over.wait(10)
    return latencies.figures()


def main() -> None:
    """Do what is asked for and say the figures."""
    told = arguments()
    with rtpool.RealtimePool(f"http://127.0.0.1:{told['port']}", api_key="k") as pool:
        if told["what"] == "publish":
            figures = publish(pool, told["messages"], told["threads"])
        else:
            figures = round_trips(pool, Latencies(told["messages"], told["rate"]))
        stats = pool.stats()
    assert not stats.callback_errors, f"{stats.callback_errors} callbacks raised"
    say(figures)


if __name__ == "__main__":
    main()

"""
Requests to a Flask app at a steady rate, beside others in the same processes: how long each is waited for.

The looked-at requests come from two threads, the others from four. Each thread keeps to a timetable, so that a slow
answer makes no later request come later.
"""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Iterator

from tests.benchmarks.clients.counting import arguments, say
from tests.servers.requests import Client, in_threads

LOOKED_AT, OTHERS = 2, 4


def timetable(rate: float, threads: int, number: int, until: float) -> Iterator[None]:
    """Waits for a thread's next turn, of so many a second for all threads together."""
    due = time.monotonic() + number / rate
    while due < until:
        time.sleep(max(0.0, due - time.monotonic()))
        yield
        due += threads / rate


def main() -> None:
    """Send for as long as asked for and say the percentiles of those that are looked at."""
    told = arguments()
    address = ("127.0.0.1", told["port"])
    until = time.monotonic() + told["seconds"]
    took: list[float] = []
    inside: list[float] = []
    numbers = itertools.count()
    lock = threading.Lock()

    def work(number: int) -> None:
        client = Client(address)
        mine: list[float] = []
        if number < LOOKED_AT:
            for _ in timetable(told["rate"], LOOKED_AT, number, until):
                mine.append(client.timed("/"))
        elif told["others"]:
            for _ in timetable(told["others_rate"], OTHERS, number - LOOKED_AT, until):
                with lock:
                    path = told["others"].format(number=next(numbers))
                answer = client.get(path)
                if "ms" in answer:
                    inside.append(answer["ms"])
        with lock:
            took.extend(mine)
        client.close()

    in_threads(LOOKED_AT + OTHERS, work)
    cuts = statistics.quantiles(took, n=100)
    figures = {"ms, p50": cuts[49], "ms, p99": cuts[98]}
    if inside:
        figures["ms in a Channel's view, p50"] = statistics.median(inside)
    say(figures)


if __name__ == "__main__":
    main()

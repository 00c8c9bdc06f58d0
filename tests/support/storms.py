"""What tests of the whole client in trouble share: numbered traffic from the server, and the books of who got what."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from types import TracebackType
from typing import NamedTuple

import rtpool
from rtpool.testing import RealtimeServer

__all__ = ["Books", "Publication", "Traffic", "fullest_window", "per_second"]


class Publication(NamedTuple):
    """A broadcast from the server's side: its number on the topic, when, in which life of the server, to how many."""

    number: int
    at: datetime
    life: int
    reached: int


class Traffic:
    """
    Numbered broadcasts to many topics from the server's side, in bursts, on a thread of its own while it is entered.

    Args:
        choose: the topics of the next burst.
        pause: seconds between two bursts.
        keep: publications remembered per topic, None is all.
    """

    def __init__(
        self, server: RealtimeServer, choose: Callable[[], Iterable[str]], *, pause: float, keep: int | None = None
    ) -> None:
        self._server, self._choose, self._pause, self._keep = server, choose, pause, keep
        #: Which start of the server it is.
        self.life = 0
        self.published: dict[str, deque[Publication]] = {}
        self._next: dict[str, int] = {}
        self.total = 0
        self.errors: list[BaseException] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._pause):
                self.burst(self._choose())
        except BaseException as error:
            self.errors.append(error)

    def burst(self, topics: Iterable[str]) -> None:
        """One broadcast to each topic, in one turn of the server's loop."""

        def send() -> None:
            for topic in topics:
                book = self.published.setdefault(topic, deque(maxlen=self._keep))
                number, at = self._next.get(topic, 0), datetime.now(timezone.utc)
                self._next[topic] = number + 1
                reached = self._server.broadcast(topic, "n", {"n": number, "at": time.time()})
                book.append(Publication(number, at, self.life, reached))
                self.total += 1

        self._server.call(send)


class Books:
    """What one Channel got: the numbers of its messages and its gaps, in the order of its callbacks."""

    def __init__(self, channel: rtpool.Channel) -> None:
        self.channel = channel
        self.numbers: list[int] = []
        self.gaps: list[rtpool.Gap] = []
        channel.on_broadcast("n", lambda message: self.numbers.append(message.payload["n"]))
        channel.on_gap(self.gaps.append)

    def covered(self, at: datetime) -> bool:
        """Whether an announced gap spans this moment."""
        return any(gap.lost_from <= at <= gap.lost_to for gap in self.gaps)

    def faults(self, published: Sequence[Publication]) -> list[str]:
        """
        What is wrong: twice or out of order, missing among what was published while joined, or missing unannounced.

        Within a life of the server a Channel gets everything published while it is joined from the first on; only what
        was on its way when the server died may be missing, and that is the end of it.
        """
        wrong: list[str] = []
        topic, got = self.channel.topic, set(self.numbers)
        if self.numbers != sorted(got):
            wrong.append(f"{topic}: twice or out of order: {self.numbers}")
        last = published[-1].life if published else 0
        for life in range(last + 1):
            heard = [p.number in got for p in published if p.life == life and p.reached]
            if heard != sorted(heard, reverse=True) or (life == last and not all(heard)):
                wrong.append(f"{topic}: of life {life} it heard {''.join('.x'[h] for h in heard)}")
        for p in published:
            if p.number not in got and not self.covered(p.at):
                wrong.append(f"{topic}: {p} is missing unannounced, {self._off(p.at):.6f} s from the nearest gap")
        return wrong

    def _off(self, at: datetime) -> float:
        off = [abs((edge - at).total_seconds()) for gap in self.gaps for edge in (gap.lost_from, gap.lost_to)]
        return min(off, default=float("inf"))


def fullest_window(stamps: Iterable[float], seconds: float) -> int:
    """The most events that any half-open span of so many seconds holds."""
    window: deque[float] = deque()
    fullest = 0
    for stamp in sorted(stamps):
        window.append(stamp)
        while window[0] <= stamp - seconds:
            window.popleft()
        fullest = max(fullest, len(window))
    return fullest


def per_second(stamps: Sequence[float], since: float) -> list[int]:
    """How many events each second from `since` to the last one holds, that of the last included."""
    counts = [0] * (int(max(stamps) - since) + 1)
    for stamp in stamps:
        counts[int(stamp - since)] += 1
    return counts

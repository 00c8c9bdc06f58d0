"""
The floor of fan-out: one message is appended to all mailboxes under one lock, and four workers call back.

Decoding and the socket are left out, for one message that many get costs as good as nothing of them. Nothing here is
rtpool's.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

from tests.benchmarks.clients.counting import arguments, say

WORKERS = 4


class Mailboxes:
    """All of them, under one lock; each is in the hands of one worker at a time."""

    def __init__(self, callbacks: list[Any]) -> None:
        self.boxes: list[tuple[deque[Any], Any]] = [(deque(), callback) for callback in callbacks]
        self.ready = threading.Condition()
        self.runnable: deque[tuple[deque[Any], Any]] = deque()
        self.over = False

    def put(self, message: Any) -> None:
        """Append a message to all of them."""
        with self.ready:
            for box in self.boxes:
                if not box[0]:
                    self.runnable.append(box)
                box[0].append(message)
            self.ready.notify_all()

    def work(self) -> None:
        """A worker's life."""
        while True:
            with self.ready:
                self.ready.wait_for(lambda: self.over or self.runnable)
                if self.over:
                    return
                items, callback = self.runnable.popleft()
                batch = list(items)
            for item in batch:
                callback(item)
            with self.ready:
                for _ in batch:
                    items.popleft()
                if items:
                    self.runnable.append((items, callback))


def main() -> None:
    """Hand out what is asked for to so many callbacks and say the callbacks a second."""
    told = arguments()
    heard: list[list[int]] = [[] for _ in range(told["channels"])]
    mailboxes = Mailboxes([each.append for each in heard])
    workers = [threading.Thread(target=mailboxes.work) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    started = time.perf_counter()
    for number in range(told["messages"]):
        mailboxes.put(number)
    while not all(len(each) == told["messages"] for each in heard):
        time.sleep(0.001)
    seconds = time.perf_counter() - started
    with mailboxes.ready:
        mailboxes.over = True
        mailboxes.ready.notify_all()
    for worker in workers:
        worker.join()
    assert all(each == list(range(told["messages"])) for each in heard)
    say({"callbacks/s": len(heard) * told["messages"] / seconds})


if __name__ == "__main__":
    main()

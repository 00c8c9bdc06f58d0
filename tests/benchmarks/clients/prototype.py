"""
The floor: what any client of this shape has to do, and nothing else.

An I/O thread reads 64 KiB at a time, cuts frames in one loop and decodes them with orjson; a mailbox is handed each
read's messages under one lock; four workers call back.

It looks for no error, no fragment, no control frame, and knows one topic. Nothing here is rtpool's.
"""

from __future__ import annotations

import json
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import orjson
import websocket

from tests.benchmarks.clients.counting import PATIENCE, Counted, arguments, rate, say

READ_SIZE, WORKERS = 65_536, 4


def cut(buffer: bytes) -> tuple[list[bytes], bytes]:
    """The payloads of the whole frames in a buffer, and what is left of it."""
    payloads, position, end = [], 0, len(buffer)
    while position + 2 <= end:
        size, start = buffer[position + 1], position + 2
        if size == 126:
            size, start = int.from_bytes(buffer[start : start + 2], "big"), start + 2
        elif size == 127:
            size, start = int.from_bytes(buffer[start : start + 8], "big"), start + 8
        if start + size > end:
            break
        payloads.append(buffer[start : start + size])
        position = start + size
    return payloads, buffer[position:]


class Mailbox:
    """Messages between the I/O thread and the workers, in the hands of one worker at a time."""

    def __init__(self, callback: Callable[[Any], object]) -> None:
        self.callback = callback
        self.items: deque[Any] = deque()
        self.ready = threading.Condition()
        self.busy = self.over = False

    def put(self, items: list[Any]) -> None:
        """Hand over what one read brought."""
        with self.ready:
            self.items.extend(items)
            if not self.busy:
                self.ready.notify()

    def work_once(self) -> bool:
        """Wait for a batch and call back with it; False when there will be none."""
        with self.ready:
            while not self.over and (self.busy or not self.items):
                self.ready.wait()
            if self.over:
                return False
            self.busy = True
            batch, self.items = self.items, deque()
        for item in batch:
            self.callback(item)
        with self.ready:
            self.busy = False
        return True

    def work(self) -> None:
        """A worker's life."""
        while self.work_once():
            continue


def read(sock: Any, mailbox: Mailbox) -> None:
    """The I/O thread's life: until the stream ends."""
    selector, left, whole = selectors.DefaultSelector(), b"", 0
    selector.register(sock, selectors.EVENT_READ)
    while selector.select():
        data = sock.recv(READ_SIZE)
        if not data:
            return
        left += data  # a large frame comes in many reads: look at it when it may be whole
        if len(left) < whole:
            continue
        payloads, left = cut(left)
        whole = int.from_bytes(left[2:10], "big") + 10 if left[1:2] == b"\x7f" and len(left) >= 10 else 0
        if payloads:
            mailbox.put([message for message in map(orjson.loads, payloads) if message[3] == "broadcast"])


def main() -> None:
    """Receive what is asked for and say the rate."""
    told = arguments()
    counter, over = Counted(told["messages"]), threading.Event()

    def receive(message: Any) -> None:
        if counter.take(message[4]["payload"]["n"]):
            over.set()

    mailbox = Mailbox(receive)
    ws = websocket.create_connection(f"ws://127.0.0.1:{told['port']}/socket/websocket?vsn=2.0.0")
    ws.send(json.dumps(["1", "1", "realtime:bench-0", "phx_join", {"config": {}}]))
    ws.recv()
    threads = [threading.Thread(target=mailbox.work) for _ in range(WORKERS)]
    threads.append(threading.Thread(target=read, args=(ws.sock, mailbox)))
    for thread in threads:
        thread.start()
    go = {"type": "broadcast", "event": "go", "payload": {"messages": told["messages"]}}
    ws.send(json.dumps(["1", "2", "realtime:bench-0", "broadcast", go]))
    assert over.wait(PATIENCE), f"{len(counter.numbers)} messages came"
    assert ws.sock is not None
    ws.sock.shutdown(socket.SHUT_RDWR)  # its end is what the reading thread waits for
    with mailbox.ready:
        mailbox.over = True
        mailbox.ready.notify_all()
    for thread in threads:
        thread.join()
    say({"messages/s": rate([counter])})


if __name__ == "__main__":
    main()

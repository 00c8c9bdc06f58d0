"""
The pieces that no client of this shape can do without, one at a time, on one thread with nobody beside it.

`"piece"` in the arguments says which. ``recv`` and ``into recv`` read from the traffic's socket, the others work on
bytes made here.
"""

from __future__ import annotations

import gc
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import orjson
import websocket

from tests.benchmarks.clients.counting import arguments, say
from tests.benchmarks.clients.prototype import READ_SIZE, Mailbox, cut
from tests.benchmarks.traffic import Plan

#: Each piece is timed so many times, and its best counts: what else runs can only add to it.
REPEATS = 5
WAKES = 2_000


def reads(plan: Plan) -> list[bytes]:
    """The stream of its one topic as reads of 64 KiB bring it."""
    stream = b"".join(plan.frames("2.0.0", 0))
    return [stream[at : at + READ_SIZE] for at in range(0, len(stream), READ_SIZE)]


def cut_all(chunks: list[bytes]) -> Iterator[list[bytes]]:
    """Cut the frames of a stream, read by read."""
    left = b""
    for chunk in chunks:
        payloads, left = cut(left + chunk)
        yield payloads


def exhaust(items: Iterable[object]) -> None:
    """Make every item and keep none: memory would otherwise be what takes the time."""
    deque(items, maxlen=0)


def hand_over(batches: list[list[bytes]]) -> None:
    """What one read brought goes into a mailbox, comes out again and to a callback; the callback does nothing."""
    mailbox = Mailbox(lambda item: None)
    for batch in batches:
        if batch:
            mailbox.put(batch)
            mailbox.work_once()


def wake(count: int) -> None:
    """Two threads wake each other in turn, as often as they can: what one hand-over to a waiting thread costs."""
    there, back = threading.Semaphore(0), threading.Semaphore(0)

    def answer() -> None:
        for _ in range(count):
            there.acquire()
            back.release()

    thread = threading.Thread(target=answer)
    thread.start()
    for _ in range(count):
        there.release()
        back.acquire()
    thread.join()


def received(told: dict[str, Any], clock: Callable[[], float]) -> float:
    """Seconds, by a clock, of reading the whole stream and doing nothing with it."""
    ws = websocket.create_connection(f"ws://127.0.0.1:{told['port']}/socket/websocket?vsn=2.0.0")
    ws.send(json.dumps(["1", "1", "realtime:bench-0", "phx_join", {"config": {}}]))
    ws.recv()
    go = {"type": "broadcast", "event": "go", "payload": {"messages": told["messages"]}}
    ws.send(json.dumps(["1", "2", "realtime:bench-0", "broadcast", go]))
    sock = ws.sock
    assert sock is not None
    left = sum(map(len, Plan(1, told["messages"], told["size"]).frames("2.0.0", 0)))
    left -= len(sock.recv(READ_SIZE))
    started = clock()
    while left:
        left -= len(sock.recv(READ_SIZE))
    seconds = clock() - started
    sock.close()
    return seconds


def best(piece: Callable[[], object]) -> float:
    """The seconds of the fastest of a few runs."""
    seconds = []
    gc.disable()
    for _ in range(REPEATS):
        started = time.perf_counter()
        piece()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def main() -> None:
    """Time one piece and say its nanoseconds a message."""
    told = arguments()
    name, messages = told["piece"], told["messages"]
    if name == "into recv":
        say({"messages/s": messages / received(told, time.perf_counter)})
        return
    if name == "recv":
        seconds = received(told, time.process_time)
    elif name == "wake":
        say({"ns": 1e9 * best(lambda: wake(WAKES)) / (2 * WAKES)})
        return
    else:
        chunks = reads(Plan(1, messages, told["size"]))
        frames = list(cut_all(chunks))
        flat = [payload for payloads in frames for payload in payloads]
        pieces: dict[str, Callable[[], object]] = {
            "cut": lambda: exhaust(cut_all(chunks)),
            "orjson": lambda: exhaust(map(orjson.loads, flat)),
            "json": lambda: exhaust(map(json.loads, flat)),
            "hand-over": lambda: hand_over(frames),
        }
        seconds = best(pieces[name])
    say({"ns/message": 1e9 * seconds / messages})


if __name__ == "__main__":
    main()

"""
`python -m tests.benchmarks [--rounds N] [--messages N] [--json FILE]`: how fast messages are received, against a plain
websocket-client loop with `json.loads`, in turn in one run. The traffic comes from a process of its own that sends
bytes it made before.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import pathlib
import statistics
import threading
import time

import websocket

import rtpool
from tests.benchmarks.traffic import TOPIC, generator


def with_rtpool(port: int, count: int) -> float:
    done, numbers = threading.Event(), []

    def receive(message: rtpool.Broadcast) -> None:
        numbers.append(message.payload["n"])
        if len(numbers) == count:
            done.set()

    with rtpool.RealtimePool(f"http://127.0.0.1:{port}", api_key="k", overflow="block") as pool:
        pool.connect()
        channel = pool.channel("bench").on_broadcast("x", receive)
        started = time.perf_counter()
        channel.subscribe()
        assert done.wait(120)
        seconds = time.perf_counter() - started
    assert numbers == list(range(count)), "every message once and in order"
    return count / seconds


def with_websocket_client(port: int, count: int) -> float:
    ws = websocket.create_connection(f"ws://127.0.0.1:{port}/socket/websocket?vsn=2.0.0")
    numbers = []
    started = time.perf_counter()
    ws.send(json.dumps(["1", "1", TOPIC, "phx_join", {"config": {}}]))
    while len(numbers) < count:
        message = json.loads(ws.recv())
        if message[3] == "broadcast":
            numbers.append(message[4]["payload"]["n"])
    seconds = time.perf_counter() - started
    ws.shutdown()
    assert numbers == list(range(count))
    return count / seconds


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    results = []
    for size in (50, 250, 2_000):
        near, far = multiprocessing.get_context("spawn").Pipe()
        source = multiprocessing.get_context("spawn").Process(
            target=generator, args=(far, arguments.messages, size), daemon=True
        )
        source.start()
        far.close()  # ours; a source that dies is then heard of
        port = near.recv()
        rates: dict[str, list[float]] = {"rtpool": [], "websocket-client": []}
        for _ in range(arguments.rounds):
            rates["rtpool"].append(with_rtpool(port, arguments.messages))
            rates["websocket-client"].append(with_websocket_client(port, arguments.messages))
        source.terminate()
        source.join()
        medians = {name: statistics.median(values) for name, values in rates.items()}
        ratio = medians["rtpool"] / medians["websocket-client"]
        results.append({"case": "receive", "payload_bytes": size, "rates": rates, "ratio": ratio})
        print(
            f"receive, {size:>5} B: rtpool {medians['rtpool']:>8,.0f}/s "
            f"({min(rates['rtpool']):,.0f} to {max(rates['rtpool']):,.0f}), plain websocket-client loop "
            f"{medians['websocket-client']:>8,.0f}/s; ratio {ratio:.2f}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

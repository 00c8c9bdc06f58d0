"""
Sending as one would write it oneself: `json.dumps` and the library's `send`; and a loop that receives.

Over websocket-client, or over the sync client of websockets; `"with"` in the arguments says which.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable
from typing import Any

from tests.benchmarks.clients.counting import arguments, say
from tests.benchmarks.clients.sending import Latencies, message, publishing

TOPIC = "realtime:bench-0"


class Client:
    """One socket that has joined the topic."""

    def __init__(self, told: dict[str, Any]) -> None:
        url = f"ws://127.0.0.1:{told['port']}/realtime/v1/websocket?apikey=k&vsn=2.0.0"
        self._refs = itertools.count(2)
        self._send: Callable[[str], Any]
        self._receive: Callable[[], Any]
        if told["with"] == "websocket-client":
            import websocket

            ws = websocket.create_connection(url)
            self._send, self._receive, self.leave = ws.send, ws.recv, ws.shutdown
        else:
            import websockets.sync.client

            connection = websockets.sync.client.connect(url, compression=None)
            self._send, self._receive, self.leave = connection.send, connection.recv, connection.close_socket
        config = {"broadcast": {"self": True}}
        self._send(json.dumps(["1", "1", TOPIC, "phx_join", {"config": config}]))
        while json.loads(self._receive())[3] != "phx_reply":
            continue

    def broadcast(self, event: str, payload: dict[str, Any]) -> None:
        """Send a broadcast."""
        body = {"type": "broadcast", "event": event, "payload": payload}
        self._send(json.dumps(["1", str(next(self._refs)), TOPIC, "broadcast", body]))

    def heard(self, event: str) -> Any:
        """The payload of the next broadcast of this event."""
        while True:
            received = json.loads(self._receive())
            if received[3] == "broadcast" and received[4]["event"] == event:
                return received[4]["payload"]


def publish(client: Client, messages: int, threads: int) -> dict[str, float]:
    """Send all, and wait until the server has them."""
    client.broadcast("count", {"messages": messages})

    def work(thread: int) -> None:
        for number in range(messages // threads):
            client.broadcast("x", message(number, thread))

    workers = [threading.Thread(target=work, args=(thread,)) for thread in range(1, threads)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    work(0)
    for worker in workers:
        worker.join()
    client.heard("counted")
    seconds = time.perf_counter() - started
    return publishing(messages, seconds, client.heard("checked")["wrong"])


def round_trips(client: Client, latencies: Latencies) -> dict[str, float]:
    """Send each message when its time is there: from this thread one at a time, else from one of its own."""
    if latencies.rate is None:
        over = False
        while not over:
            time.sleep(latencies.pause())
            client.broadcast("x", latencies.sends())
            over = latencies.came(client.heard("x")["n"])
        return latencies.figures()

    def send() -> None:
        for _ in range(latencies.messages):
            time.sleep(max(0.0, latencies.pause()))
            client.broadcast("x", latencies.sends())

    sender = threading.Thread(target=send)
    sender.start()
    while not latencies.came(client.heard("x")["n"]):
        continue
    sender.join()
    return latencies.figures()


def main() -> None:
    """Do what is asked for and say the figures."""
    told = arguments()
    client = Client(told)
    if told["what"] == "publish":
        figures = publish(client, told["messages"], told["threads"])
    else:
        figures = round_trips(client, Latencies(told["messages"], told["rate"]))
    client.leave()
    say(figures)


if __name__ == "__main__":
    main()

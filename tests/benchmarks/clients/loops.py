"""
The loop that one would write oneself: receive a message, `json.loads` it, look at it.

Over websocket-client, or over the sync client of websockets; `"with"` in the arguments says which.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable
from typing import Any

from tests.benchmarks.clients.counting import Counted, arguments, rate, say


def connect(told: dict[str, Any]) -> tuple[Callable[[str], Any], Callable[[], Any], Callable[[], Any]]:
    """Open a socket; how to send, to receive and to leave."""
    url = f"{'wss' if told.get('ca') else 'ws'}://127.0.0.1:{told['port']}/socket/websocket?vsn=2.0.0"
    if told["with"] == "websocket-client":
        import websocket

        ws = websocket.create_connection(
            url, sslopt={"ca_certs": told.get("ca")}, skip_utf8_validation=told.get("trusting", False)
        )
        return ws.send, ws.recv, ws.shutdown
    import websockets.sync.client

    context = ssl.create_default_context(cafile=told["ca"]) if told.get("ca") else None
    connection = websockets.sync.client.connect(url, ssl=context)
    return connection.send, connection.recv, connection.close_socket


def main() -> None:
    """Receive what is asked for and say the rate."""
    told = arguments()
    send, receive, leave = connect(told)
    topics = [f"realtime:bench-{index}" for index in range(told.get("topics", 1))]
    counted = {topic: Counted(told["messages"] // len(topics)) for topic in topics}
    for ref, topic in enumerate(topics, 1):
        send(json.dumps([str(ref), str(ref), topic, "phx_join", {"config": {}}]))
    for _ in topics:
        assert json.loads(receive())[3] == "phx_reply"
    go = {"type": "broadcast", "event": "go", "payload": {"messages": told["messages"]}}
    send(json.dumps(["1", "0", topics[0], "broadcast", go]))
    left = len(topics)
    if told.get("binary"):
        while left:
            data = receive()
            head = 5 + data[1] + data[2]  # kind, sizes and encoding, then topic and event: no metadata here
            if counted[data[5 : 5 + data[1]].decode()].take(int.from_bytes(data[head : head + 8], "big")):
                left -= 1
    while left:
        message = json.loads(receive())
        if message[3] == "broadcast" and counted[message[2]].take(message[4]["payload"]["n"]):
            left -= 1
    leave()
    say({"messages/s": rate(list(counted.values()))})


if __name__ == "__main__":
    main()

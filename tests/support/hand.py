"""A WebSocket and REST calls driven by hand, for looking at the embedded server."""

from __future__ import annotations

import http.client
import json
from types import TracebackType
from typing import Any
from urllib.parse import quote

import websocket

from rtpool.testing import RealtimeServer

TOPIC = "realtime:room"


class Hand:
    """One socket; frames as Python values, binary ones as bytes, a close as ``("close", code)``."""

    def __init__(self, server: RealtimeServer, vsn: str = "2.0.0", key: str | None = None, **headers: str) -> None:
        url = f"ws://127.0.0.1:{server.port}/socket/websocket?apikey={quote(key or server.api_key)}&vsn={vsn}"
        self.ws = websocket.create_connection(url, timeout=10, header=headers)
        self.vsn = vsn

    def __enter__(self) -> Hand:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.ws.shutdown()

    def send(self, join_ref: Any, ref: Any, event: str, payload: Any, topic: str = TOPIC) -> None:
        message: Any = [join_ref, ref, topic, event, payload]
        if self.vsn == "1.0.0":
            message = {"join_ref": join_ref, "ref": ref, "topic": topic, "event": event, "payload": payload}
        self.ws.send(json.dumps(message))

    def receive(self) -> Any:
        opcode, data = self.ws.recv_data()
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            return ("close", int.from_bytes(data[:2], "big"))
        return json.loads(data) if opcode == websocket.ABNF.OPCODE_TEXT else bytes(data)

    def join(self, ref: str = "1", topic: str = TOPIC, token: str | None = None, **config: Any) -> Any:
        """The payload of the reply; whatever comes later is for `receive`."""
        self.send(ref, ref, "phx_join", {"config": config, "access_token": token}, topic)
        reply = self.receive()
        return reply[4] if isinstance(reply, list) else reply["payload"]

    def until_heartbeat(self) -> list[Any]:
        """What comes before the answer to a heartbeat sent now."""
        self.send(None, "hb", "heartbeat", {}, "phoenix")
        received = []
        while True:
            frame = self.receive()
            if isinstance(frame, list) and frame[2] == "phoenix":
                return received
            received.append(frame)


def call(
    server: RealtimeServer, path: str, body: Any = None, *, method: str = "POST", **headers: str
) -> tuple[int, Any, dict[str, str]]:
    """A REST call: status, body, headers; bytes are sent as they are, all else as JSON."""
    fields = {"apikey": server.api_key, "content-type": "application/json"}
    fields.update({name.replace("_", "-"): value for name, value in headers.items()})
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body)
        connection.request(method, path, data, {name: value for name, value in fields.items() if value})
        response = connection.getresponse()
        text = response.read().decode()
    finally:
        connection.close()
    kind = response.headers.get("content-type", "")
    return response.status, json.loads(text) if "json" in kind else text, dict(response.headers)

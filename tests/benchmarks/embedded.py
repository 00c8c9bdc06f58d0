"""
The embedded Realtime server in a process of its own, where what a join or a loss means to a server is to be measured.

    python -m tests.benchmarks.embedded '{"join_latency": 0.002}'

It is told fields of `ServerOptions`.

The broadcast event ``drop`` has it reset every socket.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from rtpool.testing import NO_REPLY, RealtimeServer, ServerConnection

__all__: list[str] = []


def main() -> None:
    """Serve until stdin ends."""
    with RealtimeServer(api_key="k", max_concurrent_users=10_000, **json.loads(sys.argv[1])) as server:

        def on_push(_topic: str, event: str, payload: Any, _connection: ServerConnection) -> Any:
            if event != "broadcast" or payload.get("event") != "drop":
                return None
            for connection in server.connections:
                connection.abort()
            return NO_REPLY

        server.on_push = on_push
        print(json.dumps({"port": server.port, "ca": None}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()

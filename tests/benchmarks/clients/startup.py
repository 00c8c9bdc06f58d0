"""
From the start of a fresh interpreter to the first message: import, connect, join, receive. ``"with"`` says by what.

What is told as ``started`` is the monotonic clock's instant just before this program was started.
"""

from __future__ import annotations

import json
import sys
import time

told = json.loads(sys.argv[1])


def with_rtpool() -> None:
    """A callback on the pool's workers."""
    import threading

    import rtpool

    over = threading.Event()
    with rtpool.RealtimePool(f"http://127.0.0.1:{told['port']}", api_key="k") as pool:
        channel = pool.channel("it").on_broadcast("x", lambda message: (report(), over.set()))
        channel.subscribe()
        channel.send_broadcast("say", {"messages": 1, "size": 250})
        assert over.wait(30)


def with_realtime() -> None:
    """Supabase's own client, in a venv of its own."""
    import asyncio

    from realtime import AsyncRealtimeClient

    async def main() -> None:
        over, joined = asyncio.Event(), asyncio.Event()
        client = AsyncRealtimeClient(f"ws://127.0.0.1:{told['port']}/realtime/v1", "k")
        await client.connect()
        channel = client.channel("it")
        channel.on_broadcast("x", lambda message: (report(), over.set()))
        await channel.subscribe(lambda status, error: joined.set())
        await asyncio.wait_for(joined.wait(), 30)
        await channel.send_broadcast("say", {"messages": 1, "size": 250})
        await asyncio.wait_for(over.wait(), 30)
        await client.close()

    asyncio.run(main())


def with_websocket_client() -> None:
    """The loop one would write oneself."""
    import websocket

    ws = websocket.create_connection(f"ws://127.0.0.1:{told['port']}/socket/websocket?vsn=2.0.0")
    ws.send(json.dumps(["1", "1", "realtime:it", "phx_join", {"config": {}}]))
    json.loads(ws.recv())
    say = {"type": "broadcast", "event": "say", "payload": {"messages": 1, "size": 250}}
    ws.send(json.dumps(["1", "2", "realtime:it", "broadcast", say]))
    assert json.loads(ws.recv())[3] == "broadcast"
    report()
    ws.shutdown()


def report() -> None:
    """The first message is here."""
    print(json.dumps({"ms": (time.monotonic() - told["started"]) * 1_000}), flush=True)


if __name__ == "__main__":
    {"rtpool": with_rtpool, "realtime": with_realtime, "websocket-client": with_websocket_client}[told["with"]]()

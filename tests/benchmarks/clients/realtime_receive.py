"""
Supabase's official Python client receives.

It runs in a venv of its own, so of this package nothing is imported but `counting`, which lies beside it.
"""

from __future__ import annotations

import asyncio
import pathlib
import sys
from typing import Any

from realtime import AsyncRealtimeClient

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from counting import PATIENCE, Counted, arguments, rate, say  # type: ignore[import-not-found]


async def main() -> None:
    """Receive what is asked for and say the rate."""
    told = arguments()
    topics, callbacks = told.get("topics", 1), told.get("channels", 1)
    counted = [Counted(told["messages"] // topics) for _ in range(topics * callbacks)]
    over, joined = asyncio.Semaphore(0), asyncio.Semaphore(0)
    scheme = "wss" if told.get("ca") else "ws"
    client = AsyncRealtimeClient(f"{scheme}://127.0.0.1:{told['port']}/realtime/v1", "k")
    await client.connect()

    def callback(counter: Any) -> Any:
        def receive(message: Any) -> None:
            if counter.take(message["payload"]["n"]):
                over.release()

        return receive

    channels = [client.channel(f"bench-{index}") for index in range(topics)]
    for index, counter in enumerate(counted):
        channels[index % topics].on_broadcast("x", callback(counter))
    for channel in channels:
        await channel.subscribe(lambda status, error: joined.release())
    for _ in channels:
        await asyncio.wait_for(joined.acquire(), 30)
    await channels[0].send_broadcast("go", {"messages": told["messages"]})
    for _ in counted:
        await asyncio.wait_for(over.acquire(), PATIENCE)
    say({"callbacks/s" if "channels" in told else "messages/s": rate(counted)})
    await client.close()


asyncio.run(main())

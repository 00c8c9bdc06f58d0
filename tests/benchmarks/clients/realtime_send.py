"""Supabase's official Python client sends; it runs in an environment of its own, without rtpool."""

from __future__ import annotations

import asyncio
import pathlib
import sys
import time
from typing import Any

from realtime import AsyncRealtimeClient

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from counting import arguments, say  # type: ignore[import-not-found]
from sending import Latencies, message, publishing  # type: ignore[import-not-found]

CONFIG = {
    "config": {
        "broadcast": {"self": True, "ack": False},
        "presence": {"key": "", "enabled": False},
        "private": False,
    }
}


async def publish(channel: Any, messages: int) -> dict[str, float]:
    """Send all, and wait until the server has them."""
    counted, checked, wrong = asyncio.Event(), asyncio.Event(), [""]

    def check(received: Any) -> None:
        wrong[0] = received["payload"]["wrong"]
        checked.set()

    channel.on_broadcast("counted", lambda _: counted.set()).on_broadcast("checked", check)
    await subscribe(channel)
    await channel.send_broadcast("count", {"messages": messages})
    started = time.perf_counter()
    for number in range(messages):
        await channel.send_broadcast("x", message(number))
    await asyncio.wait_for(counted.wait(), 30)
    seconds = time.perf_counter() - started
    await asyncio.wait_for(checked.wait(), 30)
    figures: dict[str, float] = publishing(messages, seconds, wrong[0])
    return figures


async def round_trips(channel: Any, latencies: Any) -> dict[str, float]:
    """Send each message when its time is there."""
    came, over = asyncio.Semaphore(0), asyncio.Event()

    def back(received: Any) -> None:
        if latencies.came(received["payload"]["n"]):
            over.set()
        came.release()

    channel.on_broadcast("x", back)
    await subscribe(channel)
    for _ in range(latencies.messages):
        await asyncio.sleep(max(0.0, latencies.pause()))
        await channel.send_broadcast("x", latencies.sends())
        if latencies.rate is None:
            await asyncio.wait_for(came.acquire(), 10)
    await asyncio.wait_for(over.wait(), 10)
    figures: dict[str, float] = latencies.figures()
    return figures


async def subscribe(channel: Any) -> None:
    """Subscribe and wait for it."""
    joined = asyncio.Event()
    await channel.subscribe(lambda status, error: joined.set())
    await asyncio.wait_for(joined.wait(), 30)


async def main() -> None:
    """Do what is asked for and say the figures."""
    told = arguments()
    client = AsyncRealtimeClient(f"ws://127.0.0.1:{told['port']}/realtime/v1", "k")
    await client.connect()
    channel = client.channel("bench-0", CONFIG)
    if told["what"] == "publish":
        figures = await publish(channel, told["messages"])
    else:
        figures = await round_trips(channel, Latencies(told["messages"], told["rate"]))
    say(figures)
    await client.close()


asyncio.run(main())

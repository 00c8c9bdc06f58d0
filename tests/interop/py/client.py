"""
Drives Supabase's own Python client: commands in on stdin, replies and what its callbacks got out on stdout, one JSON
object a line. ``../driver.py`` is the other end.

Runs in a process and a venv of its own. The client speaks vsn 1 alone, so there are no bytes here.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from realtime import AsyncRealtimeChannel, AsyncRealtimeClient
from realtime.types import RealtimeAcknowledgementStatus

clients: dict[str, AsyncRealtimeClient] = {}
channels: dict[str, AsyncRealtimeChannel] = {}
running: set[asyncio.Task[Any]] = set()


def emit(**message: Any) -> None:
    print(json.dumps(message, default=lambda model: model.model_dump()), flush=True)


class Commands:
    async def connect(self, client: str, url: str, key: str, vsn: str, timeout: float, heartbeat: float | None) -> None:
        clients[client] = AsyncRealtimeClient(url, key, timeout=timeout)  # its heartbeat is never faster than 15 s

    async def channel(self, client: str, channel: str, topic: str, config: dict[str, Any]) -> None:
        channels[channel] = clients[client].channel(topic, {"config": config})

    async def on(self, client: str, channel: str, type: str, filter: dict[str, Any]) -> None:
        target, event = channels[channel], filter.get("event")
        kind = f"presence {event}" if type == "presence" else type

        def heard(*args: Any) -> None:
            if kind in ("presence join", "presence leave"):
                names = ("key", "currentPresences", "newPresences" if event == "join" else "leftPresences")
                args = (dict(zip(names, args, strict=True)),)
            emit(client=client, channel=channel, kind=kind, args=args[0] if args else None)

        if type == "broadcast":
            target.on_broadcast(event, heard)
        elif type == "postgres_changes":
            target.on_postgres_changes(callback=heard, **filter)
        elif type == "system":
            target.on_system(heard)
        else:
            getattr(target, f"on_presence_{event}")(heard)

    async def subscribe(self, client: str, channel: str) -> None:
        def told(status: Any, error: Exception | None) -> None:
            words = None if error is None else str(error)
            emit(client=client, channel=channel, kind="status", status=status.value, error=words)

        start(channels[channel].subscribe(told))  # the test waits for the status it expects

    async def send(self, client: str, channel: str, event: str, payload: Any) -> str:
        target = channels[channel]
        if not target.params["config"]["broadcast"]["ack"]:
            await target.send_broadcast(event, payload)
            return "ok"
        # send_broadcast keeps the acknowledgement to itself; push hands it out.
        push = await target.push("broadcast", {"type": "broadcast", "event": event, "payload": payload})
        answered: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        push.receive(RealtimeAcknowledgementStatus.Ok, lambda _: answered.set_result("ok"))
        push.receive(RealtimeAcknowledgementStatus.Error, lambda _: answered.set_result("error"))
        push.receive(RealtimeAcknowledgementStatus.Timeout, lambda: answered.set_result("timed out"))
        return await answered

    async def http_send(self, client: str, channel: str, event: str, payload: Any) -> bool:
        await channels[channel].http_send(event, payload)
        return True

    async def track(self, client: str, channel: str, payload: dict[str, Any]) -> None:
        await channels[channel].track(payload)

    async def untrack(self, client: str, channel: str) -> None:
        await channels[channel].untrack()

    async def presence_state(self, client: str, channel: str) -> Any:
        return channels[channel].presence_state()

    async def state(self, client: str, channel: str) -> str:
        return channels[channel].state.value

    async def set_auth(self, client: str, token: str) -> None:
        await clients[client].set_auth(token)

    async def unsubscribe(self, client: str, channel: str) -> None:
        await channels[channel].unsubscribe()

    async def disconnect(self, client: str) -> None:
        await clients.pop(client).close()


def start(coroutine: Any) -> None:
    task = asyncio.ensure_future(coroutine)
    running.add(task)
    task.add_done_callback(running.discard)


async def obey(id: int, command: str, **arguments: Any) -> None:
    try:
        emit(reply=id, value=await getattr(Commands(), command)(**arguments))
    except Exception as error:
        emit(reply=id, failure=repr(error))


async def main() -> None:
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        start(obey(**json.loads(line)))


asyncio.run(main())

"""Any Phoenix server: your topics, your events, your join payload. PHOENIX_URL is your socket, ws://host:4000/socket."""

import contextlib
import os
from collections.abc import Iterator

import rtpool


@contextlib.contextmanager
def socket() -> Iterator[str]:
    if "PHOENIX_URL" in os.environ:
        yield os.environ["PHOENIX_URL"]
        return
    from rtpool.testing import PushReply, RealtimeServer

    with RealtimeServer(plain_phoenix=True) as server:
        server.on_push = lambda topic, event, payload, connection: PushReply({"echo": payload})
        yield f"{server.url}/socket"


with socket() as url, rtpool.RealtimePool(url, topic_prefix="", params={"token": "t"}) as pool:
    lobby = pool.channel("room:lobby", params={"nickname": "ann"})
    lobby.on("new_msg", lambda message: print(message.payload))
    lobby.subscribe(timeout=10)
    try:
        print(lobby.push("new_msg", {"body": "hello"}, timeout=5).result())
    except rtpool.PushRefused as error:
        print(error.status, error.response)

"""A script that only sends: one REST call, no socket kept, no thread started."""

from _project import project

import rtpool

with project() as (url, key), rtpool.RealtimePool(url, api_key=key) as sender:
    try:
        sender.broadcast("orders", "created", {"id": 7})
        sender.broadcast_many([{"topic": "orders", "event": "paid", "payload": {"id": n}} for n in range(3)])
    except rtpool.BroadcastRefused as error:
        raise SystemExit(f"HTTP {error.status}: {error.reason}") from None
    print("sent four messages")

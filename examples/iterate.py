"""A loop instead of callbacks: `events()` yields everything a Channel receives."""

from _project import project

import rtpool

with (
    project() as (url, key),
    rtpool.RealtimePool(url, api_key=key) as pool,
    pool.channel("room") as reader,
    pool.channel("room") as writer,
):
    for number in range(5):
        writer.send_broadcast("count", {"n": number})
    first = reader.get(timeout=10)  # one at a time …
    print(first)
    for event in reader.events(timeout=10):  # … or all of them
        if isinstance(event, rtpool.Gap):
            print(f"something may have been lost since {event.lost_from}")
        if isinstance(event, rtpool.Broadcast):
            print(event.event, event.payload)
            if event.payload["n"] == 4:
                break

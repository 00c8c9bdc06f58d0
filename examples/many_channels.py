"""Three hundred topics: the pool fills one socket before it opens the next."""

import threading

from _project import project

import rtpool

TOPICS = 300

with project() as (url, key), rtpool.RealtimePool(url, api_key=key, max_joins_per_second=200) as pool:
    left = threading.Semaphore(0)
    channels = [
        pool.channel(f"car-{number}", receive_own=True).on_broadcast("ping", lambda message: left.release())
        for number in range(TOPICS)
    ]
    for channel in channels:
        channel.subscribe(wait=False)  # all at once; the pool paces the joins
    for channel in channels:
        channel.subscribe(timeout=30)  # already under way: this only waits
    for channel in channels:
        channel.send_broadcast("ping", {"from": channel.topic})
    for _ in channels:
        if not left.acquire(timeout=10):
            raise SystemExit("a message is missing")
    stats = pool.stats()
    print(f"{stats.total_subscriptions} topics over {stats.total_connections} connections:")
    for connection in stats.connection_details:
        print(f"  connection {connection.connection_id}: {connection.joins} joins")

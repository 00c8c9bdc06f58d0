"""Subscribe, send, receive: the whole of it."""

import threading

from _project import project

import rtpool

with project() as (url, key), rtpool.RealtimePool(url, api_key=key) as pool:
    arrived = threading.Event()

    room = pool.channel("room")

    @room.on_broadcast("moved")
    def moved(message: rtpool.Broadcast) -> None:
        print(f"{message.event}: {message.payload}")
        arrived.set()

    room.subscribe(timeout=10)  # returns when messages really flow, or raises

    car = pool.channel("room").subscribe()  # a second handle: the same socket, the same join
    car.send_broadcast("moved", {"lat": 52.5, "lon": 13.4})

    if not arrived.wait(10):
        raise SystemExit("nothing arrived")
    stats = pool.stats()
    print(f"{stats.total_subscriptions} channels, {stats.total_joins} join, {stats.total_connections} connection")

"""Modules that never heard of each other share one socket and one join, through `rtpool.get_pool`."""

import threading

from _project import project

import rtpool

COMPONENTS = ("map", "list", "billing")


class Component:
    """Stands for a module of your application: it knows the URL and the key, and nobody else."""

    def __init__(self, name: str, url: str, key: str) -> None:
        self.name = name
        self.updated = threading.Event()
        self.channel = rtpool.get_pool(url, api_key=key).channel("car-status-changes")
        self.channel.on_broadcast("status", self.update)

    def update(self, message: rtpool.Broadcast) -> None:
        print(f"{self.name}: car {message.payload['car']} is {message.payload['status']}")
        self.updated.set()


with project() as (url, key):
    components = [Component(name, url, key) for name in COMPONENTS]
    threads = [threading.Thread(target=component.channel.subscribe) for component in components]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    pool = rtpool.get_pool(url, api_key=key)
    with pool.channel("car-status-changes") as sender:
        sender.send_broadcast("status", {"car": 7, "status": "rented"})
        if not all(component.updated.wait(10) for component in components):
            raise SystemExit("a component heard nothing")
    stats = pool.stats()
    print(f"{len(components)} components, {stats.total_joins} join, {stats.total_connections} connection")
    pool.close()

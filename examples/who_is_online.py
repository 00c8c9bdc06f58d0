"""Presence: three people in a lobby, seen from each desk; track as often as you like."""

import threading

from _project import project

import rtpool

with project() as (url, key), rtpool.RealtimePool(url, api_key=key) as pool:
    settled = threading.Event()
    people = {name: pool.channel("lobby", presence_key=name) for name in ("ann", "bob", "cid")}

    def look(presence: rtpool.Presence) -> None:
        online = {key: metas[0]["status"] for key, metas in presence.state.items()}
        if online == dict.fromkeys(people, "ready"):
            settled.set()

    people["ann"].on_presence_sync(look)
    for channel in people.values():
        channel.subscribe(timeout=10)
        for status in ("thinking", "typing", "ready"):  # merged as far as the server's budget asks for
            channel.track({"status": status})
    if not settled.wait(10):
        raise SystemExit("somebody is missing")
    print(sorted(people["ann"].presence_state()))

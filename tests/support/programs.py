"""Programs for `run_script`: what a pool may be doing when they end."""

from __future__ import annotations

SUBSCRIBED = 'pool = new_pool()\nchannel = pool.channel("room").on_broadcast("*", print).subscribe()\n'

#: What a pool may be doing when its program ends without close().
OPEN = {
    "subscribed": SUBSCRIBED,
    "many sockets": """
pool = new_pool(max_channels_per_connection=1)
channels = [pool.channel(f"room {n}").subscribe() for n in range(5)]
""",
    "a callback that never returns": """
begun = threading.Event()
def callback(message):
    begun.set()
    forever()
pool = new_pool()
pool.channel("room", receive_own=True).on_broadcast("*", callback).subscribe().send_broadcast("x", {})
begun.wait()
""",
    "a callback in a loop that sleeps": """
begun = threading.Event()
def callback(message):
    begun.set()
    while True:
        time.sleep(0.01)
pool = new_pool()
pool.channel("room", receive_own=True).on_broadcast("*", callback).subscribe().send_broadcast("x", {})
begun.wait()
""",
    "a callback in a loop that does not": """
begun = threading.Event()
def callback(message):
    begun.set()
    while True:
        pass
pool = new_pool()
pool.channel("room", receive_own=True).on_broadcast("*", callback).subscribe().send_broadcast("x", {})
begun.wait()
""",
    "callbacks that catch everything": """
begun = threading.Event()
def callback(message):
    begun.set()
    while True:
        try:
            time.sleep(0.01)
            message.payload["no such key"]
        except BaseException:
            pass
pool = new_pool()
pool.channel("room", receive_own=True).on_broadcast("*", callback).subscribe().send_broadcast("x", {})
begun.wait()
""",
    "full queues": """
pool = new_pool(mailbox_limit=5, overflow="block", num_workers=1)
channel = pool.channel("room", receive_own=True).on_broadcast("*", forever).subscribe()
for number in range(50):
    channel.send_broadcast("x", {"n": number}).result()
while not any(c.paused_by for c in pool._engine.coordinator.connections.all):
    time.sleep(0.005)
""",
    "a thread that reads": """
pool = new_pool()
channel = pool.channel("room").subscribe()
threading.Thread(target=lambda: list(channel.events()), daemon=True).start()
""",
    "a token callable that hangs": """
called = threading.Event()
def token():
    called.set()
    forever()
pool = new_pool(access_token=token)
pool.channel("room").subscribe(wait=False)
called.wait()
""",
    "a look-up of a name that hangs": """
import socket
called = threading.Event()
def look_up(*_, **__):
    called.set()
    forever()
socket.getaddrinfo = look_up
pool = new_pool()
pool.channel("room").subscribe(wait=False)
called.wait()
""",
    "a reconnect strategy that hangs": """
called = threading.Event()
def wait(state):
    called.set()
    forever()
pool = new_pool("http://127.0.0.1:9", reconnect=rtpool.ReconnectPolicy(wait=wait))
pool.channel("room").subscribe(wait=False)
called.wait()
""",
}

#: Ways to end with nothing to be warned of.
CLOSED = {
    "closed": SUBSCRIBED + "assert pool.close()\n",
    "a with block": "with new_pool() as pool:\n    pool.channel('room').subscribe()\n",
    "with blocks that are left by sys.exit": """
with new_pool() as pool, pool.channel("room") as channel:
    ready()
    sys.exit()
""",
    "never used": "pool = new_pool()\nchannel = pool.channel('room').on_broadcast('*', print)\n",
    "closed within a callback": """
pool, done = new_pool(), threading.Event()
def callback(message):
    pool.close()
    done.set()
pool.channel("room", receive_own=True).on_broadcast("*", callback).subscribe().send_broadcast("x", {})
done.wait()
""",
    "get_pool": "pool = rtpool.get_pool(URL, api_key=KEY)\npool.channel('room').subscribe()\n",
    "closed by the program's own exit handler": SUBSCRIBED + "atexit.register(pool.close)\n",
}

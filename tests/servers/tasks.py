"""A Celery application whose tasks use a pool of the process and a Channel of the module."""

from __future__ import annotations

import os
import pathlib
import time

from celery.signals import worker_process_shutdown

from tests.servers import guest
from tests.servers.broker import make_app

app = make_app(pathlib.Path(os.environ["GUEST_FOLDER"]))
if os.environ.get("GUEST_AT_IMPORT"):
    guest.channel.subscribe()


@worker_process_shutdown.connect
def close(**_: object) -> None:
    """Say goodbye: prefork's children end without the interpreter's own ending."""
    guest.pool.close()


@app.task
def subscribe() -> int:
    """Have the process's guest in the room; long enough for the other process to take such a task as well."""
    guest.channel.subscribe()
    time.sleep(0.5)
    return os.getpid()


@app.task
def say(number: int) -> int:
    """Broadcast a word by the process's own connection."""
    with guest.pool.channel("room") as channel:
        channel.send_broadcast("word", {"number": number}).result(10)
    return os.getpid()

"""A Celery application whose tasks use a pool of the process and a Channel of the module."""

from __future__ import annotations

import os
import pathlib

from celery import Celery

from tests.servers import guest

folder = pathlib.Path(os.environ["GUEST_FOLDER"])
for name in ("queue", "control", "results"):
    (folder / name).mkdir(exist_ok=True)
app = Celery("tests.servers.tasks", broker="filesystem://", backend=f"file://{folder}/results")
app.conf.update(
    broker_transport_options={
        "data_folder_in": f"{folder}/queue",
        "data_folder_out": f"{folder}/queue",
        "control_folder": f"{folder}/control",
        "store_processed": False,
    },
    worker_hijack_root_logger=False,
)
if os.environ.get("GUEST_AT_IMPORT"):
    guest.channel.subscribe()


@app.task
def subscribe() -> int:
    """Have the process's guest in the room."""
    guest.channel.subscribe()
    return os.getpid()


@app.task
def say(number: int) -> int:
    """Broadcast a word by the process's own connection, acknowledged."""
    channel = guest.pool.channel("room", ack=True)
    with channel:
        channel.send_broadcast("word", {"number": number}).result(10)
    return os.getpid()

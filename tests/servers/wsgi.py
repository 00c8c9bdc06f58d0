"""A Flask application with a guest that subscribes when it is imported, or at a process's first request."""

from __future__ import annotations

import os

from flask import Flask

from tests.servers import guest

app = Flask(__name__)
if os.environ.get("GUEST_AT_IMPORT"):
    guest.channel.subscribe()


@app.get("/")
def index() -> dict[str, int]:
    guest.channel.subscribe()
    return {"pid": os.getpid()}

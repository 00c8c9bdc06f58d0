"""
A Flask application with rtpool's extension: callbacks declared at import, request-scoped Channels and streams.

Served in another process than the test's, which says by the environment where its server is and what is wanted.
"""

from __future__ import annotations

import os
import sys
import threading
import time

from flask import Flask, Response, request

import rtpool
from rtpool.flask import Realtime

app = Flask(__name__)
app.config.update(
    SECRET_KEY="by which workers know each other's events again",
    RTPOOL_URL=os.environ["GUEST_URL"],
    RTPOOL_API_KEY=os.environ["GUEST_KEY"],
    RTPOOL_BASE_DELAY=0.05,
    RTPOOL_MAX_JOINS_PER_SECOND=10_000,
    RTPOOL_MAX_JOINS_IN_FLIGHT=100,
    RTPOOL_STABLE_AFTER=0.0,
    RTPOOL_MAX_STREAMS=1_000,
)
realtime = Realtime(app)

#: What was heard since this process began, and why there may be more.
heard: list[int] = []
gaps: list[str] = []


def _begin_anew() -> None:
    heard.clear()
    gaps.clear()


os.register_at_fork(after_in_child=_begin_anew)


@realtime.on_broadcast("room", "word")
def hear(message: rtpool.Broadcast) -> None:
    heard.append(message.payload["number"])  # type: ignore[index]


@realtime.on_gap("room")
def miss(gap: rtpool.Gap) -> None:
    gaps.append(gap.cause)


@realtime.on_broadcast("room", "who")
def answer(message: rtpool.Broadcast) -> None:
    with realtime.channel("room") as channel:
        channel.send_broadcast(
            "here",
            {
                "call": message.payload["call"],  # type: ignore[index]
                "pid": os.getpid(),
                "parent": os.getppid(),
                "heard": heard,
                "gaps": gaps,
                "threads": sum(t.name.startswith("rtpool-") for t in threading.enumerate()),
            },
        ).result(10)


@app.get("/")
def index() -> dict[str, int]:
    """Touches nothing of rtpool's."""
    return {"pid": os.getpid()}


@app.get("/idle")
def idle() -> dict[str, int]:
    """Answers when the worker's main thread waits for connections, and holds no lock of its thread pool any more."""
    main, deadline = threading.main_thread().ident, time.monotonic() + 15
    while (frame := sys._current_frames().get(main or 0)) is not None and frame.f_code.co_name != "select":
        assert time.monotonic() < deadline, frame
        time.sleep(0.005)
    return {"pid": os.getpid()}


@app.get("/stats")
def stats() -> dict[str, int]:
    """What this process's pool has."""
    told = realtime.pool.stats()
    return {"pid": os.getpid(), "channels": told.total_subscriptions, "joins": told.total_joins}


@app.get("/visit")
def visit() -> dict[str, float]:
    """
    A Channel of this request: ``topic``, ``left=with`` or by the request's end; says how long it took, in milliseconds.
    """
    began = time.perf_counter()
    channel = realtime.channel(request.args["topic"])
    if request.args.get("left") == "with":
        with channel:
            pass
    else:
        channel.subscribe()
    return {"pid": os.getpid(), "ms": 1000 * (time.perf_counter() - began)}


@app.get("/stream")
def stream() -> Response:
    """A browser's; says by a header which process has it."""
    response = realtime.stream(request.args.get("topic", "cars"))
    response.headers["X-Process"] = str(os.getpid())
    return response


if os.environ.get("GUEST_AT_IMPORT"):
    with app.app_context():
        realtime.start(wait=True)

"""
What the programs of this folder's tests have in common: a pool of the process, and a Channel that answers roll-calls.

Imported in another process than the test's, which says by the environment where its server is.
"""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Callable

import rtpool

_authority = os.environ.get("GUEST_CA")

pool = rtpool.get_pool(
    os.environ["GUEST_URL"],
    api_key=os.environ["GUEST_KEY"],
    after_fork=os.environ.get("GUEST_AFTER_FORK", "close"),
    ssl_context=ssl.create_default_context(cafile=_authority) if _authority else None,
    base_delay=0.05,
    max_joins_per_second=10_000,
    stable_after=0.0,
)
channel = pool.channel("room")
#: What was heard since this process began, and why there may be more.
heard: list[int] = []
gaps: list[str] = []


def _begin_anew() -> None:
    heard.clear()
    gaps.clear()


os.register_at_fork(after_in_child=_begin_anew)


@channel.on_broadcast("word")
def hear(message: rtpool.Broadcast) -> None:
    heard.append(message.payload["number"])  # type: ignore[index]


@channel.on_gap
def miss(gap: rtpool.Gap) -> None:
    gaps.append(gap.cause)


@channel.on_broadcast("who")
def answer(message: rtpool.Broadcast) -> None:
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
    )


def wait_until(predicate: Callable[[], object], seconds: float = 15.0) -> None:
    """As the tests' own; here, because a program imports as little as it can."""
    deadline = time.monotonic() + seconds
    while not predicate():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)

"""What TLS costs a receiver: the same messages from the same server, encrypted and plain."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from tests.benchmarks.model import Case, Figures, Goal, Participant, Place, Row, Settings
from tests.benchmarks.peers import receiver
from tests.benchmarks.processes import server

__all__ = ["CASE"]

MESSAGES = 150_000
SHARES = {
    "rtpool": 1.0,
    "realtime": 0.2,
    "realtime-js": 1.5,
    "websocket-client, no UTF-8 check": 0.4,
    "websockets": 0.5,
}


@contextlib.contextmanager
def both(plan: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A server with TLS and one without."""
    with server("traffic", plan) as plain, server("traffic", {**plan, "tls": True}) as encrypted:
        yield {"plain": plain, "TLS": encrypted}


def _of(kind: str, name: str, messages: int) -> Participant:
    inner = receiver(name, messages=messages)

    def measure(served: Any) -> Figures:
        return inner.measure(served[kind])

    return Participant(f"{name}, {kind}", measure, inner.missing)


def rows(settings: Settings) -> Sequence[Row]:
    """One row, for everybody's two ways to be compared."""
    participants = [
        _of(kind, name, settings.messages(MESSAGES * share))
        for name, share in SHARES.items()
        for kind in ("TLS", "plain")
    ]
    plan = {"topics": 1, "messages": settings.messages(MESSAGES * max(SHARES.values())), "size": 250}
    return [Row("250 B", participants, partial(both, plan))]


GOAL = Goal(
    text="at least 0.6 x plain text",
    of=Place("250 B", "rtpool, TLS", "messages/s"),
    over=Place("250 B", "rtpool, plain", "messages/s"),
    at_least=0.6,
)
CASE = Case("tls", "receive over TLS beside plain text", rows, (GOAL,))

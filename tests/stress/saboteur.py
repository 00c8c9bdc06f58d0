"""
What befalls the server in a soak: one fault after the other at random, most of them undone a little later.

Without what makes a client wait for ten seconds and more, such as HTTP 429: it would do little else.
"""

from __future__ import annotations

import collections
import heapq
import itertools
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from rtpool.testing import NO_REPLY, JoinRefusal, RealtimeServer, Refusal, ServerConnection, faults
from rtpool.testing.refusals import Handshake, Join, System

__all__ = ["Saboteur"]

CLOSE_CODES = [1000, 1001, 1008, 1009, 1011, 1012, 1013, 4000]
#: Faults that need nothing but to be undone, and when they strike; None is at once.
KIT: dict[str, tuple[faults.Fault, faults.Moment | None]] = {
    "reset amid a frame": (faults.Reset(after=10), faults.Sending("broadcast")),
    "end amid a frame": (faults.Finish(after=3), faults.Sending("phx_reply")),
    "reset amid the upgrade": (faults.Reset(after=40), faults.Accepting()),
    "garbage": (faults.GarbageText(), None),
    "dribble": (faults.Dribble(size=7), None),
    "bad UTF-8": (faults.BadUtf8(), None),
    "huge frame": (faults.HugeFrame(), None),
    "masked frame": (faults.MaskedFrame(), None),
    "oversize ping": (faults.OversizePing(), None),
    "black hole": (faults.BlackHole(), None),
    "late reply": (faults.Delay(0.4), faults.Replying()),
    "lost reply": (faults.Drop(), faults.Replying()),
    "two replies": (faults.Duplicate(), faults.Replying()),
    "stale reply": (faults.StaleJoinRef(), faults.Replying()),
    "short reply": (faults.WrongArity(), faults.Replying()),
}


class Saboteur:
    """
    Args:
        topics: that faults of single channels strike.
    """

    def __init__(self, server: RealtimeServer, chance: random.Random, topics: list[str]) -> None:
        self._server, self._chance, self._topics = server, chance, topics
        self._undo: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self.counts: collections.Counter[str] = collections.Counter()
        self.escaped: list[BaseException] = []
        self._faults: dict[str, Callable[[], object]] = {
            "reset": lambda: self._one(lambda c: c.abort()),
            "close": lambda: self._one(lambda c: c.close(chance.choice(CLOSE_CODES))),
            "freeze": lambda: self._one(self._freeze),
            "pause reading": lambda: self._one(self._pause_reading),
            "refuse upgrades": self._refuse_upgrades,
            "refuse joins": self._refuse_joins,
            "swallow joins": self._swallow_joins,
            "crash a channel": lambda: server.crash_channel(self._topic()),
            "end a channel": lambda: server.shut_down(
                self._topic(), chance.choice([System.QUERY_CANCELED(), System.INITIALIZING()])
            ),
            "expire tokens": lambda: server.expire_tokens(chance.choice([None, self._topic()])),
            "disconnect all": server.disconnect_all,
            "drain": server.drain,
            "restart": self._restart,
            **{name: partial(self._inject, *fault) for name, fault in KIT.items()},
        }

    def run(self, until: float) -> None:
        """Strike until then."""
        try:
            while (now := time.monotonic()) < until:
                while self._undo and self._undo[0][0] <= now:
                    heapq.heappop(self._undo)[2]()
                name = self._chance.choice(list(self._faults))
                self.counts[name] += 1
                self._faults[name]()
                threading.Event().wait(self._chance.uniform(0.05, 0.5))
        except BaseException as error:
            self.escaped.append(error)

    def make_peace(self) -> None:
        """Undo all that is not undone, and start the server afresh: nothing of its troubles remains."""
        while self._undo:
            heapq.heappop(self._undo)[2]()
        self._server.on_connect = self._server.on_join = None
        self._server.close()
        self._server.start()

    def _later(self, most: float, undo: Callable[[], object]) -> None:
        at = time.monotonic() + self._chance.uniform(0.0, most)
        heapq.heappush(self._undo, (at, next(self._numbers), undo))

    def _topic(self) -> str:
        return self._chance.choice(self._topics)

    def _one(self, strike: Callable[[ServerConnection], object]) -> None:
        connections = self._server.connections
        if connections:
            strike(self._chance.choice(connections))

    def _freeze(self, connection: ServerConnection) -> None:
        connection.freeze()
        self._later(2.5, connection.thaw)

    def _pause_reading(self, connection: ServerConnection) -> None:
        connection.pause_reading()
        self._later(1.0, connection.resume_reading)

    def _refuse_upgrades(self) -> None:
        refusals: list[Callable[[], Refusal]] = [
            Handshake.FORBIDDEN,
            Handshake.CONNECT_ERROR,
            Handshake.TOKEN_EXPIRED,
            lambda: Refusal(503, headers={"retry-after": "1"}),
            lambda: Refusal(502, "<html>"),
        ]
        refuse = self._chance.choice(refusals)
        self._server.on_connect = lambda request: refuse()
        self._later(1.0, lambda: setattr(self._server, "on_connect", None))

    def _refuse_joins(self) -> None:
        reasons = [Join.INITIALIZING, Join.UNKNOWN, Join.RESTARTING, Join.UNABLE_TO_CONNECT, Join.NO_JWT, Join.CRASHED]
        refuse, part = self._chance.choice(reasons), self._chance.choice([0.2, 1.0])

        def on_join(topic: str, payload: Any, connection: ServerConnection) -> JoinRefusal | None:
            return refuse() if self._chance.random() < part else None

        self._server.on_join = on_join
        self._later(1.0, lambda: setattr(self._server, "on_join", None))

    def _swallow_joins(self) -> None:
        self._server.on_join = lambda *_: NO_REPLY if self._chance.random() < 0.5 else None
        self._later(1.0, lambda: setattr(self._server, "on_join", None))

    def _inject(self, fault: faults.Fault, on: faults.Moment | None) -> None:
        self._later(1.5, self._server.inject(fault, on=on, times=self._chance.randint(1, 3)).undo)

    def _restart(self) -> None:
        self._server.close()
        threading.Event().wait(self._chance.choice([0.0, 0.0, 0.5, 1.5]))
        self._server.start()

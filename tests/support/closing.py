"""Who closes a pool, on which stage, and what has to be true then: the close matrix."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import threading
import weakref
from collections.abc import Callable

import rtpool
from rtpool.pool import CLOSE_TIMEOUT
from rtpool.testing import RealtimeServer
from tests.support.stages import PLACES, STUCK, Cell, Closed, Stage, pool_threads
from tests.support.wait import CAP, wait_until

__all__ = ["CALLERS", "Outsider", "cells_of", "play"]

# Who closes it


def alone(stage: Stage, outsider: Outsider) -> list[Closed]:
    return [stage.close()]


def other_thread(stage: Stage, outsider: Outsider) -> list[Closed]:
    thread = threading.Thread(target=lambda: stage.closed(stage.close()))
    thread.start()
    thread.join(CAP)
    return stage.closed.wait(1)


def called_back(stage: Stage, outsider: Outsider) -> list[Closed]:
    stage.go.set()
    return stage.closed.wait(1)


def twice(stage: Stage, outsider: Outsider) -> list[Closed]:
    return [stage.close(), stage.close()]


def eight(stage: Stage, outsider: Outsider) -> list[Closed]:
    barrier = threading.Barrier(8)

    def close() -> None:
        barrier.wait(CAP)
        stage.closed(stage.close())

    threads = [threading.Thread(target=close) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(CAP)
    return stage.closed.wait(8)


class Outsider:
    """Another pool, whose callbacks close pools."""

    def __init__(self, server: RealtimeServer) -> None:
        self._server = server
        self._job: Callable[[], object] = lambda: None
        self.pool = rtpool.RealtimePool(server.url, api_key=server.api_key)
        self.channel = self.pool.channel("outside").on_broadcast("*", lambda message: self._job()).subscribe()

    def do(self, job: Callable[[], object]) -> None:
        self._job = job
        self._server.broadcast("outside", "x", {})

    def forget(self) -> None:
        self._job = lambda: None


def from_outside(stage: Stage, outsider: Outsider) -> list[Closed]:
    outsider.do(lambda: stage.closed(stage.close()))
    closed = stage.closed.wait(1)
    outsider.forget()
    return closed


CALLERS: dict[str, Callable[[Stage, Outsider], list[Closed]]] = {
    "the main thread": alone,
    "another thread": other_thread,
    "a callback": called_back,
    "a status listener": called_back,
    "a push's callback": called_back,
    "twice in a row": twice,
    "eight threads": eight,
    "another pool's callback": from_outside,
}


def cells_of(place: str) -> list[Cell]:
    """Every cell of a place that makes sense."""
    where = PLACES[place]
    cells = []
    for caller in CALLERS:
        if caller == "a status listener" and not where.starts:
            continue
        if caller in ("a callback", "a push's callback") and not where.talks:
            continue
        for stuck in STUCK:
            if stuck == "a silent peer" and not where.is_open:
                continue
            if stuck in ("a full send buffer", "a full mailbox that blocks") and not (where.is_open and where.talks):
                continue
            # Without a Channel only the pool's listeners can be stuck, which run one after the other.
            listens = where.starts and caller != "a status listener"
            if stuck.startswith("a callback") and not (where.talks or listens):
                continue
            cells.append(Cell(place, caller, stuck))
    return cells


# Playing a cell

#: Seconds beyond its timeout within which a close returns on a machine that is busy.
BUSY = 1.0


def play(
    server: RealtimeServer, outsider: Outsider, cell: Cell, *, hasty: bool = True, timeout: float | None = None
) -> float:
    """
    Bring a pool there, close it, look at what that did and what is left.

    Args:
        outsider: has a connection of its own to the server; nobody else has one.
        hasty: a pool that cannot stop, and one whose peer does not answer, get little time in place of the default.
        timeout: what every pool gets instead.

    Returns:
        The seconds of the longest close.
    """
    descriptors, stage = len(os.listdir("/proc/self/fd")), Stage(server, cell)
    if cell.stuck == "a full mailbox that blocks":
        stage.options.update(overflow="block", mailbox_limit=5)
    with stage.cleanup:
        PLACES[cell.place].enter(stage)
        STUCK[cell.stuck](stage)
        if timeout is not None:
            stage.timeout = timeout
        elif hasty:
            stage.timeout = 0.1 if stage.hang else 1.0 if stage.slow else None
        stage.log.clear()
        closed = CALLERS[cell.caller](stage, outsider)
        judge(stage, closed)
        seconds = max(each.seconds for each in closed)
    nothing_is_left(stage)
    watched = [weakref.ref(each) for each in (stage.pool, stage.pool._engine, *stage.connections)]
    stage.__dict__.clear()
    wait_until(lambda: gc.collect() is not None and not any(each() for each in watched), "references are left")
    wait_until(lambda: len(server.connections) == 1, "the server's own sockets end")
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors, "descriptors are left")
    return seconds


def judge(stage: Stage, closed: list[Closed]) -> None:
    """Whether every close was in time, and right about what it did."""
    assert closed
    named = {name for line in stage.log for name in re.findall(r"thread (\S+) did not stop", line)}
    allowed = CLOSE_TIMEOUT if stage.timeout is None else stage.timeout
    for each in closed:
        assert each.seconds < allowed + BUSY, f"{each} took longer than {allowed} s"
        assert not (each.stopped and stage.hang), f"{each}, named: {named}"
        # In less time than a busy machine takes, what nothing holds up may not have come to its end; then it is named.
        assert each.stopped or stage.hang or allowed < BUSY, f"{each}, named: {named}"
        assert each.running <= (set() if each.stopped else named), f"{each}, named: {named}"
    for kind in stage.hang:
        assert any(f"-{kind}-" in name for name in named), f"no {kind} among {named}"


def nothing_is_left(stage: Stage) -> None:
    """What was stuck has been let go of: now everything ends."""
    for thread in stage.threads:
        thread.join(CAP)
        assert not thread.is_alive(), "a caller was not told"
    assert not stage.escaped
    wait_until(lambda: not pool_threads(stage.pool), f"threads are left: {pool_threads(stage.pool)}")
    loop = stage.pool._engine.loop
    assert not loop._timers
    assert not loop.pollables
    assert not loop._inbox
    for push in stage.pushes:
        assert push.done(), f"{push} has no outcome"
        with contextlib.suppress(rtpool.RtpoolError):  # nothing else
            push.result(0)

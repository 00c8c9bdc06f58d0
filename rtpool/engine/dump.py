"""
All that a pool knows of itself, as text or JSON, for whoever has to find out what is wrong with it.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from types import FrameType
from typing import Any

from rtpool.engine.engine import Engine
from rtpool.engine.health import health_of
from rtpool.engine.snapshot import stats_of
from rtpool.engine.threads import look_at_frames

__all__ = ["dump_of"]

#: Frames of a thread's stack that are shown, the innermost.
FRAMES = 40


def dump_of(engine: Engine, *, as_json: bool = False) -> str:
    """
    What `RealtimePool.debug_dump` returns.

    From any thread and signal handler: it takes no lock, which the thread it interrupts may hold. What cannot be had
    leaves out nothing else: the pool may be in the middle of anything.
    """
    recorder = engine.logs.recorder
    now = datetime.now(timezone.utc)
    found: dict[str, Any] = {
        "pool": engine.name,
        "url": engine.endpoint.url,
        "process": os.getpid(),
        "at": now.isoformat(),
        "monotonic": time.monotonic(),
        "health": _tried(lambda: health_of(engine).as_dict()),
        "stats": _tried(lambda: stats_of(engine).as_dict()),
        "entries": _tried(lambda: [] if recorder is None else recorder.entries()),
        "threads": _tried(lambda: look_at_frames(lambda frames: _stacks(engine, frames))),
    }
    return engine.logs.hide(_as_json(found) if as_json else _as_text(found, recorder is None))


def _tried(look: Callable[[], Any]) -> Any:
    try:
        return look()
    except Exception as error:
        return f"could not be had: {error!r}"


def _stacks(engine: Engine, frames: Mapping[int, FrameType]) -> dict[str, list[str]]:
    stacks = {}
    for thread in engine.threads:
        frame = frames.get(thread.ident) if thread.ident is not None else None
        if frame is not None and not getattr(thread, "over", False):  # is_alive() takes a lock
            stacks[thread.name] = "".join(traceback.format_stack(frame)[-FRAMES:]).rstrip().split("\n")
    return stacks


def _as_json(found: dict[str, Any]) -> str:
    entries = found["entries"]
    if isinstance(entries, list):
        found = {**found, "entries": [entry.as_dict() for entry in entries]}
    return json.dumps(found, default=str)


def _as_text(found: dict[str, Any], off: bool) -> str:
    head = "rtpool pool {pool} of {url}, process {process}, at {at}, monotonic {monotonic:.3f}".format(**found)
    lines = [head, "", "health", *_table(found["health"]), "", "stats", *_table(found["stats"]), ""]
    entries, threads = found["entries"], found["threads"]
    if isinstance(entries, str):
        lines += [f"entries {entries}"]
    else:
        lines += ["entries: the recorder is off" if off else f"entries, the last {len(entries)}"]
        lines += [f"  {entry}" for entry in entries]
    if isinstance(threads, str):
        lines += ["", f"threads {threads}"]
    else:
        for name, stack in threads.items():
            lines += ["", f"thread {name}", *stack]
        lines += [] if threads else ["", "no threads"]
    return "\n".join(lines) + "\n"


def _table(values: Any) -> list[str]:
    if not isinstance(values, dict):
        return [f"  {values}"]
    lines = []
    for name, value in values.items():
        rows = value if isinstance(value, list) and value and isinstance(value[0], dict) else None
        if rows is None:
            lines.append(f"  {name} {value}")
        else:
            lines += [f"  {name}"]
            lines += ["    " + " ".join(f"{key}={entry!r}" for key, entry in row.items()) for row in rows]
    return lines

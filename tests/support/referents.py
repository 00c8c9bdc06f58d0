"""What a thread holds: by what path, if any, an object can be reached from it."""

from __future__ import annotations

import gc
import sys
import threading
from collections import deque
from types import FrameType, ModuleType
from typing import Any


def path_from(thread: threading.Thread, target: object) -> list[str] | None:
    """
    The types of the objects that lead from a running thread, its frames and their locals, to `target`, by strong
    references alone; None when there is no way. What is global belongs to no thread, and is not looked through.
    """
    roots: list[Any] = [thread]
    frame: FrameType | None = sys._current_frames()[thread.ident or 0]
    while frame is not None:
        roots += [value for value in frame.f_locals.values() if value is not None]
        frame = frame.f_back
    before: dict[int, tuple[Any, int | None]] = {id(root): (root, None) for root in roots}
    queue = deque(roots)
    while queue:
        found = queue.popleft()
        if found is target:
            return _path(before, found)
        for next_ in gc.get_referents(found):
            if id(next_) not in before and not _is_global(next_):
                before[id(next_)] = next_, id(found)
                queue.append(next_)
    return None


def _path(before: dict[int, tuple[Any, int | None]], found: Any) -> list[str]:
    path: list[str] = []
    at: int | None = id(found)
    while at is not None:
        thing, at = before[at]
        path.insert(0, f"{type(thing).__module__}.{type(thing).__qualname__}")
    return path


def _is_global(thing: object) -> bool:
    if isinstance(thing, dict):
        return "__name__" in thing and "__builtins__" in thing
    return isinstance(thing, (ModuleType, type))

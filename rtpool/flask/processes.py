"""
An app's processes, as others of the same user find them: each serves its pool at a socket whose name tells whose it is.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

from rtpool.errors import RtpoolError

if TYPE_CHECKING:
    from flask import Flask

    from rtpool.debug.serving import DebugServer
    from rtpool.flask.state import AppState
    from rtpool.pool import RealtimePool

__all__ = ["Served", "pictures", "prefix_of", "wanted"]


def prefix_of(app: Flask) -> str:
    """
    How the names of its sockets begin: the same for every process that serves this app from this folder, whether
    gunicorn, ``flask run`` or Python itself started it.
    """
    whose = hashlib.sha256(f"{app.name}\0{os.path.realpath(app.root_path)}".encode()).hexdigest()
    return f"flask-{whose[:12]}-"


def wanted(state: AppState) -> bool:
    """Whether this process is to be looked at."""
    chosen = state.settings.serve_debug
    return state.app.debug if chosen is None else chosen


class Served:
    """
    Serves an app's pool to other processes of the same user, where the app's settings want that.

    Thread-safety: every method may be called from any thread.
    """

    def __init__(self) -> None:
        self._server: tuple[int, DebugServer | None] | None = None  # replaced whole

    def serve(self, state: AppState, pool: RealtimePool) -> None:
        """
        Serve a pool, once in each process: to be called again costs nothing, and in a forked child serves the child's.
        What the system does not allow is told to the app's log; the app goes on.
        """
        from rtpool.debug.serving import serve
        from rtpool.debug.sockets import default_directory, make_directory

        pid, before = os.getpid(), self._server
        if not wanted(state) or (before is not None and before[0] == pid and not (before[1] and before[1].closed)):
            return
        self._server = (pid, None)  # whatever comes of it, it is not tried at each request
        try:
            directory = default_directory()
            make_directory(directory)
            name = f"{prefix_of(state.app)}{pid}-{pool._engine.name}.sock"
            self._server = (pid, serve(pool, os.path.join(directory, name), allow_commands=False))
        except RtpoolError as error:
            state.app.logger.warning("rtpool: other processes cannot look at the pool of this one: %s", error)


def pictures(app: Flask) -> list[dict[str, Any]]:
    """
    What the processes of an app tell of their pools, the lowest process number first; those that end meanwhile are left
    out. Each is what `rtpool.debug.serving` answers to ``stats``, and its ``path``.
    """
    from rtpool.debug.remote import Remote
    from rtpool.debug.sockets import default_directory, living_sockets

    prefix, found = prefix_of(app), []
    for path in living_sockets(default_directory()):
        if not os.path.basename(path).startswith(prefix):
            continue
        try:
            with Remote(path) as remote:
                found.append({"path": path, **remote.ask("stats")})
        except RtpoolError as error:
            found.append({"path": path, "error": str(error)})
    return sorted(found, key=lambda told: int(told.get("pid", 0)))

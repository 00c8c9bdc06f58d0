"""
An app's processes, as others of the same user find them: each serves its pool at a socket whose name tells whose it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from typing import TYPE_CHECKING, Any

from rtpool.errors import RtpoolError

if TYPE_CHECKING:
    from flask import Flask

    from rtpool.debug.serving import DebugServer
    from rtpool.pool import RealtimePool

__all__ = ["pictures", "prefix_of", "serve"]

#: Seconds to wait for the answers of all processes together.
ASK_SECONDS = 10.0


def prefix_of(app: Flask) -> str:
    """
    How the names of its sockets begin: the same for every process that serves this app from this folder, whether
    gunicorn, ``flask run`` or Python itself started it.
    """
    whose = hashlib.sha256(f"{app.name}\0{os.path.realpath(app.root_path)}".encode()).hexdigest()
    return f"flask-{whose[:12]}-"


def serve(app: Flask, pool: RealtimePool) -> DebugServer:
    """
    Let others of the same user look at the pool of this process, under a name by which they know whose it is.

    Raises:
        RtpoolError: the system does not allow it.
    """
    from rtpool.debug.sockets import default_directory, make_directory  # not before it is asked for

    directory = default_directory()
    make_directory(directory)
    return pool.serve_debug(os.path.join(directory, f"{prefix_of(app)}{os.getpid()}-{pool._engine.name}.sock"))


def pictures(app: Flask) -> list[dict[str, Any]]:
    """
    What the processes of an app tell of their pools, the lowest process number first; those that end meanwhile are left
    out. Each is what `rtpool.debug.serving` answers to ``stats``, and its ``path``.
    """
    from rtpool.debug.remote import Remote, ask_all
    from rtpool.debug.sockets import default_directory, living_sockets

    prefix, remotes = prefix_of(app), {}
    found: list[dict[str, Any]] = []
    with contextlib.ExitStack() as opened:
        for path in living_sockets(default_directory()):
            if os.path.basename(path).startswith(prefix):
                try:
                    remotes[path] = opened.enter_context(Remote(path))
                except RtpoolError as error:
                    found.append({"path": path, "error": str(error)})
        for path, answer in zip(remotes, ask_all(list(remotes.values()), "stats", ASK_SECONDS), strict=True):
            found.append({"path": path, **({"error": str(answer)} if isinstance(answer, RtpoolError) else answer)})
    return sorted(found, key=lambda told: int(told.get("pid", 0)))

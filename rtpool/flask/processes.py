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
    from rtpool.pool import RealtimePool

__all__ = ["pictures", "prefix_of", "serve"]


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

"""
What is going on in a pool: the half of a `RealtimePool` that tells.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TextIO, cast

from rtpool.checks import check_type
from rtpool.engine.dump import dump_of
from rtpool.engine.engine import Engine
from rtpool.engine.health import health_of
from rtpool.engine.snapshot import stats_of
from rtpool.errors import InvalidType
from rtpool.stats import Health, PoolStats

if TYPE_CHECKING:
    from rtpool.debug.serving import DebugServer
    from rtpool.pool import RealtimePool

__all__ = ["Insight"]


class Insight:
    """
    What a pool tells of itself. Users meet it as `RealtimePool` only.

    Thread-safety: every method may be called from any thread, and waits for nothing.
    """

    _engine: Engine

    def stats(self) -> PoolStats:
        """
        A snapshot. Numbers of different threads may be a moment apart.
        """
        return stats_of(self._engine)

    def health(self) -> Health:
        """
        Whether the pool does what it was asked to; for probes. Costs no request and waits for nothing.
        """
        return health_of(self._engine)

    def debug_dump(self, file: TextIO | None = None, *, as_json: bool = False) -> str:
        """
        All that the pool knows of itself: health, stats, what the flight recorder kept (option `recorder_size`), and
        where its threads are. Without keys and tokens.

        Works at any time: in a signal handler, on a pool that is closed, stuck, or of before a fork.

        Args:
            file: where to write it as well, None for nowhere.
            as_json: one JSON object on one line, with the same under ``health``, ``stats``, ``entries``, ``threads``.

        Returns:
            The text.

        Raises:
            InvalidType: `file` has no ``write``.
        """
        if file is not None and not callable(getattr(file, "write", None)):
            raise InvalidType(f"file must be a text file or None, not {type(file).__name__}")
        check_type("as_json", as_json, bool)
        text = dump_of(self._engine, as_json=as_json)
        if file is not None:
            file.write(text)
        return text

    def serve_debug(self, path: str | os.PathLike[str] | None = None, *, allow_commands: bool = False) -> DebugServer:
        """
        Let other processes look at the pool, by `rtpool top`: those of the same user, through a Unix socket whose file
        is nobody else's. It has a thread of its own, which runs none of your code.

        Args:
            path: of the socket, at most 103 bytes; None takes ``$XDG_RUNTIME_DIR/rtpool/<pid>-<pool>.sock``, or one in
                ``/tmp/rtpool-<uid>``, which `rtpool top` finds. What a dead process left there is replaced.
            allow_commands: whether they may call `RealtimePool.force_cleanup`, too.

        Returns:
            The server; to close it, or the pool, or to end the process, ends it and removes the file. A forked child
            does not serve, but may by a call of its own.

        Raises:
            InvalidValue, InvalidType: the path is none, or a living process serves there.
            ConnectionFailed: the system does not allow it; Windows never does.
            PoolClosed: the pool is closed.
        """
        from rtpool.debug.serving import serve  # not before it is asked for

        return serve(cast("RealtimePool", self), path, allow_commands=allow_commands)

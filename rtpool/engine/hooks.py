"""
What users hang on a pool itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from rtpool.errors import PoolClosed
from rtpool.registry import Callback

__all__ = ["Hooks"]


class Hooks:
    """
    Listeners and the token callable of one pool. The pool holds them; its threads know them weakly, so that one that
    refers to its pool keeps no forgotten pool alive.

    Attributes:
        status, heartbeat: called on a worker with each status of the pool, with each heartbeat; replaced whole.
        error: called on a worker with (error, callback, event) after a callback raised.
        report: called likewise, with where it was called for as well, in place of the log.
        token: the pool's token callable.

    Thread-safety: attributes are read anywhere, and written under the engine's lock.
    """

    __slots__ = ("__weakref__", "error", "heartbeat", "report", "status", "token")

    def __init__(self) -> None:
        self.status: tuple[Callback, ...] = ()
        self.heartbeat: tuple[Callback, ...] = ()
        self.error: Callable[[BaseException, Callback, Any], object] | None = None
        self.report: Callable[[BaseException, Callback, Any, str], object] | None = None
        self.token: Callable[[], str] | None = None

    def lend(self, token: str | Callable[[], str] | None) -> str | Callable[[], str] | None:
        """A token as the engine gets it: a callable is called through this, and as long as this is there."""
        if not callable(token):
            return token
        self.token = token
        hooks = weakref.ref(self)

        def ask() -> str:
            found = hooks()
            if found is None or found.token is None:
                raise PoolClosed("the pool was forgotten, and its access_token callable with it")
            return found.token()

        return ask

"""
What one app has of rtpool: settings, pool, subscribed callbacks, streams. It is ``app.extensions["rtpool"]``.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

import rtpool
from rtpool.errors import InvalidValue
from rtpool.flask.config import Settings, read_settings

if TYPE_CHECKING:
    from flask import Flask

__all__ = ["AppState"]


class AppState:
    """
    Made by `Realtime.init_app`. Thread-safety: every method may be called from any thread.
    """

    def __init__(self, app: Flask) -> None:
        self._app = weakref.ref(app)
        self._lock = threading.Lock()
        self._pool: rtpool.RealtimePool | None = None
        self.settings: Settings = read_settings(app.config)

    @property
    def app(self) -> Flask:
        """The app."""
        app = self._app()
        assert app is not None
        return app

    @property
    def pool(self) -> rtpool.RealtimePool:
        """
        The app's pool, made when it is first asked for; the config is read once more then. Opens nothing.

        Raises:
            InvalidValue: the config has no URL, or a bad value.
        """
        pool = self._pool
        if pool is None:
            settings = read_settings(self.app.config)
            if not settings.url:
                raise InvalidValue("the app's config has no RTPOOL_URL (or SUPABASE_URL, also in the environment)")
            fresh = rtpool.RealtimePool(
                settings.url, api_key=settings.api_key, access_token=settings.access_token, options=settings.options
            )
            with self._lock:
                if self._pool is None:
                    self.settings, self._pool = settings, fresh
                pool = self._pool
        return pool

    @property
    def has_pool(self) -> bool:
        """Whether the pool was made already."""
        return self._pool is not None

    def close(self, timeout: float = 5.0) -> bool:
        """
        Close the pool. Idempotent; the next use makes another pool.

        Args:
            timeout: seconds for everything.

        Returns:
            True when everything was stopped in time.
        """
        with self._lock:
            pool, self._pool = self._pool, None
        return pool.close(timeout) if pool is not None else True

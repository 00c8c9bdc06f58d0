"""
What an app's config says: the pool's options as ``RTPOOL_<NAME>``, and the extension's own keys.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from rtpool.errors import InvalidType, InvalidValue
from rtpool.options import PoolOptions

__all__ = ["PREFIX", "Settings", "read_settings"]

PREFIX = "RTPOOL_"

#: The pool's options with this extension's own defaults.
DEFAULTS: Mapping[str, Any] = {"after_fork": "resubscribe"}


@attrs.frozen(kw_only=True)
class Settings:
    """
    The extension's own keys, each ``RTPOOL_<NAME>``.

    Args:
        url: the project's URL; falls back to ``SUPABASE_URL``, in the config and in the environment. None: not there.
        api_key: falls back to ``SUPABASE_KEY``, ``SUPABASE_ANON_KEY``, ``SUPABASE_SERVICE_ROLE_KEY``, likewise.
        access_token: as `RealtimePool`'s.
        options: the pool's.
        autostart: whether an app's first request subscribes the callbacks. None: unless ``app.testing``.
        debug_page: whether ``/_rtpool/`` is there. None: while ``app.debug``.
        debug_token: what opens the page where the app is not in debug mode; at least 16 characters.
        health: whether ``/_rtpool/health`` is there without the page as well.
        serve_debug: whether `rtpool top` and ``flask rtpool stats`` may look at the process. None: while ``app.debug``.
        max_streams: browsers' streams open at once in this process.
        stream_buffer: events a stream's feed keeps, for browsers that come back.
        stream_buffer_bytes: and their bytes.
        stream_heartbeat: seconds between comments that keep a quiet stream alive.
        stream_linger: seconds a feed stays subscribed after its last browser, for one that comes back.
        stream_max_age: seconds until a stream ends, to be opened and authorized anew by its browser.
        stream_stall: seconds a browser may take nothing though there is something for it.
    """

    url: str | None = None
    api_key: str | None = None
    access_token: str | Callable[[], str] | None = None
    options: PoolOptions = attrs.field(factory=PoolOptions)
    autostart: bool | None = None
    debug_page: bool | None = None
    debug_token: str | None = None
    health: bool = False
    serve_debug: bool | None = None
    max_streams: int = 100
    stream_buffer: int = 1_000
    stream_buffer_bytes: int = 4 * 1024 * 1024
    stream_heartbeat: float = 15.0
    stream_linger: float = 10.0
    stream_max_age: float = 3600.0
    stream_stall: float = 60.0


def read_settings(config: Mapping[str, Any]) -> Settings:
    """
    The settings of an app.

    Raises:
        InvalidValue, InvalidType: a key that is none of ours, or a bad value; naming the key.
    """
    own = {field.name for field in attrs.fields(Settings)} - {"options"}
    of_pool = {field.name for field in attrs.fields(PoolOptions)}
    values: dict[str, Any] = {}
    options: dict[str, Any] = dict(DEFAULTS)
    for key in [key for key in config if isinstance(key, str) and key.startswith(PREFIX)]:
        name = key[len(PREFIX) :].lower()
        if name in own:
            values[name] = config[key]
        elif name in of_pool:
            options[name] = config[key]
        else:
            near = difflib.get_close_matches(name, own | of_pool, 1)
            hint = f"; did you mean {PREFIX}{near[0].upper()}?" if near else ""
            raise InvalidValue(f"the config key {key} is none of rtpool's{hint}")
    values["url"] = values.get("url") or _supabase(config, "URL")
    values["api_key"] = values.get("api_key") or _supabase(config, "KEY", "ANON_KEY", "SERVICE_ROLE_KEY")
    try:
        return Settings(**values, options=PoolOptions(**options))
    except (InvalidType, InvalidValue):
        raise


def _supabase(config: Mapping[str, Any], *names: str) -> Any:
    keys = [f"SUPABASE_{name}" for name in names]
    return next((value for source in (config, os.environ) for key in keys if (value := source.get(key))), None)

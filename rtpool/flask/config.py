"""
What an app's config says: the pool's options as ``RTPOOL_<NAME>``, and the extension's own keys.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from rtpool.checks import check_token
from rtpool.engine.dialer import Endpoint
from rtpool.errors import InvalidType, InvalidValue
from rtpool.options import PoolOptions, _number, _of_type

__all__ = ["API_KEYS", "PREFIX", "Settings", "URLS", "read_settings"]

PREFIX = "RTPOOL_"
#: Where the project's URL and key are looked for: the first in the config, the others there and in the environment.
URLS = ("RTPOOL_URL", "SUPABASE_URL")
API_KEYS = ("RTPOOL_API_KEY", "SUPABASE_KEY", "SUPABASE_ANON_KEY", "SUPABASE_SERVICE_ROLE_KEY")

#: The pool's options with this extension's own defaults.
DEFAULTS: Mapping[str, Any] = {"after_fork": "resubscribe"}
#: A token that opens the debug page is at least so long.
SHORTEST_TOKEN = 16

#: What text says yes and no.
_WORDS = {**dict.fromkeys(("1", "true", "yes", "on"), True), **dict.fromkeys(("0", "false", "no", "off"), False)}
_NOTHING = ("", "none", "null")


def _check_access_token(_instance: object, _attribute: object, value: Any) -> None:
    if value is not None and not callable(value):
        check_token(value)


def _check_debug_token(_instance: object, attribute: attrs.Attribute[Any], value: str | None) -> None:
    _of_type(str, type(None))(_instance, attribute, value)
    if value is not None and len(value) < SHORTEST_TOKEN:
        raise InvalidValue(f"option {attribute.name} must have at least {SHORTEST_TOKEN} characters")
    if value is not None and not re.fullmatch("[!-~]+", value):  # as it is to come back in a header
        raise InvalidValue(f"option {attribute.name} must be of ASCII's letters, digits and signs, without blanks")


_TEXT = _of_type(str, type(None))
_SWITCH = _of_type(bool, type(None))
_SECONDS = _number(0, exclusive=True)
_COUNT = _number(1, integer=True)


@attrs.frozen(kw_only=True)
class Settings:
    """
    The extension's own keys, each ``RTPOOL_<NAME>``.

    Args:
        url: the project's URL; falls back to ``SUPABASE_URL``, in the config and in the environment. None: not there.
        api_key: falls back to ``SUPABASE_KEY``, ``SUPABASE_ANON_KEY``, ``SUPABASE_SERVICE_ROLE_KEY``, likewise; a plain
            Phoenix server (`topic_prefix`) gets only what ``RTPOOL_API_KEY`` says.
        access_token: as `RealtimePool`'s; a callable is called in an app context.
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

    url: str | None = attrs.field(default=None, validator=_TEXT)
    api_key: str | None = attrs.field(default=None, validator=_TEXT, repr=False)
    access_token: str | Callable[[], str] | None = attrs.field(default=None, validator=_check_access_token, repr=False)
    options: PoolOptions = attrs.field(factory=PoolOptions)
    autostart: bool | None = attrs.field(default=None, validator=_SWITCH)
    debug_page: bool | None = attrs.field(default=None, validator=_SWITCH)
    debug_token: str | None = attrs.field(default=None, validator=_check_debug_token, repr=False)
    health: bool = attrs.field(default=False, validator=_of_type(bool))
    serve_debug: bool | None = attrs.field(default=None, validator=_SWITCH)
    max_streams: int = attrs.field(default=100, validator=_number(0, integer=True))
    stream_buffer: int = attrs.field(default=1_000, validator=_COUNT)
    stream_buffer_bytes: int = attrs.field(default=4 * 1024 * 1024, validator=_number(1024, integer=True))
    stream_heartbeat: float = attrs.field(default=15.0, validator=_SECONDS)
    stream_linger: float = attrs.field(default=10.0, validator=_number(0))
    stream_max_age: float = attrs.field(default=3600.0, validator=_SECONDS)
    stream_stall: float = attrs.field(default=60.0, validator=_SECONDS)


_OF_POOL = {field.name: str(field.type) for field in attrs.fields(PoolOptions)}
_OWN = {field.name: str(field.type) for field in attrs.fields(Settings) if field.name != "options"}


def read_settings(config: Mapping[str, Any]) -> Settings:
    """
    The settings of an app.

    Values are of the types that `Settings` and `PoolOptions` name, or text as the environment has it: a number; for a
    switch ``true``, ``yes``, ``on``, ``1`` or their contraries, in any case; ``none`` or nothing where None may be.
    A whole number is taken for text where text is wanted: `Flask.config.from_prefixed_env` makes one of digits.

    Raises:
        InvalidValue, InvalidType: a key that is none of ours, or a bad value; naming the key.
    """
    values: dict[str, Any] = {}
    options: dict[str, Any] = dict(DEFAULTS)
    for key in [key for key in config if isinstance(key, str) and key.startswith(PREFIX)]:
        name = key[len(PREFIX) :].lower()
        if name in _OWN:
            values[name] = _read(key, _OWN[name], config[key])
        elif name in _OF_POOL:
            options[name] = _read(key, _OF_POOL[name], config[key])
        else:
            near = difflib.get_close_matches(name, _OWN.keys() | _OF_POOL.keys(), 1)
            hint = f"; did you mean {PREFIX}{near[0].upper()}?" if near else ""
            raise InvalidValue(f"the config key {key} is none of rtpool's{hint}")
    try:
        of_pool = PoolOptions(**options)
        values["url"] = values.get("url") or _fall_back(config, URLS)
        if of_pool.is_supabase:
            values["api_key"] = values.get("api_key") or _fall_back(config, API_KEYS)
        settings = Settings(**values, options=of_pool)
    except (InvalidType, InvalidValue) as error:
        raise type(error)(_naming_the_key(str(error))) from error
    if settings.url:
        try:
            Endpoint.from_url(settings.url, settings.api_key)
        except InvalidValue as error:
            raise InvalidValue(f"the config's {' or '.join(URLS)}: {error}") from error
    return settings


def _read(key: str, kinds: str, value: Any) -> Any:
    """A value as a field of these types takes it, or as it is: then the field's own check refuses it."""
    allowed = kinds.split(" | ")
    if "str" in allowed and type(value) is int:  # FLASK_RTPOOL_API_KEY=123 is the number
        return str(value)
    if "bool" in allowed and type(value) in (int, str):  # as is FLASK_RTPOOL_DEBUG_PAGE=1
        text = str(value).strip().lower()
        if text in _WORDS:
            return _WORDS[text]
        if "None" not in allowed or text not in _NOTHING:
            none = ", or none" if "None" in allowed else ""
            words = f"must be true, yes, on or 1, or false, no, off or 0{none}, not {value!r:.80}"
            raise InvalidType(f"the config key {key} {words}")
    if isinstance(value, str):
        text = value.strip()
        if "None" in allowed and text.lower() in _NOTHING:
            return None
        for name, kind in (("int", int), ("float", float)):
            if name in allowed:
                try:
                    return kind(text)
                except ValueError:
                    continue
    return value


def _fall_back(config: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((value for source in (config, os.environ) for key in keys[1:] if (value := source.get(key))), None)


def _naming_the_key(words: str) -> str:
    """An error about an argument as one about its config key."""
    option = re.match(r"(?:option )?(\w+)(?=[ :])", words)
    if option is None or option[1] not in {*_OWN, *_OF_POOL}:
        return f"rtpool's config: {words}"
    return f"the config key {PREFIX}{option[1].upper()}{words[option.end() :]}"

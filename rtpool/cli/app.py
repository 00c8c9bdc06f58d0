"""
What the commands of `rtpool` have in common. Exit codes: 0 done, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import click
from rich.console import Console

import rtpool
from rtpool.errors import InvalidType, InvalidValue

__all__ = ["channel_of", "errors", "fail", "pool_of", "server_options"]

F = TypeVar("F", bound=Callable[..., Any])

#: Standard error.
errors = Console(stderr=True, highlight=False)


def server_options(function: F) -> F:
    """The options of every command that talks to a server."""
    for option in (
        click.option("--private", is_flag=True, help="The private channel of that name."),
        click.option("--key", envvar=["SUPABASE_KEY", "SUPABASE_ANON_KEY"], help="API key, or SUPABASE_KEY."),
        click.option("--url", envvar="SUPABASE_URL", required=True, help="Project URL, or SUPABASE_URL."),
    ):
        function = option(function)
    return function


def pool_of(url: str, key: str | None, **options: Any) -> rtpool.RealtimePool:
    """A pool; what it refuses is wrong usage."""
    try:
        return rtpool.RealtimePool(url, api_key=key, **options)
    except (InvalidValue, InvalidType) as error:
        raise click.UsageError(str(error)) from error


def channel_of(pool: rtpool.RealtimePool, topic: str, **settings: Any) -> rtpool.Channel:
    """A Channel; what it refuses is wrong usage."""
    try:
        return pool.channel(topic, **settings)
    except (InvalidValue, InvalidType) as error:
        raise click.UsageError(str(error)) from error


def fail(error: Exception) -> NoReturn:
    """Say what went wrong, and end with 1."""
    errors.print(f"[red]failed:[/] {type(error).__name__}: {error}", soft_wrap=True)
    raise SystemExit(1)

"""
What the commands of `rtpool` have in common. Exit codes: 0 done, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import click
from rich.console import Console
from rich.text import Text

import rtpool
from rtpool.errors import ConnectionFailed, HandshakeRefused, InvalidType, InvalidValue, JoinRefused, RtpoolError

__all__ = ["channel_of", "errors", "fail", "pool_of", "reader_left", "server_options", "token_option"]

F = TypeVar("F", bound=Callable[..., Any])

#: Standard error.
errors = Console(stderr=True, highlight=False)

#: A user's token, for the commands that act for one.
token_option = click.option(
    "--token", envvar="SUPABASE_ACCESS_TOKEN", help="A user's access token, or SUPABASE_ACCESS_TOKEN."
)

DOCTOR = "`rtpool doctor` looks at each step on the way."


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


def fail(error: Exception, *, private: bool = False) -> NoReturn:
    """
    Say what went wrong and what to do about it, and end with 1.

    Args:
        error: its words are shown as they are: those of a server may hold brackets.
        private: whether a private channel was asked for.
    """
    errors.print(Text.assemble(("failed:", "red"), f" {type(error).__name__}: {error}"), soft_wrap=True)
    if isinstance(error, RtpoolError):
        errors.print(Text.assemble(("advice:", "cyan"), f" {_advice(error, private)}"), soft_wrap=True)
    raise SystemExit(1)


def _advice(error: RtpoolError, private: bool) -> str:
    if isinstance(error, HandshakeRefused) and error.status == 401:
        return "give the project's own key, --key or SUPABASE_KEY."
    if isinstance(error, HandshakeRefused) and error.status == 404:
        return "give the project's own URL, --url or SUPABASE_URL."
    if isinstance(error, JoinRefused) and not error.retryable:
        if private:
            return "a policy on realtime.messages has to let this user read the topic; another --token is another user."
        return "the same can never succeed: another topic, table, filter or --token may."
    if isinstance(error, ConnectionFailed) and not error.retryable:
        return f"the same can never succeed. {DOCTOR}"
    return f"it may pass: try again. {DOCTOR}"


def reader_left() -> NoReturn:
    """Whoever read standard output reads no more, as `head` does: end with 0, and without Python's words about it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())  # what is buffered goes there when Python ends
    os.close(nowhere)
    raise SystemExit(0)

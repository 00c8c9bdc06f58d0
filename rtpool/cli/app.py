"""
What the commands of `rtpool` have in common. Exit codes: 0 done, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import click
from rich.console import Console
from rich.text import Text

import rtpool
from rtpool.actions import Action
from rtpool.errors import ConnectionFailed, HandshakeRefused, InvalidType, InvalidValue, JoinRefused, RtpoolError
from rtpool.protocol.refusals import TOKEN_CODES, printable

__all__ = [
    "Commands",
    "DOCTOR",
    "PrintableFormatter",
    "channel_of",
    "errors",
    "fail",
    "options_of_context",
    "pool_of",
    "reader_left",
    "say",
    "server_options",
    "token_option",
]

F = TypeVar("F", bound=Callable[..., Any])

#: Standard error.
errors = Console(stderr=True, highlight=False)

#: A user's token, for the commands that act for one.
token_option = click.option(
    "--token", envvar="SUPABASE_ACCESS_TOKEN", help="A user's access token, or SUPABASE_ACCESS_TOKEN."
)

#: Advice where the way to the server may be to blame.
DOCTOR = "`rtpool doctor` looks at each step on the way."


class Commands(click.Group):
    """Commands whose words about wrong usage do nothing to a terminal, and that end in order when a disk is full."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            vars(error)["message"] = printable(error.message)
            raise
        except BrokenPipeError:
            raise
        except OSError as error:
            _discard_output()
            fail(error)


class PrintableFormatter(logging.Formatter):
    """Log records hold what servers sent."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return printable(super().formatMessage(record))


def server_options(function: F) -> F:
    """The options of every command that talks to a server."""
    for option in (
        click.option("--private", is_flag=True, help="The private channel of that name."),
        click.option("--key", envvar=["SUPABASE_KEY", "SUPABASE_ANON_KEY"], help="API key, or SUPABASE_KEY."),
        click.option("--url", envvar="SUPABASE_URL", required=True, help="Project URL, or SUPABASE_URL."),
    ):
        function = option(function)
    return function


def options_of_context() -> rtpool.PoolOptions:
    """The options that the command line's own go over: those that whoever runs the command gave it, else none."""
    return click.get_current_context().find_object(rtpool.PoolOptions) or rtpool.PoolOptions()


def pool_of(url: str, key: str | None, **options: Any) -> rtpool.RealtimePool:
    """A pool; what it refuses is wrong usage."""
    try:
        return rtpool.RealtimePool(url, api_key=key, options=options_of_context(), **options)
    except (InvalidValue, InvalidType) as error:
        raise click.UsageError(str(error)) from error


def channel_of(pool: rtpool.RealtimePool, topic: str, **settings: Any) -> rtpool.Channel:
    """A Channel; what it refuses is wrong usage."""
    try:
        return pool.channel(topic, **settings)
    except (InvalidValue, InvalidType) as error:
        raise click.UsageError(str(error)) from error


def fail(error: Exception, *, private: bool = False, advice: str | None = None) -> NoReturn:
    """
    Say what went wrong and what to do about it, and end with 1.

    Args:
        error: what went wrong.
        private: whether a private channel was asked for.
        advice: what to do; None for what follows from the error.
    """
    say("failed:", "red", f"{type(error).__name__}: {error}")
    if isinstance(error, RtpoolError):
        say("advice:", "cyan", _advice(error, private) if advice is None else advice)
    raise SystemExit(1)


def say(head: str, style: str, words: str) -> None:
    """A line on standard error. The words may be a server's: brackets in them are no markup, and nothing else acts."""
    with contextlib.suppress(OSError):  # nobody reads it
        errors.print(Text.assemble((head, style), f" {printable(words)}"), soft_wrap=True)


def _advice(error: RtpoolError, private: bool) -> str:
    if isinstance(error, HandshakeRefused) and error.status == 401:
        return "give the project's own key, --key or SUPABASE_KEY."
    if isinstance(error, HandshakeRefused) and error.status == 404:
        return "give the project's own URL, --url or SUPABASE_URL."
    if isinstance(error, JoinRefused) and not error.retryable:
        if error.action is Action.NEW_TOKEN and error.code in TOKEN_CODES:
            return "the server takes no such token: give a fresh one, --token or SUPABASE_ACCESS_TOKEN."
        if private:
            return "a policy on realtime.messages has to let this user read the topic; another --token is another user."
        return "the same can never succeed: another topic, table, filter or --token may."
    if isinstance(error, ConnectionFailed) and not error.retryable:
        return f"the same can never succeed. {DOCTOR}"
    return f"it may pass: try again. {DOCTOR}"


def reader_left() -> NoReturn:
    """Whoever read standard output reads no more, as `head` does: end with 0, and without Python's words about it."""
    _discard_output()
    raise SystemExit(0)


def _discard_output() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())  # what is buffered goes there when Python ends
    os.close(nowhere)

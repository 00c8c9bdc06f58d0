"""
`rtpool listen`.
"""

from __future__ import annotations

import re
import time
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

import attrs
import click
from click.core import ParameterSource
from rich.console import Console

import rtpool
from rtpool.cli.app import DOCTOR, channel_of, errors, fail, pool_of, reader_left, say, server_options, token_option
from rtpool.cli.lines import json_line, text_line
from rtpool.cli.standing import Standing
from rtpool.errors import InvalidType, InvalidValue, NotSubscribed, ReceiveTimeout, RtpoolError
from rtpool.events import Broadcast, Event, Message, PostgresChange, Presence

__all__ = ["listen"]

#: Seconds between two looks at the time, and at whether anything can come any more.
LOOK = 0.5
#: What ``--replay`` without a moment stands for.
MISSED = "missed"
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def _moment(_: click.Context, option: click.Parameter, value: str | None) -> bool | datetime | None:
    """How long ago, or ISO 8601, in local time where it has no offset; True for what is missed in interruptions."""
    if value is None or value == MISSED:
        return None if value is None else True
    try:
        ago = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhd])", value)
        if ago:
            return datetime.now(timezone.utc) - timedelta(**{UNITS[ago[2]]: float(ago[1])})
        return datetime.fromisoformat(re.sub("[Zz]$", "+00:00", value)).astimezone()  # Python 3.10 knows no Z
    except (ValueError, OverflowError, OSError):
        raise click.BadParameter(
            f"{value!r} is no moment: give 90s, 10m, 2h, 3d, or ISO 8601. TOPIC goes before it, or write "
            f"--replay={MISSED}",
            param=option,
        ) from None


@attrs.frozen(kw_only=True)
class Wish:
    """What the command line asks for, under its own names."""

    topic: str | None
    events: tuple[str, ...]
    table: str | None
    schema: str
    filter: str | None
    changes: str
    presence: bool
    replay: bool | datetime | None
    plain: bool
    as_json: bool
    count: int | None
    timeout: float | None
    quiet: bool
    url: str
    key: str | None = attrs.field(repr=False)
    token: str | None = attrs.field(repr=False)
    private: bool

    @property
    def name(self) -> str:
        """The topic to join; changes come whatever it is."""
        return self.topic if self.topic is not None else f"changes:{self.table}"

    def wants(self, event: Event) -> bool:
        """Whether it is shown."""
        if not isinstance(event, (Broadcast, Message)) or not self.events or "*" in self.events:
            return True
        return event.event in self.events


@click.command()
@click.argument("topic", required=False)
@click.option("--event", "events", multiple=True, metavar="NAME", help="Broadcasts of this name only; also repeated.")
@click.option("--table", help="Changes of this table too; '*' is every one.")
@click.option("--schema", default="public", show_default=True, help="Of the table.")
@click.option("--filter", help="Of the rows, e.g. status=eq.rented.")
@click.option(
    "--changes",
    type=click.Choice(["INSERT", "UPDATE", "DELETE", "*"], case_sensitive=False),
    default="*",
    show_default=True,
    help="Which of the table's changes.",
)
@click.option("--presence", is_flag=True, help="Who is there, comes and goes.")
@click.option(
    "--replay",
    callback=_moment,
    is_flag=False,
    flag_value=MISSED,
    metavar="[SINCE]",
    help="Have the server replay what an interruption missed, and what it stored since then: 10m, 2h, 3d, ISO 8601. "
    "With --private.",
)
@click.option("--plain", is_flag=True, help="Any topic of a plain Phoenix server; the URL is its socket's mount.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many events.")
@click.option(
    "--timeout",
    type=click.FloatRange(0.0, min_open=True),
    metavar="S",
    help="End after so many seconds: with 1 when --count was not reached.",
)
@click.option("--quiet", is_flag=True, help="Nothing about the connection, on standard error.")
@token_option
@server_options
@click.pass_context
def listen(context: click.Context, /, **asked: Any) -> None:
    """
    Print what arrives on TOPIC until Ctrl-C. TOPIC may be left out with --table.

    Broadcasts, changes, presence and other messages are events, and counted. A GAP, in which messages may have been
    lost, is always shown.

    A server that is not to be reached is tried three times within seconds, then every 15 to 30 s, for as long as it
    takes.
    """
    wish = _checked(context, Wish(**asked))
    verbose = bool(context.find_root().params.get("verbose"))  # log lines would run into a status line
    live = errors.is_terminal and not errors.is_dumb_terminal and not verbose
    try:
        _listen(wish, Standing(errors, wish.name, live=live, quiet=wish.quiet))
    except KeyboardInterrupt:
        return
    except BrokenPipeError:
        reader_left()
    except RtpoolError as error:
        fail(error, private=wish.private)


def _checked(context: click.Context, wish: Wish) -> Wish:
    if wish.topic is None and wish.table is None:
        raise click.UsageError("give a TOPIC, or a --table")
    given = {name for name in _names() if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    for name in ("schema", "filter", "changes"):
        if wish.table is None and name in given:
            raise click.UsageError(f"--{name} goes with --table")
    if wish.replay is not None and not wish.private:
        raise click.UsageError("--replay goes with --private: only what the database sends there is stored")
    if not wish.plain:
        return wish
    # What the environment has for Supabase is no other server's business.
    return attrs.evolve(wish, key=wish.key if "key" in given else None, token=wish.token if "token" in given else None)


def _names() -> list[str]:
    return [field.name for field in attrs.fields(Wish)]


def _listen(wish: Wish, standing: Standing) -> None:
    deadline = None if wish.timeout is None else time.monotonic() + wish.timeout
    options: dict[str, Any] = {"topic_prefix": ""} if wish.plain else {}
    with ExitStack() as stack:
        pool = stack.enter_context(pool_of(wish.url, wish.key, access_token=wish.token, **options))
        stack.enter_context(standing)
        channel = _channel(pool, wish)
        channel.events()  # from now on the Channel keeps what comes
        pool.on_status(standing.pool_changed)
        channel.on_status(standing.channel_changed)
        channel.subscribe(wait=False)  # what may pass is tried again from the first connection on
        came = _print(channel, wish, standing, deadline)
        missing = "" if standing.works else f"; {standing.words}"
    if wish.count is not None and came < wish.count:
        say("failed:", "red", f"{came} of {wish.count} came within {wish.timeout:g} s{missing}")
        if missing:
            say("advice:", "cyan", DOCTOR)
        raise SystemExit(1)


def _channel(pool: rtpool.RealtimePool, wish: Wish) -> rtpool.Channel:
    replay = {"since": wish.replay} if isinstance(wish.replay, datetime) else wish.replay
    channel = channel_of(pool, wish.name, private=wish.private, replay=replay)
    try:
        if wish.table is not None:
            channel.on_postgres_changes(
                wish.changes, _nothing, schema=wish.schema, table=wish.table, filter=wish.filter
            )
        if wish.presence:
            channel.on_presence_sync(_nothing)
    except (InvalidValue, InvalidType) as error:
        raise click.UsageError(str(error)) from error
    return channel


def _nothing(event: Event) -> None:
    """What a Channel asks its server for follows from its callbacks; all of it comes to who reads it in a loop, too."""


def _print(channel: rtpool.Channel, wish: Wish, standing: Standing, deadline: float | None) -> int:
    """Print what comes until enough did or the time is over; how many events came."""
    came, left = 0, LOOK
    write = _writer(wish)
    while wish.count is None or came < wish.count:
        if deadline is not None:
            left = min(LOOK, deadline - time.monotonic())
            if left <= 0:
                break
        try:
            event = channel.get(left)
        except ReceiveTimeout:
            if standing.failure is not None:
                raise standing.failure from None
            standing.tick()
            continue
        except NotSubscribed as error:
            raise standing.failure or error from None
        if wish.wants(event):
            counts = isinstance(event, (Broadcast, PostgresChange, Presence, Message))
            standing.show(event, partial(write, event), counts=counts)
            came += counts
    return came


def _writer(wish: Wish) -> Any:
    """What writes an event to standard output, and to the end of the pipe at once."""
    console = Console(highlight=False)
    encoding = console.encoding
    ascii_only = not encoding.lower().startswith("utf")

    def write(event: Event) -> None:
        now = datetime.now(timezone.utc)
        if wish.as_json:
            click.echo(json_line(event, now, ascii_only=ascii_only))
            return
        line = text_line(event, now)
        if console.is_terminal:
            console.print(line, soft_wrap=True)
        else:
            click.echo(line.plain.encode(encoding, "backslashreplace").decode(encoding))

    return write

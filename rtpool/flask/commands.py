"""
``flask rtpool …``: what the app's running processes do, and rtpool's own commands with the app's config.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from flask import current_app
from flask.cli import AppGroup

from rtpool.flask.config import read_settings
from rtpool.flask.processes import pictures
from rtpool.protocol.refusals import printable

if TYPE_CHECKING:
    from flask import Flask

__all__ = ["group", "register"]

#: What to do where no process answers.
ADVICE = (
    "no process of this app answers. One does that runs as this user, was started from the same folder, has used "
    "rtpool, and lets itself be looked at: while app.debug, or with RTPOOL_SERVE_DEBUG=True."
)
#: Another program's command line: all of it goes there, --help too.
PASSED_ON: dict[str, Any] = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def register(app: Flask) -> None:
    """
    Give the app's command line the commands. Called by `Realtime.init_app`.
    """
    app.cli.add_command(group)


group = AppGroup("rtpool", help="Supabase Realtime: look at the app's processes, and at its way to the server.")
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a process, a line each.")


@group.command()
@json_option
def stats(as_json: bool) -> None:
    """
    What the running processes of this app do.

    Exit code 1: none answers.
    """
    for told in _answers():
        click.echo(json.dumps(told, default=str) if as_json else "\n".join(_stats_lines(told)))


@group.command()
@json_option
def issues(as_json: bool) -> None:
    """
    What is wrong in the running processes of this app, and what to do about it.

    Exit code 1: none answers.
    """
    for told in _answers():
        if as_json:
            click.echo(json.dumps({key: told[key] for key in ("pid", "name", "url", "issues")}, default=str))
        else:
            click.echo("\n".join(_issue_lines(told)))


@group.command(context_settings=PASSED_ON, short_help="Find out what works on the way to the app's server.")
@click.pass_context
def doctor(context: click.Context) -> None:
    """`rtpool doctor` with the app's config."""
    _pass_on(context)


@group.command(context_settings=PASSED_ON, short_help="Print what arrives on a topic of the app's server.")
@click.pass_context
def listen(context: click.Context) -> None:
    """`rtpool listen` with the app's config."""
    _pass_on(context)


def _answers() -> list[dict[str, Any]]:
    """What the processes tell; those that cannot are told of on standard error."""
    found = pictures(current_app._get_current_object())  # type: ignore[attr-defined]
    for told in found:
        if "error" in told:
            click.echo(f"{printable(told['path'])}: {printable(told['error'])}", err=True)
    answers = [told for told in found if "error" not in told]
    if not answers:
        raise click.ClickException(ADVICE)
    return answers


def _head(told: Mapping[str, Any]) -> str:
    from rtpool.debug import figures  # not before it is asked for

    health = told["health"]
    words = f"process {told['pid']}  pool {told['name']}  {health['status']}  health {health['verdict']}"
    return printable(f"{words}  up {figures.age(told['age'])}  {told['url']}")


def _stats_lines(told: Mapping[str, Any]) -> list[str]:
    from rtpool.debug import figures  # not before it is asked for

    of = told["stats"]
    ready = f"{of['active_subscriptions']} of {of['total_subscriptions']} Channels ready"
    sockets = f"{of['active_connections']} of {of['total_connections']} open, {of['total_joins']} joins, {ready}"
    lost = f"{of['messages_delivered']} delivered, {of['messages_dropped']} dropped, {of['gaps']} gaps"
    trouble = f"{of['reconnect_attempts']} reconnects, {of['callback_errors']} callback errors"
    lines = [_head(told), *(f"  ! {reason}" for reason in told["health"]["reasons"])]
    lines.append(f"  connections  {sockets}")
    lines.append(f"  events       {of['events_received']} received, {lost}")
    lines.append(f"  trouble      {trouble}, {len(told['issues'])} issues")
    for each in of["connection_details"]:
        lines.append(
            f"  connection {each['connection_id']} {each['state']}  joins {each['joins']}  latency "
            f"{figures.latency(each['heartbeat_latency'])}  in {figures.size(each['bytes_received'])}  out "
            f"{figures.size(each['bytes_sent'])}"
        )
    return [printable(line) for line in lines]


def _issue_lines(told: Mapping[str, Any]) -> list[str]:
    lines = [_head(told)]
    for each in told["issues"]:
        lines.append(f"  {each['code']} {each['severity']}  {each['title']}: {each['subject']}, {each['observed']}")
        lines.append(f"    {each['advice']}")
    return [printable(line) for line in (lines if told["issues"] else [*lines, "  no issues"])]


def _pass_on(context: click.Context) -> None:
    """Run the command of the same name that `rtpool` has, on the app's server."""
    try:
        from rtpool.cli import cli
    except ImportError as error:
        if error.name not in ("click", "rich"):
            raise
        words = f"flask rtpool {context.info_name} needs {error.name}: pip install 'rtpool[cli]'"
        raise click.ClickException(words) from error
    parent, given = context.parent, context.args
    assert parent is not None
    settings = read_settings(current_app.config)
    code = cli.main(
        [str(context.info_name), *_own(given), *given],
        prog_name=parent.command_path,
        standalone_mode=False,
        obj=settings.options,
    )
    if code:
        context.exit(code)


def _own(given: Sequence[str]) -> list[str]:
    """What the app's config says, for the command line; another server gets none of its keys."""
    if any(argument.partition("=")[0] in ("--url", "--help", "-h") for argument in given):
        return []
    settings = read_settings(current_app.config)
    if not settings.url:
        raise click.UsageError("the app's config has no RTPOOL_URL (or SUPABASE_URL, also in the environment)")
    token = settings.access_token
    token = token() if callable(token) else token
    values = {"--url": settings.url, "--key": settings.api_key, "--token": token}
    return [part for name, value in values.items() if value is not None for part in (name, value)]

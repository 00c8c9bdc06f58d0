"""
`rtpool doctor`.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import click
from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

import rtpool
from rtpool.cli.app import options_of_context, server_options
from rtpool.doctor import Case, Examination, Report, Step
from rtpool.errors import InvalidType, InvalidValue

__all__ = ["doctor"]

#: Columns a display is made for at the most; longer lines are hard to read.
WIDEST = 100
#: How a status looks: its sign, the sign where a terminal has ASCII only, its colour.
SIGNS = {
    "ok": ("✔", "+", "green"),
    "warning": ("!", "!", "yellow"),
    "failed": ("✘", "x", "red"),
    "skipped": ("·", "-", "bright_black"),
}


@click.command()
@click.option("--topic", default=None, help="To join; a random one, which disturbs nobody, when not given.")
@click.option("--table", default=None, help="Whose changes to subscribe to: NAME or SCHEMA.NAME.")
@click.option("--token", envvar="SUPABASE_ACCESS_TOKEN", help="A user's access token, or SUPABASE_ACCESS_TOKEN.")
@click.option("--proxy", default=None, help="http://host:port or socks5://host:port.")
@click.option(
    "--timeout",
    type=click.FloatRange(0.0, 3600.0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds for everything.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a display.")
@server_options
def doctor(
    topic: str | None,
    table: str | None,
    token: str | None,
    proxy: str | None,
    timeout: float,
    as_json: bool,
    url: str,
    key: str | None,
    private: bool,
) -> None:
    """
    Find out, step by step, what works on the way to a server and what does not.

    Exit code 0: nothing failed, warnings aside; 1: something did, or Ctrl-C or --timeout ended it before the last step;
    2: wrong usage. With --topic a broadcast of the event "rtpool-doctor" goes to everybody on it, some dozens of times.
    """
    try:
        options = options_of_context()
        options = options if proxy is None else attrs.evolve(options, proxy=proxy)
        case = Case(url, key, token=token, topic=topic, table=table, private=private, options=options, timeout=timeout)
    except (InvalidValue, InvalidType) as error:
        raise click.UsageError(str(error)) from error
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # what servers say is in any language, a terminal's may be ASCII
    if as_json:
        report = Examination(case).run()
        click.echo(json.dumps({"rtpool": rtpool.__version__, **report.as_dict()}))
    elif sys.stdout.isatty():
        report = _shown(case)
    else:
        report = Examination(case, done=lambda step: click.echo(_line(step))).run()
        click.echo(report.summary())
    raise SystemExit(report.exit_code)


def _line(step: Step) -> str:
    """A step for who reads it in a file."""
    lines = [f"{step.status:8} {step.name:12} {step.words}{_time(step, ' ({})')}"]
    lines += [f"{'':22}{'> ' if not index else '  '}{line}" for index, line in enumerate(step.advice.splitlines())]
    return "\n".join(lines)


def _time(step: Step, form: str = "{}") -> str:
    if step.status == "skipped":
        return ""
    return form.format(f"{step.seconds * 1000:.0f} ms" if step.seconds < 9.9995 else f"{step.seconds:.1f} s")


def _shown(case: Case) -> Report:
    console = Console(highlight=False)
    console.width = min(console.width, WIDEST)
    wheel, dots = ("dots", "…") if _has_signs(console) else ("line", "...")
    with _display(console) as live:
        examination = Examination(
            case,
            begun=lambda name: live.update(Spinner(wheel, Text(f" {name} {dots}"))),
            done=lambda step: live.console.print(_rows(step, console)),
        )
        report = examination.run()
        live.update(Text(""))
    colour = "green" if report.ok else "red"
    console.print(Text(report.summary(), style=f"bold {colour}"))
    return report


@contextmanager
def _display(console: Console) -> Iterator[Live]:
    with Live(Text(""), console=console, transient=True, refresh_per_second=10) as live:
        yield live


def _has_signs(console: Console) -> bool:
    return console.encoding.lower().startswith("utf")


def _rows(step: Step, console: Console) -> Group:
    """A step for a person: what was found, how long it took, and under it what to do."""
    sign, plain, colour = SIGNS[step.status]
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=1)
    table.add_column(width=11, no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    table.add_column(width=8, justify="right", no_wrap=True)
    quiet = "bright_black" if step.status == "skipped" else ""
    table.add_row(
        Text(sign if _has_signs(console) else plain, style=colour),
        Text(step.name, style=quiet or "bold"),
        Text(step.words, style=colour if step.status == "failed" else quiet),
        Text(_time(step), style="bright_black"),
    )
    if not step.advice:
        return Group(table)
    advice = Table.grid(padding=(0, 1), expand=True)
    advice.add_column(width=13)
    advice.add_column(ratio=1, overflow="fold")
    advice.add_row("", Text(step.advice, style="cyan" if step.status != "ok" else "bright_black"))
    return Group(table, advice)

"""
The commands of `rtpool`, a module each.
"""

from __future__ import annotations

import logging

import click

import rtpool
from rtpool.cli.app import Commands, PrintableFormatter
from rtpool.cli.demo import demo
from rtpool.cli.doctor import doctor
from rtpool.cli.listen import listen
from rtpool.cli.send import send
from rtpool.cli.serve import serve
from rtpool.cli.top import top

__all__ = ["cli"]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(rtpool.__version__, prog_name="rtpool")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens to standard error.")
def cli(verbose: bool) -> None:
    """Synchronous Supabase Realtime and Phoenix Channels."""
    if verbose:
        handler = logging.StreamHandler()
        handler.setFormatter(PrintableFormatter("%(asctime)s %(threadName)s %(message)s"))
        logging.basicConfig(level=logging.INFO, handlers=[handler])


for command in (demo, serve, listen, send, doctor, top):
    cli.add_command(command)

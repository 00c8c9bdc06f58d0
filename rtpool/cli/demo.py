"""
`rtpool demo`.
"""

from __future__ import annotations

import click

from rtpool.cli.app import errors, fail
from rtpool.errors import RtpoolError

__all__ = ["demo"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a display.")
def demo(as_json: bool) -> None:
    """Nine callers in nine threads share one WebSocket, through a reset connection."""
    try:
        from rtpool.demo import run_demo
    except ImportError as error:
        if error.name not in ("websockets", "h11"):
            raise
        errors.print("The demo needs the embedded server: pip install 'rtpool[demo]'", markup=False)
        raise SystemExit(1) from None
    try:
        good = run_demo(as_json=as_json)
    except RtpoolError as error:
        fail(error)
    except KeyboardInterrupt:
        raise SystemExit(1) from None
    raise SystemExit(0 if good else 1)

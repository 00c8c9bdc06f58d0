"""
`rtpool listen`.
"""

from __future__ import annotations

import json
from typing import Any

import attrs
import click

import rtpool
from rtpool.cli.app import channel_of, errors, fail, pool_of, server_options
from rtpool.errors import RtpoolError

__all__ = ["listen"]


@click.command()
@click.argument("topic")
@click.option("--event", default="*", show_default=True, help="Broadcasts of this name only.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@server_options
def listen(topic: str, event: str, as_json: bool, url: str, key: str | None, private: bool) -> None:
    """Print what arrives on TOPIC until Ctrl-C."""
    try:
        with pool_of(url, key) as pool:
            channel = channel_of(pool, topic, private=private)
            events = channel.events()
            channel.subscribe(timeout=15)
            errors.print(f"listening on {topic!r}; Ctrl-C ends it", markup=False)
            for received in events:
                if event == "*" or not isinstance(received, rtpool.Broadcast) or received.event == event:
                    click.echo(_line(received, as_json=as_json))
    except KeyboardInterrupt:
        return
    except BrokenPipeError:
        raise SystemExit(0) from None
    except RtpoolError as error:
        fail(error)


def _line(event: Any, *, as_json: bool) -> str:
    if as_json:
        return json.dumps({"kind": type(event).__name__, **attrs.asdict(event)}, default=_jsonable, ensure_ascii=False)
    if isinstance(event, rtpool.Broadcast):
        return f"{event.event} {json.dumps(event.payload, default=_jsonable, ensure_ascii=False)}"
    return repr(event)


def _jsonable(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else str(value)

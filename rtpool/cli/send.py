"""
`rtpool send`.
"""

from __future__ import annotations

import json

import click

from rtpool.cli.app import channel_of, fail, pool_of, server_options, token_option
from rtpool.errors import InvalidType, InvalidValue, RtpoolError

__all__ = ["send"]


@click.command()
@click.argument("topic")
@click.argument("event")
@click.argument("payload", metavar="JSON")
@token_option
@server_options
def send(topic: str, event: str, payload: str, token: str | None, url: str, key: str | None, private: bool) -> None:
    """Broadcast EVENT with a JSON object on TOPIC; done when the server acknowledged it."""
    try:
        value = json.loads(payload)
    except ValueError as error:
        raise click.UsageError(f"JSON: {error}") from error
    try:
        with (
            pool_of(url, key, access_token=token) as pool,
            channel_of(pool, topic, private=private, ack=True).subscribe(timeout=15) as channel,
        ):
            channel.send_broadcast(event, value).result()
    except (InvalidValue, InvalidType) as error:
        raise click.UsageError(str(error)) from error
    except RtpoolError as error:
        fail(error, private=private)
    except KeyboardInterrupt:
        raise SystemExit(1) from None

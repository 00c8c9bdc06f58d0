"""
`rtpool serve`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from rtpool.cli.app import errors, fail

if TYPE_CHECKING:
    from rtpool.testing import PushReply, RealtimeServer

__all__ = ["serve"]


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; 0.0.0.0 is everywhere.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="0 takes a free one.")
@click.option("--key", default=None, help="The API key to accept; a token made anew when not given.")
@click.option("--secret", default=None, envvar="SUPABASE_JWT_SECRET", help="Tokens are verified with it.")
@click.option("--plain", is_flag=True, help="A plain Phoenix server: any topic, no key, nothing of Supabase's.")
@click.option("--no-limits", is_flag=True, help="Without the limits and delays of a real server.")
def serve(host: str, port: int, key: str | None, secret: str | None, plain: bool, no_limits: bool) -> None:
    """Run the embedded Realtime server until Ctrl-C, for any client."""
    try:
        from rtpool.testing import RealtimeServer, ServerOptions
    except ImportError as error:
        if error.name not in ("websockets", "h11"):
            raise
        errors.print("The server needs websockets and h11: pip install 'rtpool[testing]'", markup=False)
        raise SystemExit(1) from None
    options = {} if no_limits else ServerOptions.real()
    try:
        server = RealtimeServer(port, host, api_key=key, secret=secret, plain_phoenix=plain, **options)
        if plain:
            server.on_push = _pass_on(server)
        with server:
            if not plain:
                click.echo(f"SUPABASE_URL={server.url}")
                click.echo(f"SUPABASE_KEY={server.api_key}")
            click.echo(f"# {_socket_url(server.url, None if plain else server.api_key)}")
            click.echo("Ctrl-C ends it.", err=True)
            stop = threading.Event()
            while not stop.wait(1.0):  # an endless wait could not be interrupted on Windows
                continue
    except KeyboardInterrupt:
        return
    except OSError as error:
        fail(error)


def _pass_on(server: RealtimeServer) -> Callable[..., PushReply]:
    """A small Phoenix application: what is pushed is sent to all of the topic and answered with itself."""
    from rtpool.testing import PushReply

    def answer(topic: str, event: str, payload: Any, connection: Any) -> PushReply:
        server.push(topic, event, payload)
        return PushReply(payload)

    return answer


def _socket_url(url: str, key: str | None) -> str:
    """What clients that take a WebSocket URL are given."""
    base = "ws" + url.removeprefix("http")
    return (
        f"{base}/socket/websocket?vsn=2.0.0" if key is None else f"{base}/realtime/v1/websocket?apikey={key}&vsn=2.0.0"
    )

"""
The commands of `rtpool`: demo, serve, listen, send. Exit codes: 0 done, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import click
from rich.console import Console

import rtpool
from rtpool.errors import InvalidType, InvalidValue, RtpoolError

if TYPE_CHECKING:
    from rtpool.testing import PushReply, RealtimeServer

__all__ = ["cli"]

F = TypeVar("F", bound=Callable[..., Any])

errors = Console(stderr=True, highlight=False)


def _server_options(function: F) -> F:
    """The options of every command that talks to a server."""
    for option in (
        click.option("--private", is_flag=True, help="The private channel of that name."),
        click.option("--key", envvar=["SUPABASE_KEY", "SUPABASE_ANON_KEY"], help="API key, or SUPABASE_KEY."),
        click.option("--url", envvar="SUPABASE_URL", required=True, help="Project URL, or SUPABASE_URL."),
    ):
        function = option(function)
    return function


def _pool(url: str, key: str | None, **options: Any) -> rtpool.RealtimePool:
    try:
        return rtpool.RealtimePool(url, api_key=key, **options)
    except (InvalidValue, InvalidType) as error:
        raise click.UsageError(str(error)) from error


def _channel(pool: rtpool.RealtimePool, topic: str, **settings: Any) -> rtpool.Channel:
    try:
        return pool.channel(topic, **settings)
    except (InvalidValue, InvalidType) as error:
        raise click.UsageError(str(error)) from error


def _fail(error: Exception) -> None:
    errors.print(f"[red]failed:[/] {type(error).__name__}: {error}", soft_wrap=True)
    raise SystemExit(1)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(rtpool.__version__, prog_name="rtpool")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens to standard error.")
def cli(verbose: bool) -> None:
    """Synchronous Supabase Realtime and Phoenix Channels."""
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(threadName)s %(message)s")


@cli.command()
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
        _fail(error)
    except KeyboardInterrupt:
        raise SystemExit(1) from None
    raise SystemExit(0 if good else 1)


@cli.command()
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
        _fail(error)


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


@cli.command()
@click.argument("topic")
@click.option("--event", default="*", show_default=True, help="Broadcasts of this name only.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@_server_options
def listen(topic: str, event: str, as_json: bool, url: str, key: str | None, private: bool) -> None:
    """Print what arrives on TOPIC until Ctrl-C."""
    try:
        with _pool(url, key) as pool:
            channel = _channel(pool, topic, private=private)
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
        _fail(error)


def _line(event: Any, *, as_json: bool) -> str:
    if as_json:
        return json.dumps({"kind": type(event).__name__, **attrs.asdict(event)}, default=_jsonable, ensure_ascii=False)
    if isinstance(event, rtpool.Broadcast):
        return f"{event.event} {json.dumps(event.payload, default=_jsonable, ensure_ascii=False)}"
    return repr(event)


def _jsonable(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else str(value)


@cli.command()
@click.argument("topic")
@click.argument("event")
@click.argument("payload", metavar="JSON")
@_server_options
def send(topic: str, event: str, payload: str, url: str, key: str | None, private: bool) -> None:
    """Broadcast EVENT with a JSON object on TOPIC; done when the server acknowledged it."""
    try:
        value = json.loads(payload)
    except ValueError as error:
        raise click.UsageError(f"JSON: {error}") from error
    try:
        with _pool(url, key) as pool, _channel(pool, topic, private=private, ack=True).subscribe(timeout=15) as channel:
            channel.send_broadcast(event, value).result()
    except (InvalidValue, InvalidType) as error:
        raise click.UsageError(str(error)) from error
    except RtpoolError as error:
        _fail(error)
    except KeyboardInterrupt:
        raise SystemExit(1) from None

"""What tests of ways to a server share: dialling, certificates, all that an error tells."""

from __future__ import annotations

import socket
import ssl
import traceback
from typing import Any

import pytest
import trustme

import rtpool
from rtpool.engine.dialer import Dialed, Endpoint, dial
from rtpool.engine.streams import Cancelled
from tests.support.recorder import Recorder
from tests.support.secrets_watch import watch

#: In every key, user and password of these tests; nothing that can be read may have it.
SECRET = "hush-hush"
watch.learn(SECRET)


def serving(authority: trustme.CA, *names: str, **details: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names, **details).configure_cert(context)
    return context


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def told(error: BaseException) -> str:
    """All that a log of this error and its causes could show."""
    lines, at = traceback.format_exception(error), error
    while at is not None:
        lines.append(repr(at))
        at = at.__cause__ or at.__context__  # type: ignore[assignment]
    return "".join(lines)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def connect(url: str, **options: Any) -> socket.socket:
    """What a dial thread does, on this one."""
    return dialed(url, **options).sock


def dialed(url: str, **options: Any) -> Dialed:
    """The same, with what the handshake told."""
    return dial(Endpoint.from_url(url, SECRET), rtpool.PoolOptions(**options), Cancelled())


def fails(url: str, kind: type[rtpool.ConnectionFailed] = rtpool.ConnectionFailed, **options: Any) -> Any:
    with pytest.raises(kind) as caught:
        connect(url, **options)
    assert SECRET not in told(caught.value)
    watch.look_at_error("a dial", caught.value)
    assert type(caught.value) is kind
    return caught.value


def works(pool: rtpool.RealtimePool) -> None:
    """A message goes out and comes back."""
    heard = Recorder()
    channel = pool.channel("room", receive_own=True, ack=True).on_broadcast("*", heard).subscribe()
    channel.send_broadcast("x", {"n": 1}).result(10)
    assert heard.wait(1)[0].payload == {"n": 1}

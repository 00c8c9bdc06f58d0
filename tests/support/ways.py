"""What tests of ways to a server share: certificates, a port nobody listens on, all that an error tells."""

from __future__ import annotations

import socket
import ssl
import traceback
from typing import Any

import trustme


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

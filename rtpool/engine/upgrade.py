"""
The WebSocket upgrade of an open stream, by websocket-client's handshake.
"""

from __future__ import annotations

import io
import secrets
import socket
from collections.abc import Callable
from datetime import datetime, timezone
from urllib.parse import urlsplit

from websocket import WebSocket

from rtpool.actions import Action
from rtpool.engine.timed import HEAD_LIMIT, Answer, TimedSocket, http_date, read_answer
from rtpool.errors import HandshakeRefused
from rtpool.protocol.refusals import classify_handshake, printable

__all__ = ["BODY_LIMIT", "WORDS_LIMIT", "upgrade"]

#: Characters of a refusal's body an error keeps, and that its message shows.
BODY_LIMIT, WORDS_LIMIT = 2_000, 300
#: What to do about a refusal that nothing is tried against.
ADVICE = {
    Action.NEW_TOKEN: " It is not tried again with the same key.",
    Action.FATAL: " It is not tried again: look at the url, the options, and the project itself.",
}


def upgrade(
    sock: socket.socket,
    url: str,
    query: str,
    headers: list[tuple[str, str]],
    where: str,
    deadline: float,
    hide: Callable[[str], str],
) -> float:
    """
    Turn a stream into a WebSocket. No byte beyond the server's head is read.

    Args:
        url: ``ws://`` or ``wss://``, without a query.
        query: put behind it; may hold a key.
        headers: more headers; a ``Host`` among them replaces the URL's.
        where: what errors call the server.
        deadline: monotonic.
        hide: takes what is secret out of the server's words.

    Returns:
        Seconds that the server's clock is ahead of ours, by its header ``Date``; 0.0 without one. It is cut to whole
        seconds and takes its time to arrive, so this is never too much: an instant of ours becomes one of theirs that
        is a little early, and what is asked for since then is rather too much than too little.

    Raises:
        HandshakeRefused: the server answered with another HTTP status than 101.
        WebSocketException, OSError, ProtocolError, http.client.HTTPException, ValueError: no answer to be understood.
    """
    parts = urlsplit(url)
    host = next((value for name, value in headers if name.lower() == "host"), parts.netloc)
    # websocket-client keeps one jar of cookies for the whole process, and would send whatever it holds for a host. Ours
    # is named by the header alone; the URL's is one that no cookie can be for.
    nowhere = secrets.token_hex(16)
    handshake = _Handshake(sock, deadline, where, hide)
    WebSocket(skip_utf8_validation=True).connect(  # type: ignore[no-untyped-call, unused-ignore]
        f"ws://{nowhere}{parts.path}?{query}",
        socket=handshake,
        host=host,
        header=[f"{name}: {value}" for name, value in headers if name.lower() != "host"],
        suppress_origin=True,
        redirect_limit=0,
    )
    return _ahead(handshake.date)


def _ahead(date: str | None) -> float:
    theirs = http_date(date)
    return 0.0 if theirs is None else (theirs - datetime.now(timezone.utc)).total_seconds()


class _Handshake(TimedSocket):
    """
    What websocket-client gets for a socket. It sees the server's answer only when that is a 101, and no cookie of it:
    its own reading of a refusal has no bound and knows no chunks, and its jar would keep the cookie for others.
    """

    def __init__(self, sock: socket.socket, deadline: float, where: str, hide: Callable[[str], str]) -> None:
        super().__init__(sock, deadline, HEAD_LIMIT)
        self._where = where
        self._hide = hide
        self._head: io.BytesIO | None = None
        self.date: str | None = None

    def send(self, data: bytes) -> int:
        self.sendall(data)
        return len(data)

    def recv(self, size: int) -> bytes:
        if self._head is None:
            answer = read_answer(self, "GET", expected=(101,), limit=BODY_LIMIT)
            if answer.status != 101:
                raise _refused(self._where, answer, self._hide)
            self.date = answer.headers.get("date")
            lines = [f"{name}: {value}" for name, value in answer.headers.items() if name.lower() != "set-cookie"]
            self._head = io.BytesIO("\r\n".join(["HTTP/1.1 101 OK", *lines, "", ""]).encode("utf-8", "replace"))
        return self._head.read(size)

    def gettimeout(self) -> float | None:
        return None

    def settimeout(self, timeout: float | None) -> None:
        """The deadline alone counts."""


def _refused(where: str, answer: Answer, hide: Callable[[str], str]) -> HandshakeRefused:
    body = hide(answer.body.decode("utf-8", "replace"))
    action = classify_handshake(answer.status, body)
    advice = ADVICE.get(action, "")
    if 300 <= answer.status < 400:
        place = printable(hide(answer.headers.get("location") or "nowhere"))[:WORDS_LIMIT]
        advice = f" It points to {place}: give that as the url if it is yours."
    elif action.retryable and answer.retry_after is not None:
        advice = f" It asks to wait {answer.retry_after:g} s."
    words = printable(body.strip())[:WORDS_LIMIT] or "no body"
    return HandshakeRefused(
        f"{where} refused the connection with HTTP {answer.status}: {words}.{advice}",
        status=answer.status,
        body=body,
        action=action,
        retry_after=answer.retry_after,
    )

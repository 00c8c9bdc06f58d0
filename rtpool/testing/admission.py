"""
Who is let in: upgrades and joins, refused with the words and statuses of a Realtime server.
"""

from __future__ import annotations

import json
import re
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from rtpool.testing.records import JoinRefusal, Refusal, RequestInfo
from rtpool.testing.wire import ClientMessage

if TYPE_CHECKING:
    from rtpool.testing.connection import ServerConnection
    from rtpool.testing.server import RealtimeServer

__all__ = ["refuse_join", "refuse_upgrade", "serializer", "to_response"]

WS_PATHS = ("/realtime/v1/websocket", "/socket/websocket")


def serializer(vsn: str) -> str | None:
    """The serializer for a requested version, ``~> 1.0.0`` or ``~> 2.0.0``; None when there is none."""
    match = re.fullmatch(r"([12])\.0\.\d+", vsn)
    return f"{match.group(1)}.0.0" if match else None


def to_response(refusal: Refusal) -> Response:
    """The HTTP response of a refused upgrade."""
    body = refusal.body.encode()
    headers = Headers()
    headers["Date"] = formatdate(usegmt=True)
    headers["Content-Type"] = "application/json; charset=utf-8"
    headers["Content-Length"] = str(len(body))
    headers["Connection"] = "close"
    for name, value in refusal.headers.items():
        if name in headers:
            del headers[name]  # assigning would add a second one
        headers[name] = value
    return Response(refusal.status, "Refused", headers, body)


def refuse_upgrade(server: RealtimeServer, request: Request) -> tuple[Refusal | None, float]:
    """Why an upgrade is refused, None when it is not; and for how many seconds the answer is held back."""
    backoff = server.options.connect_error_backoff
    parts = urlsplit(request.path)
    query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    headers = {name.lower(): value for name, value in request.headers.raw_items()}
    if server.on_connect is not None:
        try:
            decision = server.on_connect(RequestInfo(parts.path, query, headers))
        except Exception:
            return Refusal(500, _error("Error connecting to Realtime")), backoff
        if decision is not None:
            return decision, backoff
    if parts.path not in WS_PATHS:
        return Refusal(404, _error("Tenant not found")), backoff
    if serializer(query.get("vsn", "1.0.0")) is None:
        return Refusal(403), 0.0  # protocol: the web server itself refuses, at once and without a body
    if server.options.plain_phoenix:
        return None, 0.0
    return _refuse_key(server, query, headers), backoff


def _error(words: str) -> str:
    return json.dumps({"error": words}, separators=(",", ":"))


def _refuse_key(server: RealtimeServer, query: dict[str, str], headers: dict[str, str]) -> Refusal | None:
    given = headers.get("x-api-key", query.get("apikey"))
    if given is None:
        return Refusal(401, _error("API key is missing"))
    key = re.sub(r"\s", "", unquote(given))
    if key != server.api_key:
        error = server.token_error(key, time.time(), opaque=False)
        if error is not None:
            return Refusal(401, _error("Token has expired" if error[1].startswith("Token has expired") else error[1]))
    if _users(server) >= server.options.max_concurrent_users:
        return Refusal(429, _error("Too many connected users"))
    return None


def _users(server: RealtimeServer) -> int:
    return sum(connection.counted for connection in server.connections)


def refuse_join(server: RealtimeServer, connection: ServerConnection, message: ClientMessage) -> Any:
    """None to let a join in, a `JoinRefusal`, or `NO_REPLY`."""
    options, topic = server.options, message.topic
    if not options.plain_phoenix and options.require_prefix:
        if not topic.startswith("realtime:"):
            return JoinRefusal("unmatched topic", 0.0)
        if topic == "realtime:":
            return JoinRefusal("TopicNameRequired: You must provide a topic name")
    if server.on_join is not None:
        try:
            decision = server.on_join(topic.removeprefix("realtime:"), message.payload, connection)
        except Exception:
            return JoinRefusal("join crashed")
        if decision is not None:
            return decision
    if options.plain_phoenix:
        return None
    return _over_a_limit(server, connection, topic) or _refuse_payload(server, message.payload)


def _over_a_limit(server: RealtimeServer, connection: ServerConnection, topic: str) -> JoinRefusal | None:
    options, recent = server.options, server.recent_joins
    if not connection.counted and _users(server) >= options.max_concurrent_users:
        return JoinRefusal("ConnectionRateLimitReached: Too many connected users")
    if options.max_joins_per_second is not None:
        now = time.monotonic()
        while recent and now - recent[0] >= 1.0:
            recent.popleft()
        if len(recent) >= options.max_joins_per_second:
            return JoinRefusal("ClientJoinRateLimitReached: Too many joins per second", close_code=1001)
        recent.append(now)
    if len(connection.members) >= options.max_channels_per_client and topic not in connection.members:
        return JoinRefusal("ChannelRateLimitReached: Too many channels")
    return None


def _refuse_payload(server: RealtimeServer, payload: Any) -> JoinRefusal | None:
    if not isinstance(payload, dict):
        shown = json.dumps(payload) if not isinstance(payload, bytes) else repr(payload)[1:]
        return JoinRefusal(f"UnknownErrorOnChannel: expected params to be a :map, got: `{shown}`")
    error = server.token_error(payload.get("user_token") or payload.get("access_token"), time.time())
    if error is not None:
        return JoinRefusal(f"{error[0]}: {error[1]}")
    config = payload.get("config")
    if config is None:
        return None
    if not isinstance(config, dict) or any(
        isinstance(config.get(name), (str, list)) for name in ("broadcast", "presence")
    ):
        return JoinRefusal("UnknownErrorOnChannel: no function clause matching in Access.get/3")
    broadcast = config.get("broadcast")
    if isinstance(broadcast, dict) and "replay" in broadcast and str(config.get("private")).lower() != "true":
        return JoinRefusal("UnableToReplayMessages: Replay is not allowed for public channels")
    return None

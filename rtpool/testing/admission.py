"""
Who is let in: upgrades and joins, refused with the words and statuses of a Realtime server.
"""

from __future__ import annotations

import json
import re
from email.utils import formatdate
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import attrs
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from rtpool.testing.conditions import inspect
from rtpool.testing.policy import PolicyRequest, evaluate
from rtpool.testing.records import JoinRefusal, Refusal, RequestInfo
from rtpool.testing.refusals import Handshake, Join, body_of
from rtpool.testing.rooms import Member, truth
from rtpool.testing.tokens import claims_of
from rtpool.testing.wire import ClientMessage

if TYPE_CHECKING:
    from rtpool.testing.connection import ServerConnection
    from rtpool.testing.server import RealtimeServer

__all__ = [
    "admit",
    "ask_policy",
    "given_key",
    "join_token",
    "policy_request",
    "refuse_join",
    "refuse_upgrade",
    "request_info",
    "serializer",
    "to_response",
]

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
    if body:
        headers["Content-Type"] = "application/json; charset=utf-8"
    headers["Content-Length"] = str(len(body))
    headers["Connection"] = "close"
    for name, value in refusal.headers.items():
        if name in headers:
            del headers[name]  # assigning would add a second one
        headers[name] = value
    return Response(refusal.status, "Refused", headers, body)


def request_info(request: Request) -> RequestInfo:
    """An upgrade request as hooks see it."""
    parts = urlsplit(request.path)
    query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    return RequestInfo(parts.path, query, {name.lower(): value for name, value in request.headers.raw_items()})


def refuse_upgrade(server: RealtimeServer, request: Request) -> tuple[Refusal | None, float]:
    """Why an upgrade is refused, None when it is not; and for how many seconds the answer is held back."""
    backoff, info = server.options.connect_error_backoff, request_info(request)
    if server.on_connect is not None:
        try:
            decision = server.on_connect(info)
        except Exception:
            return Handshake.CONNECT_ERROR(), backoff
        if decision is not None:
            return decision, backoff
    plain = server.options.plain_phoenix and info.path.endswith("/websocket")  # an application mounts what it likes
    if not plain and info.path.rstrip("/") not in WS_PATHS:
        return Refusal(404, "Not Found", {"content-type": "text/html; charset=utf-8"}), 0.0
    if serializer(info.query.get("vsn", "1.0.0")) is None:
        return Handshake.FORBIDDEN(), 0.0  # protocol: the web server itself refuses, at once and without a body
    if server.options.plain_phoenix:
        return None, 0.0
    return _refuse_key(server, info), backoff


def given_key(info: RequestInfo) -> str | None:
    """The key of an upgrade: the header ``x-api-key`` before the query's ``apikey``."""
    given = info.headers.get("x-api-key", info.query.get("apikey"))
    return None if given is None else re.sub(r"\s", "", unquote(given))


def _refuse_key(server: RealtimeServer, info: RequestInfo) -> Refusal | None:
    if server.options.suspended:
        return Handshake.TENANT_DISABLED()
    key = given_key(info)
    if key is None:
        return Handshake.API_KEY_MISSING()
    error = server.token_error(key, opaque=False)
    if error is not None:
        # protocol: for how long it has been so is told to joins only
        return Refusal(401, body_of(error="Token has expired" if "has expired" in error[1] else error[1]))
    if _users(server) >= server.options.max_concurrent_users:
        return Handshake.TOO_MANY_USERS()
    if server.options.rate_tick > 0 and server.joins_rate.over(server.options.max_joins_per_second):
        return Handshake.TOO_MANY_JOINS()
    return None


def _users(server: RealtimeServer) -> int:
    return sum(connection.counted for connection in server.connections)


def refuse_join(server: RealtimeServer, connection: ServerConnection, message: ClientMessage) -> Any:
    """None to look further, or what an `on_join` hook may return."""
    options, topic = server.options, message.topic
    if not options.plain_phoenix and options.require_prefix:
        if not isinstance(topic, str) or not topic.startswith("realtime:"):
            return Join.UNMATCHED_TOPIC()
        if topic == "realtime:":
            return Join.TOPIC_NAME_REQUIRED()
    if server.on_join is not None:
        try:
            decision = server.on_join(topic.removeprefix("realtime:"), message.payload, connection)
        except Exception:
            return Join.CRASHED()
        if decision is not None:
            return decision
    if options.plain_phoenix:
        full = len(connection.members) >= options.max_channels_per_client and topic not in connection.members
        return Join.PHOENIX_TOO_MANY_CHANNELS() if full else None
    return _refuse_tenant(server, message.payload) or _over_a_limit(server, connection, topic)


def _refuse_tenant(server: RealtimeServer, payload: Any) -> JoinRefusal | None:
    if server.options.suspended:
        return Join.TENANT_DISABLED()
    config = payload.get("config") if isinstance(payload, dict) else None
    if server.options.private_only and not truth(config.get("private") if isinstance(config, dict) else None):
        return Join.PRIVATE_ONLY()
    return None


def _over_a_limit(server: RealtimeServer, connection: ServerConnection, topic: str) -> JoinRefusal | None:
    options = server.options
    if not connection.counted and _users(server) >= options.max_concurrent_users:
        return Join.TOO_MANY_USERS()
    if server.joins_rate.over(options.max_joins_per_second):
        return attrs.evolve(Join.TOO_MANY_JOINS(), close_code=options.disconnect_code)
    server.joins_rate.count()
    if len(connection.members) >= options.max_channels_per_client and topic not in connection.members:
        return Join.TOO_MANY_CHANNELS()
    return None


def join_token(connection: ServerConnection, payload: dict[str, Any]) -> str | None:
    """The token a channel is joined with: the join's own, or the connection's."""
    token = payload.get("user_token")
    token = payload.get("access_token") if token is None else token
    if not isinstance(token, str) or token.startswith("sb_"):
        return connection.token  # protocol: numbers and opaque keys are passed over
    return token


def admit(server: RealtimeServer, member: Member, payload: Any) -> JoinRefusal | None:
    """Why a join is refused for what it brings; None fills in what the member may do."""
    if not isinstance(payload, dict):
        shown = json.dumps(payload) if not isinstance(payload, bytes) else repr(payload)[1:]
        return Join.UNKNOWN_EXCEPTION(error=f"expected params to be a :map, got: `{shown}`")
    config = payload.get("config")
    odd = config is not None and not isinstance(config, dict)
    if odd or (config and any(isinstance(config.get(name), (str, list)) for name in ("broadcast", "presence"))):
        return Join.UNKNOWN_EXCEPTION(error="no function clause matching in Access.get/3")
    changes = config.get("postgres_changes") if config else None
    for entry in changes if isinstance(changes, list) else ():
        if entry is not None and not isinstance(entry, dict):
            return Join.UNKNOWN_EXCEPTION(error=f"expected a map, got:\n\n    {inspect(entry)}\n")
    member.token = join_token(member.connection, payload)
    error = server.token_error(member.token)
    if error is not None:
        return JoinRefusal(f"{error[0]}: {error[1]}")
    member.claims = claims_of(member.token)
    trouble = server.try_database(private=member.private)
    if trouble is not None:
        return trouble.join()
    if not ask_policy(server, member):
        return Join.UNAUTHORIZED(topic=member.name)
    return None


def ask_policy(server: RealtimeServer, member: Member) -> bool:
    """Ask what a member may read; whether it is anything at all."""
    if member.private:
        member.may = evaluate(server.policy, policy_request(member))
        member.may_write = None
    return member.may.read_broadcast or member.may.read_presence


def policy_request(member: Member) -> PolicyRequest:
    """What the policy is asked about a member."""
    return PolicyRequest(member.name, member.claims, member.connection.headers)

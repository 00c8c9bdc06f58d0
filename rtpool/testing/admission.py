"""
Who is let in: upgrades and joins, refused with the words and statuses of a Realtime server.
"""

from __future__ import annotations

import json
import re
from email.utils import formatdate
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from rtpool.testing.policy import PolicyRequest, evaluate
from rtpool.testing.postgres import inspect
from rtpool.testing.records import JoinRefusal, Refusal, RequestInfo
from rtpool.testing.rooms import Member, truth
from rtpool.testing.tokens import claims_of
from rtpool.testing.wire import ClientMessage

if TYPE_CHECKING:
    from rtpool.testing.connection import ServerConnection
    from rtpool.testing.server import RealtimeServer

__all__ = [
    "NO_READ",
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
            return Refusal(500, _error("Error connecting to Realtime")), backoff
        if decision is not None:
            return decision, backoff
    plain = server.options.plain_phoenix and info.path.endswith("/websocket")  # an application mounts what it likes
    if not plain and info.path.rstrip("/") not in WS_PATHS:
        return Refusal(404, "Not Found", {"content-type": "text/html; charset=utf-8"}), 0.0
    if serializer(info.query.get("vsn", "1.0.0")) is None:
        return Refusal(403), 0.0  # protocol: the web server itself refuses, at once and without a body
    if server.options.plain_phoenix:
        return None, 0.0
    return _refuse_key(server, info), backoff


def given_key(info: RequestInfo) -> str | None:
    """The key of an upgrade: the header ``x-api-key`` before the query's ``apikey``."""
    given = info.headers.get("x-api-key", info.query.get("apikey"))
    return None if given is None else re.sub(r"\s", "", unquote(given))


def _error(words: str) -> str:
    return json.dumps({"error": words}, separators=(",", ":"))


def _refuse_key(server: RealtimeServer, info: RequestInfo) -> Refusal | None:
    if server.options.suspended:
        return Refusal(403, _error("Realtime was disabled for this tenant"))
    key = given_key(info)
    if key is None:
        return Refusal(401, _error("API key is missing"))
    error = server.token_error(key, opaque=False)
    if error is not None:
        return Refusal(401, _error("Token has expired" if error[1].startswith("Token has expired") else error[1]))
    if _users(server) >= server.options.max_concurrent_users:
        return Refusal(429, _error("Too many connected users"))
    if server.options.rate_tick > 0 and server.joins_rate.over(server.options.max_joins_per_second):
        return Refusal(429, _error("Too many joins per second"))
    return None


def _users(server: RealtimeServer) -> int:
    return sum(connection.counted for connection in server.connections)


def refuse_join(server: RealtimeServer, connection: ServerConnection, message: ClientMessage) -> Any:
    """None to look further, or what an `on_join` hook may return."""
    options, topic = server.options, message.topic
    if not options.plain_phoenix and options.require_prefix:
        if not isinstance(topic, str) or not topic.startswith("realtime:"):
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
        full = len(connection.members) >= options.max_channels_per_client and topic not in connection.members
        return JoinRefusal("too many channels joined") if full else None
    return _refuse_tenant(server, message.payload) or _over_a_limit(server, connection, topic)


def _refuse_tenant(server: RealtimeServer, payload: Any) -> JoinRefusal | None:
    if server.options.suspended:
        return JoinRefusal("RealtimeDisabledForTenant: Realtime disabled for this tenant")
    config = payload.get("config") if isinstance(payload, dict) else None
    if server.options.private_only and not truth(config.get("private") if isinstance(config, dict) else None):
        return JoinRefusal("PrivateOnly: This project only allows private channels")
    return None


def _over_a_limit(server: RealtimeServer, connection: ServerConnection, topic: str) -> JoinRefusal | None:
    options = server.options
    if not connection.counted and _users(server) >= options.max_concurrent_users:
        return JoinRefusal("ConnectionRateLimitReached: Too many connected users")
    if server.joins_rate.over(options.max_joins_per_second):
        words = "ClientJoinRateLimitReached: Too many joins per second"
        return JoinRefusal(words, close_code=options.disconnect_code)
    server.joins_rate.count()
    if len(connection.members) >= options.max_channels_per_client and topic not in connection.members:
        return JoinRefusal("ChannelRateLimitReached: Too many channels")
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
        return JoinRefusal(f"UnknownErrorOnChannel: expected params to be a :map, got: `{shown}`")
    config = payload.get("config")
    odd = config is not None and not isinstance(config, dict)
    if odd or (config and any(isinstance(config.get(name), (str, list)) for name in ("broadcast", "presence"))):
        return JoinRefusal("UnknownErrorOnChannel: no function clause matching in Access.get/3")
    changes = config.get("postgres_changes") if config else None
    for entry in changes if isinstance(changes, list) else ():
        if entry is not None and not isinstance(entry, dict):
            return JoinRefusal(f"UnknownErrorOnChannel: expected a map, got:\n\n    {inspect(entry)}\n")
    member.token = join_token(member.connection, payload)
    error = server.token_error(member.token)
    if error is not None:
        return JoinRefusal(f"{error[0]}: {error[1]}")
    member.claims = claims_of(member.token)
    if member.private and server.database_is_down:
        return JoinRefusal("IncreaseConnectionPool: Please increase your connection pool size")
    if not ask_policy(server, member):
        return JoinRefusal(f"Unauthorized: {NO_READ.format(member.name)}")
    return None


NO_READ = "You do not have permissions to read from this Channel topic: {}"


def ask_policy(server: RealtimeServer, member: Member) -> bool:
    """Ask what a member may read; whether it is anything at all."""
    if member.private:
        member.may = evaluate(server.policy, policy_request(member))
        member.may_write = None
    return member.may.read_broadcast or member.may.read_presence


def policy_request(member: Member) -> PolicyRequest:
    """What the policy is asked about a member."""
    return PolicyRequest(member.name, member.claims, member.connection.headers)

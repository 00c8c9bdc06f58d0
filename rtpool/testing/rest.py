"""
The REST endpoints of a Realtime server: broadcast in a batch, broadcast of one event, ping.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import attrs

from rtpool.testing.policy import PolicyRequest, evaluate
from rtpool.testing.records import Refusal, RestRecord, RestRequest
from rtpool.testing.tokens import claims_of
from rtpool.testing.wire import Malformed, ServerMessage, parse_json, size_of

if TYPE_CHECKING:
    from rtpool.testing.server import RealtimeServer

__all__ = ["answer"]

_BLANK = "can't be blank"
_WS = re.compile(r"(/realtime/v1|/socket)/websocket/?")
_MOUNTS = r"(?:/realtime/v1)?/api"
_BATCH = re.compile(_MOUNTS + r"/broadcast/?")
_SINGLE = re.compile(_MOUNTS + r"/broadcast/([^/]+)/events/([^/]+)/?")
_PING = re.compile(_MOUNTS + r"/ping/?")
_JSON = {"content-type": "application/json; charset=utf-8"}
_CORS = {
    "access-control-allow-origin": "*",
    "access-control-allow-headers": "authorization, apikey, content-type, x-client-info",
    "access-control-allow-methods": "GET, POST, OPTIONS",
}


async def answer(server: RealtimeServer, request: RestRequest) -> Refusal:
    """The answer to a request that is no upgrade, as a Realtime server gives it; recorded."""
    answered = None
    if server.on_request is not None:
        try:
            answered = server.on_request(request)
        except Exception:
            answered = _say(500, message="RPC error")
    if answered is not None and answered.delay:
        await server.clock.sleep(answered.delay)
    try:
        answered = answered or _route(server, request)
    except ValueError:  # protocol: a topic of more than 255 bytes goes into no binary frame
        answered = _say(500, errors={"detail": "Internal Server Error"})
    if "origin" in request.headers:
        answered = attrs.evolve(answered, headers={**_CORS, **answered.headers})
    server.record_request(RestRecord(request.method, request.path, request.headers, request.body, answered.status))
    return answered


def _say(status: int, headers: dict[str, str] | None = None, **body: Any) -> Refusal:
    text = json.dumps(body, separators=(",", ":")) if body else ""
    return Refusal(status, text, {**(_JSON if body else {}), **(headers or {})})


def _route(server: RealtimeServer, request: RestRequest) -> Refusal:
    if _WS.fullmatch(request.path):
        missing = "'connection' header must contain 'upgrade', got []"
        return Refusal(400, missing if request.method == "GET" else "")
    single = _SINGLE.fullmatch(request.path) if server.options.single_rest else None
    if server.options.plain_phoenix or not (single or any(p.fullmatch(request.path) for p in (_BATCH, _PING))):
        return Refusal(404, "Not Found", {"content-type": "text/html; charset=utf-8"})
    if request.method == "OPTIONS":
        return Refusal(204, "")
    if request.method != ("GET" if _PING.fullmatch(request.path) else "POST"):
        return Refusal(404, "Not Found", {"content-type": "text/html; charset=utf-8"})
    limit = server.options.max_events_per_second
    shown, rolling = 100 if limit is None else limit, int(server.events.average)
    rates = {"x-rate-limit": shown, "x-rate-rolling": rolling, "x-rate-limit-remaining": max(0, shown - rolling)}
    decided = _decide(server, request, single)
    return attrs.evolve(decided, headers={**{name: str(n) for name, n in rates.items()}, **decided.headers})


def _decide(server: RealtimeServer, request: RestRequest, single: re.Match[str] | None) -> Refusal:
    if _PING.fullmatch(request.path):
        return _say(200, message="Success")
    if request.too_large:
        return Refusal(413)
    if server.options.suspended:
        return _say(403, message="Tenant is suspended")
    token = _token(request)
    if token is None or server.token_error(token, opaque=False) is not None:
        return _say(401, message="Unauthorized")
    asked = PolicyRequest("", claims_of(token), _forwarded(request))
    if single is not None:
        topic, event = unquote(single.group(1)), unquote(single.group(2))
        return _single(server, request, attrs.evolve(asked, topic=topic), event)
    return _batch(server, request, asked)


def _token(request: RestRequest) -> str | None:
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    return bearer.strip() if scheme.lower() == "bearer" else request.headers.get("apikey")


def _forwarded(request: RestRequest) -> dict[str, str]:
    return {name: value for name, value in request.headers.items() if name.startswith("x-")}


def _over(server: RealtimeServer, count: int) -> Refusal | None:
    limit = server.options.max_events_per_second
    if server.events.over(limit):
        return _say(429, message="You have exceeded your rate limit")
    if limit is not None and count > limit:
        return _say(429, message="Too many messages to broadcast, please reduce the batch size")
    return None


def _batch(server: RealtimeServer, request: RestRequest, asked: PolicyRequest) -> Refusal:
    try:
        body = parse_json(request.body)
    except Malformed:
        return _say(400, errors={"detail": "Bad Request"})
    messages = body.get("messages") if isinstance(body, dict) else None
    if not messages:
        return _say(422, errors={"messages": [_BLANK]})
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return _say(422, errors={"messages": ["is invalid"]})
    found = [_faults(server, message) for message in messages]
    if any(found):
        return _say(422, errors={"messages": found})
    refused = _over(server, len(messages))
    if refused is not None:
        return refused
    for message in messages:
        private = message.get("private") is True
        # protocol: what the policy denies is dropped without a word
        if private and not _may_write(server, attrs.evolve(asked, topic=message["topic"])):
            continue
        data = {"type": "broadcast", "event": message["event"], "payload": message["payload"]}
        if isinstance(message.get("id"), str):
            data["meta"] = {"id": message["id"]}
        _send(server, message["topic"], private, data, kind_4=False)
    return Refusal(202)


def _faults(server: RealtimeServer, message: dict[str, Any]) -> dict[str, list[str]]:
    faults = {}
    for name, kind in (("topic", str), ("event", str), ("payload", dict)):
        value = message.get(name)
        if value is None or value == "":
            faults[name] = [_BLANK]
        elif not isinstance(value, kind):
            faults[name] = ["is invalid"]
    if not faults and size_of(message["payload"]) > server.max_payload:
        faults["payload"] = ["Payload size exceeds tenant limit"]
    return faults


def _may_write(server: RealtimeServer, asked: PolicyRequest) -> bool:
    return not server.database_is_down and evaluate(server.policy, asked).write_broadcast


def _single(server: RealtimeServer, request: RestRequest, asked: PolicyRequest, event: str) -> Refusal:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    payload: Any = request.body
    if kind == "application/json":
        try:
            payload = parse_json(request.body)
        except Malformed:
            return _say(400, errors={"detail": "Bad Request"})
        if not isinstance(payload, dict):
            payload = {"_json": payload}
    elif kind != "application/octet-stream":
        return _say(415, error="Unsupported Media Type. Use application/json or application/octet-stream")
    if size_of(payload) > server.max_payload:
        return _say(422, errors={"payload": ["Payload size exceeds tenant limit"]})
    refused = _over(server, 1)
    if refused is not None:
        return refused
    private = request.query.get("private", "").lower() == "true"
    if private and server.database_is_down:
        return _say(422, message="Tenant database unavailable")
    if private and not _may_write(server, asked):
        return _say(403, message="Unauthorized")
    _send(server, asked.topic, private, {"type": "broadcast", "event": event, "payload": payload}, kind_4=True)
    return Refusal(202)


def _send(server: RealtimeServer, topic: str, private: bool, data: dict[str, Any], *, kind_4: bool) -> None:
    wire_topic = server.wire_topic(topic)
    server.rooms.broadcast(ServerMessage(None, None, wire_topic, "broadcast", data, kind_4), private).enforce()

"""
What a failure calls for: tables from a server's words, statuses and codes to an `Action`. What no table has backs off.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from rtpool.actions import Action

__all__ = [
    "Action",
    "TOKEN_CODES",
    "Verdict",
    "classify_changes",
    "classify_close",
    "classify_error",
    "classify_handshake",
    "classify_join",
    "classify_proxy",
    "classify_push",
    "classify_rest",
    "classify_socks",
    "classify_system",
    "judge_join",
    "parse_reason",
    "printable",
    "read_rest_errors",
    "words_of",
]


class Verdict(NamedTuple):
    """
    What a refusal calls for, and for how long.

    Attributes:
        action: what to do about it.
        attempts: that are made so in a row; None for as many as it takes.
        then: what to do about it afterwards.
        not_before: seconds an attempt by `action` waits at least.
    """

    action: Action
    attempts: int | None = None
    then: Action = Action.FATAL
    not_before: float | None = None

    def after(self, failures: int) -> Action:
        """What to do after so many refusals in a row, this one included: 1 and more."""
        return self.action if self.attempts is None or failures <= self.attempts else self.then


#: Characters of a server's words that an error keeps.
MAX_WORDS = 2_000

_CODE = re.compile(r"([A-Z][A-Za-z0-9]*): (.*)\Z", re.DOTALL)
_NUMBER = re.compile(r"-?[0-9]+")

#: A catch-all of the server's: trouble that passes, or a config that crashes it every time. Nobody knows, and it is not
#: given up.
_UNKNOWN = Verdict(Action.BACK_OFF, attempts=5, then=Action.BACK_OFF_LONG)

#: Codes of join replies (supabase/realtime, `RealtimeWeb.RealtimeChannel`).
JOIN_CODES: dict[str, Action | Verdict] = {
    "TopicNameRequired": Action.FATAL,
    "PrivateOnly": Action.FATAL,
    "Unauthorized": Action.NEW_TOKEN,
    "InvalidJWTToken": Action.NEW_TOKEN,
    "MalformedJWT": Action.NEW_TOKEN,
    "JwtSignatureError": Action.NEW_TOKEN,
    # After a rotation of keys the server's cache of them lags by up to 30 s.
    "JwtSignerError": Verdict(Action.BACK_OFF, attempts=1, then=Action.NEW_TOKEN, not_before=30.0),
    "ChannelRateLimitReached": Action.OTHER_SOCKET,
    "ConnectionRateLimitReached": Action.BACK_OFF_LONG,
    "ClientJoinRateLimitReached": Action.BACK_OFF_LONG,
    "IncreaseConnectionPool": Action.BACK_OFF,
    "DatabaseLackOfConnections": Action.BACK_OFF_LONG,
    "DatabaseConnectionRateLimitReached": Verdict(Action.BACK_OFF, not_before=5.0),  # 3 errors within 5 s
    "UnableToConnectToProject": Action.BACK_OFF,
    "InitializingProjectConnection": Verdict(Action.RETRY, attempts=1, then=Action.BACK_OFF),
    "QueryCanceled": Action.BACK_OFF,
    "MissingPartition": Action.BACK_OFF,
    "TimeoutOnRpcCall": Action.BACK_OFF,
    "ErrorOnRpcCall": Action.BACK_OFF,
    "RealtimeRestarting": Action.OTHER_SOCKET,
    "MusterJoinError": Action.BACK_OFF,
    "TenantNotFound": Action.FATAL,
    "RealtimeDisabledForTenant": Action.FATAL,
    "UnableToReplayMessages": Action.BACK_OFF,
    "UnknownErrorOnChannel": _UNKNOWN,
    "PostgresChangesSubscribeTimeout": Action.BACK_OFF,
    "RealtimeDisabledForConfiguration": Action.FATAL,
}

#: Those that are about the token itself, whatever the topic.
TOKEN_CODES = frozenset({"InvalidJWTToken", "MalformedJWT", "JwtSignatureError", "JwtSignerError"})

#: Whole texts of join replies that carry no code, or whose code alone does not tell.
JOIN_TEXTS: dict[str, Action | Verdict] = {
    "unmatched topic": Action.FATAL,
    "too many channels joined": Action.OTHER_SOCKET,  # plain Phoenix
    "join crashed": Action.BACK_OFF,
    "Realtime was unable to connect to the project database": Action.BACK_OFF,
    "Unknown Error on Channel": _UNKNOWN,
    "UnableToReplayMessages: Replay params are not valid": Action.FATAL,
    "UnableToReplayMessages: Replay is not allowed for public channels": Action.FATAL,
}

#: What error replies to pushes say. rtpool sends no push twice; this is what its caller may hope for.
PUSH_TEXTS: dict[str, Action] = {
    "unmatched topic": Action.RETRY,  # the server has forgotten the channel
    "payload_size_exceeded": Action.FATAL,
    "Presence track payload must be a map": Action.FATAL,
}

#: Statuses of a refused upgrade. Servers before 2.115 answer everything with an empty 403; see `classify_handshake`.
HANDSHAKE_STATUSES: dict[int, Action] = {
    400: Action.FATAL,
    401: Action.NEW_TOKEN,
    403: Action.FATAL,
    404: Action.FATAL,
    407: Action.FATAL,
    410: Action.FATAL,
    414: Action.FATAL,
    426: Action.FATAL,
    429: Action.BACK_OFF_LONG,
    431: Action.FATAL,
    500: Action.BACK_OFF,
    502: Action.BACK_OFF,
    503: Action.BACK_OFF,
    504: Action.BACK_OFF,
}

#: A 401 that no other token helps against: none got there, so an option or a gateway is wrong. Realtime's and Kong's.
KEY_MISSING = ("API key is missing", "No API key found in request")

#: Codes of a close frame (RFC 6455 §7.4, and IANA's registry of them). Each is reconnected after: whatever the peer
#: minds is of this socket. None starts at once, for what ends one socket often ends everybody's; the reconnect policy's
#: jitter spreads them.
CLOSE_CODES: dict[int, Action] = {
    1000: Action.BACK_OFF,  # silent for 60 s; up to 2.128 also put out at the limit of joins
    1001: Action.BACK_OFF,  # put out: at the limit of joins, and then its joins were told to wait longer
    1002: Action.BACK_OFF,
    1003: Action.BACK_OFF,
    1005: Action.BACK_OFF,  # a close frame without a code
    1006: Action.BACK_OFF,  # no close frame
    1007: Action.BACK_OFF,
    1008: Action.BACK_OFF_LONG,  # a policy, of a gateway: nothing that passes by itself in a second
    1009: Action.BACK_OFF,  # a frame over its limit; no frame is sent twice
    1011: Action.BACK_OFF,
    1012: Action.BACK_OFF,  # a deploy, or other settings of the tenant
    1013: Action.BACK_OFF_LONG,  # "try again later"
    1014: Action.BACK_OFF,
    1015: Action.BACK_OFF,
}

#: Statuses of a refused REST broadcast (supabase/realtime, `RealtimeWeb.BroadcastController`).
REST_STATUSES: dict[int, Action] = {
    400: Action.FATAL,
    401: Action.NEW_TOKEN,
    403: Action.NEW_TOKEN,  # row-level security denies
    404: Action.FATAL,
    405: Action.FATAL,
    410: Action.FATAL,
    413: Action.FATAL,
    414: Action.FATAL,
    415: Action.FATAL,
    422: Action.FATAL,  # validation
    429: Action.BACK_OFF_LONG,
    431: Action.FATAL,
    500: Action.BACK_OFF,
    502: Action.BACK_OFF,
    503: Action.BACK_OFF,
    504: Action.BACK_OFF,
}

#: Words of a REST refusal that say more than its status.
REST_MESSAGES: dict[str, Action] = {
    "Tenant not found in database": Action.FATAL,
    "Tenant is suspended": Action.FATAL,
    "RLS policy error": Action.BACK_OFF,
    "Query canceled": Action.BACK_OFF,
    "Missing messages partition": Action.BACK_OFF,
    "Tenant database unavailable": Action.BACK_OFF,
    "Tenant database initializing": Action.BACK_OFF,
    "Tenant database connection initializing": Action.BACK_OFF,
    "Tenant database has too many connections": Action.BACK_OFF_LONG,
    "Connect rate limit reached": Action.BACK_OFF_LONG,
    "Connection pool exhausted": Action.BACK_OFF,
}

#: Statuses of a proxy's refusal to tunnel.
PROXY_STATUSES: dict[int, Action] = {
    400: Action.FATAL,
    401: Action.FATAL,
    403: Action.FATAL,
    404: Action.FATAL,
    405: Action.FATAL,
    407: Action.FATAL,
    429: Action.BACK_OFF_LONG,
    500: Action.BACK_OFF,
    501: Action.FATAL,
    502: Action.BACK_OFF,
    503: Action.BACK_OFF,
    504: Action.BACK_OFF,
}

#: Reply codes of SOCKS proxies: RFC 1928 §6, and of SOCKS4.
SOCKS_CODES: dict[int, Action] = {
    0x01: Action.BACK_OFF,  # a failure of its own
    0x02: Action.FATAL,  # forbidden by its rules
    0x03: Action.BACK_OFF,
    0x04: Action.BACK_OFF,
    0x05: Action.BACK_OFF,
    0x06: Action.BACK_OFF,
    0x07: Action.FATAL,  # a command it does not know
    0x08: Action.FATAL,  # a kind of address it does not know
    0x5B: Action.BACK_OFF,  # SOCKS4: rejected or failed
    0x5C: Action.BACK_OFF,  # SOCKS4: it cannot ask who we are
    0x5D: Action.FATAL,  # SOCKS4: we are somebody else
}

#: Starts of what python-socks says of an answer without a reply code that another attempt may not meet.
SOCKS_TRANSIENT = ("Connection closed",)

#: Starts of `system` error messages that precede a close; and what ends a channel without one.
SYSTEM_MESSAGES: tuple[tuple[str, Action], ...] = (
    ("Token has expired", Action.NEW_TOKEN),
    ("Fields `role` and `exp`", Action.NEW_TOKEN),
    ("The token provided is not a valid JWT", Action.NEW_TOKEN),
    ("Failed to generate JWT signer", Action.NEW_TOKEN),
    (":signature_error", Action.NEW_TOKEN),
    (":error_generating_signer", Action.NEW_TOKEN),
    ("You do not have permissions", Action.NEW_TOKEN),
    ("You no longer have permission", Action.NEW_TOKEN),
    ("Too many messages per second", Action.BACK_OFF_LONG),
    ("Too many presence messages per second", Action.BACK_OFF_LONG),
    ("Client presence rate limit exceeded", Action.BACK_OFF),
    ("Track message size exceeded", Action.BACK_OFF),
    ("Replication connection was not established in time", Action.BACK_OFF),
    ("Realtime was unable to connect to the project database", Action.BACK_OFF),
    ("Query was cancelled, please try again", Action.BACK_OFF),
    ("Node request timeout", Action.BACK_OFF),
    ("RPC call error", Action.BACK_OFF),
    (":initializing", Action.BACK_OFF),
    (":tenant_database_connection_initializing", Action.BACK_OFF),
    (":connect_rate_limit_reached", Action.BACK_OFF),
    (":tenant_db_too_many_connections", Action.BACK_OFF),
    (":increase_connection_pool", Action.BACK_OFF),
    (":tenant_suspended", Action.FATAL),
    ("phx_error", Action.BACK_OFF),
    ("phx_close", Action.BACK_OFF),
    ("unmatched topic", Action.RETRY),  # the reply to a push: the server has forgotten the channel
)


#: Starts of `system` errors of the extension postgres_changes after which the server gives up until another join; any
#: other is its own trouble, and it goes on trying by itself.
CHANGES_GIVEN_UP = (
    "Error parsing ",
    "`in` filter value must be wrapped",
    "filter must not contain empty segments",
    "Column selection is not supported",
    "No subscription params provided",
    "Unable to subscribe to changes",
)


def printable(text: str) -> str:
    """A server's words on one line, however many it sent, and without what a terminal would act on."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def words_of(value: Any, hide: Callable[[str], str] = str) -> str:
    """A server's value in words, of bounded length, however large or deep it is; `hide` takes secrets out."""
    try:
        text = hide(value if isinstance(value, str) else repr(value))
    except RecursionError:
        return f"a {type(value).__name__} nested too deeply to show"
    return text if len(text) <= MAX_WORDS else f"{text[:MAX_WORDS]}… ({len(text)} characters)"


def parse_reason(response: Any, hide: Callable[[str], str] = str) -> tuple[str | None, str]:
    """
    The code and the words of an error response, which may be an object with a reason, a string, or anything.

    Args:
        response: any JSON value.
        hide: takes secrets out of the words.

    Returns:
        ``(code, reason)``; the code is None when the server sent none.
    """
    reason = response.get("reason", "") if isinstance(response, dict) else response
    text = words_of(reason, hide)
    match = _CODE.match(text)
    return (match.group(1), match.group(2)) if match else (None, text)


def judge_join(response: Any) -> Verdict:
    """What to do about an error reply to a join, and for how long."""
    code, reason = parse_reason(response)
    whole = f"{code}: {reason}" if code else reason
    found = JOIN_TEXTS.get(whole) or JOIN_CODES.get(code or "", Action.BACK_OFF)
    return Verdict(found) if isinstance(found, Action) else found


def classify_join(response: Any, failures: int = 1) -> Action:
    """What to do about an error reply to a join, after so many failures in a row, this one included."""
    return judge_join(response).after(failures)


def classify_push(response: Any) -> Action:
    """What to hope for after an error reply to a push."""
    code, reason = parse_reason(response)
    return PUSH_TEXTS.get(reason, Action.BACK_OFF) if code is None else Action.BACK_OFF


def classify_handshake(status: int, body: str) -> Action:
    """What to do about an HTTP answer to the upgrade."""
    if status == 403 and not body.strip():
        return Action.BACK_OFF  # servers before 2.115 answer everything so
    if status == 401 and any(words in body for words in KEY_MISSING):
        return Action.FATAL
    return HANDSHAKE_STATUSES.get(status, Action.BACK_OFF)


def classify_close(code: int | None) -> Action:
    """What to do about a socket that ended with this close code; None when it broke without a close frame."""
    return CLOSE_CODES.get(1006 if code is None else code, Action.BACK_OFF)


def classify_error(error: BaseException) -> Action:
    """What to do about an exception: rtpool's own say it themselves, any other backs off."""
    action = getattr(error, "action", None)
    return action if isinstance(action, Action) else Action.BACK_OFF


def classify_rest(status: int, body: Any) -> Action:
    """What to do about an HTTP answer to a REST broadcast; `body` is its decoded JSON, or its text."""
    message = body.get("message") if isinstance(body, dict) else None
    known = REST_MESSAGES.get(message) if isinstance(message, str) else None
    if 200 <= status < 400:
        return Action.FATAL  # not a Realtime server's answer
    return known or REST_STATUSES.get(status, Action.BACK_OFF)


def read_rest_errors(body: Any, count: int) -> tuple[dict[int, dict[str, tuple[str, ...]]], str]:
    """
    What a REST refusal says of each message, and in one line.

    Args:
        body: its decoded JSON; anything.
        count: messages that were sent.

    Returns:
        ``(errors, words)``: index of the message -> field -> the server's words; both empty when it says nothing.
    """
    if not isinstance(body, dict):
        return {}, ""
    for key in ("message", "error"):
        if isinstance(body.get(key), str):
            return {}, body[key]
    found = body.get("errors")
    if not isinstance(found, dict):
        return {}, ""
    listed = found.get("messages")
    if isinstance(listed, list) and all(isinstance(item, dict) for item in listed):
        errors = {index: _fields(item) for index, item in enumerate(listed) if item}
        named = {f"messages[{index}].": fields for index, fields in errors.items()}
    else:
        fields = _fields(found)
        errors, named = ({0: fields} if count == 1 else {}), {"": fields}
    words = [
        f"{where}{field}: {text}"
        for where, fields in named.items()
        for field, texts in fields.items()
        for text in texts
    ]
    return errors, "; ".join(words[:5]) + ("; …" if len(words) > 5 else "")


def _fields(item: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    return {
        field: tuple(map(str, texts)) if isinstance(texts, list) else (str(texts),) for field, texts in item.items()
    }


def classify_proxy(status: int) -> Action:
    """What to do about a proxy's HTTP answer to CONNECT."""
    return PROXY_STATUSES.get(status, Action.BACK_OFF)


def classify_socks(code: int, words: str) -> Action:
    """What to do about a SOCKS proxy's refusal; code 0 is none, as when it refuses the credentials."""
    if code:
        return SOCKS_CODES.get(code, Action.BACK_OFF)
    return Action.BACK_OFF if words.startswith(SOCKS_TRANSIENT) else Action.FATAL


def classify_changes(message: str) -> Action:
    """What to do about a `system` error of the extension postgres_changes; the server itself goes on where it can."""
    return Action.FATAL if message.startswith(CHANGES_GIVEN_UP) else Action.BACK_OFF


def classify_system(message: str) -> Action:
    """
    What to do about a channel the server closed after this `system` error, or without one by this frame:
    ``phx_error``, ``phx_close`` or ``unmatched topic``.
    """
    if _NUMBER.fullmatch(message):
        return Action.NEW_TOKEN  # the seconds since a token's expiry, printed bare
    for start, action in SYSTEM_MESSAGES:
        if message.startswith(start):
            return action
    return Action.BACK_OFF

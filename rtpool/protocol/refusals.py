"""
What to do about a refusal: one table from the server's words to an action.
"""

from __future__ import annotations

import enum
import re
from typing import Any

__all__ = [
    "Action",
    "classify_changes",
    "classify_handshake",
    "classify_join",
    "classify_proxy",
    "classify_rest",
    "classify_socks",
    "classify_system",
    "parse_reason",
    "read_rest_errors",
    "words_of",
]


class Action(enum.Enum):
    """What a refusal calls for."""

    RETRY = "retry"  #: at once, then back off
    BACK_OFF = "back off"
    BACK_OFF_LONG = "back off long"  #: 10 s and more; trying sooner makes it worse
    NEW_TOKEN = "new token"  #: only another token helps
    OTHER_SOCKET = "other socket"  #: this socket is full or going away
    FATAL = "fatal"  #: the same request can never succeed

    @property
    def retryable(self) -> bool:
        """Whether rtpool goes on by itself."""
        return self not in (Action.NEW_TOKEN, Action.FATAL)


#: Characters of a server's words that an error keeps.
MAX_WORDS = 2_000

_CODE = re.compile(r"([A-Z][A-Za-z0-9]*): (.*)\Z", re.DOTALL)

#: Codes of join replies (supabase/realtime, `RealtimeWeb.RealtimeChannel`); a code not listed backs off.
JOIN_CODES: dict[str, Action] = {
    "TopicNameRequired": Action.FATAL,
    "PrivateOnly": Action.FATAL,
    "Unauthorized": Action.NEW_TOKEN,
    "InvalidJWTToken": Action.NEW_TOKEN,
    "MalformedJWT": Action.NEW_TOKEN,
    "JwtSignatureError": Action.NEW_TOKEN,
    "JwtSignerError": Action.NEW_TOKEN,
    "ChannelRateLimitReached": Action.OTHER_SOCKET,
    "RealtimeRestarting": Action.OTHER_SOCKET,
    "ConnectionRateLimitReached": Action.BACK_OFF_LONG,
    "ClientJoinRateLimitReached": Action.BACK_OFF_LONG,
    "DatabaseLackOfConnections": Action.BACK_OFF_LONG,
    "InitializingProjectConnection": Action.RETRY,
    "TenantNotFound": Action.FATAL,
    "RealtimeDisabledForTenant": Action.FATAL,
    "RealtimeDisabledForConfiguration": Action.FATAL,
}

#: Whole texts of join replies that carry no code, or whose code alone does not tell.
JOIN_TEXTS: dict[str, Action] = {
    "unmatched topic": Action.FATAL,
    "too many channels joined": Action.OTHER_SOCKET,  # plain Phoenix
    "UnableToReplayMessages: Replay params are not valid": Action.FATAL,
    "UnableToReplayMessages: Replay is not allowed for public channels": Action.FATAL,
}

#: Statuses of a refused upgrade. Servers before 2.115 answer everything with an empty 403.
HANDSHAKE_STATUSES: dict[int, Action] = {
    400: Action.FATAL,
    401: Action.NEW_TOKEN,
    404: Action.FATAL,
    407: Action.FATAL,
    410: Action.FATAL,
    414: Action.FATAL,
    426: Action.FATAL,
    429: Action.BACK_OFF_LONG,
    431: Action.FATAL,
}

#: A 401 that no other token helps against: none got there, so an option or a gateway is wrong.
KEY_MISSING = "API key is missing"

#: Statuses of a refused REST broadcast (supabase/realtime, `RealtimeWeb.BroadcastController`); others back off.
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

#: Statuses of a proxy's refusal to tunnel; one not listed backs off.
PROXY_STATUSES: dict[int, Action] = {
    400: Action.FATAL,
    401: Action.FATAL,
    403: Action.FATAL,
    404: Action.FATAL,
    405: Action.FATAL,
    407: Action.FATAL,
    501: Action.FATAL,
}

#: Reply codes of SOCKS proxies that trying again does not change: RFC 1928 §6, and of SOCKS4 the one about other users.
SOCKS_FATAL = frozenset({0x02, 0x07, 0x08, 0x5D})

#: Starts of what python-socks says of an answer without a reply code that another attempt may not meet.
SOCKS_TRANSIENT = ("Connection closed",)

#: Starts of `system` error messages that precede a close; one not listed backs off.
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
    (":tenant_suspended", Action.FATAL),
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


def words_of(value: Any) -> str:
    """A server's value in words, of bounded length, however large or deep it is."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except RecursionError:
        return f"a {type(value).__name__} nested too deeply to show"
    return text if len(text) <= MAX_WORDS else f"{text[:MAX_WORDS]}… ({len(text)} characters)"


def parse_reason(response: Any) -> tuple[str | None, str]:
    """
    The code and the words of an error response, which may be an object with a reason, a string, or anything.

    Returns:
        ``(code, reason)``; the code is None when the server sent none.
    """
    reason = response.get("reason", "") if isinstance(response, dict) else response
    text = words_of(reason)
    match = _CODE.match(text)
    return (match.group(1), match.group(2)) if match else (None, text)


def classify_join(response: Any) -> Action:
    """What to do about an error reply to a join."""
    code, reason = parse_reason(response)
    whole = f"{code}: {reason}" if code else reason
    return JOIN_TEXTS.get(whole) or JOIN_CODES.get(code or "", Action.BACK_OFF)


def classify_handshake(status: int, body: str) -> Action:
    """What to do about an HTTP answer to the upgrade."""
    if status == 403:
        return Action.FATAL if body.strip() else Action.BACK_OFF
    if status == 401 and KEY_MISSING in body:
        return Action.FATAL
    return HANDSHAKE_STATUSES.get(status, Action.BACK_OFF)


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
        return Action.FATAL if code in SOCKS_FATAL else Action.BACK_OFF
    return Action.BACK_OFF if words.startswith(SOCKS_TRANSIENT) else Action.FATAL


def classify_changes(message: str) -> Action:
    """What to do about a `system` error of the extension postgres_changes."""
    return Action.FATAL if message.startswith(CHANGES_GIVEN_UP) else Action.BACK_OFF


def classify_system(message: str) -> Action:
    """What to do about a channel the server closed after this `system` error; an empty message backs off."""
    if message.lstrip("-").isdigit():
        return Action.NEW_TOKEN  # the seconds since a token's expiry, printed bare
    for start, action in SYSTEM_MESSAGES:
        if message.startswith(start):
            return action
    return Action.BACK_OFF

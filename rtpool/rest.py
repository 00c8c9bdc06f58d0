"""
Broadcasts by REST: one HTTP request, no join, no socket of the pool, no thread.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import attrs

from rtpool.checks import check_name, check_timeout, check_token, check_type
from rtpool.engine.descriptors import close
from rtpool.engine.engine import Engine
from rtpool.engine.redaction import Redactor, forget_variables
from rtpool.engine.streams import Address, Cancelled, failure, open_stream
from rtpool.engine.timed import HEAD_LIMIT, Answer, TimedSocket, read_answer, request_head
from rtpool.errors import (
    BroadcastRefused,
    ConnectionFailed,
    InvalidType,
    InvalidValue,
    MessageTooBig,
    PoolClosed,
    ProtocolError,
    PushTimeout,
    RtpoolError,
)
from rtpool.protocol.json_engine import dumps, json_object, loads
from rtpool.protocol.messages import MAX_NAME_BYTES
from rtpool.protocol.refusals import Action, classify_rest, printable, read_rest_errors

__all__ = ["BroadcastMessage", "RestBroadcasts", "RestClient"]

#: What a Realtime server takes as a request's body (Plug.Parsers' default); more is a 413.
MAX_BODY_BYTES = 8_000_000
#: Bytes of a refusal that are read: enough for the words on every message of a batch.
ANSWER_LIMIT = 1_000_000
#: Characters of a refusal's body an error keeps.
BODY_LIMIT = 2_000
#: What a Realtime topic begins with on the wire, and not in REST.
REALTIME = "realtime:"
#: Names that gateways take for steps in a path, however they are quoted.
DOTS = (".", "..")

JSON, BYTES = "application/json", "application/octet-stream"


@attrs.frozen
class BroadcastMessage:
    """
    One message of `RealtimePool.broadcast_many`.

    Attributes:
        topic: without the prefix.
        event: its name.
        payload: a JSON object.
        private: whether it goes to the private channel of the topic.
        id: delivered with it; None for none.
    """

    topic: str
    event: str
    payload: Mapping[str, Any]
    private: bool = attrs.field(default=False, kw_only=True)
    id: str | None = attrs.field(default=None, kw_only=True)


_FIELDS = frozenset(field.name for field in attrs.fields(BroadcastMessage))


@attrs.frozen(eq=False)
class _Request:
    """One POST, encoded, and how errors speak of it."""

    target: str
    body: bytes = attrs.field(repr=False)
    kind: str
    what: str
    topic: str
    event: str
    count: int = 1


class RestBroadcasts:
    """The part of a pool that broadcasts by REST."""

    _rest: RestClient

    def broadcast(
        self,
        topic: str,
        event: str,
        payload: Mapping[str, Any] | bytes,
        *,
        private: bool = False,
        timeout: float = 10.0,
    ) -> None:
        """
        Send one broadcast by REST: no join is needed, nothing is connected or started, and every subscriber hears it,
        this pool's Channels included.

        A callable access token is called, and the option `dial`, on the calling thread.

        Args:
            topic: without the prefix.
            event: 1 to 255 bytes of UTF-8.
            payload: a JSON object; or bytes, which Channels on protocol 2.0.0 hear.
            private: send to the private channel, if row-level security lets this token.
            timeout: seconds for all of it, connecting included.

        Raises:
            BroadcastRefused: the server said no, in its words; or the token callable failed.
            ConnectionFailed: there is no connection to the server.
            PushTimeout: no answer in time; `sent` says whether the server may have it.
            InvalidType, InvalidValue, MessageTooBig: at the call; nothing was sent. Plain Phoenix has no REST.
            PoolClosed: the pool is closed, or was meanwhile.

        A server older than 2.97 has the batch endpoint alone: a JSON payload goes there, with what `broadcast_many`
        says of private messages; bytes are refused.
        """
        self._rest.broadcast(topic, event, payload, private, timeout)

    def broadcast_many(
        self, messages: Iterable[BroadcastMessage | Mapping[str, Any]], *, timeout: float = 10.0
    ) -> None:
        """
        Send many broadcasts in one REST request. All are checked before any is sent; of none, nothing is sent.

        That this returns does not prove that private messages were let through: the server accepts the batch, and drops
        those its row-level security denies without a word. `broadcast` sends one, and tells.

        Args:
            messages: `BroadcastMessage`, or mappings with its fields. JSON objects only, 8,000,000 bytes together.
            timeout: seconds for all of it, connecting included.

        Raises:
            As `broadcast`; `BroadcastRefused.errors` tells what is wrong with which message.
        """
        self._rest.broadcast_many(messages, timeout)


class RestClient:
    """
    REST calls of one pool.

    Args:
        engine: the pool's, started or not; closing it breaks calls off.
        token: the pool's access token, str, callable or None; replaced whole by `set_auth`.

    Thread-safety: every method may be called from any thread; each call has a connection of its own.
    """

    def __init__(self, engine: Engine, token: str | Callable[[], str] | None) -> None:
        self.token = token
        self._engine = engine
        self._options = options = engine.options
        parts = urlsplit(engine.endpoint.url)
        path = parts.path.removesuffix("/websocket").removesuffix("/socket").rstrip("/")
        self._path = f"{path}/api/broadcast"
        self._url = urlunsplit(("https" if parts.scheme == "wss" else "http", parts.netloc, self._path, "", ""))
        self._host = parts.netloc
        self._address = Address.from_url(engine.endpoint.url)
        in_header = next((value for name, value in options.headers if name.lower() == "x-api-key"), None)
        self._key = engine.endpoint.api_key or in_header

    def broadcast(self, topic: str, event: str, payload: object, private: bool, timeout: float) -> None:
        """As `RestBroadcasts.broadcast`."""
        deadline = self._check(timeout)
        batched: bytes | None = None
        if isinstance(payload, (bytes, bytearray, memoryview)):
            name, kind, data = self._name(topic, event, private, ""), BYTES, bytes(payload)
        else:
            message = BroadcastMessage(topic, event, payload, private=private)  # type: ignore[arg-type]
            kind, (name, data, batched) = JSON, self._encode(message, "")
        what = f"broadcast of {event!r} on {topic!r}"
        path = f"{self._path}/{quote(name, safe='')}/events/{quote(event, safe='')}"
        single = _Request(path + ("?private=true" if private else ""), data, kind, what, topic, event)
        has_path = name not in DOTS and event not in DOTS
        if batched is None and not has_path:
            raise InvalidValue(f"bytes cannot go to topic {topic!r}, event {event!r} by REST: no path can name them")
        try:
            if has_path:
                self._send(single, timeout, deadline)
                return
        except BroadcastRefused as error:
            if error.status != 404:
                raise
            if batched is None:
                words = f"{error} Bytes need a Realtime server of version 2.97 or later"
                raise BroadcastRefused(words, **error._fields) from error
        assert batched is not None
        self._send(self._batch([batched], what, topic, event), timeout, deadline)

    def broadcast_many(self, messages: object, timeout: float) -> None:
        """As `RestBroadcasts.broadcast_many`."""
        deadline = self._check(timeout)
        if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Iterable):
            raise InvalidType(f"messages must be an iterable of BroadcastMessage, not {type(messages).__name__}")
        encoded: list[bytes] = []
        size = 0
        for index, message in enumerate(messages):
            _, _, data = self._encode(_message(message, index), f"messages[{index}].")
            encoded.append(data)
            size += len(data)
            if size > MAX_BODY_BYTES:  # at once: there may be no end of them
                raise _too_big(size, f"the batch up to messages[{index}]")
        if encoded:
            self._send(self._batch(encoded, f"batch of {len(encoded)} broadcasts", "", ""), timeout, deadline)

    def _check(self, timeout: float) -> float:
        check_timeout(timeout)
        if not self._options.is_supabase:
            raise InvalidValue("plain Phoenix servers have no REST broadcasts; subscribe a Channel and push")
        if self._engine.closed:
            raise PoolClosed(f"the pool {self._engine.name} is closed; make a new one")
        return time.monotonic() + timeout

    def _name(self, topic: str, event: str, private: bool, where: str) -> str:
        prefix = self._options.topic_prefix
        check_name(f"{where}topic", topic, MAX_NAME_BYTES - len(prefix.encode("utf-8")))
        check_name(f"{where}event", event, MAX_NAME_BYTES)
        check_type(f"{where}private", private, bool)
        return prefix[len(REALTIME) :] + topic

    def _encode(self, message: BroadcastMessage, where: str) -> tuple[str, bytes, bytes]:
        """The topic's name in REST, the payload's JSON, and the message's as one of a batch."""
        name = self._name(message.topic, message.event, message.private, where)
        data = json_object(message.payload, f"{where}payload")
        fields: dict[str, Any] = {"topic": name, "event": message.event, "private": message.private}
        if message.id is not None:
            check_name(f"{where}id", message.id, MAX_NAME_BYTES)
            fields["id"] = message.id
        return name, data, b'%s,"payload":%s}' % (dumps(fields)[:-1], data)

    def _batch(self, encoded: list[bytes], what: str, topic: str, event: str) -> _Request:
        body = b'{"messages":[%s]}' % b",".join(encoded)
        return _Request(self._path, body, JSON, what, topic, event, len(encoded))

    def _headers(self, request: _Request) -> list[tuple[str, str]]:
        own = {
            "Host": self._host,
            "Content-Type": request.kind,
            "Content-Length": str(len(request.body)),
            "Connection": "close",
            "Accept-Encoding": "identity",
        }
        if self._key:
            own["apikey"] = self._key
        bearer = self._bearer()
        if bearer is not None:
            own["Authorization"] = f"Bearer {bearer}"
        given = {name.lower() for name, _ in self._options.headers}
        return [item for item in own.items() if item[0].lower() not in given] + list(self._options.headers)

    def _bearer(self) -> str | None:
        token: object = self.token
        try:
            if callable(token):
                token = token()
                check_token(token)
            if isinstance(token, str):
                check_token(token)
                return token.strip()
        except Exception as error:  # the callable is user code
            reason = str(error) if isinstance(error, RtpoolError) else type(error).__name__
            raise BroadcastRefused(
                f"nothing was sent, for there is no access token: {reason}", reason=reason, action=Action.BACK_OFF
            ) from error
        # An opaque key is no JWT: a gateway makes one of it when it comes as apikey, and refuses it as a bearer.
        return None if self._key is None or self._key.startswith("sb_") else self._key

    def _send(self, request: _Request, timeout: float, deadline: float) -> None:
        if len(request.body) > MAX_BODY_BYTES:
            raise _too_big(len(request.body), f"the {request.what}")
        try:
            self._post(request, timeout, deadline)
        except RtpoolError as error:
            forget_variables(error)
            raise

    def _post(self, request: _Request, timeout: float, deadline: float) -> None:
        self._engine.count_rest_broadcast()
        headers = self._headers(request)
        hide = Redactor(self._options, self._key, dict(headers).get("Authorization"))
        try:
            with self._engine.dialer.breakable() as cancelled:
                head = request_head("POST", request.target, headers)
                answer = self._exchange(head, request, timeout, deadline, cancelled, hide)
            if answer.status != 202:
                raise _refused(self._url, request, answer, hide)
        except RtpoolError as error:
            hide.clean(error)
            raise

    def _exchange(
        self, head: bytes, request: _Request, timeout: float, deadline: float, cancelled: Cancelled, hide: Redactor
    ) -> Answer:
        connected_by = min(deadline, time.monotonic() + self._options.connection_timeout)
        state = "connecting" if connected_by < deadline else "not sent"
        try:
            with contextlib.ExitStack() as opened:
                sock = open_stream(self._address, self._options, connected_by, cancelled)
                opened.callback(close, sock)
                state = "not sent"
                stream = TimedSocket(sock, deadline, HEAD_LIMIT + ANSWER_LIMIT)
                try:
                    stream.sendall(head)
                    stream.sendall(request.body)
                    state = "sent, and may have been broadcast"
                except (ConnectionError, ssl.SSLError) as error:
                    # A server may refuse a large body before it has read it, and hang up.
                    return _early_answer(stream, error)
                return read_answer(stream, "POST", expected=(202,), limit=ANSWER_LIMIT)
        except (ConnectionFailed, PoolClosed):
            raise
        except Exception as error:  # of several libraries
            if isinstance(error, TimeoutError) and state != "connecting":
                raise PushTimeout(
                    f"no answer from {self._url} to the {request.what} within {timeout:g} s; it was {state}",
                    topic=request.topic,
                    event=request.event,
                    timeout=timeout,
                    sent=state != "not sent",
                ) from error
            failed = failure(self._url, error, self._options.connection_timeout, hide)
            if state.startswith("sent"):
                failed = ConnectionFailed(f"{failed}; the {request.what} was {state}", **failed._fields)
            raise failed from error


def _message(given: object, index: int) -> BroadcastMessage:
    if isinstance(given, BroadcastMessage):
        return given
    if not isinstance(given, Mapping):
        raise InvalidType(f"messages[{index}] must be a BroadcastMessage or a mapping, not {type(given).__name__}")
    missing = {"topic", "event", "payload"} - given.keys()
    unknown = given.keys() - _FIELDS
    if missing or unknown:
        fault = f"has no {min(missing)!r}" if missing else f"has {min(map(repr, unknown))}, which no broadcast has"
        raise InvalidValue(f"messages[{index}] {fault}")
    return BroadcastMessage(**given)


def _too_big(size: int, what: str) -> MessageTooBig:
    return MessageTooBig(
        f"{what} has {size} bytes: a Realtime server takes {MAX_BODY_BYTES} in a request",
        size=size,
        limit=MAX_BODY_BYTES,
    )


def _early_answer(stream: TimedSocket, error: OSError) -> Answer:
    try:
        return read_answer(stream, "POST", expected=(), limit=ANSWER_LIMIT)
    except Exception:  # there is none; what broke first says more
        raise error from None


def _refused(url: str, request: _Request, answer: Answer, hide: Redactor) -> BroadcastRefused:
    text = hide(answer.body.decode("utf-8", "replace"))
    try:
        value = loads(text.encode())
    except ProtocolError:
        value = text
    errors, words = read_rest_errors(value, request.count)
    action = classify_rest(answer.status, value)
    reason = printable(words or text.strip()[:200] or answer.reason) or "no reason given"
    return BroadcastRefused(
        f"{url} refused the {request.what} with HTTP {answer.status}: {reason}.{_advice(answer.status, action)}",
        status=answer.status,
        reason=reason,
        body=text[:BODY_LIMIT],
        action=action,
        retry_after=answer.retry_after,
        errors=errors if answer.status == 422 else {},
    )


def _advice(status: int, action: Action) -> str:
    if 200 <= status < 400:
        return " A Realtime server answers 202; check the url"
    if status == 429:
        return " Wait, or send fewer at once"
    return " Another access token is needed" if action is Action.NEW_TOKEN else ""

"""
Every error rtpool raises. One root, and each leaf is also the built-in type people already catch. Each says in `action`
what it calls for, in `retryable` whether the same thing can succeed later, in `retry_after` how long the other side
asked to wait.

```
RtpoolError
├── InvalidValue (ValueError)          an argument or option out of range
│   └── ConfigConflict                 two callers want different things of what they share
├── InvalidType (TypeError)            an argument of the wrong type
├── MessageTooBig (ValueError)         a payload, frame or event over a size limit
├── ProtocolError (ValueError)         the peer sent what the protocol forbids
├── ConnectionFailed (ConnectionError) no connection, or it was lost
│   ├── HandshakeRefused               the server answered the upgrade with an HTTP status
│   └── ProxyRefused                   the proxy refused to connect to the server
├── BroadcastRefused                   the server refused a broadcast sent by REST
├── JoinRefused                        the server refused the channel
├── JoinTimeout (TimeoutError)         no answer to a join in time
├── PushRefused                        the server answered a push with an error
├── PushTimeout (TimeoutError)         no answer to a push in time
├── ReceiveTimeout (TimeoutError)      no event in time
├── NotSubscribed (RuntimeError)       the Channel is not subscribed
├── PoolExhausted (RuntimeError)       every connection is full and no more are allowed
├── SendBufferFull (RuntimeError)      too many pushes are waiting
├── MailboxOverflow (RuntimeError)     a Channel with `overflow="close"` fell too far behind
├── MonkeyPatchConflict (RuntimeError) gevent patched the process in part, or too late
├── PoolClosed (RuntimeError)          the pool was closed
└── PoolForked (RuntimeError)          the pool belongs to the parent process
```
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from rtpool.actions import Action

__all__ = [
    "BroadcastRefused",
    "ConfigConflict",
    "ConnectionFailed",
    "HandshakeRefused",
    "InvalidType",
    "InvalidValue",
    "JoinRefused",
    "JoinTimeout",
    "MailboxOverflow",
    "MessageTooBig",
    "MonkeyPatchConflict",
    "NotSubscribed",
    "PoolClosed",
    "PoolExhausted",
    "PoolForked",
    "ProtocolError",
    "ProxyRefused",
    "PushRefused",
    "PushTimeout",
    "ReceiveTimeout",
    "RtpoolError",
    "SendBufferFull",
]


def _rebuild(cls: type[RtpoolError], message: str, fields: dict[str, Any]) -> RtpoolError:
    return cls(message, **fields)


class RtpoolError(Exception):
    """
    Root of every error rtpool raises.

    Args:
        message: What happened, where, the number, and what to do.
        fields: Values for the attributes the class documents.

    Attributes:
        action: what it calls for. The same class may call for different things: a 401 for another token, a 503 for
            patience.
        retryable: whether trying the same thing again can succeed; follows from `action`.
        retry_after: seconds to wait at least before the next attempt, 0 to 3,600; None where nobody asked for it.
    """

    __module__ = "rtpool"
    action: Action = Action.FATAL
    retry_after: float | None = None

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self._fields = fields
        for name, value in fields.items():
            setattr(self, name, value)

    @property
    def retryable(self) -> bool:
        """Whether trying the same thing again can succeed."""
        return self.action.retryable

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), str(self.args[0]), self._fields)

    def again(self) -> RtpoolError:
        """
        A fresh copy chained to this one, so that no two waiters raise the same object.
        """
        copy = type(self)(str(self.args[0]), **self._fields)
        copy.__cause__ = self
        return copy


class InvalidValue(RtpoolError, ValueError):
    """An argument or option has a value rtpool cannot accept; nothing was changed or sent."""

    __module__ = "rtpool"


class InvalidType(RtpoolError, TypeError):
    """An argument or option has the wrong type; nothing was changed or sent."""

    __module__ = "rtpool"


class ConfigConflict(InvalidValue):
    """Two callers asked for different things of something they would share."""

    __module__ = "rtpool"


class MessageTooBig(RtpoolError, ValueError):
    """
    A message is over a size limit: ours at the call, or the peer's when receiving.

    Attributes:
        size: bytes it has, as far as known.
        limit: bytes allowed.
    """

    __module__ = "rtpool"
    size: int = 0
    limit: int = 0


class ProtocolError(RtpoolError, ValueError):
    """
    The peer sent bytes that the WebSocket or Phoenix protocol forbids. The next connection may be to a better one.

    Attributes:
        close_code: the RFC 6455 §7.4.1 code to close with, or None when the frame alone is to be dropped.
    """

    __module__ = "rtpool"
    action = Action.BACK_OFF
    close_code: int | None = None


class ConnectionFailed(RtpoolError, ConnectionError):
    """
    A connection could not be made, or was lost.

    Attributes:
        action: ``FATAL`` where it can never be made: a certificate that does not hold, a refused client certificate, no
            TLS version in common, a wrong option. ``BACK_OFF_LONG`` for a name that cannot be found, ``BACK_OFF`` for
            all else.
        close_code: the WebSocket close code received, None when there was none.
        cause: what a `Gap` says of it: ``"transport"``, ``"heartbeat"`` or ``"server restart"``.
    """

    __module__ = "rtpool"
    action = Action.BACK_OFF
    close_code: int | None = None
    cause: str = "transport"


class HandshakeRefused(ConnectionFailed):
    """
    The server answered the WebSocket upgrade with an HTTP status.

    Attributes:
        status: the HTTP status.
        body: the start of the response body, at most 2,000 characters.
        action: ``NEW_TOKEN`` for a 401; ``FATAL`` where no key came along with it, for a 404 and a 403 with words;
            ``BACK_OFF_LONG`` for a 429; ``BACK_OFF`` for a 403 without words (servers before 2.115 answer everything
            so), for 5xx and what is unknown.
        retryable: whether a later attempt with the same key can succeed.
        retry_after: seconds, by the answer's header ``Retry-After``, whatever the status.
    """

    __module__ = "rtpool"
    status: int = 0
    body: str = ""


class ProxyRefused(ConnectionFailed):
    """
    The proxy answered, and did not connect to the server.

    Attributes:
        status: the HTTP status of an HTTP proxy, the reply code of a SOCKS proxy (RFC 1928 §6), or 0 without one.
        reason: the proxy's words.
        retryable: whether a later attempt can succeed; not where it wants other credentials or its rules forbid it.
        retry_after: seconds, by the answer's header ``Retry-After``.
    """

    __module__ = "rtpool"
    status: int = 0
    reason: str = ""


class BroadcastRefused(RtpoolError):
    """
    The server refused a broadcast sent by REST; nothing of it was sent on.

    Attributes:
        status: the HTTP status; 0 when there was no token to ask with.
        reason: the server's words.
        body: the start of the response body, at most 2,000 characters.
        retryable: whether the same call can succeed later.
        retry_after: seconds, by the answer's header ``Retry-After``.
        errors: what a 422 finds wrong: index of the message -> field -> the server's words.
    """

    __module__ = "rtpool"
    status: int = 0
    reason: str = ""
    body: str = ""
    errors: Mapping[int, Mapping[str, tuple[str, ...]]] = MappingProxyType({})


class JoinRefused(RtpoolError):
    """
    The server refused to let a channel in, or put it out.

    Attributes:
        topic: the topic as the user wrote it.
        code: the server's code, e.g. ``"Unauthorized"``; None when it sent none.
        reason: the server's words.
        action: what the server's words call for, after so many refusals.
        retryable: whether rtpool goes on trying by itself.
        retry_after: seconds that sense asks to wait where trying sooner is known to be in vain.
    """

    __module__ = "rtpool"
    topic: str = ""
    code: str | None = None
    reason: str = ""


class JoinTimeout(RtpoolError, TimeoutError):
    """
    A Channel was not ready in time.

    Attributes:
        topic: the topic as the user wrote it.
        timeout: seconds waited.
    """

    __module__ = "rtpool"
    action = Action.BACK_OFF
    topic: str = ""
    timeout: float = 0.0


class PushRefused(RtpoolError):
    """
    The server answered a push with a status other than ok.

    Attributes:
        topic: the topic as the user wrote it.
        event: the event pushed.
        status: the server's status, usually ``"error"``.
        response: the server's response as it came, any JSON value (a string for ``payload_size_exceeded``); where that
            repeats a token, the error's words do not, and this does.
    """

    __module__ = "rtpool"
    topic: str = ""
    event: str = ""
    status: str = "error"
    response: Any = None


class PushTimeout(RtpoolError, TimeoutError):
    """
    No answer to a push in time, or it could not be sent in time.

    Attributes:
        topic: the topic as the user wrote it.
        event: the event pushed.
        timeout: seconds allowed.
        sent: whether the frame had been handed to the kernel.
    """

    __module__ = "rtpool"
    action = Action.BACK_OFF
    topic: str = ""
    event: str = ""
    timeout: float = 0.0
    sent: bool = False


class ReceiveTimeout(RtpoolError, TimeoutError):
    """
    `Channel.get` saw no event in time.

    Attributes:
        topic: the topic as the user wrote it.
        timeout: seconds waited.
    """

    __module__ = "rtpool"
    action = Action.BACK_OFF
    topic: str = ""
    timeout: float = 0.0


class NotSubscribed(RtpoolError, RuntimeError):
    """
    The Channel is not subscribed, so nothing can be sent or received on it.

    Attributes:
        topic: the topic as the user wrote it.
    """

    __module__ = "rtpool"
    topic: str = ""


class PoolExhausted(RtpoolError, RuntimeError):
    """
    Every connection is full or holds this topic already, and `max_connections` are in use. A Channel that found no room
    joins as soon as there is some.

    Attributes:
        topic: the topic as the user wrote it.
    """

    __module__ = "rtpool"
    action = Action.BACK_OFF
    topic: str = ""


class SendBufferFull(RtpoolError, RuntimeError):
    """
    Too much is waiting to be sent; nothing was accepted.

    Attributes:
        limit: the limit that was reached.
    """

    __module__ = "rtpool"
    action = Action.BACK_OFF
    limit: int = 0


class MailboxOverflow(RtpoolError, RuntimeError):
    """
    A Channel with ``overflow="close"`` fell `mailbox_limit` events behind and was unsubscribed.

    Attributes:
        limit: the mailbox limit.
    """

    __module__ = "rtpool"
    limit: int = 0


class MonkeyPatchConflict(RtpoolError, RuntimeError):
    """
    gevent has patched a part of what a pool needs, or has patched the process after the pool had started its threads.
    """

    __module__ = "rtpool"


class PoolClosed(RtpoolError, RuntimeError):
    """The pool was closed, or failed; make a new one."""

    __module__ = "rtpool"


class PoolForked(RtpoolError, RuntimeError):
    """
    What is asked for is the parent process's: a subscription, an iterator or a push of before the fork.

    The pool itself is of use in the child: subscribe anew, or give it the option ``after_fork="resubscribe"``.
    """

    __module__ = "rtpool"

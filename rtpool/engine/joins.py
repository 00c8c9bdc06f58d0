"""
One join as the I/O thread sees it: who shares it, where it lives, what it still owes.
"""

from __future__ import annotations

from collections import deque
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs

from rtpool.engine.outgoing import Outgoing
from rtpool.engine.tokens import TokenSource
from rtpool.errors import JoinRefused, JoinTimeout, RtpoolError
from rtpool.events import ChannelState, SystemMessage
from rtpool.protocol.json_engine import dumps, loads
from rtpool.protocol.messages import JsonBody
from rtpool.protocol.postgres import ChangeBinding
from rtpool.protocol.presence import PresenceCalls, PresenceState
from rtpool.protocol.refusals import Action, classify_join, parse_reason
from rtpool.protocol.replay import Replay, ReplayRequest
from rtpool.protocol.session import JoinFailed
from rtpool.registry import Attachment, JoinConfig, Share, Subscriber

if TYPE_CHECKING:
    from rtpool.engine.connection import Connection
    from rtpool.engine.io_loop import Timer

__all__ = ["Echo", "Join", "Outage", "fail_waiting", "failure_of", "refused", "was_ready"]

#: Broadcasts of our own whose echo is awaited, per join; beyond it the oldest is taken for lost.
MAX_ECHOES = 1_000


class Outage(NamedTuple):
    """An interruption: its cause, and the last proof of life before it."""

    cause: str
    lost_from: datetime


class Echo(NamedTuple):
    """A broadcast of our own that the server will send back to the join."""

    sender: Subscriber
    event: str
    data: bytes
    is_binary: bool


@attrs.define(eq=False)
class Join:
    """
    One server channel and the Channels that share it. Confined to the I/O thread.

    Attributes:
        members: the Channels that are served; the registry's `Share` says who should be.
        connection: where it is placed, None while there is no room.
        config: what was asked of the server last.
        leaving, leavers: a leave awaits the server's word, and who awaits it with us.
        requested: whether it stands in the queue for its join, or waits for a token.
        changes_flow: whether the server said that Postgres changes flow since the last join.
        system_error, changes_error: the server's latest words of trouble with the channel, with its changes feed.
        renewing: the server subscribes to changes anew because of a token it was given, and will say so.
        replay: stored broadcasts, as soon as a member wants them; None before.
        replaying: the server replays what an interruption cost; the answer to a presence call ends it.
        presence_calls, presence_pushes, presence_calling, presence_timer: when the server may be told who is present;
            who waits for that to be said, who for its answer; when the budget allows the next call.
        outage: set from the loss of the channel until events flow again.
        blocked: refused for good, until a new token or a new Channel.
        token: what the server was given last.
        second_chance: the server refused the token, and the callable is asked for another before anybody is told.
    """

    share: Share
    source: TokenSource
    presence_calls: PresenceCalls
    members: tuple[Subscriber, ...] = ()
    connection: Connection | None = None
    config: JoinConfig = attrs.field(factory=JoinConfig)
    requested: bool = False
    leaving: bool = False
    leavers: list[Attachment] = attrs.field(factory=list)
    ids: dict[int, tuple[ChangeBinding, ...]] = attrs.field(factory=dict)
    changes_flow: bool = False
    changes_message: SystemMessage | None = None
    system_error: str = ""
    changes_error: str = ""
    renewing: bool = False
    replay: Replay | None = None
    replay_request: ReplayRequest | None = None
    replaying: bool = False
    presence_pushes: list[Outgoing] = attrs.field(factory=list)
    presence_calling: list[Outgoing] = attrs.field(factory=list)
    presence_timer: Timer | None = None
    presence: PresenceState = attrs.field(factory=PresenceState)
    echoes: deque[Echo] = attrs.field(factory=lambda: deque(maxlen=MAX_ECHOES))
    buffer: deque[Outgoing] = attrs.field(factory=deque)
    attempts: int = 0
    retry: Timer | None = None
    outage: Outage | None = None
    blocked: RtpoolError | None = None
    second_chance: RtpoolError | None = None
    token: str | None = None

    @property
    def topic(self) -> str:
        """The wire topic."""
        return self.share.key.topic

    @property
    def name(self) -> str:
        """The topic as its users wrote it."""
        return self.members[0].topic if self.members else self.topic

    @property
    def joined(self) -> bool:
        """Whether the server has let it in on a live connection."""
        return (
            self.connection is not None
            and self.connection.state == "open"
            and self.connection.session.state(self.topic) is ChannelState.JOINED
        )

    @property
    def ready(self) -> bool:
        """Whether everything it asks for flows."""
        return self.joined and not self.replaying and (self.changes_flow or not self.config.changes)

    def body(self, *, supabase: bool) -> JsonBody:
        """The payload of its `phx_join`; a plain Phoenix server gets what its application wants."""
        if not supabase:
            return JsonBody(self.share.key.params)
        config, key = self.config, self.share.key
        broadcast: dict[str, Any] = {"ack": config.ack, "self": config.receive_own}
        if self.replay_request is not None:  # the mere presence of the key is an error on public channels
            broadcast["replay"] = self.replay_request.to_wire()
        payload: dict[str, Any] = {
            "config": {
                "broadcast": broadcast,
                "presence": {"key": key.presence_key or "", "enabled": config.presence},
                "postgres_changes": [change.to_wire() for change in config.changes],
                "private": key.private,
            }
        }
        if self.token is not None:
            payload["access_token"] = self.token
        return JsonBody(dumps(payload))

    def claim_echo(self, event: str, payload: Any) -> Subscriber | None:
        """
        Whose broadcast an incoming one is, when the server echoes ours.

        Echoes come in the order of sending, so a match means that earlier ones will not come any more. A stranger's
        message of equal name and content is indistinguishable from ours, and so is who of the two is served which.
        """
        for index, echo in enumerate(self.echoes):
            if echo.event == event and payload == (echo.data if echo.is_binary else loads(echo.data)):
                for _ in range(index + 1):
                    self.echoes.popleft()
                return echo.sender
        return None


def fail_waiting(share: Share, error: RtpoolError) -> None:
    """Give everybody who waits for a share to be ready the reason why it will not be."""
    for subscriber in share.subscribers:
        attachment = subscriber.attachment
        if attachment is not None and attachment.share is share and not attachment.ready.done():
            attachment.ready.set_exception(error.again())


def was_ready(subscriber: Subscriber) -> bool:
    """Whether events flowed to it before, so that it has something to lose."""
    attachment = subscriber.attachment
    return attachment is not None and attachment.ready.done() and attachment.ready.exception() is None


def refused(topic: str, response: Any, action: Action) -> JoinRefused:
    """The error for an error response, or for the words before a close."""
    code, reason = parse_reason(response)
    words = f"{code}: {reason}" if code else reason
    after = "rtpool tries again by itself" if action.retryable else f"not tried again ({action.value} needed)"
    if action is Action.FATAL:
        after = "not tried again: the same request cannot succeed"
    return JoinRefused(
        f"the server refused {topic!r}: {words or 'no reason given'}; {after}",
        topic=topic,
        code=code,
        reason=reason,
        retryable=action.retryable,
    )


def failure_of(topic: str, event: JoinFailed, join_timeout: float) -> tuple[RtpoolError, Action]:
    """The error for a join that failed, and what to do about it."""
    if event.timed_out:
        words = f"no reply to the join of {topic!r} within {join_timeout} s"
        return JoinTimeout(words, topic=topic, timeout=join_timeout), Action.BACK_OFF
    action = classify_join(event.response)
    return refused(topic, event.response, action), action

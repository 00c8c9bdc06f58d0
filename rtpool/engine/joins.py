"""
One join as the I/O thread sees it: who shares it, where it lives, what it still owes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs

from rtpool.engine.outgoing import Outgoing
from rtpool.engine.tokens import TokenSource
from rtpool.errors import JoinRefused, JoinTimeout, RtpoolError
from rtpool.events import ChannelState, SystemMessage
from rtpool.protocol.handover import Handover
from rtpool.protocol.json_engine import canonical, dumps
from rtpool.protocol.messages import JsonBody
from rtpool.protocol.postgres import ChangeBinding
from rtpool.protocol.presence import PresenceCalls, PresenceState
from rtpool.protocol.refusals import Action, judge_join, parse_reason, printable
from rtpool.protocol.replay import Replay, ReplayRequest
from rtpool.protocol.session_events import JoinFailed
from rtpool.registry import Attachment, JoinConfig, Share, Subscriber

if TYPE_CHECKING:
    from rtpool.engine.connection import Connection
    from rtpool.engine.io_loop import Timer

__all__ = ["Echo", "Join", "Outage", "content_of", "fail_waiting", "failure_of", "interrupt", "refused"]

#: Seconds within which an echo comes, if it comes at all.
ECHO_SECONDS = 30.0
#: Broadcasts of our own whose echo is awaited, per join; beyond it the oldest is taken for lost.
MAX_ECHOES = 1_000


class Outage(NamedTuple):
    """An interruption: its cause, and the last proof of life before it."""

    cause: str
    lost_from: datetime

    def shifted(self, seconds: float) -> Outage:
        """The same by a clock that was set by so many seconds."""
        return self._replace(lost_from=self.lost_from + timedelta(seconds=seconds))


class Echo(NamedTuple):
    """A broadcast of our own that the server will send back to the join."""

    outgoing: Outgoing
    content: bytes
    sent_at: float


@attrs.define(eq=False, repr=False)
class Join:
    """
    One server channel and the Channels that share it. Confined to the I/O thread.

    Attributes:
        members: the Channels that are served; the registry's `Share` says who should be.
        connection: where it is placed, None while there is no room.
        config: what was asked of the server last.
        leaving, leavers: a leave awaits the server's word, and who awaits it with us.
        requested: whether it stands in the queue for its join, or waits for a token.
        answered: whether the server has let in the join sent last; on version 1 frames of the one before look alike.
        heard_at: when the server last said something on it, monotonic.
        changes_flow: whether the server said that Postgres changes flow since the last join.
        changes_restarted: whether it just said so once more, without having been in trouble before.
        changes_refused: whether it said that these bindings never will.
        changes_alive_at: when the changes feed last gave a sign of life.
        system_error, changes_error: the server's latest words of trouble with the channel, with its changes feed.
        renewals, renewed_at: tokens the server was given, the last one when, monotonic; it then subscribes to changes
            anew, and says so.
        replay: stored broadcasts, as soon as a member wants them; None before.
        replaying: the server replays what an interruption cost; the answer to a presence call ends it.
        presence_calls, presence_pushes, presence_calling, presence_timer: when the server may be told who is present;
            who waits for that to be said, who for its answer; when the budget allows the next call.
        echoes, buffer: broadcasts of its own that will come back, pushes that wait for it; oldest first. Lists, since a
            deque takes 760 bytes with nothing in it.
        attempts, suspect: failures since it last was joined for long; whether the last attempt failed.
        joined_at: when it was let in last, monotonic.
        refusal, same_refusals: what the server said to the last join, and how often in a row.
        outage: set from the loss of the channel until it is back; each member has its own until it is told.
        blocked: refused for good, until a new Channel, or a new token when that may help.
        needs_token: whether it may.
        token, joined_with: what the server was given last, and with the join sent last.
        second_chance: the server refused the token, and the callable is asked for another before anybody is told.
        handover: set while it moves to another connection, see `Mover`.
        held: its pushes wait for that.
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
    answered: bool = False
    heard_at: float = -math.inf
    changes_flow: bool = False
    changes_restarted: bool = False
    changes_refused: bool = False
    changes_alive_at: datetime | None = None
    changes_message: SystemMessage | None = None
    system_error: str = ""
    changes_error: str = ""
    renewals: int = 0
    renewed_at: float = -math.inf
    replay: Replay | None = None
    replay_request: ReplayRequest | None = None
    replaying: bool = False
    presence_pushes: dict[Outgoing, None] = attrs.field(factory=dict)
    presence_calling: dict[Outgoing, None] = attrs.field(factory=dict)
    presence_timer: Timer | None = None
    presence: PresenceState = attrs.field(factory=PresenceState)
    echoes: list[Echo] = attrs.field(factory=list)
    buffer: list[Outgoing] = attrs.field(factory=list)
    attempts: int = 0
    suspect: bool = False
    joined_at: float = math.inf
    refusal: str = ""
    same_refusals: int = 0
    retry: Timer | None = None
    outage: Outage | None = None
    blocked: RtpoolError | None = None
    needs_token: bool = False
    second_chance: RtpoolError | None = None
    token: str | None = None
    joined_with: str | None = None
    handover: Handover | None = None
    held: bool = False

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
        return self._has_state(ChannelState.JOINED)

    @property
    def is_under_way(self) -> bool:
        """Whether the server is asked to let it in, on a live connection."""
        return self._has_state(ChannelState.JOINING)

    def _has_state(self, state: ChannelState) -> bool:
        connection = self.connection
        if connection is None or connection.state != "open":
            return False
        return connection.session.state(self.share.key.topic) is state

    @property
    def flows(self) -> bool:
        """Whether what it carries beside changes flows, all that was missed included."""
        return self.joined and self.answered and not self.replaying

    def flows_to(self, subscriber: Subscriber) -> bool:
        """Whether all that `subscriber` asks for flows; a sibling's changes feed is no business of its own."""
        return self.flows and (self.changes_flow or not subscriber.config.changes)

    def body(self, *, supabase: bool, replay: bool = True) -> JsonBody:
        """The payload of its `phx_join`; a plain Phoenix server gets what its application wants."""
        if not supabase:
            return JsonBody(self.share.key.params)
        config, key = self.config, self.share.key
        broadcast: dict[str, Any] = {"ack": config.ack, "self": config.receive_own}
        if replay and self.replay_request is not None:  # the mere presence of the key is an error on public channels
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

    def refused_again(self, event: JoinFailed) -> int:
        """Note how a join failed; how often it failed just so in a row."""
        code, reason = parse_reason(event.response)
        refusal = "timed out" if event.timed_out else code or reason
        self.same_refusals = self.same_refusals + 1 if refusal == self.refusal else 1
        self.refusal = refusal
        return self.same_refusals

    def await_echo(self, echo: Echo) -> None:
        """A broadcast of our own will come back."""
        if len(self.echoes) >= MAX_ECHOES:
            del self.echoes[0]
        self.echoes.append(echo)

    def claim_echo(self, event: str, payload: Any, now: float) -> Subscriber | None:
        """
        Whose broadcast an incoming one is, when the server echoes ours.

        A stranger's message of equal name and content is indistinguishable from ours, and so is who of the two is
        served which. An echo that does not come (the broadcast was refused) is forgotten after `ECHO_SECONDS`.
        """
        while self.echoes and now - self.echoes[0].sent_at > ECHO_SECONDS:
            del self.echoes[0]
        content = content_of(payload)
        for index, echo in enumerate(self.echoes):
            if echo.outgoing.name == event and echo.content == content:
                del self.echoes[index]
                return echo.outgoing.subscriber
        return None

    def forget_echo(self, outgoing: Outgoing) -> None:
        """The server did not let a broadcast through: no echo of it will come."""
        for index, echo in enumerate(self.echoes):
            if echo.outgoing is outgoing:
                del self.echoes[index]
                return


def content_of(payload: Any) -> bytes:
    """A payload as it compares: a server writes JSON objects anew, in another order of keys, and 1 is not true."""
    if isinstance(payload, bytes):
        return b"\0" + payload
    try:
        return canonical(payload)
    except RecursionError:  # a stranger's: nobody can send such a one here
        return b"\1"


def fail_waiting(share: Share, error: RtpoolError, *, changes_only: bool = False) -> None:
    """Give everybody who waits for a share to be ready, or for its changes alone, the reason why it will not be."""
    for subscriber in share.subscribers:
        attachment = subscriber.attachment
        if attachment is None or attachment.share is not share or attachment.ready.done():
            continue
        if subscriber.config.changes or not changes_only:
            attachment.ready.set_exception(error.again())


def interrupt(members: Iterable[Subscriber], outage: Outage) -> bool:
    """Events flow to `members` no more: who had something to lose is to be told, once. Whether there are any."""
    lost = False
    for subscriber in members:
        attachment = subscriber.attachment
        if attachment is None:
            continue
        if attachment.flowing and attachment.outage is None:
            attachment.outage = outage
        attachment.flowing = False
        lost = lost or attachment.outage is not None
    return lost


def refused(
    topic: str, response: Any, action: Action, hide: Callable[[str], str], retry_after: float | None = None
) -> JoinRefused:
    """
    The error for an error response, or for the words before a close.

    Args:
        hide: takes secrets out of the words: a server may repeat the token.
        retry_after: seconds to wait at least.
    """
    code, reason = parse_reason(response, hide)
    words = f"{code}: {reason}" if code else reason
    after = "rtpool tries again by itself" if action.retryable else f"not tried again ({action.value} needed)"
    if action is Action.FATAL:
        after = "not tried again: the same request cannot succeed"
    return JoinRefused(
        f"the server refused {topic!r}: {printable(words) or 'no reason given'}; {after}",
        topic=topic,
        code=code,
        reason=reason,
        action=action,
        retry_after=retry_after,
    )


def failure_of(
    topic: str, event: JoinFailed, join_timeout: float, hide: Callable[[str], str], failures: int = 1
) -> tuple[RtpoolError, Action]:
    """
    The error for a join that failed, without what `hide` takes out of its words, and what to do about it after so many
    failures in a row, this one included.
    """
    if event.timed_out:
        words = f"no reply to the join of {topic!r} within {join_timeout} s"
        return JoinTimeout(words, topic=topic, timeout=join_timeout), Action.BACK_OFF
    verdict = judge_join(event.response)
    action = verdict.after(failures)
    not_before = verdict.not_before if action is verdict.action else None
    return refused(topic, event.response, action, hide, not_before), action

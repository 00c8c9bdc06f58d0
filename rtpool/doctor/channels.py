"""
The steps on channels: joining, what row-level security allows, a table's changes, broadcasts there and back.
"""

from __future__ import annotations

import queue
import secrets
import time
from typing import Any

from rtpool.channel import Channel
from rtpool.doctor.case import EVENT, Case, Trouble, spread
from rtpool.doctor.connection import ACTIONS
from rtpool.doctor.report import Finding, failed, ok, skipped, warning
from rtpool.errors import JoinRefused, PushTimeout, RtpoolError
from rtpool.events import Broadcast, StatusChange, SystemMessage
from rtpool.protocol.refusals import Action, printable

__all__ = ["ask_permission", "echo", "join", "watch_table"]

#: What to do about a channel that was refused or ended, by how the code, or the text without one, begins.
JOINS = {
    "PrivateOnly": "This project allows private channels only (Realtime settings): give --private and a --token.",
    "Unauthorized": "Row-level security on realtime.messages lets this role not read the topic.",
    "InvalidJWTToken": "The token, or the key in its place, has expired or lacks a claim: take a fresh one.",
    "MalformedJWT": "The token is no JWT.",
    "JwtSignatureError": "The token is of another project, or was signed with another secret.",
    "JwtSignerError": "Look at the project's JWT secret or signing keys; after a rotation wait half a minute.",
    "ChannelRateLimitReached": "The socket has as many channels as the server allows (100): rtpool opens another one.",
    "ConnectionRateLimitReached": "As many sockets are joined as the plan allows: close others, share one pool.",
    "ClientJoinRateLimitReached": "The project joins too fast, all clients together; the server drops the socket for "
    "it. Lower max_joins_per_second, share pools, or raise the plan's limit.",
    "IncreaseConnectionPool": "The database answers too slowly: raise Realtime's connection pool size (Realtime "
    "settings), or relieve the database.",
    "DatabaseLackOfConnections": "The database has no connection left for Realtime: close some, or a larger instance.",
    "DatabaseConnectionRateLimitReached": "Realtime fails to reach the database again and again: see its logs.",
    "UnableToConnectToProject": "Realtime does not reach the project's database: is it running, or paused?",
    "InitializingProjectConnection": "The project is waking up: try again in some seconds.",
    "QueryCanceled": "The policies on realtime.messages take too long: index what they ask for.",
    "MissingPartition": "Realtime's own upkeep of realtime.messages is behind: try again, else ask the support.",
    "RealtimeRestarting": "The server is restarting: try again in some seconds.",
    "TenantNotFound": "There is no project of that reference here.",
    "RealtimeDisabledForTenant": "The project is suspended, or Realtime is switched off in its settings.",
    "unmatched topic": "The server knows no such topic: is this a Realtime server?",
    "Realtime was unable to connect": "Realtime does not reach the project's database: is it running, or paused?",
    "Token has expired": "The token is over: give rtpool a callable as access_token, which it asks for the next.",
    "You no longer have permission": "Row-level security has changed: it lets this role not read the topic any more.",
    "You do not have permission": "Row-level security on realtime.messages lets this role not read the topic.",
    "Too many messages per second": "The project sends and delivers more a second than its plan allows: set "
    "max_events_per_second, or raise the limit. The average of a minute counts.",
}

#: Who may read and write a private topic is for these to say.
POLICY = """create policy "{name}" on realtime.messages
  for {command} to {role} {clause} (
    realtime.topic() = '{topic}'
    and extension in ('broadcast', 'presence'));"""

#: What a subscription that is in order leaves open.
UNPROVEN = (
    "Not proven: that rows arrive. Row-level security hides rows without a word: the role {role} needs a select policy "
    "and grant. Change a row and see: `rtpool listen`."
)

#: Seconds in which the reason comes after the end of a push.
A_MOMENT = 0.5
#: Broadcasts lost in a row after which no more are sent, and seconds for all of them.
LOST_IN_A_ROW, ECHO_SECONDS = 3, 5.0


def _why(error: Exception | None, seconds: float) -> tuple[str, str]:
    """Words and advice for a Channel that was not ready."""
    if error is None:
        return f"no answer within {seconds:.0f} s", "The server is overloaded, or its database does not answer."
    if not isinstance(error, JoinRefused):
        return str(error), "The connection was lost on the way: look at proxies, and at the server's log."
    said = f"{error.code}: {error.reason}" if error.code else error.reason
    known = next((advice for start, advice in JOINS.items() if said.startswith(start)), None)
    return f"refused: {said} ({ACTIONS[error.action]})", known or "Look at the project's Realtime logs."


def _details(error: Exception | None, topic: str) -> dict[str, Any]:
    if isinstance(error, JoinRefused):
        return {"topic": topic, "code": error.code, "reason": error.reason, "action": error.action.value}
    return {"topic": topic}


def join(case: Case) -> Finding:
    """Whether the topic can be joined as a public channel."""
    if case.private:
        return skipped("--private: see the step private")
    channel = case.pool.channel(case.topic, receive_own=True, ack=True)
    started = time.monotonic()
    try:
        case.subscribe(channel, case.statuses)
    except Trouble as trouble:
        words, advice = _why(trouble.error, case.patience)
        return failed(words, advice, **_details(trouble.error, case.topic))
    case.channel = channel
    milliseconds = (time.monotonic() - started) * 1000
    return ok(f"{case.topic!r} joined, {milliseconds:.0f} ms with connecting", topic=case.topic)


def ask_permission(case: Case) -> Finding:
    """Whether row-level security lets this role read and write the private channel of the topic."""
    if not case.private and not case.token:
        return skipped("neither --private nor --token was given")
    statuses = case.statuses if case.private else queue.SimpleQueue[StatusChange]()
    channel = case.pool.channel(case.topic, private=True, receive_own=True, ack=True)
    role = case.role or "authenticated"
    say = failed if case.private else warning
    try:
        case.subscribe(channel, statuses)
    except Trouble as trouble:
        words, advice = _why(trouble.error, case.patience)
        if isinstance(trouble.error, JoinRefused) and trouble.error.code == "Unauthorized":
            advice = f"{advice} A policy that does:\n{_policy('read', role, case.topic)}"
            words = f"reading is denied to {role}: {trouble.error.reason}"
        return say(words, advice, read=False, role=role, **_details(trouble.error, case.topic))
    if case.private:
        case.channel = channel
    try:
        channel.send_broadcast(EVENT, {"n": 0}, timeout=max(0.1, case.wait)).result()
    except PushTimeout:
        if case.private:
            case.may_write = False
        return warning(
            f"{role} may read and, it seems, not write: a broadcast was not acknowledged",
            "Row-level security that denies writing, or fails, is silent. Where this role is to send, a policy:\n"
            f"{_policy('write', role, case.topic)}",
            read=True,
            write=False,
            role=role,
            topic=case.topic,
        )
    except RtpoolError as error:
        words, advice = _why(_trouble(statuses, A_MOMENT) or error, case.patience)
        return say(f"ended at the first broadcast: {words}", advice, read=True, role=role, topic=case.topic)
    finally:
        if not case.private:
            channel.unsubscribe(timeout=min(1.0, case.left))
    return ok(f"{role} may read and write {case.topic!r}", read=True, write=True, role=role, topic=case.topic)


def _policy(what: str, role: str, topic: str) -> str:
    command, clause = ("select", "using") if what == "read" else ("insert", "with check")
    quoted = printable(topic).replace("'", "''")
    return POLICY.format(
        name=f"{role} may {what}".replace('"', '""'), command=command, clause=clause, role=role, topic=quoted
    )


def watch_table(case: Case) -> Finding:
    """Whether the server sends the changes of the table at all."""
    if case.table is None:
        return skipped("no --table was given")
    schema, table = case.table
    name = printable(f"{schema}.{table}")
    # A topic of its own: a binding more on the other channel would have that one joined anew.
    channel = case.pool.channel(case.topic if case.private else case.random_topic(), private=case.private)
    heard: list[SystemMessage] = []
    channel.on_system(heard.append).on_postgres_changes("*", _ignore, schema=schema, table=table)
    started = time.monotonic()
    try:
        case.subscribe(channel, queue.SimpleQueue(), patient=True)
    except Trouble as trouble:
        words, advice = _unwatched(trouble.error, case, name)
        return failed(words, advice, table=name, **_details(trouble.error, channel.topic))
    milliseconds = (time.monotonic() - started) * 1000
    channel.unsubscribe(timeout=min(1.0, case.left))
    said = next((message.message for message in heard if message.status == "ok"), "subscribed")
    return ok(
        f"{name}: {said}, after {milliseconds:.0f} ms",
        UNPROVEN.format(role=case.role or "of the key"),
        table=name,
    )


def _ignore(_change: object) -> None:
    return


def _unwatched(error: Exception | None, case: Case, name: str) -> tuple[str, str]:
    if error is None:
        return (
            f"{name}: joined, and not subscribed within {case.patience:.0f} s",
            "A project that slept needs up to 15 s. Else Realtime has no replication slot: see its logs.",
        )
    reason = error.reason if isinstance(error, JoinRefused) else ""
    if "check Realtime is enabled" in reason:
        return (
            f"{name}: not in the publication, or there is no such table",
            f"Look at the spelling, then:\nalter publication supabase_realtime add table {name};",
        )
    if reason.startswith("Unable to subscribe"):
        return f"{name}: {reason}", f"Does the role {case.role or 'of the key'} have `grant select on {name}`?"
    if "Too many database timeouts" in reason or "unable to connect" in reason.lower():
        return f"{name}: {reason}", "Realtime does not reach the database: is it running, or overloaded?"
    words, advice = _why(error, case.patience)
    return f"{name}: {words}", advice


def echo(case: Case) -> Finding:
    """How long a broadcast takes to the server and back, and whether any is lost."""
    channel = case.channel
    if channel is None:
        return skipped("no channel is joined")
    if case.may_write is False:
        return skipped("row-level security does not let this role write")
    latencies, lost, trouble = _send_and_hear(case, channel)
    sent = len(latencies) + lost
    details: dict[str, Any] = {
        "sent": sent,
        "lost": lost,
        "milliseconds": {name: round(value * 1000, 3) for name, value in spread(latencies)} if latencies else {},
    }
    if trouble is not None:
        words, advice = _why(trouble, case.patience)
        count = f"{sent} broadcast{'s' * (sent != 1)}"
        return failed(f"the channel was ended after {count}: {words}", advice, **details)
    if lost:
        return failed(
            f"{lost} of {sent} broadcasts did not come back",
            "Broadcasts are delivered at most once, but hardly ever lost: the project may be over its limit of events, "
            "or the server in trouble.",
            **details,
        )
    if not latencies:
        return failed("no time was left to send any", "Give a longer --timeout.", **details)
    times = ", ".join(f"{name} {value:.1f}" for name, value in details["milliseconds"].items())
    return ok(f"{sent} there and back: {times} ms", **details)


def _send_and_hear(case: Case, channel: Channel) -> tuple[list[float], int, Exception | None]:
    """Latencies of what came back, how many did not, and what ended the channel."""
    probe, came = secrets.token_hex(4), queue.SimpleQueue[tuple[int, float]]()

    def hear(message: Broadcast) -> None:
        if isinstance(message.payload, dict) and message.payload.get("probe") == probe:
            came.put((message.payload["n"], time.monotonic()))

    channel.on_broadcast(EVENT, hear)
    latencies: list[float] = []
    in_a_row = number = 0
    sent: dict[int, float] = {}
    until = time.monotonic() + min(ECHO_SECONDS, case.left)
    try:
        while number < case.messages and in_a_row < LOST_IN_A_ROW and time.monotonic() < until:
            number += 1
            sent[number] = time.monotonic()
            channel.send_broadcast(EVENT, {"n": number, "probe": probe}, timeout=max(0.1, case.wait))
            back = _await(came, number, sent, latencies, time.monotonic() + min(case.wait, 2.0))
            in_a_row = 0 if back else in_a_row + 1
            trouble = _trouble(case.statuses)
            if trouble is not None:
                return latencies, len(sent), trouble
    except RtpoolError as error:
        return latencies, len(sent), _trouble(case.statuses, A_MOMENT) or error
    finally:
        channel.off(hear)
    return latencies, len(sent), None


def _await(
    came: queue.SimpleQueue[tuple[int, float]],
    number: int,
    sent: dict[int, float],
    latencies: list[float],
    deadline: float,
) -> bool:
    """Wait for one broadcast, and count those that come late as well."""
    while True:
        try:
            back, at = came.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return False
        begun = sent.pop(back, None)
        if begun is not None:
            latencies.append(at - begun)
        if back == number:
            return True


def _trouble(statuses: queue.SimpleQueue[StatusChange], seconds: float = 0.0) -> Exception | None:
    """What a Channel has been told since it was joined, or is within some seconds: the first error that stays one."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            change = statuses.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return None
        if change.error is not None and not _passing(change.error):
            return change.error


def _passing(error: Exception) -> bool:
    return isinstance(error, JoinRefused) and error.action is Action.RETRY

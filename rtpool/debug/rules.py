"""
The detections: one function for each kind of issue, from what was seen now and what is remembered of before.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import accumulate

from rtpool.debug.issues import Issue
from rtpool.debug.memory import Memory
from rtpool.debug.observation import ConnectionSeen, JoinSeen, Observation
from rtpool.debug.thresholds import Thresholds
from rtpool.engine.audit import MOMENT
from rtpool.protocol.placement import FULL_ENOUGH

__all__ = ["RULES", "Rule", "begin", "judge"]

Rule = Callable[[Observation, Memory, Thresholds], Iterator[Issue]]

#: Issues of one kind that are told one by one; the last says how many more there are.
MAX_SUBJECTS = 20
#: Causes of a `Gap` that are no interruption: what the user asked for, what is told as `RTP018`, a fork.
ASKED_FOR = ("rejoin", "overflow", "fork")


def begin(losses: int, at: float, memory: Memory, limits: Thresholds) -> None:
    """A debugger is made: connections that broke before are no news."""
    memory.begin(at)
    _reconnects(losses, memory, limits)


def judge(seen: Observation, memory: Memory, limits: Thresholds) -> list[Issue]:
    """What is wrong, worst first."""
    memory.begin(seen.at)
    found: list[Issue] = []
    for rule in RULES if not seen.closed else OF_THE_PAST:
        found += rule(seen, memory, limits)
    return sorted(_bounded(found), key=lambda issue: (-issue.severity.rank, issue.code))


def _bounded(found: list[Issue]) -> Iterator[Issue]:
    counts = Counter(issue.code for issue in found)
    told: Counter[str] = Counter()
    for issue in found:
        told[issue.code] += 1
        more = counts[issue.code] - MAX_SUBJECTS
        if told[issue.code] < MAX_SUBJECTS or more <= 0:
            yield issue
        elif told[issue.code] == MAX_SUBJECTS:
            yield Issue.of(issue.code, issue.subject, f"{issue.observed}, and {more} more like it", more=more)


# Connections


def spare_connections(seen: Observation, memory: Memory, limits: Thresholds) -> Iterator[Issue]:
    """More sockets than the subscriptions need, by the rules of placement."""
    inside = seen.inside
    if inside is None or inside.merging:
        return
    used = [connection for connection in inside.connections if not connection.idle]
    needed = _needed(used, [join for join in inside.joins.values() if join.connection is not None])
    lasted = memory.lasted("spare connections", len(used)) if len(used) > needed else 0.0
    if lasted >= limits.spare_connections_after:
        observed = f"{len(used)} connections, and {needed} would do, for {lasted:.0f} s"
        yield Issue.of("RTP001", seen.pool, observed, connections=len(used), needed=needed, seconds=round(lasted, 1))


def _needed(used: list[ConnectionSeen], joins: list[JoinSeen]) -> int:
    """
    As many as hold all joins, each socket as full as merging makes it, no topic twice on one, and none emptied of a
    join that stays.
    """
    room = sorted((max(1, int(c.slot.capacity * FULL_ENOUGH)) for c in used if c.slot.capacity), reverse=True)
    by_count = next((n for n, fit in enumerate(accumulate(room), 1) if fit >= len(joins)), len(used))
    copies = Counter(join.key.topic for join in joins)
    staying = {join.connection for join in joins if join.stays}
    return max(by_count, max(copies.values(), default=0), len(staying))


def given_up(seen: Observation, memory: Memory, limits: Thresholds) -> Iterator[Issue]:
    """Connections whose quick attempts are over."""
    for connection in _connections(seen):
        if _has_given_up(connection, seen):
            observed = f"{connection.attempts} failed attempts; the last: {connection.error or 'unknown'}"
            details = {"attempts": connection.attempts, "error": connection.error, "joins": connection.slot.used}
            yield Issue.of("RTP002", f"connection {connection.number}", observed, **details)


def _has_given_up(connection: ConnectionSeen, seen: Observation) -> bool:
    again = connection.state in ("dialing", "waiting") and connection.attempts > seen.options.max_retries
    return connection.state == "error" or again


def reconnecting(seen: Observation, memory: Memory, limits: Thresholds) -> Iterator[Issue]:
    """Outages that last, and connections that break again and again."""
    for connection in _connections(seen):
        if connection.attempts >= limits.reconnect_attempts and not _has_given_up(connection, seen):
            observed = f"{connection.attempts} failed attempts; the last: {connection.error or 'unknown'}"
            details = {"attempts": connection.attempts, "error": connection.error}
            yield Issue.of("RTP003", f"connection {connection.number}", observed, **details)
    count = _reconnects(seen.losses, memory, limits)
    most = memory.most("connections", value=seen.stats.total_connections, window=limits.reconnect_window)
    if count > limits.reconnects * max(1, most):
        observed = f"{count} reconnects in {limits.reconnect_window:.0f} s"
        yield Issue.of("RTP003", seen.pool, observed, reconnects=count, ever=seen.losses)


def _reconnects(losses: int, memory: Memory, limits: Thresholds) -> int:
    """Each loss has one; attempts in vain are another matter."""
    return memory.grown("reconnects", value=losses, window=limits.reconnect_window, ever=False)


def misplaced(seen: Observation, memory: Memory, limits: Thresholds) -> Iterator[Issue]:
    """What the audit finds, and has mended."""
    for found in seen.inside.misplaced if seen.inside is not None else ():
        if memory.lasted("misplaced", found.kind, found.identity) >= MOMENT or found.certain:
            yield Issue.of("RTP004", found.subject, found.words, kind=found.kind)
    mended = memory.grown("repairs", value=seen.stats.repairs, window=limits.recent)
    if mended:
        yield Issue.of("RTP004", seen.pool, f"the health check mended {mended}", mended=mended, ever=seen.stats.repairs)


def late_heartbeats(seen: Observation, memory: Memory, limits: Thresholds) -> Iterator[Issue]:
    """Answers that took long, or are awaited for long; where nothing is read none can be seen."""
    patience = seen.options.heartbeat_timeout
    for connection in _connections(seen):
        late = max(connection.heartbeat_latency, connection.heartbeat_awaited)
        if connection.state == "open" and connection.read and late >= patience * limits.late_heartbeat:
            unanswered = connection.heartbeat_awaited >= connection.heartbeat_latency
            observed = f"{'no answer for' if unanswered else 'the last answer took'} {late:.2f} s of {patience:g} s"
            details = {"latency": connection.heartbeat_latency, "awaited": connection.heartbeat_awaited}
            yield Issue.of("RTP011", f"connection {connection.number}", observed, **details)


def _connections(seen: Observation) -> tuple[ConnectionSeen, ...]:
    return seen.inside.connections if seen.inside is not None else ()


# Subscriptions


def not_ready(seen: Observation, memory: Memory, limits: Thresholds) -> Iterator[Issue]:
    """Channels to which nothing flows, and those that were refused for good."""
    dead = {c.number for c in _connections(seen) if _has_given_up(c, seen)}
    for channel in seen.channels:
        if channel.ready:
            continue
        join = seen.inside.joins.get(channel.key) if seen.inside is not None else None
        away = max(memory.lasted("not ready", channel.number), channel.away)
        details = {"state": channel.state, "seconds": round(away, 1), "error": channel.error}
        if join is not None and join.blocked:
            yield Issue.of("RTP006", repr(channel.topic), channel.error or "refused", **details)
        elif away >= limits.not_ready_after and not (join is not None and (join.homeless or join.connection in dead)):
            why = f"; {channel.error}" if channel.error else ""
            yield Issue.of("RTP005", repr(channel.topic), f"{channel.state} for {away:.0f} s{why}", **details)


def unheard(seen: Observation, memory: Memory, limits: Thresholds) -> Iterator[Issue]:
    """Channels that nobody listens to: events wait for a reader, or it neither hears nor says anything."""
    for channel in seen.channels:
        missed = [box for box in channel.mailboxes if box.pulled and not box.unread]
        waited = max((box.oldest for box in missed), default=0.0)
        waiting = sum(box.waiting for box in missed)
        if waited >= limits.unheard_after:
            observed = f"{waiting} events wait for a reader, for up to {waited:.0f} s"
            yield Issue.of("RTP007", repr(channel.topic), observed, waiting=waiting, seconds=round(waited, 1))
        elif not channel.listens and not channel.speaks and channel.served >= limits.unheard_after:
            observed = f"no callback, no reader and no push for {channel.served:.0f} s"
            yield Issue.of("RTP007", repr(channel.topic), observed, waiting=0, seconds=round(channel.served, 1))


def full_mailboxes(seen: Observation, memory: Memory, limits: Thresholds) -> Iterator[Issue]:
    """Mailboxes that are nearly full at two looks in a row."""
    for channel in seen.channels:
        for box in channel.mailboxes:
            if box.unread or box.waiting < limits.mailbox_share * box.limit:
                continue
            lasted = memory.lasted("full", box.identity)
            growth = memory.grown("waiting", box.identity, value=box.waiting, window=limits.recent, ever=False)
            if lasted > 0:
                share = box.waiting / box.limit
                held = "; its connection is not read meanwhile" if box.full else ""
                observed = f"{box.waiting} of {box.limit} events wait, {growth:+d} lately{held}"
                details = {"waiting": box.waiting, "limit": box.limit, "share": round(share, 2), "growth": growth}
                yield Issue.of("RTP008", repr(channel.topic), observed, overflow=box.overflow, **details)


def dropped(seen: Observation, memory: Memory, limits: Thresholds) -> Iterator[Issue]:
    """Events that met a full mailbox."""
    total = memory.grown("overflowed", value=seen.overflowed, window=limits.recent)
    for channel in seen.channels:
        for box in channel.mailboxes:
            lost = memory.grown("lost", box.identity, value=box.lost, window=limits.recent) if box.lost else 0
            if box.unread:
                total -= lost
            elif lost:
                total = 0
                observed = f"{lost} lately, {box.lost} ever (overflow={box.overflow!r}, limit {box.limit})"
                details = {"dropped": lost, "ever": box.lost, "overflow": box.overflow, "limit": box.limit}
                yield Issue.of("RTP018", repr(channel.topic), observed, **details)
    if total > 0:  # of Channels that are gone
        observed = f"{total} lately, {seen.overflowed} ever"
        yield Issue.of("RTP018", seen.pool, observed, dropped=total, ever=seen.overflowed)


def gaps(seen: Observation, memory: Memory, limits: Thresholds) -> Iterator[Issue]:
    """Interruptions that nobody asked for."""
    for cause, ever in seen.stats.gaps_by_cause.items():
        if cause not in ASKED_FOR:
            lately = memory.grown("gaps", cause, value=ever, window=limits.recent)
            if lately:
                observed = f"{lately} gaps lately, {ever} ever"
                yield Issue.of("RTP019", f"{seen.pool}, {cause}", observed, cause=cause, gaps=lately, ever=ever)


def copies(seen: Observation, memory: Memory, limits: Thresholds) -> Iterator[Issue]:
    """One topic on several sockets."""
    homes: dict[str, list[JoinSeen]] = defaultdict(list)
    for join in seen.inside.joins.values() if seen.inside is not None else ():
        if join.connection is not None:
            homes[join.name].append(join)
    for topic, joins in homes.items():
        sockets = sorted({join.connection for join in joins if join.connection is not None})
        if len(sockets) > 1:
            differing = _differing(joins)
            observed = f"on connections {', '.join(map(str, sockets))}: {', '.join(differing)} differ"
            yield Issue.of("RTP020", repr(topic), observed, connections=sockets, differing=differing)


def _differing(joins: list[JoinSeen]) -> list[str]:
    keys = [join.key for join in joins]
    parts = {
        "private": {key.private for key in keys},
        "access_token": {key.token for key in keys},
        "presence_key": {key.presence_key for key in keys},
        "replay": {key.replay for key in keys},
        "params": {key.params for key in keys},
    }
    return [name for name, values in parts.items() if len(values) > 1]


# Keys and tokens


def expiring(seen: Observation, memory: Memory, limits: Thresholds) -> Iterator[Issue]:
    """Tokens that were given as text and are about to expire; the key where joins are made with it."""
    tokens = seen.inside.tokens if seen.inside is not None else ()
    static = [(f"the access_token of {token.whose}", token.expires) for token in tokens if token.static]
    for whose, expires in [*static, ("the api_key", seen.key_expires)]:
        if expires is None or expires - seen.wall > limits.token_lead:
            continue
        left = expires - seen.wall
        observed = f"it expires in {left:.0f} s" if left > 0 else f"it expired {-left:.0f} s ago"
        yield Issue.of("RTP012", whose, observed, seconds=round(left, 1))


def service_key(seen: Observation, memory: Memory, limits: Thresholds) -> Iterator[Issue]:
    """A key that passes over row-level security, where proxies log it or beside tokens of users."""
    if not (seen.service_key or seen.service_header or seen.service_param) or not seen.options.is_supabase:
        return
    tokens = seen.inside.tokens if seen.inside is not None else ()
    in_url = seen.service_param or (seen.service_key and seen.options.api_key_in == "query")
    places = ["in the URL of its connections"] if in_url else []
    if any(token.used and token.role != "service_role" for token in tokens):
        places.append("with access tokens of users")
    if places:
        yield Issue.of("RTP022", seen.pool, f"it is used {' and '.join(places)}", places=places)


# Limits


def full_sockets(seen: Observation, memory: Memory, limits: Thresholds) -> Iterator[Issue]:
    """
    Sockets that are nearly full, where no other has room; those on which the server took fewer channels than the option
    says; and a pool that has no room left.
    """
    inside, most = seen.inside, seen.options.max_connections
    if inside is None:
        return
    homeless = sorted(join.name for join in inside.joins.values() if join.homeless)
    full = [c for c in inside.connections if c.slot.used > limits.channels_share * c.limit]
    used = sum(connection.slot.used for connection in inside.connections)
    if homeless or (len(full) == len(inside.connections) >= most):
        waiting = f"; {len(homeless)} find no room, {homeless[0]!r} for one" if homeless else ""
        observed = f"{used} channels on {len(inside.connections)} of {most} connections{waiting}"
        details = {"connections": len(inside.connections), "max_connections": most, "channels": used}
        yield Issue.of("RTP014", seen.pool, observed, homeless=len(homeless), **details)
    else:
        option = seen.options.max_channels_per_connection
        for connection in inside.connections:
            fewer = connection.limit < option
            if fewer or (connection in full and len(full) == len(inside.connections)):
                more = f"; it takes no more, and max_channels_per_connection is {option}" if fewer else ""
                observed = f"{connection.slot.used} channels of {connection.limit}{more}"
                details = {"channels": connection.slot.used, "limit": connection.limit}
                yield Issue.of("RTP013", f"connection {connection.number}", observed, **details)


def slowed_joins(seen: Observation, memory: Memory, limits: Thresholds) -> Iterator[Issue]:
    """The server refused joins for their rate."""
    rate, wanted = seen.stats.joins_per_second, seen.options.max_joins_per_second
    if rate < wanted:
        observed = f"{rate:g} joins a second at present, of {wanted:g}"
        yield Issue.of("RTP015", seen.pool, observed, joins_per_second=rate, max_joins_per_second=wanted)


def held_pushes(seen: Observation, memory: Memory, limits: Thresholds) -> Iterator[Issue]:
    """The server ended channels for the rate of events; pushes that wait for their turn or their join."""
    rate, wanted = seen.stats.events_per_second, seen.options.max_events_per_second
    said = memory.grown("slowed", value=seen.slowed, window=limits.recent)
    if said or (rate is not None and wanted is not None and rate < wanted):
        observed = f"the server ended channels for too many events, {seen.slowed} times" if seen.slowed else "slowed"
        now = f"; {rate:g} a second at present" if rate is not None else ""
        details = {"events_per_second": rate, "max_events_per_second": wanted, "refusals": seen.slowed}
        yield Issue.of("RTP016", seen.pool, f"{observed}{now}", **details)
    limit = seen.options.send_buffer_limit
    for channel in seen.channels:
        bounded = wanted is not None or not channel.ready
        if bounded and channel.unsettled >= limits.send_buffer_share * limit:
            observed = f"{channel.unsettled} of {limit} pushes wait"
            yield Issue.of("RTP016", repr(channel.topic), observed, waiting=channel.unsettled, limit=limit)


def too_big(seen: Observation, memory: Memory, limits: Thresholds) -> Iterator[Issue]:
    """Messages over a limit, on their way out and in."""
    sent = memory.grown("too big, sent", value=seen.too_big_sent, window=limits.recent)
    received = memory.grown("too big, received", value=seen.too_big_received, window=limits.recent)
    if sent:
        observed = f"{sent} pushes refused lately, {seen.too_big_sent} ever"
        yield Issue.of("RTP017", f"{seen.pool}, sending", observed, refused=sent, ever=seen.too_big_sent)
    if received:
        observed = f"{received} larger than {seen.options.max_message_size} bytes lately, {seen.too_big_received} ever"
        details = {"limit": seen.options.max_message_size, "ever": seen.too_big_received}
        yield Issue.of("RTP017", f"{seen.pool}, receiving", observed, received=received, **details)


# The pool


def forgotten(seen: Observation, memory: Memory, limits: Thresholds) -> Iterator[Issue]:
    """A pool that runs for nothing: open sockets without a subscription, or the thread that started it is gone."""
    stats = seen.stats
    if not seen.started or stats.total_subscriptions:
        return
    quiet = memory.lasted("quiet", stats.events_received, stats.pushes_sent, seen.rest_broadcasts)
    if quiet >= limits.forgotten_after and (seen.orphaned or stats.total_connections):
        sockets = f"{stats.total_connections} connections, no subscription, nothing done for {quiet:.0f} s"
        observed = sockets + ("; the thread that started it has ended" if seen.orphaned else "")
        details = {"connections": stats.total_connections, "seconds": round(quiet, 1), "orphaned": seen.orphaned}
        yield Issue.of("RTP021", seen.pool, observed, **details)


def siblings(seen: Observation, memory: Memory, limits: Thresholds) -> Iterator[Issue]:
    """Other pools of this process with the same URL and key."""
    if seen.siblings:
        names = list(seen.siblings[:MAX_SUBJECTS])
        observed = f"{len(seen.siblings) + 1} pools: {', '.join([seen.name, *names])}"
        yield Issue.of("RTP023", seen.pool, observed, pools=len(seen.siblings) + 1)


def raising(seen: Observation, memory: Memory, limits: Thresholds) -> Iterator[Issue]:
    """Callbacks that raised."""
    ever = seen.stats.callback_errors
    errors = memory.grown("callback errors", value=ever, window=limits.recent)
    if errors:
        yield Issue.of("RTP024", seen.pool, f"{errors} lately, {ever} ever", errors=errors, ever=ever)


def stalled(seen: Observation, memory: Memory, limits: Thresholds) -> Iterator[Issue]:
    """The I/O thread does not come round."""
    if seen.stalled >= limits.stalled_after:
        yield Issue.of("RTP025", seen.pool, f"nothing for {seen.stalled:.1f} s", seconds=round(seen.stalled, 1))


#: Of a closed pool there is only its past.
OF_THE_PAST: tuple[Rule, ...] = (misplaced, dropped, gaps, too_big, raising)
#: Every detection but that of slow callbacks, which are sampled.
RULES: tuple[Rule, ...] = (
    *OF_THE_PAST,
    spare_connections,
    given_up,
    reconnecting,
    late_heartbeats,
    not_ready,
    unheard,
    full_mailboxes,
    copies,
    expiring,
    service_key,
    full_sockets,
    slowed_joins,
    held_pushes,
    forgotten,
    siblings,
    stalled,
)

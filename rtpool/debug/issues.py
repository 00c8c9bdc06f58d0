"""
The catalogue of what may be wrong: each kind with a code that stays, what it means, and what to do.

The README's table is made from it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import attrs

__all__ = ["CODES", "Code", "Issue", "Severity"]


class Severity(str, enum.Enum):
    """
    How bad an issue is.
    """

    INFO = "info"  #: worth knowing; nothing is lost
    WARNING = "warning"  #: something is lost, or will be if nobody acts
    ERROR = "error"  #: something does not work, or a secret is in danger

    def __str__(self) -> str:
        return self.value

    @property
    def rank(self) -> int:
        """A number that is higher for what is worse."""
        return list(Severity).index(self)


@attrs.frozen(kw_only=True)
class Code:
    """
    One kind of issue.

    Attributes:
        code: ``"RTP001"`` and so on; it never comes to mean anything else.
        severity: of every issue of this kind.
        title: the kind in a few words.
        meaning: what it means for the program.
        advice: what to do.
    """

    code: str
    severity: Severity
    title: str
    meaning: str
    advice: str


@attrs.frozen(kw_only=True)
class Issue:
    """
    Something that is wrong with a pool at present. Free of secrets.

    Attributes:
        code: of its kind, see `CODES`.
        severity: how bad it is.
        title: the kind in a few words.
        subject: what it is about: ``"connection 2"``, ``"'room'"``, ``"pool 1"``.
        observed: what was seen, with numbers.
        meaning: what it means for the program.
        advice: what to do.
        details: the numbers; JSON-able.
    """

    code: str
    severity: Severity
    title: str
    subject: str
    observed: str
    meaning: str
    advice: str
    details: Mapping[str, Any] = attrs.field(factory=dict, eq=False)

    @classmethod
    def of(cls, code: str, subject: str, observed: str, **details: Any) -> Issue:
        """An issue of a kind in the catalogue."""
        kind = CODES[code]
        return cls(
            code=code,
            severity=kind.severity,
            title=kind.title,
            subject=subject,
            observed=observed,
            meaning=kind.meaning,
            advice=kind.advice,
            details=details,
        )

    @property
    def key(self) -> tuple[str, str]:
        """What makes it the same issue at another look: its code and subject."""
        return self.code, self.subject

    def __str__(self) -> str:
        return f"{self.code} {self.subject}: {self.title}: {self.observed}. {self.advice}"

    def as_dict(self) -> dict[str, Any]:
        """
        The same as a JSON-able dictionary.
        """
        return {**attrs.asdict(self, recurse=False), "severity": self.severity.value, "details": dict(self.details)}


def _catalogue(*codes: Code) -> Mapping[str, Code]:
    return MappingProxyType({code.code: code for code in codes})


#: Every kind of issue, by its code.
CODES: Mapping[str, Code] = _catalogue(
    Code(
        code="RTP001",
        severity=Severity.INFO,
        title="more connections than needed",
        meaning="The subscriptions would fit on fewer sockets. Each counts against the project's connection limit.",
        advice="Wait for the health check to merge sparse sockets (enable_health_check, health_check_interval), or "
        "call pool.force_cleanup(), which closes idle ones at once.",
    ),
    Code(
        code="RTP002",
        severity=Severity.ERROR,
        title="a connection has given up",
        meaning="The quick attempts are over. Its channels hear nothing until the health check brings it back.",
        advice="Read the last error. If the network or the server is down, wait, or call pool.connect() to try at "
        "once. If the key or URL was refused, correct it and make a new pool.",
    ),
    Code(
        code="RTP003",
        severity=Severity.WARNING,
        title="many reconnects",
        meaning="A connection breaks again and again. Whatever is sent while it is away is lost, unless it is "
        "replayed.",
        advice="Read the last error. Look for a proxy or firewall that cuts idle or old connections (shorten "
        "heartbeat_interval), for a process that is starved of CPU, and at the server's status page.",
    ),
    Code(
        code="RTP004",
        severity=Severity.ERROR,
        title="something of the pool belongs to nobody",
        meaning="A socket, a connection or a join is kept for no subscription, or a subscription lacks its join. It "
        "is a bug of rtpool's, or user code that never returns.",
        advice="Call pool.force_cleanup(); the health check mends it by itself within health_check_interval. Please "
        "report it with the log and pool.stats().",
    ),
    Code(
        code="RTP005",
        severity=Severity.WARNING,
        title="a subscription is not ready",
        meaning="Channel.subscribe() was called, and events do not flow to it, for longer than they should.",
        advice="Read its error, and that of its connection. For Postgres changes, see that the table is in the "
        "publication supabase_realtime and that the role may select from it.",
    ),
    Code(
        code="RTP006",
        severity=Severity.ERROR,
        title="a subscription was refused for good",
        meaning="The server refused the channel, and to ask again cannot help. It hears nothing.",
        advice="Read its error. For a private channel, give a token whose user the policies on realtime.messages "
        "allow (access_token, pool.set_auth()); then subscribe again.",
    ),
    Code(
        code="RTP007",
        severity=Severity.INFO,
        title="nobody listens to a subscription",
        meaning="Events wait for a reader that does not come, and are lost when the mailbox is full; or a Channel has "
        "no callback and no reader, and pushes nothing.",
        advice="Register a callback (Channel.on_broadcast and its like), read it (Channel.events(), Channel.get()), "
        "or call Channel.unsubscribe().",
    ),
    Code(
        code="RTP008",
        severity=Severity.WARNING,
        title="a mailbox is nearly full",
        meaning="Events come faster than the Channel's callbacks or its reader take them. When it is full, the option "
        "overflow says what is lost.",
        advice="Make the callback faster: hand long work to a queue of your own. For other Channels in parallel raise "
        "num_workers; for short bursts raise mailbox_limit.",
    ),
    Code(
        code="RTP009",
        severity=Severity.WARNING,
        title="a callback is slow",
        meaning="A callback holds a worker, and what comes after it on its Channel waits.",
        advice="Look at the stack: that is where it spends its time. Hand long work to a queue or a thread of your "
        "own, and give requests in it a time-out.",
    ),
    Code(
        code="RTP010",
        severity=Severity.ERROR,
        title="a callback is stuck",
        meaning="A callback does not return. Its Channel hears nothing more, and one worker of num_workers is lost to "
        "all the others.",
        advice="Look at the stack: that is where it waits. Give what it waits for a time-out. A callback must not "
        "wait for an event that comes to its own Channel.",
    ),
    Code(
        code="RTP011",
        severity=Severity.WARNING,
        title="heartbeats are answered late",
        meaning="The server, or the way to it, is slow. After heartbeat_timeout the connection is taken for dead.",
        advice="Look at the network and at how busy this process is (the I/O thread needs the GIL). If the line is "
        "known to be slow, raise heartbeat_timeout.",
    ),
    Code(
        code="RTP012",
        severity=Severity.WARNING,
        title="a token is about to expire",
        meaning="It was given as text, so nobody renews it. When it expires the server closes its channels.",
        advice="Call pool.set_auth() with a new one in time, or give a callable as access_token: rtpool then asks it "
        "for a new token ahead of each expiry.",
    ),
    Code(
        code="RTP013",
        severity=Severity.INFO,
        title="a socket is nearly full of channels",
        meaning="The server allows max_channels_per_connection channels a socket. The next Channels open another one.",
        advice="Do nothing while the project's connection limit allows another socket. Else let Channels share: equal "
        "topics with equal tokens and presence keys are one channel. If the server takes fewer, lower the option.",
    ),
    Code(
        code="RTP014",
        severity=Severity.WARNING,
        title="the pool is nearly full",
        meaning="All connections that max_connections allows are nearly full of channels. Beyond that "
        "Channel.subscribe() fails or waits.",
        advice="Unsubscribe what is not needed, or raise max_connections within the project's limit of clients.",
    ),
    Code(
        code="RTP015",
        severity=Severity.WARNING,
        title="the server refused so many joins",
        meaning="The server's limit of joins a second was reached, so rtpool joins more slowly for some minutes.",
        advice="Lower max_joins_per_second: the limit is the project's, and other processes join as well.",
    ),
    Code(
        code="RTP016",
        severity=Severity.WARNING,
        title="pushes are held back",
        meaning="More is sent than max_events_per_second, or the server, allows at present. Pushes wait, and those "
        "that wait too long fail.",
        advice="Send less, or raise max_events_per_second within the project's limit, which counts each delivery.",
    ),
    Code(
        code="RTP017",
        severity=Severity.WARNING,
        title="messages were too big",
        meaning="A push was refused before it was sent, or a received message was larger than max_message_size and "
        "cost its connection.",
        advice="Send less at a time, or a reference to it. If the server is set to take more, raise max_payload_size "
        "and max_frame_size; for received ones max_message_size.",
    ),
    Code(
        code="RTP018",
        severity=Severity.WARNING,
        title="events were dropped",
        meaning="A Channel's mailbox was full and the option overflow let events go. Its Gap callbacks were told.",
        advice="Make the callback faster, or raise mailbox_limit. Where nothing may be lost use overflow='block', and "
        "fetch what is missing in Channel.on_gap.",
    ),
    Code(
        code="RTP019",
        severity=Severity.WARNING,
        title="events may have been missed",
        meaning="There were interruptions in which events may have been lost; each was told to the Channels as a Gap.",
        advice="Fetch what is missing in Channel.on_gap, between lost_from and lost_to. Private channels with "
        "replay=True get stored broadcasts again.",
    ),
    Code(
        code="RTP020",
        severity=Severity.INFO,
        title="one topic on several sockets",
        meaning="Channels of one topic have different tokens, presence keys or private flags, and cannot share a "
        "join. Each copy counts, and every message is billed once for each.",
        advice="Where they may share, make them with the same access_token, presence_key, private and replay. Where "
        "the users differ, that is how it must be.",
    ),
    Code(
        code="RTP021",
        severity=Severity.WARNING,
        title="a pool was forgotten open",
        meaning="The pool runs, has no subscription, and did nothing for a while. Its threads and sockets stay.",
        advice="Call pool.close(), or use `with RealtimePool(…) as pool:`. Make one pool for the program, not one for "
        "each request.",
    ),
    Code(
        code="RTP022",
        severity=Severity.ERROR,
        title="a service key where users' keys belong",
        meaning="The key passes over row-level security. It is in the URL of each connection, where proxies log it, "
        "or opens the connection of users with tokens of their own.",
        advice="Use the anon or publishable key (sb_publishable_…) and give users' tokens as access_token. In a "
        "backend that needs the service key, set api_key_in='header'.",
    ),
    Code(
        code="RTP023",
        severity=Severity.INFO,
        title="several pools where one would do",
        meaning="This process has several pools for one URL and key, each with sockets and threads of its own.",
        advice="Use rtpool.get_pool(url, api_key=…), which gives every module the same pool, or pass one pool around.",
    ),
    Code(
        code="RTP024",
        severity=Severity.WARNING,
        title="callbacks raise",
        meaning="Exceptions left callbacks. Each was logged with its traceback, and the event it was for is done with.",
        advice="Read the log of rtpool.dispatch and rtpool.pool, or set pool.on_callback_error().",
    ),
    Code(
        code="RTP025",
        severity=Severity.ERROR,
        title="the I/O thread stands still",
        meaning="Nothing is received, sent or kept alive.",
        advice="Look for code that holds the GIL for seconds (a C extension, a huge regular expression), for a "
        "stopped process, and for a log handler that blocks.",
    ),
)

"""
The limits, timings and switches of the embedded server.
"""

from __future__ import annotations

from typing import Any

import attrs

__all__ = ["ServerOptions"]

#: The limits of a real Realtime server as it comes.
REAL: dict[str, Any] = {
    "max_joins_per_second": 100,
    "max_events_per_second": 100,
    "max_presence_events_per_second": 1000,
    "presence_max_calls": 5,
    "rate_tick": 5.0,
    "connect_error_backoff": 2.0,
    "join_error_backoff": 5.0,
    "postgres_renewal_delay": 2.0,
    "postgres_retry": 7.0,
    "no_channel_timeout": 600.0,
}


@attrs.frozen(kw_only=True)
class ServerOptions:
    """
    Limits, timings and switches. Seconds are floats; None is no limit.

    The defaults suit tests: nothing is held back and nothing is counted that the real server counts per second;
    `real` gives what it does itself.

    Attributes:
        max_channels_per_client: channels of one socket.
        max_concurrent_users: sockets that joined at least once; when full, upgrades are refused with HTTP 429, and
            joins of sockets not yet counted with an error reply.
        max_joins_per_second: one more is refused and its socket closed with `disconnect_code`.
        max_events_per_second: broadcasts sent and delivered; at the limit each channel that is delivered to is shut
            down, REST answers 429, database broadcasts and changes are dropped.
        max_presence_events_per_second: presence messages sent and delivered; at the limit a channel that tracks is
            shut down.
        rate_tick: how often these three are judged, by the average of up to twelve ticks; the real server takes 5 s.
            0 judges each by the second before it.
        max_payload_kb: of a broadcast or a tracked presence, in 1,000 bytes.
        max_frame_size: bytes; a larger frame closes the socket with 1009.
        idle_timeout: a socket that sent nothing for so long is closed with 1000.
        no_channel_timeout: how often sockets that have joined once and have no channel any more are cut off; the real
            server takes 600 s. None never does.
        connect_error_backoff, join_error_backoff: how long a refusal is held back; the real server takes 2 and 5 s.
        join_latency: how long every join takes; meanwhile its socket is deaf and mute.
        postgres_delay: from a join's reply to "Subscribed to PostgreSQL".
        postgres_renewal_delay: from a new access token to the next such message; the real server takes 1 to 3 s.
        postgres_retry: from a passing failure of a subscription to the next attempt.
        replication_delay: from a join that asks for ``replication_ready`` to the message about it; over 60 s the
            channel is shut down instead.
        presence_max_calls: presence messages a channel may send in a window (the real one: 5).
        presence_window: how long that window is.
        private_only: public joins are refused.
        suspended: connections, joins and REST calls are refused.
        presence_enabled: every member gets presence, whatever its join says.
        single_rest: False is a server too old for the REST endpoint of one event.
        strict_join_ref: a push with a missing or stale join_ref is dropped, as by 2.129.0; 2.128.1 lets it pass.
        disconnect_code: with which a socket is closed over the join limit: 1001, and 1000 by 2.128.1.
        crash_reason: what phx_error says: ``channel_crash`` since Phoenix 1.8.10, None before.
        record_limit: how many messages, joins, leaves and requests each are kept for looking at, and messages of the
            database for replay; the oldest go first.
        send_queue_limit: bytes waiting for one client; more and it is cut off.
        require_prefix: only topics that begin with ``realtime:`` can be joined; False takes any, and then the
            server's own methods take topics as they are on the wire.
        plain_phoenix: any topic is welcome, no key is asked for, nothing of Supabase's is sent or understood, and a
            malformed frame closes the socket with 1011.
    """

    max_channels_per_client: int = 100
    max_concurrent_users: int = 200
    max_joins_per_second: int | None = None
    max_events_per_second: int | None = None
    max_presence_events_per_second: int | None = None
    rate_tick: float = 0.0
    max_payload_kb: int = 3000
    max_frame_size: int = 5_000_000
    idle_timeout: float = 60.0
    no_channel_timeout: float | None = None
    connect_error_backoff: float = 0.0
    join_error_backoff: float = 0.0
    join_latency: float = 0.0
    postgres_delay: float = 0.0
    postgres_renewal_delay: float = 0.0
    postgres_retry: float = 0.0
    replication_delay: float = 0.0
    presence_max_calls: int | None = None
    presence_window: float = 30.0
    private_only: bool = False
    suspended: bool = False
    presence_enabled: bool = False
    single_rest: bool = True
    strict_join_ref: bool = True
    disconnect_code: int = 1001
    crash_reason: str | None = "channel_crash"
    record_limit: int = 100_000
    send_queue_limit: int = 64 * 1024 * 1024
    require_prefix: bool = True
    plain_phoenix: bool = False

    @staticmethod
    def real() -> dict[str, Any]:
        """The limits and delays a real server has, for ``RealtimeServer(**ServerOptions.real())``."""
        return dict(REAL)

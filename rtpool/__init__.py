"""
A synchronous, thread-based client for Supabase Realtime and Phoenix Channels: few sockets, many channels.
"""

from __future__ import annotations

import logging

from rtpool.actions import Action
from rtpool.channel import Channel
from rtpool.errors import (
    BroadcastRefused,
    ConfigConflict,
    ConnectionFailed,
    HandshakeRefused,
    InvalidType,
    InvalidValue,
    JoinRefused,
    JoinTimeout,
    MailboxOverflow,
    MessageTooBig,
    MonkeyPatchConflict,
    NotSubscribed,
    PoolClosed,
    PoolExhausted,
    PoolForked,
    ProtocolError,
    ProxyRefused,
    PushRefused,
    PushTimeout,
    ReceiveTimeout,
    RtpoolError,
    SendBufferFull,
)
from rtpool.events import (
    Broadcast,
    ChannelState,
    Gap,
    Heartbeat,
    Message,
    PostgresChange,
    Presence,
    StatusChange,
    SystemMessage,
)
from rtpool.options import FullJitter, PoolOptions, ReconnectPolicy
from rtpool.pool import RealtimePool, get_pool
from rtpool.push import Push
from rtpool.rest import BroadcastMessage
from rtpool.stats import ConnectionDetails, Health, PoolStats, SubscriptionDetails

__version__ = "0.1.0"

__all__ = [
    "Action",
    "Broadcast",
    "BroadcastMessage",
    "BroadcastRefused",
    "Channel",
    "ChannelState",
    "ConfigConflict",
    "ConnectionDetails",
    "ConnectionFailed",
    "FullJitter",
    "Gap",
    "HandshakeRefused",
    "Health",
    "Heartbeat",
    "InvalidType",
    "InvalidValue",
    "JoinRefused",
    "JoinTimeout",
    "MailboxOverflow",
    "Message",
    "MessageTooBig",
    "MonkeyPatchConflict",
    "NotSubscribed",
    "PoolClosed",
    "PoolExhausted",
    "PoolForked",
    "PoolOptions",
    "PoolStats",
    "PostgresChange",
    "Presence",
    "ProtocolError",
    "ProxyRefused",
    "Push",
    "PushRefused",
    "PushTimeout",
    "RealtimePool",
    "ReceiveTimeout",
    "ReconnectPolicy",
    "RtpoolError",
    "SendBufferFull",
    "StatusChange",
    "SubscriptionDetails",
    "SystemMessage",
    "__version__",
    "get_pool",
]

logging.getLogger("rtpool").addHandler(logging.NullHandler())

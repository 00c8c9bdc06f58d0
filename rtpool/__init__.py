"""
A synchronous, thread-based client for Supabase Realtime and Phoenix Channels: few sockets, many channels.

Its modules are imported at the first use of a name: pytest's plugin and the command have this package imported where
nobody opens a pool.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

if not TYPE_CHECKING:  # a checker knows the names by what is above, and is to refuse others

    def __getattr__(name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        for home in ("actions", "channel", "errors", "events", "options", "pool", "push", "rest", "stats"):
            found = vars(importlib.import_module(f"{__name__}.{home}"))
            for public in found["__all__"]:
                if public in __all__:
                    globals().setdefault(public, found[public])  # a program may have put its own there
        if name not in globals():  # a module of ours is there now, too
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})

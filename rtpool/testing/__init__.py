"""
A real Realtime server on a loopback port, for your tests, demos and ours. Needs the extra ``rtpool[testing]``.
"""

from __future__ import annotations

from rtpool.testing.connection import NO_REPLY, ServerConnection
from rtpool.testing.records import (
    JoinRecord,
    JoinRefusal,
    LeaveRecord,
    ReceivedMessage,
    Refusal,
    RequestInfo,
    ServerOptions,
)
from rtpool.testing.server import RealtimeServer

__all__ = [
    "JoinRecord",
    "JoinRefusal",
    "LeaveRecord",
    "NO_REPLY",
    "RealtimeServer",
    "ReceivedMessage",
    "Refusal",
    "RequestInfo",
    "ServerConnection",
    "ServerOptions",
]

"""
A real Realtime server on a loopback port, for your tests, demos and ours. Needs the extra ``rtpool[testing]``.

Names are imported at their first use: pytest loads this package in every project where rtpool is installed, also where
the extra is not. `rtpool.testing.refusals` is a module of its own: every refusal of a real server, by name; so is
`rtpool.testing.faults`: everything that can go wrong, and when.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rtpool.testing import faults
    from rtpool.testing.connection import NO_REPLY, ServerConnection
    from rtpool.testing.database import Trouble
    from rtpool.testing.options import ServerOptions
    from rtpool.testing.policy import Permissions, PolicyRequest
    from rtpool.testing.records import (
        JoinRecord,
        JoinRefusal,
        JoinReply,
        LeaveRecord,
        PushReply,
        ReceivedMessage,
        Refusal,
        RequestInfo,
        RestRecord,
        RestRequest,
    )
    from rtpool.testing.server import RealtimeServer
    from rtpool.testing.store import StoredMessage

__all__ = [
    "JoinRecord",
    "JoinRefusal",
    "JoinReply",
    "LeaveRecord",
    "NO_REPLY",
    "Permissions",
    "PolicyRequest",
    "PushReply",
    "RealtimeServer",
    "ReceivedMessage",
    "Refusal",
    "RequestInfo",
    "RestRecord",
    "RestRequest",
    "ServerConnection",
    "ServerOptions",
    "StoredMessage",
    "Trouble",
    "faults",
]

_HOMES = {
    "NO_REPLY": "connection",
    "Permissions": "policy",
    "PolicyRequest": "policy",
    "RealtimeServer": "server",
    "ServerConnection": "connection",
    "ServerOptions": "options",
    "StoredMessage": "store",
    "Trouble": "database",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "faults":
        return importlib.import_module(f"{__name__}.faults")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'records')}"), name)

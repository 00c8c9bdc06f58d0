"""
Channels that end with what they were made in: a request, a declared callback, a command, any app context.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from flask import g

if TYPE_CHECKING:
    from rtpool.channel import Channel
    from rtpool.flask.state import AppState

__all__ = ["end_with_context", "leave"]

#: In `flask.g`, which is the context's own.
_NAME = "_rtpool_channels"
#: What is told to a thread that uses a Channel later.
OVER = "ended with its request; what is to outlive that takes a Channel of realtime.pool"


def end_with_context(state: AppState, channel: Channel) -> Channel:
    """Have a Channel end with the current app context."""
    g.setdefault(_NAME, []).append(channel)
    state.request_channels.add(channel)
    return channel


def leave(state: AppState) -> None:
    """The current app context ends: so do its Channels, whoever still uses them. Waits for no server."""
    with contextlib.ExitStack() as steps:  # the others end even if one fails
        for channel in g.pop(_NAME, ()):
            state.request_channels.discard(channel)
            steps.callback(channel._end, OVER)

"""
Channels that end with what they were made in: a request, a declared callback, a command, any app context.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING

from flask import g

if TYPE_CHECKING:
    from rtpool.channel import Channel
    from rtpool.flask.state import AppState

__all__ = ["end_forgotten", "end_with_context", "leave"]

#: In `flask.g`, which is the context's own.
_NAME = "_rtpool_channels"
#: What is told to a thread that uses a Channel later.
OVER = "ended with its request; what is to outlive that takes a Channel of realtime.pool"


class _Held:
    """
    The Channels of one app context. A context whose end was cut short, because another teardown raised, drops it with
    all that is in ``g``, and so hands them over.
    """

    def __init__(self, forgotten: deque[list[Channel]]) -> None:
        self.channels: list[Channel] = []
        self._forgotten = forgotten

    def __del__(self) -> None:
        # No more than this: the collector calls it in any thread, under any lock.
        if self.channels:
            self._forgotten.append(self.channels)


def end_with_context(state: AppState, channel: Channel) -> Channel:
    """Have a Channel end with the current app context."""
    end_forgotten(state)
    if _NAME not in g:
        setattr(g, _NAME, _Held(state.forgotten))
    g.get(_NAME).channels.append(channel)
    state.request_channels.add(channel)
    return channel


def leave(state: AppState) -> None:
    """The current app context ends: so do its Channels, whoever still uses them. Waits for no server."""
    held = g.pop(_NAME, None)
    if held is not None:
        channels, held.channels = held.channels, []
        _end(state, channels)
    end_forgotten(state)


def end_forgotten(state: AppState) -> None:
    """End the Channels of contexts whose end was cut short."""
    with contextlib.suppress(IndexError):
        while state.forgotten:
            _end(state, state.forgotten.popleft())


def _end(state: AppState, channels: list[Channel]) -> None:
    with contextlib.ExitStack() as steps:  # the others end even if one fails
        for channel in channels:
            state.request_channels.discard(channel)
            steps.callback(channel._end, OVER)

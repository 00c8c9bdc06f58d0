"""
Streams to browsers: Server-Sent Events of what a topic tells, one upstream join for any number of browsers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rtpool.flask.streams.feed import FeedStats
from rtpool.flask.streams.streams import Streams
from rtpool.flask.streams.wanted import Changes

if TYPE_CHECKING:
    from flask import Response

    from rtpool.flask.state import AppState

__all__ = ["Changes", "FeedStats", "Streams", "stream"]


def stream(state: AppState, topic: str, **arguments: Any) -> Response:
    """
    A stream of an app; see `rtpool.flask.Realtime.stream`.
    """
    return state.streams.stream(topic, **arguments)

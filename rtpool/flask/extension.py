"""
`Realtime`: the extension's face.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flask import Flask, current_app

import rtpool
from rtpool.flask import commands, page
from rtpool.flask.state import AppState

if TYPE_CHECKING:
    from flask import Response

__all__ = ["Realtime"]

NAME = "rtpool"


class Realtime:
    """
    rtpool as a Flask extension: callbacks in an app context, Channels that end with their request, streams to browsers.

    Holds what was declared, nothing of any app: that is in ``app.extensions["rtpool"]``.

    Args:
        app: to be initialized at once; None for the app factory pattern, with `init_app` later.
    """

    def __init__(self, app: Flask | None = None) -> None:
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """
        Make the extension work in an app. Opens nothing; connects at the first use.
        """
        app.extensions[NAME] = state = AppState(app)
        page.register(app, state)
        commands.register(app)

    @property
    def state(self) -> AppState:
        """The current app's."""
        state: AppState = current_app.extensions[NAME]
        return state

    @property
    def pool(self) -> rtpool.RealtimePool:
        """The current app's pool."""
        return self.state.pool

    def channel(self, topic: str, **arguments: Any) -> rtpool.Channel:
        """A Channel of the current request."""
        raise NotImplementedError

    def stream(self, topic: str, **arguments: Any) -> Response:
        """A stream to a browser."""
        from rtpool.flask.streams import stream

        return stream(self.state, topic, **arguments)

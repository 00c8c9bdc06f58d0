"""Streams to browsers: who hears what, and when it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Response

from rtpool.flask import Realtime
from rtpool.testing import RealtimeServer
from tests.flask.browsers import Serve, Serving, serve
from tests.flask.conftest import MakeApp, state_of

__all__ = ["serve"]

StreamApp = Callable[..., Serving]


@pytest.fixture
def streaming(make_app: MakeApp, serve: Serve) -> StreamApp:
    """Serves an app with a stream at /stream: `arguments` are the stream's, keywords config keys."""

    def start(topic: str = "room", arguments: dict[str, Any] | None = None, **config: Any) -> Serving:
        extension = Realtime()
        app = make_app(extension, **config)

        @app.get("/stream")
        def stream() -> Response:
            return extension.stream(topic, **(arguments or {}))

        return serve(app)

    return start


def joins(server: RealtimeServer) -> int:
    return sum(message.event == "phx_join" for message in server.received)


def test_many_browsers_hear_all_in_order_by_one_join(streaming: StreamApp, server: RealtimeServer) -> None:
    serving = streaming()
    first = serving.browser().joined()
    browsers = [first, *(serving.browser().opened() for _ in range(49))]
    for n in range(20):
        server.broadcast("room", "moved", {"n": n})
    for browser in browsers:
        assert browser.numbers(20) == list(range(20))
    assert joins(server) == 1
    assert state_of(serving.app).streams.open == 50

"""Apps with rtpool, on the test's own server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask, Response
from flask.testing import FlaskClient

from rtpool.flask import Realtime
from rtpool.flask.state import AppState
from rtpool.testing import RealtimeServer
from tests.flask.browsers import Serving
from tests.support import secrets_watch
from tests.support.wait import wait_until

MakeApp = Callable[..., Flask]


def state_of(app: Flask) -> AppState:
    """What an app has of rtpool."""
    state: AppState = app.extensions["rtpool"]
    return state


def wait_for_callbacks(app: Flask, count: int | None = None) -> None:
    """Wait until the declared callbacks of all, or so many, topics are really subscribed; somebody has begun that."""
    state = state_of(app)

    def subscribed() -> bool:
        running = state._running
        channels = running.channels if running is not None else ()
        enough = len(channels) == count if count is not None else bool(channels)
        return enough and all(channel.is_subscribed for channel in channels)

    wait_until(subscribed, "the declared callbacks are subscribed")


@pytest.fixture(autouse=True)
def no_project_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whoever runs the tests."""
    for name in ("URL", "KEY", "ANON_KEY", "SERVICE_ROLE_KEY"):
        monkeypatch.delenv(f"SUPABASE_{name}", raising=False)


@pytest.fixture
def realtime() -> Realtime:
    """An extension that knows no app yet."""
    return Realtime()


@pytest.fixture
def make_app(server: RealtimeServer, realtime: Realtime) -> Iterator[MakeApp]:
    """
    Apps on the test's server, initialized with `realtime` or another extension, with fast reconnects. Keywords are
    config keys; `TESTING` is on. Closed at the end, in time.
    """
    apps: list[Flask] = []

    def make(extension: Realtime | None = None, *, name: str = "tests.flask.app", **config: Any) -> Flask:
        app = Flask(name)
        app.config.update(
            TESTING=True,
            SECRET_KEY="of the tests",
            RTPOOL_URL=server.url,
            RTPOOL_API_KEY=server.api_key,
            RTPOOL_BASE_DELAY=0.05,
            RTPOOL_MAX_JOINS_PER_SECOND=10_000,
            RTPOOL_STABLE_AFTER=0.0,
        )
        app.config.update(config)
        (extension or realtime).init_app(app)
        apps.append(app)
        return app

    yield make
    for app in apps:
        state = state_of(app)
        if state.has_pool:
            secrets_watch.watch.look_at_pool(state.pool)
        assert state.close(10), "close() was not in time"


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    """An app with `realtime`."""
    return make_app()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """The app's test client."""
    return app.test_client()


Serve = Callable[[Flask], Serving]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves apps until the test is over."""
    serving: list[Serving] = []

    def start(app: Flask) -> Serving:
        serving.append(Serving(app))
        return serving[-1]

    yield start
    for each in serving:
        each.close()


StreamApp = Callable[..., Serving]


@pytest.fixture
def streaming(make_app: MakeApp, serve: Serve) -> StreamApp:
    """Serves an app with a stream of `topic` at /stream: `arguments` are the stream's, keywords config keys."""

    def start(topic: str = "room", arguments: dict[str, Any] | None = None, **config: Any) -> Serving:
        extension = Realtime()
        app = make_app(extension, **config)

        @app.get("/stream")
        def stream() -> Response:
            return extension.stream(topic, **(arguments or {}))

        return serve(app)

    return start

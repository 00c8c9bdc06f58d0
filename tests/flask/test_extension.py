"""The extension by Flask's conventions."""

from __future__ import annotations

import pytest
from flask import Blueprint, Flask
from flask.testing import FlaskClient

import rtpool
from rtpool.flask import Realtime
from rtpool.flask.state import AppState
from rtpool.testing import RealtimeServer
from tests.flask.conftest import MakeApp, state_of, wait_for_callbacks
from tests.support.wait import wait_until


def test_nothing_connects_until_first_use(app: Flask, realtime: Realtime, server: RealtimeServer) -> None:
    with app.app_context():
        assert isinstance(realtime.state, AppState)
        assert not realtime.state.has_pool
        pool = realtime.pool
        assert realtime.pool is pool
        assert pool.stats().connection_status == "idle"
        assert not server.connections_total
        pool.connect(10)
        assert len(server.connections) == 1


def test_a_request_subscribes_what_was_declared_before_and_after_init_app(
    server: RealtimeServer, realtime: Realtime, make_app: MakeApp
) -> None:
    heard: list[object] = []
    realtime.on_broadcast("before", "moved")(heard.append)
    app = make_app(RTPOOL_AUTOSTART=True)
    realtime.on_broadcast("after")(heard.append)
    assert not server.connections_total
    assert app.test_client().get("/").status_code == 404
    wait_for_callbacks(app)
    assert {join.topic for join in server.joins()} == {"before", "after"}
    assert server.connections_total == 1

    server.broadcast("before", "moved", {"n": 1})
    server.broadcast("after", "anything", {"n": 2})
    wait_until(lambda: len(heard) == 2)


def test_each_app_of_a_process_has_its_own_pool_and_project(make_app: MakeApp, realtime: Realtime) -> None:
    with RealtimeServer() as another:
        seen: list[str] = []

        @realtime.on_broadcast("room")
        def heard(message: rtpool.Broadcast) -> None:
            from flask import current_app

            seen.append(f"{current_app.name} {message.payload['from']}")

        one = make_app(name="one")
        two = make_app(name="two", RTPOOL_URL=another.url, RTPOOL_API_KEY=another.api_key)
        realtime.start(one, wait=True)
        realtime.start(two, wait=True)
        assert another.connections_total == 1
        another.broadcast("room", "x", {"from": "another"})
        wait_until(lambda: seen == ["two another"])
        with two.app_context():
            realtime.close(10)
        assert state_of(one).pool is not state_of(two).pool
        assert not state_of(one).pool.closed


def test_without_an_app_context_the_error_says_what_to_do(app: Flask, realtime: Realtime) -> None:
    for use in (lambda: realtime.pool, lambda: realtime.channel("room"), realtime.start, realtime.close):
        with pytest.raises(RuntimeError, match=r"within `with app.app_context\(\):`"):
            use()
    with Flask("another").app_context(), pytest.raises(RuntimeError, match="'another' knows nothing of rtpool"):
        _ = realtime.pool


def test_init_app_twice_is_once_and_a_second_extension_is_refused(
    app: Flask, realtime: Realtime, client: FlaskClient
) -> None:
    state = state_of(app)
    realtime.init_app(app)
    assert state_of(app) is state
    with pytest.raises(rtpool.ConfigConflict, match="has a Realtime already"):
        Realtime(app)


def test_init_app_after_the_first_request_is_refused_by_flask_and_leaves_nothing() -> None:
    app = Flask("late")
    app.test_client().get("/")
    with pytest.raises(AssertionError, match="register_blueprint"):
        Realtime(app)
    assert "rtpool" not in app.extensions


def test_a_blueprints_module_declares_for_the_app_that_registers_it(
    server: RealtimeServer, realtime: Realtime, make_app: MakeApp
) -> None:
    cars = Blueprint("cars", __name__)
    heard: list[object] = []

    @realtime.on_broadcast("cars")
    def moved(message: rtpool.Broadcast) -> None:
        heard.append(message.payload)

    @cars.get("/cars")
    def index() -> str:
        with realtime.channel("cars") as channel:
            channel.send_broadcast("looked", {"n": 1}).result(10)
        return "cars"

    app = make_app(RTPOOL_AUTOSTART=True)
    app.register_blueprint(cars)
    app.test_client().get("/")
    wait_for_callbacks(app)
    assert app.test_client().get("/cars").text == "cars"
    wait_until(lambda: heard == [{"n": 1}])
    assert len(server.joins("cars")) == 1


def test_an_app_may_have_a_blueprint_of_that_name(realtime: Realtime) -> None:
    app = Flask("app")
    app.register_blueprint(Blueprint("rtpool", __name__))
    realtime.init_app(app)
    assert app.test_client().get("/_rtpool/").status_code == 404


def test_an_app_that_cannot_have_it_has_nothing_of_it(realtime: Realtime) -> None:
    app = Flask("app")
    app.register_blueprint(Blueprint("_rtpool", __name__))
    with pytest.raises(ValueError, match="_rtpool"):
        realtime.init_app(app)
    assert "rtpool" not in app.extensions
    assert not app.before_request_funcs.get(None)
    assert not app.teardown_appcontext_funcs

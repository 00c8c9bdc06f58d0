"""Callbacks that a Flask app declares."""

from __future__ import annotations

import functools
import gc
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask, current_app, g
from flask.testing import FlaskClient

import rtpool
from rtpool.errors import InvalidType, InvalidValue
from rtpool.flask import Realtime, callback_failed, gap, status_changed
from rtpool.flask import state as state_module
from rtpool.flask.config import read_settings
from rtpool.testing import JoinRefusal, RealtimeServer
from tests.flask.conftest import MakeApp, state_of, wait_for_callbacks
from tests.support.wait import wait_until


def lines(caplog: pytest.LogCaptureFixture, app: Flask) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == app.logger.name]


def test_each_kind_is_called_with_its_event(
    server: RealtimeServer, realtime: Realtime, app: Flask, make_pool: Callable[..., rtpool.RealtimePool]
) -> None:
    heard: list[Any] = []
    realtime.on_changes("cars", "update", filter="id=eq.1")(heard.append)
    realtime.on_broadcast("room", "moved")(heard.append)
    realtime.on_presence("room", "join")(heard.append)
    realtime.on_presence("room", "leave")(heard.append)
    realtime.on_presence("room")(heard.append)
    realtime.start(app, wait=True)
    wait_until(lambda: [type(event) for event in heard] == [rtpool.Presence])
    heard.clear()

    server.change("public", "cars", "INSERT", {"id": 1, "status": "free"})
    server.change("public", "cars", "UPDATE", {"id": 1, "status": "rented"}, {"id": 1})
    wait_until(lambda: heard)
    assert (heard[0].type, heard[0].record["status"]) == ("UPDATE", "rented")
    heard.clear()

    server.broadcast("room", "left", {})
    server.broadcast("room", "moved", {"lat": 52.5})
    wait_until(lambda: heard)
    assert (heard[0].event, heard[0].payload) == ("moved", {"lat": 52.5})
    heard.clear()

    with make_pool().channel("room", presence_key="ada") as other:
        other.track({"name": "Ada"}).result(10)
        wait_until(lambda: len(heard) == 2)
    wait_until(lambda: len(heard) == 4)
    assert [(event.type, event.key) for event in heard] == [
        ("join", "ada"),
        ("sync", ""),
        ("leave", "ada"),
        ("sync", ""),
    ]


def test_equal_topics_share_a_join_and_the_order_of_events(
    server: RealtimeServer, realtime: Realtime, app: Flask
) -> None:
    heard: list[Any] = []
    realtime.on_broadcast("room", "one")(lambda message: heard.append((message.payload["n"], threading.get_ident())))
    realtime.on_broadcast("room", "two")(lambda message: heard.append((message.payload["n"], threading.get_ident())))
    realtime.on_changes("cars")(print)
    realtime.on_changes("cars", "*", schema="public")(repr)
    realtime.start(app, wait=True)
    assert len(server.joins("room")) == 1
    assert len(server.joins()) == 2
    with app.app_context():
        pool_topic = realtime.pool.on_changes("cars", print)
    assert len(server.joins()) == 2, "as RealtimePool.on_changes asks for it"
    pool_topic.unsubscribe()
    for number in range(100):
        server.broadcast("room", ("one", "two")[number % 2], {"n": number})
    wait_until(lambda: len(heard) == 100)
    assert [number for number, _ in heard] == list(range(100))


def test_a_private_topic_is_not_the_public_one(server: RealtimeServer, realtime: Realtime, app: Flask) -> None:
    realtime.on_broadcast("room", private=True)(print)
    realtime.on_broadcast("room")(print)
    realtime.start(app, wait=True)
    assert sorted(join.payload["config"]["private"] for join in server.joins("room")) == [False, True]


def test_a_callback_runs_in_a_context_of_its_app_that_ends_with_it(
    server: RealtimeServer, realtime: Realtime, app: Flask
) -> None:
    seen: list[Any] = []

    @app.teardown_appcontext
    def end(error: BaseException | None) -> None:
        if "session" in g:
            seen.append(("end", error, g.session))

    @realtime.on_broadcast("room")
    def heard(message: rtpool.Broadcast) -> None:
        seen.append((current_app._get_current_object(), g.get("session")))  # type: ignore[attr-defined]
        g.session = message.payload["n"]

    realtime.start(app, wait=True)
    server.broadcast("room", "x", {"n": 1})
    server.broadcast("room", "x", {"n": 2})
    wait_until(lambda: len(seen) == 4)
    assert seen == [(app, None), ("end", None, 1), (app, None), ("end", None, 2)]


def test_a_token_is_asked_for_in_a_context_of_the_app(
    server: RealtimeServer, realtime: Realtime, make_app: MakeApp
) -> None:
    app = make_app(RTPOOL_ACCESS_TOKEN=lambda: current_app.config["TOKEN"], TOKEN=server.token(sub="ada"))
    realtime.on_broadcast("room", private=True)(print)
    realtime.start(app, wait=True)
    assert [join.payload["access_token"] for join in server.joins("room")] == [app.config["TOKEN"]]


class Heard:
    """An object that can be called, as good as a function."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def __call__(self, event: Any) -> None:
        self.events.append(event)


def test_whatever_can_be_called_may_be_declared(server: RealtimeServer, realtime: Realtime, app: Flask) -> None:
    heard = Heard()
    realtime.on_broadcast("room")(heard)
    realtime.on_broadcast("room")(functools.partial(heard.events.append))
    realtime.on_broadcast("room")(heard.events.append)
    realtime.start(app, wait=True)
    server.broadcast("room", "x", {})
    wait_until(lambda: len(heard.events) == 3)


def test_what_cannot_be_is_refused_where_it_is_declared(realtime: Realtime) -> None:
    for refused in (
        lambda: realtime.on_changes("cars", "UPSERT"),
        lambda: realtime.on_changes(5),  # type: ignore[arg-type]
        lambda: realtime.on_changes("cars", filter="id=eq"),
        lambda: realtime.on_broadcast(""),
        lambda: realtime.on_broadcast("room", ""),
        lambda: realtime.on_broadcast("room", private=1),  # type: ignore[arg-type]
        lambda: realtime.on_presence("room", "away"),
        lambda: realtime.on_gap(""),
        lambda: realtime.on_broadcast("room")(5),  # type: ignore[type-var]
    ):
        with pytest.raises((InvalidValue, InvalidType)):
            refused()


def test_the_decorator_returns_the_function_itself(realtime: Realtime) -> None:
    def heard(event: object) -> None:
        """Nothing."""

    decorators = (realtime.on_changes("cars"), realtime.on_broadcast("a"), realtime.on_presence("a"), realtime.on_gap())
    assert all(decorate(heard) is heard for decorate in decorators)


def test_what_is_declared_late_is_subscribed_at_once_where_the_others_are(
    server: RealtimeServer, realtime: Realtime, make_app: MakeApp
) -> None:
    started, waiting = make_app(), make_app()
    realtime.on_broadcast("room", "early")(print)
    realtime.start(started, wait=True)
    heard: list[Any] = []
    realtime.on_broadcast("room", "late")(heard.append)
    realtime.on_broadcast("another")(heard.append)
    wait_for_callbacks(started, 2)
    assert not state_of(waiting).has_pool
    server.broadcast("room", "late", {})
    wait_until(lambda: heard)
    assert len(server.joins("room")) == 1


def test_many_first_requests_at_once_subscribe_each_callback_once(
    server: RealtimeServer, realtime: Realtime, make_app: MakeApp
) -> None:
    heard: list[Any] = []
    for number in range(20):
        realtime.on_broadcast(f"room {number % 5}")(heard.append)
    app = make_app(RTPOOL_AUTOSTART=True)
    together = threading.Barrier(8)

    def visit() -> None:
        together.wait(10)
        app.test_client().get("/")

    visitors = [threading.Thread(target=visit) for _ in range(8)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    wait_for_callbacks(app, 5)
    for number in range(5):
        server.broadcast(f"room {number}", "x", {})
    wait_until(lambda: len(heard) == 20)
    assert (len(server.joins()), server.connections_total) == (5, 1)


def test_a_request_does_not_wait_for_another_that_subscribes(
    server: RealtimeServer, realtime: Realtime, make_app: MakeApp
) -> None:
    realtime.on_broadcast("room")(print)
    app = make_app(RTPOOL_AUTOSTART=True)
    subscribing: list[int] = []
    entered, release = threading.Event(), threading.Event()

    def ensure_sync(function: Callable[..., Any]) -> Callable[..., Any]:
        if function is print:
            subscribing.append(threading.get_ident())
            entered.set()
            release.wait(10)
        return function

    app.ensure_sync = ensure_sync  # type: ignore[method-assign]
    first = threading.Thread(target=lambda: app.test_client().get("/"))
    first.start()
    assert entered.wait(10)
    assert app.test_client().get("/").status_code == 404
    realtime.start(app, timeout=0.1)
    running = state_of(app)._running
    assert running is not None
    assert running.done == 0, "whose subscribing fails is to be tried again"
    release.set()
    first.join()
    assert subscribing == [first.ident]
    wait_for_callbacks(app)


@pytest.mark.parametrize(
    ("config", "starts"),
    [
        ({"TESTING": True}, False),
        ({"TESTING": False}, True),
        ({"TESTING": True, "RTPOOL_AUTOSTART": True}, True),
        ({"TESTING": False, "RTPOOL_AUTOSTART": False}, False),
        ({"TESTING": False, "RTPOOL_AUTOSTART": "no"}, False),
    ],
)
def test_a_request_connects_unless_in_tests(
    realtime: Realtime, make_app: MakeApp, config: dict[str, Any], starts: bool
) -> None:
    realtime.on_broadcast("room")(print)
    app = make_app()
    app.config.update(config)  # after create_app, as tests do
    app.test_client().get("/")
    assert state_of(app).has_pool is starts


def test_without_a_declared_callback_a_request_connects_nothing(make_app: MakeApp) -> None:
    app = make_app(TESTING=False)
    app.test_client().get("/")
    assert not state_of(app).has_pool


def test_a_request_does_not_fail_because_of_callbacks_that_cannot_start(
    server: RealtimeServer,
    realtime: Realtime,
    make_app: MakeApp,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    realtime.on_broadcast("room")(print)
    app = make_app(RTPOOL_URL=None, RTPOOL_AUTOSTART=True)
    monkeypatch.setattr(state_module, "RETRY_SECONDS", 0.0)
    for _ in range(3):
        assert app.test_client().get("/").status_code == 404
    (line,) = lines(caplog, app)
    assert "RTPOOL_URL" in line
    assert "SUPABASE_URL" in line
    with pytest.raises(InvalidValue, match="RTPOOL_URL"):
        realtime.start(app)
    app.config["RTPOOL_URL"] = server.url
    app.test_client().get("/")
    wait_for_callbacks(app)


def test_what_failed_is_not_tried_again_at_each_request(
    server: RealtimeServer, realtime: Realtime, make_app: MakeApp
) -> None:
    realtime.on_broadcast("room")(print)
    app = make_app(RTPOOL_URL=None, RTPOOL_AUTOSTART=True)
    app.test_client().get("/")
    app.config["RTPOOL_URL"] = server.url
    app.test_client().get("/")
    assert not state_of(app).has_pool


def test_one_callback_that_this_pool_cannot_have_leaves_the_others_alone(
    server: RealtimeServer, realtime: Realtime, make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    realtime.on_broadcast("x" * 250)(print)  # with the prefix it is too long
    heard: list[Any] = []
    realtime.on_broadcast("room")(heard.append)
    app = make_app(RTPOOL_AUTOSTART=True)
    for _ in range(2):
        app.test_client().get("/")
    wait_for_callbacks(app, 1)
    (line,) = lines(caplog, app)
    assert "the callback print cannot be subscribed: topic has 250 bytes" in line
    for _ in range(2):
        with pytest.raises(InvalidValue, match="topic has 250 bytes"):
            realtime.start(app)
    server.broadcast("room", "x", {})
    wait_until(lambda: heard)


def test_a_topic_that_cannot_be_subscribed_keeps_no_other_from_it(
    server: RealtimeServer, realtime: Realtime, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        realtime.on_broadcast(f"room-{number}")(print)
    subscribe = rtpool.Channel.subscribe

    def no_place(self: rtpool.Channel, **how: Any) -> rtpool.Channel:
        if self.topic in ("room-1", "room-2"):
            raise rtpool.PoolExhausted(f"no place for {self.topic}")
        return subscribe(self, **how)

    with monkeypatch.context() as patched:
        patched.setattr(rtpool.Channel, "subscribe", no_place)
        with pytest.raises(rtpool.PoolExhausted, match="no place for room-1"):
            realtime.start(app)
    server.wait_for(lambda s: s.members("room-0") == s.members("room-3") == 1)
    assert not server.members("room-1")
    realtime.start(app)
    wait_for_callbacks(app, 4)


def test_a_callback_that_could_not_be_is_tried_again_by_start(
    server: RealtimeServer, realtime: Realtime, app: Flask
) -> None:
    heard: list[Any] = []
    realtime.on_broadcast("room")(heard.append)
    ensure_sync = app.ensure_sync

    def cannot(function: Any) -> Any:
        raise RuntimeError("not yet")

    app.ensure_sync = cannot  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(InvalidValue, match="cannot be subscribed: not yet"):
            realtime.start(app)
    app.ensure_sync = ensure_sync  # type: ignore[method-assign]
    realtime.start(app, wait=True)
    server.broadcast("room", "x", {})
    wait_until(lambda: heard)


def test_what_is_declared_while_another_thread_subscribes_is_subscribed_by_that_thread(
    server: RealtimeServer, realtime: Realtime, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = threading.Event(), threading.Event()
    realtime.on_broadcast("early")(print)
    subscribe = rtpool.Channel.subscribe

    def slowly(self: rtpool.Channel, **how: Any) -> rtpool.Channel:
        begun.set()
        assert go.wait(10)
        return subscribe(self, **how)

    monkeypatch.setattr(rtpool.Channel, "subscribe", slowly)
    starting = threading.Thread(target=realtime.start, args=(app,))
    starting.start()
    assert begun.wait(10)
    realtime.on_broadcast("late")(print)
    go.set()
    starting.join(10)
    wait_for_callbacks(app, 2)


@pytest.mark.parametrize("declare", [lambda extension: extension.on_broadcast("room"), Realtime.on_gap])
def test_an_async_function_needs_flasks_extra_and_says_so(
    realtime: Realtime, app: Flask, monkeypatch: pytest.MonkeyPatch, declare: Callable[[Realtime], Any]
) -> None:
    async def heard(event: rtpool.Broadcast | rtpool.Gap) -> None:
        """Nothing."""

    declare(realtime)(heard)
    monkeypatch.setitem(sys.modules, "asgiref", None)
    monkeypatch.setitem(sys.modules, "asgiref.sync", None)
    with pytest.raises(InvalidValue, match=r"the callback .*\.heard cannot be subscribed: .*'async' extra"):
        realtime.start(app)


@pytest.fixture
def failures() -> Iterator[list[Any]]:
    """What the signal `callback_failed` told."""
    told: list[Any] = []

    def note(sender: Flask, **words: Any) -> None:
        told.append((sender, current_app.name, words))

    with callback_failed.connected_to(note):
        yield told


@pytest.mark.parametrize("error", [ValueError("no such car"), SystemExit(3)])
def test_an_exception_is_told_once_with_its_traceback_and_harms_nothing(
    server: RealtimeServer,
    realtime: Realtime,
    app: Flask,
    caplog: pytest.LogCaptureFixture,
    failures: list[Any],
    error: BaseException,
) -> None:
    ends: list[Any] = []
    app.teardown_appcontext(ends.append)

    @realtime.on_broadcast("room")
    def broken(message: rtpool.Broadcast) -> None:
        raise error

    heard: list[Any] = []
    realtime.on_broadcast("room")(heard.append)
    realtime.start(app, wait=True)
    server.broadcast("room", "x", {"n": 1})
    wait_until(lambda: heard and failures)
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.name == app.logger.name
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    assert record.exc_info[2] is not None
    assert record.getMessage() == (
        "rtpool: callback test_an_exception_is_told_once_with_its_traceback_and_harms_nothing.<locals>.broken of "
        f"'room' raised {type(error).__name__}"
    )
    ((sender, name, words),) = failures
    assert (sender, name) == (app, app.name)
    assert words == {"exception": error, "callback": broken, "event": rtpool.Broadcast("room", "x", {"n": 1})}
    assert error in ends, "as of a request that failed"
    assert state_of(app).pool.stats().callback_errors == 1
    assert "raised" in state_of(app).pool.debug_dump()


def test_callbacks_that_a_view_registers_are_reported_likewise(
    server: RealtimeServer, realtime: Realtime, app: Flask, failures: list[Any]
) -> None:
    def broken(event: object) -> None:
        raise KeyError(event)

    with app.app_context():
        realtime.channel("room").on_broadcast("*", broken).subscribe()
        server.broadcast("room", "x", {})
        wait_until(lambda: failures)
    assert failures[0][2]["callback"] is broken


def test_a_receiver_of_the_signal_that_raises_is_told_too(
    server: RealtimeServer, realtime: Realtime, app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    realtime.on_broadcast("room")(lambda message: 1 / 0)

    def receiver(sender: object, **words: object) -> None:
        raise LookupError("the receiver")

    realtime.start(app, wait=True)
    with callback_failed.connected_to(receiver):
        server.broadcast("room", "x", {})
        wait_until(lambda: "rtpool: a receiver of callback_failed raised" in lines(caplog, app))


def test_the_pools_own_hook_is_called_as_well(server: RealtimeServer, realtime: Realtime, app: Flask) -> None:
    realtime.on_broadcast("room")(lambda message: 1 / 0)
    told: list[Any] = []
    state_of(app).pool.on_callback_error(lambda error, callback, event: told.append(error))
    realtime.start(app, wait=True)
    server.broadcast("room", "x", {})
    wait_until(lambda: told)
    assert isinstance(told[0], ZeroDivisionError)


def test_a_gap_is_a_warning_a_signal_and_a_callback_each_once(
    server: RealtimeServer, realtime: Realtime, app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[Any] = []
    realtime.on_broadcast("room", "one")(print)
    realtime.on_broadcast("room", "two")(print)
    realtime.on_broadcast("another")(print)
    realtime.on_gap()(lambda gap: 1 / 0)
    realtime.on_gap()(lambda gap: heard.append(("all", current_app.name, gap.topic)))
    realtime.on_gap("room")(lambda gap: heard.append(("room", current_app.name, gap.topic)))
    realtime.on_gap("a third")(lambda gap: heard.append(("a third", current_app.name, gap.topic)))
    realtime.start(app, wait=True)
    told: list[Any] = []

    def note(sender: Flask, gap: rtpool.Gap) -> None:
        told.append((sender, gap))

    with gap.connected_to(note):
        server.disconnect_all()
        wait_until(lambda: len(heard) == 3)
    assert sorted(heard) == [("all", app.name, "another"), ("all", app.name, "room"), ("room", app.name, "room")]
    assert {sender for sender, _ in told} == {app}
    assert sorted(gap.topic for _, gap in told) == ["another", "room"]
    warnings = [line for line in lines(caplog, app) if "may have been lost" in line]
    assert len(warnings) == 2
    wait_until(lambda: state_of(app).pool.stats().callback_errors == 2)


def test_a_receiver_that_raises_keeps_no_gap_from_its_callbacks_and_is_told(
    server: RealtimeServer, realtime: Realtime, app: Flask, failures: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[rtpool.Gap] = []
    realtime.on_broadcast("room")(print)
    realtime.on_gap("room")(heard.append)
    realtime.start(app, wait=True)

    def receiver(sender: object, gap: rtpool.Gap) -> None:
        raise LookupError("the receiver")

    def another(sender: object, change: rtpool.StatusChange) -> None:
        raise LookupError("another")

    with gap.connected_to(receiver), status_changed.connected_to(another):
        server.disconnect_all()
        words = {f"rtpool: a receiver of {name} raised" for name in ("gap", "status_changed")}
        wait_until(lambda: heard and words <= {*lines(caplog, app)})
    assert not failures, "it is no callback"


def test_a_refusal_is_a_warning_and_a_signal(
    server: RealtimeServer, realtime: Realtime, app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    server.on_join = lambda topic, payload, connection: JoinRefusal("Unauthorized: not for you")
    realtime.on_broadcast("room", private=True)(print)
    told: list[rtpool.StatusChange] = []

    def note(sender: Flask, change: rtpool.StatusChange) -> None:
        told.append(change)

    with status_changed.connected_to(note, sender=app):
        realtime.start(app)
        wait_until(lambda: any(change.status == "refused" for change in told))
    (line,) = [line for line in lines(caplog, app) if "are not called" in line]
    assert line.startswith("rtpool: callbacks on 'room' are not called (refused): ")
    assert "not for you" in line
    assert {change.topic for change in told} == {None, "room"}
    with pytest.raises(rtpool.JoinRefused):
        realtime.start(app, wait=True)


def test_a_project_that_cannot_be_reached_is_a_warning(
    realtime: Realtime, make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    realtime.on_broadcast("room")(print)
    app = make_app(RTPOOL_URL="http://127.0.0.1:1", RTPOOL_MAX_RETRIES=0, RTPOOL_MAX_DELAY=0.05)
    realtime.start(app)
    wait_until(lambda: any(line.startswith("rtpool: there is no connection: ") for line in lines(caplog, app)))
    with pytest.raises(rtpool.ConnectionFailed):
        realtime.start(app, wait=True, timeout=0.1)


@pytest.mark.parametrize("of", ["pool", "app"])
def test_a_callback_may_close_the_apps_pool_and_only_start_begins_anew(
    server: RealtimeServer, realtime: Realtime, make_app: MakeApp, caplog: pytest.LogCaptureFixture, of: str
) -> None:
    app = make_app(RTPOOL_AUTOSTART=True)
    closed = threading.Event()

    @realtime.on_broadcast("room")
    def heard(message: rtpool.Broadcast) -> None:
        if realtime.pool.close(10) if of == "pool" else realtime.close(10):
            closed.set()

    app.test_client().get("/")
    wait_for_callbacks(app)
    server.broadcast("room", "x", {})
    assert closed.wait(10)
    server.wait_for(lambda s: not s.connections)
    app.test_client().get("/")
    assert not state_of(app).has_pool
    with app.app_context():
        realtime.pool.connect(10)  # another one, for who uses it
        app.test_client().get("/")
        assert not realtime.pool.channels()
    assert lines(caplog, app) == []
    realtime.start(app, wait=True)
    assert len(server.joins()) == 2


def test_closed_is_closed_until_start(server: RealtimeServer, realtime: Realtime, make_app: MakeApp) -> None:
    app = make_app(RTPOOL_AUTOSTART=True)
    realtime.on_broadcast("room")(print)
    with app.app_context():
        assert realtime.close() is True
        realtime.start(wait=True)
        assert realtime.close(10) is True
        assert realtime.close(10) is True
    app.test_client().get("/")
    realtime.on_broadcast("late")(print)
    assert not state_of(app).has_pool
    server.wait_for(lambda s: not s.connections)


@pytest.mark.parametrize("debug", [False, True])
def test_a_forgotten_app_closes_its_pool_quietly(
    server: RealtimeServer, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder, debug: bool
) -> None:
    realtime = Realtime()
    heard = realtime.on_broadcast("room")(lambda message: None)

    def serve() -> None:
        app = Flask("forgotten")
        app.config.update(RTPOOL_URL=server.url, RTPOOL_API_KEY=server.api_key, DEBUG=debug)
        realtime.init_app(app)

        @app.get("/")
        def view() -> str:
            realtime.channel("room").subscribe()
            return app.name

        assert app.test_client().get("/").text == "forgotten"
        wait_for_callbacks(app)
        wait_until(lambda: (state_of(app)._debug_server is not None) is debug)

    serve()
    # A worker may be in the middle of a callback, which holds the app.
    wait_until(lambda: gc.collect() >= 0 and not server.connections)
    assert heard is not None
    assert not [warning for warning in recwarn if issubclass(warning.category, ResourceWarning)]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    realtime.on_broadcast("room")(print)


def test_in_debug_mode_other_processes_may_look_at_the_pool(
    realtime: Realtime, make_app: MakeApp, client: FlaskClient
) -> None:
    app = make_app(DEBUG=True)
    with app.app_context():
        _ = realtime.pool
        assert state_of(app)._debug_server is None, "nothing is opened before it is used"
        realtime.pool.connect(10)
    wait_until(lambda: state_of(app)._debug_server is not None)
    serving = state_of(app)._debug_server
    assert serving is not None
    assert not serving.closed
    assert not serving.allow_commands
    state_of(app).close(10)
    assert serving.closed


@pytest.mark.parametrize("config", [{}, {"DEBUG": True, "RTPOOL_SERVE_DEBUG": False}])
def test_else_they_may_not(realtime: Realtime, make_app: MakeApp, config: dict[str, Any]) -> None:
    app = make_app(**config)
    told: list[str] = []

    def note(sender: Flask, change: rtpool.StatusChange) -> None:
        told.append(change.status)

    with status_changed.connected_to(note, sender=app):
        state_of(app).pool.connect(10)
        wait_until(lambda: "connected" in told)
    assert state_of(app)._debug_server is None


def test_where_they_cannot_it_is_told_and_no_more(
    realtime: Realtime, make_app: MakeApp, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise rtpool.ConnectionFailed("no such thing here")

    monkeypatch.setattr(rtpool.RealtimePool, "serve_debug", refuse)
    app = make_app(RTPOOL_SERVE_DEBUG=True)
    state_of(app).pool.connect(10)
    wait_until(lambda: lines(caplog, app))
    assert lines(caplog, app) == ["rtpool: other processes cannot look at the pool: no such thing here"]


def test_a_pool_that_is_closed_meanwhile_is_no_trouble(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()

    def refuse(*_: object, **__: object) -> None:
        asked.set()
        raise rtpool.PoolClosed("just now")

    monkeypatch.setattr(rtpool.RealtimePool, "serve_debug", refuse)
    app = make_app(RTPOOL_SERVE_DEBUG=True)
    state_of(app).pool.connect(10)
    assert asked.wait(10)
    assert state_of(app).close(10)
    assert lines(caplog, app) == []


def test_a_config_that_is_broken_later_fails_no_request(
    realtime: Realtime, make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    realtime.on_broadcast("room")(print)
    app = make_app(TESTING=False)
    app.config["RTPOOL_NUM_WORKES"] = 3
    assert app.test_client().get("/").status_code == 404
    (line,) = lines(caplog, app)
    assert "did you mean RTPOOL_NUM_WORKERS?" in line


def test_the_state_of_an_app_that_is_gone_says_so() -> None:
    app = Flask("gone")
    Realtime(app)
    state = state_of(app)
    del app
    gc.collect()
    with pytest.raises(rtpool.PoolClosed, match="the app is gone"):
        _ = state.pool


def test_where_requests_start_nothing_they_do_not_read_the_config_each_time(
    realtime: Realtime, make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    realtime.on_broadcast("room")(print)
    app = make_app(RTPOOL_AUTOSTART=False)
    read: list[object] = []
    monkeypatch.setattr(state_module, "read_settings", lambda config: (read.append(config), read_settings(config))[1])
    for _ in range(5):
        app.test_client().get("/")
    assert len(read) == 1
    monkeypatch.setattr(state_module, "RETRY_SECONDS", 0.0)
    state_of(app)._again_at = 0.0
    app.config["RTPOOL_AUTOSTART"] = True
    app.test_client().get("/")
    wait_for_callbacks(app)

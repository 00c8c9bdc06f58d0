"""Channels that end with their request."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask, Response, stream_with_context
from flask.testing import FlaskClient

import rtpool
from rtpool.flask import Realtime
from rtpool.testing import RealtimeServer, faults
from tests.flask.conftest import MakeApp, state_of
from tests.support.wait import wait_until


def test_a_view_subscribes_sends_and_leaves(
    server: RealtimeServer, realtime: Realtime, app: Flask, client: FlaskClient
) -> None:
    @app.get("/")
    def view() -> str:
        with realtime.channel("room", ack=True) as channel:
            assert type(channel) is rtpool.Channel
            channel.send_broadcast("hello", {"n": 1}).result(10)
        return "done"

    for _ in range(3):
        assert client.get("/").text == "done"
    server.wait_for(lambda s: len(s.leaves("room")) == 3)
    assert (len(server.joins("room")), server.connections_total) == (3, 1)
    assert not state_of(app).request_channels


def test_what_the_view_did_not_leave_is_left_after_it_even_when_it_raised(
    server: RealtimeServer, realtime: Realtime, app: Flask, client: FlaskClient
) -> None:
    kept: list[rtpool.Channel] = []

    @app.get("/<how>")
    def view(how: str) -> str:
        kept.append(realtime.channel(how).subscribe())
        kept.append(realtime.channel(how).on_broadcast("*", print).subscribe())
        if how == "raised":
            raise LookupError
        return "done"

    client.get("/forgotten")
    with pytest.raises(LookupError):
        client.get("/raised")
    for topic in ("forgotten", "raised"):
        server.wait_for(lambda s, topic=topic: s.leaves(topic))  # type: ignore[misc]
        assert (len(server.joins(topic)), len(server.leaves(topic))) == (1, 1)
    assert not any(channel.is_subscribed for channel in kept)
    assert not state_of(app).request_channels
    assert not state_of(app).pool.channels()


def test_the_end_of_a_request_does_not_wait_for_the_server(
    server: RealtimeServer,
    realtime: Realtime,
    app: Flask,
    client: FlaskClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with contextlib.ExitStack() as frozen:

        @app.get("/")
        def view() -> str:
            realtime.channel("room").subscribe()
            frozen.enter_context(server.inject(faults.Freeze()))
            return "done"

        assert client.get("/").text == "done"
        assert not server.leaves("room")
        assert not state_of(app).pool.channels()
    server.wait_for(lambda s: s.leaves("room"))
    assert "no word from the server" not in caplog.text


def test_a_thread_that_outlives_the_request_gets_a_clear_error(
    server: RealtimeServer, realtime: Realtime, app: Flask, client: FlaskClient
) -> None:
    told: list[Any] = []
    over = threading.Event()

    def work(channel: rtpool.Channel) -> None:
        told.append(list(channel.events()))
        over.wait(10)
        for use in (channel.subscribe, channel.get, lambda: channel.send_broadcast("x", {})):
            try:
                use()
            except rtpool.NotSubscribed as error:
                told.append(str(error))

    threads: list[threading.Thread] = []

    @app.get("/")
    def view() -> str:
        channel = realtime.channel("room").subscribe()
        threads.append(threading.Thread(target=work, args=(channel,)))
        threads[0].start()
        return "done"

    client.get("/")
    over.set()
    threads[0].join(10)
    words = "'room' ended with its request; what is to outlive that takes a Channel of realtime.pool"
    assert told == [[], words, words, words]
    server.wait_for(lambda s: len(s.leaves("room")) == 1)
    assert len(server.joins("room")) == 1


def test_a_subscription_under_way_in_another_thread_does_not_outlive_the_request(
    server: RealtimeServer, realtime: Realtime, app: Flask, client: FlaskClient
) -> None:
    begun, go = threading.Event(), threading.Event()
    failed: list[Exception] = []

    def hold(topic: str, payload: object, connection: object) -> None:
        begun.set()
        go.wait(10)

    server.on_join = hold  # type: ignore[assignment]
    threads: list[threading.Thread] = []

    def work(channel: rtpool.Channel) -> None:
        try:
            channel.subscribe(timeout=0.5)
        except rtpool.RtpoolError as error:
            failed.append(error)

    @app.get("/")
    def view() -> str:
        threads.append(threading.Thread(target=work, args=(realtime.channel("room"),)))
        threads[0].start()
        assert begun.wait(10)
        return "done"

    client.get("/")
    go.set()
    threads[0].join(10)
    assert failed
    server.wait_for(lambda s: s.members("room") == 0)
    assert not state_of(app).pool.channels()


def test_a_thread_that_subscribes_again_and_again_does_so_no_more_after_the_request(
    server: RealtimeServer, realtime: Realtime, app: Flask, client: FlaskClient
) -> None:
    threads: list[threading.Thread] = []

    def work(channel: rtpool.Channel, begun: threading.Event) -> None:
        with contextlib.suppress(rtpool.NotSubscribed):
            while True:
                channel.subscribe(wait=False)
                begun.set()

    @app.get("/")
    def view() -> str:
        begun = threading.Event()
        threads.append(threading.Thread(target=work, args=(realtime.channel("room"), begun)))
        threads[-1].start()
        assert begun.wait(10)
        return "done"

    for _ in range(10):
        client.get("/")
        threads[-1].join(10)
        assert not threads[-1].is_alive()
        assert not state_of(app).pool.channels()


def test_callbacks_of_a_request_do_not_start_after_it(
    server: RealtimeServer, realtime: Realtime, app: Flask, client: FlaskClient
) -> None:
    heard: list[Any] = []
    other = state_of(app).pool.channel("room").on_broadcast("*", lambda message: heard.append("the pool's"))
    other.subscribe()

    @app.get("/")
    def view() -> str:
        realtime.channel("room").on_broadcast("*", lambda message: heard.append("the request's")).subscribe()
        return "done"

    client.get("/")
    server.broadcast("room", "x", {})
    wait_until(lambda: heard)
    assert heard == ["the pool's"]
    assert len(server.joins("room")) == 1, "the request shared the join"
    assert not server.leaves("room")


def test_one_of_a_streamed_response_lasts_as_long_as_that(
    server: RealtimeServer, realtime: Realtime, app: Flask, client: FlaskClient
) -> None:
    @app.get("/")
    def view() -> Response:
        def lines() -> Iterator[str]:
            channel = realtime.channel("room").subscribe()
            yield "ready\n"
            for event in channel.events():
                assert isinstance(event, rtpool.Broadcast)
                yield f"{event.payload['n']}\n"

        return Response(stream_with_context(lines()))

    response = client.get("/", buffered=False)
    lines = iter(response.response)
    assert next(lines) == b"ready\n"
    for number in range(3):
        server.broadcast("room", "x", {"n": number})
        assert next(lines) == f"{number}\n".encode()
    assert not server.leaves("room")
    response.close()
    server.wait_for(lambda s: s.leaves("room"))
    assert not state_of(app).request_channels


def test_a_response_that_goes_on_after_the_request_has_none(
    server: RealtimeServer, realtime: Realtime, app: Flask, client: FlaskClient
) -> None:
    @app.get("/of-the-view")
    def of_the_view() -> Response:
        channel = realtime.channel("room").subscribe()
        return Response(event.topic or "" for event in channel.events())

    @app.get("/without-context")
    def without_context() -> Response:
        def lines() -> Iterator[str]:
            yield realtime.channel("room").topic

        return Response(lines())

    assert client.get("/of-the-view").text == ""
    server.wait_for(lambda s: s.leaves("room"))
    with pytest.raises(RuntimeError, match="rtpool needs to know which app is meant"):
        client.get("/without-context")


def test_an_access_token_of_ones_own_is_a_join_of_ones_own(
    server: RealtimeServer, realtime: Realtime, app: Flask, client: FlaskClient
) -> None:
    tokens = {name: server.token(sub=name) for name in ("ada", "bob")}

    @app.get("/<name>")
    def view(name: str) -> str:
        with realtime.channel("room", access_token=tokens[name]), realtime.channel("room", access_token=tokens[name]):
            return str(len(server.joins("room")))

    with app.app_context():
        realtime.channel("room").subscribe()
        assert [client.get("/ada").text, client.get("/bob").text] == ["2", "3"]
    joined_with = [join.payload.get("access_token") for join in server.joins("room")]
    assert joined_with[1:] == [tokens["ada"], tokens["bob"]]
    assert joined_with[0] not in tokens.values()
    assert len({join.connection_id for join in server.joins("room")[:2]}) == 2


def test_a_channel_is_of_the_innermost_context(server: RealtimeServer, realtime: Realtime, make_app: MakeApp) -> None:
    one, two = make_app(name="one"), make_app(name="two")
    with one.app_context():
        outer = realtime.channel("outer").subscribe()
        with one.app_context():
            inner = realtime.channel("inner").subscribe()
            with two.app_context():
                others = realtime.channel("others").subscribe()
            assert not others.is_subscribed
            assert inner.is_subscribed
        assert not inner.is_subscribed
        assert outer.is_subscribed
    assert not outer.is_subscribed
    server.wait_for(lambda s: len(s.leaves()) == 3)


def test_a_channel_of_a_declared_callback_ends_with_it(server: RealtimeServer, realtime: Realtime, app: Flask) -> None:
    told: list[rtpool.Channel] = []

    @realtime.on_broadcast("room")
    def heard(message: rtpool.Broadcast) -> None:
        with realtime.channel("answers", ack=True) as channel:
            channel.send_broadcast("heard", {}).result(10)
        told.append(realtime.channel("forgotten").subscribe())

    realtime.start(app, wait=True)
    server.broadcast("room", "x", {})
    server.wait_for(lambda s: s.leaves("forgotten") and s.leaves("answers"))
    assert not state_of(app).request_channels


def test_a_command_may_use_one(server: RealtimeServer, realtime: Realtime, app: Flask) -> None:
    @app.cli.command("say")
    def say() -> None:
        with realtime.channel("room", ack=True) as channel:
            channel.send_broadcast("said", {}).result(10)

    result = app.test_cli_runner().invoke(args=["say"])
    assert result.exit_code == 0, result.output
    server.wait_for(lambda s: s.leaves("room"))


def test_every_argument_of_a_channel_is_passed_on(realtime: Realtime, app: Flask) -> None:
    with app.app_context():
        with pytest.raises(rtpool.InvalidValue, match="replay works on private channels only"):
            realtime.channel("room", replay=True)
        with pytest.raises(rtpool.InvalidValue, match="params are for plain Phoenix"):
            realtime.channel("room", params={})
        channel = realtime.channel(
            "room", private=True, receive_own=True, ack=True, presence_key="ada", replay=True, access_token="a.b.c"
        )
        key = channel._subscriber.key
        assert (key.private, key.presence_key, key.token) == (True, "ada", "a.b.c")
        assert (channel._subscriber.receive_own, channel._subscriber.ack, channel._subscriber.replay) == (True,) * 3
    assert not state_of(app).request_channels


def test_a_closed_pool_is_no_trouble_for_the_end_of_a_request(
    server: RealtimeServer, realtime: Realtime, app: Flask, client: FlaskClient
) -> None:
    @app.get("/")
    def view() -> str:
        realtime.channel("room").subscribe()
        realtime.pool.close(10)
        realtime.channel("room").subscribe()
        return "done"

    assert client.get("/").text == "done"
    server.wait_for(lambda s: s.connections_total == 2 and s.members("room") == 0)


def test_a_teardown_that_raises_keeps_no_channel_alive(
    server: RealtimeServer, realtime: Realtime, app: Flask, client: FlaskClient
) -> None:
    failing = [True]

    @app.teardown_appcontext
    def hang_up(_error: object) -> None:  # runs before the extension's, and keeps it from running
        if failing[0]:
            raise LookupError("the database is gone")

    @app.get("/<topic>")
    def view(topic: str) -> str:
        realtime.channel(topic).subscribe()
        return "done"

    state = state_of(app)
    for number in range(3):
        with contextlib.suppress(LookupError):
            client.get(f"/{number}")
        gc.collect()  # what the exception's traceback has
        server.wait_for(lambda s, number=number: s.members(str(number)) == 1)  # type: ignore[misc]
        assert [channel.topic for channel in state.request_channels] == [str(number)], "the one before has ended"
    failing[0] = False
    assert client.get("/last").text == "done"
    assert not state.request_channels
    assert not state.pool.channels()
    server.wait_for(lambda s: len(s.leaves()) == 4)

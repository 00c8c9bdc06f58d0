"""Streams to browsers: who hears what, and who may."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

import flask
import pytest
from flask import Flask, Response

from rtpool.errors import InvalidType, InvalidValue
from rtpool.flask import Changes, Realtime, callback_failed
from rtpool.testing import RealtimeServer
from tests.flask.conftest import MakeApp, Serve, StreamApp, state_of
from tests.support.wait import wait_until


def say(server: RealtimeServer, *numbers: int, topic: str = "room") -> None:
    """Broadcast numbers."""
    for n in numbers:
        server.broadcast(topic, "moved", {"n": n})


# Hearing


def test_fifty_browsers_hear_all_in_order_by_one_join(streaming: StreamApp, server: RealtimeServer) -> None:
    serving = streaming()
    first = serving.browser().joined()
    browsers = [first, *(serving.browser().opened() for _ in range(49))]
    say(server, *range(20))
    for browser in browsers:
        assert browser.numbers(20) == list(range(20))
    assert len(server.joins("room")) == len(server.connections) == 1
    streams = state_of(serving.app).streams
    assert streams.open == 50
    (feed,) = streams.feeds
    assert (feed.topic, feed.browsers, feed.status, feed.skipped) == ("room", 50, "joined", 0)
    assert feed.size > 20 * 80
    assert not feed.own_token


def test_the_response_is_one_that_no_cache_and_no_proxy_keeps(streaming: StreamApp) -> None:
    browser = streaming().browser().opened()
    status, headers = browser.head
    assert status == 200
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-store"
    assert headers["x-accel-buffering"] == "no"
    assert headers["x-content-type-options"] == "nosniff"
    assert "content-length" not in headers
    assert browser.retry == 1000


def test_changes_come_by_table_event_and_filter(streaming: StreamApp, server: RealtimeServer) -> None:
    wanted = [Changes("cars", "UPDATE", filter="status=eq.free"), Changes("rentals", "insert")]
    browser = streaming("cars", {"changes": wanted, "broadcasts": None}).browser().joined()
    server.broadcast("cars", "moved", {})
    server.change("public", "cars", "INSERT", {"id": 1, "status": "free"})
    server.change("public", "cars", "UPDATE", {"id": 1, "status": "rented"}, {"id": 1})
    server.change("public", "cars", "UPDATE", {"id": 2, "status": "free"}, {"id": 2})
    server.change("public", "rentals", "INSERT", {"id": 3})
    heard = [browser.next(), browser.next()]
    assert [(each.type, each.data["table"], each.data["record"]["id"]) for each in heard] == [
        ("change", "cars", 2),
        ("change", "rentals", 3),
    ]


def test_a_change_that_several_wishes_fit_comes_once(streaming: StreamApp, server: RealtimeServer) -> None:
    wanted = ["cars", Changes("cars", "UPDATE"), Changes("*")]
    browser = streaming("cars", {"changes": wanted}).browser().joined()
    for n in range(3):
        server.change("public", "cars", "UPDATE", {"id": n}, {"id": n})
    assert [browser.next().data["record"]["id"] for _ in range(3)] == [0, 1, 2]


def test_broadcasts_come_by_name(streaming: StreamApp, server: RealtimeServer) -> None:
    browser = streaming(arguments={"broadcasts": ["moved", "parked"]}).browser().joined()
    for name in ("moved", "washed", "parked"):
        server.broadcast("room", name, {"of": name})
    assert [browser.next().data["event"] for _ in range(2)] == ["moved", "parked"]


def test_bytes_come_as_base64(streaming: StreamApp, server: RealtimeServer) -> None:
    browser = streaming().browser().joined()
    server.broadcast("room", "raw", bytes(range(256)))
    data = browser.next().data
    assert base64.b64decode(data["payload"]) == bytes(range(256))
    assert data["encoding"] == "base64"


def test_a_view_sees_who_is_present_as_well(streaming: StreamApp, server: RealtimeServer) -> None:
    def view(event: Any) -> Any:
        return {"keys": sorted(event.state)} if event.type == "sync" else None

    serving = streaming(arguments={"presence": True, "broadcasts": None, "view": view})
    early = serving.browser().joined()
    with state_of(serving.app).pool.channel("room", presence_key="eva") as channel:
        channel.track({"name": "Eva"}).result(5)
        early.until(lambda heard: heard.data.get("keys") == ["eva"])
        late = serving.browser()
        assert late.next().data == {"keys": ["eva"]}
        assert late.last_id == early.last_id


def test_who_comes_late_is_told_who_is_present(streaming: StreamApp, server: RealtimeServer) -> None:
    serving = streaming(arguments={"presence": True, "broadcasts": None})
    early = serving.browser().joined()
    with state_of(serving.app).pool.channel("room", presence_key="eva") as channel:
        channel.track({"name": "Eva"}).result(5)
        joined = early.until(lambda heard: heard.type == "presence" and heard.data["type"] == "join")
        assert (joined.data["key"], joined.data["metas"][0]["name"]) == ("eva", "Eva")
        early.until(lambda heard: heard.data.get("type") == "sync" and heard.data["state"])
        late = serving.browser().next()
        assert (late.type, late.data["type"]) == ("presence", "sync")
        assert late.data["state"]["eva"][0]["name"] == "Eva"
        assert len(server.joins("room")) == 2  # of the feed and of who is present


def test_nothing_that_anyone_says_becomes_a_field_or_a_line(streaming: StreamApp, server: RealtimeServer) -> None:
    evil = "x\r\nid: 1\r\n\r\nevent: status\ndata: {}\n\n\0\u2028\u2029\x85<script>"
    topic = "a\r\nSet-Cookie: a=b\r\n\r\nb\u2028\0"
    browser = streaming(topic).browser().joined()
    server.broadcast(topic, evil[:40], {evil: [evil]})
    say(server, 2, topic=topic)
    heard = browser.next()
    assert (heard.type, heard.data["event"], heard.data["payload"]) == ("broadcast", evil[:40], {evil: [evil]})
    assert browser.numbers(1) == [2]
    assert "set-cookie" not in browser.head[1]
    assert browser.text.isascii()
    assert not set(browser.text) & {0, ord("\r")}
    assert b"Set-Cookie" not in browser.text, "topics are told nowhere"


def test_two_tokens_are_two_joins_that_hear_nothing_of_each_other(
    make_app: MakeApp, serve: Serve, realtime: Realtime, server: RealtimeServer
) -> None:
    def owner_alone(claims: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
        return claims.get("sub") == row["owner"]

    server.table("cars", {"id": "int8", "owner": "text"}, row_security=owner_alone)
    app = make_app()
    tokens = {name: server.token(sub=name) for name in ("eva", "tom")}

    @app.get("/stream/<name>")
    def stream(name: str) -> Response:
        return realtime.stream("cars", changes="cars", access_token=tokens[name])

    serving = serve(app)
    browsers = {name: [serving.browser(f"/stream/{name}") for _ in range(2)] for name in tokens}
    for browser in (*browsers["eva"], *browsers["tom"]):
        browser.opened()
    wait_until(lambda: {feed.status for feed in state_of(app).streams.feeds} == {"joined"})
    for n in range(10):
        server.change("public", "cars", "INSERT", {"id": n, "owner": ("eva", "tom")[n % 2]})
    for name, rest in (("eva", 0), ("tom", 1)):
        for browser in browsers[name]:
            ids = [browser.until(lambda heard: heard.type == "change").data["record"]["id"] for _ in range(5)]
            assert ids == list(range(rest, 10, 2))
    assert len(server.joins("cars")) == 2
    feeds = state_of(app).streams.feeds
    assert [feed.browsers for feed in feeds] == [2, 2]
    assert all(feed.own_token for feed in feeds)
    assert not any(token in repr(feeds) for token in tokens.values())


def test_who_asks_for_something_else_has_a_feed_of_its_own(
    make_app: MakeApp, serve: Serve, realtime: Realtime, server: RealtimeServer
) -> None:
    app = make_app()
    kinds: dict[str, dict[str, Any]] = {
        "all": {},
        "same": {"broadcasts": ["*", "moved"]},
        "some": {"broadcasts": "moved"},
        "rows": {"changes": ["cars", Changes("rentals")]},
        "same rows": {"changes": [Changes("rentals"), "cars", Changes("cars")]},
        "private": {"private": True},
    }

    @app.get("/stream/<kind>")
    def stream(kind: str) -> Response:
        return realtime.stream("room", **kinds[kind])

    serving = serve(app)
    for kind in kinds:
        serving.browser(f"/stream/{kind.replace(' ', '%20')}").opened()
    assert len(state_of(app).streams.feeds) == 4


# Views


def test_a_view_says_what_its_browser_sees(
    make_app: MakeApp, serve: Serve, realtime: Realtime, server: RealtimeServer
) -> None:
    app = make_app()

    @app.get("/stream/<int:rest>")
    def stream(rest: int) -> Response:
        def view(event: Any) -> Any:
            assert flask.current_app.name == app.name
            return {"seen": event.payload["n"]} if event.payload["n"] % 2 == rest else None

        return realtime.stream("room", view=view)

    @app.get("/as-it-is")
    def as_it_is() -> Response:
        return realtime.stream("room", view=lambda event: event)

    serving = serve(app)
    even, odd, all_of_it = (serving.browser(path) for path in ("/stream/0", "/stream/1", "/as-it-is"))
    for browser in (even, odd, all_of_it):
        browser.opened()
    wait_until(lambda: server.members("room") == 1)
    say(server, *range(6))
    for browser, seen in ((even, [0, 2, 4]), (odd, [1, 3, 5])):
        assert [browser.until(lambda heard: heard.type == "broadcast").data["seen"] for _ in seen] == seen
    assert all_of_it.numbers(6) == list(range(6))
    assert len(server.joins("room")) == 1


def test_a_view_that_fails_ends_its_own_stream_alone(
    make_app: MakeApp, serve: Serve, realtime: Realtime, server: RealtimeServer, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app()
    failures: list[dict[str, Any]] = []

    @app.get("/<kind>")
    def stream(kind: str) -> Response:
        def view(event: Any) -> Any:
            if event.payload["n"] == 1:
                return {1, 2} if kind == "set" else event.payload["missing"]
            return event

        return realtime.stream("room", view=view if kind != "plain" else None)

    @callback_failed.connect_via(app)
    def failed(_app: Flask, **found: Any) -> None:
        failures.append(found)

    serving = serve(app)
    plain = serving.browser("/plain").joined()
    raises, cannot = (serving.browser(f"/{kind}").opened() for kind in ("raises", "set"))
    say(server, 0, 1, 2)
    assert plain.numbers(3) == [0, 1, 2]
    for browser, path, error in ((raises, "/raises", KeyError), (cannot, "/set", TypeError)):
        *_, last = heard = browser.rest()
        assert [each.type for each in heard] == ["broadcast", "gap"]
        assert (last.data["cause"], last.data["certain"]) == ("view", True)
        # What it failed at is not met again.
        again = serving.browser(path, Last_Event_ID=browser.last_id)
        assert again.numbers(1) == [2]
        assert any(record.exc_info and record.exc_info[0] is error for record in caplog.records)
    assert sorted(type(found["exception"]).__name__ for found in failures) == ["KeyError", "TypeError"]
    assert {found["event"].payload["n"] for found in failures} == {1}
    caplog.clear()


def test_what_a_view_leaves_out_holds_up_nothing(streaming: StreamApp, server: RealtimeServer) -> None:
    def view(event: Any) -> Any:
        return event if event.payload["n"] < 0 else None

    serving = streaming(arguments={"view": view}, RTPOOL_STREAM_HEARTBEAT=3600)
    watcher = serving.browser().joined()
    last_id = watcher.last_id
    for n in range(40):
        server.broadcast("room", "moved", {"n": n, "filler": "x" * 10_000})
    say(server, -1)
    assert watcher.numbers(1) == [-1]
    back = serving.browser(Last_Event_ID=last_id)
    assert back.numbers(1) == [-1], "behind several pieces of which nothing is left"


def test_what_a_view_leaves_out_moves_the_id_all_the_same(streaming: StreamApp, server: RealtimeServer) -> None:
    serving = streaming(arguments={"view": lambda event: None}, RTPOOL_STREAM_HEARTBEAT=0.05, RTPOOL_STREAM_BUFFER=2)
    browser = serving.browser().joined()
    before = browser.last_id
    say(server, *range(10))
    wait_until(lambda: state_of(serving.app).streams.feeds[0].total >= 11)
    while browser.last_id == before or int(browser.last_id.split("-")[1]) < 11:
        browser._take()
        browser._parse()
    browser.leave()
    back = serving.browser(Last_Event_ID=browser.last_id).opened()
    back.beats(1)
    assert b"event:" not in back.text, "nothing was lost, and nothing is told"


# Who may


@pytest.mark.parametrize("verdict", [False, None])
def test_who_is_not_let_in_gets_a_403_and_costs_nothing(
    streaming: StreamApp, server: RealtimeServer, verdict: bool | None
) -> None:
    serving = streaming(arguments={"authorize": lambda: verdict})
    browser = serving.browser()
    assert browser.status == 403
    assert "not for you" in browser.body()
    assert not server.connections_total
    assert not state_of(serving.app).has_pool


def test_authorize_answers_for_itself(
    make_app: MakeApp, realtime: Realtime, server: RealtimeServer, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app()
    answers: dict[str, Callable[[], Any]] = {
        "away": lambda: flask.redirect("/login"),
        "abort": lambda: flask.abort(401),
        "tuple": lambda: ("no", 403),  # which is true, and means no
        "user": lambda: "eva",
        "header": lambda: flask.request.headers.get("X-User") == "eva",
    }

    @app.get("/<kind>")
    def stream(kind: str) -> Response:
        return realtime.stream("room", authorize=answers[kind])

    client = app.test_client()
    assert client.get("/away").location == "/login"
    assert client.get("/abort").status_code == 401
    assert client.get("/header").status_code == 403
    for kind in ("tuple", "user"):
        with pytest.raises(InvalidType, match="authorize must return"):
            client.get(f"/{kind}")
    assert not server.connections_total
    with client.get("/header", headers={"X-User": "eva"}) as response:
        assert response.status_code == 200


@pytest.mark.parametrize(
    ("topic", "arguments", "error"),
    [
        ("", {}, InvalidValue),
        ("x" * 300, {}, InvalidValue),
        (7, {}, InvalidType),
        ("room", {"broadcasts": None}, InvalidValue),
        ("room", {"broadcasts": []}, InvalidValue),
        ("room", {"broadcasts": b"moved"}, InvalidType),
        ("room", {"broadcasts": [7]}, InvalidType),
        ("room", {"broadcasts": [""]}, InvalidValue),
        ("room", {"changes": 7}, InvalidType),
        ("room", {"changes": [None]}, InvalidType),
        ("room", {"changes": ""}, InvalidValue),
        ("room", {"presence": 1}, InvalidType),
        ("room", {"private": "yes"}, InvalidType),
        ("room", {"access_token": 7}, InvalidType),
        ("room", {"access_token": "a\r\nb"}, InvalidValue),
        ("room", {"slow": "drop"}, InvalidValue),
        ("room", {"view": 7}, InvalidType),
    ],
)
def test_bad_arguments_are_refused_at_the_call(
    app: Flask, realtime: Realtime, server: RealtimeServer, topic: Any, arguments: dict[str, Any], error: type
) -> None:
    with app.test_request_context("/stream"), pytest.raises(error):
        realtime.stream(topic, **arguments)
    assert state_of(app).streams.open == 0
    assert state_of(app).streams.feeds == ()
    assert not server.connections_total


def test_changes_check_themselves() -> None:
    with pytest.raises(InvalidValue, match="event must be one of"):
        Changes("cars", "TRUNCATE")
    with pytest.raises(InvalidType, match="table must be str"):
        Changes(7)  # type: ignore[arg-type]
    assert Changes("cars", "update").binding == Changes("cars", "UPDATE").binding
    assert repr(Changes("cars")).startswith("Changes(table='cars'")
    assert Changes.__module__ == "rtpool.flask"


def test_head_has_the_headers_and_opens_nothing(streaming: StreamApp, server: RealtimeServer) -> None:
    browser = streaming().browser(method="HEAD")
    assert browser.status == 200
    assert browser.head[1]["content-type"].startswith("text/event-stream")
    assert not server.connections_total


def test_nobody_waits_for_all_of_a_stream(app: Flask, realtime: Realtime) -> None:
    with app.test_request_context("/stream"):
        response = realtime.stream("room")
        with pytest.raises(RuntimeError, match="sequence"):
            response.get_data()
        response.close()
    assert state_of(app).streams.open == 0


# What is too much, or no JSON


def test_the_buffer_is_bounded_by_bytes(streaming: StreamApp, server: RealtimeServer) -> None:
    serving = streaming(RTPOOL_STREAM_BUFFER_BYTES=10_000)
    browser = serving.browser().joined()
    for n in range(50):
        server.broadcast("room", "moved", {"n": n, "filler": "x" * 900})
    assert browser.until(lambda heard: heard.data.get("payload", {}).get("n") == 49)
    (feed,) = state_of(serving.app).streams.feeds
    assert feed.size <= 10_000
    assert 8 <= feed.events <= 10


def test_an_event_beyond_the_buffer_is_a_gap_and_no_harm(
    streaming: StreamApp, server: RealtimeServer, caplog: pytest.LogCaptureFixture
) -> None:
    serving = streaming(RTPOOL_STREAM_BUFFER_BYTES=2_000)
    browser = serving.browser().joined()
    server.broadcast("room", "moved", {"n": 1, "filler": "x" * 2_000})
    say(server, 2)
    gap = browser.next()
    assert (gap.type, gap.data["cause"], gap.data["certain"]) == ("gap", "size", True)
    assert browser.numbers(1) == [2]
    assert "RTPOOL_STREAM_BUFFER_BYTES" in caplog.text
    caplog.clear()


def test_an_event_that_cannot_be_written_is_a_gap(
    streaming: StreamApp, server: RealtimeServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    browser = streaming().browser().joined()
    deep: Any = {}
    for _ in range(900):
        deep = {"a": deep}
    monkeypatch.setattr("rtpool.flask.streams.sse.content_of", _failing_once(RecursionError("too deep")))
    server.broadcast("room", "moved", deep)
    say(server, 2)
    gap = browser.next()
    assert (gap.type, gap.data["cause"]) == ("gap", "encoding")
    assert browser.numbers(1) == [2]
    assert "cannot be told to browsers: too deep" in caplog.text
    caplog.clear()


def _failing_once(error: Exception) -> Callable[[Any], Any]:
    from rtpool.flask.streams import sse

    real, errors = sse.content_of, [error]

    def content_of(event: Any) -> Any:
        if errors:
            raise errors.pop()
        return real(event)

    return content_of


def test_a_large_event_comes_whole(streaming: StreamApp, server: RealtimeServer) -> None:
    browser = streaming().browser().joined()
    server.broadcast("room", "moved", {"n": 1, "filler": "x" * 1_000_000})
    say(server, 2)
    assert len(browser.next().data["payload"]["filler"]) == 1_000_000
    assert browser.numbers(1) == [2]

"""Streams while the server they listen to refuses, restarts, or is not there."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask, Response

from rtpool.errors import ConnectionFailed, PoolClosed
from rtpool.flask import Realtime
from rtpool.flask.streams.feed import Feed
from rtpool.flask.streams.sse import STOP
from rtpool.testing import RealtimeServer, refusals
from tests.flask.browsers import Browser, Heard
from tests.flask.conftest import MakeApp, Serve, StreamApp, state_of
from tests.flask.test_streams import say
from tests.support.wait import wait_until


def statuses(heard: list[Heard]) -> list[str]:
    return [each.data["status"] if each.type == "status" else each.type for each in heard]


def until_status(browser: Browser, status: str) -> list[Heard]:
    heard = [browser.next()]
    while heard[-1].data.get("status") != status:
        heard.append(browser.next())
    return heard


def test_a_restart_is_seen_as_statuses_and_a_gap(streaming: StreamApp, server: RealtimeServer) -> None:
    browser = streaming().browser().joined()
    say(server, 1)
    assert browser.numbers(1) == [1]
    server.close()
    until_status(browser, "rejoining")
    server.start()
    heard = until_status(browser, "joined")
    (gap,) = [each for each in heard if each.type == "gap"]
    assert gap.data["cause"] == "transport"
    say(server, 2)
    assert browser.numbers(1) == [2]


def test_who_comes_during_an_outage_is_told_first(streaming: StreamApp, server: RealtimeServer) -> None:
    serving = streaming()
    first = serving.browser().joined()
    server.close()
    had = until_status(first, "rejoining")[-1].last_id
    late = serving.browser()
    told = late.next()
    assert told.data["status"] == "rejoining"
    while had != told.last_id:  # each attempt in vain is told anew
        had = first.next().last_id
    server.start()
    for browser in (first, late):
        until_status(browser, "joined")
    again = serving.browser().opened()
    say(server, 1)
    assert again.next().data["payload"] == {"n": 1}, "and nothing of what is over"


def test_a_stream_opens_though_the_server_is_not_there(streaming: StreamApp, server: RealtimeServer) -> None:
    serving = streaming()
    server.close()
    browser = serving.browser().opened()
    assert browser.status == 200
    server.start()
    state_of(serving.app).pool.connect(10)
    browser.joined()


def test_who_will_never_be_let_in_is_told_so_and_told_to_stop(streaming: StreamApp, server: RealtimeServer) -> None:
    server.on_join = lambda topic, payload, connection: refusals.Join.PRIVATE_ONLY()
    serving = streaming(RTPOOL_STREAM_LINGER=3600)
    browser = serving.browser()
    last = browser.rest()[-1]
    assert last.type == "status"
    assert last.data == {"status": "refused", "code": "PrivateOnly", "error": "JoinRefused", "retryable": False}
    assert browser.last_id.endswith(STOP)
    assert serving.browser(Last_Event_ID=browser.last_id).status == 204, "by which an EventSource ends"
    other = serving.browser()
    assert statuses(other.rest()) == ["refused"]
    assert other.last_id.endswith(STOP)
    assert len(server.joins("room")) == 1, "the server is not asked for each of them"
    wait_until(lambda: state_of(serving.app).streams.open == 0)
    assert not state_of(serving.app).pool.channels()


def test_browsers_that_keep_coming_do_not_keep_a_refusal(streaming: StreamApp, server: RealtimeServer) -> None:
    server.on_join = lambda topic, payload, connection: refusals.Join.PRIVATE_ONLY()
    serving = streaming(RTPOOL_STREAM_LINGER=0.2)

    def asked_again() -> bool:
        assert statuses(serving.browser().rest())[-1] == "refused"
        return len(server.joins("room")) > 1

    wait_until(asked_again)


def test_after_a_while_the_server_is_asked_again(streaming: StreamApp, server: RealtimeServer) -> None:
    server.on_join = lambda topic, payload, connection: refusals.Join.PRIVATE_ONLY()
    serving = streaming(RTPOOL_STREAM_LINGER=0.05)
    serving.browser().rest()
    server.on_join = None
    wait_until(lambda: state_of(serving.app).streams.feeds == (), "the refusal is forgotten")
    serving.browser().joined()


def test_a_refusal_that_may_pass_is_told_and_passes(streaming: StreamApp, server: RealtimeServer) -> None:
    server.on_join = lambda topic, payload, connection: refusals.Join.INITIALIZING()
    browser = streaming().browser()
    refused = until_status(browser, "refused")[-1]
    assert refused.data["retryable"] is True
    server.on_join = None
    browser.joined()
    say(server, 1)
    assert browser.numbers(1) == [1]


def test_no_words_of_a_refusal_reach_a_browser(streaming: StreamApp, server: RealtimeServer) -> None:
    server.on_join = lambda topic, payload, connection: refusals.Join.UNKNOWN(words="the secret plan")
    browser = streaming().browser()
    until_status(browser, "refused")
    assert b"secret" not in browser.text
    assert b"room" not in browser.text


def test_an_expired_token_ends_a_stream_and_its_browser_comes_back(
    make_app: MakeApp, serve: Serve, realtime: Realtime, server: RealtimeServer
) -> None:
    app = make_app(RTPOOL_STREAM_LINGER=0.5)
    tokens = [server.token(sub="eva")]

    @app.get("/stream")
    def stream() -> Response:
        return realtime.stream("room", private=True, access_token=tokens[-1])

    @app.get("/own")
    def own() -> Response:
        return realtime.stream("room", private=True)

    serving = serve(app)
    browser, of_the_app = serving.browser().joined(), serving.browser("/own").joined()
    server.on_join = lambda topic, payload, connection: refusals.Join.TOKEN_EXPIRED(seconds=3)
    server.expire_tokens("room")
    for each in (browser, of_the_app):
        heard = each.rest()
        assert statuses(heard)[-1] == "refused"
        assert heard[-1].data["retryable"] is False
        assert not each.last_id.endswith(STOP)
    server.on_join = None
    tokens.append(server.token(sub="eva", expires_in=1_000))
    assert serving.browser(Last_Event_ID=browser.last_id).joined(), "with a fresh token, at once"
    state_of(app).pool.set_auth(server.token(role="anon"))
    wait_until(lambda: len(state_of(app).streams.feeds) == 1, "the refusal is forgotten")
    assert serving.browser("/own", Last_Event_ID=of_the_app.last_id).joined()


def test_a_token_that_was_never_good_has_its_browser_stop_until_it_has_another(
    make_app: MakeApp, serve: Serve, realtime: Realtime, server: RealtimeServer
) -> None:
    app = make_app(RTPOOL_STREAM_LINGER=3600)
    tokens = [server.token(sub="eva")]

    @app.get("/stream")
    def stream() -> Response:
        return realtime.stream("room", private=True, access_token=tokens[-1])

    server.on_join = lambda topic, payload, connection: refusals.Join.TOKEN_EXPIRED(seconds=3)
    serving = serve(app)
    browser = serving.browser()
    assert statuses(browser.rest())[-1] == "refused"
    assert serving.browser(Last_Event_ID=browser.last_id).status == 204
    server.on_join = None
    tokens.append(server.token(sub="eva", expires_in=1_000))
    assert serving.browser(Last_Event_ID=browser.last_id).joined()


def test_who_finds_no_room_takes_the_place_of_a_stream_that_nobody_reads(
    make_app: MakeApp, serve: Serve, realtime: Realtime, server: RealtimeServer
) -> None:
    app = make_app(RTPOOL_STREAM_LINGER=3600, RTPOOL_MAX_CONNECTIONS=2)

    @app.get("/<user>")
    def stream(user: str) -> Response:
        return realtime.stream("room", private=True, access_token=server.token(sub=user))

    serving = serve(app)
    left, stays = serving.browser("/ann").joined(), serving.browser("/bob").joined()
    eva = serving.browser("/eva")
    refused = until_status(eva, "refused")[-1]
    assert (refused.data["error"], refused.data["retryable"]) == ("PoolExhausted", True)
    left.leave()
    eva.joined()
    eva.leave()
    wait_until(lambda: state_of(app).streams.open == 1)
    assert len(state_of(app).streams.feeds) == 2, "nobody wants its place now"
    serving.browser("/ida").joined()
    server.broadcast("room", "moved", {"n": 1}, private=True)
    assert stays.numbers(1) == [1]


def test_a_refusal_of_the_app_s_own_token_is_asked_about_again(streaming: StreamApp, server: RealtimeServer) -> None:
    server.on_join = lambda topic, payload, connection: refusals.Join.TOKEN_EXPIRED(seconds=3)
    serving = streaming(RTPOOL_STREAM_LINGER=0.05)
    browser = serving.browser()
    assert statuses(browser.rest())[-1] == "refused"
    server.on_join = None
    wait_until(lambda: state_of(serving.app).streams.feeds == (), "the refusal is forgotten")
    assert serving.browser(Last_Event_ID=browser.last_id).joined()


def test_a_feed_that_falls_behind_for_good_ends_its_streams(
    streaming: StreamApp, server: RealtimeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, real = [True], Feed._hear

    def hear(self: Feed, event: Any) -> None:
        if held and type(event).__name__ == "Broadcast":
            wait_until(lambda: not held)
        real(self, event)

    monkeypatch.setattr(Feed, "_hear", hear)
    serving = streaming(RTPOOL_MAILBOX_LIMIT=4, RTPOOL_OVERFLOW="close")
    browser = serving.browser().joined()
    say(server, *range(20))
    pool = state_of(serving.app).pool
    wait_until(lambda: not pool.channels())
    held.clear()
    heard = browser.rest()
    assert statuses(heard)[-2:] == ["gap", "closed"]
    assert heard[-2].data["cause"] == "overflow"
    assert serving.browser(Last_Event_ID=browser.last_id).joined()


@pytest.mark.parametrize("error", [PoolClosed, ConnectionFailed])
def test_a_stream_that_cannot_begin_leaves_nothing(
    app: Flask, realtime: Realtime, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def start(self: Feed) -> None:
        raise error("not now")

    monkeypatch.setattr(Feed, "start", start)
    state = state_of(app)
    with app.test_request_context("/stream"):
        if error is PoolClosed:
            assert realtime.stream("room").status_code == 503
        else:
            with pytest.raises(error):
                realtime.stream("room")
    assert (state.streams.open, state.streams.feeds) == (0, ())
    monkeypatch.undo()
    with app.test_request_context("/stream"):
        response = realtime.stream("room")
        assert response.status_code == 200
        response.close()


def test_nothing_is_left_when_no_thread_can_be_started(
    app: Flask, realtime: Realtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoThread:
        def __init__(self, *_: Any) -> None:
            pass

        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    state = state_of(app)
    monkeypatch.setattr("rtpool.flask.streams.streams.PoolThread", NoThread)
    with app.test_request_context("/stream"), pytest.raises(RuntimeError, match="can't start"):
        realtime.stream("room")
    assert (state.streams.open, state.streams.feeds) == (0, ())
    monkeypatch.undo()
    with app.test_request_context("/stream"):
        response = realtime.stream("room")
        assert state.streams.open == 1
        wait_until(lambda: state.streams.feeds[0].status == "joined")
        response.close()

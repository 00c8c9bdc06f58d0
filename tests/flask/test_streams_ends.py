"""Streams end: with their browser, at once and with all that was theirs; when they are too many, too slow, too old."""

from __future__ import annotations

import gc
import os
import socket
import struct
import sys
import threading
import time
from typing import Any

import pytest
from flask import Flask, Response

from rtpool.flask import Realtime
from rtpool.flask.streams import Streams
from rtpool.flask.streams.readers import Snapshots
from rtpool.flask.streams.seat import Seat
from rtpool.testing import RealtimeServer
from tests.flask.browsers import Browser, Serving
from tests.flask.conftest import MakeApp, Serve, StreamApp, state_of
from tests.flask.test_streams import say
from tests.support.forking import Child, Link
from tests.support.wait import wait_until

#: So that nothing but the end of its connection tells that a browser left.
QUIET = {"RTPOOL_STREAM_HEARTBEAT": 3600}


def streams_of(serving: Serving) -> Streams:
    return state_of(serving.app).streams


def fill(server: RealtimeServer, count: int, *, first: int = 0) -> None:
    """Broadcast more than fits on the way to a browser that takes nothing."""
    for n in range(first, first + count):
        server.broadcast("room", "moved", {"n": n, "filler": "x" * 10_000})


def is_stuck(serving: Serving) -> bool:
    """Whether a server waits for a browser to take something."""
    streams = streams_of(serving)
    now = streams.clock()
    return any(seat.handed is not None and now - seat.handed > 0.1 for seat in list(streams._seats))


# Leaving


@pytest.mark.parametrize("how", ["closes", "resets", "says no more"])
def test_a_browser_that_leaves_is_noticed_at_once_also_while_nothing_happens(
    streaming: StreamApp, server: RealtimeServer, how: str
) -> None:
    serving = streaming(**QUIET)
    stays = serving.browser().joined()
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        serving.browser().opened()
    assert streams_of(serving).open == 11
    for browser in serving.browsers[1:]:
        if how == "resets":
            browser.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if how == "says no more":
            browser.socket.shutdown(socket.SHUT_WR)
            assert browser.rest() == []
        browser.leave()
    wait_until(lambda: streams_of(serving).open == 1, "their seats are given back", cap=2)
    wait_until(lambda: threading.active_count() == threads, "their threads end", cap=2)
    wait_until(lambda: len(os.listdir("/proc/self/fd")) == descriptors, "their descriptors are closed", cap=2)
    assert streams_of(serving).feeds[0].browsers == 1
    say(server, 1)
    assert stays.numbers(1) == [1]


def test_without_a_connection_to_look_at_the_next_heartbeat_notices(
    streaming: StreamApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtpool.flask.streams.streams.socket_of", lambda environ: None)
    serving = streaming(RTPOOL_STREAM_HEARTBEAT=0.02)
    browser = serving.browser().joined()
    browser.beats(2)
    browser.leave()
    wait_until(lambda: streams_of(serving).open == 0)


def test_without_epoll_the_next_heartbeat_notices(streaming: StreamApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtpool.flask.streams.watch._make_epoll", lambda: None)
    serving = streaming(RTPOOL_STREAM_HEARTBEAT=0.02, RTPOOL_STREAM_LINGER=0.02)
    browser = serving.browser().joined()
    browser.leave()
    wait_until(lambda: streams_of(serving).open == 0)
    wait_until(lambda: streams_of(serving).feeds == ())


def test_the_last_browser_takes_the_join_along_after_a_while(streaming: StreamApp, server: RealtimeServer) -> None:
    serving = streaming(RTPOOL_STREAM_LINGER=0.05, **QUIET)
    serving.browser().joined().leave()
    wait_until(lambda: len(server.leaves("room")) == 1, "the server's channel is left")
    assert streams_of(serving).feeds == ()
    wait_until(lambda: not any(t.name == "rtpool-streams" for t in threading.enumerate()), "nothing is looked after")
    assert serving.browser().joined()
    assert len(server.joins("room")) == 2


def test_who_comes_within_that_while_uses_the_join_again(streaming: StreamApp, server: RealtimeServer) -> None:
    serving = streaming(RTPOOL_STREAM_LINGER=3600, **QUIET)
    browser = serving.browser().joined()
    browser.leave()
    wait_until(lambda: streams_of(serving).open == 0)
    assert [feed.browsers for feed in streams_of(serving).feeds] == [0]
    say(server, 1)
    back = serving.browser(Last_Event_ID=browser.last_id)
    assert back.numbers(1) == [1], "told while nobody was there"
    assert len(server.joins("room")) == 1
    assert not server.leaves("room")


def test_a_response_that_nobody_sends_gives_its_seat_back(app: Flask, realtime: Realtime) -> None:
    state = state_of(app)
    with app.test_request_context("/stream"):
        response = realtime.stream("room")
        assert state.streams.open == 1
        del response
        gc.collect()
    assert state.streams.open == 0
    assert state.streams.feeds[0].browsers == 0


def test_a_view_that_fails_after_it_asked_for_a_stream_gives_the_seat_back(
    make_app: MakeApp, realtime: Realtime
) -> None:
    app = make_app()

    @app.get("/stream")
    def stream() -> Response:
        realtime.stream("room")
        raise LookupError("after all")

    with pytest.raises(LookupError):
        app.test_client().get("/stream")
    gc.collect()
    assert state_of(app).streams.open == 0


# Slow browsers


def test_a_slow_browser_skips_and_is_told_while_others_miss_nothing(
    streaming: StreamApp, server: RealtimeServer
) -> None:
    serving = streaming(RTPOOL_STREAM_BUFFER=5)
    slow, fast = serving.browser(small=True).joined(), serving.browser().opened()
    heard = []
    for n in range(60):
        fill(server, 1, first=n)
        heard += fast.numbers(1)
        if n == 20:
            wait_until(lambda: is_stuck(serving))
    assert heard == list(range(60))
    rest: list[Any] = []
    while not rest or rest[-1] != 59:
        event = slow.next()
        rest.append(event.data["payload"]["n"] if event.type == "broadcast" else event)
    (gap,) = [each for each in rest if not isinstance(each, int)]
    assert (gap.type, gap.data["cause"], gap.data["certain"]) == ("gap", "slow", True)
    before, after = rest[: rest.index(gap)], rest[rest.index(gap) + 1 :]
    assert before == list(range(len(before)))
    assert after == list(range(55, 60)), "from the oldest there is"
    assert streams_of(serving).feeds[0].skipped == 55 - len(before)


def test_a_slow_browser_may_be_closed_instead(streaming: StreamApp, server: RealtimeServer) -> None:
    serving = streaming(arguments={"slow": "close"}, RTPOOL_STREAM_BUFFER=5)
    slow, fast = serving.browser(small=True).joined(), serving.browser().opened()
    for n in range(60):
        fill(server, 1, first=n)
        assert fast.numbers(1) == [n]
        if n == 20:
            wait_until(lambda: is_stuck(serving))
    heard = slow.rest()
    assert [each.data["payload"]["n"] for each in heard] == list(range(len(heard)))
    assert len(heard) < 55
    back = serving.browser(Last_Event_ID=slow.last_id)
    assert (gap := back.next()).type == "gap"
    assert gap.data["cause"] == "resume"
    fill(server, 1, first=60)
    assert back.numbers(1) == [60], "from now on"


def test_a_browser_that_takes_nothing_is_cut_off(
    streaming: StreamApp, server: RealtimeServer, caplog: pytest.LogCaptureFixture
) -> None:
    serving = streaming(RTPOOL_STREAM_STALL=0.2, **QUIET)
    stalled, idle = serving.browser(small=True).joined(), serving.browser(small=True).opened()
    for n in range(20):  # the other takes what there is, for a while
        fill(server, 1, first=n)
        assert idle.numbers(1) == [n]
    wait_until(lambda: streams_of(serving).open == 1, "the seat is given back")
    assert len(stalled.rest()) < 20
    assert "took nothing of its stream for 0.2 s; its connection was shut down" in caplog.text
    fill(server, 1, first=20)
    assert idle.numbers(1) == [20], "it had nothing to take"
    caplog.clear()


def test_a_connection_whose_other_side_is_silent_is_ended_by_the_system(streaming: StreamApp) -> None:
    serving = streaming(RTPOOL_STREAM_STALL=7)
    serving.browser().joined()
    (seat,) = streams_of(serving)._seats
    assert seat.sock is not None
    assert seat.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 14_000


def test_the_longest_patience_that_may_be_asked_for_is_one_that_the_system_knows(streaming: StreamApp) -> None:
    assert streaming(RTPOOL_STREAM_STALL=1e9).browser().status == 200


def test_a_quiet_stream_has_heartbeats(streaming: StreamApp) -> None:
    browser = streaming(RTPOOL_STREAM_HEARTBEAT=0.02).browser().joined()
    browser.beats(3)
    assert b"\n\n: \n\n" in browser.text


def test_an_old_stream_ends_and_goes_on_where_it_was(streaming: StreamApp, server: RealtimeServer) -> None:
    serving = streaming(RTPOOL_STREAM_MAX_AGE=0.3, **QUIET)
    browser = serving.browser().joined()
    browser.rest()
    wait_until(lambda: streams_of(serving).open == 0)
    say(server, 1)
    assert serving.browser(Last_Event_ID=browser.last_id).numbers(1) == [1]
    assert len(server.joins("room")) == 1


# Too many


def test_one_stream_too_many_is_a_503(
    streaming: StreamApp, server: RealtimeServer, caplog: pytest.LogCaptureFixture
) -> None:
    serving = streaming(RTPOOL_MAX_STREAMS=2, **QUIET)
    browsers = [serving.browser().opened() for _ in range(2)]
    for _ in range(3):
        refused = serving.browser()
        assert refused.status == 503
        assert refused.head[1]["retry-after"] == "5"
        assert refused.head[1]["cache-control"] == "no-store"
    assert caplog.text.count("RTPOOL_MAX_STREAMS") == 1, "told once"
    browsers[0].leave()
    wait_until(lambda: streams_of(serving).open == 1)
    assert serving.browser().status == 200
    assert serving.browser().status == 503
    assert caplog.text.count("RTPOOL_MAX_STREAMS") == 1, "once a minute"
    streams_of(serving)._told_at -= 60
    assert serving.browser().status == 503
    assert caplog.text.count("RTPOOL_MAX_STREAMS") == 2
    assert "a 503: 4 since" in caplog.text, "and how many there were"
    caplog.clear()


def test_ten_thousand_too_many_are_refused_before_anything_is_done(
    make_app: MakeApp, realtime: Realtime, server: RealtimeServer, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(RTPOOL_MAX_STREAMS=0)
    state = state_of(app)
    environ = app.test_request_context("/stream", headers={"Last-Event-ID": "x" * 1_000}).request.environ

    def attempt(number: int) -> None:
        with app.request_context(dict(environ)):
            assert realtime.stream(f"room {number}", access_token=f"token-{number}").status_code == 503

    for number in range(500):
        attempt(number)
    gc.collect()
    blocks, threads, descriptors = sys.getallocatedblocks(), threading.active_count(), len(os.listdir("/proc/self/fd"))
    for number in range(500, 10_500):
        attempt(number)
    gc.collect()
    assert sys.getallocatedblocks() - blocks < 1_000
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert (state.streams.open, state.streams.feeds) == (0, ())
    assert not server.connections_total
    assert caplog.text.count("RTPOOL_MAX_STREAMS") == 1
    caplog.clear()


def test_ever_new_topics_have_no_more_feeds_than_there_may_be_streams(
    make_app: MakeApp, serve: Serve, realtime: Realtime, server: RealtimeServer
) -> None:
    app = make_app(RTPOOL_MAX_STREAMS=3, RTPOOL_STREAM_LINGER=3600)

    @app.get("/stream/<topic>")
    def stream(topic: str) -> Response:
        return realtime.stream(topic)

    serving, streams = serve(app), state_of(app).streams
    stays = serving.browser("/stream/stays").joined()
    for number in range(8):
        serving.browser(f"/stream/{number}").joined().leave()
        wait_until(lambda: streams.open == 1)
    assert [feed.topic for feed in streams.feeds] == ["stays", "6", "7"], "who waited longest made room"
    wait_until(lambda: len(state_of(app).pool.channels()) == 3)
    wait_until(lambda: len(server.leaves()) == 6)
    say(server, 1, topic="stays")
    assert stays.numbers(1) == [1]


def test_many_attempts_at_once_never_open_one_too_many(streaming: StreamApp, server: RealtimeServer) -> None:
    serving = streaming(RTPOOL_MAX_STREAMS=5, **QUIET)
    browsers = [serving.browser() for _ in range(40)]
    statuses = sorted(browser.status for browser in browsers)
    assert statuses == [200] * 5 + [503] * 35
    assert streams_of(serving).open == 5
    wait_until(lambda: server.members("room"))
    assert len(server.joins("room")) == 1


# The end of everything


def test_close_ends_every_stream_and_the_next_one_begins_anew(streaming: StreamApp, server: RealtimeServer) -> None:
    serving = streaming(**QUIET)
    browsers = [serving.browser().joined(), *(serving.browser().opened() for _ in range(9))]
    streams = streams_of(serving)
    assert streams.close(5)
    assert (streams.open, streams.feeds) == (0, ())
    for browser in browsers:
        assert browser.rest() == []
    wait_until(lambda: len(server.leaves("room")) == 1)
    assert streams.close(5), "once more"
    back = serving.browser(Last_Event_ID=browsers[0].last_id)
    assert back.next().type == "gap"
    assert back.joined()


def test_close_does_not_wait_for_who_takes_nothing(streaming: StreamApp, server: RealtimeServer) -> None:
    serving = streaming(**QUIET)
    serving.browser(small=True).joined()
    fill(server, 20)
    wait_until(lambda: is_stuck(serving))
    begun = time.monotonic()
    assert streams_of(serving).close(0.4)
    assert time.monotonic() - begun < 5
    assert streams_of(serving).open == 0


def test_a_view_of_a_stream_may_close_everything(
    make_app: MakeApp, serve: Serve, realtime: Realtime, server: RealtimeServer
) -> None:
    app = make_app(**QUIET)
    closed = []

    @app.get("/stream")
    def stream() -> Response:
        def view(event: Any) -> Any:
            closed.append(realtime.close(5))
            return event

        return realtime.stream("room", view=view)

    browser = serve(app).browser().joined()
    begun = time.monotonic()
    say(server, 1)
    browser.rest()
    assert closed == [True]
    assert time.monotonic() - begun < 4, "it did not wait for itself"
    wait_until(lambda: state_of(app).streams.open == 0)


def test_the_request_that_asked_for_a_stream_may_close_everything(app: Flask, realtime: Realtime) -> None:
    with app.test_request_context("/stream"):
        response = realtime.stream("room")
        begun = time.monotonic()
        assert realtime.close(20)
        assert time.monotonic() - begun < 5, "it did not wait for itself"
    assert list(response.response) == []
    response.close()


def test_a_closed_pool_ends_its_streams(streaming: StreamApp, server: RealtimeServer) -> None:
    serving = streaming(**QUIET)
    browser = serving.browser().joined()
    assert state_of(serving.app).pool.close(5)
    assert [(heard.data["status"], heard.data["retryable"]) for heard in browser.rest()] == [("closed", True)]
    wait_until(lambda: streams_of(serving).feeds == ())
    assert serving.browser(Last_Event_ID=browser.last_id).joined(), "with the app's next pool"


def test_a_forked_child_has_no_streams_and_sends_nothing(streaming: StreamApp, server: RealtimeServer) -> None:
    serving = streaming(**QUIET)
    browser = serving.browser().joined()
    streams = streams_of(serving)
    seat = next(iter(streams._seats))
    pieces = [each for each in gc.get_objects() if type(each).__name__ == "Pieces" and each._seat is seat]
    assert len(pieces) == 1

    def body(link: Link) -> None:
        state = state_of(serving.app)
        link.tell((state.streams.open, state.streams.feeds, streams.open, streams.feeds, list(pieces[0])))
        link.tell(state.streams.close(5))
        state.close(5)

    with Child(body) as child:
        assert child.told() == (0, (), 0, (), [])
        assert child.told() is True
    say(server, 1)
    assert browser.numbers(1) == [1]
    assert streams.open == 1
    browser.leave()
    wait_until(lambda: streams.open == 0, "the parent still notices")


def test_what_looks_after_streams_goes_on_after_a_failure(
    streaming: StreamApp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [OSError("a bad day")]
    real = Streams._look

    def look(self: Streams, watch: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(self, watch)

    monkeypatch.setattr(Streams, "_look", look)
    monkeypatch.setattr("rtpool.flask.streams.streams.AFTER_FAILURE", 0.01)
    serving = streaming(**QUIET)
    browser = serving.browser().joined()
    wait_until(lambda: "a bad day" in caplog.text)
    caplog.clear()
    browser.leave()
    wait_until(lambda: streams_of(serving).open == 0)


# Snapshots


class Board:
    """An app that shows a count to whoever looks."""

    def __init__(self, make_app: MakeApp, serve: Serve, realtime: Realtime, every: float = 0.02, **config: Any) -> None:
        self.made: list[int] = []
        self.error: Exception | None = None
        self.app = make_app(RTPOOL_URL=None, RTPOOL_API_KEY=None, **config)

        @self.app.get("/stream")
        def stream() -> Response:
            return state_of(self.app).streams.repeat("snapshot", self.make, every=every)

        self.serving = serve(self.app)

    def make(self) -> dict[str, int]:
        if self.error is not None:
            raise self.error
        self.made.append(threading.get_ident())
        return {"n": len(self.made)}

    def browser(self) -> Browser:
        return self.serving.browser()


def test_snapshots_are_made_once_for_all_and_need_no_pool(make_app: MakeApp, serve: Serve, realtime: Realtime) -> None:
    board = Board(make_app, serve, realtime)
    browsers = [board.browser() for _ in range(10)]
    seen = [[browser.next() for _ in range(5)] for browser in browsers]
    for heard in seen:
        numbers = [each.data["n"] for each in heard]
        assert {each.type for each in heard} == {"snapshot"}
        assert numbers == sorted(set(numbers))
    assert len(board.made) < 5 * len(browsers)
    assert state_of(board.app).streams.open == 10
    assert state_of(board.app).streams.feeds == ()
    for browser in browsers:
        browser.leave()
    wait_until(lambda: state_of(board.app).streams.open == 0)


def test_who_looks_sleeps_while_a_snapshot_is_made(app: Flask) -> None:
    making, made = threading.Event(), threading.Event()

    def make() -> int:
        making.set()
        assert made.wait(20)
        return 1

    now = [100.0]
    snapshots = Snapshots(app, "snapshot", make, 1.0, lambda: now[0])
    seat = Seat(snapshots, None)
    snapshots.open(seat)
    maker = threading.Thread(target=snapshots.newest, args=(0,))
    maker.start()
    assert making.wait(20)
    now[0] += 5
    assert snapshots.due == float("inf")
    assert snapshots.newest(0) == (0, b"")
    made.set()
    assert seat.woken.wait(20)
    maker.join()
    assert snapshots.due == 106.0
    assert snapshots.newest(0)[0] == 1


def test_a_snapshot_that_fails_ends_a_stream_and_is_told(
    make_app: MakeApp, serve: Serve, realtime: Realtime, caplog: pytest.LogCaptureFixture
) -> None:
    board = Board(make_app, serve, realtime)
    browser = board.browser()
    browser.next()
    board.error = ArithmeticError("no number")
    browser.rest()
    assert "no number" in caplog.text
    board.error = None
    assert board.browser().until(lambda heard: heard.data["n"] > 1)
    caplog.clear()


def test_snapshots_count_as_streams(make_app: MakeApp, serve: Serve, realtime: Realtime) -> None:
    board = Board(make_app, serve, realtime, every=3600, RTPOOL_MAX_STREAMS=1, RTPOOL_STREAM_HEARTBEAT=0.02)
    first = board.browser()
    assert first.next().data == {"n": 1}
    first.beats(2)
    assert board.browser().status == 503

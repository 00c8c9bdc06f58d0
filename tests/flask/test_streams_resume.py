"""Streams go on where their browser was: in the same process, in another, or behind a gap."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from flask import Response

from rtpool.flask import Realtime
from rtpool.flask.streams import Streams
from rtpool.flask.streams.sse import STOP, Position
from rtpool.testing import RealtimeServer
from tests.flask.browsers import Browser, Heard, Serving
from tests.flask.conftest import MakeApp, Serve, StreamApp, state_of
from tests.flask.test_streams import say

#: Every other field of a position that nobody made.
EPOCH = "0123456789abcdef"


def test_who_comes_back_goes_on_where_it_was(streaming: StreamApp, server: RealtimeServer) -> None:
    serving = streaming()
    browser = serving.browser().joined()
    say(server, 1, 2)
    assert browser.numbers(2) == [1, 2]
    browser.leave()
    other = serving.browser().opened()
    say(server, 3, 4)
    assert other.numbers(2) == [3, 4]
    back = serving.browser(Last_Event_ID=browser.last_id)
    assert [back.next().data["payload"]["n"] for _ in range(2)] == [3, 4]
    say(server, 5)
    assert back.numbers(1) == other.numbers(1) == [5]
    assert back.last_id == other.last_id
    assert len(server.joins("room")) == 1


def test_a_stream_that_broke_before_its_first_event_loses_none(streaming: StreamApp, server: RealtimeServer) -> None:
    serving = streaming()
    serving.browser().joined()
    browser = serving.browser().opened()
    browser.leave()
    say(server, 1)
    assert browser.last_id, "the stream began with an id"
    assert serving.browser(Last_Event_ID=browser.last_id).next().data["payload"] == {"n": 1}


def test_what_the_buffer_has_no_more_is_a_gap(streaming: StreamApp, server: RealtimeServer) -> None:
    serving = streaming(RTPOOL_STREAM_BUFFER=3)
    browser = serving.browser().joined()
    say(server, 0)
    assert browser.numbers(1) == [0]
    browser.leave()
    other = serving.browser().opened()
    say(server, 1, 2, 3)
    assert other.numbers(3) == [1, 2, 3]
    back = serving.browser(Last_Event_ID=browser.last_id)
    assert back.numbers(3) == [1, 2, 3], "just enough"
    say(server, 4)
    assert other.numbers(1) == [4]
    back = serving.browser(Last_Event_ID=browser.last_id)
    assert (gap := back.next()).type == "gap"
    assert gap.data["cause"] == "resume"
    say(server, 5)
    assert back.next().data["status"] == "joined"
    assert back.next().data["payload"] == {"n": 5}


@pytest.mark.parametrize(
    "text",
    [
        "7",
        "x" * 10_240,
        str(Position(EPOCH, 3, 5, "0" * 16)),
        str(Position(EPOCH, 3, 10**15 - 1, "a" * 16)),
        str(Position(EPOCH, 3, 0, "a" * 16)),
        "-1",
        "0123456789abcdef--1--5-0123456789abcdef",
        "\xb2\xb3\xb9",  # digits that int() does not read
        "'; drop table cars; --",
        "a\tb",
    ],
)
def test_an_id_that_says_nothing_is_a_gap(streaming: StreamApp, server: RealtimeServer, text: str) -> None:
    serving = streaming()
    serving.browser().joined()
    browser = serving.browser(Last_Event_ID=text)
    gap = browser.next()
    assert (gap.type, gap.data["cause"], gap.data["certain"]) == ("gap", "resume", False)
    assert datetime.fromisoformat(gap.data["lost_from"]) <= datetime.fromisoformat(gap.data["lost_to"])
    say(server, 1)
    assert browser.numbers(1) == [1]
    assert len(text) < 20 or text not in browser.text.decode()


def test_nobody_is_shown_what_was_told_before_it_came(streaming: StreamApp, server: RealtimeServer) -> None:
    serving = streaming()
    first = serving.browser().joined()
    say(server, 1, 2, 3)
    assert first.numbers(3) == [1, 2, 3]
    epoch, seq, ms, fingerprint = serving.browser().opened().last_id.split("-")
    for guess in (0, 1, int(seq) - 1, int(seq) + 1):
        for time in (ms, "0"):
            browser = serving.browser(Last_Event_ID=f"{epoch}-{guess}-{time}-{fingerprint}")
            assert browser.next().type == "gap"
            assert browser.last_id == first.last_id, "it goes on from now"


def news(browser: Browser) -> Heard:
    """The next event that is no status."""
    return browser.until(lambda heard: heard.type != "status")


class Wall:
    """A wall clock that goes when it is told to; behind the real one, by which gaps are told, until that `is_right`."""

    def __init__(self) -> None:
        self.now = datetime.now(timezone.utc) - timedelta(minutes=5)

    def __call__(self) -> datetime:
        return self.now

    def is_right(self) -> None:
        self.now = datetime.now(timezone.utc)

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class Twins:
    """Two apps as two worker processes have them: each with a feed of its own, and epochs that the other never had."""

    def __init__(self, make_app: MakeApp, serve: Serve, server: RealtimeServer, **config: Any) -> None:
        self.server, self.wall = server, Wall()
        self.serving = [self._serve(make_app, serve, config) for _ in range(2)]
        self.browsers = [serving.browser().joined() for serving in self.serving]
        assert len(server.joins("room")) == 2
        self.wall.advance(10)

    def _serve(self, make_app: MakeApp, serve: Serve, config: dict[str, Any]) -> Serving:
        extension = Realtime()
        app = make_app(extension, **config)
        state_of(app)._streams = Streams(state_of(app), wall=self.wall)

        @app.get("/stream")
        def stream() -> Response:
            return extension.stream("room")

        return serve(app)

    def say(self, *numbers: int, after: float = 0.0) -> None:
        """Broadcast, and wait until both heard it."""
        self.wall.advance(after)
        say(self.server, *numbers)
        for browser in self.browsers:
            assert browser.numbers(len(numbers)) == list(numbers)

    def pushers(self) -> list[Callable[[int], None]]:
        """What has each of them alone hear a number."""

        def pusher(connection: Any) -> Callable[[int], None]:
            return lambda n: connection.push(
                "realtime:room", "broadcast", {"type": "broadcast", "event": "moved", "payload": {"n": n}}
            )

        return [pusher(connection) for connection in self.server.connections]

    def move(self, last_id: str) -> Browser:
        """A browser of the first that comes to the second."""
        return self.serving[1].browser(Last_Event_ID=last_id)


@pytest.fixture
def twins(make_app: MakeApp, serve: Serve, server: RealtimeServer) -> Twins:
    return Twins(make_app, serve, server)


def test_another_process_goes_on_behind_the_same_event(twins: Twins) -> None:
    twins.say(1, 2)
    last_id = twins.browsers[0].last_id
    twins.say(3, 4)
    moved = twins.move(last_id)
    assert moved.next().data["status"] == "joined", "whatever the other process said last"
    assert [moved.next().data["payload"]["n"] for _ in range(2)] == [3, 4]
    assert moved.last_id == twins.browsers[1].last_id != twins.browsers[0].last_id
    epochs = {browser.last_id.split("-")[0] for browser in twins.browsers}
    assert len(epochs) == 2
    fingerprints = {browser.last_id.split("-")[3] for browser in twins.browsers}
    assert len(fingerprints) == 1


def test_a_status_behind_the_last_event_does_not_hide_it(twins: Twins) -> None:
    twins.say(1, after=20)
    twins.wall.is_right()
    twins.server.crash_channel("room")
    for browser in twins.browsers:
        browser.joined()
    last_id = twins.browsers[0].last_id
    moved = twins.move(last_id)
    kinds = []
    while kinds.count(("status", "joined")) < 2:
        heard = moved.next()
        kinds.append((heard.type, heard.data.get("status") or heard.data.get("cause")))
    assert ("gap", "rejoin") in kinds, "of the interruption, which the other had too"
    assert ("gap", "resume") not in kinds
    twins.say(2)
    assert moved.numbers(1) == [2]


@pytest.mark.parametrize("others", ["twice", "window before", "outage"])
def test_what_cannot_be_proven_is_a_gap(twins: Twins, others: str) -> None:
    if others == "twice":
        twins.say(*[1] * 5)
    elif others == "outage":  # within the window: what came again may be a twin of what was missed
        twins.wall.is_right()
        twins.server.crash_channel("room")
        for browser in twins.browsers:
            browser.joined()
        twins.wall.advance(2)
        twins.say(1)
    last_id = twins.browsers[0].last_id
    if others == "window before":
        twins.wall.advance(-6)
        twins.say(1)
        last_id = twins.browsers[0].last_id
    twins.wall.advance(20)
    moved = twins.move(last_id)
    assert (gap := moved.next()).type == "gap"
    assert gap.data["cause"] == "resume"
    twins.say(2)
    assert news(moved).data["payload"] == {"n": 2}


def test_an_equal_event_before_it_is_told_from_it(twins: Twins) -> None:
    twins.say(1, 1)
    last_id = twins.browsers[0].last_id
    twins.say(1, 2)
    moved = twins.move(last_id)
    assert [news(moved).data["payload"]["n"] for _ in range(2)] == [1, 2]


@pytest.mark.parametrize("before", [0, 5])
def test_who_heard_in_another_order_tells_of_a_gap(twins: Twins, before: int) -> None:
    if before:
        twins.say(*range(10, 10 + before))
    one, two = twins.pushers()
    one(1)
    last_id = twins.browsers[0].until(lambda heard: heard.type == "broadcast").last_id
    one(2)
    two(2)
    two(1)
    assert twins.browsers[1].numbers(2) == [2, 1]
    assert news(twins.move(last_id)).type == "gap", "2 would be lost"
    twins.browsers[0].numbers(1)
    assert news(twins.move(twins.browsers[0].last_id)).type == "gap", "1 would come twice"


@pytest.mark.parametrize("equal", [2, 5])
def test_who_is_an_equal_event_behind_tells_of_a_gap(twins: Twins, equal: int) -> None:
    one, two = twins.pushers()
    for _ in range(equal):
        one(1)
    twins.browsers[0].numbers(equal)
    for _ in range(equal - 1):
        two(1)
    twins.browsers[1].numbers(equal - 1)
    moved = twins.move(twins.browsers[0].last_id)
    assert news(moved).type == "gap", "it would come once more"


@pytest.mark.parametrize(("apart", "found"), [(4.9, True), (5.2, False)])
def test_an_event_is_known_again_within_five_seconds(twins: Twins, apart: float, found: bool) -> None:
    twins.wall.advance(60)
    twins.say(1, 2)
    epoch, seq, ms, fingerprint = twins.browsers[0].last_id.split("-")
    for sign in (1, -1):
        moved = twins.move(f"{epoch}-{seq}-{int(ms) + sign * int(apart * 1000)}-{fingerprint}").opened()
        twins.say(sign)
        assert (news(moved).type == "broadcast") is found


def test_the_very_first_id_proves_nothing_elsewhere(twins: Twins) -> None:
    browser = twins.serving[0].browser().opened()
    assert twins.move(browser.last_id).next().type == "gap"


def test_the_buffer_must_reach_back_over_the_whole_window(
    make_app: MakeApp, serve: Serve, server: RealtimeServer
) -> None:
    twins = Twins(make_app, serve, server, RTPOOL_STREAM_BUFFER=3)
    twins.say(1)
    twins.say(2, after=6)
    last_id = twins.browsers[0].last_id
    twins.say(3, 4)
    assert news(twins.move(last_id)).data["payload"] == {"n": 3}, "what is gone came before the window"
    twins.say(5, after=20)
    twins.say(6, after=4)
    last_id = twins.browsers[0].last_id
    twins.say(7, 8)
    assert twins.move(last_id).next().type == "gap", "a twin of it may be gone"


def test_apps_with_other_secrets_know_nothing_of_each_other(
    make_app: MakeApp, serve: Serve, server: RealtimeServer
) -> None:
    twins = Twins(make_app, serve, server)
    twins.serving[1].app.secret_key = b"another"
    for browser in twins.browsers:
        browser.leave()
    state_of(twins.serving[1].app).streams.close()
    twins.browsers = [twins.serving[0].browser().opened(), twins.serving[1].browser().joined()]
    twins.wall.advance(10)
    twins.say(1)
    assert twins.move(twins.browsers[0].last_id).next().type == "gap"


def test_without_a_secret_only_the_same_process_goes_on(
    make_app: MakeApp, serve: Serve, server: RealtimeServer
) -> None:
    twins = Twins(make_app, serve, server, SECRET_KEY=None)
    twins.say(1)
    last_id = twins.browsers[0].last_id
    twins.say(2)
    assert twins.move(last_id).next().type == "gap"
    assert twins.serving[0].browser(Last_Event_ID=last_id).next().data["payload"] == {"n": 2}


def test_that_another_feed_was_refused_for_ever_is_no_reason_to_stop(streaming: StreamApp) -> None:
    streaming().browser(Last_Event_ID=str(Position(EPOCH, 3, 5, STOP))).joined()

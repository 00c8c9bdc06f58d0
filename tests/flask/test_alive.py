"""A process that is to end lets its browsers go on elsewhere, at once and for good."""

from __future__ import annotations

import pytest
from flask import Response

import rtpool
from rtpool.flask import Realtime
from rtpool.testing import RealtimeServer
from tests.flask.conftest import MakeApp, Serve, state_of
from tests.support.wait import wait_until


def test_streams_end_when_the_process_is_to_end_and_later_ones_have_their_browsers_come_back(
    make_app: MakeApp, serve: Serve, realtime: Realtime, server: RealtimeServer
) -> None:
    app, answers = make_app(), [True]

    @app.get("/stream")
    def stream() -> Response:
        return realtime.stream("room")

    @app.get("/repeated")
    def repeated() -> Response:
        return state_of(app).streams.repeat("status", dict)

    realtime.start(app, alive=lambda: answers[-1])
    serving = serve(app)
    browsers = [serving.browser().joined(), serving.browser("/repeated")]
    assert [browser.status for browser in browsers] == [200, 200]
    assert state_of(app).streams.open == 2
    answers.append(False)
    for browser in browsers:
        browser.body()
        assert browser.ended
    wait_until(lambda: state_of(app).streams.open == 0, "no stream is left")
    for path in ("/stream", "/repeated"):
        late = serving.browser(path)
        assert late.status == 200, "at any other the browser would give up for ever"
        assert late.head[1]["content-type"].startswith("text/event-stream")
        assert late.body() == "retry: 1000\n\n"
    assert state_of(app).streams.open == 0
    answers.append(True)
    back = serving.browser().opened()
    server.broadcast("room", "moved", {"n": 1})
    assert back.numbers(1) == [1]


def test_what_is_asked_must_be_callable(make_app: MakeApp, realtime: Realtime) -> None:
    with pytest.raises(rtpool.InvalidType):
        realtime.start(make_app(), alive=True)  # type: ignore[arg-type]

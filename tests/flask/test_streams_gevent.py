"""Under gevent's monkey patches streams are greenlets: everything of them works, and none of them stops another."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rtpool.testing import RealtimeServer
from tests.servers.conftest import Run, need, run

__all__ = ["run"]


@pytest.fixture(autouse=True)
def gevent() -> None:
    need("gevent")


@pytest.fixture
def server() -> Iterator[RealtimeServer]:
    """A server for the program."""
    with RealtimeServer() as server:
        yield server


PROGRAM = """
from gevent import monkey; monkey.patch_all()
import gc, os, sys, threading, time
import attrs
import gevent
from flask import Flask
from rtpool.flask import Realtime
from tests.flask.browsers import Serving
from tests.support.wait import wait_until

app = Flask("patched")
app.config.update(
    RTPOOL_URL=os.environ["GUEST_URL"], RTPOOL_API_KEY=os.environ["GUEST_KEY"], RTPOOL_STREAM_HEARTBEAT=3600,
    RTPOOL_STREAM_LINGER=0.05, RTPOOL_STREAM_STALL=60, RTPOOL_MAX_STREAMS=50, TESTING=True,
)
realtime = Realtime(app)

@app.get("/stream")
def stream():
    return realtime.stream("room")

streams = app.extensions["rtpool"].streams
serving = Serving(app)

# Fifty hear all in order, and one more gets no stream.
browsers = [serving.browser().joined()] + [serving.browser().opened() for _ in range(49)]
assert serving.browser().status == 503
print("go", flush=True)
for browser in browsers:
    assert browser.numbers(20) == list(range(20))

# Nothing is spent while nothing happens.
spent = time.process_time()
gevent.sleep(1)
spent = time.process_time() - spent
assert spent < 0.2, f"{spent} s of CPU in a second in which nothing happened"

# Who leaves is noticed at once.
descriptors = len(os.listdir("/proc/self/fd"))
for browser in browsers[10:]:
    browser.leave()
wait_until(lambda: streams.open == 10, "they are noticed", 2)
wait_until(lambda: len(os.listdir("/proc/self/fd")) == descriptors - 80, "their descriptors are closed", 5)

# Every greenlet is in a forked child as well: none of them sends anything there.
texts = [browser.text for browser in browsers[:10]]
seats = list(streams._seats)
child = os.fork()
if not child:
    for seat in seats:
        seat.woken.set()
    streams = app.extensions["rtpool"].streams
    assert (streams.open, streams.feeds) == (0, ())
    gevent.sleep(0.5)
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
print("more", flush=True)
for browser in browsers[:10]:
    assert browser.numbers(1) == [20]
assert [browser.text[: len(text)] for browser, text in zip(browsers, texts)] == texts

# Who takes nothing is cut off, and nobody else waits for that.
state = app.extensions["rtpool"]
state.settings = attrs.evolve(state.settings, stream_stall=0.5)
stalled = serving.browser(small=True).opened()
print("much", flush=True)
for n in range(21, 41):
    for browser in browsers[:10]:
        assert browser.numbers(1) == [n]
wait_until(lambda: streams.open == 10, "the stalled one is gone", 10)

for browser in browsers:
    browser.leave()
wait_until(lambda: not streams.feeds and not streams.open, "the feed ends", 5)
left = lambda: [thread.name for thread in threading.enumerate() if thread.name == "rtpool-streams"]
wait_until(lambda: not left(), "nothing is looked after", 5)

last = serving.browser().joined()
with app.app_context():
    assert gevent.spawn(state.close, 5).get(timeout=10)
last.rest()
serving.close()
print("done", flush=True)
"""


def test_streams_of_greenlets(server: RealtimeServer, run: Run) -> None:
    program = run(script=PROGRAM)
    program.wait_for(lambda: "go" in program.out(), "all are joined")
    for n in range(20):
        server.broadcast("room", "moved", {"n": n})
    program.wait_for(lambda: "more" in program.out(), "they left, and there was a fork")
    server.broadcast("room", "moved", {"n": 20})
    program.wait_for(lambda: "much" in program.out(), "one of them takes nothing")
    for n in range(21, 41):
        server.broadcast("room", "moved", {"n": n, "filler": "x" * 10_000})
    program.wait_for(lambda: "done" in program.out(), "all ended")
    complaints = program.ends()
    assert "took nothing" in complaints
    assert len(complaints.splitlines()) == 2, complaints

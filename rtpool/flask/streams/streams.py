"""
All the streams of an app in this process: how many may be, what they read, who left, who takes nothing.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import math
import operator
import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal

import flask
from werkzeug.wrappers import Response as AnyResponse

from rtpool.checks import check_callable
from rtpool.engine.threads import PoolThread, join_all
from rtpool.errors import InvalidType, InvalidValue, PoolClosed
from rtpool.flask.streams import sse
from rtpool.flask.streams.feed import Feed, FeedStats
from rtpool.flask.streams.readers import RETRY_MS, FeedReader, SnapshotReader, Snapshots, View
from rtpool.flask.streams.response import HEADERS, EventStream, Pieces, refusal, socket_of
from rtpool.flask.streams.seat import Seat
from rtpool.flask.streams.sse import Position
from rtpool.flask.streams.wanted import Changes, Wanted
from rtpool.flask.streams.watch import Watch

if TYPE_CHECKING:
    from rtpool.flask.state import AppState
    from rtpool.pool import RealtimePool

__all__ = ["Streams"]

Lock = threading.Lock

Authorize = Callable[[], Any]

#: Seconds between two looks at who takes nothing, at most.
LOOK_SECONDS = 5.0
#: And between two questions whether the process goes on serving.
ALIVE_SECONDS = 1.0
#: Seconds between two lines in the log that all seats are taken.
TELL_SECONDS = 60.0
#: Seconds that what looks after the streams rests after a failure of its own.
AFTER_FAILURE = 1.0
#: What `Realtime.stream` may do with a slow browser.
SLOW = ("skip", "close")


class _Shared:
    """What streams read, how many do, and since when none does. Belongs to the lock of `Streams`."""

    __slots__ = ("idle_since", "source", "users")

    def __init__(self, source: Feed | Snapshots) -> None:
        self.source = source
        self.users = 0
        self.idle_since: float | None = None


class Streams:
    """
    The streams of an app; ``state.streams``.

    While there are any, a thread of its own looks after them: it notices browsers that left, shuts down connections
    whose browsers take nothing, and ends feeds that nobody came back to.

    Args:
        state: the app's.
        clock: monotonic seconds.
        wall: aware wall-clock time.

    Thread-safety: every method may be called from any thread.
    """

    def __init__(
        self,
        state: AppState,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        self.state = state
        self.clock = clock
        self._wall = wall
        self._logger = state.app.logger
        # Seats whose response was dropped and never closed; filled wherever the collector strikes.
        self._forgotten: collections.deque[Seat] = collections.deque()
        self._key = secrets.token_bytes(32)
        self._advised = False
        self._begin()

    def _begin(self) -> None:
        #: Guards: all below.
        self._lock = Lock()
        self._left = threading.Condition(self._lock)
        self._seats: dict[Seat, _Shared] = {}
        self._shared: dict[Any, _Shared] = {}
        self._watch: Watch | None = None
        self._keeper: threading.Thread | None = None
        self._turned_away, self._told_at = 0, -math.inf

    # What is to be seen

    @property
    def open(self) -> int:
        """How many streams are open, those of snapshots included."""
        self._collect()
        with self._lock:
            return len(self._seats)

    @property
    def feeds(self) -> tuple[FeedStats, ...]:
        """Every feed; also those without a browser, which wait for one to come back."""
        with self._lock:
            sources = [shared.source for shared in self._shared.values()]
        return tuple(source.stats() for source in sources if isinstance(source, Feed))

    # What responds

    def stream(
        self,
        topic: str,
        *,
        broadcasts: str | Sequence[str] | None = "*",
        changes: str | Changes | Sequence[str | Changes] | None = None,
        presence: bool = False,
        private: bool = False,
        access_token: str | Callable[[], str] | None = None,
        authorize: Authorize | None = None,
        view: View | None = None,
        slow: Literal["skip", "close"] = "skip",
    ) -> flask.Response:
        """
        As `rtpool.flask.Realtime.stream`; within a request.
        """
        answer = _answer_of(authorize)
        if answer is not None:
            return answer
        wanted = Wanted.checked(topic, broadcasts, changes, presence, private, access_token)
        if view is not None:
            check_callable(view)
        if slow not in SLOW:
            raise InvalidValue(f"slow must be one of {', '.join(SLOW)}, not {slow!r}")
        last_id = flask.request.headers.get("Last-Event-ID")
        had = None if last_id is None else sse.parse_id(last_id)
        if flask.request.method == "HEAD":
            return EventStream(headers=HEADERS)
        if not self.state.serving:
            return _come_back()
        pool = self.state.pool
        if had is not None and self._told_to_stop((pool, wanted), had):
            return EventStream(status=204, headers=HEADERS)  # by the HTML standard, the end of coming back
        found = self._sit((pool, wanted), lambda: self._feed(wanted, pool))
        if found is None:
            return refusal(503, "too many streams are open\n")
        seat, fresh = found
        with contextlib.ExitStack() as undo:
            undo.callback(self.leave, seat)
            app = self.state.app  # who has a feed begin reads it before, and so hears that it is joined
            reader = FeedReader(app, seat.source, seat, last_id=last_id, view=view, close_slow=slow == "close")
            if fresh:
                undo.callback(self._give_up, seat.source)
                try:
                    seat.source.start()
                except PoolClosed:
                    return refusal(503, "the app is closing\n")
            pieces = Pieces(self, seat, reader)
            undo.pop_all()
        return pieces.respond()

    def repeat(self, name: str, make: Callable[[], Any], *, every: float = 1.0) -> flask.Response:
        """
        A stream of what `make` returns, made anew at an interval, once for all who look at it under that name; within a
        request.

        Args:
            name: the events' type, 1 to 32 small letters.
            make: returns what is sent as `data`, a JSON value; called in an app context on the thread of one of those
                streams. When it raises, that stream ends and the error is logged.
            every: seconds.

        Returns:
            The response; a 503 beyond ``RTPOOL_MAX_STREAMS``.
        """
        if flask.request.method == "HEAD":
            return EventStream(headers=HEADERS)
        if not self.state.serving:
            return _come_back()
        app = self.state.app
        found = self._sit(name, lambda: Snapshots(app, name, make, every, self.clock))
        if found is None:
            return refusal(503, "too many streams are open\n")
        seat, _ = found
        with contextlib.ExitStack() as undo:
            undo.callback(self.leave, seat)
            pieces = Pieces(self, seat, SnapshotReader(app, seat.source, seat))
            undo.pop_all()
        return pieces.respond()

    def _told_to_stop(self, key: Any, had: Position) -> bool:
        with self._lock:
            shared = self._shared.get(key)
        return shared is not None and isinstance(shared.source, Feed) and shared.source.told_to_stop(had)

    def _feed(self, wanted: Wanted, pool: RealtimePool) -> Feed:
        settings, secret = self.state.settings, self.state.app.secret_key
        key = self._key
        if secret:  # the same in all processes of the app, and no browser knows it
            secret = secret.encode("utf-8", "surrogatepass") if isinstance(secret, str) else secret
            key = hashlib.blake2b(secret, digest_size=32, person=b"rtpool-streams").digest()
        return Feed(
            wanted,
            pool,
            limit=settings.stream_buffer,
            limit_bytes=settings.stream_buffer_bytes,
            key=key,
            wall=self._wall,
            on_over=self._is_over,
            on_homeless=self._ring,
            warn=self._warn,
        )

    def _give_up(self, source: Feed | Snapshots) -> None:
        """Forget what could not begin; whoever shares it already ends, and comes back."""
        with self._lock:
            for key in [key for key, shared in self._shared.items() if shared.source is source]:
                del self._shared[key]
        source.leave()

    # Coming and going

    def _sit(self, key: Any, make: Callable[[], Feed | Snapshots]) -> tuple[Seat, bool] | None:
        """
        Take a seat.

        Args:
            key: equal keys have one source.
            make: makes a source, and does nothing else.

        Returns:
            The seat, to be given back with `leave` whatever happens, and whether its source is fresh; None when every
            seat is taken.
        """
        sock, limit = socket_of(flask.request.environ), self.state.settings.max_streams
        source: Feed | Snapshots | None = None
        watch: Watch | None = None
        self._collect()
        while True:
            now = self.clock()
            with self._lock:
                seat, ended = None, None
                shared = self._shared.get(key)
                present = self._watch or watch
                full = len(self._seats) >= limit
                if not full and (shared is not None or source is not None) and present is not None:
                    fresh = shared is None
                    if shared is None:
                        assert source is not None
                        ended = self._make_room(limit)
                        shared = self._shared[key] = _Shared(source)
                    shared.users += 1
                    if not shared.source.over:
                        shared.idle_since = None
                    seat = Seat(shared.source, sock)
                    self._seats[seat] = shared
                    starts, self._watch = self._watch is None, present
            if full or seat is not None:
                break
            watch = watch or Watch()  # what is missing is made without the lock
            source = source or make()
        if watch is not None and (seat is None or watch is not present):
            watch.close()
        if seat is None or present is None:
            self._tell_full(limit, now)
            return None
        with contextlib.ExitStack() as undo:
            undo.callback(self.leave, seat)
            if fresh:
                undo.callback(self._give_up, seat.source)
            if ended is not None:
                ended.leave()
            if starts:
                self._start_keeper(present)
                self._advise()
            present.add(seat)
            undo.pop_all()
        return seat, fresh

    def _make_room(self, limit: int) -> Feed | Snapshots | None:
        """
        Forget what has waited longest for a browser to come back, where there are as many sources as there may be
        streams. While a seat is free one of so many has no browser. The caller must hold `self._lock`.
        """
        if len(self._shared) < limit:
            return None
        waiting = [(shared.idle_since or 0.0, key) for key, shared in self._shared.items() if not shared.users]
        _, oldest = min(waiting, key=operator.itemgetter(0))
        return self._shared.pop(oldest).source

    def _tell_full(self, limit: int, now: float) -> None:
        with self._lock:
            self._turned_away += 1
            if now - self._told_at < TELL_SECONDS:
                return
            count, self._turned_away, self._told_at = self._turned_away, 0, now
        self._warn(
            f"all {limit} streams of RTPOOL_MAX_STREAMS are open; who else comes gets a 503: {count:,} since this was "
            "last told"
        )

    def leave(self, seat: Seat) -> None:
        """Give a seat back. Idempotent."""
        watch = self._watch
        if watch is not None:
            watch.remove(seat)
        now = self.clock()
        with self._left:
            shared = self._seats.pop(seat, None)
            if shared is None:
                return
            shared.users -= 1
            if not shared.users and shared.idle_since is None:
                shared.idle_since = now
            self._left.notify_all()
        shared.source.close(seat)
        if watch is not None:
            watch.ring()

    def forget(self, seat: Seat) -> None:
        """Give a seat back soon; wherever the collector strikes, so it takes no lock."""
        self._forgotten.append(seat)

    def _collect(self) -> None:
        while self._forgotten:
            with contextlib.suppress(IndexError):  # another thread was faster
                self.leave(self._forgotten.popleft())

    def _is_over(self, feed: Feed) -> None:
        """A feed tells nothing more; who comes gets another. A refusal is remembered for a while."""
        now = self.clock()
        with self._lock:
            for key, shared in list(self._shared.items()):
                if shared.source is feed:
                    shared.idle_since = now
                    if not feed.refused:
                        del self._shared[key]
        self._ring()

    def _ring(self) -> None:
        """Have what looks after the streams look now."""
        watch = self._watch
        if watch is not None:
            watch.ring()

    def close(self, timeout: float = 5.0) -> bool:
        """
        End every stream and every feed. Idempotent; what comes later begins anew. Not for a signal's handler, which may
        have interrupted whoever holds a lock: there have another thread call it.

        Args:
            timeout: seconds it may take. After half of it, connections of browsers that take nothing are shut down.

        Returns:
            True when all ended in time; the stream that calls it does when it returns.
        """
        deadline, own = self.clock() + timeout, threading.get_ident()
        self._collect()
        with self._lock:
            every = list(self._seats)
            shared, self._shared = list(self._shared.values()), {}
            watch, keeper = self._watch, self._keeper
        for each in shared:
            each.source.leave()
        for seat in every:
            seat.leave()
        seats = [seat for seat in every if seat.thread != own]
        if not self._gone(seats, timeout / 2):
            for seat in seats:
                if seat.handed is not None:
                    seat.shut_down()
        in_time = self._gone(seats, deadline - self.clock())
        if watch is not None:
            watch.ring()
        if in_time and keeper is not None and seats == every:
            in_time = not join_all([keeper], time.monotonic() + max(0.0, deadline - self.clock()))
        return in_time

    def _gone(self, seats: list[Seat], timeout: float) -> bool:
        with self._left:
            return self._left.wait_for(lambda: not any(seat in self._seats for seat in seats), max(0.0, timeout))

    # The thread that looks after them

    def _advise(self) -> None:
        """Tell once of a server that will wait for its browsers when it is to stop."""
        if self.state.alive is None and not self._advised and "gunicorn.socket" in flask.request.environ:
            self._advised = True
            self._warn(
                "open streams will hold up a graceful stop of gunicorn: have its hook post_worker_init call "
                "realtime.start(alive=lambda: worker.alive) in an app context"
            )

    def _start_keeper(self, watch: Watch) -> None:
        keeper = PoolThread(self._keep, "rtpool-streams", (watch,))
        with contextlib.ExitStack() as undo:
            undo.callback(self._drop, watch)
            keeper.start()
            undo.pop_all()
        with self._lock:
            if self._watch is watch:
                self._keeper = keeper

    def _drop(self, watch: Watch) -> None:
        with self._lock:
            if self._watch is watch:
                self._watch = self._keeper = None
        watch.close()

    def _keep(self, watch: Watch) -> None:
        process = os.getpid()
        pause: float | None = 0.0
        while pause is not None:
            try:
                pause = self._look(watch)
                for seat in watch.wait(pause) if pause is not None else ():
                    seat.leave()
                if pause is not None and not self.state.serving:
                    self._end_all()
            except Exception:
                self._logger.exception("rtpool: what looks after the streams failed, and goes on")
                threading.Event().wait(AFTER_FAILURE)
            if os.getpid() != process:  # a greenlet, which is in a forked child as well
                watch.close()
                return

    def _look(self, watch: Watch) -> float | None:
        """See to all that is due; the seconds until there may be more, None when nothing is left to look after."""
        self._collect()
        now, settings = self.clock(), self.state.settings
        pause = min(ALIVE_SECONDS if self.state.alive is not None else LOOK_SECONDS, settings.stream_stall / 4)
        with self._lock:
            ended = []
            crowded = any(shared.users and shared.source.homeless for shared in self._shared.values())
            for key, shared in list(self._shared.items()):
                if shared.idle_since is None or (shared.users and not shared.source.over):
                    continue
                left = shared.idle_since + settings.stream_linger - now
                if left > 0 and (shared.source.over or not crowded):  # else somebody waits for its place
                    pause = min(pause, left)
                else:
                    del self._shared[key]
                    ended.append(shared.source)
            stalled = [
                seat
                for seat in self._seats
                if not seat.cut and seat.handed is not None and now - seat.handed >= settings.stream_stall
            ]
            done = not self._seats and not self._shared and self._watch is watch
            if done:
                self._watch = self._keeper = None
        for source in ended:
            source.leave()
        for seat in stalled:
            cut = seat.shut_down()
            words = "its connection was shut down" if cut else "its server does not show the connection to shut down"
            self._warn(f"a browser took nothing of its stream for {settings.stream_stall} s; {words}")
        if done:
            watch.close()
            return None
        return pause

    def _end_all(self) -> None:
        """The process is to end: its browsers go on elsewhere."""
        with self._lock:
            seats = [seat for seat in self._seats if not seat.gone]
        for seat in seats:
            seat.leave()

    def _warn(self, words: str) -> None:
        self._logger.warning("rtpool: %s", words)

    def after_fork(self) -> None:
        """In a forked child, which has no browsers: everything there is the parent's."""
        watch, shared = self._watch, list(self._shared.values())
        self._forgotten.clear()
        self._begin()
        with contextlib.ExitStack() as steps:
            if watch is not None:
                steps.callback(watch.inherit)
            for each in shared:
                steps.callback(each.source.inherit)


def _come_back() -> flask.Response:
    """A stream that ends at once. Any other status than 200 would have the browser give up for ever."""
    return EventStream([sse.retry(RETRY_MS)], headers=HEADERS)


def _answer_of(authorize: Authorize | None) -> flask.Response | Any:
    """What `authorize` has for an answer, None when the browser may listen."""
    if authorize is None:
        return None
    verdict = authorize()
    if isinstance(verdict, AnyResponse):
        return verdict
    if verdict is True:
        return None
    if verdict is None or verdict is False:
        return refusal(403, "this stream is not for you\n")
    raise InvalidType(f"authorize must return True, False or a Response, not {type(verdict).__name__}")

"""A pool that nobody closes and nobody refers to is closed by the garbage collector, with one ResourceWarning."""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import rtpool
from rtpool import pool as pool_module
from rtpool.engine.engine import Engine
from rtpool.testing import RealtimeServer
from tests.conftest import MakePool
from tests.support.recorder import Recorder
from tests.support.scripts import run_script
from tests.support.wait import CAP, wait_until

Told = list[warnings.WarningMessage]


class Application:
    """Holds a pool that calls its methods: a cycle through whatever the pool was given."""

    def __init__(self, server: RealtimeServer, **options: Any) -> None:
        self.key, self.heard = server.api_key, threading.Event()
        if options.pop("token", False):
            options["access_token"] = self.token
        self.pool = rtpool.RealtimePool(server.url, api_key=server.api_key, **options)
        self.channel = self.pool.channel("room", receive_own=True)

    def token(self) -> str:
        return self.key

    def listen(self, event: object) -> None:
        self.heard.set()

    def fail(self, event: object) -> None:
        raise LookupError

    def hook(self, error: BaseException, callback: object, event: object) -> None:
        self.heard.set()


def _callback(server: RealtimeServer) -> Application:
    made = Application(server)
    made.channel.on_broadcast("*", made.listen).subscribe()
    return made


def _lambda(server: RealtimeServer) -> Application:
    made = Application(server)
    made.channel.on_broadcast("*", lambda message: made.listen(message)).subscribe()
    made.channel.send_broadcast("x", {})
    assert made.heard.wait(CAP)
    return made


def _decorated(server: RealtimeServer) -> Application:
    made = _callback(server)

    @made.channel.on_status
    def listen(change: object) -> None:
        made.listen(change)

    return made


def _status(server: RealtimeServer) -> Application:
    made = Application(server)
    made.pool.on_status(made.listen)
    made.channel.subscribe()
    return made


def _heartbeat(server: RealtimeServer) -> Application:
    made = Application(server, heartbeat_interval=0.05)
    made.pool.on_heartbeat(made.listen)
    made.channel.subscribe()
    assert made.heard.wait(CAP)
    return made


def _hook(server: RealtimeServer) -> Application:
    silent = logging.getLogger("silent")  # a log record with a traceback refers to what was going on
    silent.propagate = False
    made = Application(server, logger=silent)
    made.pool.on_callback_error(made.hook)
    made.channel.on_broadcast("*", made.fail).subscribe()
    made.channel.send_broadcast("x", {})
    assert made.heard.wait(CAP)
    return made


def _token(server: RealtimeServer) -> Application:
    made = Application(server, token=True)
    made.channel.subscribe()
    return made


def _set_auth(server: RealtimeServer) -> Application:
    made = Application(server)
    made.channel.subscribe()
    made.pool.set_auth(made.token)
    return made


def _push(server: RealtimeServer) -> Application:
    made = Application(server)
    made.channel.subscribe().send_broadcast("x", {}).add_done_callback(made.listen)
    assert made.heard.wait(CAP)
    return made


def _iterator(server: RealtimeServer) -> Application:
    made = Application(server)
    made.channel.subscribe()
    made.events = made.channel.events()  # type: ignore[attr-defined]
    server.broadcast("room", "x", {})
    next(made.events)  # type: ignore[attr-defined]
    return made


def _refused(server: RealtimeServer) -> Application:
    made = Application(server)
    made.channel.on_broadcast("*", made.listen).subscribe()
    server.on_join = lambda topic, payload, connection: {"reason": "no"} if topic == "another" else None
    with pytest.raises(rtpool.RtpoolError) as raised:
        made.pool.channel("another").on_broadcast("*", made.listen).subscribe(timeout=0.2)
    made.error = raised.value  # type: ignore[attr-defined]
    return made


def _without_a_handle(server: RealtimeServer) -> Application:
    made = _callback(server)
    del made.channel
    gc.collect()
    made.heard.clear()
    server.broadcast("room", "x", {})
    assert made.heard.wait(CAP), "the pool keeps the callbacks of what is subscribed"
    return made


CYCLES: dict[str, Callable[[RealtimeServer], Application]] = {
    "a callback": _callback,
    "a callback that ran": _lambda,
    "a decorated listener": _decorated,
    "a status listener": _status,
    "a heartbeat listener": _heartbeat,
    "an error hook": _hook,
    "a token callable": _token,
    "a token callable given later": _set_auth,
    "a push's callback": _push,
    "an iterator": _iterator,
    "an error kept": _refused,
    "a Channel nobody holds": _without_a_handle,
}


@contextlib.contextmanager
def told() -> Iterator[Told]:
    """What warnings were issued, on whatever thread the collector struck."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def collect(forgotten: weakref.ref[Any]) -> None:
    """Collect until it is gone: a callback may be on its way back, and a worker hold it that long."""

    def gone() -> bool:
        gc.collect()
        return forgotten() is None

    wait_until(gone, "something holds it")


def assert_closed(server: RealtimeServer, engine: Engine, caught: Told) -> None:
    assert engine.ended.wait(CAP)
    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith(f"rtpool-{engine.name}-")])
    server.wait_for(lambda s: not s.connections)
    assert [w.category for w in caught] == [ResourceWarning], caught
    words = str(caught[0].message)
    assert words.startswith(f"the pool {engine.name} of {engine.endpoint.url} was never closed"), words
    assert server.api_key not in words


@pytest.mark.parametrize("cycle", CYCLES)
def test_a_pool_is_collected_though_what_it_was_given_refers_to_it(cycle: str, server: RealtimeServer) -> None:
    def use() -> tuple[Engine, weakref.ref[Any]]:
        made = CYCLES[cycle](server)
        return made.pool._engine, weakref.ref(made.pool)

    with told() as caught:
        engine, forgotten = use()
        collect(forgotten)
        assert_closed(server, engine, caught)


def test_a_pool_that_goes_out_of_scope_is_closed_at_once_and_the_warning_names_the_line(
    server: RealtimeServer, caplog: pytest.LogCaptureFixture
) -> None:
    pool = rtpool.RealtimePool(server.url, api_key=server.api_key)
    pool.channel("room").on_broadcast("*", print).subscribe()
    engine = pool._engine
    with told() as caught:
        del pool
        assert_closed(server, engine, caught)
    assert caught[0].filename == __file__
    assert caught[0].source is engine.endpoint
    assert "nobody closed it" in caplog.text, "those who do not look at warnings see it in the log"


@pytest.mark.parametrize("use", ["never used", "closed"])
def test_a_pool_that_holds_nothing_is_forgotten_in_silence(server: RealtimeServer, use: str) -> None:
    pool = rtpool.RealtimePool(server.url, api_key=server.api_key)
    channel = pool.channel("room").on_broadcast("*", print)
    if use == "closed":
        channel.subscribe()
        pool.close()
    forgotten = weakref.ref(pool)
    with told() as caught:
        del pool, channel
        collect(forgotten)
    assert not caught


def test_one_that_nobody_is_to_close_as_well(server: RealtimeServer, caplog: pytest.LogCaptureFixture) -> None:
    pool = rtpool.RealtimePool(server.url, api_key=server.api_key)
    pool._engine.warn_at_exit = False
    pool.channel("room").on_broadcast("*", print).subscribe()
    engine = pool._engine
    with told() as caught:
        del pool
        gc.collect()
        assert engine.ended.wait(10)
    assert not caught
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_channel_keeps_its_pool_alive(server: RealtimeServer) -> None:
    channel = rtpool.RealtimePool(server.url, api_key=server.api_key).channel("room").subscribe()
    gc.collect()
    assert channel.is_subscribed
    assert channel._pool.close()


def test_the_process_wide_pool_is_never_forgotten(server: RealtimeServer) -> None:
    forgotten = weakref.ref(rtpool.get_pool(server.url, api_key=server.api_key))
    with told() as caught:
        gc.collect()
    pool = forgotten()
    assert pool is not None
    assert not caught
    assert pool.close()


def test_callbacks_are_let_go_with_their_subscription(server: RealtimeServer) -> None:
    """Else a pool would hold every callback of every Channel it ever had."""
    made = Application(server)
    forgotten = weakref.ref(made.pool.channel("another").on_broadcast("*", made.listen).subscribe())
    gc.collect()
    (channel,) = (c for c in made.pool.channels() if c.topic == "another")
    assert forgotten() is None or forgotten() is channel
    held = weakref.ref(channel._subscriber.held())
    channel.unsubscribe()
    del channel
    collect(held)
    assert made.pool._kept == set()
    assert made.pool.close()


class Cycle:
    """A used pool that only the collector can find."""

    def __init__(self, server: RealtimeServer) -> None:
        self.pool = rtpool.RealtimePool(server.url, api_key=server.api_key)
        self.pool.cycle = self  # type: ignore[attr-defined]
        self.pool.channel("room").subscribe()


@pytest.fixture
def no_collector() -> Iterator[None]:
    """The collector runs when it is told to, and where."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


LOCKS: dict[str, Callable[[Engine], Any]] = {
    "of the engine": lambda engine: engine._lock,
    "of the dispatcher": lambda engine: engine.dispatcher._lock,
    "of the registry": lambda engine: engine.registry._lock,
    "of the dialer": lambda engine: engine.dialer._lock,
    "of the callers": lambda engine: engine.callers._lock,
    "of the deciders": lambda engine: engine.deciders._lock,
    "of the budget": lambda engine: engine.budget._lock,
    "of all pools": lambda engine: pool_module._pools_lock,
}


@pytest.mark.parametrize("which", LOCKS)
def test_the_collector_may_strike_while_a_lock_of_ours_is_held(
    server: RealtimeServer, which: str, no_collector: None
) -> None:
    cycle = Cycle(server)
    engine = cycle.pool._engine
    lock = LOCKS[which](engine)
    done = threading.Event()

    def strike() -> None:
        with lock:
            gc.collect()
        done.set()

    with told() as caught:
        del cycle
        threading.Thread(target=strike, daemon=True).start()
        assert done.wait(CAP), "the finalizer waits for the lock"
        assert_closed(server, engine, caught)


def test_the_collector_may_strike_on_the_io_thread(server: RealtimeServer, no_collector: None) -> None:
    engine = Cycle(server).pool._engine
    with told() as caught:
        engine.loop.post(gc.collect)
        assert_closed(server, engine, caught)


@pytest.mark.parametrize("how", ["by its last reference", "by the collector"])
def test_a_pool_may_be_forgotten_in_a_callback_on_a_thread_of_its_own(
    server: RealtimeServer, how: str, no_collector: None
) -> None:
    box: dict[str, Any] = {"pool": rtpool.RealtimePool(server.url, api_key=server.api_key)}
    engine = box["pool"]._engine
    heard = Recorder()

    def forget(message: object) -> None:
        if how == "by the collector":
            box["pool"].cycle = box["pool"]
        box.clear()
        gc.collect()
        heard(threading.current_thread().name)

    with told() as caught:
        box["pool"].channel("room").on_broadcast("*", forget).subscribe()
        server.broadcast("room", "x", {})
        (name,) = heard.wait(1)
        assert_closed(server, engine, caught)
    assert name.startswith(f"rtpool-{engine.name}-worker-")


def test_a_warning_that_is_made_an_error_stops_no_closing(
    server: RealtimeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    unraisable = Recorder()
    monkeypatch.setattr("sys.unraisablehook", lambda raised: unraisable(raised.exc_value))
    pool = rtpool.RealtimePool(server.url, api_key=server.api_key)
    pool.channel("room").subscribe()
    engine = pool._engine
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del pool
    assert engine.ended.wait(CAP)
    assert [type(error) for error in unraisable.wait(1)] == [ResourceWarning]
    wait_until(lambda: not engine.loop.join(time.monotonic()))


FORGET = """
def use():
    pool = new_pool()
    pool.channel("room").on_broadcast("*", lambda message: pool).subscribe()
"""


@pytest.mark.parametrize("end", ["use(); gc.collect()", "pool = new_pool(); pool.connect()"])
def test_tracemalloc_tells_where_a_forgotten_pool_was_made(server: RealtimeServer, end: str) -> None:
    tracing = "import tracemalloc\ntracemalloc.start(10)\n"
    ended = run_script(tracing + FORGET + end + "\nready()", server.url, server.api_key)
    assert len(ended.warnings) == 1, ended.err
    assert "Object allocated at (most recent call last):" in ended.err
    assert 'File "<string>", lineno' in ended.err


def test_what_the_collector_closed_is_not_warned_of_again_at_exit(server: RealtimeServer) -> None:
    ended = run_script(FORGET + "use()\ngc.collect()\nready()", server.url, server.api_key)
    assert (ended.code, len(ended.warnings), ended.other_lines) == (0, 1, []), ended
    assert "never closed" in ended.warnings[0]


@pytest.mark.parametrize("end", ["close", "unsubscribe_all", "overflow"])
def test_a_channel_nobody_holds_is_still_told_how_it_ends(
    server: RealtimeServer, make_pool: MakePool, end: str
) -> None:
    pool, heard, release, begun = (
        make_pool(mailbox_limit=2, overflow="close"),
        Recorder(),
        threading.Event(),
        Recorder(),
    )

    def slow(message: object) -> None:
        begun(message)
        assert release.wait(CAP)

    pool.channel("room").on_status(heard).on_broadcast("*", slow).subscribe()
    gc.collect()
    server.broadcast("room", "x", {})
    begun.wait(1)
    if end == "overflow":
        for _ in range(5):
            server.broadcast("room", "x", {})
        server.wait_for(lambda s: not s.members("room"))
    else:
        pool.unsubscribe_all() if end == "unsubscribe_all" else pool.close(timeout=0)
    gc.collect()
    release.set()
    assert heard.wait_for(lambda seen: seen[-1].status == "closed")


def test_ctrl_c_that_strikes_as_a_pool_is_closed_by_the_collector_is_heard(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = rtpool.RealtimePool(server.url, api_key=server.api_key)
    pool.channel("room").subscribe()
    engine, struck = pool._engine, threading.Event()
    interrupt = engine.loop.interrupt

    def strike() -> None:
        if not struck.is_set():
            struck.set()
            raise KeyboardInterrupt
        interrupt()

    monkeypatch.setattr(engine.loop, "interrupt", strike)
    with pytest.raises(KeyboardInterrupt):
        del pool
        gc.collect()
        assert struck.wait(CAP)
        wait_until(lambda: False, "the program goes on")
    assert engine.ended.wait(CAP)

"""The flight recorder and the dump: bounded, without secrets, and to be had at any time, whatever the pool is doing."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import inspect
import io
import json
import logging
import os
import pathlib
import signal
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import rtpool
from rtpool.debug import DumpOnSignal, dump_on_signal
from rtpool.debug.callbacks import Overdue, callbacks_of, calls_of
from rtpool.engine import dump
from rtpool.engine.engine import Engine, engines
from rtpool.engine.flight_recorder import SHOWN, TEXT, Entry, FlightRecorder
from rtpool.engine.mailbox import InHand
from rtpool.testing import RealtimeServer
from tests.conftest import MakePool
from tests.support import checking_lock
from tests.support.forking import Child, Link
from tests.support.recorder import Recorder
from tests.support.secrets_watch import watch
from tests.support.wait import CAP, wait_until

#: Found nowhere.
SECRET = "sb_secret_Zq9xw7kLmNtRv"


def recorded(pool: rtpool.RealtimePool, *events: str) -> list[dict[str, Any]]:
    """The entries of a pool's dump, of some kinds or of all."""
    entries: list[dict[str, Any]] = json.loads(pool.debug_dump(as_json=True))["entries"]
    return [entry for entry in entries if entry["event"] in events or not events]


# What is kept


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_of_each_kind_the_newest_are_kept(size: int, beyond: int) -> None:
    recorder = FlightRecorder(size)
    for number in range(size + beyond):
        recorder.add(logging.INFO, "= number %(number)d", {"number": number})
        recorder.add(logging.INFO, "= number %(number)d of %(topic)s", {"number": number, "topic": "room"})
    for topic in (None, "room"):
        kept = [entry.fields["number"] for entry in recorder.entries() if entry.fields.get("topic") == topic]
        assert kept == list(range(size + beyond))[-size:]


def test_a_storm_of_joins_leaves_what_was_said_of_connections() -> None:
    recorder = FlightRecorder(10)
    recorder.add(logging.WARNING, "! connection %(connection)d lost", {"connection": 1})
    for number in range(1_000):
        recorder.add(logging.DEBUG, "= joined", {"topic": f"room {number}"})
        recorder.add(logging.DEBUG, "< frame", {"connection": 1}, frame=True)
    assert recorder.entries()[0].text == "! connection 1 lost"
    assert len(recorder.entries()) == 11


def test_an_entry_is_no_longer_than_so_many_characters() -> None:
    recorder = FlightRecorder(1)
    recorder.add(logging.INFO, "= " + "%(why)s" * 50, {"why": "x" * 100_000})
    (entry,) = recorder.entries()
    assert len(entry.fields["why"]) == TEXT
    assert len(entry.text) == SHOWN
    assert len(str(entry)) < SHOWN + 100


def test_entries_are_told_while_others_are_added_by_many_threads() -> None:
    recorder, stop, counts = FlightRecorder(200), threading.Event(), Recorder()

    def add() -> None:
        number = 0
        while not stop.is_set():
            recorder.add(logging.INFO, "= number %(number)d", {"number": number})
            number += 1
        counts(number)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(recorder.entries()) == 200)
    for _ in range(300):
        entries = recorder.entries()
        assert len(entries) == 200
        assert [e.monotonic for e in entries] == sorted(e.monotonic for e in entries)
    stop.set()
    for thread in threads:
        thread.join(CAP)
    assert len(counts.wait(4)) == 4


def test_a_look_that_another_thread_disturbs_is_taken_anew() -> None:
    class Disturbed(deque[Entry]):
        looks = 0

        def __iter__(self) -> Iterator[Entry]:
            self.looks += 1
            if self.looks < 3:
                raise RuntimeError("deque mutated during iteration")
            return super().__iter__()

    recorder = FlightRecorder(5)
    recorder._of_pool = entries = Disturbed(maxlen=5)
    recorder.add(logging.INFO, "= here", {})
    assert [entry.text for entry in recorder.entries()] == ["= here"]
    assert entries.looks == 3


def test_a_day_of_a_pool_is_kept_whether_anybody_reads_the_log_or_not(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    silent = logging.getLogger("silent")
    silent.setLevel(logging.CRITICAL)
    pool, gaps = make_pool(logger=silent), Recorder()
    channel = pool.channel("room").on_broadcast("x", lambda m: 1 / 0).on_gap(gaps).subscribe()
    server.connections[0].abort()
    gaps.wait(1)
    server.broadcast("room", "x", {})
    wait_until(lambda: pool.stats().callback_errors == 1)
    pool.set_auth(server.token(sub="me"))
    wait_until(lambda: recorded(pool, "token_renewed"))
    channel.unsubscribe()
    pool.close()
    kinds = [entry["event"] for entry in recorded(pool) if entry["event"] != "pool_started"]
    assert kinds == [
        *["pool_status", "connection_dialing", "connection_open", "pool_status", "joining", "joined"],
        *["connection_lost", "connection_waiting", "pool_status", "connection_dialing", "connection_open"],
        *["pool_status", "joining", "joined", "gap", "callback_raised", "token_renewed", "left"],
        *["connection_closed", "pool_status"],
    ]
    (waiting,) = recorded(pool, "connection_waiting")
    assert waiting["attempt"] == 1
    assert waiting["error"] == "ConnectionFailed"
    assert "division" not in pool.debug_dump(), "of a callback's error the type alone: the rest is the user's"
    silent.setLevel(logging.NOTSET)


def test_a_recorder_of_size_0_keeps_nothing(server: RealtimeServer, make_pool: MakePool) -> None:
    pool = make_pool(recorder_size=0, record_frames=True)
    pool.channel("room").subscribe()
    assert recorded(pool) == []
    assert "the recorder is off" in pool.debug_dump()
    assert pool._engine.logs.recorder is None
    assert not pool._engine.logs.io.tells_frames


# Frames


def test_frames_are_kept_where_asked_elided_and_without_keys_and_tokens(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    watch.learn(SECRET)
    heard, token = Recorder(), server.token(sub="me")
    pool = make_pool(record_frames=True, access_token=token)
    channel = pool.channel("room", receive_own=True, ack=True).on_broadcast("x", heard).subscribe()
    channel.send_broadcast("x", {"a": "b" * 500}).result()
    for secret in (token, server.api_key, SECRET, server.token(sub="somebody else's")):
        channel.send_broadcast("x", {"n": secret}).result()
        channel.send_broadcast("x", {"n": "-" * 8 + secret[:30]}).result()
    heard.wait(9)
    pool.set_auth(server.token(sub="another"))
    server.wait_for(lambda s: [m for m in s.received if m.event == "access_token"])
    wait_until(lambda: any("access_token" in e["text"] for e in recorded(pool, "frame_sent")))
    frames = recorded(pool, "frame_sent", "frame_received")
    assert {entry["level"] for entry in frames} == {"DEBUG"}
    assert all(len(entry.get("data", "").partition("{")[2]) < 75 for entry in frames)
    said = [entry for entry in frames if entry.get("what") == "realtime:room broadcast"]
    assert "bbb" in said[0]["data"]
    assert "***" in said[1]["data"]
    received = [entry for entry in frames if entry["event"] == "frame_received" and '"x"' in entry["data"]]
    assert sum("***" in entry["data"] for entry in received) >= 4
    for event in ("phx_join", "access_token"):
        (sent,) = [entry for entry in frames if entry.get("what") == f"realtime:room {event}"]
        assert "data" not in sent
    for text in (pool.debug_dump(), pool.debug_dump(as_json=True)):
        assert not watch.shows_secret(text)


def test_a_secret_that_is_cut_in_a_frame_is_none_that_is_shown(server: RealtimeServer, make_pool: MakePool) -> None:
    secret = "of-a/header+which has no known form"
    watch.learn(secret)
    pool, heard = make_pool(record_frames=True, headers={"X-Secret": secret}), Recorder()
    channel = pool.channel("room", receive_own=True).on_broadcast("x", heard).subscribe()
    for before in range(0, 60, 3):
        channel.send_broadcast("x", {"n": "-" * before + secret})
    heard.wait(20)
    frames = recorded(pool, "frame_sent", "frame_received")
    assert sum("***" in entry.get("data", "") for entry in frames) >= 4
    assert sum("--" in entry.get("data", "") for entry in frames) >= 30
    assert not watch.shows_secret(str(frames))


def test_a_topic_in_a_frame_acts_on_no_terminal_and_stays_on_its_line(
    server: RealtimeServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(record_frames=True, debug=True)
    with caplog.at_level(logging.DEBUG, "rtpool"):
        pool.channel("a\x1b[31m\nb").subscribe()
    shown = pool.debug_dump() + "\n".join(record.getMessage() for record in caplog.records)
    assert "phx_join" in shown
    assert "\x1b" not in shown
    assert not [line for line in shown.splitlines() if line.startswith("b")]


def test_frames_are_not_kept_unasked(server: RealtimeServer, make_pool: MakePool) -> None:
    pool = make_pool(debug=True)
    pool.channel("room", ack=True).subscribe().send_broadcast("x", {}).result()
    assert recorded(pool, "frame_sent", "frame_received") == []
    assert recorded(pool, "joined")


# The dump


def test_a_dump_has_health_stats_entries_and_where_each_thread_is(server: RealtimeServer, make_pool: MakePool) -> None:
    pool, entered, go_on = make_pool(), threading.Event(), threading.Event()

    def stuck_here(message: rtpool.Broadcast) -> None:
        entered.set()
        go_on.wait(CAP)

    pool.channel("room").on_broadcast("x", stuck_here).subscribe()
    server.broadcast("room", "x", {})
    assert entered.wait(CAP)
    text, told, name = pool.debug_dump(), json.loads(pool.debug_dump(as_json=True)), pool._engine.name
    go_on.set()
    assert text.startswith(f"rtpool pool {name} of {pool._endpoint.url}, process {os.getpid()}, at ")
    assert "  verdict ok" in text
    assert "  total_joins 1" in text
    assert "    connection_id=1 state='open'" in text
    assert "INFO = connection 1 of pool" in text
    assert f"thread rtpool-{name}-io" in text
    stack = text.split("-worker-")
    assert any("in stuck_here" in part for part in stack)
    assert told["process"] == os.getpid()
    assert told["health"]["ok"] is True
    assert told["stats"]["bytes_received"] == pool.stats().bytes_received
    assert any("in stuck_here" in line for stack in told["threads"].values() for line in stack)
    assert f"rtpool-{name}-io" in told["threads"]
    file = io.StringIO()
    assert pool.debug_dump(file, as_json=True) == file.getvalue()


def test_a_dump_goes_into_a_text_file_only(pool: rtpool.RealtimePool) -> None:
    for file in ("a path", 1):
        with pytest.raises(rtpool.InvalidType, match="file must be a text file or None"):
            pool.debug_dump(file)  # type: ignore[arg-type]
    with pytest.raises(rtpool.InvalidType, match="as_json"):
        pool.debug_dump(as_json=1)  # type: ignore[arg-type]


def test_a_pool_that_was_never_started_and_one_that_is_closed_are_dumped(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    assert "no threads" in pool.debug_dump()
    pool.channel("room").subscribe()
    pool.close()
    text = pool.debug_dump()
    assert "no threads" in text
    assert "  verdict down" in text
    assert f"= pool {pool._engine.name} closed" in text


@pytest.mark.parametrize("lock", ["_lock", "registry._lock", "dispatcher._lock", "budget._lock", "dialer._lock"])
@pytest.mark.parametrize("as_json", [False, True])
def test_a_dump_waits_for_no_lock_which_its_own_thread_may_hold(
    pool: rtpool.RealtimePool, lock: str, as_json: bool
) -> None:
    pool.channel("room").subscribe()
    held: Any = pool._engine
    for name in lock.split("."):
        held = getattr(held, name)
    with held:  # as a signal handler finds it that interrupts this thread
        text = pool.debug_dump(as_json=as_json)
    assert "joined" in text
    assert not [found for found in checking_lock.take_violations() if "second lock" in found]


def test_what_cannot_be_had_leaves_out_nothing_else(
    server: RealtimeServer, pool: rtpool.RealtimePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.channel("room").subscribe()

    def fail(*_: Any) -> None:
        raise LookupError("in the middle of something")

    for part, name in (("stats", "stats_of"), ("health", "health_of"), ("threads", "_stacks")):
        with monkeypatch.context() as patched:
            patched.setattr(dump, name, fail)
            told = json.loads(pool.debug_dump(as_json=True))
            assert told[part] == "could not be had: LookupError('in the middle of something')"
            assert told["entries"]
            text = pool.debug_dump()
            assert "could not be had: LookupError" in text
            assert "= 'room' joined" in text


def test_a_dump_shows_no_secret_even_where_a_server_repeated_one(server: RealtimeServer, make_pool: MakePool) -> None:
    watch.learn(SECRET)
    pool = make_pool(headers={"X-Secret": f"Bearer {SECRET}"}, params={"auth": "of-a-parameter"})
    pool.channel("room").subscribe()
    pool._engine.logs.io.note("joined", "= told %(why)s", why=f"{server.api_key} {SECRET} of-a-parameter")
    for text in (pool.debug_dump(), pool.debug_dump(as_json=True)):
        assert "= told *** *** ***" in text
        assert not watch.shows_secret(text)


def test_a_forked_child_dumps_a_pool_of_its_own(server: RealtimeServer, make_pool: MakePool) -> None:
    pool = make_pool()
    pool.channel("room").subscribe()

    def body(link: Link) -> None:
        link.tell((os.getpid(), pool.debug_dump(), recorded(pool)))

    with Child(body) as child:
        process, text, entries = child.told()
    assert f"process {process}, at" in text
    assert "no threads" in text
    assert [entry["event"] for entry in entries] == ["pool_forked"]
    assert entries[0]["child"] == process
    assert "= 'room' joined" in pool.debug_dump(), "the parent's has what was before"


# At a signal


@pytest.fixture
def dumping() -> Iterator[Callable[..., DumpOnSignal]]:
    """`dump_on_signal`, undone at the end."""
    made: list[DumpOnSignal] = []
    before = signal.getsignal(signal.SIGUSR1)

    def begin(*args: Any, **named: Any) -> DumpOnSignal:
        made.append(dump_on_signal(*args, **named))
        return made[-1]

    yield begin
    for each in reversed(made):
        each.restore()
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_dumps_every_pool_and_where_the_main_thread_was(
    server: RealtimeServer, make_pool: MakePool, dumping: Callable[..., DumpOnSignal], tmp_path: pathlib.Path
) -> None:
    gc.collect()
    pools = [make_pool() for _ in range(2)]
    pools[0].channel("room").subscribe()
    pools[1].close()
    path = tmp_path / "dump"
    with path.open("w") as file, dumping(file=file):
        os.kill(os.getpid(), signal.SIGUSR1)
        text = path.read_text()
    told = [f"rtpool pool {pool._engine.name} of" for pool in pools]
    assert [text.count(each) for each in told] == [1, 1]
    assert text.index(told[0]) < text.index(told[1])
    assert "= 'room' joined" in text
    assert f"the main thread of process {os.getpid()}" in text
    assert "in test_a_signal_dumps_every_pool_and_where_the_main_thread_was" in text
    assert not watch.shows_secret(text)


def test_a_signal_gives_json_by_the_line_and_writes_where_there_is_no_descriptor(
    server: RealtimeServer, pool: rtpool.RealtimePool, dumping: Callable[..., DumpOnSignal]
) -> None:
    pool.channel("room").subscribe()
    file = io.StringIO()
    dumping(signal.SIGUSR2, file, as_json=True).restore()
    with dumping(signal.SIGUSR1, file, as_json=True):
        os.kill(os.getpid(), signal.SIGUSR1)
    told = [json.loads(line) for line in file.getvalue().splitlines()]
    assert pool._engine.name in [each["pool"] for each in told]


def test_without_a_file_a_signal_writes_to_stderr(
    pool: rtpool.RealtimePool, dumping: Callable[..., DumpOnSignal], capfd: pytest.CaptureFixture[str]
) -> None:
    dumping()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert f"rtpool pool {pool._engine.name} of" in capfd.readouterr().err


def test_the_handler_from_before_is_called_and_comes_back(dumping: Callable[..., DumpOnSignal]) -> None:
    signals = []

    def before(signum: int, frame: object) -> None:
        signals.append(signum)

    signal.signal(signal.SIGUSR1, before)
    file = io.StringIO()
    handle = dumping(file=file)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert signals == [signal.SIGUSR1]
    size = len(file.getvalue())
    assert size
    handle.restore()
    assert signal.getsignal(signal.SIGUSR1) is before
    os.kill(os.getpid(), signal.SIGUSR1)
    assert signals == [signal.SIGUSR1] * 2
    assert len(file.getvalue()) == size


def test_who_set_a_handler_meanwhile_keeps_it_and_hears_of_no_dump(dumping: Callable[..., DumpOnSignal]) -> None:
    file = io.StringIO()
    handle = dumping(file=file)
    ours = signal.getsignal(signal.SIGUSR1)
    assert callable(ours)

    def later(signum: int, frame: Any) -> None:
        ours(signum, frame)

    signal.signal(signal.SIGUSR1, later)
    handle.restore()
    assert signal.getsignal(signal.SIGUSR1) is later
    os.kill(os.getpid(), signal.SIGUSR1)
    assert file.getvalue() == ""


def test_two_that_are_restored_in_the_order_of_their_making_leave_nothing(
    dumping: Callable[..., DumpOnSignal],
) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    first, second = dumping(), dumping()
    first.restore()
    second.restore()
    assert signal.getsignal(signal.SIGUSR1) is before


def test_a_signal_that_comes_during_a_dump_starts_no_other(dumping: Callable[..., DumpOnSignal]) -> None:
    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            written.append(text)
            if len(written) < 5:
                signal.raise_signal(signal.SIGUSR1)
            return 0

    written: list[str] = []
    dumping(file=Slow())
    signal.raise_signal(signal.SIGUSR1)
    assert len(written) == 1
    signal.raise_signal(signal.SIGUSR1)
    assert len(written) == 2, "later ones do"


@pytest.mark.parametrize("look", [lambda pool: engines(), lambda pool: pool.debug_dump()], ids=["engines", "dump"])
def test_a_look_near_the_recursion_limit_returns(look: Callable[[Any], Any], pool: rtpool.RealtimePool) -> None:
    def deeper() -> None:
        try:
            look(pool)
        except RecursionError:
            return
        deeper()

    faulthandler.dump_traceback_later(CAP, exit=True)  # one that does not end cannot be failed otherwise
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 150)
    try:
        with contextlib.suppress(RecursionError):
            deeper()
    finally:
        sys.setrecursionlimit(limit)
        faulthandler.cancel_dump_traceback_later()


def test_a_dump_holds_nobodys_variables(pool: rtpool.RealtimePool) -> None:
    class Large:
        pass

    def caller() -> weakref.ref[Large]:
        large = Large()
        pool.debug_dump()
        assert work.several
        assert callbacks_of([work]) == {}, "it is in none"
        assert calls_of([Overdue(work, 1.0, None)], 0.0, str) == []
        return weakref.ref(large)

    channel = pool.channel("room").on_broadcast("x", print).on_broadcast("*", repr)
    event = rtpool.Broadcast("room", "x", {})
    work = InHand(channel._subscriber.mailbox, threading.get_ident(), 0.0, (0, 0), True, event)
    gc.collect()
    gc.disable()
    try:
        assert caller()() is None
    finally:
        gc.enable()


def test_what_goes_wrong_with_the_file_is_not_raised_in_the_program(dumping: Callable[..., DumpOnSignal]) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "no space left")

    called: list[int] = []
    signal.signal(signal.SIGUSR1, lambda signum, frame: called.append(signum))
    dumping(file=Broken())
    os.kill(os.getpid(), signal.SIGUSR1)
    assert called == [signal.SIGUSR1]


def test_where_it_cannot_work_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(rtpool.InvalidValue, match="cannot be handled"):
        dump_on_signal(signal.SIGKILL)
    with pytest.raises(rtpool.InvalidType, match="text file"):
        dump_on_signal(file="a path")  # type: ignore[arg-type]
    raised = Recorder()

    def elsewhere() -> None:
        try:
            dump_on_signal()
        except rtpool.InvalidValue as error:
            raised(str(error))

    thread = threading.Thread(target=elsewhere, name="another")
    thread.start()
    thread.join(CAP)
    assert raised.events == ["dump_on_signal() works in the main thread only, and this is 'another'"]
    monkeypatch.delattr(signal, "SIGUSR1")
    with pytest.raises(rtpool.InvalidValue, match="Windows"):
        dump_on_signal()


def test_the_engines_there_are_can_be_asked_for_within_a_lock(pool: rtpool.RealtimePool) -> None:
    assert pool._engine in engines()
    assert all(isinstance(engine, Engine) for engine in engines())

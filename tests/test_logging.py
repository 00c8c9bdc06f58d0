"""What a pool logs: which lines, how grave, with which fields, in each situation against a real server."""

from __future__ import annotations

import ast
import base64
import logging
import pathlib
import re
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest

import rtpool
from rtpool.debug import Debugger
from rtpool.engine import logs
from rtpool.engine.routing import Router
from rtpool.testing import JoinRefusal, RealtimeServer, Refusal, faults
from tests.conftest import MakePool
from tests.support.lines import OF_RECORDS, Lines
from tests.support.recorder import Recorder
from tests.support.wait import wait_until

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What the pool of this test logs, given as its `logger`."""
    kept = Lines()
    yield kept
    kept.logger.removeHandler(kept)


def grave(lines: Lines) -> list[tuple[str, str, Any]]:
    """All that is worth a line at WARNING or above."""
    return [line.short for line in lines.all if line.level in ("WARNING", "ERROR")]


# A quiet life


def test_the_life_of_a_pool_is_told_line_by_line(server: RealtimeServer, make_pool: MakePool, lines: Lines) -> None:
    pool = make_pool(logger=lines.logger)
    with pool.channel("room"):
        pass
    pool.close()
    name, url = pool._engine.name, pool._endpoint.url
    told = [(line.room, line.level, line.text) for line in lines.all if line.event != "pool_started"]
    assert told == [
        ("pool", "INFO", f"= pool {name} connecting"),
        ("io", "DEBUG", f"= connection 1 of pool {name} is dialled, attempt 1"),
        ("io", "INFO", f"= connection 1 of pool {name} open to {url}"),
        ("pool", "INFO", f"= pool {name} connected"),
        ("session", "DEBUG", "= 'room' joining on connection 1"),
        ("session", "DEBUG", "= 'room' joined on connection 1"),
        ("session", "DEBUG", "= 'room' left"),
        ("io", "INFO", f"= connection 1 of pool {name} closed"),
        ("pool", "INFO", f"= pool {name} closed"),
    ]
    (started,) = lines.of("pool_started")  # by the caller's thread, at the same time
    assert started[:3] == ("pool", "INFO", f"= pool {name} started for {url}")
    assert {line.fields["pool"] for line in lines.all} == {name}
    assert lines.of("connection_open")[0].fields == {
        "event": "connection_open",
        "pool": name,
        "connection": 1,
        "url": url,
    }
    assert lines.of("joining")[0].fields == {
        "event": "joining",
        "pool": name,
        "connection": 1,
        "topic": "room",
        "attempt": 1,
    }
    assert lines.of("left")[0].fields == {"event": "left", "pool": name, "topic": "room"}


def test_messages_are_told_with_the_option_debug_alone(
    server: RealtimeServer, make_pool: MakePool, lines: Lines
) -> None:
    heard = Recorder()
    for debug in (False, True):
        pool = make_pool(logger=lines.logger, debug=debug, record_frames=True)
        pool.channel("room", receive_own=True).on_broadcast("x", heard).subscribe().send_broadcast("x", {"a": 1})
        heard.wait(1 + debug)
        assert bool(lines.of("frame_sent", "frame_received")) is debug
    sent = next(line for line in lines.of("frame_sent") if line.fields["what"] == "realtime:room broadcast")
    assert sent[:2] == ("io", "DEBUG")
    assert sent.text == f"> 1 realtime:room broadcast ref {sent.fields['ref']}, {sent.fields['bytes']} bytes"
    assert set(sent.fields) == {"event", "pool", "connection", "what", "ref", "bytes"}, "no payload: it may be a token"
    received = lines.of("frame_received")[-1]
    assert set(received.fields) == {"event", "pool", "connection", "bytes", "data"}
    assert received.fields["data"].startswith("[")
    assert len(received.fields["data"].partition("{")[2]) < 75


# Connections in trouble


def test_a_lost_connection_is_told_with_what_happens_next_and_what_may_be_lost(
    server: RealtimeServer, make_pool: MakePool, lines: Lines
) -> None:
    pool, gaps = make_pool(logger=lines.logger), Recorder()
    for _ in range(3):
        pool.channel("room").on_gap(gaps).subscribe()
    before = len(lines.all)
    server.connections[0].abort()
    gaps.wait(3)
    lines.wait("gap")
    assert [line.short for line in lines.all[before:] if line.level != "DEBUG"] == [
        ("io", "WARNING", "connection_lost"),
        ("io", "WARNING", "connection_waiting"),
        ("pool", "INFO", "pool_status"),
        ("io", "INFO", "connection_open"),
        ("pool", "INFO", "pool_status"),
        ("session", "WARNING", "gap"),
    ]
    lost, waiting, gap = lines.of("connection_lost", "connection_waiting", "gap")
    assert lost.text.startswith(f"! connection 1 of pool {pool._engine.name} lost: connection 1 to ws://")
    assert lost.fields["error"] == "ConnectionFailed"
    assert lost.fields["connection"] == 1
    assert lost.fields["cause"] == "transport"
    assert lost.fields["why"] in lost.text
    assert waiting.fields["attempt"] == 1
    assert 0 <= waiting.fields["delay"] <= 0.05
    assert waiting.text.endswith(f"is dialled in {waiting.fields['delay']:.2f} s, attempt 1")
    assert gap.fields["topic"] == "room"
    assert gap.fields["cause"] == "transport"
    assert gap.fields["channels"] == 3, "one line for all Channels of a join"
    told = [datetime.fromisoformat(gap.fields[name]) for name in ("lost_from", "lost_to")]
    assert told == [min(g.lost_from for g in gaps.events), max(g.lost_to for g in gaps.events)]
    assert gap.text == "! 'room' may lack messages from {lost_from} to {lost_to} (transport)".format(**gap.fields)


def test_every_attempt_is_told_until_the_connection_is_given_up(
    server: RealtimeServer, make_pool: MakePool, lines: Lines
) -> None:
    server.on_connect = lambda request: Refusal(503, "busy", delay=0)
    pool = make_pool(logger=lines.logger, max_retries=3, base_delay=0.001)
    pool.channel("room").subscribe(wait=False)
    error = lines.wait("connection_error")
    assert [line.event for line in lines.all if line.room == "io"] == [
        *["connection_dialing", "connection_failed", "connection_waiting"],
        *["connection_dialing", "connection_failed", "connection_waiting"],
        *["connection_dialing", "connection_failed", "connection_error"],
    ]
    assert [line.fields["attempt"] for line in lines.of("connection_dialing")] == [1, 2, 3]
    assert [line.fields["attempt"] for line in lines.of("connection_waiting")] == [2, 3]
    assert {line.level for line in lines.of("connection_failed", "connection_waiting")} == {"WARNING"}
    assert error.level == "WARNING"
    assert error.fields["attempt"] == 3
    assert error.fields["code"] == 503
    assert error.fields["error"] == "HandshakeRefused"
    assert 15 <= error.fields["delay"] <= 30, "the health check's"
    assert error.text.endswith(f"given up after attempt 3, dialled again in {error.fields['delay']:.2f} s")
    assert [line.text.split()[-1] for line in lines.of("pool_status")] == ["connecting", "reconnecting", "error"]


def test_what_cannot_succeed_is_told_as_never_tried_again(
    server: RealtimeServer, make_pool: MakePool, lines: Lines
) -> None:
    server.on_connect = lambda request: Refusal(401, "no", delay=0)
    make_pool(logger=lines.logger).channel("room").subscribe(wait=False)
    error = lines.wait("connection_error")
    assert error.fields["delay"] is None
    assert error.text.endswith("given up after attempt 1, nothing is dialled by itself")
    assert not lines.of("connection_waiting")


def test_a_server_that_asks_for_patience_is_heeded_by_all_and_it_is_told(
    server: RealtimeServer, make_pool: MakePool, lines: Lines
) -> None:
    refusal = Refusal(503, "busy", headers={"Retry-After": "600"}, delay=0)
    server.on_connect = lambda request: refusal if server.connections else None
    pool = make_pool(logger=lines.logger, max_channels_per_connection=1)
    pool.channel("a").subscribe()
    pool.channel("b").subscribe(wait=False)
    assert lines.wait("connection_waiting").fields["delay"] >= 600
    pool.channel("c").subscribe(wait=False)
    third = lines.wait("connection_waiting", 2)
    assert third.level == "DEBUG"
    assert third.fields["connection"] == 3
    assert third.text.endswith("as the server asked")


def test_frames_that_nobody_can_read_are_told_now_and_then(
    server: RealtimeServer, make_pool: MakePool, lines: Lines
) -> None:
    pool = make_pool(logger=lines.logger)
    pool.channel("room").subscribe()
    for _ in range(5):
        server.inject(faults.WrongArity(), on=faults.Sending("broadcast", topic="room"))
        server.broadcast("room", "x", {})
    wait_until(lambda: pool.stats().messages_unheard == 5)
    (dropped,) = lines.of("frame_dropped")
    assert dropped.short == ("io", "WARNING", "frame_dropped")
    assert dropped.fields["connection"] == 1
    assert dropped.fields["untold"] == 0
    assert dropped.fields["error"] == "ProtocolError"


# Joins


@pytest.mark.parametrize(
    ("reason", "code", "again"),
    [
        ("Unauthorized: You do not have permissions to read from this Channel topic: room", "Unauthorized", False),
        ("QueryCanceled: slow", "QueryCanceled", True),
    ],
    ids=["for good", "for a while"],
)
def test_a_refused_join_is_told_with_the_servers_words(
    server: RealtimeServer, make_pool: MakePool, lines: Lines, reason: str, code: str, again: bool
) -> None:
    server.on_join = lambda *_: JoinRefusal(reason, delay=0)
    make_pool(logger=lines.logger).channel("room").subscribe(wait=False)
    refused = lines.wait("join_refused")
    assert refused.short == ("session", "WARNING", "join_refused")
    wanted = {"topic": "room", "connection": 1, "error": "JoinRefused", "code": code}
    assert {name: refused.fields[name] for name in wanted} == wanted
    assert refused.fields["reason"] == reason.removeprefix(f"{code}: ")
    assert refused.text.startswith(f"! 'room' not joined: the server refused 'room': {reason}")
    if again:
        assert refused.fields["attempt"] == 2
        assert refused.text.endswith(f"asked again in {refused.fields['delay']:.2f} s, attempt 2")
        assert lines.wait("join_refused", 2).fields["attempt"] == 3
    else:
        assert refused.fields["delay"] is None
        assert "again in" not in refused.text


def test_a_join_without_an_answer_is_told(server: RealtimeServer, make_pool: MakePool, lines: Lines) -> None:
    server.on_join = lambda *_: rtpool.testing.NO_REPLY
    make_pool(logger=lines.logger, join_timeout=0.05).channel("room").subscribe(wait=False)
    late = lines.wait("join_refused")
    assert late.fields["error"] == "JoinTimeout"
    assert late.fields["delay"] > 0


def test_a_channel_that_the_server_ends_is_told(server: RealtimeServer, make_pool: MakePool, lines: Lines) -> None:
    pool, gaps = make_pool(logger=lines.logger), Recorder()
    pool.set_auth(server.token(sub="me"))
    pool.channel("room").on_gap(gaps).subscribe()
    server.expire_tokens("room")
    ended = lines.wait("join_refused")
    assert "Token has expired" in ended.text
    pool.set_auth(server.token(sub="another"))
    assert lines.wait("gap").fields["cause"] == "token"
    gaps.wait(1)


def test_a_join_that_has_no_room_is_told_once(server: RealtimeServer, make_pool: MakePool, lines: Lines) -> None:
    pool = make_pool(logger=lines.logger, max_connections=1, max_channels_per_connection=1)
    pool.channel("one").subscribe()
    with pytest.raises(rtpool.PoolExhausted):
        pool.channel("two").subscribe()
    (homeless,) = lines.of("join_refused")
    assert homeless.level == "WARNING"
    assert homeless.fields["error"] == "PoolExhausted"
    assert homeless.fields["topic"] == "two"
    assert homeless.fields["connection"] is None
    assert homeless.text.startswith("- no room for 'two'")


def test_a_socket_that_is_full_is_told(server: RealtimeServer, make_pool: MakePool, lines: Lines) -> None:
    refusal = JoinRefusal("ChannelRateLimitReached: Too many channels", delay=0)
    server.on_join = lambda topic, payload, connection: refusal if connection is server.connections[0] else None
    pool = make_pool(logger=lines.logger)
    pool.channel("room").subscribe()
    elsewhere = lines.wait("join_elsewhere")
    assert elsewhere.short == ("session", "WARNING", "join_elsewhere")
    assert elsewhere.fields["connection"] == 1
    assert elsewhere.text.startswith("- 'room' leaves connection 1 for another: ")


def test_refused_changes_are_told(server: RealtimeServer, make_pool: MakePool, lines: Lines) -> None:
    pool = make_pool(logger=lines.logger)
    channel = pool.channel("room").on_postgres_changes("*", print, table="ghosts", filter="nothing=eq.1")
    server.table("ghosts", {"id": "int8"})
    with pytest.raises(rtpool.JoinRefused):
        channel.subscribe()
    refused = lines.wait("changes_refused")
    assert refused.short == ("session", "WARNING", "changes_refused")
    assert refused.fields["topic"] == "room"
    assert refused.text.startswith("! the changes of 'room': ")


# Tokens


def test_another_token_is_told_and_never_shown(server: RealtimeServer, make_pool: MakePool, lines: Lines) -> None:
    pool = make_pool(logger=lines.logger)
    for name in ("room", "hall"):
        pool.channel(name).subscribe()
    pool.set_auth(server.token(sub="new"))
    renewed = lines.wait("token_renewed")
    assert renewed[:3] == ("session", "DEBUG", "= another access token for 2 joins")
    assert renewed.fields["joins"] == 2


def test_a_token_callable_that_fails_or_repeats_itself_is_told(
    server: RealtimeServer, make_pool: MakePool, lines: Lines
) -> None:
    working, token = threading.Event(), server.token(sub="me")

    def ask() -> str:
        if not working.is_set():
            raise LookupError("no store")
        return token

    pool = make_pool(logger=lines.logger, access_token=ask)
    pool.channel("room").subscribe(wait=False)
    failed = lines.wait("token_unavailable")
    assert failed.short == ("session", "WARNING", "token_unavailable")
    assert failed.text == "! no access token: the access_token callable failed: LookupError; it is asked again"
    assert failed.fields["reason"] == "LookupError"
    working.set()
    wait_until(lambda: pool.stats().active_subscriptions == 1)
    server.expire_tokens("room")
    sought = lines.wait("token_sought")
    assert sought.level == "WARNING"
    assert sought.fields["delay"] > 0
    assert sought.fields["attempt"] >= 1


# Callbacks


def test_a_callback_that_raises_is_told_with_its_traceback(
    server: RealtimeServer, make_pool: MakePool, lines: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    def careless(message: rtpool.Broadcast) -> None:
        raise LookupError("nothing there")

    make_pool(logger=lines.logger).channel("room").on_broadcast("x", careless).subscribe()
    server.broadcast("room", "x", {})
    raised = lines.wait("callback_raised")
    assert raised[:2] == ("pool", "ERROR")
    name = careless.__qualname__
    assert raised.text == f"! callback {name!r} of 'room' raised LookupError"
    wanted = {"callback": name, "where": "'room'", "error": "LookupError"}
    assert {field: raised.fields[field] for field in wanted} == wanted
    wait_until(lambda: "LookupError: nothing there" in caplog.text)  # another handler, which comes later
    assert "in careless" in caplog.text


def test_a_callback_whose_exception_names_a_key_is_told_without_it(
    server: RealtimeServer, make_pool: MakePool, lines: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    def careless(message: rtpool.Broadcast) -> None:
        raise LookupError(f"nothing at /rest/v1/cars?apikey={server.api_key}")

    make_pool(logger=lines.logger).channel("room").on_broadcast("x", careless).subscribe()
    server.broadcast("room", "x", {})
    raised = lines.wait("callback_raised")
    assert raised.fields["error"] == "LookupError"
    assert raised.text.endswith("LookupError: nothing at /rest/v1/cars?apikey=***")
    assert "in careless" in raised.text
    wait_until(lambda: "cars?apikey=***" in caplog.text)  # another handler, which comes later
    assert server.api_key not in caplog.text


@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest"])
def test_a_full_mailbox_is_told_when_it_begins_to_lose_and_no_flood_of_losses_is_a_flood_of_lines(
    server: RealtimeServer, make_pool: MakePool, lines: Lines, policy: str
) -> None:
    pool, gaps = make_pool(logger=lines.logger, mailbox_limit=2, overflow=policy), Recorder()
    entered, go_on = Gate(), Gate()
    pool.channel("room").on_broadcast("x", lambda m: entered.open() or go_on.wait()).on_gap(gaps).subscribe()
    server.broadcast("room", "x", {})
    entered.wait()
    for _ in range(10):
        server.broadcast("room", "x", {})
    full = lines.wait("overflow")
    assert full.short == ("dispatch", "WARNING", "overflow")
    assert full.text == f"! 'room' loses events: 2 wait for its callbacks already, and the policy is {policy}"
    assert full.fields["limit"] == 2
    assert full.fields["dropped"] >= 1
    assert not lines.of("gap"), "it is known only when the callback returns"
    wait_until(lambda: pool.stats().messages_received >= 12)
    go_on.open()
    gaps.wait(1)
    gap = lines.wait("gap")
    assert gap.room == "dispatch"
    assert gap.fields["cause"] == "overflow"
    assert gap.fields["lost"] >= 1
    go_on.close()
    for _ in range(200):
        server.broadcast("room", "x", {})
    wait_until(lambda: pool.stats().messages_received >= 212)
    go_on.open()
    gaps.wait(2)
    assert len(lines.of("overflow")) == len(lines.of("gap")) == 1


@pytest.mark.parametrize("field", ["why", "reason"])
def test_a_key_that_a_server_repeats_in_its_refusal_is_in_no_line(lines: Lines, field: str) -> None:
    of_pool = logs.Logs(rtpool.PoolOptions(logger=lines.logger), "1", "opaque-secret")
    error = rtpool.JoinRefused("bad token opaque-secret", code="x", reason="no opaque-secret here")
    of_pool.session.warning("join_refused", "! %(why)s", error=error)
    assert "***" in lines.all[0].fields[field]
    assert "opaque-secret" not in str(lines.all[0])


def test_a_proxys_credentials_are_hidden_as_they_are_sent() -> None:
    hide = logs.Logs(rtpool.PoolOptions(proxy="http://me:pass%20word@127.0.0.1:1"), "1").hide
    sent = base64.b64encode(b"me:pass word").decode()
    assert hide(f"HTTP/1.1 403 no Basic {sent}, pass word, pass%20word") == "HTTP/1.1 403 no Basic ***, ***, ***"


@pytest.mark.parametrize("how", ["callable", "set_auth", "channel"])
def test_a_token_that_came_later_and_that_a_server_repeats_is_in_no_line_and_no_dump(
    server: RealtimeServer, make_pool: MakePool, lines: Lines, how: str
) -> None:
    secret = f"opaque-secret-{how}"
    given: dict[str, Any] = {"access_token": lambda: secret} if how == "callable" else {}
    pool = make_pool(logger=lines.logger, debug=True, record_frames=True, **given)
    if how == "set_auth":
        pool.set_auth(secret)
    server.on_join = lambda *_: JoinRefusal(f"bad token {secret}")
    own: dict[str, Any] = {"access_token": secret} if how == "channel" else {}
    pool.channel("room", **own).subscribe(wait=False)
    assert "bad token ***" in lines.wait("join_refused").text
    assert secret not in str(lines.all)
    assert secret not in pool.debug_dump()
    assert secret not in str(pool.health())
    assert secret not in str(Debugger(pool, not_ready_after=0.001).issues())


def test_a_flood_about_more_subjects_than_are_remembered_is_no_flood_of_lines(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=lambda: now))
    log, subjects, rounds = logs.Log(lines.logger), logs.SUBJECTS + 500, 5
    for _ in range(rounds):
        for subject in range(subjects):
            log.rarely(subject, "overflow", "! %(subject)d", subject=subject)
        now += 1.0
    assert len(lines.all) == logs.SUBJECTS + 1
    assert len(log._told) <= logs.SUBJECTS + 1
    log.rarely("another", "gap", "! another kind of line")
    assert lines.all[-1].event == "gap"
    now += logs.RARELY
    for subject in range(subjects):
        log.rarely(-1 - subject, "overflow", "! %(subject)d", subject=subject)
    assert len(log._told) <= logs.SUBJECTS + 2, "they are forgotten in time"
    told = len(lines.of("overflow")) + sum(line.fields["untold"] for line in lines.of("overflow"))
    told += sum(untold for (event, _), (_, untold) in log._told.items() if event == "overflow")
    assert told == (rounds + 1) * subjects, "what is not told is counted"


class Gate:
    """What callbacks wait at."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self.open, self.close = self._open.set, self._open.clear

    def wait(self) -> None:
        assert self._open.wait(15)


def test_a_channel_that_is_closed_because_it_fell_behind_is_told(
    server: RealtimeServer, make_pool: MakePool, lines: Lines
) -> None:
    pool, go_on = make_pool(logger=lines.logger, mailbox_limit=2, overflow="close"), Gate()
    pool.channel("room").on_broadcast("x", lambda m: go_on.wait()).subscribe()
    for _ in range(10):
        server.broadcast("room", "x", {})
    closed = lines.wait("overflow")
    go_on.open()
    assert closed.short == ("dispatch", "WARNING", "overflow")
    assert closed.fields["error"] == "MailboxOverflow"
    assert closed.text.startswith("! 'room' fell 2 events behind")
    assert lines.wait("gap").fields["cause"] == "overflow"


# The end


def test_a_thread_that_does_not_end_is_told_by_name(server: RealtimeServer, make_pool: MakePool, lines: Lines) -> None:
    pool, go_on, entered = make_pool(logger=lines.logger), Gate(), Gate()
    pool.channel("room").on_broadcast("x", lambda m: entered.open() or go_on.wait()).subscribe()
    server.broadcast("room", "x", {})
    entered.wait()
    assert not pool.close(0.05)
    go_on.open()
    left = lines.wait("thread_left")
    assert left.level == "WARNING"
    assert left.fields["left"].startswith(f"rtpool-{pool._engine.name}-")
    assert left.fields["timeout"] == 0.05


# What should not be


def test_what_is_not_understood_is_told_with_what_happened_before_once(
    server: RealtimeServer, make_pool: MakePool, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, heard = make_pool(logger=lines.logger), Recorder()
    channel = pool.channel("room").on_broadcast("x", heard).subscribe()

    def fail(*_: Any) -> None:
        raise LookupError("a bug")

    monkeypatch.setattr(Router, "route", fail)
    for _ in range(2):
        server.push("room", "anything", {})
    second = lines.wait("not_understood", 2)
    first = lines.of("not_understood")[0]
    assert first.short == ("session", "ERROR", "not_understood")
    head, before = first.text.split("; before that:\n")
    assert head == "! a message 'anything' on 'room' could not be understood" == second.text
    assert "INFO = connection 1 of pool" in before
    assert before.splitlines()[-1].endswith("DEBUG = 'room' joined on connection 1")
    assert "before" not in first.fields
    monkeypatch.undo()
    server.broadcast("room", "x", {})
    heard.wait(1)
    assert channel.is_subscribed


def test_the_failure_of_the_io_thread_is_told_with_what_happened_before(
    server: RealtimeServer, make_pool: MakePool, lines: Lines
) -> None:
    pool = make_pool(logger=lines.logger)
    pool.channel("room").subscribe()

    def fail() -> None:
        raise LookupError("a bug")

    pool._engine.loop.post(fail)
    failed = lines.wait("io_failed")
    assert failed.short == ("io", "ERROR", "io_failed")
    assert failed.fields["error"] == "LookupError"
    assert "= 'room' joined on connection 1" in failed.text
    closed = lines.wait("connection_closed")
    assert closed.fields["connection"] == 1
    assert "io_failed" in pool.debug_dump(as_json=True), "and it is in the dump of the closed pool"


# How it is written


def test_a_line_is_attributed_to_the_place_that_wrote_it(server: RealtimeServer, make_pool: MakePool) -> None:
    places = Recorder()

    class Places(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            places((record.event, record.filename))  # type: ignore[attr-defined]

    logger = logging.getLogger("places")
    logger.addHandler(Places())
    make_pool(logger=logging.LoggerAdapter(logger, {})).channel("room").subscribe()
    places.wait_for(lambda events: ("joined", "joining.py") in events)
    assert ("connection_open", "connections.py") in places.events
    assert ("pool_status", "engine.py") in places.events
    logger.handlers.clear()


class Replacing(logging.LoggerAdapter):  # type: ignore[type-arg]
    """What adapters do before Python 3.13: their own fields are put in the place of those of the call."""

    def process(self, msg: Any, kwargs: Any) -> Any:
        kwargs["extra"] = self.extra
        return msg, kwargs


@pytest.mark.parametrize("wrap", [lambda a: a, lambda a: Replacing(a, {"team": "x"})], ids=["one", "one in another"])
def test_an_adapter_that_replaces_extra_keeps_our_fields(
    server: RealtimeServer, make_pool: MakePool, lines: Lines, wrap: Callable[[Any], Any]
) -> None:
    pool = make_pool(logger=wrap(Replacing(lines.logger, {"tenant": 7, "pool": "theirs"})))
    pool.channel("room").subscribe()
    fields = lines.wait("joined").fields
    assert fields["tenant"] == 7
    assert fields["topic"] == "room"
    assert fields["pool"] == "theirs", "who says it twice means it"


def test_handlers_that_raise_harm_nothing_and_it_is_told(
    server: RealtimeServer, make_pool: MakePool, capfd: pytest.CaptureFixture[str]
) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("no disk")

    logger, handler = logging.getLogger("broken"), Broken()
    logger.addHandler(handler)
    pool, heard, gaps = make_pool(logger=logger), Recorder(), Recorder()
    pool.channel("room").on_broadcast("x", heard).on_gap(gaps).subscribe()
    server.connections[0].abort()
    gaps.wait(1)
    server.broadcast("room", "x", {})
    heard.wait(1)
    assert pool.close()
    logger.removeHandler(handler)
    assert "the logger of a pool raised RuntimeError('no disk')" in capfd.readouterr().err
    assert "= 'room' joined on connection 1" in pool.debug_dump(), "the recorder has what the log has not"


def test_a_handler_that_would_end_the_thread_ends_none(server: RealtimeServer, make_pool: MakePool) -> None:
    class Ending(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if threading.current_thread() is not threading.main_thread():
                sys.exit(1)

    logger, handler = logging.getLogger("ending"), Ending()
    logger.addHandler(handler)
    pool, heard = make_pool(logger=logger, num_workers=1), Recorder()
    pool.channel("room").on_broadcast("x", lambda _: heard(1 / 0)).on_broadcast("y", heard).subscribe()
    for event in ("x", "y"):
        server.broadcast("room", event, {})
    heard.wait(1)
    logger.removeHandler(handler)


def test_a_handler_of_the_main_thread_may_end_the_program() -> None:
    class Ending(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            sys.exit(1)  # as a signal handler may that comes just then

    logger = logging.getLogger("ending at once")
    handler = Ending()
    logger.addHandler(handler)
    with pytest.raises(SystemExit):
        logs.Log(logger).warning("advice", "x")
    logger.removeHandler(handler)


def test_what_nobody_reads_costs_no_line(server: RealtimeServer, make_pool: MakePool) -> None:
    quiet = Lines(logging.WARNING)
    make_pool(logger=quiet.logger, debug=True).channel("room").subscribe()
    assert quiet.all == []
    quiet.logger.removeHandler(quiet)


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Every call in rtpool that tells something: its method, where it is, the call."""
    told = {"note", "debug", "info", "warning", "rarely", "error", "exception", "bug"}
    for path in (ROOT / "rtpool").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in told:
                of = ast.unparse(node.func.value)
                if re.search(r"(^|[._])(log|logs\.\w+|logger_for\(.*\))$", of):
                    yield node.func.attr, f"{path.name}:{node.lineno}", node


def test_every_line_says_what_kind_it_is_and_no_field_has_the_name_of_what_every_record_has() -> None:
    found = list(calls())
    assert len(found) > 50
    for method, where, call in found:
        event = call.args[1 if method == "rarely" else 0]
        assert isinstance(event, ast.Constant), where
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", event.value), where
        names = {keyword.arg for keyword in call.keywords if keyword.arg is not None}
        assert not names & OF_RECORDS, where
        assert not names & {"event", "pool", "untold"}, where


def test_the_readme_lists_every_event() -> None:
    readme = (ROOT / "README.md").read_text()
    section = readme.split("\n## Logging\n")[1].split("\n## ")[0]
    rows = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    listed = {name for names in rows for name in re.findall(r"`(\w+)`", names)}
    told = {ast.literal_eval(call.args[1 if method == "rarely" else 0]) for method, _, call in calls()}
    assert told | {"frame_received", "frame_sent", "issue"} == listed

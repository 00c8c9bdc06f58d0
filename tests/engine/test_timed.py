"""A socket under one deadline."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from email.message import Message
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rtpool
from rtpool.engine.timed import MAX_RETRY_AFTER, Answer, TimedSocket, http_date, read_answer, seconds_left

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def timed(sock: socket.socket, seconds: float = 10.0, limit: int = 1_000) -> TimedSocket:
    return TimedSocket(sock, time.monotonic() + seconds, limit)


def test_no_byte_is_read_beyond_what_was_asked_for(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nbehind")
    answer = read_answer(timed(ours), "CONNECT", expected=(200,), limit=0)
    assert (answer.status, answer.headers["x"]) == (200, "y")
    assert ours.recv(100) == b"behind"


def test_reads_are_whole_unless_the_stream_ends(pair: Pair) -> None:
    ours, theirs = pair
    stream = timed(ours)
    theirs.sendall(b"ab")
    threading.Timer(0.02, theirs.sendall, [b"cd"]).start()
    assert stream.read(3) == b"abc"
    theirs.shutdown(socket.SHUT_WR)
    assert (stream.read(10), stream.read(10), stream.read()) == (b"d", b"", b"")


def test_a_deadline_that_has_passed_lets_nothing_through(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(b"there")
    late = timed(ours, -1)
    for attempt in (lambda: late.read(1), lambda: late.sendall(b"x")):
        with pytest.raises(TimeoutError):
            attempt()
    with pytest.raises(TimeoutError):
        seconds_left(time.monotonic())
    assert ours.recv(10) == b"there"


def test_sending_ends_at_the_deadline_when_nobody_reads(pair: Pair) -> None:
    with pytest.raises(TimeoutError):
        timed(pair[0], 0.1).sendall(bytes(50_000_000))


@pytest.mark.parametrize("size", [999, 1_000, 1_001])
def test_the_limit_is_the_last_byte_that_may_be_read(pair: Pair, size: int) -> None:
    ours, theirs = pair
    theirs.sendall(b"x" * size)
    theirs.shutdown(socket.SHUT_WR)
    stream = timed(ours)
    if size < 1_000:
        assert stream.read(2_000) == b"x" * size
        return
    assert stream.read(600) == b"x" * 600
    assert stream.recv(600) == b"x" * 400
    with pytest.raises(rtpool.ProtocolError, match="more than 1000 bytes"):
        stream.read(1)


def test_closing_it_leaves_the_socket_open(pair: Pair) -> None:
    timed(pair[0]).close()
    pair[0].sendall(b"still")
    assert pair[1].recv(10) == b"still"


# How long the other side asks to wait

NOON = "Wed, 25 Nov 2026 12:00:00 GMT"


def asked(value: str | None, date: str | None = None) -> float | None:
    headers = Message()
    if value is not None:
        headers["retry-after"] = value
    if date is not None:
        headers["Date"] = date
    return Answer(503, "", headers).retry_after


@pytest.mark.parametrize(
    ("value", "date", "seconds"),
    [
        ("0", None, 0.0),
        ("3", None, 3.0),
        (" 120\t", None, 120.0),
        ("0000000000120", None, 120.0),
        ("3600", None, 3600.0),
        ("3601", None, 3600.0),
        ("9" * 10_000, None, 3600.0),
        ("Wed, 25 Nov 2026 12:00:30 GMT", NOON, 30.0),
        ("Wednesday, 25-Nov-26 12:00:30 GMT", NOON, 30.0),
        ("Wed Nov 25 12:00:30 2026", NOON, 30.0),
        ("Wed, 25 Nov 2026 11:00:00 GMT", NOON, 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", NOON, 3600.0),
        (None, NOON, None),
        ("", None, None),
        ("-1", None, None),
        ("1.5", None, None),
        ("1e3", None, None),
        ("inf", None, None),
        ("nan", None, None),
        ("٣", None, None),
        ("²", None, None),
        ("3 s", None, None),
        ("3, 5", None, None),
        ("soon", NOON, None),
        ("Mon, 31 Feb 2026 12:00:00 GMT", NOON, None),
        ("Wed, 25 Nov 99999999999999999999 12:00:00 GMT", NOON, None),
        ("Wed, 25 Nov 2026 12:00:00 +99999999999999999999", NOON, None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_retry_after_is_seconds_or_a_date_by_the_answers_own_clock(
    value: str | None, date: str | None, seconds: float | None
) -> None:
    assert asked(value, date) == seconds


@pytest.mark.parametrize("date", [None, "", "soon", "Wed, 25 Nov 99999999999999999999 12:00:00 GMT"])
def test_a_date_beside_no_clock_is_by_ours(date: str | None) -> None:
    in_ten_minutes = datetime.now(timezone.utc) + timedelta(minutes=10)
    seconds = asked(format_datetime(in_ten_minutes, usegmt=True), date)
    assert seconds is not None
    assert 540 < seconds <= 600


@given(st.text(st.characters(codec="latin-1", exclude_characters="\r\n")), st.text(max_size=30))
def test_no_header_however_odd_asks_for_more_than_an_hour_or_breaks_an_answer(value: str, date: str) -> None:
    seconds = asked(value, date.replace("\r", "").replace("\n", ""))
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER
    assert http_date(value) is None or isinstance(http_date(value), datetime)

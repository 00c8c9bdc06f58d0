"""A socket under one deadline."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

import rtpool
from rtpool.engine.timed import TimedSocket, read_answer, seconds_left

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

"""Which browsers left, by their connections alone."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from rtpool.flask.streams.seat import Seat
from rtpool.flask.streams.watch import Watch
from tests.support.wait import CAP

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def watch() -> Iterator[Watch]:
    watch = Watch()
    yield watch
    watch.close()
    watch.close()
    watch.ring()  # which is no harm any more


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


def test_who_leaves_is_told_once(watch: Watch, pair: Pair) -> None:
    ours, theirs = pair
    seat = Seat(None, ours)
    watch.add(seat)
    assert watch.wait(0) == []
    theirs.send(b"x")
    assert watch.wait(0) == [], "what is said is the server's business"
    theirs.close()
    assert watch.wait(CAP) == [seat]
    assert watch.wait(0) == []


def test_a_bell_wakes_who_waits_and_is_no_browser(watch: Watch) -> None:
    watch.ring()
    watch.ring()
    assert watch.wait(CAP) == []
    assert watch._epoll.poll(0) == [], "it is over, and who waits next does wait"


def test_one_connection_after_the_other_stream(watch: Watch, pair: Pair) -> None:
    ours, theirs = pair
    first, second = Seat(None, ours), Seat(None, ours)
    watch.add(first)
    watch.remove(first)
    watch.add(second)
    theirs.close()
    assert watch.wait(CAP) == [second]


def test_a_connection_that_its_server_closed_is_not_mistaken_for_the_next(watch: Watch) -> None:
    ours, theirs = socket.socketpair()
    old = Seat(None, ours)
    watch.add(old)
    number = ours.fileno()
    ours.close()
    theirs.close()
    ours, theirs = socket.socketpair()
    assert ours.fileno() == number, "the system gives the lowest number that is free"
    new = Seat(None, ours)
    watch.add(new)
    watch.remove(old)
    theirs.close()
    assert watch.wait(CAP) == [new]
    ours.close()
    watch.remove(new)
    assert not watch._seats


def test_what_is_no_connection_is_not_watched(watch: Watch, pair: Pair) -> None:
    ours, _ = pair
    ours.close()
    for seat, is_over in ((Seat(None, None), False), (Seat(None, ours), True)):
        watch.add(seat)
        watch.remove(seat)
        assert seat.shut_down() is is_over
    assert not watch._seats

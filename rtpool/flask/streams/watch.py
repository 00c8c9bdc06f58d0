"""
Noticing at once that browsers leave: by their connections, none of which a server looks at while it waits for us.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import threading
from typing import Any

from rtpool.engine.patches import is_patched
from rtpool.flask.streams.seat import Seat

__all__ = ["Watch"]

Lock = threading.Lock

#: The bits of epoll(7): the peer closed its side; and tell it once. A client that only closes its sending side counts
#: as one that left: HTTP/1.1 allows that, browsers and proxies do not do it.
PEER_LEFT, ONCE = 0x2000, 1 << 30
READABLE = 0x001


class Watch:
    """
    The connections of the streams that are open. Where the system has no epoll it sees nothing, and browsers that left
    are noticed when something is sent to them.

    Thread-safety: every method may be called from any thread; one at a time waits.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._rung = threading.Event()
        self._patched = is_patched()
        self._epoll = _make_epoll()
        #: Guards: all below.
        self._lock = Lock()
        self._seats: dict[int, Seat] = {}
        self._bell = -1
        if self._epoll is not None:
            self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._epoll.register(self._bell, READABLE)

    def add(self, seat: Seat) -> None:
        """Watch a browser's connection."""
        number = _number_of(seat.sock)
        if self._epoll is None or number < 0:
            return
        with self._lock:
            self._seats[number] = seat
        try:
            self._epoll.register(number, PEER_LEFT | ONCE)
        except OSError:  # no connection that can be watched
            with self._lock:
                self._seats.pop(number, None)

    def remove(self, seat: Seat) -> None:
        """Watch it no more, before its server goes on with the connection."""
        number = _number_of(seat.sock)
        with self._lock:
            watched = self._seats.get(number) is seat
            if watched:
                del self._seats[number]
            else:  # closed by its server before we were told; the system forgot it then
                for old in [old for old, other in self._seats.items() if other is seat]:
                    del self._seats[old]
        if watched and self._epoll is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(number)

    def wait(self, timeout: float) -> list[Seat]:
        """
        Wait for browsers that leave, for `ring`, or so many seconds.

        Returns:
            Those who left.
        """
        if self._epoll is None:
            self._rung.wait(timeout)
            self._rung.clear()
            return []
        if self._patched:  # what is real would keep every greenlet waiting
            poll = select.poll()
            poll.register(self._epoll.fileno(), select.POLLIN)
            poll.poll(timeout * 1000)
            timeout = 0
        if os.getpid() != self._pid:
            return []
        numbers = [number for number, _ in self._epoll.poll(timeout)]
        with contextlib.suppress(BlockingIOError), self._lock:  # greenlets in a forked child share it for a moment
            if self._bell in numbers:
                os.eventfd_read(self._bell)
        with self._lock:
            return [self._seats[number] for number in numbers if number in self._seats]

    def ring(self) -> None:
        """Wake who waits."""
        self._rung.set()
        with self._lock:  # lest it is closed meanwhile, and its number is somebody else's
            if self._bell >= 0:
                os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """Give the descriptors back. Idempotent."""
        with self._lock:
            if self._bell >= 0:
                os.close(self._bell)
            self._bell = -1
        if self._epoll is not None:
            self._epoll.close()

    def inherit(self) -> None:
        """In a forked child, whose copies these are: close them. The lock may be held by a thread that is not there."""
        self._lock = Lock()
        if self._patched:
            self.ring()  # a greenlet waits for them here as well, and gevent's loop must not see them closed before
        else:
            self.close()


def _number_of(sock: socket.socket | None) -> int:
    return -1 if sock is None else sock.fileno()


def _make_epoll() -> Any:
    """The system's epoll, None where there is none. gevent hides it, as one that would keep every greenlet waiting."""
    kind = getattr(select, "epoll", None)
    if not hasattr(os, "eventfd"):
        return None
    if kind is None and sys.platform == "linux" and is_patched():
        kind = sys.modules["gevent.monkey"].get_original("select", "epoll")
    return None if kind is None else kind()

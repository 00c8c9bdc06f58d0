"""
What the process knows of one open stream.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import Any

__all__ = ["Seat"]


class Seat:
    """
    One of the places for streams, from the request until its response is closed.

    Args:
        source: what it reads; has ``close(seat)``.
        sock: the browser's connection, None where the server does not show it.

    Attributes:
        woken: set when there is something to look at.
        gone: whether the stream is to end: its browser left, or everything ends. Set once.
        handed: since when the server has a piece that it did not get rid of, monotonic; None while it has none.
        cut: whether the connection was shut down by us.
        thread: the number of the thread that sends to it; before the first piece, of the one whose request it was.
        process: where it belongs.

    Thread-safety: each attribute is replaced whole.
    """

    __slots__ = ("cut", "gone", "handed", "process", "sock", "source", "thread", "woken")

    def __init__(self, source: Any, sock: socket.socket | None) -> None:
        self.source = source
        self.sock = sock
        self.woken = threading.Event()
        self.gone = False
        self.handed: float | None = None
        self.cut = False
        self.thread = threading.get_ident()
        self.process = os.getpid()

    def leave(self) -> None:
        """Have the stream end, as soon as its thread is not with its server."""
        self.gone = True
        self.woken.set()

    def shut_down(self) -> bool:
        """
        Shut the connection down, which ends a server's wait for a browser that takes nothing.

        Returns:
            Whether it is over; False where the server does not show it.
        """
        self.cut = True
        if self.sock is None:
            return False
        # A copy, for the object may be TLS and in the middle of something; what is shut down is the connection. An
        # error says that it is over already: closed, or given up by the system a moment ago.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self.sock.fileno())) as copy:
            copy.shutdown(socket.SHUT_RDWR)
        return True

"""
The descriptors a forked child is to close: it has copies of all that are open in the parent at the fork.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import weakref

__all__ = ["close", "close_inherited", "making", "note"]

#: Held from before the kernel makes a descriptor until it is noted, and while one is closed: these calls let other
#: threads run, and one may fork.
making = threading.Lock()
#: The threads that hold it because they fork.
_forking: set[int] = set()
#: Seconds a fork waits for that. It takes microseconds; a fork is never to hang, not even in a signal handler whose own
#: thread holds it.
MAKE_SECONDS = 1.0

#: Every socket of every pool of this process, by id(): what the option dial returns may be of a class that compares and
#: hashes as it likes.
_sockets: weakref.WeakValueDictionary[int, socket.socket] = weakref.WeakValueDictionary()


def note(sock: socket.socket) -> None:
    """A forked child is to close this one."""
    _sockets[id(sock)] = sock


def close(sock: socket.socket) -> None:
    """Close a socket, so that no fork comes between its object and its descriptor."""
    if type(sock) in (socket.socket, ssl.SSLSocket):
        with making:
            sock.close()
    else:
        sock.close()  # user code


def close_inherited() -> None:
    """
    In a forked child: close its copies of all that were noted. No byte is sent and nothing is shut down; the parent's
    connections end when the parent ends them, and not only when this process does as well.
    """
    for sock in list(_sockets.values()):
        kind = ssl.SSLSocket if isinstance(sock, ssl.SSLSocket) else socket.socket
        with contextlib.suppress(OSError):
            kind.close(sock)  # not that of a user's class, which may shut the connection down before
            if sock.fileno() >= 0:  # a file made of it is open still
                os.close(kind.detach(sock))
    _sockets.clear()


def _before() -> None:
    if making.acquire(timeout=MAKE_SECONDS):
        _forking.add(threading.get_ident())


def _in_parent() -> None:
    if threading.get_ident() in _forking:
        _forking.discard(threading.get_ident())
        making.release()


def _in_child() -> None:
    global making
    making = threading.Lock()
    _forking.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)

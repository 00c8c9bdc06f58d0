"""
The Unix sockets at which a pool is looked at from another process: where they are, and who is at the other end.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import stat
import struct
import threading
from collections.abc import Iterator
from typing import NamedTuple

from rtpool.engine import descriptors
from rtpool.errors import ConnectionFailed, InvalidValue

__all__ = ["Listener", "connect", "default_directory", "listen_at", "living_sockets", "peer_of"]

#: Bytes a path may have: the least that a platform allows, its closing zero excepted (Linux takes 107).
LONGEST_PATH = 103
#: Connections that wait to be accepted.
BACKLOG = 16
#: Seconds a living server may take to let somebody in.
CONNECT_SECONDS = 2.0
#: How often a stale file is moved away before it is said that others do the same.
ATTEMPTS = 3
#: Seconds after which a file that nobody listens at is looked at once more: its process may have made it just now.
BINDING_SECONDS = 0.05


class Peer(NamedTuple):
    """Who is at the other end: a user's number, and a process's where the platform tells it."""

    uid: int
    pid: int | None


def peer_of(sock: socket.socket) -> Peer | None:
    """
    Who is at the other end of a connected Unix socket, by the kernel's word; None where it does not tell.
    """
    if hasattr(socket, "SO_PEERCRED"):  # Linux: struct ucred
        data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", data)
        return Peer(uid & 0xFFFFFFFF, pid)  # uid_t has no sign
    return _peer_by_libc(sock)


def _peer_by_libc(sock: socket.socket) -> Peer | None:
    import ctypes

    ask = getattr(ctypes.CDLL(None), "getpeereid", None)  # macOS and the BSDs
    uid, gid = ctypes.c_uint32(), ctypes.c_uint32()
    if ask is None or ask(sock.fileno(), ctypes.byref(uid), ctypes.byref(gid)) != 0:
        return None
    return Peer(uid.value, None)


def is_ours(sock: socket.socket) -> bool:
    """Whether the same user is at the other end."""
    peer = peer_of(sock)
    return peer is not None and peer.uid == os.geteuid()


def check_platform() -> None:
    """Raise `ConnectionFailed` where there are no Unix sockets."""
    if not hasattr(socket, "AF_UNIX") or not hasattr(os, "geteuid"):
        raise ConnectionFailed("this platform has no Unix sockets, so a pool cannot be looked at from another process")


def default_directory() -> str:
    """
    Where sockets are that were given no path: ``$XDG_RUNTIME_DIR/rtpool``, or ``/tmp/rtpool-<user's number>``.
    """
    check_platform()
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return os.path.join(runtime, "rtpool") if os.path.isabs(runtime) else f"/tmp/rtpool-{os.geteuid()}"


def make_directory(path: str) -> None:
    """
    Have a directory that nobody else can enter.

    Raises:
        ConnectionFailed: it cannot be made, or is another user's.
    """
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        found = os.lstat(path)
    except OSError as error:
        raise ConnectionFailed(f"the directory {path} cannot be made: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ConnectionFailed(f"{path} is no directory that only this user may enter; give serve_debug() a path")


def living_sockets(directory: str) -> list[str]:
    """The sockets of a directory at which a process of this user answers, sorted; none when there is no directory."""
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".sock"))
    except OSError:
        return []
    return [path for name in names if _is_alive(path := os.path.join(directory, name))]


def _is_alive(path: str) -> bool:
    try:
        connect(path).close()
    except (OSError, ConnectionFailed, InvalidValue):
        return False
    return True


def connect(path: str) -> socket.socket:
    """
    A connection to who serves at a path, blocking, with a time-out of `CONNECT_SECONDS`.

    Raises:
        OSError: nobody does.
        InvalidValue: it cannot be the path of a socket.
        ConnectionFailed: another user's process does.
    """
    check_platform()
    _check_length(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(CONNECT_SECONDS)
        sock.connect(path)
        if not is_ours(sock):
            raise ConnectionFailed(f"{path} is served by a process of another user")
    except BaseException:
        sock.close()
        raise
    return sock


def _check_length(path: str) -> None:
    size = len(os.fsencode(path))
    if size > LONGEST_PATH or "\0" in path:
        raise InvalidValue(f"the path of a socket may have {LONGEST_PATH} bytes and no zero, this has {size}: {path!r}")


class Listener(NamedTuple):
    """A listening socket, its file, and what tells that file from another of the same name."""

    sock: socket.socket
    path: str
    identity: tuple[int, int, int]

    def remove_file(self) -> None:
        """Remove the file, unless it is another's by now."""
        with contextlib.suppress(OSError):
            if _identity(os.lstat(self.path)) == self.identity:
                os.unlink(self.path)


def listen_at(path: str) -> Listener:
    """
    Listen at a path, mode 0600 from the first moment. The file of a process that ended without removing it is replaced.

    Raises:
        InvalidValue: the path is too long, is no socket's, or is served by a living process.
        ConnectionFailed: the system does not allow it.
    """
    check_platform()
    _check_length(path)
    try:
        with descriptors.making:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            descriptors.note(sock)
    except OSError as error:
        raise ConnectionFailed(f"cannot serve at {path}: {error.strerror}") from error
    try:
        for _ in range(ATTEMPTS):
            if _bind(sock, path):
                identity = _identity(os.lstat(path))
                sock.listen(BACKLOG)
                sock.setblocking(False)
                return Listener(sock, path, identity)
            _move_stale_away(path)
    except OSError as error:
        descriptors.close(sock)
        raise ConnectionFailed(f"cannot serve at {path}: {error.strerror or error}") from error
    except BaseException:
        descriptors.close(sock)
        raise
    descriptors.close(sock)
    raise ConnectionFailed(f"cannot serve at {path}: other processes make sockets there all the time")


def _bind(sock: socket.socket, path: str) -> bool:
    """Whether there was no file."""
    with _only_for_us(sock):
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
    return True


@contextlib.contextmanager
def _only_for_us(sock: socket.socket) -> Iterator[None]:
    """Within this, a file that is bound is nobody else's from the start; to narrow its mode afterwards is too late."""
    try:
        os.fchmod(sock.fileno(), 0o600)  # Linux makes the file with the socket's own mode
    except OSError:  # elsewhere there is the umask alone, which is the whole process's
        before = os.umask(0o177)
        try:
            yield
        finally:
            os.umask(before)
    else:
        yield


def _identity(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_dev, found.st_ino, found.st_mtime_ns  # numbers of inodes are used again


def _move_stale_away(path: str) -> None:
    """
    Remove the file of a process that is dead. It is moved away before: of two that found it stale at once, the second
    would else remove what the first has put in its place.
    """
    try:
        found = os.lstat(path)
        if not stat.S_ISSOCK(found.st_mode):
            raise InvalidValue(f"{path} exists and is no socket; give serve_debug() another path")
        _refuse_living(path)
        threading.Event().wait(BINDING_SECONDS)
        _refuse_living(path)
        aside = f"{path}.{secrets.token_hex(8)}"
        os.rename(path, aside)
    except FileNotFoundError:  # it was removed meanwhile
        return
    if _identity(os.lstat(aside)) != _identity(found):
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    os.unlink(aside)


def _refuse_living(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(CONNECT_SECONDS)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except OSError as error:  # it does not let us in, or is too busy to
            raise InvalidValue(
                f"{path} is in use: {error.strerror or error}; give serve_debug() another path"
            ) from error
        peer = peer_of(probe)
    who = f"process {peer.pid}" if peer is not None and peer.pid else "another process"
    who = "this process" if peer is not None and peer.pid == os.getpid() else who
    raise InvalidValue(f"{path} is served by {who}; a socket is one pool's, give serve_debug() another path")

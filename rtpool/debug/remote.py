"""
A look at the pool of another process, which serves it by `RealtimePool.serve_debug`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rtpool.debug.sockets import connect
from rtpool.errors import ConnectionFailed, ProtocolError, RtpoolError

__all__ = ["Remote", "ask_all"]

#: Bytes of an answer; a pool of 100,000 Channels needs a third of it.
MAX_ANSWER = 64 * 1024 * 1024
#: Bytes that are read at a time.
READ_SIZE = 256 * 1024


class Remote:
    """
    The other end of a pool's debug socket. Nothing is read but what was asked for.

    Args:
        path: of the socket.

    Raises:
        ConnectionFailed: nobody serves there, or another user's process does.
        InvalidValue: it cannot be the path of a socket.

    Thread-safety: none; for one thread at a time.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fsdecode(path)
        try:
            self._sock = connect(self.path)
        except OSError as error:
            if isinstance(error, ConnectionFailed):
                raise
            raise ConnectionFailed(f"nobody serves at {self.path}: {error.strerror or error}") from error
        self._sock.setblocking(False)
        self._received: list[bytes] = []
        self._size = 0

    def fileno(self) -> int:
        """The descriptor, to wait with until there is something to `receive`."""
        return self._sock.fileno()

    def request(self, ask: str) -> None:
        """
        Ask for ``"stats"`` or ``"cleanup"``. The answer is to be received before the next is asked for.
        """
        with contextlib.suppress(OSError):  # of a program that is gone `receive` tells, and of one that said why
            self._sock.sendall(json.dumps({"ask": ask}).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """
        Read what is there.

        Returns:
            The answer, None as long as it is not there as a whole.

        Raises:
            ConnectionFailed: the program is gone.
            ProtocolError: it is no answer.
        """
        try:
            data = self._sock.recv(READ_SIZE)
        except BlockingIOError:
            return None
        except OSError as error:
            raise self._gone() from error
        if not data:
            raise self._gone()
        self._received.append(data)
        self._size += len(data)
        if not data.endswith(b"\n"):
            if self._size > MAX_ANSWER:
                raise ProtocolError(f"what serves at {self.path} sends more than {MAX_ANSWER} bytes")
            return None
        text, self._received, self._size = b"".join(self._received), [], 0
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"what serves at {self.path} is no pool: its answer is not JSON") from error
        if not isinstance(answer, dict):
            raise ProtocolError(f"what serves at {self.path} is no pool: its answer is no object")
        return answer

    def ask(self, ask: str, timeout: float = 10.0) -> dict[str, Any]:
        """
        Ask, and wait for the answer.

        Args:
            ask: ``"stats"`` or ``"cleanup"``.
            timeout: seconds to wait.

        Raises:
            ConnectionFailed: the program is gone, or does not answer in time.
            ProtocolError: it is no answer.
        """
        (answer,) = ask_all([self], ask, timeout)
        if isinstance(answer, RtpoolError):
            raise answer
        return answer

    def close(self) -> None:
        """Look no longer. Idempotent."""
        self._sock.close()

    def _gone(self) -> ConnectionFailed:
        return ConnectionFailed(f"the program at {self.path} is gone, or has closed the socket")

    def __enter__(self) -> Remote:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def ask_all(remotes: Sequence[Remote], ask: str, timeout: float) -> list[dict[str, Any] | RtpoolError]:
    """
    Ask several at once, and wait for the answers of all: one that does not answer delays no other.

    Args:
        remotes: none of them waits for an answer, none occurs twice.
        ask: as in `Remote.ask`.
        timeout: seconds to wait, for all of them together.

    Returns:
        In the same order the answers, or what `Remote.ask` would raise.
    """
    deadline = time.monotonic() + timeout
    answers: dict[Remote, dict[str, Any] | RtpoolError] = {}
    waiting = list(remotes)
    for remote in remotes:
        remote.request(ask)
    while True:
        for remote in waiting:
            try:
                answer = remote.receive()
            except RtpoolError as error:
                answers[remote] = error
            else:
                answers |= {} if answer is None else {remote: answer}
        waiting = [remote for remote in waiting if remote not in answers]
        left = deadline - time.monotonic()
        if not waiting or left <= 0:
            break
        select.select(waiting, [], [], left)
    for remote in waiting:
        answers[remote] = ConnectionFailed(f"the program at {remote.path} did not answer within {timeout:g} s")
    return [answers[remote] for remote in remotes]

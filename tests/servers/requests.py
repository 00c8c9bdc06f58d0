"""Requests to a gunicorn by several threads, each on connections of its own that are kept alive."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["Client", "in_threads"]


class Client:
    """One connection, opened anew where the server has closed it."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._connection = http.client.HTTPConnection(*address, timeout=30)

    def get(self, path: str) -> Any:
        """The JSON of an answer."""
        try:
            self._connection.request("GET", path)
            answer = self._connection.getresponse()
        except (http.client.RemoteDisconnected, ConnectionError):  # it was kept alive no longer
            self._connection.close()
            self._connection.request("GET", path)
            answer = self._connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path} was answered {answer.status}: {body[:500]!r}")
        return json.loads(body)

    def timed(self, path: str) -> float:
        """How long an answer takes, in milliseconds."""
        began = time.perf_counter()
        self.get(path)
        return 1000 * (time.perf_counter() - began)

    def close(self) -> None:
        """Close it."""
        self._connection.close()


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Have threads work, each told its number; raise what the first raised."""
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    _each(threads, threading.Thread.start)
    _each(threads, threading.Thread.join)
    if failures:
        raise failures[0]


def _each(threads: Iterable[threading.Thread], method: Callable[[threading.Thread], None]) -> None:
    for thread in threads:
        method(thread)

"""
What is examined, and what was found out on the way.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import attrs

from rtpool.channel import Channel
from rtpool.checks import check_name, check_timeout
from rtpool.engine.descriptors import close
from rtpool.engine.dialer import Endpoint
from rtpool.engine.redaction import Redactor
from rtpool.engine.streams import Address, Cancelled, open_stream
from rtpool.errors import InvalidValue, JoinRefused, PoolClosed
from rtpool.events import StatusChange
from rtpool.options import PoolOptions
from rtpool.pool import RealtimePool
from rtpool.protocol.messages import MAX_NAME_BYTES
from rtpool.protocol.postgres import ChangeBinding
from rtpool.protocol.refusals import Action

__all__ = ["Case", "EVENT", "Trouble", "spread"]

Lock = threading.Lock

#: The event of every broadcast the doctor sends.
EVENT = "rtpool-doctor"
#: Statuses of a Channel after which the doctor waits no longer.
OVER = ("refused", "error", "timed_out", "closed")


class Trouble(Exception):
    """
    A Channel that was not ready.

    Attributes:
        error: what rtpool said of it; None when nobody said anything in time.
    """

    def __init__(self, error: Exception | None) -> None:
        super().__init__(str(error))
        self.error = error


class Case:
    """
    Who is examined: what the user gave, and what the steps have found out.

    Args:
        url: what the user takes for the project's URL.
        key: the API key, None for none.
        token: a user's access token, None for none.
        topic: to join; None makes a random one, which disturbs nobody.
        table: to subscribe to, ``name`` or ``schema.name``; None for none.
        private: whether the topic is to be joined as a private channel.
        options: of the pool that is made.
        timeout: seconds for everything; more than 0.
        patience: seconds for one answer of the server. It delays a refusal of a join by 5 s.
        messages: how many broadcasts to send at most.

    Raises:
        InvalidValue: a topic or table that no server can have, or a timeout that is none.

    Thread-safety: confined to the thread that runs the steps; `close` may be called from any.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        token: str | None = None,
        topic: str | None = None,
        table: str | None = None,
        private: bool = False,
        options: PoolOptions | None = None,
        timeout: float = 60.0,
        patience: float = 10.0,
        messages: int = 50,
    ) -> None:
        self.url, self.key, self.token, self.private = url, key, token, private
        self.options = options or PoolOptions()
        self.given_topic = topic is not None
        self.topic = self.random_topic() if topic is None else topic
        check_name("topic", self.topic, MAX_NAME_BYTES - len(self.options.topic_prefix))
        self.table = None if table is None else _table(table)
        check_timeout(timeout)
        if not timeout:
            raise InvalidValue("timeout must be more than 0")
        self.timeout, self.patience, self.messages = timeout, patience, messages
        self.hide = Redactor(self.options, key, token)
        self.deadline = time.monotonic() + timeout
        # What the steps found out
        self.endpoint: Endpoint  # by the step url, without the key
        self.addresses: list[tuple[int, str, int]] = []  # family, address, port
        self.role = ""
        self.skew: float | None = None  # seconds the server's clock is ahead of ours
        self.channel: Channel | None = None
        self.statuses: queue.SimpleQueue[StatusChange] = queue.SimpleQueue()  # of `channel`
        self.may_write: bool | None = None
        self.refusals: list[str] = []  # by the server, in its words
        # Guards: _pools, _closed
        self._lock = Lock()
        self._pools: list[RealtimePool] = []
        self._closed = False
        self._pool: RealtimePool | None = None
        self.cancelled = Cancelled()

    @staticmethod
    def random_topic() -> str:
        """A topic that nobody else has joined."""
        return f"rtpool-doctor-{secrets.token_hex(4)}"

    @property
    def left(self) -> float:
        """Seconds until all must be over."""
        return max(0.0, self.deadline - time.monotonic())

    @property
    def wait(self) -> float:
        """Seconds the next answer may take."""
        return min(self.patience, self.left)

    @property
    def host(self) -> str:
        """The server's, of the URL."""
        return Address.from_url(self.endpoint.url).host

    @property
    def target(self) -> Address:
        """What is connected to first: the server, or the proxy in front of it."""
        return Address.from_url(self.options.proxy or self.endpoint.url)

    # Streams

    @contextlib.contextmanager
    def open(self, *, secure: bool, **options: Any) -> Iterator[socket.socket]:
        """
        A stream to the server, as rtpool opens it, with TLS where `secure` is true; closed at the end of the block.

        Raises:
            ConnectionFailed, OSError: as `open_stream`.
        """
        address = Address.from_url(self.endpoint.url)._replace(secure=secure)
        deadline = time.monotonic() + self.wait
        sock = open_stream(address, attrs.evolve(self.options, **options), deadline, self.cancelled)
        try:
            yield sock
        finally:
            close(sock)

    # Pools

    def new_pool(self, **options: Any) -> RealtimePool:
        """
        A pool on the server, which `close` closes if nobody did.

        Raises:
            PoolClosed: the examination is over.
        """
        pool = RealtimePool(
            self.url,
            api_key=self.key,
            access_token=self.token,
            options=attrs.evolve(self.options, connection_timeout=max(0.1, self.wait), **options),
        )
        with self._lock:
            if not self._closed:
                self._pools.append(pool)
                return pool
        raise PoolClosed("the examination is over")

    @property
    def pool(self) -> RealtimePool:
        """The pool of the later steps, made when it is first wanted."""
        if self._pool is None:
            self._pool = self.new_pool()
        return self._pool

    def subscribe(self, channel: Channel, statuses: queue.SimpleQueue[StatusChange], *, patient: bool = False) -> None:
        """
        Subscribe, and wait for the first word about it.

        Args:
            statuses: what `channel` tells; it is put there from now on.
            patient: wait on after a refusal that may pass, as the server's own of a changes feed that it retries.

        Raises:
            Trouble: it was refused, or nothing came in time; it is not subscribed then.
        """
        channel.on_status(statuses.put).subscribe(wait=False)
        deadline, last = time.monotonic() + self.wait, None
        while True:
            try:
                change = statuses.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if change.status == "joined":
                return
            last = change.error or last
            error = change.error
            again = isinstance(error, JoinRefused) and (error.action is Action.RETRY or (patient and error.retryable))
            if (change.status in OVER or error is not None) and not again:
                break
        channel.unsubscribe(timeout=0)
        if isinstance(last, JoinRefused):
            self.refusals.append(f"{last.code}: {last.reason}" if last.code else last.reason)
        raise Trouble(last)

    def close(self, timeout: float = 2.0) -> None:
        """Break off what is under way and close what is open. Idempotent."""
        self.cancelled.cancel()
        with self._lock:
            self._closed = True
            pools, self._pools = self._pools, []
        deadline = time.monotonic() + timeout
        for pool in pools:
            pool.close(max(0.0, deadline - time.monotonic()))


def _table(text: str) -> tuple[str, str]:
    schema, dot, name = text.rpartition(".")
    if not name or (dot and not schema):
        raise InvalidValue("the table must be given as name or schema.name")
    binding = ChangeBinding.checked("*", schema or "public", name, None, None)
    return binding.schema or "public", name


def spread(values: list[float]) -> Iterator[tuple[str, float]]:
    """p50, p95 and p99 of some seconds, by nearest rank."""
    ordered = sorted(values)
    for part in (50, 95, 99):
        yield f"p{part}", ordered[max(0, -(-part * len(ordered) // 100) - 1)]

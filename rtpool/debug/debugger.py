"""
The debugger of a pool: looks at it when asked, or every few seconds on a thread of its own.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING

import attrs

from rtpool.checks import check_name, check_timeout, check_type
from rtpool.debug.inspector import Inspector
from rtpool.debug.issues import Issue, Severity
from rtpool.debug.lifecycle import LifecycleReport, probe
from rtpool.debug.thresholds import Thresholds
from rtpool.engine.engine import Engine
from rtpool.engine.logs import Log
from rtpool.engine.threads import PoolThread, closing, join_all, start_thread
from rtpool.errors import ConnectionFailed, InvalidType, InvalidValue, PoolClosed
from rtpool.protocol.messages import MAX_NAME_BYTES

if TYPE_CHECKING:
    from rtpool.pool import RealtimePool

__all__ = ["Debugger"]

Lock = threading.Lock

#: Seconds `disable` waits for the thread.
DISABLE_SECONDS = 5.0

#: For a forked child.
_debuggers: weakref.WeakSet[Debugger] = weakref.WeakSet()


class _Run:
    """The time from `enable` to `disable`, or to the end of the pool: a `Companion` of its engine."""

    def __init__(self, engine: Engine, interval: float) -> None:
        self.engine = engine
        self.interval = interval
        self.over = threading.Event()
        self.threads: tuple[threading.Thread, ...] = ()

    def stop(self) -> None:
        """The pool ends."""
        self.over.set()


class Debugger:
    """
    Finds what is wrong with a pool, and says what to do about it; `rtpool.debug.CODES` lists what it can find.

    It does not keep the pool alive. While it is not enabled it costs nothing; enabled, it has one thread, which ends
    with the pool. In a forked child it is not enabled, and can be.

    Args:
        pool: the pool.
        thresholds: from when on something is an issue; see `Thresholds`.

    Raises:
        InvalidType, InvalidValue: no pool, an unknown or bad threshold.

    Thread-safety: every method may be called from any thread, callbacks included.
    """

    def __init__(self, pool: RealtimePool, **thresholds: float) -> None:
        if not isinstance(getattr(pool, "_engine", None), Engine):
            raise InvalidType(f"pool must be a RealtimePool, not {type(pool).__name__}")
        self._pool = weakref.ref(pool)
        self.thresholds = Thresholds.of(**thresholds)
        self._run: _Run | None = None
        self._forget()
        _debuggers.add(self)

    def _forget(self) -> None:
        # Guards: _told, _run
        self._lock = Lock()
        self._told: dict[tuple[str, str], Issue] = {}
        self._run = None
        pool = self._pool()
        self._inspector = Inspector(self.thresholds, None if pool is None else pool._engine)

    # Looking

    def issues(self) -> list[Issue]:
        """
        Look now.

        It waits a tenth of a second where one look alone cannot tell, up to two where a callback may hang, and two for
        an I/O thread that does not answer. What lasts for long must have been seen before: see `enable`.

        Returns:
            What is wrong, worst first; empty when nothing is, and when the pool was forgotten. Of a closed pool, what
            went wrong lately.
        """
        pool = self._pool()
        if pool is None:
            return []
        engine = pool._engine
        del pool  # it may be forgotten meanwhile
        return self._inspector.look(engine, threading.Event())

    # Looking again and again

    def enable(self, interval: float = 10.0) -> None:
        """
        Look every `interval` seconds, and tell the log ``rtpool.debug`` what is new, once, and what is over.

        A new issue is a line at ERROR, WARNING or INFO, by its severity; one that is over a line at INFO. Called again
        it changes the interval.

        Raises:
            InvalidType, InvalidValue: no number of seconds above 0.
            PoolClosed: the pool is closed, or was forgotten.
            ConnectionFailed: the system has no thread left.
        """
        check_timeout(interval)
        if interval <= 0:
            raise InvalidValue(f"interval must be a number of seconds > 0, not {interval!r}")
        pool = self._pool()
        if pool is None:
            raise PoolClosed("the pool was forgotten")
        run = _Run(pool._engine, interval)
        del pool
        thread = PoolThread(self._watch, f"rtpool-{run.engine.name}-debug", (run,))
        run.threads = (thread,)
        self._stop()
        run.engine.attend(run)
        with self._lock:
            before, self._run = self._run, run
        if before is not None:  # another thread enabled it meanwhile
            before.stop()
            run.engine.dismiss(before)
        try:
            interrupt = start_thread(thread)
        except RuntimeError as error:
            run.engine.dismiss(run)
            self._end(run)
            raise ConnectionFailed(f"the debugger of pool {run.engine.name} has no thread: {error}") from error
        if interrupt is not None:
            raise interrupt

    def disable(self) -> None:
        """
        Look no more. Idempotent; when it returns the thread has ended, unless it is this one.
        """
        self._stop()
        with self._lock:
            if self._run is None:  # and no other thread enabled it meanwhile
                self._told.clear()

    def _stop(self) -> None:
        with self._lock:
            run, self._run = self._run, None
        if run is not None:
            run.stop()
            run.engine.dismiss(run)
            with closing():
                join_all(run.threads, time.monotonic() + DISABLE_SECONDS)

    @property
    def enabled(self) -> bool:
        """
        Whether it looks by itself at present.
        """
        return self._run is not None

    def _end(self, run: _Run) -> None:
        with self._lock:
            if self._run is run:
                self._run = None
                self._told.clear()

    def _watch(self, run: _Run) -> None:
        log = run.engine.logs.debug
        next_look = time.monotonic() + run.interval
        rest = min(run.interval, self.thresholds.slow_callback / 2)
        while not run.over.wait(min(rest, max(0.0, next_look - time.monotonic()))):
            try:
                if time.monotonic() < next_look:
                    self._inspector.sample(run.engine)
                    continue
                next_look = time.monotonic() + run.interval
                self._tell(log, run, self._inspector.look(run.engine, run.over, patient=True))
            except Exception:  # a bug of ours must not end the watch
                log.bug("debugger_failed", "! the debugger of pool %(pool)s failed")
        self._end(run)

    def _tell(self, log: Log, run: _Run, issues: list[Issue]) -> None:
        present = {issue.key: issue for issue in issues}
        with self._lock:
            if self._run is not run:
                return
            new = [issue for key, issue in present.items() if key not in self._told]
            cured = [issue for key, issue in self._told.items() if key not in present]
            self._told = present
        tell = {Severity.INFO: log.info, Severity.WARNING: log.warning, Severity.ERROR: log.error}
        for issue in new:
            stack = issue.details.get("stack", "")
            words = "! %(issue)s" + (" It was here:\n%(stack)s" if stack else "")
            about = {"code": issue.code, "severity": issue.severity.value, "subject": issue.subject}
            tell[issue.severity]("issue", words, issue=str(issue), stack=stack, **about)
        for issue in cured:
            about = {"code": issue.code, "subject": issue.subject, "title": issue.title}
            log.info("issue_over", "= %(code)s %(subject)s is over: %(title)s", **about)

    # More to do

    def log_stats(self) -> None:
        """
        Write what the pool is doing to the log ``rtpool.debug``, at INFO: a line for the pool, one for each connection.
        """
        pool = self._pool()
        if pool is None:
            return
        log, stats = pool._engine.logs.debug, pool.stats()
        numbers = {name: value for name, value in stats.as_dict().items() if isinstance(value, (int, float, str))}
        words = (
            "= pool %(pool)s %(connection_status)s: %(active_connections)d of %(total_connections)d connections open, "
            "%(active_subscriptions)d of %(total_subscriptions)d subscriptions ready on %(total_joins)d joins; "
            "%(events_received)d events received, %(messages_delivered)d delivered, %(messages_dropped)d dropped; "
            "%(gaps)d gaps, %(reconnect_attempts)d reconnects, %(callback_errors)d callback errors"
        )
        log.info("stats", words, **numbers)
        for each in stats.connection_details:
            latency = (
                "no heartbeat yet" if each.heartbeat_latency is None else f"latency {each.heartbeat_latency:.3f} s"
            )
            words = (
                "= connection %(connection)d %(state)s: %(joins)d joins, %(messages_received)d messages, "
                f"%(bytes_received)d bytes in, %(bytes_sent)d out, {latency}"
            )
            numbers = attrs.asdict(each)
            log.info("connection_stats", words, connection=numbers.pop("connection_id"), **numbers)

    def check_lifecycle(
        self, *, timeout: float = 10.0, topic: str | None = None, private: bool = False
    ) -> LifecycleReport:
        """
        Join and leave a probe channel, and verify that nothing of it is left: on the server, by its own word; no join,
        place, registry entry, socket that nothing closes, or dial thread.

        Args:
            timeout: seconds it may take. Dial threads live on for two seconds when a connection had to be opened.
            topic: a topic that nobody else uses; None makes one up, ``rtpool-probe-…``.
            private: join it as a private channel, where the project allows no others.

        Raises:
            PoolClosed: the pool is closed, or was forgotten.
            InvalidType, InvalidValue: bad arguments.
        """
        check_timeout(timeout)
        if topic is not None:
            check_name("topic", topic, MAX_NAME_BYTES)
        check_type("private", private, bool)
        pool = self._pool()
        if pool is None:
            raise PoolClosed("the pool was forgotten")
        return probe(pool, timeout, topic, private)

    def force_cleanup(self) -> int:
        """
        Close idle connections now, and mend at once what the health check would.

        Returns:
            How many connections were closed.
        """
        pool = self._pool()
        return 0 if pool is None else pool.force_cleanup()

    def __repr__(self) -> str:
        pool = self._pool()
        whose = "a forgotten pool" if pool is None else f"pool {pool._engine.name}"
        return f"<rtpool.debug.Debugger of {whose}, {'on' if self.enabled else 'off'}>"


def _after_fork() -> None:
    with contextlib.ExitStack() as steps:  # the others go on even if one fails
        for debugger in list(_debuggers):
            steps.callback(debugger._forget)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)

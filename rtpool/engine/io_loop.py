"""
The one I/O thread: a selector, an inbox other threads post to, and timers.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import math
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from rtpool.engine import descriptors
from rtpool.engine.logs import Log
from rtpool.engine.patches import is_patched, pass_on
from rtpool.engine.threads import PoolThread, join_all, start_thread
from rtpool.errors import MonkeyPatchConflict

__all__ = ["IoLoop", "Pollable", "Timer"]

#: Seconds of one wait, however far the next deadline.
MAX_WAIT = 3_600.0
#: Seconds by which a deadline may be missed while there is always something to do.
ASK_SECONDS = 0.02
#: Timers below this number are not looked through for cancelled ones.
MIN_SWEEP = 256


class Pollable(Protocol):
    """What the loop needs of a connection. All of it is called on the I/O thread."""

    def fileno(self) -> int:
        """The socket's descriptor."""

    def ready(self, events: int, now: float) -> None:
        """The selector saw `events`, or the transport has bytes of its own to read."""

    def tick(self, now: float) -> None:
        """A turn of the loop: do what is due."""

    def next_deadline(self) -> float | None:
        """When `tick` has something to do."""

    def interest(self) -> int:
        """The selector events it waits for now; 0 for none."""

    def has_more(self) -> bool:
        """Whether it can be read without waiting."""


class _Post:
    """A call that was posted. It is equal to itself alone: looking for it runs no code of others."""

    __slots__ = ("args", "call")

    def __init__(self, call: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.call = call
        self.args = args


class Timer:
    """A call at an instant; `cancel` forgets it."""

    __slots__ = ("call", "cancelled")

    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        """Never make the call, and forget what it refers to. Harmless when it was made."""
        self.cancelled = True
        self.call = _nothing


def _nothing() -> None:
    """What a cancelled timer would call."""


class IoLoop:
    """
    The I/O thread.

    Args:
        name: the pool's, for the thread's name.
        on_interrupt: called on the I/O thread after `interrupt`.
        on_failure: called on the I/O thread when the loop itself failed, before it is taken down.
        on_end: called last on the I/O thread.
        clock: monotonic seconds, read once a turn.
        boot: monotonic seconds that pass while the machine sleeps, too; None where no clock of the platform does so.
        log: where failures of the loop itself are told.

    Thread-safety: `post`, `start`, `stop` and `join` may be called from any thread; everything else is confined to
    the I/O thread.
    """

    def __init__(
        self,
        name: str,
        *,
        on_interrupt: Callable[[], None],
        on_failure: Callable[[BaseException], None],
        on_end: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        boot: Callable[[], float] | None = None,
        log: Log | None = None,
    ) -> None:
        self._name = name
        self._log = log or Log(logging.getLogger("rtpool.io"), pool=name)
        self._on_interrupt = on_interrupt
        self._on_failure = on_failure
        self._on_end = on_end
        self._interrupted = False
        self.clock = clock
        self.boot = boot
        self.now = clock()
        self._asked_at = self.now  # when every pollable was asked for its next deadline
        # Any thread appends here, this one takes. No lock: of threads that post at full speed, one that is interrupted
        # while it holds it would have all others line up behind it, and they would stay in line from then on.
        self._inbox: deque[_Post] = deque()
        self._asleep = False  # it waits, or is about to, and has to be woken up
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._wake_in: socket.socket | None = None
        self._wake_out: socket.socket | None = None
        self._patched = False
        # Confined to the I/O thread.
        self._stopping = False
        self._forked = False
        self._selector: selectors.BaseSelector | None = None
        self._pollables: dict[int, tuple[Pollable, int]] = {}  # by id(): its descriptor may be closed before it leaves
        self._registered: dict[int, tuple[int, int]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._sweep_at = MIN_SWEEP

    # From any thread

    def start(self) -> KeyboardInterrupt | None:
        """
        Open the selector and the wake-up pair, then start the thread. Called once, and again when it failed.

        Returns:
            As `start_thread`.

        Raises:
            RuntimeError, OSError: the system has no thread, or no descriptor, left. Nothing was started.
        """
        self._patched = is_patched()
        with contextlib.ExitStack() as opened:
            with descriptors.making:
                self._selector = selector = opened.enter_context(selectors.DefaultSelector())
                wake_in, wake_out = (opened.enter_context(sock) for sock in socket.socketpair())
                self._wake_in, self._wake_out = wake_in, wake_out
            wake_in.setblocking(False)
            wake_out.setblocking(False)
            selector.register(wake_in, selectors.EVENT_READ, None)
            thread = PoolThread(self._run, f"rtpool-{self._name}-io")
            interrupt = start_thread(thread)
            self._thread = thread
            opened.pop_all()
            return interrupt

    @property
    def threads(self) -> tuple[threading.Thread, ...]:
        """The I/O thread, once it was started."""
        return () if self._thread is None else (self._thread,)

    def check(self) -> None:
        """
        Look whether the thread can be used.

        Raises:
            MonkeyPatchConflict: gevent has patched the process in part, or since the thread was started.
        """
        if is_patched() != self._patched and self._thread is not None:
            self._wake()  # it finds out as well, and ends
            raise MonkeyPatchConflict(
                f"gevent has patched this process after the threads of pool {self._name} were started: call "
                "gevent.monkey.patch_all() first, or use the pool only afterwards"
            )

    def post(self, call: Callable[..., None], *args: Any) -> bool:
        """
        Have `call(*args)` made on the I/O thread, in the order of posting.

        Returns:
            False when the loop has ended and the call will never be made.
        """
        if self._stopped:
            return False
        posted = _Post(call, args)
        self._inbox.append(posted)
        if self._asleep:  # looked at after it was appended, as the loop looks into the inbox after it said so
            self._asleep = False
            self._wake()
        if not self._has_stopped():
            return True
        # A signal handler may have forked just now: in the child nothing was posted.
        return not self._forked and not self._take_back(posted)

    def _has_stopped(self) -> bool:
        return self._stopped

    def _take_back(self, posted: _Post) -> bool:
        """Whether something that was posted as the loop ended is still there, and so was never called."""
        try:
            self._inbox.remove(posted)
        except ValueError:
            return False
        return True

    def _wake(self) -> None:
        wake_out = self._wake_out
        if wake_out is None:
            return  # not started yet: the first turn drains the inbox
        try:
            wake_out.send(b"\0")
        except OSError:  # full means a wake-up is pending anyway; closed means the loop has just ended
            return  # not logged: that takes locks

    def interrupt(self) -> None:
        """
        Have `on_interrupt` called. Takes no lock, so that the garbage collector and signal handlers may call it
        anywhere, even within `post` on the same thread.
        """
        self._interrupted = True
        self._wake()

    def join(self, deadline: float) -> list[str]:
        """Wait for the thread until `deadline` (monotonic); return its name if it still runs. Never joins itself."""
        return join_all([] if self._thread is None else [self._thread], deadline)

    def is_current_thread(self) -> bool:
        """Whether the caller is the I/O thread."""
        return threading.current_thread() is self._thread

    def after_fork(self) -> None:
        """
        In a forked child, where no I/O thread is: close the descriptors, and do nothing ever again.

        Nothing is unregistered: the kernel's list of what is watched is the parent's too.
        """
        self._forked = self._stopping = self._stopped = True
        self._thread = None
        self._inbox.clear()
        self._timers = []
        self._pollables = {}
        self._registered = {}
        self._close_descriptors()

    # On the I/O thread

    @property
    def pollables(self) -> list[Pollable]:
        """The connections served."""
        return [pollable for pollable, _ in self._pollables.values()]

    def add(self, pollable: Pollable) -> None:
        """Serve a connection from now on."""
        self._pollables[id(pollable)] = (pollable, pollable.fileno())

    def remove(self, pollable: Pollable) -> None:
        """Serve it no more. To be called before its socket is closed."""
        self._pollables.pop(id(pollable), None)
        registered = self._registered.pop(id(pollable), None)
        if registered is not None and self._selector is not None:
            try:
                self._selector.unregister(registered[0])
            except (KeyError, ValueError, OSError) as error:  # somebody closed the socket behind our back
                words = "- descriptor %(descriptor)d was not watched: %(why)s"
                self._log.debug("descriptor_not_watched", words, descriptor=registered[0], error=error)

    def call_at(self, at: float, call: Callable[[], None]) -> Timer:
        """Make `call` at the instant `at`; a past one means the next turn."""
        timer = Timer(call)
        if len(self._timers) >= self._sweep_at:  # most are cancelled long before they are due
            self._timers = [entry for entry in self._timers if not entry[2].cancelled]
            heapq.heapify(self._timers)
            self._sweep_at = 2 * len(self._timers) + MIN_SWEEP
        heapq.heappush(self._timers, (at, next(self._order), timer))
        return timer

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        """Make `call` in `delay` seconds."""
        return self.call_at(self.now + delay, call)

    def stop(self) -> None:
        """End the loop after this turn."""
        self._stopping = True

    def _run(self) -> None:
        interrupt: KeyboardInterrupt | None = None
        try:
            while not self._stopping:
                self._turn()
        except BaseException as error:  # a silent dead thread is the worst bug a library can have
            if self._forked:
                return
            self._log.bug("io_failed", "! the I/O thread of pool %(pool)s failed: %(error)s", error=error)
            interrupt = error if isinstance(error, KeyboardInterrupt) else None
            try:
                self._on_failure(error)
            except Exception:
                self._log.bug("io_failed", "! the failure of pool %(pool)s could not be told to everybody")
        if not self._forked:
            self._close()
            self._on_end()
        if interrupt is not None:
            pass_on(interrupt)

    def _turn(self) -> None:
        selector = self._selector
        assert selector is not None
        self.check()
        self._update_interest(selector)
        try:
            self._asleep = True
            ready = selector.select(self._timeout())
        except KeyboardInterrupt as error:  # it struck a greenlet, which waits on as soon as the program knows
            if not pass_on(error):
                raise
            ready = []
        self._asleep = False
        self.now = self.clock()
        for key, events in ready:
            if key.data is None:
                self._drain_wake_ups()
            elif id(key.data) in self._pollables:
                key.data.ready(events, self.now)
        for pollable, _ in list(self._pollables.values()):
            if pollable.has_more():
                pollable.ready(selectors.EVENT_READ, self.now)
        if self._interrupted:
            self._interrupted = False
            self._on_interrupt()
        self._run_inbox()
        self._run_timers()
        for pollable, _ in list(self._pollables.values()):
            if id(pollable) in self._pollables:
                pollable.tick(self.now)

    def _timeout(self) -> float | None:
        # A loop that never comes to rest asks now and then all the same: what is due is done at its time.
        may_wait, asked = not self._inbox, self.now - self._asked_at < ASK_SECONDS
        if not may_wait and asked:
            return 0.0
        while self._timers and self._timers[0][2].cancelled:
            heapq.heappop(self._timers)
        due = self._timers[0][0] if self._timers else math.inf
        for pollable, _ in self._pollables.values():
            if pollable.has_more():
                may_wait = False
                if asked:
                    break
            at = pollable.next_deadline()
            if at is not None and at < due:
                due = at
        else:
            self._asked_at = self.now
        if not may_wait:
            return 0.0
        # No selector waits for ever: epoll takes 24 days at the most.
        return None if due == math.inf else min(MAX_WAIT, max(0.0, due - self.clock()))

    def _update_interest(self, selector: selectors.BaseSelector) -> None:
        broken: list[Pollable] = []
        for key, (pollable, fd) in list(self._pollables.items()):
            wanted = pollable.interest()
            current = self._registered.get(key)
            if (current[1] if current else 0) == wanted:
                continue
            try:
                if current is None:
                    self._register(selector, fd, wanted, pollable, broken)
                elif not wanted:
                    del self._registered[key]
                    selector.unregister(fd)
                else:
                    selector.modify(fd, wanted, pollable)
                    self._registered[key] = (fd, wanted)
            except (KeyError, ValueError, OSError) as error:  # somebody closed the socket behind our back
                words = "! descriptor %(descriptor)d cannot be watched: %(why)s"
                self._log.warning("descriptor_not_watched", words, descriptor=fd, error=error)
                self._registered.pop(key, None)
                broken.append(pollable)
        for pollable in broken:
            if id(pollable) in self._pollables:
                pollable.ready(selectors.EVENT_READ, self.now)  # meets the trouble itself

    def _register(
        self, selector: selectors.BaseSelector, fd: int, wanted: int, pollable: Pollable, broken: list[Pollable]
    ) -> None:
        try:
            selector.register(fd, wanted, pollable)
        except KeyError:  # the number of a socket that was closed behind our back, and is used anew
            stale = selector.unregister(fd).data
            self._registered.pop(id(stale), None)
            broken.append(stale)
            selector.register(fd, wanted, pollable)
        self._registered[id(pollable)] = (fd, wanted)

    def _drain_wake_ups(self) -> None:
        assert self._wake_in is not None
        try:
            while len(self._wake_in.recv(4096)) == 4096:
                continue
        except BlockingIOError:
            return

    def _run_inbox(self) -> None:
        inbox = self._inbox
        for _ in range(len(inbox)):  # what comes meanwhile is for the next turn
            post = inbox.popleft()
            post.call(*post.args)

    def _run_timers(self) -> None:
        while self._timers and (self._timers[0][2].cancelled or self._timers[0][0] <= self.now):
            timer = heapq.heappop(self._timers)[2]
            if not timer.cancelled:
                timer.cancelled = True
                timer.call()

    def _close(self) -> None:
        self._stopped = True
        while True:  # what was posted in the last moment: it answers its waiters
            try:
                post = self._inbox.popleft()
            except IndexError:  # who posts now takes it back
                break
            try:
                post.call(*post.args)
            except Exception:
                self._log.bug("io_failed", "! a late call to pool %(pool)s failed")
        self._timers.clear()
        self._pollables.clear()
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        with descriptors.making:
            if self._selector is not None:
                self._selector.close()
            for sock in (self._wake_in, self._wake_out):
                if sock is not None:
                    sock.close()

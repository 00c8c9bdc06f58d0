"""
The parts of a running pool as one thing: started at first use, stopped once. It knows nothing of the pool itself.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import functools
import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from rtpool.engine.clocks import boot_clock
from rtpool.engine.coordinator import Coordinator
from rtpool.engine.descriptors import close_inherited
from rtpool.engine.dialer import MAX_THREADS, Dialer, Endpoint
from rtpool.engine.dispatcher import Dispatcher, Mailbox
from rtpool.engine.hooks import Hooks
from rtpool.engine.io_loop import IoLoop
from rtpool.engine.logs import Logs
from rtpool.engine.outgoing import SendBudget
from rtpool.engine.patches import pass_on
from rtpool.engine.routing import GAP, gap_fields
from rtpool.engine.streams import prepare
from rtpool.engine.threads import callback_name, closing, enter_user_code, is_in_finalizer, join_all
from rtpool.errors import ConnectionFailed, PoolClosed, PoolForked, RtpoolError
from rtpool.events import Gap, Heartbeat, StatusChange
from rtpool.options import PoolOptions
from rtpool.protocol.serializer import serializer_for
from rtpool.protocol.sizes import SizeLimits
from rtpool.registry import Callback, Registry
from rtpool.unlocked import read_unlocked

__all__ = ["Companion", "Engine", "engines", "running"]

Lock = threading.Lock


#: Engines that run, to be stopped before the interpreter ends; and every one there is.
_running: set[Engine] = set()
_engines: weakref.WeakSet[Engine] = weakref.WeakSet()

#: Heartbeats that wait for a listener that is busy; more are not told.
MAX_HEARTBEATS = 100
#: How long a finalizer may take to return, in which Ctrl-C struck; at the most.
RETURN_SECONDS = 1.0
#: Seconds a pool gets to say goodbye when it is forgotten, or at the end of the process.
ABANDON_SECONDS = 1.0


def engines() -> list[Engine]:
    """Every engine of this process that somebody holds, in the order of their making. Takes no lock."""
    return read_unlocked(lambda: sorted(_engines, key=lambda engine: (len(engine.name), engine.name)))


@atexit.register
def _stop_at_exit() -> None:
    engines = list(_running)
    forgotten = [engine for engine in engines if engine.warn_at_exit and not engine.closed]
    deadline = time.monotonic() + ABANDON_SECONDS
    for engine in engines:
        engine.abandon("the process ends")  # all of them say goodbye at the same time, however many there are
    for engine in engines:
        engine.stop(max(0.0, deadline - time.monotonic()))
    for engine in forgotten:
        try:
            engine.warn_forgotten("open at exit")
        except ResourceWarning:  # made an error by the program: told, and no reason to leave out the others
            sys.excepthook(*sys.exc_info())


def _stop_with_worker() -> None:
    """
    Have processes of `multiprocessing` say goodbye as well: it ends them without the interpreter's own ending. It drops
    what was registered before they began, so this is said to it where they begin.
    """
    global _registered
    util = sys.modules.get("multiprocessing.util")
    if util is not None and not _registered:
        _registered = True
        util.register_after_fork(_engines, lambda _: util.Finalize(None, _stop_at_exit, exitpriority=0))


_registered = False
_stop_with_worker()  # in one that is spawned


def _leave_to_parent() -> None:
    _stop_with_worker()
    with contextlib.ExitStack() as steps:  # the rest is done even if one of them fails
        steps.callback(close_inherited)
        for engine in list(_engines):
            steps.callback(engine.after_fork)
        _engines.clear()
        _running.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_leave_to_parent)


class _PoolMailbox(Mailbox):
    """What waits for the pool's own listeners: only what is essential."""

    __slots__ = ()

    def callback_count(self, item: StatusChange | Heartbeat | None) -> int:
        """All of a kind hear the same."""
        hooks = self.owner._hooks_now()
        return len(hooks.status if isinstance(item, StatusChange) else hooks.heartbeat)

    def hold(self) -> object:
        """The listeners."""
        return self.owner._hooks_now()


class Companion(Protocol):
    """What runs beside a pool, on threads of its own, and ends with it."""

    @property
    def threads(self) -> Iterable[threading.Thread]:
        """What `Engine.stop` waits for."""

    def stop(self) -> None:
        """The pool ends. Called once, on any thread, without a lock; it does not wait."""


class Engine:
    """
    Registry, I/O loop, dialer, workers and coordinator of one pool.

    Args:
        name: for thread names.
        endpoint: where to dial.
        options: the pool's.
        token: the pool's token, str or callable.
        hooks: of the pool, which holds them.

    Thread-safety: every method may be called from any thread.
    """

    def __init__(
        self,
        name: str,
        endpoint: Endpoint,
        options: PoolOptions,
        token: str | Callable[[], str] | None,
        hooks: Hooks,
    ) -> None:
        prepare(options)
        self.name = name
        self.endpoint = endpoint
        self.options = options
        self.logs = logs = Logs(options, name, endpoint.api_key, token if isinstance(token, str) else None)
        self._log = logs.pool
        self.registry = Registry()
        self.budget = SendBudget(options.send_buffer_limit, paced=options.max_events_per_second is not None)
        #: What the server takes, for whoever sends.
        self.sizes = SizeLimits(
            serializer_for(options.protocol),
            payload=options.max_payload_size if options.is_supabase else None,
            frame=options.max_frame_size,
        )
        self.dialer = Dialer(name, log=logs.io)
        # Token callables have threads of their own: one that hangs holds up nobody's dial.
        self.callers = Dialer(name, log=logs.io, first=MAX_THREADS)
        self.deciders = Dialer(name, log=logs.io, first=2 * MAX_THREADS)
        self.dispatcher = Dispatcher(name, options.num_workers, on_drained=self._drained, log=logs.dispatch)
        self.loop = IoLoop(
            name,
            on_interrupt=self._interrupted,
            on_failure=self._failed,
            on_end=self._ended,
            boot=boot_clock(),
            log=logs.io,
        )
        self._hooks = weakref.ref(hooks)
        self.callback_errors = 0
        self._heartbeats_waiting = 0
        self._status_told = ""
        self.overflow_gaps = 0
        #: Pushes that were larger than the server takes.
        self.too_big = 0
        #: Broadcasts by REST that were begun.
        self.rest_broadcasts = 0
        #: Monotonic seconds.
        self.made_at = time.monotonic()
        #: False for pools that live as long as the process by design, or as something that has no end of its own.
        self.warn_at_exit = True
        #: The thread that started it; None before, and perhaps when it is gone.
        self.started_by: weakref.ref[threading.Thread] | None = None
        self._companions: tuple[Companion, ...] = ()
        self._told_to_stop: tuple[str, float] | None = None  # why, if nobody called close(), and the deadline
        self._owes_interrupt = False
        self._launched = threading.Event()
        #: Set when everything has ended.
        self.ended = threading.Event()
        #: Whether it is the parent's, and this process a forked child. `was_closed`: whether it was closed before.
        self.forked = self.was_closed = False
        self._pool_mailbox = _PoolMailbox(self, limit=1, overflow="drop_newest")
        self.coordinator = Coordinator(
            name,
            endpoint,
            options,
            pool_token=token,
            registry=self.registry,
            dispatcher=self.dispatcher,
            loop=self.loop,
            dialer=self.dialer,
            callers=self.callers,
            deciders=self.deciders,
            budget=self.budget,
            announce=self._announce,
            tell_heartbeat=self._tell_heartbeat,
            logs=logs,
        )
        # Guards: _state, Hooks, callback_errors, overflow_gaps, too_big, rest_broadcasts, _companions,
        # _heartbeats_waiting
        self._lock = Lock()
        self._state = "new"  # new running stopping
        self._process = os.getpid()
        _engines.add(self)

    @property
    def closed(self) -> bool:
        """Whether it was stopped; it never starts again."""
        return self._state == "stopping"

    @property
    def started(self) -> bool:
        """Whether its threads were ever started."""
        return self._state != "new"

    @property
    def threads(self) -> tuple[threading.Thread, ...]:
        """Its threads, those that have ended lately perhaps included."""
        dialers = (self.dialer, self.callers, self.deciders)
        return (*self.loop.threads, *self.dispatcher.threads, *(thread for d in dialers for thread in d.threads))

    def start(self) -> None:
        """
        Start the threads, at the first call.

        Raises:
            PoolClosed: it was stopped.
            ConnectionFailed: the system has no thread or descriptor left for it; it can be called again.
            MonkeyPatchConflict: gevent has patched the process in part, or after the threads were started.
            PoolForked: as `post`.
        """
        self._check_process()
        self.loop.check()
        with self._lock:
            state = self._state
            if state == "new":
                self._state, self._process = "running", os.getpid()
        if state == "stopping":
            raise self._gone()
        if state == "new":
            _running.add(self)
            self.started_by = weakref.ref(threading.current_thread())
            try:
                interrupt = self.dispatcher.start()
                interrupt = self.loop.start() or interrupt
            except (RuntimeError, OSError) as error:
                _running.discard(self)
                with self._lock:
                    stopped = self._state == "stopping"
                    self._state = "stopping" if stopped else "new"
                if stopped:  # meanwhile, and nobody else ends what did start
                    self._ended()
                    self._launched.set()
                # Python 3.12 starts no thread once the main thread has ended.
                hint = "" if "shutdown" in str(error) else "; the system has no thread or descriptor left; try again"
                raise ConnectionFailed(f"the pool {self.name} could not start: {error}{hint}") from error
            self.loop.post(self.coordinator.start)
            self._launched.set()
            self._log.info("pool_started", "= pool %(pool)s started for %(url)s", url=self.endpoint.url)
            if interrupt is not None:
                raise interrupt

    def post(self, call: Callable[..., None], *args: Any) -> None:
        """
        Have a coordinator method called on the I/O thread.

        Raises:
            PoolClosed: the loop has ended.
            PoolForked: this process was forked behind Python's back.
        """
        self._check_process()
        if not self.loop.post(call, *args):
            raise self._gone()

    def _check_process(self) -> None:
        if self._state != "new" and self._process != os.getpid():
            raise PoolForked(
                f"the threads of pool {self.name} are process {self._process}'s, and this one was forked without "
                "telling Python: start pools after the fork (uWSGI: with lazy-apps, or in uwsgidecorators.postfork)"
            )

    def _gone(self) -> RtpoolError:
        if self.forked and not self.was_closed:  # in the middle of the call
            return PoolForked(f"the process was forked meanwhile, and pool {self.name} is the parent's; call again")
        return PoolClosed(f"the pool {self.name} is closed; make a new one")

    def stop(self, timeout: float) -> bool:
        """
        Stop everything within `timeout` seconds; from any thread, once or often.

        Returns:
            True when every thread has ended. A calling callback's own thread ends when it returns, and counts so, as do
            those of other callbacks that stop a pool at the time.
        """
        try:
            return self._stop(timeout)
        except (
            KeyboardInterrupt
        ):  # who breaks off the wait leaves a pool that ends behind its back, whatever was reached
            if self._state != "new":
                self.abandon("", timeout)
            raise

    def _stop(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        # This may be a handler of a signal, in the middle of a thread that holds one of our locks and goes on only when
        # this returns. So no lock is waited for longer than that, and whatever needs others is the I/O thread's.
        if not self._lock.acquire(timeout=timeout):
            if self._state != "new":
                self.abandon("close() was called", timeout)
            words = "- pool %(pool)s could not be stopped within %(timeout).1f s: its lock is held"
            self._log.warning("pool_not_stopped", words, timeout=timeout)
            return False
        try:
            before, self._state = self._state, "stopping"
        finally:
            self._lock.release()
        if before == "new":
            self._ended()  # a start may have failed halfway, a REST call may be under way
            self._launched.set()  # there is nothing to launch any more
        # Another thread may be in the middle of start(): what is not running yet cannot be joined.
        launched = self._launched.is_set() or self._launched.wait(max(0.0, deadline - time.monotonic()))
        if not self.ended.is_set():  # said again by each who stops it: a signal may have interrupted who began
            self._told_to_stop = self._told_to_stop or ("", deadline)
            self.loop.interrupt()
        if self.loop.is_current_thread():  # in a log handler, or a finalizer of the user's: it is what all wait for
            words = "- pool %(pool)s is told to stop by its own I/O thread, which cannot wait for it"
            self._log.warning("pool_not_stopped", words, timeout=timeout)
            return False
        alive = [] if launched else [f"rtpool-{self.name}-io, which is being started,"]
        with closing():
            alive += self.loop.join(deadline)
            for dialer in (self.dialer, self.callers, self.deciders):
                alive += dialer.join(deadline)
            alive += self.dispatcher.join(deadline)
            alive += join_all((thread for each in self._companions for thread in each.threads), deadline)
        _running.discard(self)
        for name in alive:
            words = "- thread %(left)s did not stop within %(timeout).1f s"
            self._log.warning("thread_left", words, left=name, timeout=timeout)
        return not alive

    def abandon(self, why: str, seconds: float = ABANDON_SECONDS, *, interrupt: bool = False) -> None:
        """
        Stop within `seconds`, without waiting and without a lock: for the garbage collector and signal handlers.

        Args:
            interrupt: whether the main thread is owed the Ctrl-C that struck the caller.
        """
        self._state = "stopping"
        self._owes_interrupt = interrupt
        self._told_to_stop = why, time.monotonic() + seconds
        self.loop.interrupt()

    def after_fork(self) -> None:
        """
        In a forked child: this engine is the parent's. Its threads are not here, and what they had locked stays locked.

        So every lock is replaced, every descriptor closed, and whoever asks is told that it was stopped. A thread that
        forked, being in the middle of a callback, runs none of the parent's business when it returns here.
        """
        self.was_closed = self._state == "stopping"
        self.forked, self._state = True, "stopping"
        self._lock = Lock()
        self._launched, self.ended = threading.Event(), threading.Event()
        self._launched.set()
        self.ended.set()
        self.loop.after_fork()
        for dialer in (self.dialer, self.callers, self.deciders):
            dialer.after_fork()
        self.dispatcher.after_fork()
        self.budget.after_fork()
        self.registry.after_fork()

    def attend(self, companion: Companion) -> None:
        """
        Have what runs beside the pool end with it.

        Raises:
            PoolClosed: the pool was stopped.
        """
        with self._lock:
            stopped = self._state == "stopping"
            if not stopped:
                self._companions = (*self._companions, companion)
        if stopped:
            raise self._gone()

    def dismiss(self, companion: Companion) -> None:
        """It ended by itself."""
        with self._lock:
            self._companions = tuple(each for each in self._companions if each is not companion)

    def warn_forgotten(self, how: str) -> None:
        """Issue the `ResourceWarning` of a pool that was not closed, on the line that calls the caller's caller."""
        warnings.warn(
            f"the pool {self.name} of {self.endpoint.url} was {how}; use `with RealtimePool(…) as pool:` or call "
            "pool.close()",
            ResourceWarning,
            stacklevel=4,
            source=self.endpoint,  # made with the pool, and without a __dict__: Python 3.11 finds no others
        )

    def run_user_code(self, callback: Callback, value: Any, where: str) -> None:
        """Call user code on a worker; what it raises is logged and counted, and harms nothing else."""
        if self.forked:  # a callback of the same event forked, and returned in the child
            return
        try:
            enter_user_code(callback, value)
        except BaseException as error:  # a callback that calls sys.exit() must not take a worker along
            self.callback_failed(error, callback, value, where)

    def callback_failed(self, error: BaseException, callback: Callback, value: Any, where: str) -> None:
        """User code raised: log and count it, and tell who wants to know. What it says is in the traceback alone."""
        with self._lock:
            self.callback_errors += 1
        fields = {"callback": callback_name(callback), "where": where, "error": type(error).__name__}
        words = "! callback %(callback)r of %(where)s raised %(error)s"
        hooks = self._hooks_now()
        if hooks.report is None:
            self._log.exception("callback_raised", words, **fields)
        else:
            self._log.note("callback_raised", words, **fields)
            self._call_hook(hooks.report, error, callback, value, where)
        if hooks.error is not None:
            self._call_hook(hooks.error, error, callback, value)
        if isinstance(error, KeyboardInterrupt):
            pass_on(error)

    def _call_hook(self, hook: Callable[..., object], *arguments: Any) -> None:
        *others, last = arguments
        try:
            enter_user_code(functools.partial(hook, *others), last)
        except BaseException:  # as of any callback
            self._log.exception(
                "callback_raised",
                "! %(callback)s, which is told of callbacks that raise, raised itself",
                callback=callback_name(hook),
            )

    def listen(self, callback: Callback) -> None:
        """Add a listener for the pool's status."""
        hooks = self._hooks_now()
        with self._lock:
            hooks.status = (*hooks.status, callback)

    def listen_to_heartbeats(self, callback: Callback) -> None:
        """Add a listener for heartbeats."""
        hooks = self._hooks_now()
        with self._lock:
            hooks.heartbeat = (*hooks.heartbeat, callback)

    def _hooks_now(self) -> Hooks:
        """The pool's, or empty ones when it is gone."""
        return self._hooks() or Hooks()

    def warn(self, message: str) -> None:
        """Log something a user should know that is no error of any call."""
        self._log.warning("advice", "- pool %(pool)s: %(why)s", why=message)

    def overflow_gap(self, gap: Gap, mailbox: int, count: int) -> None:
        """A mailbox announces that it lost so many events."""
        with self._lock:
            self.overflow_gaps += 1
        fields = gap_fields(gap.cause, gap.lost_from, gap.lost_to)
        self.logs.dispatch.rarely(mailbox, "gap", f"{GAP}: %(lost)d events", topic=gap.topic, lost=count, **fields)

    def count_too_big(self) -> None:
        """A push was refused for its size."""
        with self._lock:
            self.too_big += 1

    def count_rest_broadcast(self) -> None:
        """A broadcast goes out by REST."""
        with self._lock:
            self.rest_broadcasts += 1

    def _announce(self, change: StatusChange) -> None:
        if change.status != self._status_told:  # each attempt of an outage has a line of its own
            self._status_told = change.status
            self._log.info("pool_status", "= pool %(pool)s %(status)s", status=change.status)
        if self._hooks_now().status:
            self.dispatcher.deliver_essential(self._pool_mailbox, self._run_listeners, change)

    def _run_listeners(self, change: StatusChange) -> None:
        for callback in self._hooks_now().status:
            self.run_user_code(callback, change, f"pool {self.name}")

    def _tell_heartbeat(self, heartbeat: Heartbeat) -> None:
        listeners = self._hooks_now().heartbeat
        with self._lock:
            listened_to = bool(listeners) and self._heartbeats_waiting < MAX_HEARTBEATS
            self._heartbeats_waiting += listened_to
        if listened_to:
            self.dispatcher.deliver_essential(self._pool_mailbox, self._run_heartbeat_listeners, heartbeat)

    def _run_heartbeat_listeners(self, heartbeat: Heartbeat) -> None:
        with self._lock:
            self._heartbeats_waiting -= 1
        for callback in self._hooks_now().heartbeat:
            self.run_user_code(callback, heartbeat, f"heartbeats of pool {self.name}")

    def _stop_dialling(self) -> None:
        for dialer in (self.dialer, self.callers, self.deciders):
            dialer.stop()

    def _drained(self, mailbox: Mailbox) -> None:
        self.loop.post(self.coordinator.resume, mailbox)

    def _interrupted(self) -> None:
        assert self._told_to_stop is not None
        why, deadline = self._told_to_stop
        self._pay_interrupt()
        if why:
            words = "- pool %(pool)s is closed: %(why)s"
            if self.warn_at_exit:
                self._log.warning("pool_abandoned", words, why=why)
            else:  # as of pools that are meant to stay
                self._log.info("pool_abandoned", words, why=why)
            self._told_to_stop = "", deadline
        self.budget.close()
        self._stop_dialling()
        self.loop.post(self.coordinator.shutdown, deadline)  # after what was accepted before

    def _pay_interrupt(self) -> None:
        if not self._owes_interrupt:
            return
        self._owes_interrupt = False
        deadline, main = time.monotonic() + RETURN_SECONDS, threading.main_thread().ident
        # The finalizer that was struck may not have returned yet, and would drop this one as well.
        while is_in_finalizer(main) and time.monotonic() < deadline:
            self.ended.wait(0.001)
        _thread.interrupt_main()

    def _failed(self, error: BaseException) -> None:
        with self._lock:
            self._state = "stopping"
        closed = PoolClosed(f"the I/O thread of pool {self.name} failed: {type(error).__name__}; see the log")
        closed.__cause__ = error
        self.coordinator.abandon(closed)

    def _ended(self) -> None:
        """The I/O thread is about to end; in good order, or because it failed."""
        self._pay_interrupt()
        with self._lock:
            self._state = "stopping"
        for companion in self._companions:
            companion.stop()
        self.budget.close()
        self._stop_dialling()
        self.dispatcher.stop()
        _running.discard(self)
        self.ended.set()


def running() -> list[Engine]:
    """The engines of this process that run."""
    return list(_running)

"""
Callbacks: worker threads, and one ordered mailbox per Channel.

A mailbox is in the hands of at most one worker at a time, so one Channel's callbacks never overlap and keep the
server's order, while different Channels run in parallel.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from typing import Any

from rtpool.engine.logs import Log
from rtpool.engine.mailbox import Essential, InHand, Loss, Mailbox, Waiting
from rtpool.engine.threads import SLICE_SECONDS, Bell, PoolThread, is_in_user_code, join_all, start_thread, step_aside

__all__ = ["Dispatcher", "Mailbox"]

Lock = threading.Lock

#: Items a worker takes at a time, for to take and to put back cost the others as much as some dozens of them.
BATCH = 512
#: Of those so many are run before it looks whether others wait; but the first alone, to see whether it takes so many
#: seconds: then each is.
SOME, SLOW_SECONDS = 16, 0.005
#: A blocked mailbox lets its socket be read again when it has drained to this part of its limit.
RESUME_AT = 0.8
#: How long `quiesce` waits for a callback in progress to return; and, where it has not even begun, for it to begin: on
#: a machine that is busy a thread may stand still between the decision to call and the first line.
QUIESCE_SECONDS, BEGIN_SECONDS = 0.1, 2.0


#: What a worker took: a mailbox, of that a batch, and the loss to announce before it.
_Taken = tuple[Mailbox, Sequence[Any], Loss | None]


class Dispatcher:
    """
    The worker pool.

    Args:
        name: the pool's, for thread names.
        num_workers: threads, started at the first delivery.
        on_drained: called on a worker, without a lock, when a blocked mailbox has room again.
        wall: aware wall-clock time, for the bounds of a loss.
        log: where bugs of ours are told.

    Thread-safety: every method may be called from any thread. User code is entered without a lock.
    """

    def __init__(
        self,
        name: str,
        num_workers: int,
        *,
        on_drained: Callable[[Mailbox], None],
        wall: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
        log: Log | None = None,
    ) -> None:
        self._name = name
        self._log = log or Log(logging.getLogger("rtpool.dispatch"), pool=name)
        self._num_workers = num_workers
        self._on_drained = on_drained
        self._wall = wall
        #: Ordinary items that came, were handed over, were lost; over every mailbox there ever was. Read anywhere.
        self.received = 0
        self.delivered = 0
        self.dropped = 0
        #: Of the dropped ones, those that met a full mailbox. Read anywhere.
        self.lost = 0
        #: How long batches took that workers are through with. Read anywhere.
        self.callback_seconds = 0.0
        # Guards: everything below, the counters, and every Mailbox
        self._lock = Lock()
        self._waiting: list[threading.Lock] = []  # an ear of each worker that waits; the last is warm, and called first
        self._changed = threading.Condition(self._lock)
        self._news = Bell()  # for readers
        self._runnable: deque[Mailbox] = deque()
        self._stopping = False
        self._forked = False
        self._called = False  # one of them was called and has not come yet
        self._quiescing = 0  # threads that wait for a callback in progress
        self._in_hand: set[Mailbox] = set()
        self._any_alone = False  # one of them may be `alone`
        self._threads: list[PoolThread] = []  # replaced whole

    @property
    def threads(self) -> tuple[threading.Thread, ...]:
        """The workers, once they were started."""
        return tuple(self._threads)

    def start(self) -> KeyboardInterrupt | None:
        """
        Start the workers, once, and again when it failed.

        Returns:
            As `start_thread`.

        Raises:
            RuntimeError: the system has no thread left; none was started.
        """
        with self._lock:
            if self._threads or self._stopping:
                return None
            self._threads = threads = [
                PoolThread(self._work, f"rtpool-{self._name}-worker-{i}") for i in range(self._num_workers)
            ]
        interrupt = None
        for index, thread in enumerate(threads):
            try:
                interrupt = start_thread(thread) or interrupt
            except RuntimeError as error:  # the system has no thread left; those that run do the work of all
                with self._lock:
                    self._threads = threads[:index]
                if not index:
                    raise
                words = "! pool %(pool)s has %(workers)d workers, and not %(wanted)d: %(why)s"
                self._log.warning("thread_not_started", words, workers=index, wanted=len(threads), error=error)
                break
        return interrupt

    def open(self, mailbox: Mailbox, holder: int | None = None) -> None:
        """
        Let ordinary items in for a subscription; what an earlier one left is gone.

        Args:
            holder: its number. Nothing happens for one that had the mailbox before, or still has it; None is the next.
        """
        with self._lock:
            holder = mailbox.holder + 1 if holder is None else holder
            if holder <= mailbox.holder:
                return
            mailbox.holder = holder
            mailbox.ended, mailbox.interrupted = False, True
            mailbox.generation += 1
            self._discard(mailbox)
            mailbox.appended = mailbox.removed = 0
            mailbox.marks = None
            drained = self._has_drained(mailbox)
            mailbox.blocked = False
        if drained:
            self._on_drained(mailbox)

    def waiting_since(self, mailbox: Mailbox) -> datetime:
        """Since when, at the latest, items have waited that were not delivered; a worker may have some in its hands."""
        with self._lock:
            return mailbox.oldest_came_at(self._wall())

    def waiting(self, mailbox: Mailbox) -> Waiting:
        """What waits, and what was lost and not announced yet."""
        with self._lock:
            return mailbox.waiting(self._wall())

    def in_hand(self) -> list[InHand]:
        """What the workers are at."""
        with self._lock:
            return [mailbox.in_hand(mailbox.running) for mailbox in self._in_hand if mailbox.running is not None]

    def deliver(self, batch: Iterable[tuple[Mailbox, Sequence[Any]]]) -> list[Mailbox]:
        """
        Put items into mailboxes, in order, under one lock.

        Args:
            batch: mailboxes and what each gets, which nobody changes from now on; it may be the same object for many.

        Returns:
            The mailboxes that reached their limit: those whose policy, ``block`` or ``close``, the I/O thread carries
            out, and those that began to drop.
        """
        overflowed: list[Mailbox] = []
        came, lined_up = 0, False
        with self._lock:
            now = self._wall()
            for mailbox, items in batch:
                count = len(items)
                mailbox.received += count
                came += count
                if mailbox.ended or self._stopping:
                    self._drop(mailbox, count)
                    continue
                if mailbox.ordinary + count > mailbox.limit:
                    items = self._squeeze(mailbox, items, overflowed, now)
                    count = len(items)
                mailbox.mark(now)
                if mailbox.items:
                    mailbox.queue().extend(items)
                else:
                    mailbox.items = items
                mailbox.ordinary += count
                mailbox.appended += count
                if mailbox.pulled:
                    self._news.ring()
                elif not mailbox.scheduled:
                    mailbox.scheduled = lined_up = True
                    self._runnable.append(mailbox)
            self.received += came
            if lined_up:
                self._find_worker()
        return overflowed

    def deliver_essential(self, mailbox: Mailbox, run: Callable[[Any], None], item: Any) -> bool:
        """
        Queue something that must not be lost (a status, a push's callback) behind what waits already.

        Returns:
            False when the workers are gone.
        """
        with self._lock:
            if self._stopping:
                return False
            essential = Essential(run, item, mailbox.hold())
            # A reader of a pull mailbox sees data only; its essentials run on a worker.
            aside = mailbox.pulled or mailbox.ended
            (mailbox.essentials() if aside else mailbox.queue()).append(essential)
            if not mailbox.scheduled:
                mailbox.scheduled = True
                self._runnable.append(mailbox)
                self._find_worker()
        return True

    def end(self, mailbox: Mailbox, holder: int | None = None, *, wait: bool = True) -> None:
        """
        Close a mailbox to ordinary items and drop those that wait; essential ones still run.

        On return no ordinary item starts any more, see `quiesce`; without `wait` one may be just starting.

        Args:
            holder: the number of the subscription that ends; nothing happens when a later one has the mailbox. None is
                whoever has it.
        """
        with self._lock:
            if holder is not None and holder < mailbox.holder:
                return
            mailbox.holder = mailbox.holder if holder is None else holder
            mailbox.ended = mailbox.interrupted = True
            mailbox.generation += 1
            self._discard(mailbox)
            drained = self._has_drained(mailbox)
            mailbox.blocked = False
            self._changed.notify_all()
            self._news.ring()
        if drained:
            self._on_drained(mailbox)  # nobody takes from it any more, and its socket is to be read
        if wait:
            self.quiesce(mailbox)

    def quiesce(self, mailbox: Mailbox) -> None:
        """
        Wait until the callback in progress has returned, or plainly begun before this call.

        Called on a worker it does not wait: two callbacks could otherwise wait for each other.
        """
        deadline = time.monotonic() + BEGIN_SECONDS
        with self._lock:
            worker = mailbox.running
            if worker is None or threading.current_thread() in self._threads:
                return
            mailbox.interrupted = True
            seen = mailbox.runs
            self._quiescing += 1
            try:
                while not self._changed.wait_for(
                    lambda: mailbox.running is None or mailbox.runs != seen, timeout=QUIESCE_SECONDS
                ):
                    if is_in_user_code(worker) or time.monotonic() >= deadline:
                        return
            finally:
                self._quiescing -= 1

    def take(self, mailbox: Mailbox, timeout: float | None) -> Any:
        """
        Take one item out of a pull mailbox.

        Args:
            timeout: seconds, None waits for ever.

        Raises:
            TimeoutError: nothing came in time.
            EOFError: the mailbox was ended, or the workers stopped.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            ear = Bell.ear()
            with self._lock:
                if not self._forked and (mailbox.items or mailbox.loss is not None):
                    loss, item, drained = self._take(mailbox)
                    break
                if mailbox.ended or self._stopping:
                    raise EOFError
                self._news.listen(ear)
            try:
                remaining = SLICE_SECONDS if deadline is None else deadline - time.monotonic()
                if remaining <= 0:
                    raise TimeoutError
                ear.acquire(timeout=min(remaining, SLICE_SECONDS))
            finally:
                with self._lock:
                    self._news.forget(ear)
        if loss is not None:
            return mailbox.announce_loss(loss.first, loss.last, loss.count)
        if drained:
            self._on_drained(mailbox)
        return item

    def _take(self, mailbox: Mailbox) -> tuple[Loss | None, Any, bool]:
        assert self._lock.locked()
        loss = mailbox.due_loss()
        if loss is not None:
            return loss, None, False
        mailbox.delivered += 1
        self.delivered += 1
        item = mailbox.queue().popleft()
        mailbox.ordinary -= 1
        mailbox.removed += 1
        return None, item, self._has_drained(mailbox)

    def stop(self) -> None:
        """Drop ordinary items, let essential ones run, then end the workers. Does not wait."""
        with self._lock:
            self._stopping = True
            self._interrupt_all()
            while self._waiting:
                self._waiting.pop().release()
            self._changed.notify_all()
            self._news.ring()

    def join(self, deadline: float) -> list[str]:
        """
        Wait for the workers, never for the calling one.

        Args:
            deadline: monotonic seconds.

        Returns:
            The names of those that did not stop.
        """
        return join_all(self._threads, deadline)

    def after_fork(self) -> None:
        """In a forked child: what waits is the parent's, and a callback that forked is the last to run here."""
        self._lock = Lock()
        self._waiting = []
        self._changed = threading.Condition(self._lock)
        self._news = Bell()
        self._forked = self._stopping = True
        self._interrupt_all()
        self._runnable.clear()
        self._threads = []

    # The caller holds self._lock in what follows, up to _work.

    def _interrupt_all(self) -> None:
        for mailbox in self._in_hand:
            mailbox.interrupted = True

    def _squeeze(
        self, mailbox: Mailbox, items: Sequence[Any], overflowed: list[Mailbox], now: datetime
    ) -> Sequence[Any]:
        """Make a mailbox that has not room for all of `items` take them, as its policy says; those that go in."""
        assert self._lock.locked()
        policy, room = mailbox.overflow, max(0, mailbox.limit - mailbox.ordinary)
        lost = len(items) - room
        if policy == "block":
            # Over its limit by at most what one read had; the socket is read no further. Said every time, because a
            # reconnect may have brought another socket meanwhile.
            mailbox.blocked = True
            overflowed.append(mailbox)
            return items
        self._drop(mailbox, lost)
        mailbox.lost += lost
        self.lost += lost
        if policy == "close":
            if not mailbox.blocked:
                mailbox.blocked, mailbox.overflowed = True, mailbox.holder
                overflowed.append(mailbox)
            return items[:room]
        if mailbox.loss is None:
            overflowed.append(mailbox)
        return mailbox.lose(items, lost, now)

    def _drop(self, mailbox: Mailbox, count: int) -> None:
        assert self._lock.locked()
        mailbox.dropped += count
        self.dropped += count

    def _find_worker(self) -> None:
        """
        Wake a worker; it wakes the next while there is work, for all at once would only be in each other's way. Where
        none is left, who took many items as nobody else waited is to look up.
        """
        assert self._lock.locked()
        if self._called:
            return
        if self._waiting:
            self._called = True
            self._waiting.pop().release()
        elif self._any_alone:
            for busy in self._in_hand:
                busy.interrupted = busy.interrupted or (busy.alone and len(busy.hand) > SOME)
            self._any_alone = False

    def _discard(self, mailbox: Mailbox) -> None:
        assert self._lock.locked()
        items, mailbox.items = mailbox.items or (), None
        kept = [item for item in items if isinstance(item, Essential)]
        self._drop(mailbox, len(items) - len(kept))
        mailbox.ordinary = 0
        mailbox.loss = None
        if kept:
            mailbox.essentials().extend(kept)

    def _has_drained(self, mailbox: Mailbox) -> bool:
        assert self._lock.locked()
        if mailbox.blocked and mailbox.overflow == "block" and mailbox.ordinary <= mailbox.limit * RESUME_AT:
            mailbox.blocked = False
            return True
        return False

    def _work(self) -> None:
        ear = Bell.ear()  # a condition would make one for each wait
        while self._work_once(ear):
            continue

    def _work_once(self, ear: threading.Lock) -> bool:
        """
        Wait for a mailbox, then run batches until none waits; False when there will be none.

        A call of its own, so that a worker that waits holds nothing of the batch before: it may refer to the pool.
        """
        lock = self._lock
        step_aside(lock)
        with lock:
            while not self._runnable:
                if self._stopping:
                    return False
                self._waiting.append(ear)
                lock.release()
                try:
                    ear.acquire()
                finally:
                    lock.acquire()
                    if ear in self._waiting:  # not called, but struck by Ctrl-C, as a greenlet may be
                        self._waiting.remove(ear)
                    else:
                        self._called = False
            taken: _Taken | None = self._take_up(time.monotonic())
        while taken is not None:
            mailbox, batch, loss = taken  # what was taken before is let go of here, and not under the lock
            taken, drained, running, through, done = None, False, False, False, 0
            try:
                if loss is not None:
                    self._announce(mailbox, loss)
                running = True
                done = self._run(mailbox, batch)
                through = True
            finally:
                if running and not through:  # this worker ends, and takes the item along that it ends by
                    done = min(len(batch), mailbox.done + 1)
                now = time.monotonic()
                step_aside(self._lock)
                with self._lock:
                    self._count(mailbox, done, now)
                    self._put_back(mailbox, batch, done)
                    drained = mailbox.blocked and self._has_drained(mailbox)
                    if through and self._runnable and not (drained or self._forked):
                        taken = self._take_up(now)
                    elif self._runnable:
                        self._find_worker()
                if drained and not self._forked:
                    self._on_drained(mailbox)
        return not self._forked

    def _take_up(self, now: float) -> _Taken:
        """Take the mailbox that waits longest, and wake another worker for the next."""
        assert self._lock.locked()
        mailbox = self._runnable.popleft()
        mailbox.alone = not self._runnable
        self._any_alone = self._any_alone or mailbox.alone
        if self._runnable:
            self._find_worker()
        loss = None if mailbox.loss is None or mailbox.pulled else mailbox.due_loss()
        batch = mailbox.hand = mailbox.next_batch(BATCH)
        mailbox.running = threading.get_ident()
        mailbox.interrupted = self._stopping
        mailbox.begun = mailbox.counted_at = now
        mailbox.taken_at = mailbox.generation
        self._in_hand.add(mailbox)
        return mailbox, batch, loss

    def _run(self, mailbox: Mailbox, batch: Sequence[Any]) -> int:
        """Run a batch, outside the lock; return how many of its items are used up."""
        done = mailbox.done = mailbox.counted = 0
        if not batch or isinstance(batch[0], Essential):
            for essential in batch:
                others_wait = self._runnable and time.monotonic() - mailbox.begun > SLOW_SECONDS
                if self._forked or (done and (mailbox.interrupted or others_wait)):
                    break
                self._call(essential.run, essential.item)
                done = mailbox.done = done + 1
            return done
        at = mailbox.begun
        while done < len(batch):
            if mailbox.interrupted and (done or self._stopping or mailbox.generation != mailbox.taken_at):
                break
            if done and self._runnable and at - mailbox.begun > SLOW_SECONDS:
                break
            size = 1 if mailbox.slow or (not done and len(batch) > SOME) else SOME
            try:
                some = batch if len(batch) <= size and not done else batch[done : done + size]
                mailbox.run_each(some)
            except Exception:
                self._report()
                mailbox.done += 1
            done, before, at = mailbox.done, at, time.monotonic()
            mailbox.slow = at - before > SLOW_SECONDS
            if mailbox.slow and done < len(batch):
                with self._lock:
                    self._count(mailbox, done, at)
        return done

    def _count(self, mailbox: Mailbox, done: int, now: float) -> None:
        """Count what a worker did until now with what it has in hand, of which it is through with so many items."""
        assert self._lock.locked()
        more, took = mailbox.count(done, now)
        self.delivered += more
        self.callback_seconds += took

    def _put_back(self, mailbox: Mailbox, batch: Sequence[Any], done: int) -> None:
        """A worker is through with so many items of a batch, and takes its hands off the mailbox."""
        assert self._lock.locked()
        self._in_hand.discard(mailbox)
        mailbox.runs += 1
        mailbox.running = None
        mailbox.hand = ()
        if done < len(batch):
            self._put_back_rest(mailbox, batch[done:])
        if self._stopping:
            self._discard(mailbox)
        if mailbox.spare or (not mailbox.pulled and (mailbox.items or mailbox.loss is not None)):
            self._runnable.append(mailbox)  # this very worker looks for the next
        else:
            mailbox.scheduled = False
        if self._quiescing:
            self._changed.notify_all()

    def _put_back_rest(self, mailbox: Mailbox, rest: Sequence[Any]) -> None:
        assert self._lock.locked()
        current = mailbox.generation == mailbox.taken_at and not self._stopping
        if isinstance(rest[0], Essential):
            aside = mailbox.ended or mailbox.pulled or not current
            (mailbox.essentials() if aside else mailbox.queue()).extendleft(reversed(rest))
        elif current:
            mailbox.queue().extendleft(reversed(rest))
            mailbox.ordinary += len(rest)
            mailbox.removed -= len(rest)
            if mailbox.loss is not None and mailbox.overflow == "drop_oldest":
                mailbox.loss.after = mailbox.removed + len(rest)  # these came before what was lost
        else:
            self._drop(mailbox, len(rest))

    def _announce(self, mailbox: Mailbox, loss: Loss) -> None:
        self._call(mailbox.run, mailbox.announce_loss(loss.first, loss.last, loss.count))

    def _call(self, run: Callable[[Any], None], item: Any) -> None:
        try:
            run(item)
        except Exception:
            self._report()

    def _report(self) -> None:
        # Users' exceptions are caught where their callbacks are called; this is a bug of ours.
        self._log.bug("worker_failed", "! a worker of pool %(pool)s failed outside a callback")

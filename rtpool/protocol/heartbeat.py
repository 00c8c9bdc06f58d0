"""
Whether the peer is alive: when a heartbeat is due, and until when its answer may take.
"""

from __future__ import annotations

__all__ = ["Pulse"]


#: Timeouts for which a peer is waited for that says everything but the answer. With the default options it has heard
#: from us 55 s ago then, and closes what is silent for 60 (protocol 5.3).
PATIENCE = 3


class Pulse:
    """
    The heartbeat of one connection. Only its own answers count: a timer that inbound traffic resets lets the server
    close the socket after 60 s without a word of ours, and a proxy may answer what the server does not.

    The server answers nothing while it runs a join (protocol 4.2), so a late answer alone does not count while a join
    is outstanding. Silence does: an answer that is late is waited for until the oldest join should have been answered,
    and on only as long as something is heard. The same holds without a join: behind what a slow line still has to carry
    an answer is late, and a dead peer says nothing. A proxy may go on for one, so there is an end to it.

    Args:
        interval: seconds from one answer to the next heartbeat.
        timeout: seconds an answer may take.

    Thread-safety: none; confined to the I/O thread.
    """

    def __init__(self, interval: float, timeout: float) -> None:
        self._interval = interval
        self._timeout = timeout
        self._next_at: float | None = None
        self._ref: str | None = None  # of the one that awaits its answer
        self._sent_at = 0.0
        self._deadline: float | None = None  # of the answer; None until the kernel has the heartbeat
        #: Whether the peer said something since the deadline was set; to be set with each frame.
        self.heard = False
        #: Whether the answer is late and waited for all the same.
        self.late = False

    def start(self, now: float) -> None:
        """The connection is open."""
        self._ref, self.late = None, False
        self._next_at = now + self._interval

    def stop(self) -> None:
        """The connection is gone."""
        self._ref, self.late = None, False
        self._next_at = None

    @property
    def next_deadline(self) -> float | None:
        """When something is due: the next heartbeat, or the answer to the last."""
        return self._next_at if self._ref is None else self._deadline

    def awaited(self, now: float) -> float:
        """Seconds for which an answer has been awaited; 0 while none is."""
        return 0.0 if self._ref is None else max(0.0, now - self._sent_at)

    def is_due(self, now: float) -> bool:
        """Whether a heartbeat is to be sent."""
        return self._ref is None and self._next_at is not None and self._next_at <= now

    def hasten(self, now: float) -> None:
        """There is doubt: ask now, unless an answer is awaited anyway."""
        if self._next_at is not None:
            self._next_at = min(self._next_at, now)

    def sent(self, ref: str, now: float) -> None:
        """A heartbeat is on its way."""
        self._ref, self._sent_at, self._deadline = ref, now, None

    def written(self, ref: str, now: float) -> bool:
        """The kernel has all of the frame `ref`; False when that is no heartbeat that is awaited."""
        if ref != self._ref:
            return False
        self._deadline, self.heard = now + self._timeout, False
        return True

    def answered(self, ref: str, now: float) -> float | None:
        """An answer came: its latency in seconds, None when it is to no heartbeat that is awaited."""
        if ref != self._ref:
            return None
        self._ref, self.late = None, False
        self._next_at = now + self._interval
        return now - self._sent_at

    def unseen(self, now: float) -> None:
        """
        Nothing is read at present, so no answer can be seen: one that is overdue is forgotten and the next heartbeat
        is due, because the server closes a socket it does not hear from.
        """
        if self._ref is not None and self._deadline is not None and self._deadline <= now:
            self._ref, self.late = None, False
            self._next_at = now

    def lost(self, now: float, join_due: float | None) -> float | None:
        """
        Ask whether the peer is dead.

        Args:
            join_due: when the oldest outstanding join should be answered, None without one.

        Returns:
            The seconds waited in vain, once; None while there is hope.
        """
        if self._ref is None or self._deadline is None or now < self._deadline:
            return None
        if join_due is not None and (self.heard or not self.late):
            self.late, self.heard = True, False
            self._deadline = join_due if join_due > now else now + self._timeout
            return None
        if self.heard and now - self._sent_at < self._interval + PATIENCE * self._timeout:
            self.late, self.heard = True, False
            self._deadline = now + min(self._timeout, self._interval)
            return None
        self.stop()
        return now - self._sent_at

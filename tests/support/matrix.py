"""One cell of the fault matrix: a pool is brought into a phase, a fault strikes, and the pool must come through."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import traceback
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import attrs

import rtpool
from rtpool.testing import RealtimeServer, ServerConnection, faults
from tests.support.recorder import Recorder
from tests.support.wait import wait_until

PHASES = ("idle", "joining", "joined", "publishing", "leaving")

#: Generous: only a failure waits so long.
CAP = 30.0

FAST: dict[str, Any] = {
    "base_delay": 0.02,
    "max_delay": 0.2,
    "max_retries": 3,
    "stable_after": 0.0,
    "health_check_interval": 0.3,
    "heartbeat_interval": 0.3,
    "heartbeat_timeout": 0.5,
    "join_timeout": 0.8,
    "connection_timeout": 1.0,
    "max_joins_per_second": 1000,
    "max_message_size": 1_000_000,
    "num_workers": 2,
}

#: What happens in a phase: its message to the server, and the server's to the client.
ASKED = {"idle": "heartbeat", "joining": "phx_join", "joined": "heartbeat", "publishing": "broadcast"}
ASKED["leaving"] = "phx_leave"


@attrs.frozen
class Row:
    """
    A fault, and how it is brought about.

    Attributes:
        at: ``accept``, ``upgrade``, ``later`` (at the next connection or the fault's own moment, after the socket was
            lost in the phase), ``stream`` (at once, or at the phase's message to the server), ``frame`` (at the
            server's message to the client), ``asked`` (at the phase's message), ``server`` (while the phase's message
            waits for its answer).
        tells: the error a status must carry before things may go on.
        lasts: until then, not once.
        waits: the pool is right to wait for long, and a new token ends that.
        tls: over TLS.
        costs: messages the fault itself destroys, which no client can know of.
        mixes: messages come twice or out of order.
    """

    name: str
    fault: faults.Fault
    at: str = "stream"
    tells: type[rtpool.RtpoolError] | None = None
    lasts: bool = False
    waits: bool = False
    tls: bool = False
    costs: int = 0
    mixes: bool = False

    @property
    def anew(self) -> bool:
        """Whether it strikes at a new connection or a new join."""
        return self.at in ("accept", "upgrade", "later")

    def moment(self, phase: str) -> faults.Moment | None:
        """When it is to strike; None is the fault's own."""
        if self.at in ("later", "server"):
            return None
        if self.at in ("accept", "upgrade"):
            return faults.Accepting() if self.at == "accept" else faults.Upgrading()
        if self.at == "asked":
            return faults.Receiving(ASKED[phase])
        if self.at == "frame":
            # Nobody can know of a broadcast that was never sent.
            shown = phase == "joined" and not isinstance(self.fault, faults.Drop)
            return faults.Sending("broadcast") if shown else faults.Replying(ASKED[phase])
        return cut_at(phase)


def cut_at(phase: str) -> faults.Moment:
    """Where a connection fails in a phase."""
    return faults.Now() if phase in ("idle", "joined") else faults.Receiving(ASKED[phase])


def alive(connection: ServerConnection) -> bool:
    """Whether the client still holds its end of a socket, whatever the server has noticed."""
    with contextlib.suppress(OSError):
        sock = connection.stream.transport.get_extra_info("socket")
        return bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 1)  # ESTABLISHED
    return False


class Places:
    """Watches at the server that a topic has one place: no join while another living socket has it or asks for it."""

    def __init__(self, server: RealtimeServer) -> None:
        self.doubled: list[str] = []
        self._server = server
        self._asked: dict[int, set[str]] = {}
        server.inject(faults.Drop(), on=faults.Receiving("phx_join", where=self._joining), times=None)
        server.inject(faults.Drop(), on=faults.Receiving("phx_leave", where=self._leaving), times=None)

    def _joining(self, occasion: Any) -> bool:
        here, topic = occasion.connection, occasion.message.topic
        # What the client asked for on a socket that it has left since, and that was read late, it asks for no more.
        for other in self._server.connections if alive(here) else ():
            if other is not here and alive(other) and topic in (*other.topics, *self._asked.get(other.id, ())):
                self.doubled.append(f"{topic} joined on socket {here.id} while socket {other.id} has it")
        self._asked.setdefault(here.id, set()).add(topic)
        return False

    def _leaving(self, occasion: Any) -> bool:
        self._asked.get(occasion.connection.id, set()).discard(occasion.message.topic)
        return False


@attrs.frozen
class Tick:
    """A numbered broadcast, and between which two moments it was sent."""

    number: int
    before: datetime
    after: datetime


class Cell:
    """
    One cell; `run` plays it and returns what went wrong.

    Args:
        row, phase: which.
        certificates: TLS contexts of the server and of the client.
    """

    def __init__(self, row: Row, phase: str, certificates: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
        self.row, self.phase = row, phase
        serving, trusting = certificates
        self._ssl = trusting if row.tls else None
        self.server = RealtimeServer(ssl_context=serving if row.tls else None)
        self.statuses = Recorder()
        self.problems: list[str] = []
        self.ticks: list[Tick] = []
        self.strikes = 0
        self.strikes_now: Callable[[], int] = lambda: 0
        #: Broadcasts made while the Channel was wanted, those it did not get, and the Gaps it was told of.
        self.published = self.missing = self.told_gaps = 0

    def run(self) -> list[str]:
        """Play it."""
        try:
            with self.server:
                self.places = Places(self.server)
                options = {"api_key": self.server.api_key, "ssl_context": self._ssl, **FAST}
                self.pool = rtpool.RealtimePool(self.server.url, **options)
                try:
                    self._play()
                finally:
                    if not self.pool.close(5):
                        self.problems.append("close() was not in time")
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            line = next(f.lineno for f in traceback.extract_tb(error.__traceback__)[::-1] if "matrix" in f.filename)
            self.problems.append(f"{type(error).__name__} in line {line} ({where.name}): {str(error)[:300]}")
        return self.problems

    # The course of things

    def _play(self) -> None:
        self.pool.on_status(self.statuses)
        self._new_channel()
        if self.phase == "idle":
            self.pool.connect(CAP)
        elif self.phase != "joining":
            self._subscribe()
        with contextlib.ExitStack() as undo:
            finish = self._strike(undo)
            if self.row.tells is not None:
                self._until(f"{self.row.tells.__name__} is told", self._told)
        if self.phase != "leaving":
            finish()
        self._recover()
        self.strikes = self.strikes_now()
        self._check()

    def _new_channel(self) -> None:
        self.heard, self.gaps = Recorder(), Recorder()
        self.channel = self.pool.channel("room", ack=True).on_broadcast("tick", self.heard).on_gap(self.gaps)
        self.channel.on_status(self.statuses)
        self.since: datetime | None = None

    def _subscribe(self) -> None:
        self.channel.subscribe(timeout=CAP)
        self.since = datetime.now(timezone.utc)

    def _strike(self, undo: contextlib.ExitStack) -> Callable[[], None]:
        """Bring the fault about; returns what ends the phase."""
        row, phase, server = self.row, self.phase, self.server
        times = None if row.lasts else 1
        held = None
        if row.at == "server" and phase in ("joining", "publishing", "leaving"):
            held = undo.enter_context(server.inject(faults.Delay(60.0), on=faults.Receiving(ASKED[phase])))
        elif row.at != "server":
            on = row.moment(phase)
            injection = undo.enter_context(server.inject(row.fault, on=on, times=times))
            if row.anew and phase != "joining":
                undo.enter_context(server.inject(faults.Reset(), on=cut_at(phase)))
        finish = self._act()
        if held is not None:
            held.wait(timeout=CAP)
        if row.at == "server":
            injection = undo.enter_context(server.inject(row.fault))
            if isinstance(row.fault, faults.SlowTls):
                undo.enter_context(server.inject(faults.Reset()))
        self.strikes_now = lambda: injection.strikes
        if phase == "leaving":
            finish()
        unused = phase in ("idle", "leaving")  # somebody must miss the connection that fails, or need another
        early = row.anew or row.at == "server"
        if unused and early:
            self.channel.subscribe(wait=False)
        self._until("the fault strikes", lambda: injection.strikes)
        if unused and row.tells and not early:
            self.channel.subscribe(wait=False)
        return finish

    def _act(self) -> Callable[[], None]:
        """Do what the phase is about; returns what waits for its end."""
        if self.phase == "joining":
            self.channel.subscribe(wait=False)
        elif self.phase == "publishing":
            pushes = [self.channel.send_broadcast("mine", {"n": n}, timeout=3.0) for n in range(5)]
            return lambda: self._settled(pushes)
        elif self.phase == "leaving":
            escaped: list[BaseException] = []

            def leave() -> None:
                try:
                    self.channel.unsubscribe(timeout=CAP)
                except rtpool.RtpoolError:
                    return
                except BaseException as error:
                    escaped.append(error)

            leaving = threading.Thread(target=leave, name="leaving")
            leaving.start()
            return lambda: self._left(leaving, escaped)
        return lambda: None

    def _settled(self, pushes: list[rtpool.Push]) -> None:
        for push in pushes:
            with contextlib.suppress(rtpool.RtpoolError):
                push.result(CAP)
            if not push.done():
                self.problems.append("a push was never settled")

    def _left(self, leaving: threading.Thread, escaped: list[BaseException]) -> None:
        leaving.join(CAP + 3)
        if leaving.is_alive() or escaped:
            self.problems.append(f"unsubscribe() did not end well: {escaped or 'it hangs'}")
        self._new_channel()

    def _recover(self) -> None:
        if self.row.waits:
            self.pool.set_auth(self.server.token(sub="me"))
        if not self.channel.is_subscribed:
            self.channel.subscribe(wait=False)
        self._until("the channel is joined", lambda: self.channel.is_subscribed)
        self.since = self.since or datetime.now(timezone.utc)
        first = len(self.ticks)

        def arrives() -> bool:
            return any(number >= first for number in self.heard.numbers) and self.channel.is_subscribed

        self._until("a broadcast arrives", arrives)
        self.channel.send_broadcast("ping", {}, timeout=CAP).result(CAP)

    # What must hold

    def _told(self) -> bool:
        if self.phase in ("idle", "leaving") and self.channel.is_subscribed:
            return True  # nobody needed what was lost
        assert self.row.tells is not None
        return any(isinstance(change.error, self.row.tells) for change in list(self.statuses.events))

    def _check(self) -> None:
        running = {thread.name for thread in threading.enumerate()}
        for role in ("io", "worker-0", "worker-1"):
            if f"rtpool-{self.pool._engine.name}-{role}" not in running:
                self.problems.append(f"the thread {role} died")
        self.problems += sorted(set(self.places.doubled))
        before = ""  # the pool's status
        for change in self.statuses.events:
            asked_for = change.status == "reconnecting" and before == "error"  # a user's attempt, not an outage
            before = before if change.topic else change.status
            bad = change.status in ("error", "refused", "timed_out", "reconnecting") and not asked_for
            if bad and not isinstance(change.error, rtpool.RtpoolError):
                self.problems.append(f"status {change.status!r} without a typed error: {change.error!r}")
        self._gap_rule()
        if not self.row.mixes and self.heard.numbers != sorted(set(self.heard.numbers)):
            self.problems.append(f"not once and in order: {self.heard.numbers[:50]}")
        self._wait("one socket is left", lambda: sum(map(alive, self.server.connections)) <= 1)

    def _gap_rule(self) -> None:
        costs = self.strikes * self.row.costs
        with contextlib.suppress(AssertionError):  # said below, with numbers
            wait_until(lambda: len(self._missed()) <= costs, cap=2.0)
        missed, got = self._missed(), set(self.heard.numbers)
        counted = [tick for tick in self.ticks if self.since is not None and tick.before >= self.since]
        self.published, self.told_gaps = len(counted), len(self.gaps.events)
        self.missing = sum(tick.number not in got for tick in counted)
        if len(missed) > costs:
            gaps = [(gap.cause, str(gap.lost_from.time()), str(gap.lost_to.time())) for gap in self.gaps.events]
            edge = str(missed[0].after.time()), str(missed[-1].before.time())
            self.problems.append(f"{len(missed)} messages are neither here nor in a gap, {edge}; gaps {gaps}")

    def _missed(self) -> list[Tick]:
        got = set(self.heard.numbers)
        return [
            tick
            for tick in self.ticks
            if tick.number not in got
            and self.since is not None
            and tick.before >= self.since
            and not any(gap.lost_from <= tick.after and tick.before <= gap.lost_to for gap in self.gaps.events)
        ]

    def _until(self, what: str, predicate: Callable[[], object]) -> None:
        """Publish until something is so."""

        def now() -> object:
            before = datetime.now(timezone.utc)
            self.server.broadcast("room", "tick", {"n": len(self.ticks)})
            self.ticks.append(Tick(len(self.ticks), before, datetime.now(timezone.utc)))
            return predicate()

        self._wait(what, now)

    def _wait(self, what: str, predicate: Callable[[], object]) -> None:
        try:
            wait_until(predicate, cap=CAP)
        except AssertionError:
            shown = [(c.topic, c.status, repr(c.error)[:80]) for c in self.statuses.events[-4:]]
            raise AssertionError(f"{what}: not within {CAP} s; the last said was {shown}") from None

"""Pools in every state there is, and what may be stuck meanwhile: the stages of the close matrix."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import rtpool
from rtpool.engine import mover as mover_module
from rtpool.engine.mover import Mover
from rtpool.testing import NO_REPLY, RealtimeServer, faults
from rtpool.testing.connection import ServerConnection
from tests.support.peer import Peer, silence
from tests.support.recorder import Recorder
from tests.support.wait import CAP, wait_until

__all__ = ["DIAL", "PLACES", "STUCK", "WORKER", "Cell", "Closed", "Stage", "black_hole", "pool_threads"]

#: A host whose look-up hangs until the cell is over.
HANGING_HOST = "hanging.example"
#: Threads of a pool that user code, or the system's resolver, does not let go of.
DIAL, WORKER = "dial", "worker"


class Closed(NamedTuple):
    """What one call of `close` did."""

    stopped: bool
    seconds: float
    #: The pool's threads that ran when it returned, the calling one aside.
    running: frozenset[str]


class Cell(NamedTuple):
    """Where the pool is, who closes it, what is stuck."""

    place: str
    caller: str
    stuck: str

    def __str__(self) -> str:
        return f"{self.place} / {self.caller} / {self.stuck}"


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Stage:
    """
    One pool, brought into one state, and all that has to be let go of afterwards.

    Args:
        server: the pool's, where there is one.
        cell: what is played.
    """

    def __init__(self, server: RealtimeServer, cell: Cell) -> None:
        self.server, self.cell = server, cell
        self.cleanup = contextlib.ExitStack()
        self.release = threading.Event()
        self.cleanup.callback(self.release.set)
        self.options: dict[str, Any] = {"base_delay": 30.0, "max_delay": 60.0, "max_joins_per_second": 10_000}
        self.url, self.key = server.url, server.api_key
        self.pool: rtpool.RealtimePool
        self.hang: set[str] = set()  # kinds of threads that do not end before `release`
        self.slow = False  # whether the peer answers no close
        self.pushes: list[rtpool.Push] = []
        self.threads: list[threading.Thread] = []
        self.escaped: list[BaseException] = []
        # A callback that closes the pool enters before the pool gets stuck, and goes on afterwards.
        self.go = threading.Event()
        self.cleanup.callback(self.go.set)
        self.entered = threading.Event()
        self.closed = Recorder()
        self.timeout: float | None = None
        # A logger apart from all others, whose handlers would keep what its records refer to.
        lines, apart = _Lines(), logging.Logger("apart", logging.WARNING)  # noqa: LOG001
        apart.addHandler(lines)
        self.options["logger"], self.log = logging.LoggerAdapter(apart, {}), lines.lines

    # The pool

    def make(self, **options: Any) -> rtpool.RealtimePool:
        self.pool = rtpool.RealtimePool(self.url, api_key=self.key, **{**self.options, **options})
        if self.cell.caller == "a status listener":
            self.pool.on_status(lambda change: self.close_once())
        if self.cell.stuck in ("a callback", "a callback that loops") and not self.talks:
            self.pool.on_status(lambda change: self.get_stuck())
        return self.pool

    @property
    def talks(self) -> bool:
        """Whether the pool has a joined Channel in this cell."""
        return PLACES[self.cell.place].talks

    def spawn(self, call: Callable[[], object]) -> threading.Thread:
        """A thread that may be told of the pool's end, and of nothing worse."""

        def run() -> None:
            try:
                call()
            except rtpool.RtpoolError:
                return
            except BaseException as error:
                self.escaped.append(error)

        self.threads.append(threading.Thread(target=run, name="actor", daemon=True))
        self.threads[-1].start()
        return self.threads[-1]

    @property
    def connections(self) -> list[Any]:
        """The pool's own."""
        return list(self.pool._engine.coordinator.connections.every)

    def own(self) -> list[ServerConnection]:
        """The pool's connections, as the server has them."""
        ports = {
            c.transport.sock.getsockname()[1] for c in self.pool._engine.coordinator.connections.all if c.transport
        }
        return [c for c in self.server.connections if c.peer[1] in ports]

    def join_base(self) -> None:
        """A Channel whose callbacks may be those that close the pool, or are stuck."""
        self.base = self.pool.channel("base", ack=True)
        self.base.on_broadcast("close", lambda message: self.close_once())
        self.stuck_channel = self.pool.channel("stuck").on_broadcast("*", lambda message: self.get_stuck())
        self.base.subscribe()
        self.stuck_channel.subscribe()
        self.call_in()

    def call_in(self) -> None:
        """Have the callback entered that will close the pool."""
        if self.cell.caller == "a callback":
            self.server.broadcast("base", "close", {})
        elif self.cell.caller == "a push's callback":
            push = self.base.send_broadcast("x", {})
            push.add_done_callback(lambda push: self.close_once())
        elif self.cell.caller != "a status listener":
            return
        assert self.entered.wait(CAP), "nobody called back"

    # What callbacks do

    def close_once(self) -> None:
        if not self.entered.is_set():
            self.entered.set()
            assert self.go.wait(CAP)
            self.closed(self.close())

    def get_stuck(self) -> None:
        if self.cell.stuck == "a callback that loops":
            while not self.release.wait(0.01):
                continue
        else:
            assert self.release.wait(CAP)

    def close(self) -> Closed:
        caller, before = threading.current_thread(), time.monotonic()
        stopped = self.pool.close() if self.timeout is None else self.pool.close(self.timeout)
        seconds = time.monotonic() - before
        return Closed(stopped, seconds, frozenset(t.name for t in pool_threads(self.pool) if t is not caller))


def pool_threads(pool: rtpool.RealtimePool) -> list[threading.Thread]:
    prefix = f"rtpool-{pool._engine.name}-"
    return [t for t in threading.enumerate() if t.name.startswith(prefix)]


# Where the pool is


class Place(NamedTuple):
    """
    Args:
        enter: brings a stage's pool there.
        talks: whether it has a joined Channel then, or had one.
        is_open: whether it has an open connection.
        starts: whether it has threads.
    """

    enter: Callable[[Stage], None]
    talks: bool = False
    is_open: bool = False
    starts: bool = True


def unused(stage: Stage) -> None:
    stage.make().channel("room").on_broadcast("*", print)


def dialling(stage: Stage) -> None:
    stage.make().channel("room").subscribe(wait=False)
    stage.call_in()


def resolving(stage: Stage) -> None:
    look_up, asked = socket.getaddrinfo, threading.Event()

    def hang(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host != HANGING_HOST:
            return look_up(host, *args, **kwargs)
        asked.set()
        stage.release.wait(CAP)
        raise socket.gaierror(socket.EAI_AGAIN, "the resolver gave up")

    socket.getaddrinfo = hang
    stage.cleanup.callback(setattr, socket, "getaddrinfo", look_up)
    stage.cleanup.callback(stage.release.set)  # before that, for it is what hangs
    stage.url, stage.hang = f"http://{HANGING_HOST}", {DIAL}
    dialling(stage)
    assert asked.wait(CAP)


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """A port of loopback to which packets are dropped: a connection is neither made nor refused."""
    with contextlib.ExitStack() as sockets:
        hole = sockets.enter_context(socket.socket())
        hole.bind(("127.0.0.1", 0))
        hole.listen(0)
        for _ in range(16):  # fill what the system keeps for a port that nobody serves
            filler = sockets.enter_context(socket.socket())
            filler.settimeout(0.02)
            try:
                filler.connect(hole.getsockname())
            except TimeoutError:
                break
        else:
            raise AssertionError("this system drops nothing")
        yield hole.getsockname()[1]


def connecting(stage: Stage) -> None:
    port = stage.cleanup.enter_context(black_hole())
    stage.url = f"http://127.0.0.1:{port}"
    dialling(stage)
    wait_until(lambda: any(d._sock is not None for d in stage.pool._engine.dialer._dials), "a socket connects")


def silent_peer(stage: Stage, scheme: str) -> None:
    accepted = threading.Event()

    def serve(peer: Peer, sock: socket.socket) -> None:
        accepted.set()
        silence(peer, sock)

    peer = stage.cleanup.enter_context(Peer(serve))
    stage.url = f"{scheme}://127.0.0.1:{peer.port}"
    dialling(stage)
    assert accepted.wait(CAP)


def idle(stage: Stage) -> None:
    stage.make().connect()
    stage.call_in()


def joined(stage: Stage) -> None:
    stage.make()
    stage.join_base()


def joining(stage: Stage) -> None:
    joined(stage)
    stage.cleanup.callback(setattr, stage.server, "on_join", None)
    stage.server.on_join = lambda topic, payload, connection: NO_REPLY if topic == "mute" else None
    stage.spawn(lambda: stage.pool.channel("mute").subscribe(timeout=CAP))
    stage.server.wait_for(lambda server: server.joins("mute"))


def publishing(stage: Stage) -> None:
    joined(stage)
    begun = threading.Event()

    def publish() -> None:
        number = 0
        while not stage.release.wait(0.001):
            stage.pushes.append(stage.base.send_broadcast("n", {"n": number, "pad": "x" * 500}))
            number += 1
            if number > 20:
                begun.set()

    stage.spawn(publish)
    stage.spawn(publish)
    assert begun.wait(CAP)


def leaving(stage: Stage) -> None:
    joined(stage)
    channel = stage.pool.channel("left").subscribe()
    unanswered = stage.server.inject(faults.Drop(), on=faults.Replying("phx_leave", topic="left"), times=None)
    stage.cleanup.callback(unanswered.undo)
    stage.spawn(lambda: channel.unsubscribe(timeout=CAP))
    unanswered.wait()


def lost(stage: Stage, status: str) -> None:
    stage.join_base()
    refusing = stage.server.inject(faults.Refuse(503), times=None)
    stage.cleanup.callback(refusing.undo)
    for connection in stage.own():
        connection.abort()
    wait_until(lambda: stage.pool.stats().connection_status == status, status)


def reconnecting(stage: Stage) -> None:
    stage.make()
    lost(stage, "reconnecting")


def in_error(stage: Stage) -> None:
    stage.make(max_retries=0)
    lost(stage, "error")


def merging(stage: Stage) -> None:
    stage.cleanup.callback(setattr, mover_module, "CALM_SECONDS", mover_module.CALM_SECONDS)
    mover_module.CALM_SECONDS = 0.0
    stage.make(max_channels_per_connection=5, enable_health_check=False)
    stage.join_base()
    channels = [stage.pool.channel(f"topic-{n}").subscribe() for n in range(8)]
    for channel in channels[1:-1]:
        channel.unsubscribe()
    mover: Mover = stage.pool._engine.coordinator.mover
    stage.pool._engine.post(lambda: mover.merge() and None)
    wait_until(lambda: mover.move is not None, "a join is being moved")


def waiting_for_a_token(stage: Stage) -> None:
    stage.make()
    stage.join_base()
    asked = threading.Event()

    def token() -> str:
        asked.set()
        stage.release.wait(CAP)
        return "late"

    stage.hang = {DIAL}
    stage.pool.channel("guarded", access_token=token).subscribe(wait=False)
    assert asked.wait(CAP)


def waiting_for_a_strategy(stage: Stage) -> None:
    asked = threading.Event()

    def wait(state: object) -> float:
        asked.set()
        stage.release.wait(CAP)
        return 30.0

    stage.make(reconnect=rtpool.ReconnectPolicy(wait=wait))
    stage.hang = {DIAL}
    stage.join_base()
    refusing = stage.server.inject(faults.Refuse(503), times=None)
    stage.cleanup.callback(refusing.undo)
    for connection in stage.own():
        connection.abort()
    assert asked.wait(CAP)


PLACES = {
    "unused": Place(unused, starts=False),
    "resolving a name": Place(resolving),
    "connecting to a black hole": Place(connecting),
    "in a stuck TLS handshake": Place(lambda stage: silent_peer(stage, "https")),
    "waiting for the upgrade's answer": Place(lambda stage: silent_peer(stage, "http")),
    "connected and idle": Place(idle, is_open=True),
    "joining": Place(joining, talks=True, is_open=True),
    "joined": Place(joined, talks=True, is_open=True),
    "publishing": Place(publishing, talks=True, is_open=True),
    "leaving": Place(leaving, talks=True, is_open=True),
    "waiting to reconnect": Place(reconnecting, talks=True),
    "in error": Place(in_error, talks=True),
    "merging sockets": Place(merging, talks=True, is_open=True),
    "waiting for a token": Place(waiting_for_a_token, talks=True, is_open=True),
    "waiting for a strategy": Place(waiting_for_a_strategy, talks=True),
}

# What is stuck


def freeze(stage: Stage) -> None:
    stage.slow = True
    for connection in stage.own():
        connection.freeze()
        stage.cleanup.callback(connection.thaw)


def fill_the_buffer(stage: Stage) -> None:
    stage.slow = True
    for connection in stage.own():
        connection.pause_reading()
        stage.cleanup.callback(connection.resume_reading)
    connections = stage.pool._engine.coordinator.connections

    def is_full() -> bool:
        return any(c.transport is not None and c.transport.queued for c in connections.all)

    while not is_full():
        stage.pushes.append(stage.stuck_channel.send_broadcast("big", bytes(500_000)))
        wait_until(lambda: stage.pushes[-1].done() or is_full(), "a push goes out, or it is full")


def stick_a_callback(stage: Stage) -> None:
    stage.hang = {*stage.hang, WORKER}
    mailbox = stage.pool._engine._pool_mailbox
    if stage.talks:
        mailbox = stage.stuck_channel._subscriber.mailbox
        if stage.cell.place in UNREACHABLE:
            engine = stage.pool._engine  # no server can: the callback of a push that is settled here
            assert engine.dispatcher.deliver_essential(mailbox, lambda item: stage.get_stuck(), None)
        else:
            stage.server.broadcast("stuck", "x", {})
    wait_until(lambda: mailbox.running is not None, "a callback is stuck")


def fill_a_mailbox(stage: Stage) -> None:
    stick_a_callback(stage)
    for number in range(30):
        stage.server.broadcast("stuck", "x", {"n": number})
    connections = stage.pool._engine.coordinator.connections
    wait_until(lambda: any(c.paused_by for c in connections.all), "a socket is not read")


def call_rest(stage: Stage) -> None:
    begun = threading.Event()
    if stage.talks or stage.cell.place in ("unused", "connected and idle"):
        frozen = stage.server.inject(faults.Freeze(), on=faults.Accepting())
        stage.cleanup.callback(frozen.undo)
        begun.set()
        stage.spawn(lambda: stage.pool.broadcast("room", "x", {}, timeout=CAP))
        frozen.wait()
        return
    stage.spawn(lambda: (begun.set(), stage.pool.broadcast("room", "x", {}, timeout=CAP)))
    assert begun.wait(CAP)


#: Where no server can send anything.
UNREACHABLE = ("waiting to reconnect", "in error", "waiting for a strategy")

STUCK: dict[str, Callable[[Stage], None]] = {
    "nothing": lambda stage: None,
    "a silent peer": freeze,
    "a full send buffer": fill_the_buffer,
    "a callback": stick_a_callback,
    "a callback that loops": stick_a_callback,
    "a full mailbox that blocks": fill_a_mailbox,
    "a REST call": call_rest,
}

"""
One WebSocket of the pool: a transport and a session, and what the I/O loop asks of them.
"""

from __future__ import annotations

import os
import selectors
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rtpool.engine.logs import Log
from rtpool.engine.transport import READ_SIZE, Transport, TransportClosed
from rtpool.errors import ConnectionFailed, MessageTooBig, ProtocolError, RtpoolError
from rtpool.options import PoolOptions
from rtpool.protocol.frames import (
    CLOSE_NORMAL,
    CLOSE_SERVICE_RESTART,
    CLOSE_TOO_BIG,
    OP_BINARY,
    OP_CLOSE,
    OP_PING,
    OP_PONG,
    OP_TEXT,
    FrameDecoder,
    FrameEncoder,
    WsMessage,
    close_code,
)
from rtpool.protocol.messages import WireMessage
from rtpool.protocol.placement import Slot
from rtpool.protocol.refusals import classify_close
from rtpool.protocol.serializer import serializer_for
from rtpool.protocol.session import Session
from rtpool.protocol.session_events import Fenced, HeartbeatLost, HeartbeatReplied, SessionEvent
from rtpool.stats import ConnectionDetails

if TYPE_CHECKING:
    from rtpool.engine.io_loop import Timer
    from rtpool.engine.joins import Join

__all__ = ["Connection"]

#: Seconds a message may be under way, beyond a heartbeat's round trip: in buffers, and behind other work of ours.
UNDER_WAY = 1.0
#: Bytes below which what came is no sign of more: one packet holds them.
SEGMENT = 1_000
#: On a busy connection it is known this many times per `heartbeat_interval` what has arrived.
SURE_PART = 5
#: Bytes that wait for a peer that reads nothing; above them its pings are not answered, which it would not read either.
PONG_LIMIT = 64 * 1024
#: Seconds after which the session is looked after though nothing is due: what is measured by another clock may be.
LOOK_SECONDS = 1.0


class Connection:
    """
    One WebSocket. Its identity, and the joins placed on it, outlive the socket.

    Args:
        connection_id: unique within the pool.
        options: the pool's.
        on_events: what the session says, in order.
        on_lost: the socket is of no use any more, and why.
        clock: seconds that pass while the machine sleeps, too, for proofs of life.
        log: where frames are told, and what is wrong with them.

    Thread-safety: confined to the I/O thread; `details` may be called anywhere.
    """

    def __init__(
        self,
        connection_id: int,
        options: PoolOptions,
        on_events: Callable[[Connection, list[SessionEvent]], None],
        on_lost: Callable[[Connection, RtpoolError], None],
        clock: Callable[[], float],
        log: Log,
    ) -> None:
        self.connection_id = connection_id
        self._options = options
        self._log = log
        self._tells_frames = log.tells_frames
        self._on_events = on_events
        self._on_lost = on_lost
        self._clock = clock
        self.session = Session(
            serializer_for(options.protocol),
            heartbeat_interval=options.heartbeat_interval,
            heartbeat_timeout=options.heartbeat_timeout,
            join_timeout=options.join_timeout,
            max_joins_in_flight=options.max_joins_in_flight,
        )
        self.transport: Transport | None = None
        self.state = "dialing"  # dialing open waiting error closing closed
        self.epoch = 0
        self.capacity = options.max_channels_per_connection
        self.draining = False  # its node of the server takes no joins any more
        self.joins: dict[str, Join] = {}
        self.guests: set[str] = set()  # topics joined here that no join lives by, see `Mover`
        self.idle_timer: Timer | None = None
        self.paused_by: set[Any] = set()  # mailboxes with overflow="block" that are full
        # Of the present outage: failed attempts, when the first and the last failed, whether that opened and did not
        # last.
        self.attempts = 0
        self.first_failed_at: float | None = None
        self.failed_at = 0.0
        self.crashes = False
        self.hoped = False  # there was reason to, while it was dialled
        self.at_rest = False  # nothing is to dial it unless asked to
        self.dials = 0
        self.dial_deadline: Timer | None = None  # of the one under way
        self.redial: Timer | None = None
        self.last_error: RtpoolError | None = None
        self.opened_at = 0.0
        #: Seconds the server's clock is ahead of ours, as far as its handshake told.
        self.clock_skew = 0.0
        #: When bytes arrived last, by `clock`.
        self.proof_of_life = 0.0
        # When a heartbeat was sent whose answer, and so all that was sent before it, has arrived; the bytes received by
        # then; whether reading has paused since.
        self._sure_at = 0.0
        self._sure_bytes = 0
        self._paused = False
        self._way = 0.0  # seconds of the last round trip
        self._fence: tuple[str, float] | None = None  # a heartbeat between heartbeats, and when it was sent
        self._wrote_at = 0.0
        self._look_at = 0.0  # when `tick` is to do more than send
        # Counters; this thread is their only writer.
        self.messages_received = 0
        self._control_frames = 0  # of this transport, seen to
        self._unreadable = 0
        # The transport, and the bytes received and sent by those before it: one value, for a look from another thread.
        self._books: tuple[Transport | None, int, int] = (None, 0, 0)
        self.heartbeat_latency: float | None = None
        self._said_goodbye = False

    # What the loop asks

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self.transport.sock.fileno() if self.transport else -1

    def interest(self) -> int:
        """The selector events waited for."""
        transport = self.transport
        return transport.interest(reading=self._reads) if transport is not None else 0

    def has_more(self) -> bool:
        """Whether bytes may be at hand that the selector cannot see."""
        return self.transport is not None and self.transport.has_more and self._reads

    def next_deadline(self) -> float | None:
        """When `tick` has something to do."""
        if self.transport is None:
            return None
        deadline = self.session.next_deadline()
        if self.transport.queued:
            stalled = self._wrote_at + self._patience
            deadline = stalled if deadline is None else min(deadline, stalled)
        if deadline is not None and deadline < self._look_at:
            self._look_at = deadline
        return deadline

    def ready(self, events: int, now: float) -> None:
        """Read and write what can be without waiting."""
        if self.transport is None:
            return
        try:
            if events & selectors.EVENT_READ or self.transport.read_wants_write:
                self._read(now)
            self._pump(now)
        except (TransportClosed, ProtocolError, MessageTooBig, ConnectionFailed) as error:
            self._broke(error, now)

    def tick(self, now: float) -> None:
        """Time passed, or commands were carried out: send what they left."""
        if self.transport is None:
            events = self.session.events()  # what is left while there is no socket is left at once
            if events:
                self._on_events(self, events)
            return
        try:
            if self.session.has_output:  # before all else: somebody waits for it
                self._pump(now)
            if self.transport is None or (now < self._look_at and not self.paused_by):
                return
            self._look_at = now + LOOK_SECONDS
            if self.paused_by:
                self._paused = True
                self.session.not_reading(now)
            self.session.tick(now)
            self._make_sure(now, self._clock())
            self._pump(now)
            if self.transport is not None and self.transport.queued and now - self._wrote_at >= self._patience:
                raise ConnectionFailed(
                    f"connection {self.connection_id}: the server took no byte for {now - self._wrote_at:.1f} s"
                )
        except (TransportClosed, ProtocolError, ConnectionFailed) as error:
            self._broke(error, now)

    # What the coordinator does

    def open(self, sock: socket.socket, now: float) -> None:
        """Take over a connected socket."""
        decoder = FrameDecoder(self._options.max_message_size)
        self.transport = Transport(sock, decoder, FrameEncoder(os.urandom))
        self._books = (self.transport, *self._bytes)
        self._control_frames = 0
        self.state, self.hoped = "open", False
        self.epoch += 1
        self.opened_at = self._wrote_at = self._look_at = now
        self.proof_of_life = self._clock()
        self._fence = None
        self._is_sure(self.proof_of_life)
        self.session.connected(now)
        self.draining = False
        self.capacity = self._options.max_channels_per_connection  # what the server said was of the socket before

    def cancel_redial(self) -> None:
        """Wait for no further attempt."""
        if self.redial is not None:
            self.redial.cancel()
            self.redial = None

    def close_socket(self) -> None:
        """Close the socket, keep the identity. The loop must have let go of it."""
        if self.transport is not None:
            transport, self.transport = self.transport, None
            self._books = (None, *self._bytes)
            transport.close()
        self.paused_by.clear()

    def say_goodbye(self, now: float) -> None:
        """Queue what the session still has, then a close frame; the peer's answer ends the connection."""
        self.state = "closing"
        if self.transport is not None:
            try:
                self._send_frames(now)
                self.transport.send_close(CLOSE_NORMAL)
                self._said_goodbye = True
                self._send_frames(now)
            except (TransportClosed, ProtocolError) as error:
                self._broke(error, now)

    @property
    def age(self) -> float:
        """Seconds since the last proof of life."""
        return max(0.0, self._clock() - self.proof_of_life)

    @property
    def silence(self) -> float:
        """
        Seconds for which it is not sure that all that was sent has arrived.

        Where something arrives, more may wait at the server's side of a slow line, or behind a mailbox that is full:
        only the answer to a heartbeat says that all before it is here. Where nothing came since, there was nothing.
        """
        quiet = self._all_received - self._sure_bytes < SEGMENT
        known_at = self.proof_of_life if quiet and not self._paused else self._sure_at
        return max(0.0, self._clock() - known_at) + self.under_way

    def _is_sure(self, at: float) -> None:
        """All that was sent before the instant `at` has arrived."""
        self._sure_at, self._paused = at, bool(self.paused_by)
        self._sure_bytes = self._all_received

    def _make_sure(self, now: float, at: float) -> None:
        """
        While messages come in, ask more often than heartbeats do: a gap is as wide as the last answer is old. `at` is
        what the clock of proofs of life says now.
        """
        late = at - self._sure_at >= self._options.heartbeat_interval / SURE_PART
        if late and self._fence is None and self._all_received - self._sure_bytes >= SEGMENT:
            self._fence = self.session.fence(now), at

    @property
    def under_way(self) -> float:
        """Seconds a message may be under way."""
        return UNDER_WAY + self._way

    def slot(self) -> Slot:
        """What placement needs to know."""
        topics = {*self.joins, *self.guests} if self.guests else self.joins
        capacity = 0 if self.draining else self.capacity
        return Slot(self.connection_id, topics, len(topics), capacity, self.state == "open")

    @property
    def is_idle(self) -> bool:
        """Whether nobody lives here."""
        return not (self.joins or self.guests)

    @property
    def awaits_closing(self) -> bool:
        """Whether it will be closed unless somebody comes to live here."""
        return self.idle_timer is not None and not self.idle_timer.cancelled

    def details(self) -> ConnectionDetails:
        """A snapshot for stats; numbers may be a moment apart when called on another thread."""
        transport = self.transport
        bytes_received, bytes_sent = self._bytes
        return ConnectionDetails(
            connection_id=self.connection_id,
            state=self.state,
            epoch=self.epoch,
            joins=len(self.joins),
            attempts=0 if self.state == "open" else self.attempts,
            bytes_received=bytes_received,
            bytes_sent=bytes_sent,
            messages_received=self.messages_received,
            messages_unheard=self._unreadable + self.session.dropped,
            heartbeat_latency=self.heartbeat_latency,
            send_queue=transport.queued if transport else 0,
        )

    # Inside

    @property
    def _reads(self) -> bool:
        """Whether it is read: by the end at the latest, for the peer's answer to the goodbye."""
        return not self.paused_by or self._said_goodbye

    @property
    def _bytes(self) -> tuple[int, int]:
        """Received and sent, ever."""
        transport, received, sent = self._books
        if transport is None:
            return received, sent
        return received + transport.bytes_received, sent + transport.bytes_sent

    @property
    def _all_received(self) -> int:
        return self._bytes[0]

    @property
    def _patience(self) -> float:
        return self._options.heartbeat_interval + self._options.heartbeat_timeout

    def _read(self, now: float) -> None:
        """Read what is there, within a turn's share; what one call brings is handed over before the next."""
        transport = self.transport
        assert transport is not None
        share = transport.bytes_received + READ_SIZE
        while transport is self.transport and self._reads and transport.bytes_received < share:
            received_before = transport.bytes_received
            messages = transport.receive()
            if transport.bytes_received != received_before:
                self.proof_of_life = self._clock()
                self._make_sure(now, self.proof_of_life)
            self._receive(messages, now)
            if not transport.has_more:
                return
            self._pump(now)

    def _receive(self, messages: list[WsMessage], now: float) -> None:
        transport = self.transport
        assert transport is not None
        if transport.control_frames == self._control_frames:
            self._take(messages, now)
            return
        self._control_frames = transport.control_frames
        data: list[WsMessage] = []
        for opcode, payload in messages:
            if opcode < OP_CLOSE:
                data.append((opcode, payload))
            else:
                self._take(data, now)
                data = []
                self._control(opcode, payload)
        self._take(data, now)

    def _take(self, messages: list[WsMessage], now: float) -> None:
        if not messages:
            return
        self.messages_received += len(messages)
        if self._tells_frames:
            for _, data in messages:
                self._log.received(self.connection_id, data)
        for error in self.session.receive_all(messages, now):
            # A real server relays broken JSON of other clients; dropping the frame harms nobody.
            self._unreadable += 1
            words = "! connection %(connection)d of pool %(pool)s dropped a frame: %(why)s"
            self._log.rarely(self.connection_id, "frame_dropped", words, connection=self.connection_id, error=error)

    def _control(self, opcode: int, data: bytes) -> None:
        if opcode == OP_PING and self.transport is not None and self.transport.queued < PONG_LIMIT:
            self.transport.send(OP_PONG, data)
        elif opcode == OP_CLOSE:
            code = close_code(data)
            raise ConnectionFailed(
                f"the server closed connection {self.connection_id} with code {code}",
                close_code=code,
                action=classify_close(code),
                cause="server restart" if code == CLOSE_SERVICE_RESTART else "transport",
            )

    def _pump(self, now: float) -> None:
        while True:
            events = self.session.events()
            if events:
                self._on_events(self, events)
                self._heed(events)
            self._send_frames(now)
            if not self.session.has_events:
                return

    def _send_frames(self, now: float) -> None:
        transport = self.transport
        if transport is None:
            return
        was_empty = not transport.queued
        # After the close frame nothing may follow.
        for frame in self.session.frames_to_send() if not self._said_goodbye else ():
            transport.send(OP_BINARY if frame.is_binary else OP_TEXT, frame.data, frame.ref)
            if self._tells_frames:
                self._log.sent(self.connection_id, frame)
        if not transport.queued:
            return
        sent_before = transport.bytes_sent
        written = transport.flush()
        if was_empty or transport.bytes_sent != sent_before:
            self._wrote_at = now
        for ref in written:
            self.session.frame_written(ref, now)

    def _heed(self, events: list[SessionEvent]) -> None:
        for event in events:
            if isinstance(event, WireMessage):
                continue
            if isinstance(event, HeartbeatReplied):
                self.heartbeat_latency = self._way = event.latency
                self._is_sure(self._clock() - event.latency)
                if self._fence is not None and self._fence[1] < self._sure_at:
                    self._fence = None  # overtaken, so its answer never comes
            elif isinstance(event, Fenced) and self._fence is not None and event.ref == self._fence[0]:
                self._way = self._clock() - self._fence[1]
                self._is_sure(self._fence[1])
                self._fence = None
            elif isinstance(event, HeartbeatLost):
                raise ConnectionFailed(
                    f"connection {self.connection_id} is dead: no heartbeat reply within {event.waited:.1f} s",
                    cause="heartbeat",
                )

    def _broke(self, error: RtpoolError, now: float) -> None:
        if self.transport is not None and isinstance(error, (MessageTooBig, ProtocolError)):
            code = CLOSE_TOO_BIG if isinstance(error, MessageTooBig) else error.close_code or CLOSE_NORMAL
            try:
                self.transport.send_close(code)
                self.transport.flush()
            except TransportClosed as also:
                words = "- no close frame on connection %(connection)d of pool %(pool)s: %(why)s"
                self._log.debug("no_close_frame", words, connection=self.connection_id, error=also)
        # What came before the end is delivered before the end is told.
        events = self.session.events()
        if events:
            self._on_events(self, events)
        self._on_lost(self, error)

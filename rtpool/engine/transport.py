"""
A non-blocking WebSocket over a connected socket: reads and writes that resume byte-exactly, TLS included.

websocket-client's own `send`, `recv` and `close` lose the rest of a partial write, so none of them is used here.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
from collections import deque

from rtpool.engine.descriptors import close
from rtpool.errors import ConnectionFailed
from rtpool.protocol.frames import FrameDecoder, FrameEncoder, WsMessage

__all__ = ["READ_SIZE", "Transport", "TransportClosed"]

#: Bytes asked of one recv call, and a turn's share of a connection. Many, because beside callbacks that compute each
#: call costs a wait for the interpreter, and because each topic in it costs what several of its messages do; few enough
#: to be handled in milliseconds, so that no socket starves others.
READ_SIZE = 256 * 1024
#: Bytes of small frames that are given to the kernel in one call. It says how many it took; TLS does not before it has
#: all of them, so they are no more than one of its records: a peer that reads slowly is seen to read.
WRITE_SIZE, TLS_WRITE_SIZE = 256 * 1024, 16 * 1024


class TransportClosed(ConnectionFailed):
    """The stream ended or broke; the cause is chained."""


class Transport:
    """
    Bytes between one connected socket and whole WebSocket messages.

    Args:
        sock: connected, through its TLS and WebSocket handshakes; the transport owns it and makes it non-blocking.
        decoder, encoder: of this connection's frames.

    Thread-safety: none; confined to the I/O thread.
    """

    def __init__(self, sock: socket.socket, decoder: FrameDecoder, encoder: FrameEncoder) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._tls = isinstance(sock, ssl.SSLSocket)
        # gevent's `send` of a TLS socket returns 0 where there is something to wait for, and does not say what.
        self._send = sock.write if isinstance(sock, ssl.SSLSocket) else sock.send
        self._decoder = decoder
        self._encoder = encoder
        self._write_size = TLS_WRITE_SIZE if self._tls else WRITE_SIZE
        self._frames: deque[bytes] = deque()
        self._block: bytes | memoryview = b""  # of frames that were taken from there: what the kernel is offered
        self._ends: deque[tuple[int, str]] = deque()  # the `bytes_sent` at which the kernel has all of the frame `ref`
        #: TLS wants to write before it can read on.
        self.read_wants_write = False
        self._write_wants_read = False
        #: Bytes that wait for the kernel.
        self.queued = 0
        self.bytes_received = 0
        self.bytes_sent = 0
        #: Something may be at hand that no selector can see: bytes that were decrypted already, an error to be raised.
        self.has_more = self._tls

    def send(self, opcode: int, data: bytes, ref: str | None = None) -> None:
        """Queue a message; `flush` hands it to the kernel."""
        self._queue(self._encoder.encode(opcode, data), ref)

    def send_close(self, code: int) -> None:
        """Queue a close frame."""
        self._queue(self._encoder.encode_close(code), None)

    def _queue(self, frame: bytes, ref: str | None) -> None:
        self._frames.append(frame)
        self.queued += len(frame)
        if ref is not None:
            self._ends.append((self.bytes_sent + self.queued, ref))

    def interest(self, *, reading: bool) -> int:
        """The selector events this transport waits for; `reading` False leaves what arrives to the kernel."""
        events = 0
        if reading or self._write_wants_read:
            events |= selectors.EVENT_READ
        if self.read_wants_write or (self.queued and not self._write_wants_read):
            events |= selectors.EVENT_WRITE
        return events

    def flush(self) -> list[str]:
        """
        Hand queued bytes to the kernel until it takes no more.

        Returns:
            The refs of the frames it has all of.

        Raises:
            TransportClosed: the stream is broken. What the kernel had before was returned by earlier calls.
        """
        written: list[str] = []
        self._write_wants_read = False
        while self.queued:
            block = self._block = self._block or self._next_block()
            try:
                sent = self._send(block)
            except ssl.SSLWantReadError:
                # The very same bytes must be offered again: the block stays.
                self._write_wants_read = True
                break
            except (BlockingIOError, ssl.SSLWantWriteError, InterruptedError):
                break
            except (OSError, ValueError) as error:  # ValueError: the socket object was closed under us
                if written:
                    break  # the next call meets the trouble again and raises
                raise TransportClosed(f"the connection broke while sending: {error}") from error
            self.bytes_sent += sent
            self.queued -= sent
            self._block = memoryview(block)[sent:] if sent < len(block) else b""
            while self._ends and self._ends[0][0] <= self.bytes_sent:
                written.append(self._ends.popleft()[1])
        return written

    def _next_block(self) -> bytes:
        """The next frame, and those after it that go into one call with it."""
        frames, block = self._frames, [self._frames.popleft()]
        room = self._write_size - len(block[0])
        while frames and (room := room - len(frames[0])) >= 0:
            block.append(frames.popleft())
        return b"".join(block) if len(block) > 1 else block[0]

    @property
    def control_frames(self) -> int:
        """How many came, those among the messages that `receive` returned last included."""
        return self._decoder.control_frames

    def receive(self) -> list[WsMessage]:
        """
        Read once, and return the messages that completes. `has_more` says whether to read on.

        Raises:
            TransportClosed: the stream ended or broke.
            ProtocolError, MessageTooBig: the peer broke the WebSocket protocol or the size limit. What came before was
                returned by earlier calls.
        """
        self.read_wants_write = self.has_more = False
        if self._decoder.failed:
            self._decoder.receive(b"")
        try:
            data = self.sock.recv(READ_SIZE)
        except ssl.SSLWantWriteError:
            self.read_wants_write = True
            return []
        except (BlockingIOError, ssl.SSLWantReadError, InterruptedError):
            return []
        except (OSError, ValueError) as error:
            raise TransportClosed(f"the connection broke while receiving: {error}") from error
        if not data:
            raise TransportClosed("the server ended the stream without a close frame")
        self.bytes_received += len(data)
        messages = self._decoder.receive(data)
        # Of a record that was decrypted in part no selector knows; nor of an error that the next call raises.
        self.has_more = self._tls or self._decoder.failed
        return messages

    def close(self) -> None:
        """Close the socket without a word; queued bytes are dropped."""
        self._frames.clear()
        self._block = b""
        self._ends.clear()
        self.queued = 0
        # A process that was forked in the middle of the user's dial, or without Python's hooks, has a copy of it.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)
        close(self.sock)

"""A plain TCP socket that asks for an upgrade by hand: for looking at every byte a server sends, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import struct
from types import TracebackType
from typing import Any
from urllib.parse import quote

from rtpool.testing import RealtimeServer

#: What a stream ends with.
FIN, RST = "FIN", "RST"


class Plain:
    """
    Args:
        server: to connect to.
        tls: speak it with this context.
    """

    def __init__(self, server: RealtimeServer, tls: ssl.SSLContext | None = None, *, vsn: str = "2.0.0") -> None:
        self._path = f"/socket/websocket?apikey={quote(server.api_key)}&vsn={vsn}"
        self.sock = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        if tls is not None:
            tls.check_hostname = False
            self.sock = tls.wrap_socket(self.sock, suppress_ragged_eofs=False)

    def __enter__(self) -> Plain:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.sock.close()

    def ask(self) -> None:
        """Send the upgrade request."""
        lines = [f"GET {self._path} HTTP/1.1", "Host: here", "Upgrade: websocket", "Connection: Upgrade"]
        lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "", ""]
        self.sock.sendall("\r\n".join(lines).encode())

    def head(self) -> bytes:
        """Read an HTTP answer's head."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = self.sock.recv(1)
            if not byte:
                raise EOFError(head)
            head += byte
        return head

    def open(self) -> bytes:
        """Ask, and return the head of the answer."""
        self.ask()
        return self.head()

    def send(self, join_ref: Any, ref: Any, topic: str, event: str, payload: Any) -> None:
        """Send a message in a masked text frame, as clients must."""
        text = json.dumps([join_ref, ref, topic, event, payload]).encode()
        size = struct.pack("!B", 0x80 | len(text)) if len(text) < 126 else struct.pack("!BH", 0x80 | 126, len(text))
        self.sock.sendall(b"\x81" + size + b"\0\0\0\0" + text)

    def heartbeat(self, ref: str = "hb") -> None:
        self.send(None, ref, "phoenix", "heartbeat", {})

    def exactly(self, count: int) -> bytes:
        """So many bytes."""
        data = b""
        while len(data) < count:
            data += self.sock.recv(count - len(data)) or (_ for _ in ()).throw(EOFError(data))
        return data

    def frame(self) -> tuple[int, bytes]:
        """The opcode and content of one frame from the server."""
        first, size = self.exactly(2)
        if size == 126:
            (size,) = struct.unpack("!H", self.exactly(2))
        return first & 0x0F, self.exactly(size)

    def message(self) -> Any:
        """The message of one text frame."""
        opcode, content = self.frame()
        assert opcode == 1, (opcode, content)
        return json.loads(content)

    def rest(self) -> tuple[bytes, str]:
        """All that still comes, and what it ends with."""
        data = b""
        while True:
            try:
                more = self.sock.recv(65_536)
            except ConnectionResetError:
                return data, RST
            except ssl.SSLEOFError:
                return data, self._hidden_end()
            if not more:
                return data, FIN
            data += more

    def _hidden_end(self) -> str:
        # OpenSSL says the same of both; below it, what was only finished can still be written to.
        with socket.socket(fileno=os.dup(self.sock.fileno())) as raw:
            try:
                raw.send(b"x")
            except (BrokenPipeError, ConnectionResetError):
                return RST
            return FIN

    def nothing_comes(self) -> bool:
        """Whether there is nothing to read at this moment."""
        self.sock.settimeout(0.05)
        with contextlib.suppress(TimeoutError):
            self.sock.recv(1)
            return False
        self.sock.settimeout(10)
        return True

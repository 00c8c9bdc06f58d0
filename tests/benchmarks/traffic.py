"""The traffic of the benchmarks: a process of its own that sends bytes it made before, so that it is never measured."""

from __future__ import annotations

import json
import socket
from multiprocessing.connection import Connection

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, Request, TextMessage
from wsproto.frame_protocol import FrameProtocol

TOPIC = "realtime:bench"


def frames(count: int, size: int) -> bytes:
    """All messages of a round, as a server puts them on the wire."""
    protocol, parts = FrameProtocol(client=False, extensions=[]), []
    for number in range(count):
        payload = {"type": "broadcast", "event": "x", "payload": {"n": number, "pad": "x" * size}}
        text = json.dumps([None, None, TOPIC, "broadcast", payload], separators=(",", ":"))
        parts.append(protocol.send_data(text, fin=True))
    return b"".join(parts)


def generator(pipe: Connection, count: int, size: int) -> None:
    """Accept one client at a time, answer its join, and send everything."""
    blob = frames(count, size)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pipe.send(listener.getsockname()[1])
        while True:
            sock, _ = listener.accept()
            with sock:
                ws = WSConnection(ConnectionType.SERVER)
                while data := sock.recv(65_536):
                    ws.receive_data(data)
                    for event in ws.events():
                        if isinstance(event, Request):
                            sock.sendall(ws.send(AcceptConnection()))
                        elif isinstance(event, (TextMessage, BytesMessage)):
                            answer(sock, ws, str(event.data), blob)


def answer(sock: socket.socket, ws: WSConnection, text: str, blob: bytes) -> None:
    join_ref, ref, topic, event, _ = json.loads(text)
    reply = {"status": "ok", "response": {"postgres_changes": []}}
    sock.sendall(ws.send(TextMessage(json.dumps([join_ref, ref, topic, "phx_reply", reply]))))
    if event == "phx_join":
        sock.sendall(blob)

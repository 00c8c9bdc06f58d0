"""
Plays the clients' side of a recording to the embedded server over real sockets, by the server's own clock.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote

import attrs
import websocket

from rtpool.testing import RealtimeServer
from rtpool.testing.tokens import make_token
from tests.support.comparison import LOST
from tests.support.database import Database
from tests.support.transcripts import frame_of, load
from tests.support.wait import CAP, wait_until

__all__ = ["Player", "Scenario"]

Line = dict[str, Any]
#: Seconds between two looks of the real server at the log of changes, about.
POLL = 0.2
OWNER = "00000000-0000-4000-8000-000000000001"


@attrs.define
class Scenario:
    """
    What a recording does not say by itself.

    Attributes:
        options: of the server.
        tokens: which token stands for ``<JWT>``: (regular expression on ``socket|last note|what``, claims); the first
            that matches.
        first_id: of the next row of ``cars``, where no recorded frame tells.
        at: things done to the server at a time of the recording, in seconds.
        prepare: hooks.
        client_closes: whether sockets ended by the client's doing though no line says so.
        foreign: frames that another client's doing brought, not in the recording: (socket, source, index).
    """

    options: dict[str, Any] = attrs.field(factory=dict)
    tokens: list[tuple[str, dict[str, Any]]] = attrs.field(factory=list)
    first_id: int | None = None
    at: dict[float, Callable[[Player], Any]] = attrs.field(factory=dict)
    prepare: Callable[[RealtimeServer], None] | None = None
    client_closes: bool = False
    foreign: list[tuple[str, str, int]] = attrs.field(factory=list)


class _Socket:
    """One client socket; a thread keeps what arrives."""

    def __init__(self, ws: websocket.WebSocket) -> None:
        self.ws = ws
        self.received: list[Any] = []
        self.pongs = 0
        self.closed = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            while True:
                opcode, frame = self.ws.recv_data_frame(True)
                if opcode == websocket.ABNF.OPCODE_CLOSE:
                    self.received.append(("close", int.from_bytes(frame.data[:2], "big") if frame.data else 1005))
                    return
                if opcode == websocket.ABNF.OPCODE_PONG:
                    self.pongs += 1
                elif opcode in (websocket.ABNF.OPCODE_TEXT, websocket.ABNF.OPCODE_BINARY):
                    self.received.append((frame.data, opcode == websocket.ABNF.OPCODE_BINARY))
        except (OSError, websocket.WebSocketException):
            self.received.append(("close", 1006))
        finally:
            self.ws.shutdown()  # the server ends the socket's channels when TCP ends
            self.closed.set()

    def settle(self) -> None:
        """Until everything the server has written has been read."""
        if self.closed.is_set():
            return
        before = self.pongs
        try:
            self.ws.ping(b"are you there")
        except (OSError, websocket.WebSocketException):
            self.closed.wait(CAP)
            return
        wait_until(lambda: self.pongs > before or self.closed.is_set(), "a pong")

    def end(self) -> None:
        try:
            self.ws.sock.shutdown(socket.SHUT_RDWR)  # closing alone would not wake the thread that reads
        except (AttributeError, OSError):
            pass  # it has ended before
        self._thread.join(CAP)


class Player:
    """Plays one recording."""

    def __init__(self, name: str, scenario: Scenario) -> None:
        self.lines = load(name)
        self.scenario = scenario
        meta = self.lines[0]
        date = meta.get("date", "2026-11-23T06:54:00Z")
        self._start = datetime.fromisoformat(date.replace("Z", "+00:00")).timestamp()
        defaults = {
            "strict_join_ref": False,
            "disconnect_code": 1000,
            "crash_reason": None,
            "presence_max_calls": 5,
            "rate_tick": 5.0,
            "join_error_backoff": 4.99,
            "postgres_delay": 0.0,
        }
        self.server = RealtimeServer(clock_at=self._start, **{**defaults, **scenario.options})
        self.server.on_connect = None
        self.foreign = scenario.foreign
        self.rules: set[str] = set()  # by which the comparison overlooks something
        self.now = 0.0
        self._changed = 0.0  # when the last statement was run
        self._note = ""
        self._actions = sorted(scenario.at.items(), key=lambda item: item[0])
        self._database = Database(self.server, scenario.first_id or _first_id(self.lines))
        self._sockets: dict[str, _Socket] = {}
        self.got: dict[str, list[Any]] = defaultdict(list)
        self.expected: dict[str, list[Any]] = defaultdict(list)
        self._made: list[tuple[str, _Socket]] = []
        self._count: dict[str, int] = defaultdict(int)
        self._refs: dict[str, int] = defaultdict(int)
        if scenario.prepare is not None:
            scenario.prepare(self.server)

    def play(self) -> None:
        """Play it; `expected` and `got` hold what was recorded and what arrived, by socket."""
        with self.server:
            try:
                for line in self.lines:
                    self._line(line)
                self._database.poll()
                self._to(self.lines[-1]["t"] + 0.01)
                for _, sock in self._made:
                    sock.settle()
            finally:
                for _, sock in self._made:
                    sock.end()
        for label, sock in self._made:
            self.got[label] += sock.received
            if self.got[label] and self.got[label][-1] == ("close", 1006) and not self._ended(label):
                self.got[label].pop()  # the end of the recording, not of the socket

    def _ended(self, label: str) -> bool:
        return any(isinstance(item, tuple) and item[0] == "close" for item in self.expected[label])

    def _to(self, when: float) -> None:
        while self._actions and self._actions[0][0] <= when:
            moment, action = self._actions.pop(0)
            self._pass_to(moment)
            action(self)
        self._pass_to(when)

    def _pass_to(self, when: float) -> None:
        self.server.advance(max(0.0, when - self.now))
        self.now = max(self.now, when)

    def _line(self, line: Line) -> None:
        kind = line["dir"]
        shown = kind == "<" and '"commit_timestamp"' in line.get("raw", "")
        if shown or (kind not in ("<", "cb") and line["t"] - self._changed > POLL):
            self._database.poll()
        if kind == "sql":
            self._changed = line["t"]
        if kind == "<":
            recorded = frame_of(line)
            self.expected[self._label(line["c"])].append(LOST if recorded is None else recorded)
            return
        self._to(line["t"])
        {
            "open": self._open,
            "open_failed": self._refused,
            "http_reject": self._refused,
            ">": self._send,
            ">close": self._close,
            "close": self._closed,
            "http": self._http,
            "sql": lambda line: self._database.execute(line["sql"]),
            "server": self._server,
            "note": self._noted,
        }.get(kind, lambda line: None)(line)

    def _label(self, name: str) -> str:
        return f"{name}.{self._count[name]}"

    def limit_joins(self, limit: int | None) -> None:
        """Change the limit of joins a second, which begins to count anew."""
        self.server.configure(max_joins_per_second=limit)
        self.server.reset_rates()

    # Tokens

    def token(self, who: str, what: str) -> str:
        """The token that stands for ``<JWT>`` in a frame or an address."""
        asked = f"{who}|{self._note}|{what}"
        kinds = [*self.scenario.tokens, ("", {"role": "anon"})]
        claims = dict(next(claims for pattern, claims in kinds if re.search(pattern, asked)))
        secret = claims.pop("secret", self.server.secret)
        algorithm = claims.pop("alg", "HS256")
        expires = claims.pop("expires", 3600)
        if expires is not None:
            claims["exp"] = str(expires) if isinstance(expires, str) else self._start + self.now + expires
        if claims.get("role") == "authenticated":
            claims.setdefault("sub", OWNER)
        return make_token(secret, claims, algorithm)

    # Lines

    def _noted(self, line: Line) -> None:
        text = line["text"]
        self._note = text if not re.match(r"(took|latency|. is closed|\w+ took)", text) else self._note
        ping = re.match(r"(\w+): websocket ping sent|websocket ping with payload", text)
        if ping:
            self._sockets[ping.group(1) or "A"].settle()
        if text.startswith("text frame that is not valid UTF-8"):
            self.rules.add("frame not recorded")
        if text == "httpSend":
            self.rules.add("call told by a note")
            self._http(
                {
                    "method": "POST",
                    "path": "/api/broadcast/offjs/events/hi",
                    "headers": {"apikey": "<JWT>", "content-type": "application/json"},
                    "body": '{"via":"http"}',
                    "status": 202,
                    "resp": "",
                    "resp_headers": {"x-rate-limit": "100"},
                }
            )

    def _connect(self, line: Line) -> websocket.WebSocket:
        uri = line.get("uri", "")
        header = {}
        if not uri.startswith("ws://"):
            if "subprotocols" in uri:
                header["Sec-WebSocket-Protocol"] = "phoenix,foo"
            uri = "ws://realtime-dev.localhost:4000/socket/websocket?apikey=<JWT>&vsn=2.0.0"
        if "x-api-key" in self._note:
            header["x-api-key"] = self.token(line.get("c", ""), "x-api-key")
        elif self._note.startswith("apikey header"):
            header["apikey"] = self.token(line.get("c", ""), "apikey")
        uri = uri.replace("<JWT>", quote(self.token(line.get("c", ""), "apikey")))
        uri = re.sub(r"\.\.\.\((\d+) chars\)", "", uri)
        host, _, path = uri.removeprefix("ws://").partition("/")
        return websocket.create_connection(
            f"ws://127.0.0.1:{self.server.port}/{path}", timeout=CAP, host=host, header=header
        )

    def _open(self, line: Line) -> None:
        name = line.get("c", "?")
        self._count[name] += 1
        label = self._label(name)
        sock = _Socket(self._connect(line))
        assert sock.ws.status == 101
        assert sock.ws.headers is not None
        assert "sec-websocket-protocol" not in sock.ws.headers
        self._sockets[name] = sock
        self._made.append((label, sock))

    def _refused(self, line: Line) -> None:
        label = "refused"
        wanted: Any = "refused"
        if "status" in line:
            wanted = [line["status"], line["body"], *(_shown(line["headers"]) if "headers" in line else ())]
        elif "401" in line["error"]:
            wanted = [401]
        self.expected[label].append(wanted)
        try:
            sock = self._connect(line)
        except websocket.WebSocketBadStatusException as refusal:
            body = (refusal.resp_body or b"").decode()
            whole = [refusal.status_code, body, *_shown(refusal.resp_headers or {})]
            self.got[label].append("refused" if wanted == "refused" else whole[: len(wanted)])
        except OSError:
            self.got[label].append("refused")
        else:
            sock.shutdown()
            self.got[label].append("opened")

    def _send(self, line: Line) -> None:
        sock = self._sockets[line["c"]]
        recorded = frame_of(line)
        assert recorded is not None
        data, binary = recorded
        text = data if binary else self._whole(line["c"], data.decode()).encode()
        ref = re.search(rb'"ref":"(\d+)"', text)
        self._refs[line["c"]] = int(ref.group(1)) if ref else self._refs[line["c"]] + 1
        try:
            sock.ws.send(text, websocket.ABNF.OPCODE_BINARY if binary else websocket.ABNF.OPCODE_TEXT)
        except (OSError, websocket.WebSocketException):
            return  # the recording says so too
        if len(text) > 50_000:  # takes the server more than a few turns to read
            wait_until(lambda: self._has_read(sock, len(text)), "a large frame is read")

    def _has_read(self, sock: _Socket, size: int) -> bool:
        if sock.closed.is_set():
            return True
        received = self.server.received
        return bool(received) and len(json.dumps(received[-1].payload)) > size // 2

    def _whole(self, who: str, text: str) -> str:
        text = text.replace("<JWT>", self.token(who, text))
        cut = re.search(r"\.\.\.\((\d+) chars\)$", text)
        if cut is None:
            return text
        self.rules.add("cut frame")
        head = text[: cut.start()]
        tail = '"}}]' if head.startswith("[") else f'"}}}},"ref":"{self._refs[who] + 1}","join_ref":"1"}}'
        return head + head[-1] * (int(cut.group(1)) - len(head) - len(tail)) + tail

    def _close(self, line: Line) -> None:
        sock = self._sockets[line["c"]]
        try:
            sock.ws.send_close(line["code"], line["reason"].encode())
        except (OSError, websocket.WebSocketException):
            return
        assert sock.closed.wait(CAP)

    def _closed(self, line: Line) -> None:
        label, sock = self._label(line["c"]), self._sockets.get(line["c"])
        if sock is None:
            return
        if self.scenario.client_closes:
            self.rules.add("close told by no line")
            sock.ws.send_close(1000)
            self.expected[label].append(("close", 1000))
        else:
            self.expected[label].append(("close", line["code"]))

    def _http(self, line: Line) -> None:
        if re.match(r"/api/tenants|/api/ping", line["path"]) and not line["path"].endswith("ping"):
            self._manage(line)
            return
        body = line["body"]
        data = bytes.fromhex(body["hex"]) if isinstance(body, dict) else (body or "").encode() or None
        token = self.token(f"http {line['method']}", f"{line['path']} {body}")
        path = line["path"].replace("<JWT>", token)
        cut = re.search(rb"\.\.\.\((\d+) chars\)$", data or b"")
        if cut is not None and data is not None:
            self.rules.add("cut frame")
            data = data[: cut.start()] + b"y" * (int(cut.group(1)) - cut.start() - 6) + b'"}}]}'
        headers = {name: value.replace("<JWT>", token) for name, value in line["headers"].items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=CAP)
        try:
            connection.request(line["method"], path, data, headers)
            response = connection.getresponse()
            answer = [response.status, response.read().decode(), *_shown(dict(response.headers))]
        finally:
            connection.close()
        self.expected["http"].append([line["status"], line["resp"], *_shown(line["resp_headers"])])
        self.got["http"].append(answer)

    def _manage(self, line: Line) -> None:
        """The management API is no part of what clients use; what it does is done to the server directly."""
        self.rules.add("management call")
        if line["path"].endswith("/reload"):
            self.server.disconnect_all()
        elif line["method"] == "PUT":
            changes = json.loads(line["body"])["tenant"]
            names = {"suspend": "suspended", "max_payload_size_in_kb": "max_payload_kb"}
            known = {names.get(name, name): value for name, value in changes.items()}
            self.server.configure(**{n: v for n, v in known.items() if hasattr(self.server.options, n)})
            self.server.reset_rates()

    def _server(self, line: Line) -> None:
        for word, action in _DEEDS:
            if word in line.get("cmd", line.get("rpc", "")):
                action(self.server)
                return


def _first_id(lines: list[Line]) -> int:
    """The id the next row of ``cars`` had: told by the first one that was recorded, and those before it."""
    plates = [
        match.group(1)
        for line in lines
        for match in re.finditer(r"public\.cars\([^)]*\) values ?\('([^']*)'", line.get("sql", ""))
    ]
    for line in lines:
        shown = re.search(r'"id": (\d+), "plate": "(\w+)"', line.get("raw", "")) if line["dir"] == "<" else None
        if shown is not None and shown.group(2) in plates:
            return int(shown.group(1)) - plates.index(shown.group(2))
    return 1


def _restart(server: RealtimeServer) -> None:
    server.start()


def _stop(server: RealtimeServer) -> None:
    server.drain()
    server.advance()
    server.close()


_DEEDS: list[tuple[str, Callable[[RealtimeServer], Any]]] = [
    ("Enum.each(&Process.exit(&1,:kill))", lambda server: [c.abort() for c in server.connections]),
    ("Process.exit(pid, :kill)", lambda server: server.crash_channel("x1")),
    ("pg_ctl stop", RealtimeServer.stop_database),
    ("SIGTERM", _stop),
    ("SIGKILL", RealtimeServer.close),
    ("start.sh", _restart),
]


def _shown(headers: Mapping[str, str]) -> list[Any]:
    """What is compared of an answer's headers."""
    return [headers.get("content-type"), "x-rate-limit" in headers]

"""The embedded server, seen by a hand-written client: the frame order of a real Realtime server."""

from __future__ import annotations

import json
import pathlib
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
import websocket

from rtpool.testing import NO_REPLY, JoinRefusal, RealtimeServer, Refusal
from rtpool.testing.postgres import BadFilter, binding_matches, check_binding
from rtpool.testing.tokens import make_token, token_error
from rtpool.testing.wire import Malformed, ServerMessage, decode, encode

TOPIC = "realtime:room"


class Client:
    """A WebSocket driven by hand."""

    def __init__(self, server: RealtimeServer, vsn: str = "2.0.0", key: str | None = None) -> None:
        url = f"ws://127.0.0.1:{server.port}/socket/websocket?apikey={quote(key or server.api_key)}&vsn={vsn}"
        self.ws = websocket.create_connection(url, timeout=5)
        self.vsn = vsn

    def send(self, join_ref: Any, ref: Any, topic: str, event: str, payload: Any) -> None:
        message: Any = [join_ref, ref, topic, event, payload]
        if self.vsn == "1.0.0":
            message = {"join_ref": join_ref, "ref": ref, "topic": topic, "event": event, "payload": payload}
        self.ws.send(json.dumps(message))

    def receive(self) -> Any:
        opcode, data = self.ws.recv_data()
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            return ("close", int.from_bytes(data[:2], "big"))
        return json.loads(data) if opcode == websocket.ABNF.OPCODE_TEXT else bytes(data)

    def join(self, ref: str = "1", topic: str = TOPIC, **config: Any) -> Any:
        self.send(ref, ref, topic, "phx_join", {"config": config})
        return self.receive()


Connect = Callable[..., Client]


@pytest.fixture
def connect(server: RealtimeServer) -> Iterator[Connect]:
    clients: list[Client] = []

    def make(vsn: str = "2.0.0", *, to: RealtimeServer | None = None, key: str | None = None) -> Client:
        clients.append(Client(to or server, vsn, key))
        return clients[-1]

    yield make
    for client in clients:
        client.ws.shutdown()


def ok(ref: str, topic: str = TOPIC, response: Any = None) -> list[Any]:
    return [ref, ref, topic, "phx_reply", {"status": "ok", "response": response or {"postgres_changes": []}}]


def test_a_join_a_leave_and_a_heartbeat_are_answered_as_by_a_real_server(connect: Connect) -> None:
    client = connect()
    assert client.join() == ok("1")
    client.send(None, "7", "phoenix", "heartbeat", {})
    assert client.receive() == [None, "7", "phoenix", "phx_reply", {"status": "ok", "response": {}}]
    client.send("1", "9", TOPIC, "phx_leave", {})
    assert client.receive() == ["1", "9", TOPIC, "phx_reply", {"status": "ok", "response": {}}]
    assert client.receive() == ["1", "1", TOPIC, "phx_close", {}]


def test_version_1_has_four_keys_and_never_a_join_ref(connect: Connect) -> None:
    client = connect("1.0.0")
    reply = client.join()
    assert set(reply) == {"topic", "event", "payload", "ref"}
    client.send("1", "2", TOPIC, "phx_leave", {})
    client.receive()
    assert client.receive() == {"topic": TOPIC, "event": "phx_close", "payload": {}, "ref": "1"}


def test_a_duplicate_join_is_answered_before_the_old_channel_closes(connect: Connect) -> None:
    client = connect()
    client.join("10")
    assert client.join("11") == ok("11")
    assert client.receive() == ["10", "10", TOPIC, "phx_close", {}]


def test_leaving_what_is_not_joined_is_ok_and_a_stale_leave_is_ignored(
    server: RealtimeServer, connect: Connect
) -> None:
    client = connect()
    client.send(None, "1", TOPIC, "phx_leave", {})
    assert client.receive() == [None, "1", TOPIC, "phx_reply", {"status": "ok", "response": {}}]
    client.join("5")
    client.send("4", "6", TOPIC, "phx_leave", {})
    client.send(None, "7", TOPIC, "phx_leave", {})
    client.send(None, "8", "phoenix", "heartbeat", {})
    assert client.receive()[1] == "8"
    assert server.members("room") == 1


def test_a_push_without_a_channel_and_a_topic_without_prefix_are_unmatched(connect: Connect) -> None:
    client = connect()
    client.send("1", "2", TOPIC, "broadcast", {})
    expected = {"status": "error", "response": {"reason": "unmatched topic"}}
    assert client.receive() == [None, "2", TOPIC, "phx_reply", expected]
    assert client.join("3", "room:lobby")[4] == expected
    assert client.join("4", "realtime:")[4]["response"]["reason"].startswith("TopicNameRequired")


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("ack", [True, False])
def test_self_and_ack_do_what_they_say_and_the_echo_comes_before_the_ack(
    connect: Connect, own: bool, ack: bool
) -> None:
    client, other = connect(), connect("1.0.0")
    client.join(broadcast={"self": own, "ack": ack})
    other.join()
    message = {"type": "broadcast", "event": "x", "payload": {"n": 1}}
    client.send("1", "2", TOPIC, "broadcast", message)
    client.send(None, "3", "phoenix", "heartbeat", {})
    received = [client.receive() for _ in range(own + ack + 1)]
    kinds = [m[3] if m[2] == TOPIC else "heartbeat" for m in received]
    assert kinds == ["broadcast"] * own + ["phx_reply"] * ack + ["heartbeat"]
    assert other.receive() == {"topic": TOPIC, "event": "broadcast", "payload": message, "ref": None}


def test_kind_3_reaches_version_2_as_kind_4_and_bytes_do_not_reach_version_1(
    server: RealtimeServer, connect: Connect
) -> None:
    sender, second, first = connect(), connect(), connect("1.0.0")
    for client in (sender, second, first):
        client.join()
    head = bytes((3, 1, 1, len(TOPIC), 1, 0))
    sender.ws.send_binary(head + b"\x01" + b"12" + TOPIC.encode() + b"e" + b'{"a":1}')
    sender.ws.send_binary(head + b"\x00" + b"13" + TOPIC.encode() + b"e" + b"\xff\x00")
    expected = bytes((4, len(TOPIC), 1, 0, 1)) + TOPIC.encode() + b'e{"a":1}'
    assert second.receive() == expected
    assert second.receive() == bytes((4, len(TOPIC), 1, 0, 0)) + TOPIC.encode() + b"e\xff\x00"
    assert first.receive()["payload"] == {"type": "broadcast", "event": "e", "payload": {"a": 1}}
    server.broadcast("room", "end", {}, as_text=True)
    assert first.receive()["payload"]["event"] == "end", "no bytes for version 1"


def test_public_and_private_channels_of_a_name_are_different_rooms(server: RealtimeServer, connect: Connect) -> None:
    public, private = connect(), connect()
    public.join()
    private.join(private=True)
    assert server.broadcast("room", "x", {}, private=True, as_text=True) == 1
    assert private.receive()[4]["event"] == "x"
    assert server.broadcast("room", "y", {}, as_text=True) == 1
    assert public.receive()[4]["event"] == "y"


def test_an_oversize_broadcast_is_refused_with_a_string(connect: Connect) -> None:
    with RealtimeServer(max_payload_kb=1) as small:
        client = connect(to=small)
        client.join(broadcast={"ack": True})
        client.send("1", "2", TOPIC, "broadcast", {"type": "broadcast", "event": "x", "payload": {"d": "x" * 3_000}})
        assert client.receive()[4] == {"status": "error", "response": "payload_size_exceeded"}


def test_presence_state_diff_and_untrack(server: RealtimeServer, connect: Connect) -> None:
    ann, bob = connect(), connect()
    ann.join(presence={"key": "ann", "enabled": True})
    assert ann.receive() == ["1", None, TOPIC, "presence_state", {}]
    bob.join(presence={"key": "bob", "enabled": False})
    track = {"type": "presence", "event": "track", "payload": {"name": "Ann"}}
    ann.send("1", "2", TOPIC, "presence", track)
    assert ann.receive()[4] == {"status": "ok", "response": {}}
    diff = ann.receive()
    assert diff[:4] == [None, None, TOPIC, "presence_diff"]
    (meta,) = diff[4]["joins"]["ann"]["metas"]
    assert meta["name"] == "Ann"
    assert bob.receive() == diff, "members with presence disabled get diffs too"
    ann.send("1", "3", TOPIC, "presence", track)
    assert ann.receive()[1] == "3"
    ann.send("1", "4", TOPIC, "presence", {**track, "payload": {"name": "Anna"}})
    ann.receive()
    changed = ann.receive()[4]
    assert changed["joins"]["ann"]["metas"][0]["phx_ref_prev"] == meta["phx_ref"]
    assert changed["leaves"]["ann"]["metas"] == [meta]
    assert list(server.presence("room")) == ["ann"]
    ann.ws.shutdown()
    server.wait_for(lambda s: not s.presence("room"))


def test_too_many_presence_calls_end_the_channel(connect: Connect) -> None:
    with RealtimeServer(presence_max_calls=1) as strict:
        client = connect(to=strict)
        client.join()
        for ref in ("2", "3"):
            client.send("1", ref, TOPIC, "presence", {"type": "presence", "event": "untrack"})
        assert client.receive()[3] == "phx_reply"
        assert client.receive()[4]["message"] == "Client presence rate limit exceeded"
        assert client.receive() == ["1", "1", TOPIC, "phx_close", {}]


def test_changes_reach_the_bindings_that_match_with_their_ids(server: RealtimeServer, connect: Connect) -> None:
    client = connect()
    bindings = [{"event": "*", "schema": "public", "table": "cars"}, {"event": "UPDATE", "schema": "*"}]
    entries = client.join(postgres_changes=bindings)[4]["response"]["postgres_changes"]
    assert [{k: v for k, v in e.items() if k != "id"} for e in entries] == bindings
    assert client.receive()[4]["message"] == "Subscribed to PostgreSQL"
    assert server.change("public", "cars", "UPDATE", {"id": 1}, {"id": 1}) == 1
    frame = client.receive()
    assert frame[:4] == [None, None, TOPIC, "postgres_changes"]
    assert frame[4]["ids"] == [e["id"] for e in entries]
    assert frame[4]["data"]["record"] == {"id": 1}
    assert server.change("other", "boats", "INSERT", {"id": 1}) == 0


def test_a_bad_filter_joins_ok_and_is_told_afterwards(connect: Connect) -> None:
    client = connect()
    assert (
        client.join(postgres_changes=[{"event": "*", "schema": "public", "table": "cars", "filter": "nonsense"}])[4][
            "status"
        ]
        == "ok"
    )
    message = client.receive()[4]
    assert (message["extension"], message["status"]) == ("postgres_changes", "error")
    assert message["message"].startswith("Error parsing `filter` params")


@pytest.mark.parametrize(
    ("text", "row", "matches"),
    [
        ("id=eq.5", {"id": 5}, True),
        ("id=neq.5", {"id": 5}, False),
        ("id=gt.4,id=lte.5", {"id": 5}, True),
        ("id=gt.10", {"id": 9}, False),
        ("name=in.(a,b)", {"name": "b"}, True),
        ('name=in.("a,b",c)', {"name": "a,b"}, True),
        ("id=not.eq.5", {"id": 6}, True),
        ("gone=is.null", {"gone": None}, True),
        ("on=is.true", {"on": True}, True),
        ("on=eq.true", {"on": True}, True),
        ("name=like.a%", {"name": "abc"}, True),
        ("name=ilike.A%", {"name": "abc"}, True),
        ("name=match.^a.c$", {"name": "abc"}, True),
        ('name=eq."say \\"hi\\""', {"name": 'say "hi"'}, True),
        ("missing=eq.1", {"id": 1}, False),
        ("", {"id": 1}, True),
    ],
)
def test_filters_are_really_evaluated(text: str, row: dict[str, Any], matches: bool) -> None:
    assert binding_matches({"schema": "public", "table": "t", "filter": text}, "public", "t", "INSERT", row) is matches


@pytest.mark.parametrize("text", ["id", "id=zz.5", "id=in.5", "id=eq.1,", ",id=eq.1"])
def test_a_filter_outside_the_grammar_is_refused(text: str) -> None:
    with pytest.raises(BadFilter):
        check_binding({"schema": "public", "table": "t", "filter": text})
    assert not binding_matches({"schema": "public", "table": "t", "filter": text}, "public", "t", "INSERT", {"id": 5})


def test_a_binding_of_nothing_is_refused() -> None:
    with pytest.raises(BadFilter, match="No subscription params"):
        check_binding({"event": "*"})


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("vsn=2.0.0", 401, "API key is missing"),
        ("vsn=2.0.0&apikey=rubbish", 401, "not a valid JWT"),
        ("vsn=3.0.0&apikey=rubbish", 403, ""),
    ],
)
def test_a_bad_upgrade_is_refused_with_the_servers_words(
    server: RealtimeServer, query: str, status: int, words: str
) -> None:
    with pytest.raises(websocket.WebSocketBadStatusException) as caught:
        websocket.create_connection(f"ws://127.0.0.1:{server.port}/socket/websocket?{query}", timeout=5)
    assert caught.value.status_code == status
    assert words in (caught.value.resp_body or b"").decode()


def test_hooks_may_refuse_and_a_raising_hook_is_a_refusal_too(server: RealtimeServer, connect: Connect) -> None:
    client = connect()
    server.on_join = lambda topic, payload, connection: JoinRefusal(f"Unauthorized: {topic}")
    assert client.join()[4] == {"status": "error", "response": {"reason": "Unauthorized: room"}}
    server.on_join = lambda topic, payload, connection: {}[topic]
    assert client.join("2")[4]["response"]["reason"] == "join crashed"
    server.on_join = lambda topic, payload, connection: NO_REPLY
    client.send("3", "3", TOPIC, "phx_join", {})
    client.send(None, "4", "phoenix", "heartbeat", {})
    assert client.receive()[1] == "4"
    assert [j.accepted for j in server.joins("room")] == [False] * 3
    for hook, status in ((lambda request: Refusal(429, "{}"), 429), (lambda request: 1 / 0, 500)):
        server.on_connect = hook  # type: ignore[assignment]
        with pytest.raises(websocket.WebSocketBadStatusException) as caught:
            connect()
        assert caught.value.status_code == status


def test_limits_are_refused_as_documented(connect: Connect) -> None:
    with RealtimeServer(max_channels_per_client=1, max_joins_per_second=2, max_concurrent_users=1) as strict:
        client = connect(to=strict)
        client.join("1")
        reason = client.join("2", "realtime:second")[4]["response"]["reason"]
        assert reason == "ChannelRateLimitReached: Too many channels"
        with pytest.raises(websocket.WebSocketBadStatusException, match="429"):
            connect(to=strict)
        reason = client.join("3", "realtime:third")[4]["response"]["reason"]
        assert reason == "ClientJoinRateLimitReached: Too many joins per second"
        assert client.receive() == ("close", 1001)


def test_nothing_else_happens_on_a_socket_while_a_join_runs(connect: Connect) -> None:
    with RealtimeServer(join_latency=0.2) as slow:
        client = connect(to=slow)
        client.join("1")
        client.send("2", "2", "realtime:other", "phx_join", {"config": {}})
        client.send(None, "3", "phoenix", "heartbeat", {})
        slow.wait_for(lambda s: any(m.topic == "realtime:other" for m in s.received))
        slow.broadcast("room", "x", {}, as_text=True)
        order = [client.receive()[3] for _ in range(3)]
        assert order == ["phx_reply", "broadcast", "phx_reply"] or order == ["broadcast", "phx_reply", "phx_reply"]
        assert slow.joins()[-1].topic == "other"


def test_a_silent_client_is_closed_with_1000_and_a_ping_counts_as_life(connect: Connect) -> None:
    with RealtimeServer(idle_timeout=0.3) as strict:
        client, lively = connect(to=strict), connect(to=strict)
        for _ in range(4):
            lively.ws.ping()
            strict.call(lambda: None)
            with pytest.raises(websocket.WebSocketTimeoutException):
                lively.ws.settimeout(0.1)
                lively.ws.recv_data_frame(control_frame=False)
        assert client.receive() == ("close", 1000)
        lively.ws.settimeout(5)
        lively.send(None, "1", "phoenix", "heartbeat", {})
        assert lively.receive()[1] == "1"


def test_malformed_frames_are_dropped_and_counted(server: RealtimeServer, connect: Connect) -> None:
    client = connect()
    client.ws.send("not json")
    client.ws.send("[1,2]")
    client.ws.send_binary(b"\x09")
    client.ws.send_binary(b"")
    client.send(None, "1", "phoenix", "heartbeat", {})
    assert client.receive()[1] == "1"
    assert server.malformed == 4


def test_tokens_are_verified_with_the_servers_words(server: RealtimeServer, connect: Connect) -> None:
    client = connect()
    for token, reason in [
        (server.token(expires_in=-10), "InvalidJWTToken: Token has expired 10 seconds ago"),
        ("rubbish", "MalformedJWT: The token provided is not a valid JWT"),
        (make_token("other secret", {"role": "x", "exp": 4e9}), "JwtSignatureError: Failed to validate JWT signature"),
    ]:
        client.send("1", "1", TOPIC, "phx_join", {"config": {}, "access_token": token})
        assert client.receive()[4]["response"]["reason"] == reason
    client.send("2", "2", TOPIC, "phx_join", {"config": {}, "access_token": server.token()})
    assert client.receive()[4]["status"] == "ok"
    client.send("2", "3", TOPIC, "access_token", {"access_token": server.token(expires_in=-1)})
    assert client.receive()[4]["message"].startswith("Token has expired")
    assert client.receive()[3] == "phx_close"
    assert token_error("s", make_token("s", {"exp": 1}), 0)


def test_faults_reset_freeze_and_raw_bytes(server: RealtimeServer, connect: Connect) -> None:
    client = connect()
    client.join()
    (connection,) = server.connections
    assert connection.topics == (TOPIC,)
    assert connection.peer == client.ws.sock.getsockname()
    connection.freeze()
    client.send(None, "1", "phoenix", "heartbeat", {})
    server.broadcast("room", "x", {}, as_text=True)
    client.ws.settimeout(0.1)
    with pytest.raises(websocket.WebSocketTimeoutException):
        client.receive()
    client.ws.settimeout(5)
    connection.thaw()
    assert {client.receive()[3], client.receive()[3]} == {"broadcast", "phx_reply"}
    connection.send_raw(b"\x81\x02hi")
    assert client.ws.recv() == "hi"
    connection.abort()
    with pytest.raises(ConnectionResetError):
        client.ws.sock.recv(1)
    server.wait_for(lambda s: not s.connections)


def test_wait_for_says_what_it_saw_when_it_gives_up(server: RealtimeServer) -> None:
    with pytest.raises(TimeoutError, match="0 connections of 0"):
        server.wait_for(lambda s: s.connections, timeout=0.01)


def test_a_taken_port_is_an_error_and_close_frees_it(server: RealtimeServer) -> None:
    with pytest.raises(OSError, match="in use"):
        RealtimeServer(server.port).start()
    server.close()
    server.close()
    with RealtimeServer(server.port, api_key="k") as again:
        assert again.port == server.port
        assert again.api_key == "k"


VECTORS = json.loads((pathlib.Path(__file__).parents[1] / "protocol" / "protocol_vectors.json").read_text())


def wire_of(vector: dict[str, Any]) -> str | bytes:
    return bytes.fromhex(vector["wire_hex"]) if vector["frame"] == "binary" else str(vector["wire"])


@pytest.mark.parametrize(
    "vector", [v for v in VECTORS if v["direction"] == "client_to_server"], ids=lambda vector: str(vector["name"])
)
def test_the_server_decodes_every_recorded_client_frame(vector: dict[str, Any]) -> None:
    decoded = vector["decoded"]
    if decoded is None:
        with pytest.raises(Malformed):
            decode(vector["vsn"], wire_of(vector))
        return
    message = decode(vector["vsn"], wire_of(vector))
    assert message[:4] == (decoded["join_ref"], decoded["ref"], decoded["topic"], decoded["event"])
    if vector.get("kind") == 0:
        assert message.payload == bytes.fromhex(decoded["payload_hex"])
    else:
        extra = {"payload": bytes.fromhex(decoded["payload_hex"])} if "payload_hex" in decoded else {}
        assert message.payload == {**decoded["payload"], **extra}


@pytest.mark.parametrize(
    "vector",
    [
        v
        for v in VECTORS
        if v["direction"] == "server_to_client" and v["decoded"] and "unknown_encoding" not in v["name"]
    ],
    ids=lambda vector: str(vector["name"]),
)
def test_the_server_encodes_every_recorded_server_frame(vector: dict[str, Any]) -> None:
    decoded, kind = vector["decoded"], vector.get("kind")
    payload: Any = decoded.get("payload")
    if "payload_hex" in decoded:
        data = bytes.fromhex(decoded["payload_hex"])
        if kind == 1:
            payload = {"status": decoded["status"], "response": data}
        elif kind in (0, 2):
            payload = data
        else:
            payload = {**payload, "payload": data}
    join_ref = decoded["join_ref"]
    frame = encode(
        vector["vsn"], ServerMessage(join_ref, decoded["ref"], decoded["topic"], decoded["event"], payload, kind == 4)
    )
    if vector["frame"] == "binary":
        assert frame == wire_of(vector)
    else:
        assert isinstance(frame, str)
        wire = json.loads(vector["wire"])
        assert json.loads(frame) == (wire[:5] if isinstance(wire, list) else wire)


def test_a_reset_is_a_reset_on_the_wire(server: RealtimeServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
        raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 4")

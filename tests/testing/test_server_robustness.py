"""The embedded server under clients that misbehave, threads that race, and an end that comes at a bad moment."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
import websocket

from rtpool.testing import JoinRefusal, RealtimeServer, Refusal
from rtpool.testing.postgres import BadFilter, binding_matches, check_binding

TOPIC = "realtime:room"
UPGRADE = (
    "GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)

Connect = Callable[..., websocket.WebSocket]


@pytest.fixture
def connect(server: RealtimeServer) -> Iterator[Connect]:
    clients: list[websocket.WebSocket] = []

    def make(to: RealtimeServer | None = None, vsn: str = "2.0.0", **options: Any) -> websocket.WebSocket:
        where = to or server
        url = f"ws://127.0.0.1:{where.port}/realtime/v1/websocket?apikey={quote(where.api_key)}&vsn={vsn}"
        clients.append(websocket.create_connection(url, timeout=5, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.shutdown()


def send(client: websocket.WebSocket, *message: Any) -> None:
    client.send(json.dumps(message))


def join(client: websocket.WebSocket, ref: str | None = "1", topic: str = TOPIC, **config: Any) -> Any:
    send(client, ref, ref or "1", topic, "phx_join", {"config": config})
    return json.loads(client.recv())


def beat(client: websocket.WebSocket, ref: str = "99") -> None:
    """The next frame is the answer to a heartbeat: nothing else was on its way."""
    send(client, None, ref, "phoenix", "heartbeat", {})
    assert json.loads(client.recv())[1] == ref


def kind3(event: str, data: bytes, *, is_json: bool, metadata: str = "") -> bytes:
    sizes = bytes((3, 1, 1, len(TOPIC), len(event), len(metadata), is_json))
    return sizes + f"12{TOPIC}{event}{metadata}".encode() + data


def closed_by(server: RealtimeServer) -> bool:
    closer = threading.Thread(target=server.close)
    closer.start()
    closer.join(3)
    return not closer.is_alive()


def test_close_does_not_wait_for_a_join_that_takes_long(connect: Connect) -> None:
    with RealtimeServer(join_latency=60) as slow:
        send(connect(slow), "1", "1", TOPIC, "phx_join", {"config": {}})
        slow.wait_for(lambda s: s.received)
        assert closed_by(slow)


def test_close_does_not_wait_for_a_refusal_that_is_held_back() -> None:
    asked = threading.Event()

    def refuse(request: object) -> Refusal:
        asked.set()
        return Refusal(429)

    with RealtimeServer(connect_error_backoff=60) as slow, socket.socket() as raw:
        slow.on_connect = refuse
        raw.connect(("127.0.0.1", slow.port))
        raw.sendall(UPGRADE.format(path="/socket/websocket").encode())
        assert asked.wait(5)
        assert closed_by(slow)


def test_close_does_not_wait_for_a_client_that_never_says_anything(server: RealtimeServer, connect: Connect) -> None:
    with socket.create_connection(("127.0.0.1", server.port)):
        connect()  # accepted later, so the silent one has been accepted too
        assert closed_by(server)


def test_no_caller_hangs_when_the_server_closes_under_it() -> None:
    for _ in range(10):
        server = RealtimeServer().start()
        begun, done = threading.Barrier(5), []

        def use(server: RealtimeServer = server, begun: threading.Barrier = begun, done: list[int] = done) -> None:
            begun.wait()
            done.append(sum(server.broadcast("room", "x", {}) for _ in range(200)))

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        begun.wait()
        assert closed_by(server)
        for thread in threads:
            thread.join(5)
        assert done == [0] * 4


def test_what_a_call_raises_is_raised_to_its_caller(server: RealtimeServer, connect: Connect) -> None:
    client = connect()
    join(client)
    with pytest.raises(TypeError):
        server.broadcast("room", "x", {"n": object()})
    beat(client)


@pytest.mark.parametrize(
    "frame",
    [
        b"\0\1\1\1\1\xff\xff\xff\xffx",
        b"\0\1",
        b"\3\1\1\1\1\0\1\xff\xff\xff\xff",
        '["1","2","realtime:room","broadcast",{"type":"broadcast","event":"e","payload":{"a":"\\ud800"}}]',
        '["1","2","realtime:room","broadcast",{"type":"broadcast","event":"e","payload":{"a":NaN}}]',
        '["1","2","realtime:room","broadcast",{"type":"broadcast","event":"e","payload":{"a":1e999}}]',
        "[" * 100_000,
    ],
    ids=["kind 0 not UTF-8", "kind 0 cut off", "kind 3 not UTF-8", "half a surrogate", "NaN", "1e999", "too deep"],
)
def test_a_frame_that_cannot_be_passed_on_is_dropped_and_harms_nobody(
    server: RealtimeServer, connect: Connect, frame: str | bytes
) -> None:
    sender, other = connect(), connect()
    for client in (sender, other):
        join(client)
    sender.send(frame, websocket.ABNF.OPCODE_BINARY if isinstance(frame, bytes) else websocket.ABNF.OPCODE_TEXT)
    beat(sender)
    beat(other)
    assert server.malformed == 1


def test_broken_json_in_a_kind_3_frame_is_relayed_as_it_is(connect: Connect) -> None:
    sender, second, first = connect(), connect(), connect(vsn="1.0.0")
    join(sender)
    join(second)
    first.send(json.dumps({"topic": TOPIC, "event": "phx_join", "payload": {"config": {}}, "ref": "1"}))
    first.recv()
    sender.send_binary(kind3("e", b"not json", is_json=True, metadata='{"m":2}'))
    assert second.recv() == bytes((4, len(TOPIC), 1, 0, 1)) + f"{TOPIC}enot json".encode(), "and without the metadata"
    assert '"payload":not json' in first.recv()


def test_a_megabyte_of_bytes_is_no_oversize(connect: Connect) -> None:
    client = connect()
    join(client, broadcast={"ack": True})
    client.send_binary(kind3("e", b"\xff" * 1_000_000, is_json=False))
    assert json.loads(client.recv())[4] == {"status": "ok", "response": {}}


def test_a_broadcast_that_is_no_object_crashes_the_senders_channel(server: RealtimeServer, connect: Connect) -> None:
    client = connect()
    join(client)
    send(client, "1", "2", TOPIC, "broadcast", "text")
    assert json.loads(client.recv()) == ["1", "1", TOPIC, "phx_error", {"reason": "channel_crash"}]
    assert server.members("room") == 0


def test_a_join_without_join_ref_lends_its_ref_to_the_channel(connect: Connect) -> None:
    client = connect()
    send(client, None, "39", TOPIC, "phx_join", {"config": {"broadcast": {"ack": True}}})
    assert json.loads(client.recv())[:2] == [None, "39"]
    send(client, None, "40", TOPIC, "broadcast", {"type": "broadcast", "event": "x", "payload": {}})
    assert json.loads(client.recv())[:2] == ["39", "40"]
    send(client, None, "41", TOPIC, "phx_leave", {})
    assert json.loads(client.recv())[:2] == ["39", "41"]
    assert json.loads(client.recv()) == [None, None, TOPIC, "phx_close", {}]


def test_joining_a_topic_without_prefix_is_unmatched_and_carries_no_join_ref(connect: Connect) -> None:
    reply = join(connect(), "15", "room:lobby")
    assert reply == [
        None,
        "15",
        "room:lobby",
        "phx_reply",
        {"status": "error", "response": {"reason": "unmatched topic"}},
    ]


def test_any_topic_may_be_joined_where_no_prefix_is_required(connect: Connect) -> None:
    with RealtimeServer(require_prefix=False) as free:
        client = connect(free)
        assert join(client, topic="room:lobby")[4]["status"] == "ok"
        assert free.broadcast("room:lobby", "x", {}, as_text=True) == 1
        assert json.loads(client.recv())[2:4] == ["room:lobby", "broadcast"]


@pytest.mark.parametrize("how", ["latency", "refusal"])
def test_pings_are_not_answered_while_a_join_runs(connect: Connect, how: str) -> None:
    with RealtimeServer(join_latency=0.2 if how == "latency" else 0, join_error_backoff=0.2) as slow:
        if how == "refusal":
            slow.on_join = lambda topic, payload, connection: JoinRefusal("no")
        client = connect(slow)
        send(client, "1", "1", TOPIC, "phx_join", {"config": {}})
        slow.wait_for(lambda s: s.received)
        slow.call(lambda: None)  # the loop has come to where the join waits
        client.ping("p")
        opcodes = [client.recv_data_frame(control_frame=True)[0] for _ in range(2)]
        assert opcodes == [websocket.ABNF.OPCODE_TEXT, websocket.ABNF.OPCODE_PONG]


def test_a_socket_lost_during_its_join_leaves_no_member(connect: Connect) -> None:
    with RealtimeServer(join_latency=60) as slow:
        client = connect(slow)
        send(client, "1", "1", TOPIC, "phx_join", {"config": {}})
        slow.wait_for(lambda s: s.received)
        slow.connections[0].abort()
        slow.wait_for(lambda s: not s.connections)
        assert (slow.members("room"), slow.joins()) == (0, [])


def test_a_frozen_socket_can_be_aborted_with_frames_waiting_on_both_sides(
    server: RealtimeServer, connect: Connect
) -> None:
    client = connect()
    join(client)
    (connection,) = server.connections
    connection.freeze()
    server.broadcast("room", "x", {})
    send(client, None, "1", "phoenix", "heartbeat", {})
    connection.abort()
    server.wait_for(lambda s: not s.connections)
    connection.thaw()
    connection.freeze()
    connection.resume_reading()
    assert server.members("room") == 0


def test_thawing_does_not_undo_a_pause(server: RealtimeServer, connect: Connect) -> None:
    client = connect()
    join(client)
    (connection,) = server.connections
    connection.pause_reading()
    connection.freeze()
    connection.thaw()
    send(client, None, "7", "phoenix", "heartbeat", {})
    server.broadcast("room", "x", {}, as_text=True)
    assert json.loads(client.recv())[3] == "broadcast"
    assert not [m for m in server.received if m.ref == "7"]
    connection.resume_reading()
    assert json.loads(client.recv())[1] == "7"


def test_a_client_that_never_reads_is_cut_off_and_the_others_are_served(connect: Connect) -> None:
    with RealtimeServer(max_socket_heap=1_000_000) as strict:
        small = ((socket.SOL_SOCKET, socket.SO_RCVBUF, 4096),)
        deaf, lively = connect(strict, sockopt=small), connect(strict)
        join(deaf)
        join(lively)
        for n in range(100):
            strict.broadcast("room", "x", {"n": n, "pad": "x" * 200_000}, as_text=True)
            assert json.loads(lively.recv())[4]["payload"]["n"] == n
        strict.wait_for(lambda s: len(s.connections) == 1)


def test_two_thousand_broadcasts_from_each_of_three_threads_keep_their_order(
    server: RealtimeServer, connect: Connect
) -> None:
    client = connect()
    join(client)

    def publish(name: int) -> None:
        for n in range(2_000):
            assert server.broadcast("room", "x", {"by": name, "n": n}, as_text=True) == 1

    threads = [threading.Thread(target=publish, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    heard: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for _ in range(6_000):
        payload = json.loads(client.recv())[4]["payload"]
        heard[payload["by"]].append(payload["n"])
    for thread in threads:
        thread.join()
    assert all(numbers == list(range(2_000)) for numbers in heard.values())


def test_two_hundred_sockets_and_a_thousand_joins(server: RealtimeServer, connect: Connect) -> None:
    clients = [connect() for _ in range(200)]
    for number in range(5):
        for client in clients:
            send(client, str(number), str(number), f"realtime:{number}", "phx_join", {"config": {}})
    for client in clients:
        assert [json.loads(client.recv())[1] for _ in range(5)] == ["0", "1", "2", "3", "4"]
    assert (len(server.connections), len(server.joins()), server.members("3")) == (200, 1_000, 200)
    assert server.broadcast("3", "x", {"n": 1}, as_text=True) == 200
    assert {json.loads(client.recv())[4]["event"] for client in clients} == {"x"}


def test_a_user_is_a_socket_that_joined_and_the_next_one_is_refused(connect: Connect) -> None:
    with RealtimeServer(max_concurrent_users=1) as strict:
        idle, user = connect(strict), connect(strict)
        assert join(user)[4]["status"] == "ok"
        reason = join(idle)[4]["response"]["reason"]
        assert reason == "ConnectionRateLimitReached: Too many connected users"
        with pytest.raises(websocket.WebSocketBadStatusException, match="429"):
            connect(strict)


def test_the_key_in_the_header_wins_and_version_patches_are_accepted(server: RealtimeServer) -> None:
    url = f"ws://127.0.0.1:{server.port}/socket/websocket?apikey=rubbish&vsn=2.0.7"
    client = websocket.create_connection(url, timeout=5, header=[f"X-Api-Key: {server.api_key}"])
    beat(client)
    assert server.connections[0].vsn == "2.0.0"
    client.shutdown()


def test_what_a_hook_says_of_headers_replaces_the_usual_ones(server: RealtimeServer, connect: Connect) -> None:
    server.on_connect = lambda request: Refusal(503, "later", {"Content-Type": "text/plain", "Retry-After": "1"})
    with pytest.raises(websocket.WebSocketBadStatusException) as caught:
        connect()
    assert caught.value.resp_headers["content-type"] == "text/plain"
    assert caught.value.resp_headers["retry-after"] == "1"
    assert caught.value.resp_body == b"later"


def test_changes_before_the_subscription_are_lost(server: RealtimeServer, connect: Connect) -> None:
    with RealtimeServer(postgres_delay=60) as cold:
        client = connect(cold)
        join(client, postgres_changes=[{"event": "*", "schema": "public", "table": "cars"}])
        assert cold.change("public", "cars", "INSERT", {"id": 1}) == 0
    client = connect()
    join(client, postgres_changes=[{"event": "*", "schema": "public", "table": "cars"}])
    client.recv()
    assert server.change("public", "cars", "INSERT", {"id": 1}, commit_timestamp="2026-03-01T10:20:31.000Z") == 1
    assert json.loads(client.recv())[4]["data"]["commit_timestamp"] == "2026-03-01T10:20:31.000Z"


def test_nothing_is_said_to_a_channel_that_left_before_its_subscription(connect: Connect) -> None:
    with RealtimeServer(postgres_delay=0.05) as cold:
        client, later = connect(cold), connect(cold)
        bindings = [{"event": "*", "schema": "public", "table": "cars"}]
        join(client, postgres_changes=bindings)
        send(client, "1", "2", TOPIC, "phx_leave", {})
        assert [json.loads(client.recv())[3] for _ in range(2)] == ["phx_reply", "phx_close"]
        join(later, postgres_changes=bindings)
        assert json.loads(later.recv())[3] == "system", "by now the first one's would have been said"
        beat(client)


def test_a_new_token_renews_the_subscription_and_the_same_one_does_nothing(
    server: RealtimeServer, connect: Connect
) -> None:
    client, token = connect(), server.token()
    config = {"postgres_changes": [{"event": "*", "schema": "public", "table": "cars"}]}
    send(client, "1", "1", TOPIC, "phx_join", {"config": config, "access_token": token})
    assert [json.loads(client.recv())[3] for _ in range(2)] == ["phx_reply", "system"]
    for same in (token, None, "sb_secret_x"):
        send(client, "1", "2", TOPIC, "access_token", {"access_token": same})
    beat(client)
    send(client, "1", "3", TOPIC, "access_token", {"access_token": server.token(sub="me")})
    assert json.loads(client.recv())[4]["message"] == "Subscribed to PostgreSQL"


def test_presence_calls_count_within_their_window(connect: Connect) -> None:
    with RealtimeServer(presence_max_calls=1, presence_window=0) as lenient:
        client = connect(lenient)
        join(client)
        for ref in ("2", "3", "4"):
            send(client, "1", ref, TOPIC, "presence", {"type": "presence", "event": "untrack"})
            assert json.loads(client.recv())[4]["status"] == "ok"


def test_records_are_bounded(connect: Connect) -> None:
    with RealtimeServer(record_limit=3) as brief:
        client = connect(brief)
        for number in range(5):
            join(client, str(number), f"realtime:{number}")
            send(client, str(number), "9", f"realtime:{number}", "phx_leave", {})
            client.recv()
            client.recv()
        assert [j.topic for j in brief.joins()] == [leave.topic for leave in brief.leaves()] == ["2", "3", "4"]
        assert len(brief.received) == 3


@pytest.mark.parametrize(
    ("text", "row", "matches"),
    [
        ("id=not.eq.5", {"id": None}, False),
        ("id=not.is.null", {"id": 5}, True),
        ("id=not.in.(1,2)", {"id": None}, False),
        ("id=in.()", {"id": 1}, False),
        ("id=not.in.()", {"id": 1}, True),
        ("name=isdistinct.null", {"name": "null"}, False),
        ("name=isdistinct.null", {"name": None}, True),
        ("id=isdistinct.5", {"id": None}, True),
        ("id=eq.5.0", {"id": 5}, True),
        ("id=gt.9007199254740992", {"id": 9007199254740993}, True),
        ("on=eq.t", {"on": True}, True),
        ("name=like.50\\%", {"name": "50%"}, True),
        ("name=like.50\\%", {"name": "505"}, False),
        ("name=like.a_c", {"name": "abc"}, True),
        ("name=match.(", {"name": "abc"}, False),
        ("on=is.false", {"on": False}, True),
        ("on=is.FALSE", {"on": False}, False),
        ("price (eur)=eq.5, v1.2=eq.6)", {"price (eur)": 5, "v1.2": "6)"}, True),
    ],
)
def test_filters_follow_sql(text: str, row: dict[str, Any], matches: bool) -> None:
    assert binding_matches({"schema": "public", "table": "t", "filter": text}, "public", "t", "INSERT", row) is matches


@pytest.mark.parametrize(
    ("binding", "words"),
    [
        ({"event": "*"}, r'to: %\{"event" => "\*"\}$'),
        ({"schema": "public", "filter": None}, '"filter" => nil'),
        ({"schema": "public", "table": "t", "filter": "plate=xx.A"}, r'params: \["xx", "A"\]$'),
        ({"schema": "public", "table": "t", "filter": "plate"}, r'params: \["plate"\]$'),
        (
            {"schema": "public", "table": "t", "filter": "on=is.maybe"},
            r"ERROR P0001 \(raise_exception\) invalid value for is filter: must be null, true, false, or unknown$",
        ),
        ({"schema": "public", "table": "t", "filter": f"id=in.({','.join(map(str, range(101)))})"}, "too many values"),
        ({"table": "t", "select": "id"}, "expected a list of column name strings"),
        ({"schema": "public", "select": ["id"]}, "not supported for wildcard"),
    ],
)
def test_a_bad_binding_is_refused_with_the_servers_words(binding: dict[str, Any], words: str) -> None:
    with pytest.raises(BadFilter, match=words):
        check_binding(binding)


@pytest.mark.parametrize("turns", range(12))
@pytest.mark.parametrize("secure", [False, True])
def test_a_connection_that_comes_while_the_server_closes_ends_with_it(
    certificates: tuple[ssl.SSLContext, ssl.SSLContext], secure: bool, turns: int
) -> None:
    server = RealtimeServer(ssl_context=certificates[0] if secure else None)
    late: list[socket.socket] = []

    def connect_and_stop_soon() -> None:
        late.append(socket.create_connection(("127.0.0.1", server.port), timeout=10))
        loop, (stop,) = asyncio.get_running_loop(), server.stopping

        def turn(left: int) -> None:
            loop.call_soon(turn, left - 1) if left else stop.set()

        turn(turns)

    for _ in range(2):  # what the first run left behind would be met by the second
        server.start()
        server.call(connect_and_stop_soon)
        server.close()
        assert not server._streams
        with late.pop() as sock, contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""

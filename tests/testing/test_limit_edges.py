"""Each limit of the embedded server one below, at, and one above."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
import websocket

from rtpool.testing import RealtimeServer, Trouble
from rtpool.testing.wire import size_of
from tests.support.hand import TOPIC, Hand, call

NOW = 1_800_000_000.0
BATCH = "/api/broadcast"
SINGLE = "/api/broadcast/room/events/e?private=true"
BELOW_AT_ABOVE = pytest.mark.parametrize("extra", [-1, 0, 1])


def reasons(reply: Any) -> str:
    return str(reply["response"].get("reason", "ok"))


def system(frames: list[Any]) -> list[str]:
    return [frame[4]["message"] for frame in frames if frame[3] == "system"]


@pytest.mark.parametrize(
    ("plain", "words"), [(False, "ChannelRateLimitReached: Too many channels"), (True, "too many channels joined")]
)
def test_channels_of_a_socket(plain: bool, words: str) -> None:
    with RealtimeServer(plain_phoenix=plain, max_channels_per_client=3) as server, Hand(server) as hand:
        answers = [reasons(hand.join(str(n), f"realtime:{n}")) for n in range(4)]
        assert answers == ["ok", "ok", "ok", words]
        hand.send("9", "9", "phx_join", {"config": {}}, "realtime:0")
        assert [frame[3] for frame in hand.until_heartbeat()] == ["phx_reply", "phx_close"], "a rejoin takes no more"
        hand.send("1", "10", "phx_leave", {}, "realtime:1")
        hand.until_heartbeat()
        assert reasons(hand.join("11", "realtime:3")) == "ok"


def test_a_hundred_channels_are_what_a_plain_phoenix_server_has_for_a_socket() -> None:
    with RealtimeServer(plain_phoenix=True) as server, Hand(server) as hand:
        answers = [reasons(hand.join(str(n), f"room:{n}")) for n in range(101)]
        assert answers == ["ok"] * 100 + ["too many channels joined"]


def test_users_at_the_upgrade_and_at_the_join() -> None:
    with (
        RealtimeServer(max_concurrent_users=2) as server,
        Hand(server) as first,
        Hand(server) as second,
        Hand(server) as late,
    ):
        assert [reasons(first.join()), reasons(second.join())] == ["ok", "ok"]
        assert reasons(late.join()) == "ConnectionRateLimitReached: Too many connected users"
        assert reasons(first.join("2", "realtime:more")) == "ok", "it is counted already"
        with pytest.raises(websocket.WebSocketBadStatusException, match="429"):
            Hand(server)
        second.ws.close()
        server.wait_for(lambda s: len(s.connections) == 2)
        assert reasons(late.join("2")) == "ok"


def test_joins_of_a_second() -> None:
    with RealtimeServer(max_joins_per_second=3, clock_at=NOW) as server, Hand(server) as hand:
        assert [reasons(hand.join(str(n), f"realtime:{n}")) for n in range(3)] == ["ok"] * 3
        assert reasons(hand.join("4")) == "ClientJoinRateLimitReached: Too many joins per second"
        assert hand.receive() == ("close", 1001)


@BELOW_AT_ABOVE
def test_messages_of_a_batch_and_of_a_second(extra: int) -> None:
    message = {"topic": "room", "event": "e", "payload": {}}
    with RealtimeServer(max_events_per_second=3, clock_at=NOW) as server:
        status, body, _ = call(server, BATCH, {"messages": [message] * (3 + extra)})
        if extra == 1:
            assert (status, body) == (
                429,
                {"message": "Too many messages to broadcast, please reduce the batch size"},
            )
            return
        assert status == 202
        status, body, _ = call(server, BATCH, {"messages": [message]})
        refused = (429, {"message": "You have exceeded your rate limit"})
        assert (status, body) == ((202, "") if extra == -1 else refused)


@BELOW_AT_ABOVE
def test_deliveries_of_a_second(extra: int) -> None:
    with RealtimeServer(max_events_per_second=4, clock_at=NOW) as server, Hand(server) as hand:
        hand.join()
        for _ in range(4 + extra):  # to nobody: each counts once
            server.broadcast("elsewhere", "e", {})
        assert server.broadcast("room", "e", {}) == 1
        assert system(hand.until_heartbeat()) == (["Too many messages per second"] if extra >= 0 else [])


@BELOW_AT_ABOVE
def test_presence_messages_of_a_second(extra: int) -> None:
    track = {"type": "presence", "event": "track"}
    # the first track counts twice: itself, and what is delivered of it
    with RealtimeServer(max_presence_events_per_second=2 - extra, clock_at=NOW) as server, Hand(server) as hand:
        hand.join()
        hand.send("1", "2", "presence", {**track, "payload": {"n": 1}})
        hand.send("1", "3", "presence", {**track, "payload": {"n": 2}})
        words = ["Too many presence messages per second"] if extra >= 0 else []
        assert system(hand.until_heartbeat()) == words


@BELOW_AT_ABOVE
def test_presence_calls_of_a_channel(extra: int) -> None:
    with RealtimeServer(presence_max_calls=5, presence_window=30.0, clock_at=NOW) as server, Hand(server) as hand:
        hand.join()
        for number in range(5 + extra):
            hand.send("1", str(number), "presence", {"type": "presence", "event": "untrack"})
        words = ["Client presence rate limit exceeded"] if extra == 1 else []
        assert system(hand.until_heartbeat()) == words


@BELOW_AT_ABOVE
def test_the_size_of_a_tracked_payload(extra: int) -> None:
    with RealtimeServer(max_payload_kb=1) as server, Hand(server) as hand:
        meta = {"d": ""}
        meta["d"] = "x" * (server.max_payload + extra - size_of(meta))
        hand.join()
        hand.send("1", "2", "presence", {"type": "presence", "event": "track", "payload": meta})
        assert system(hand.until_heartbeat()) == (["Track message size exceeded"] if extra == 1 else [])


@BELOW_AT_ABOVE
def test_the_size_of_a_broadcast(extra: int) -> None:
    with RealtimeServer(max_payload_kb=1) as server, Hand(server) as hand:
        body: dict[str, Any] = {"type": "broadcast", "event": "e", "payload": {"d": ""}}
        body["payload"]["d"] = "x" * (server.max_payload + extra - size_of(body))
        hand.join(broadcast={"ack": True})
        hand.send("1", "2", "broadcast", body)
        wanted = ("error", "payload_size_exceeded") if extra == 1 else ("ok", {})
        payload = hand.receive()[4]
        assert (payload["status"], payload["response"]) == wanted


def padded(size: int, join_ref: str, ref: str, event: str, payload: dict[str, Any]) -> str:
    """A frame of so many bytes."""
    frame = json.dumps([join_ref, ref, TOPIC, event, {**payload, "pad": ""}])
    return frame.replace('"pad": ""', f'"pad": "{"x" * (size - len(frame))}"')


@BELOW_AT_ABOVE
def test_the_size_of_a_frame(extra: int) -> None:
    with RealtimeServer(max_frame_size=1_000) as server, Hand(server) as hand:
        hand.ws.send(padded(1_000 + extra, "1", "1", "phx_join", {"config": {}}))
        answer = hand.receive()
        assert answer == ("close", 1009) if extra == 1 else answer[4]["status"] == "ok"


@BELOW_AT_ABOVE
def test_the_heap_of_a_channel(extra: int) -> None:
    with RealtimeServer(max_channel_heap=500) as server, Hand(server) as hand:
        hand.join(broadcast={"ack": True})
        message = {"type": "broadcast", "event": "e", "payload": {}}
        hand.ws.send(padded(500 + extra, "1", "2", "broadcast", message))
        crashed = ["1", "1", TOPIC, "phx_error", {"reason": "channel_crash"}]
        answer = hand.receive()
        assert answer == crashed if extra == 1 else answer[4]["status"] == "ok"
        hand.ws.send(padded(500 + extra, "3", "3", "phx_join", {"config": {}}))
        reply = next(frame for frame in hand.until_heartbeat() if frame[3] == "phx_reply")
        assert reasons(reply[4]) == ("join crashed" if extra == 1 else "ok")


def test_the_heap_of_a_socket() -> None:
    with RealtimeServer(max_socket_heap=1_000) as server, Hand(server) as hand:
        assert hand.until_heartbeat() == []
        (connection,) = server.connections
        connection.freeze()
        for text in ("x" * 999, "x"):
            connection.send_text(text)
            server.advance()
            assert server.connections == (connection,)
        connection.send_text("x")
        server.wait_for(lambda s: not s.connections)
        with pytest.raises((ConnectionError, websocket.WebSocketConnectionClosedException)):
            hand.receive()


def dial(server: RealtimeServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def test_connections_of_a_node() -> None:
    with RealtimeServer(max_http_connections=2) as server, Hand(server) as first, dial(server) as second:
        assert first.until_heartbeat() == []
        with dial(server) as turned_away:
            assert turned_away.recv(1) == b""
        with pytest.raises((ConnectionError, websocket.WebSocketException)):
            Hand(server)
        assert server.turned_away == 2
        second.sendall(b"GET /api/ping HTTP/1.1\r\nHost: x\r\n\r\n")
        assert second.recv(65_536).startswith(b"HTTP/1.1 200 "), "the second is served"
        while second.recv(65_536):
            pass  # the server closes after an answer
        with Hand(server) as third:
            assert third.until_heartbeat() == []


def test_attempts_to_reach_the_database() -> None:
    lost = "IncreaseConnectionPool: Please increase your connection pool size"
    rate = "DatabaseConnectionRateLimitReached: Too many database connections attempts per second"
    with (
        RealtimeServer(max_database_errors=3, database_error_window=5.0, clock_at=NOW) as server,
        Hand(server, key=server.token()) as hand,
    ):
        server.stop_database()
        answers = [reasons(hand.join(str(n), private=True)) for n in range(4)]
        assert answers == [lost, lost, lost, rate]
        assert reasons(hand.join("5")) == "ok", "public channels do without"
        assert call(server, SINGLE, {})[:2] == (422, {"message": "Connect rate limit reached"})
        server.advance(4.9)
        assert reasons(hand.join("6", private=True)) == rate
        server.advance(0.1)
        assert reasons(hand.join("7", private=True)) == lost
        server.start_database()
        assert reasons(hand.join("8", private=True)) == "ok"


@pytest.mark.parametrize(
    ("trouble", "join", "rest", "system_words", "everybody"),
    [
        ("down", "IncreaseConnectionPool: ", (422, "Tenant database unavailable"), ":increase_connection_pool", False),
        (
            "unreachable",
            "UnableToConnectToProject: Realtime was unable",
            (422, "Tenant database unavailable"),
            "Realtime was unable to connect to the project database",
            True,
        ),
        (
            "initializing",
            "InitializingProjectConnection: Realtime is initializing",
            (422, "Tenant database initializing"),
            ":initializing",
            True,
        ),
        (
            "connecting",
            "InitializingProjectConnection: Connecting",
            (422, "Tenant database connection initializing"),
            ":tenant_database_connection_initializing",
            True,
        ),
        (
            "full",
            "DatabaseLackOfConnections: ",
            (422, "Tenant database has too many connections"),
            ":tenant_db_too_many_connections",
            True,
        ),
        ("busy", "IncreaseConnectionPool: ", (429, "Connection pool exhausted"), ":increase_connection_pool", False),
        ("slow", "QueryCanceled: ", (422, "Query canceled"), "Query was cancelled, please try again", False),
        (
            "no partition",
            "MissingPartition: ",
            (422, "Missing messages partition"),
            "Realtime was unable to connect to the project database",
            False,
        ),
    ],
)
def test_a_database_in_trouble_is_told_to_who_needs_it(
    server: RealtimeServer, trouble: Trouble, join: str, rest: tuple[int, str], system_words: str, everybody: bool
) -> None:
    with Hand(server) as hand:
        hand.join(private=True)
        hand.join("p", "realtime:public")
        server.stop_database(trouble)
        assert reasons(hand.join("2", "realtime:other", private=True)).startswith(join)
        assert reasons(hand.join("3", "realtime:free")).startswith(join if everybody else "ok")
        status, body, _ = call(server, SINGLE, {})
        assert (status, body["message"]) == rest
        assert call(server, "/api/broadcast/room/events/e", {})[0] == 202
        hand.send("1", "4", "access_token", {"access_token": server.token(sub="new")})
        hand.send("p", "5", "access_token", {"access_token": server.token(sub="new")}, "realtime:public")
        told = hand.until_heartbeat()
        assert system(told) == [system_words] * (1 + everybody)
        assert [frame[3] for frame in told] == ["system", "phx_close"] * (1 + everybody)


def test_a_policy_that_raises_is_told_to_a_rest_call(server: RealtimeServer) -> None:
    server.policy = lambda request: 1 / 0  # type: ignore[assignment, return-value]
    assert call(server, SINGLE, {})[:2] == (422, {"message": "RLS policy error"})
    server.policy = lambda request: False
    assert call(server, SINGLE, {})[:2] == (403, {"message": "Unauthorized"})


def test_a_token_no_signer_is_known_for_ends_the_channel_in_printed_words(server: RealtimeServer) -> None:
    with Hand(server) as hand:
        hand.join()
        hand.send("1", "2", "access_token", {"access_token": "eyJhbGciOiJub25lIn0.e30."})
        assert system(hand.until_heartbeat()) == [":error_generating_signer"]


@BELOW_AT_ABOVE
def test_names_in_a_binary_frame(server: RealtimeServer, extra: int) -> None:
    topic, event = "t" * (255 + extra - len("realtime:")), "e" * (255 + extra)
    with Hand(server) as hand:
        for name in (topic, "room"):
            assert reasons(hand.join(name[0], f"realtime:{name}")) == "ok"
        wanted = 500 if extra == 1 else 202
        assert call(server, f"/api/broadcast/{topic}/events/e", {})[0] == wanted
        assert call(server, f"/api/broadcast/room/events/{event}", {})[0] == wanted
        assert len(hand.until_heartbeat()) == (0 if extra == 1 else 2)


@BELOW_AT_ABOVE
def test_silence_of_a_socket(extra: int) -> None:
    with RealtimeServer(idle_timeout=60.0, clock_at=NOW) as server, Hand(server) as hand:
        assert hand.until_heartbeat() == []
        server.advance(60.0 + extra)
        assert hand.until_heartbeat() == [] if extra == -1 else hand.receive() == ("close", 1000)

"""What hooks and deeds make the embedded server do."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import websocket

from rtpool.testing import NO_REPLY, JoinReply, PushReply, RealtimeServer, ServerConnection
from tests.support.hand import TOPIC, Hand


def test_a_push_is_answered_by_the_hook_swallowed_or_left_to_the_server(server: RealtimeServer) -> None:
    asked: list[tuple[str, str, Any]] = []

    def on_push(topic: str, event: str, payload: Any, connection: ServerConnection) -> Any:
        asked.append((topic, event, payload))
        if event == "own":
            return PushReply({"n": 1}, "odd")
        return NO_REPLY if payload.get("event") == "lost" else None

    server.on_push = on_push
    with Hand(server) as hand:
        hand.join(broadcast={"ack": True})
        hand.send("1", "2", "own", {"a": 1})
        assert hand.receive() == ["1", "2", TOPIC, "phx_reply", {"status": "odd", "response": {"n": 1}}]
        for event in ("lost", "kept"):
            hand.send("1", event, "broadcast", {"type": "broadcast", "event": event, "payload": {}})
        assert [frame[1] for frame in hand.until_heartbeat()] == ["kept"]
        assert asked[0] == ("room", "own", {"a": 1})


def test_a_hook_that_raises_crashes_the_channel_as_a_server_does(server: RealtimeServer) -> None:
    server.on_push = lambda *_: 1 / 0  # type: ignore[assignment]
    with Hand(server) as hand:
        hand.join()
        hand.send("1", "2", "x", {})
        assert hand.receive() == ["1", "1", TOPIC, "phx_error", {"reason": "channel_crash"}]
        hand.join("3")
        assert server.crash_channel("room") == 1
        assert hand.receive()[3] == "phx_error"
    with RealtimeServer(crash_reason=None) as older, Hand(older) as hand:
        hand.join()
        older.crash_channel("room")
        assert hand.receive() == ["1", "1", TOPIC, "phx_error", {}]


def test_a_plain_application_answers_joins_and_pushes_late_with_bytes_and_presence() -> None:
    with RealtimeServer(plain_phoenix=True, clock_at=0.0) as server, Hand(server) as hand:

        def on_join(topic: str, payload: Any, connection: ServerConnection) -> JoinReply:
            return JoinReply({"hello": topic}, pushes=(("tick", {"n": 1}), ("presence_state", server.presence(topic))))

        def on_push(topic: str, event: str, payload: Any, connection: ServerConnection) -> PushReply:
            if event == "track":
                return PushReply({"ref": server.track(connection, topic, "ann", payload)})
            return PushReply(b"\x01", delay=2.0)

        server.on_join, server.on_push = on_join, on_push
        assert hand.join(topic="room:1")["response"] == {"hello": "room:1"}
        assert hand.receive() == ["1", None, "room:1", "tick", {"n": 1}]
        assert hand.receive() == ["1", None, "room:1", "presence_state", {}]
        hand.send("1", "2", "bytes", {}, "room:1")
        assert hand.until_heartbeat() == []
        server.advance(2.0)
        assert hand.receive() == bytes((1, 1, 1, 6, 2)) + b"12room:1ok\x01"
        hand.send("1", "3", "track", {"n": 1}, "room:1")
        diff, reply = hand.until_heartbeat()
        (meta,) = diff[4]["joins"]["ann"]["metas"]
        assert reply[4]["response"] == {"ref": meta["phx_ref"]}
        (connection,) = server.connections
        assert server.track(connection, "room:1", "ann", None) is None
        assert hand.receive()[4]["leaves"]["ann"]["metas"] == [meta]
        connection.push("room:1", "bye", {})
        connection.stop("room:1")
        assert [frame[3] for frame in hand.until_heartbeat()] == ["bye", "phx_close"]
        with pytest.raises(LookupError):
            connection.push("room:1", "bye", {})


def test_stale_join_refs_pass_on_the_older_server() -> None:
    message = {"type": "broadcast", "event": "e", "payload": {}}
    with RealtimeServer(strict_join_ref=False) as server, Hand(server) as hand:
        hand.join(broadcast={"ack": True})
        for ref, join_ref in (("2", None), ("3", "99")):
            hand.send(join_ref, ref, "broadcast", message)
            assert hand.receive()[:2] == ["1", ref]


def test_a_drained_server_closes_with_1012_and_serves_again_on_its_port() -> None:
    server = RealtimeServer()
    with server:
        with Hand(server) as joined, Hand(server) as idle:
            joined.join()
            server.drain()
            assert joined.receive() == ("close", 1012)
            assert idle.until_heartbeat() == []
            server.close()
            with pytest.raises((ConnectionError, websocket.WebSocketConnectionClosedException)):
                idle.receive()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", server.port))
            server.advance(1.0)
        server.start()
        with Hand(server) as again:
            assert again.join()["status"] == "ok"


def test_time_that_stands_still_is_passed_by_hand_alone() -> None:
    with RealtimeServer(clock_at=0.0, idle_timeout=60.0) as server, Hand(server, key=server.token()) as hand:
        server.advance(59.0)
        assert hand.until_heartbeat() == []
        server.advance(59.0)
        hand.ws.ping()
        server.advance(59.0)
        hand.join()
        server.advance(60.0)
        assert hand.receive() == ("close", 1000)

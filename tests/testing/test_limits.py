"""Every limit of the embedded server, at its edge."""

from __future__ import annotations

from typing import Any

import pytest
import websocket

from rtpool.testing import RealtimeServer, ServerOptions
from rtpool.testing.limits import Rate
from tests.support.hand import TOPIC, Hand, call

NOW = 1_800_000_000.0
MESSAGE = {"type": "broadcast", "event": "e", "payload": {}}
TRACK = {"type": "presence", "event": "track", "payload": {"n": 1}}


def messages(frames: list[Any]) -> list[str]:
    return [frame[4].get("message", frame[3]) for frame in frames]


def test_a_rate_is_judged_at_once_or_by_the_average_of_a_minute() -> None:
    now = [0.0]
    sharp, averaged = Rate(lambda: now[0], 0.0), Rate(lambda: now[0], 5.0)
    for rate in (sharp, averaged):
        rate.count(10)
    assert sharp.over(10)
    assert not sharp.over(11)
    assert not averaged.over(1), "not before the first tick"
    now[0] = 5.0
    assert not sharp.over(1)
    assert averaged.average == 2.0
    now[0] = 10.0
    assert averaged.average == 1.0
    now[0] = 60.0
    assert averaged.average == pytest.approx(10 / 60)
    now[0] = 65.0
    assert not averaged.over(1)
    assert averaged.average == 0.0
    assert not averaged.over(None)


def test_over_the_events_limit_every_receiver_is_shut_down_and_others_are_not() -> None:
    with (
        RealtimeServer(max_events_per_second=3, clock_at=NOW) as server,
        Hand(server) as sender,
        Hand(server) as receiver,
        Hand(server) as quiet,
    ):
        sender.join(broadcast={"ack": True})
        receiver.join()
        quiet.join(topic="realtime:quiet")
        for ref in ("2", "3"):
            sender.send("1", ref, "broadcast", MESSAGE)
        assert messages(sender.until_heartbeat()) == ["phx_reply"] * 2
        assert messages(receiver.until_heartbeat()) == ["broadcast", "broadcast"]
        sender.send("1", "4", "broadcast", MESSAGE)
        assert messages(sender.until_heartbeat()) == ["phx_reply"], "the sender does not receive"
        words = "Too many messages per second"
        assert messages(receiver.until_heartbeat()) == ["broadcast", words, "phx_close"]
        assert quiet.until_heartbeat() == []
        server.database_send("room", "e", {}, private=False)
        assert sender.until_heartbeat() == [], "what the database sends is dropped"
        server.advance(1.0)
        server.database_send("room", "e", {}, private=False)
        assert b"realtime:room" in sender.receive()


def test_over_the_events_limit_changes_are_skipped_by_a_count_of_their_own() -> None:
    with RealtimeServer(max_events_per_second=1, clock_at=NOW) as server, Hand(server) as hand:
        hand.join(postgres_changes=[{"event": "*", "schema": "*"}])
        assert hand.receive()[4]["status"] == "ok"
        assert server.change("public", "cars", "INSERT", {"id": 1}) == 1
        assert server.change("public", "cars", "INSERT", {"id": 2}) == 0
        server.advance(1.0)
        assert server.change("public", "cars", "INSERT", {"id": 3}) == 1


def test_presence_over_its_rate_or_its_size_ends_the_channel() -> None:
    with (
        RealtimeServer(max_presence_events_per_second=2, max_payload_kb=1, clock_at=NOW) as server,
        Hand(server) as hand,
    ):
        hand.join()
        hand.send("1", "2", "presence", TRACK)
        assert messages(hand.until_heartbeat()) == ["phx_reply", "presence_diff"]
        hand.send("1", "3", "presence", {**TRACK, "payload": {"n": 2}})
        assert messages(hand.until_heartbeat()) == ["Too many presence messages per second", "phx_close"]
        server.advance(1.0)
        hand.join("4")
        hand.send("4", "5", "presence", {**TRACK, "payload": {"d": "x" * 2_000}})
        assert messages(hand.until_heartbeat()) == ["Track message size exceeded", "phx_close"]


def test_joins_over_the_rate_close_the_socket_and_refuse_upgrades_until_the_average_falls() -> None:
    options = {"max_joins_per_second": 2, "rate_tick": 5.0, "disconnect_code": 1000}
    with RealtimeServer(clock_at=NOW, **options) as server, Hand(server) as hand:
        for number in range(10):
            assert hand.join(str(number), f"realtime:{number}")["status"] == "ok", "not judged yet"
        server.advance(5.0)
        assert hand.join("x")["response"]["reason"] == "ClientJoinRateLimitReached: Too many joins per second"
        assert hand.receive() == ("close", 1000)
        with pytest.raises(websocket.WebSocketBadStatusException) as refused:
            Hand(server)
        assert refused.value.status_code == 429
        assert b"Too many joins per second" in (refused.value.resp_body or b"")
        server.advance(5.0)
        with Hand(server) as again:
            assert again.join()["status"] == "ok"


def test_switches_of_the_tenant_refuse_joins_and_disconnect_everybody() -> None:
    with RealtimeServer() as server, Hand(server) as hand, Hand(server) as idle:
        hand.join()
        server.configure(private_only=True)
        payload = {"extension": "system", "status": "ok", "message": "Server requested disconnect"}
        assert hand.receive() == [None, None, TOPIC, "system", payload]
        assert hand.receive() == ("close", 1012)
        assert idle.receive() == ("close", 1012)
        with Hand(server) as again:
            assert again.join()["response"]["reason"] == "PrivateOnly: This project only allows private channels"
            assert again.join("2", private=True)["status"] == "ok"
        server.configure(suspended=True)
        with pytest.raises(websocket.WebSocketBadStatusException) as refused:
            Hand(server)
        assert (refused.value.status_code, refused.value.resp_body) == (
            403,
            b'{"error":"Realtime was disabled for this tenant"}',
        )


def test_a_socket_that_joined_and_has_no_channel_is_cut_off() -> None:
    with (
        RealtimeServer(no_channel_timeout=600.0, idle_timeout=1e6, clock_at=NOW) as server,
        Hand(server) as never,
        Hand(server) as left,
        Hand(server) as joined,
    ):
        left.join()
        left.send("1", "2", "phx_leave", {})
        joined.join()
        assert messages(left.until_heartbeat()) == ["phx_reply", "phx_close"]
        server.advance(600.0)
        with pytest.raises((ConnectionError, websocket.WebSocketConnectionClosedException)):
            left.receive()
        assert never.until_heartbeat() == joined.until_heartbeat() == []


def test_a_plain_phoenix_server_limits_channels_in_its_own_words_and_dies_of_malformed_frames() -> None:
    with RealtimeServer(plain_phoenix=True, max_channels_per_client=1) as server, Hand(server) as hand:
        hand.join(topic="room:1")
        assert hand.join("2", "room:2")["response"] == {"reason": "too many channels joined"}
        hand.ws.send("not json")
        assert hand.receive() == ("close", 1011)
        assert call(server, "/api/broadcast", {})[0] == 404


def test_the_limits_of_a_real_server_can_be_had_together() -> None:
    with RealtimeServer(clock_at=NOW, **ServerOptions.real()) as server, Hand(server) as hand:
        assert (server.options.max_events_per_second, server.options.rate_tick) == (100, 5.0)
        hand.send("1", "1", "phx_join", {"config": {}, "access_token": "rubbish"})
        hand.send(None, "2", "heartbeat", {}, "phoenix")
        server.advance(4.9)
        server.advance(0.2)
        assert hand.receive()[4]["response"]["reason"].startswith("MalformedJWT")
        assert hand.receive()[1] == "2"

"""
Supabase's own clients, unmodified, on the embedded server alone.

The Python client speaks vsn 1 alone, which has no bytes: what is binary is the JavaScript client's.
"""

from __future__ import annotations

from typing import Any

import pytest

from rtpool.testing import NO_REPLY, JoinRefusal, Permissions, RealtimeServer
from tests.interop.conftest import CLIENTS, Connect
from tests.interop.driver import Peer, Row, wait_for_received
from tests.support.wait import CAP

PAYLOAD = {"n": 1, "half": 0.5, "words": "zażółć 🎈", "list": [None, True, {"deep": []}]}


def test_a_client_joins_and_the_server_has_it_in_the_room(server: RealtimeServer, client: str, peer: Peer) -> None:
    channel = peer.channel().subscribe()
    assert channel.state == "joined"
    assert server.members("room") == 1
    assert server.connections[0].vsn == CLIENTS[client][1]
    assert server.malformed == 0


def test_a_client_hears_what_the_server_broadcasts(server: RealtimeServer, peer: Peer) -> None:
    channel = peer.channel().on("broadcast", event="*").subscribe()
    server.broadcast("room", "moved", PAYLOAD)
    server.broadcast("room", "moved", {"n": 2}, as_text=True)
    assert channel.wait_for_broadcasts(2) == [("moved", PAYLOAD), ("moved", {"n": 2})]


def test_a_client_hears_the_events_it_asked_for_alone(server: RealtimeServer, peer: Peer) -> None:
    channel = peer.channel().on("broadcast", event="wanted").subscribe()
    for event in ("unwanted", "wanted"):
        server.broadcast("room", event, {})
    assert channel.wait_for_broadcasts(1) == [("wanted", {})]


def test_two_clients_hear_each_other_and_not_themselves(server: RealtimeServer, connect: Connect, client: str) -> None:
    ann, bob = [connect(client).channel().on("broadcast", event="*").subscribe() for _ in range(2)]
    assert ann.send("hello", PAYLOAD) == "ok"
    assert bob.wait_for_broadcasts(1) == [("hello", PAYLOAD)]
    assert bob.send("hello yourself", {}) == "ok"
    assert ann.wait_for_broadcasts(1) == [("hello yourself", {})]


def test_a_client_that_asks_for_it_hears_itself_and_is_acknowledged(server: RealtimeServer, peer: Peer) -> None:
    channel = peer.channel(ack=True, receive_own=True).on("broadcast", event="*").subscribe()
    assert channel.send("hello", PAYLOAD) == "ok"
    assert channel.wait_for_broadcasts(1) == [("hello", PAYLOAD)]


def test_bytes_go_from_client_to_client_and_to_vsn_1_not_at_all(server: RealtimeServer, connect: Connect) -> None:
    data = bytes(range(256))
    ann, bob, old = [
        connect(name).channel(ack=True).on("broadcast", event="*").subscribe() for name in ("js", "js", "js_vsn1")
    ]
    assert ann.send("photo", data) == "ok"
    assert ann.send("photo", {"taken": True}) == "ok"
    assert bob.wait_for_broadcasts(2) == [("photo", data), ("photo", {"taken": True})]
    assert old.wait_for_broadcasts(1) == [("photo", {"taken": True})]
    (sent, _) = [message for message in server.received if message.event == "broadcast"]
    assert sent.payload["payload"] == data
    server.broadcast("room", "photo", data[::-1])
    assert bob.wait_for_broadcasts(3)[2] == ("photo", data[::-1])


def test_a_broadcast_the_server_finds_too_large_is_an_error(server: RealtimeServer, connect: Connect) -> None:
    channel = connect("js").channel(ack=True).subscribe()
    assert channel.send("large", {"text": "x" * 3_100_000}) == "error"


def test_clients_see_who_comes_changes_and_goes(server: RealtimeServer, connect: Connect, client: str) -> None:
    channels = {}
    for name in ("ann", "bob"):
        channel = channels[name] = connect(client).channel(presence_key=name)
        for event in ("sync", "join", "leave"):
            channel.on("presence", event=event)
        channel.subscribe()
    ann, bob = channels.values()
    ann.track({"status": "here"})
    bob.wait_for_presence({"ann": [{"status": "here"}]})
    bob.track({"status": "there"})
    for channel in (ann, bob):
        channel.wait_for_presence({"ann": [{"status": "here"}], "bob": [{"status": "there"}]})
    ann.track({"status": "away"})
    bob.wait_for_presence({"ann": [{"status": "away"}], "bob": [{"status": "there"}]})
    ann.untrack()
    bob.wait_for_presence({"bob": [{"status": "there"}]})
    bob.unsubscribe()
    ann.wait_for_presence({})
    assert [change["key"] for change in ann.heard("presence join")] == ["ann", "bob", "ann"]
    assert [change["key"] for change in ann.heard("presence leave")] == ["ann", "ann", "bob"]


def test_a_client_that_comes_late_is_told_who_is_there(server: RealtimeServer, connect: Connect, client: str) -> None:
    early = connect(client).channel(presence_key="early").subscribe()
    early.track({"since": 1})
    server.wait_for(lambda s: s.presence("room"), CAP)
    late = connect(client).channel().on("presence", event="sync").subscribe()
    late.wait_for_presence({"early": [{"since": 1}]})


def test_a_client_receives_the_changed_rows_it_asked_for(server: RealtimeServer, peer: Peer) -> None:
    channel = peer.channel().on("system")
    channel.on("postgres_changes", event="*", schema="public", table="cars", filter="id=gt.5").subscribe()
    channel.wait_for(lambda: [m["message"] for m in channel.heard("system")] == ["Subscribed to PostgreSQL"])
    row = {"id": 7, "name": "mü", "price": 1.5, "sold": False, "extras": {"color": "red"}, "note": None}
    server.change("public", "cars", "INSERT", {**row, "id": 5})
    server.change("public", "boats", "INSERT", row)
    server.change("public", "cars", "INSERT", row)
    server.change("public", "cars", "UPDATE", {**row, "sold": True}, {"id": 7})
    server.change("public", "cars", "DELETE", old_record={"id": 7})
    assert channel.wait_for_rows(3) == [
        Row("INSERT", "public", "cars", row, {}),
        Row("UPDATE", "public", "cars", {**row, "sold": True}, {"id": 7}),
        Row("DELETE", "public", "cars", {}, {"id": 7}),
    ]


def test_each_of_a_clients_bindings_gets_its_own_rows(server: RealtimeServer, peer: Peer) -> None:
    channel = peer.channel()
    for event, table in (("INSERT", "cars"), ("DELETE", "cars"), ("INSERT", "boats")):
        channel.on("postgres_changes", event=event, schema="public", table=table)
    channel.subscribe()
    server.change("public", "cars", "UPDATE", {"id": 1}, {"id": 1})
    server.change("public", "cars", "DELETE", old_record={"id": 1})
    server.change("public", "boats", "INSERT", {"id": 2})
    assert channel.wait_for_rows(2) == [
        Row("DELETE", "public", "cars", {}, {"id": 1}),
        Row("INSERT", "public", "boats", {"id": 2}, {}),
    ]


def test_a_new_access_token_reaches_the_server_and_later_joins(server: RealtimeServer, peer: Peer) -> None:
    channel = peer.channel().on("broadcast", event="*").subscribe()
    token = server.token(sub="ann")
    peer.set_auth(token)
    assert wait_for_received(server, "access_token", 1) == [{"access_token": token}]
    server.broadcast("room", "still", {})
    channel.wait_for_broadcasts(1)
    peer.channel("other").subscribe()
    assert server.joins("other")[0].payload["access_token"] == token


def test_a_token_the_server_refuses_ends_the_channel(server: RealtimeServer, peer: Peer) -> None:
    channel = peer.channel().subscribe()
    peer.set_auth(server.token(expires_in=-60))
    channel.wait_for(lambda: "CLOSED" in channel.statuses)
    assert server.members("room") == 0


def test_a_private_channel_without_permission_is_refused_until_a_token_permits_it(
    server: RealtimeServer, peer: Peer
) -> None:
    server.policy = lambda asked: asked.claims["role"] == "authenticated"
    channel = peer.channel(private=True).subscribe(status="CHANNEL_ERROR")
    words = channel.wait_for_status("CHANNEL_ERROR")
    assert "Unauthorized: You do not have permissions to read from this Channel topic: room" in str(words)
    peer.set_auth(server.token(role="authenticated"))
    channel.wait_for_status("SUBSCRIBED")
    assert [join.accepted for join in server.joins("room")][-1:] == [True]


def test_who_may_only_read_is_not_heard_nor_seen(server: RealtimeServer, connect: Connect, client: str) -> None:
    server.policy = lambda asked: Permissions(read_broadcast=True, read_presence=True)
    channel = connect(client, timeout=1).channel(private=True, ack=True, receive_own=True, presence_key="ann")
    channel.on("broadcast", event="*").on("presence", event="sync").subscribe()
    assert channel.track({}) in ("error", None)
    assert channel.send("hello", {}) == "timed out"
    server.broadcast("room", "end", {}, private=True)
    assert channel.wait_for_broadcasts(1) == [("end", {})]
    assert server.presence("room") == {}


def test_private_and_public_clients_do_not_hear_each_other(
    server: RealtimeServer, connect: Connect, client: str
) -> None:
    private, public = [
        connect(client).channel(private=private).on("broadcast", event="*").subscribe() for private in (True, False)
    ]
    for number, (sender, listener) in ((1, (private, public)), (2, (public, private))):
        sender.send("aside", {})
        wait_for_received(server, "broadcast", number)
        server.broadcast("room", "end", {}, private=listener is private)
        assert listener.wait_for_broadcasts(1) == [("end", {})]


@pytest.mark.parametrize(
    ("answer", "status"), [(NO_REPLY, "TIMED_OUT"), (JoinRefusal("Just not now"), "CHANNEL_ERROR")]
)
def test_a_join_that_fails_is_told_and_tried_again(
    server: RealtimeServer, connect: Connect, client: str, answer: Any, status: str
) -> None:
    server.on_join = lambda topic, payload, connection: answer
    channel = connect(client, timeout=1).channel()
    channel.subscribe(status=status)
    server.on_join = None
    channel.wait_for_status("SUBSCRIBED")
    assert set(channel.statuses) == {status, "SUBSCRIBED"}
    accepted = [join.accepted for join in server.joins("room")]
    assert (accepted[0], accepted[-1]) == (False, True)


def test_a_client_that_unsubscribes_is_told_and_gone(server: RealtimeServer, peer: Peer) -> None:
    channel = peer.channel().subscribe()
    channel.unsubscribe()
    assert channel.statuses == ["SUBSCRIBED", "CLOSED"]
    server.wait_for(lambda s: s.members("room") == 0 and len(s.leaves("room")) == 1, CAP)


def test_heartbeats_are_answered(server: RealtimeServer, connect: Connect, client: str) -> None:
    peer = connect(client, heartbeat=0.05)
    peer.channel().subscribe()
    wait_for_received(server, "heartbeat", 1)
    if client != "py":  # which tells nobody of them
        peer.wait_for_heartbeat("ok")


def test_a_client_comes_back_after_its_connection_broke(server: RealtimeServer, peer: Peer) -> None:
    channel = peer.channel().on("broadcast", event="*").subscribe()
    server.connections[0].abort()
    channel.wait_for(lambda: channel.statuses == ["SUBSCRIBED", "CHANNEL_ERROR", "SUBSCRIBED"], "to come back")
    server.broadcast("room", "again", {})
    assert channel.wait_for_broadcasts(1) == [("again", {})]
    assert server.connections_total == 2


def test_a_crashed_channel_is_told_and_joined_again(server: RealtimeServer, peer: Peer) -> None:
    channel = peer.channel().subscribe()
    server.crash_channel("room")
    channel.wait_for(lambda: channel.statuses == ["SUBSCRIBED", "CHANNEL_ERROR", "SUBSCRIBED"], "to come back")
    assert server.connections_total == 1


def test_a_client_whose_token_expired_is_closed(server: RealtimeServer, peer: Peer) -> None:
    channel = peer.channel().on("system").subscribe()
    server.expire_tokens("room")
    channel.wait_for_status("CLOSED")
    assert server.members("room") == 0
    again = peer.channel().on("broadcast", event="*").subscribe()
    server.broadcast("room", "again", {})
    assert again.wait_for_broadcasts(1) == [("again", {})]

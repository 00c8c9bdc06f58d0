"""rtpool and Supabase's own clients in the same rooms: each hears and sees the others."""

from __future__ import annotations

from typing import Any

import pytest

import rtpool
from rtpool.testing import Permissions, RealtimeServer
from tests.conftest import MakePool
from tests.interop.conftest import CLIENTS, Connect
from tests.interop.driver import Peer, Row, metas, wait_for_received
from tests.support.commands import interrupt, start
from tests.support.recorder import Recorder
from tests.support.wait import CAP, wait_until

PAYLOAD = {"n": 1, "half": 0.5, "words": "zażółć 🎈", "list": [None, True, {"deep": []}]}


def heard(recorder: Recorder, count: int) -> list[tuple[str, Any]]:
    return [(message.event, message.payload) for message in recorder.wait(count)]


def sees(recorder: Recorder, expected: dict[str, list[dict[str, Any]]]) -> None:
    """The last state that presence callbacks of rtpool got is, or becomes, this one."""
    recorder.wait_for(lambda events: events and metas(events[-1].state) == expected)


@pytest.mark.parametrize("protocol", ["1.0.0", "2.0.0"])
def test_broadcasts_go_both_ways(server: RealtimeServer, make_pool: MakePool, peer: Peer, protocol: str) -> None:
    theirs = peer.channel().on("broadcast", event="*").subscribe()
    recorder = Recorder()
    ours = make_pool(protocol=protocol).channel("room").on_broadcast("*", recorder).subscribe()
    ours.send_broadcast("from rtpool", PAYLOAD).result()
    assert theirs.wait_for_broadcasts(1) == [("from rtpool", PAYLOAD)]
    theirs.send("to rtpool", PAYLOAD)
    assert heard(recorder, 1) == [("to rtpool", PAYLOAD)]


@pytest.mark.parametrize("protocol", ["1.0.0", "2.0.0"])
def test_both_are_acknowledged_and_hear_themselves_where_they_ask_for_it(
    server: RealtimeServer, make_pool: MakePool, peer: Peer, protocol: str
) -> None:
    theirs = peer.channel(ack=True, receive_own=True).on("broadcast", event="*").subscribe()
    recorder = Recorder()
    ours = make_pool(protocol=protocol).channel("room", ack=True, receive_own=True)
    ours.on_broadcast("*", recorder).subscribe()
    assert ours.send_broadcast("first", PAYLOAD).result(10) == {}
    assert theirs.send("second", PAYLOAD) == "ok"
    expected = [("first", PAYLOAD), ("second", PAYLOAD)]
    assert heard(recorder, 2) == expected
    assert theirs.wait_for_broadcasts(2) == expected


def test_bytes_go_both_ways(server: RealtimeServer, pool: rtpool.RealtimePool, connect: Connect) -> None:
    data = bytes(range(256))
    theirs = connect("js").channel(ack=True).on("broadcast", event="*").subscribe()
    recorder = Recorder()
    ours = pool.channel("room", ack=True).on_broadcast("*", recorder).subscribe()
    assert ours.send_broadcast("photo", data).result(10) == {}
    assert theirs.wait_for_broadcasts(1) == [("photo", data)]
    assert theirs.send("photo", data[::-1]) == "ok"
    assert heard(recorder, 1) == [("photo", data[::-1])]


def test_everybody_hears_everybody_else_once_and_in_order(
    server: RealtimeServer, make_pool: MakePool, connect: Connect
) -> None:
    theirs = {name: connect(name).channel().on("broadcast", event="*").subscribe() for name in CLIENTS}
    recorders, ours = {}, {}
    for protocol in ("1.0.0", "2.0.0"):
        name, pool = f"rtpool {protocol}", make_pool(protocol=protocol)
        recorders[name] = Recorder()
        ours[name] = pool.channel("room").on_broadcast("*", recorders[name]).subscribe()
    said = []
    for number in range(3):
        for name in theirs:
            theirs[name].send(name, {"n": number})
            said.append((name, {"n": number}))
            wait_for_received(server, "broadcast", len(said))
        for name in ours:
            ours[name].send_broadcast(name, {"n": number}).result()
            said.append((name, {"n": number}))
            wait_for_received(server, "broadcast", len(said))
    for name, channel in theirs.items():
        assert channel.wait_for_broadcasts(12) == [message for message in said if message[0] != name]
    for name, recorder in recorders.items():
        assert heard(recorder, 12) == [message for message in said if message[0] != name]


@pytest.mark.parametrize("protocol", ["1.0.0", "2.0.0"])
def test_both_see_who_comes_changes_and_goes(
    server: RealtimeServer, make_pool: MakePool, peer: Peer, protocol: str
) -> None:
    theirs = peer.channel(presence_key="theirs")
    for event in ("sync", "join", "leave"):
        theirs.on("presence", event=event)
    theirs.subscribe()
    synced, joined, left = Recorder(), Recorder(), Recorder()
    ours = make_pool(protocol=protocol).channel("room", presence_key="ours")
    ours.on_presence_sync(synced).on_presence_join(joined).on_presence_leave(left).subscribe()

    theirs.track({"status": "here"})
    sees(synced, {"theirs": [{"status": "here"}]})
    ours.track({"status": "there"}).result(10)
    both = {"theirs": [{"status": "here"}], "ours": [{"status": "there"}]}
    sees(synced, both)
    theirs.wait_for_presence(both)
    assert metas(ours.presence_state()) == theirs.presence == both

    theirs.track({"status": "away"})
    sees(synced, {**both, "theirs": [{"status": "away"}]})
    ours.track({"status": "gone soon"}).result(10)
    theirs.wait_for_presence({"theirs": [{"status": "away"}], "ours": [{"status": "gone soon"}]})

    theirs.untrack()
    sees(synced, {"ours": [{"status": "gone soon"}]})
    ours.untrack().result(10)
    theirs.wait_for_presence({})
    assert [change.key for change in joined.wait(4)] == ["theirs", "ours", "theirs", "ours"]
    assert [change["key"] for change in theirs.heard("presence join")] == ["theirs", "ours", "theirs", "ours"]
    assert [change.key for change in left.wait(4)] == ["theirs", "ours", "theirs", "ours"]
    assert [change["key"] for change in theirs.heard("presence leave")] == ["theirs", "ours", "theirs", "ours"]


def test_who_comes_late_is_told_who_is_there(
    server: RealtimeServer, pool: rtpool.RealtimePool, connect: Connect, client: str
) -> None:
    early = connect(client).channel(presence_key="early").subscribe()
    early.track({"since": 1})
    server.wait_for(lambda s: s.presence("room"), CAP)
    recorder = Recorder()
    ours = pool.channel("room", presence_key="ours").on_presence_sync(recorder).subscribe()
    sees(recorder, {"early": [{"since": 1}]})
    ours.track({"since": 2}).result(10)
    late = connect(client).channel().on("presence", event="sync").subscribe()
    late.wait_for_presence({"early": [{"since": 1}], "ours": [{"since": 2}]})


def test_several_under_one_presence_key_are_seen_by_all(
    server: RealtimeServer, pool: rtpool.RealtimePool, peer: Peer
) -> None:
    theirs = peer.channel(presence_key="ann").on("presence", event="sync").subscribe()
    recorder = Recorder()
    ours = pool.channel("room", presence_key="ann").on_presence_sync(recorder).subscribe()
    theirs.track({"device": "phone"})
    sees(recorder, {"ann": [{"device": "phone"}]})
    ours.track({"device": "desk"}).result(10)
    theirs.wait_for_presence({"ann": [{"device": "phone"}, {"device": "desk"}]})
    sees(recorder, {"ann": [{"device": "phone"}, {"device": "desk"}]})
    ours.untrack().result(10)
    theirs.wait_for_presence({"ann": [{"device": "phone"}]})


@pytest.mark.parametrize("how", ["unsubscribes", "breaks down"])
def test_one_that_leaves_is_seen_to_leave_by_the_other(
    server: RealtimeServer, make_pool: MakePool, connect: Connect, client: str, how: str
) -> None:
    recorder = Recorder()
    pool = make_pool(auto_reconnect=False)
    ours = pool.channel("room", presence_key="ours").on_presence_sync(recorder).subscribe()
    theirs = connect(client).channel(presence_key="theirs").on("presence", event="sync").subscribe()
    watcher = connect(client).channel(presence_key="watcher").on("presence", event="sync").subscribe()
    our_connection, their_connection, _ = server.connections
    theirs.track({})
    ours.track({}).result(10)
    for state in (watcher, theirs):
        state.wait_for_presence({"ours": [{}], "theirs": [{}]})
    if how == "unsubscribes":
        theirs.unsubscribe()
        sees(recorder, {"ours": [{}]})
        ours.unsubscribe()
    else:
        their_connection.abort()
        sees(recorder, {"ours": [{}]})
        our_connection.abort()
    watcher.wait_for_presence({})


def test_changed_rows_reach_all_alike(server: RealtimeServer, make_pool: MakePool, connect: Connect) -> None:
    theirs = {}
    for name in CLIENTS:
        theirs[name] = connect(name).channel().on("system")
        theirs[name].on("postgres_changes", event="*", schema="public", table="cars", filter="id=gt.5").subscribe()
    recorders = [Recorder(), Recorder()]
    for recorder, protocol in zip(recorders, ("1.0.0", "2.0.0"), strict=True):
        pool = make_pool(protocol=protocol)
        pool.channel("room").on_postgres_changes("*", recorder, table="cars", filter="id=gt.5").subscribe()
    for channel in theirs.values():
        channel.wait_for(lambda channel=channel: channel.heard("system"))  # type: ignore[misc]

    row = {"id": 7, "name": "mü", "price": 1.5, "sold": False, "extras": {"color": "red"}, "note": None}
    assert server.change("public", "cars", "INSERT", {**row, "id": 5}) == 0
    assert server.change("public", "cars", "INSERT", row) == 5
    assert server.change("public", "cars", "UPDATE", {**row, "sold": True}, {"id": 7}) == 5
    assert server.change("public", "cars", "DELETE", old_record={"id": 7}) == 5
    expected = [
        Row("INSERT", "public", "cars", row, {}),
        Row("UPDATE", "public", "cars", {**row, "sold": True}, {"id": 7}),
        Row("DELETE", "public", "cars", {}, {"id": 7}),
    ]
    for channel in theirs.values():
        assert channel.wait_for_rows(3) == expected
    for recorder in recorders:
        assert [Row.of(change) for change in recorder.wait(3)] == expected


def test_a_private_channel_without_permission_is_refused_for_all_in_the_same_words(
    server: RealtimeServer, pool: rtpool.RealtimePool, connect: Connect
) -> None:
    server.policy = lambda asked: asked.claims["role"] == "authenticated"
    refused = "Unauthorized: You do not have permissions to read from this Channel topic: room"
    for name in CLIENTS:
        theirs = connect(name).channel(private=True).subscribe(status="CHANNEL_ERROR")
        assert refused in str(theirs.wait_for_status("CHANNEL_ERROR"))
    with pytest.raises(rtpool.JoinRefused, match=refused):
        pool.channel("room", private=True).subscribe()
    assert server.members("room") == 0


def test_who_may_only_read_is_answered_alike_and_heard_by_nobody(
    server: RealtimeServer, pool: rtpool.RealtimePool, connect: Connect, client: str
) -> None:
    server.policy = lambda asked: Permissions(read_broadcast=True)
    theirs = connect(client, timeout=1).channel(private=True, ack=True).on("broadcast", event="*").subscribe()
    recorder = Recorder()
    ours = pool.channel("room", private=True, ack=True).on_broadcast("*", recorder).subscribe()
    push = ours.send_broadcast("hello", {}, timeout=1)
    assert theirs.send("hello", {}) == "timed out"
    with pytest.raises(rtpool.PushTimeout):
        push.result(10)
    server.broadcast("room", "end", {}, private=True)
    assert theirs.wait_for_broadcasts(1) == heard(recorder, 1) == [("end", {})]


def test_those_on_the_private_channel_hear_each_other_and_those_outside_nothing(
    server: RealtimeServer, make_pool: MakePool, connect: Connect, client: str
) -> None:
    token = server.token(sub="ann")
    peer, outside = connect(client), connect(client).channel().on("broadcast", event="*").subscribe()
    peer.set_auth(token)
    theirs = peer.channel(private=True).on("broadcast", event="*").subscribe()
    inner, outer = Recorder(), Recorder()
    pool = make_pool(access_token=token)
    ours = pool.channel("room", private=True).on_broadcast("*", inner).subscribe()
    pool.channel("room").on_broadcast("*", outer).subscribe()

    ours.send_broadcast("secret", {"n": 1}).result()
    assert theirs.wait_for_broadcasts(1) == [("secret", {"n": 1})]
    theirs.send("secret", {"n": 2})
    assert heard(inner, 1) == [("secret", {"n": 2})]
    server.broadcast("room", "public", {})
    assert outside.wait_for_broadcasts(1) == [("public", {})]
    assert heard(outer, 1) == [("public", {})]
    assert {join.payload["access_token"] for join in server.joins("room") if join.payload["config"]["private"]} == {
        token
    }


def test_all_go_on_hearing_each_other_under_a_new_access_token(
    server: RealtimeServer, make_pool: MakePool, peer: Peer
) -> None:
    theirs = peer.channel().on("broadcast", event="*").subscribe()
    recorder = Recorder()
    pool = make_pool(access_token=server.token(sub="ann"))
    ours = pool.channel("room").on_broadcast("*", recorder).subscribe()
    new = server.token(sub="ann", fresh=True)
    peer.set_auth(new)
    pool.set_auth(new)
    assert [payload["access_token"] for payload in wait_for_received(server, "access_token", 2)] == [new, new]
    ours.send_broadcast("from rtpool", {}).result()
    assert theirs.wait_for_broadcasts(1) == [("from rtpool", {})]
    theirs.send("to rtpool", {})
    assert heard(recorder, 1) == [("to rtpool", {})]


def test_after_a_break_all_come_back_under_the_new_token_and_hear_each_other(
    server: RealtimeServer, make_pool: MakePool, peer: Peer
) -> None:
    theirs = peer.channel().on("broadcast", event="*").subscribe()
    recorder, gaps = Recorder(), Recorder()
    pool = make_pool(access_token=server.token(sub="ann"))
    ours = pool.channel("room").on_broadcast("*", recorder).on_gap(gaps).subscribe()
    new = server.token(sub="ann", fresh=True)
    peer.set_auth(new)
    pool.set_auth(new)
    wait_for_received(server, "access_token", 2)
    for connection in server.connections:
        connection.abort()
    theirs.wait_for(lambda: theirs.statuses == ["SUBSCRIBED", "CHANNEL_ERROR", "SUBSCRIBED"], "to come back")
    gaps.wait(1)
    wait_until(lambda: ours.is_subscribed)
    assert [join.payload["access_token"] for join in server.joins("room")[2:]] == [new, new]
    ours.send_broadcast("from rtpool", {}).result()
    assert theirs.wait_for_broadcasts(1) == [("from rtpool", {})]
    theirs.send("to rtpool", {})
    assert heard(recorder, 1) == [("to rtpool", {})]


def test_many_channels_of_one_pool_are_one_neighbour(
    server: RealtimeServer, pool: rtpool.RealtimePool, peer: Peer
) -> None:
    theirs = peer.channel().on("broadcast", event="*").on("presence", event="sync").subscribe()
    recorders = [Recorder() for _ in range(9)]
    ours = [pool.channel("room", presence_key="ours").on_broadcast("*", r).subscribe() for r in recorders]
    assert len(server.joins("room")) == 2
    theirs.send("to rtpool", {"n": 1})
    for recorder in recorders:
        assert heard(recorder, 1) == [("to rtpool", {"n": 1})]
    ours[0].send_broadcast("from rtpool", {"n": 2}).result()
    ours[1].track({"status": "here"}).result(10)
    theirs.wait_for_presence({"ours": [{"status": "here"}]})
    for channel in ours[:8]:
        channel.unsubscribe()
    ours[8].send_broadcast("from the last", {"n": 3}).result()
    assert theirs.wait_for_broadcasts(2) == [("from rtpool", {"n": 2}), ("from the last", {"n": 3})]
    theirs.wait_for_presence({})
    assert heard(recorders[8], 2) == [("to rtpool", {"n": 1}), ("from rtpool", {"n": 2})]


def test_a_restarted_feed_goes_on_for_all(server: RealtimeServer, pool: rtpool.RealtimePool, peer: Peer) -> None:
    theirs = peer.channel().on("system").on("postgres_changes", event="*", schema="public", table="cars").subscribe()
    recorder, gaps = Recorder(), Recorder()
    pool.channel("room").on_gap(gaps).on_postgres_changes("*", recorder, table="cars").subscribe()
    theirs.wait_for(lambda: len(theirs.heard("system")) == 1)
    server.restart_changes_feed()
    theirs.wait_for(lambda: len(theirs.heard("system")) == 2)
    assert [gap.cause for gap in gaps.wait(1)] == ["feed restart"]
    server.change("public", "cars", "INSERT", {"id": 1})
    expected = [Row("INSERT", "public", "cars", {"id": 1}, {})]
    assert theirs.wait_for_rows(1) == [Row.of(change) for change in recorder.wait(1)] == expected


def test_the_server_of_the_command_serves_every_client(make_pool: MakePool, connect: Connect) -> None:
    process = start("serve")
    try:
        assert process.stdout is not None
        url, key = [process.stdout.readline().strip().partition("=")[2] for _ in range(2)]
        theirs = [connect(name, url=url, key=key).channel().on("broadcast", event="*").subscribe() for name in CLIENTS]
        recorder = Recorder()
        ours = make_pool(url, api_key=key).channel("room").on_broadcast("*", recorder).subscribe()
        ours.send_broadcast("from rtpool", PAYLOAD).result()
        for channel in theirs:
            assert channel.wait_for_broadcasts(1) == [("from rtpool", PAYLOAD)]
        theirs[0].send("to all", PAYLOAD)
        for channel in theirs[1:]:
            assert channel.wait_for_broadcasts(2)[1] == ("to all", PAYLOAD)
        assert heard(recorder, 1) == [("to all", PAYLOAD)]
    finally:
        interrupt(process)
    assert process.returncode == 0


def test_an_expired_token_is_told_to_all_and_the_next_one_brings_them_back(
    server: RealtimeServer, make_pool: MakePool, peer: Peer
) -> None:
    theirs = peer.channel(private=True).subscribe()
    recorder, statuses = Recorder(), Recorder()
    pool = make_pool(access_token=server.token(sub="ann"))
    ours = pool.channel("room", private=True).on_broadcast("*", recorder).on_status(statuses).subscribe()
    assert server.expire_tokens("room") == 2
    theirs.wait_for_status("CLOSED")
    refused = statuses.wait_for(lambda changes: changes and changes[-1].status == "refused")[-1]
    assert "Token has expired" in str(refused.error)
    new = server.token(sub="ann", fresh=True)
    peer.set_auth(new)
    pool.set_auth(new)
    wait_until(lambda: ours.is_subscribed)
    again = peer.channel(private=True).on("broadcast", event="*").subscribe()  # theirs stays closed
    ours.send_broadcast("from rtpool", {}).result()
    assert again.wait_for_broadcasts(1) == [("from rtpool", {})]
    again.send("to rtpool", {})
    assert heard(recorder, 1) == [("to rtpool", {})]


def test_a_token_that_may_no_longer_read_ends_all_alike(
    server: RealtimeServer, make_pool: MakePool, peer: Peer
) -> None:
    server.policy = lambda asked: "banned" not in asked.claims
    good, bad = server.token(sub="ann"), server.token(sub="ann", banned=True)
    peer.set_auth(good)
    theirs = peer.channel(private=True).subscribe()
    statuses = Recorder()
    pool = make_pool(access_token=good)
    pool.channel("room", private=True).on_status(statuses).subscribe()
    peer.set_auth(bad)
    pool.set_auth(bad)
    theirs.wait_for_status("CLOSED")
    statuses.wait_for(lambda changes: changes and changes[-1].status == "refused")
    server.wait_for(lambda s: s.members("room") == 0, CAP)

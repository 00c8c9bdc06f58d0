"""What Supabase's own clients send over REST, and what is stored and replayed, reaches rtpool and them alike."""

from __future__ import annotations

import time

import pytest

import rtpool
from rtpool.testing import RealtimeServer
from tests.conftest import MakePool
from tests.interop.conftest import CLIENTS, Connect
from tests.interop.driver import Peer
from tests.support.recorder import Recorder

PAYLOAD = {"n": 1, "words": "zażółć 🎈"}


@pytest.mark.parametrize("private", [False, True])
def test_what_a_client_sends_over_rest_is_heard_by_all(
    server: RealtimeServer, make_pool: MakePool, connect: Connect, client: str, private: bool
) -> None:
    server.policy = lambda asked: asked.claims["role"] == "authenticated"
    token = server.token()
    recorder = Recorder()
    make_pool(access_token=token).channel("room", private=private).on_broadcast("*", recorder).subscribe()
    listener, sender = connect(client), connect(client)
    for peer in (listener, sender):
        peer.set_auth(token)
    theirs = listener.channel(private=private).on("broadcast", event="*").subscribe()
    assert sender.channel(private=private).http_send("moved/up", PAYLOAD) is True
    assert recorder.wait(1) == [rtpool.Broadcast("room", "moved/up", PAYLOAD)]
    assert theirs.wait_for_broadcasts(1) == [("moved/up", PAYLOAD)]
    assert len(server.joins("room")) == 2  # the sender never joined


def test_what_a_client_may_not_send_over_rest_fails_and_is_not_heard(
    server: RealtimeServer, make_pool: MakePool, peer: Peer
) -> None:
    server.policy = lambda asked: asked.claims["role"] == "authenticated"
    recorder = Recorder()
    pool = make_pool(access_token=server.token())
    pool.channel("room", private=True).on_broadcast("*", recorder).subscribe()
    with pytest.raises(AssertionError, match="Unauthorized"):
        peer.channel(private=True).http_send("moved", PAYLOAD)
    server.broadcast("room", "end", {}, private=True)
    assert recorder.wait(1) == [rtpool.Broadcast("room", "end", {})]


def test_bytes_and_what_is_sent_before_subscribing_go_over_rest_too(
    server: RealtimeServer, pool: rtpool.RealtimePool, connect: Connect
) -> None:
    recorder = Recorder()
    pool.channel("room").on_broadcast("*", recorder).subscribe()
    channel = connect("js").channel()
    assert channel.http_send("photo", bytes(range(256))) is True
    assert channel.send("early", PAYLOAD) == "ok"
    assert recorder.wait(2) == [
        rtpool.Broadcast("room", "photo", bytes(range(256))),
        rtpool.Broadcast("room", "early", PAYLOAD),
    ]
    assert [request.path.rpartition("/")[2] for request in server.requests] == ["photo", "broadcast"]


def test_what_the_database_sent_before_is_replayed_to_all_alike(
    server: RealtimeServer, make_pool: MakePool, connect: Connect
) -> None:
    began = int(time.time() * 1000) - 1000
    stored = [server.database_send("room", "moved", {"n": number}) for number in range(3)]
    replay = {"since": began, "limit": 2}
    expected = [(message.id, {**message.payload}) for message in stored[1:]]
    for name in CLIENTS:
        theirs = connect(name).channel(private=True, replay=replay).on("broadcast", event="moved").subscribe()
        theirs.wait_for_broadcasts(2)
        assert [(m["meta"]["id"], m["payload"]) for m in theirs.heard("broadcast")] == expected
        assert all(message["meta"]["replayed"] for message in theirs.heard("broadcast"))
    for protocol in ("1.0.0", "2.0.0"):
        recorder = Recorder()
        pool = make_pool(protocol=protocol)
        pool.channel("room", private=True, replay=replay).on_broadcast("moved", recorder).subscribe()
        assert [(message.id, message.payload) for message in recorder.wait(2)] == expected
        assert all(message.replayed for message in recorder.events)


def test_what_the_database_sends_now_reaches_all_alike(
    server: RealtimeServer, make_pool: MakePool, connect: Connect
) -> None:
    theirs = [connect(name).channel(private=True).on("broadcast", event="*").subscribe() for name in CLIENTS]
    recorders = [Recorder(), Recorder()]
    for recorder, protocol in zip(recorders, ("1.0.0", "2.0.0"), strict=True):
        make_pool(protocol=protocol).channel("room", private=True).on_broadcast("*", recorder).subscribe()
    stored = server.database_send("room", "moved", {"n": 1})
    for channel in theirs:
        channel.wait_for_broadcasts(1)
        (message,) = channel.heard("broadcast")
        assert (message["payload"], message["meta"]["id"]) == (stored.payload, stored.id)
    for recorder in recorders:
        assert recorder.wait(1) == [rtpool.Broadcast("room", "moved", stored.payload, stored.id)]

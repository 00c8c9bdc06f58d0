"""What the database sends, kept and replayed by the embedded server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rtpool.testing import RealtimeServer
from tests.support.hand import TOPIC, Hand

NOW = 1_800_000_000.0


def replay(**wanted: Any) -> dict[str, Any]:
    return {"private": True, "broadcast": {"replay": wanted}}


def replayed(hand: Hand) -> list[Any]:
    return hand.until_heartbeat()


def test_a_database_message_arrives_as_kind_4_with_its_id_and_is_kept(server: RealtimeServer) -> None:
    with Hand(server) as second, Hand(server, "1.0.0") as first, Hand(server) as public:
        second.join(private=True)
        first.join(private=True)
        public.join()
        stored = server.database_send("room", "moved", {"n": 1})
        metadata = json.dumps({"id": stored.id}, separators=(",", ":"))
        body = json.dumps({"n": 1, "id": stored.id}, separators=(",", ":"))
        head = bytes((4, len(TOPIC), 5, len(metadata), 1))
        assert second.receive() == head + f"{TOPIC}moved{metadata}{body}".encode()
        data = {"type": "broadcast", "event": "moved", "payload": {"n": 1, "id": stored.id}, "meta": {"id": stored.id}}
        assert first.receive()["payload"] == data
        server.database_send("room", "bytes", b"\xde\xad", id="b")
        assert second.receive() == bytes((4, len(TOPIC), 5, 10, 0)) + f'{TOPIC}bytes{{"id":"b"}}'.encode() + b"\xde\xad"
        server.database_send("room", "own", {"id": "mine"}, private=False)
        assert public.receive().endswith(b'{"id":"mine"}')
        server.database_send("room", "list", [1, 2])
        assert second.until_heartbeat() == [], "what is no object comes to nothing"
        assert [m.event for m in server.stored] == ["moved", "bytes", "own"]


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        ({"since": 0}, range(5, 30)),
        ({"since": 0, "limit": 2}, range(28, 30)),
        ({"since": 0, "limit": 0}, range(29, 30)),
        ({"since": 0, "limit": -3}, range(29, 30)),
        ({"since": 0, "limit": 1000}, range(5, 30)),
        ({"since": -1}, range(5, 30)),
        ({"since": int(NOW * 1000) + 27_000}, range(27, 30)),
        ({"since": int(NOW * 1000) + 60_000}, []),
    ],
)
def test_the_newest_are_replayed_oldest_first_after_the_reply(wanted: dict[str, Any], numbers: list[int]) -> None:
    with RealtimeServer(clock_at=NOW + 60) as server, Hand(server) as hand:
        for n in reversed(range(30)):
            server.database_send("room", "e", {"n": n}, id=f"id-{n}", inserted_at=NOW + n)
        server.database_send("other", "e", {"n": 99})
        server.database_send("room", "e", {"n": 98}, private=False)
        assert hand.join(**replay(**wanted))["status"] == "ok"
        assert replayed(hand) == [
            [
                "1",
                None,
                TOPIC,
                "broadcast",
                {
                    "type": "broadcast",
                    "event": "e",
                    "payload": {"n": n, "id": f"id-{n}"},
                    "meta": {"id": f"id-{n}", "replayed": True},
                },
            ]
            for n in numbers
        ]


def test_bytes_are_replayed_as_kind_4_and_not_to_version_1(server: RealtimeServer) -> None:
    server.database_send("room", "e", b"\x01", id="b")
    with Hand(server) as second, Hand(server, "1.0.0") as first:
        second.join(**replay(since=0))
        first.join(**replay(since=0))
        metadata = '{"id":"b","replayed":true}'
        head = bytes((4, len(TOPIC), 1, len(metadata), 0))
        assert second.receive() == head + f"{TOPIC}e{metadata}".encode() + b"\x01"
        server.broadcast("room", "end", {}, private=True)
        assert first.receive()["payload"]["event"] == "end"


def test_the_live_copy_of_a_replayed_message_is_left_out(server: RealtimeServer) -> None:
    server.database_send("room", "e", {}, id="same")
    with Hand(server) as hand:
        hand.join(**replay(since=0))
        assert hand.receive()[4]["meta"] == {"id": "same", "replayed": True}
        server.broadcast("room", "e", {}, private=True, id="same")
        server.broadcast("room", "e", {}, private=True, id="other")
        assert b'"id":"other"' in hand.receive()


def test_messages_are_kept_for_three_days() -> None:
    with RealtimeServer(clock_at=NOW, idle_timeout=1e6) as server, Hand(server) as hand:
        server.database_send("room", "e", {}, id="old")
        server.advance(71 * 3600.0)
        hand.join("1", **replay(since=0))
        assert [frame[4]["meta"]["id"] for frame in replayed(hand)] == ["old"]
    with RealtimeServer(clock_at=NOW, idle_timeout=1e6) as server, Hand(server) as hand:
        server.database_send("room", "e", {}, inserted_at=NOW - 73 * 3600)
        hand.join("1", **replay(since=0))
        assert replayed(hand) == []


@pytest.mark.parametrize(
    "wanted", [{"limit": 2}, {"since": "5"}, {"since": 10**20}, {"since": 5, "limit": "2"}, {"since": True}]
)
def test_bad_replay_parameters_refuse_the_join(server: RealtimeServer, wanted: dict[str, Any]) -> None:
    with Hand(server) as hand:
        reply = hand.join(**replay(**wanted))
        assert reply["response"]["reason"] == "UnableToReplayMessages: Replay params are not valid"


@pytest.mark.parametrize("wanted", [None, True, [1]])
def test_what_is_no_object_asks_for_nothing(server: RealtimeServer, wanted: Any) -> None:
    server.database_send("room", "e", {})
    with Hand(server) as hand:
        assert hand.join(private=True, broadcast={"replay": wanted})["status"] == "ok"
        assert replayed(hand) == []
        words = "UnableToReplayMessages: Replay is not allowed for public channels"
        assert hand.join("2", broadcast={"replay": wanted})["response"]["reason"] == words


def test_who_asks_is_told_when_the_replication_is_there() -> None:
    with RealtimeServer(clock_at=NOW, replication_delay=2.0, idle_timeout=1e6) as server, Hand(server) as hand:
        hand.join(broadcast={"replication_ready": True})
        assert hand.until_heartbeat() == []
        server.advance(2.0)
        assert hand.receive()[4]["message"] == "Replication connection established"
        server.configure(replication_delay=100.0)
        hand.join("2", "realtime:late", broadcast={"replication_ready": True})
        server.advance(60.0)
        assert hand.receive()[4]["message"] == "Replication connection was not established in time"
        assert hand.receive()[3] == "phx_close"

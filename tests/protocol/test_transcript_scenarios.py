"""Recordings of a real server, played to rtpool: single scenarios, with what should come of them told by hand."""

from __future__ import annotations

from collections import Counter

import pytest

from rtpool.events import Broadcast, Message, PostgresChange, Presence, SystemMessage
from tests.support.recorded_events import FEED_RESTART
from tests.support.replay import of_topic, play, replay, told
from tests.support.transcripts import NAMES, load

pytestmark = pytest.mark.usefixtures("recordings")


@pytest.mark.parametrize("vsn", ["v1", "v2"])
def test_01_a_leave_is_done_with_its_reply_and_the_close_behind_it_is_dropped(vsn: str) -> None:
    outcomes = replay(f"01_heartbeat_join_leave.{vsn}")
    index = next(i for i, o in enumerate(outcomes) if ("left", "realtime:room1") in o.told)
    assert outcomes[index - 1].states["realtime:room1"] == "leaving"
    assert "realtime:room1" not in outcomes[index].states
    assert '"phx_close"' in outcomes[index + 1].line["raw"]
    assert (outcomes[index + 1].told, outcomes[index + 1].dropped) == ([], 1)
    waits = [latency for _, latency in told(outcomes, "heartbeat")]
    replies = [o.line["t"] for o in outcomes if o.told and o.told[0][0] == "heartbeat"]
    sends = [o.line["t"] for o in outcomes if o.act and o.act.kind == "heartbeat"]
    assert waits == [reply - sent for sent, reply in zip(sends, replies, strict=True)]


@pytest.mark.parametrize(
    ("name", "topic"),
    [
        ("02_join_variants.v1", "realtime:dup"),
        ("02_join_variants.v2", "realtime:dup"),
        ("09c_limit_events_per_second.v2", "realtime:ev"),
        ("13a_crashes_and_disconnects.v1", "realtime:x2"),
        ("13a_crashes_and_disconnects.v2", "realtime:x2"),
        ("16_v2.129.0_phoenix_1.8.11.v1", "realtime:d"),
        ("16_v2.129.0_phoenix_1.8.11.v2", "realtime:d"),
    ],
)
def test_the_close_of_a_channel_that_a_later_join_replaced_changes_nothing(name: str, topic: str) -> None:
    closes = [
        o for o in replay(name) if '"phx_close"' in o.line.get("raw", "") and f'"{topic}"' in o.line.get("raw", "")
    ]
    assert closes
    for outcome in closes:
        assert (outcome.told, outcome.dropped, outcome.states[topic]) == ([], 1, "joined")


def test_03_a_version_1_socket_hears_every_broadcast_that_is_json_and_none_that_is_bytes() -> None:
    heard = of_topic(replay("03_broadcast.v1"), "realtime:bc", "B")
    names = [event.event for event in heard]
    assert names[:7] == ["shout", "shout", "nullref", "broadcast", "shout", "p", "p"]
    assert [type(event) for event in heard if event.event == "broadcast"] == [Message]  # a payload without an event
    assert [event.payload for event in heard if event.event == "p"] == ["str", [1, 2], None]
    assert {"bjson", "bmeta", "via_http", "ev1"} <= set(names)
    assert not {"bbin", "bbadjson"} & set(names)
    forged = [event for event in heard if isinstance(event, Broadcast) and event.id == "mine"]
    assert len(forged) == 1


def test_03_a_version_2_socket_hears_bytes_as_bytes() -> None:
    heard = of_topic(replay("03_broadcast.v2"), "realtime:bc", "A")
    binary = {event.event: event.payload for event in heard if isinstance(event.payload, bytes)}
    assert binary == {"bbin": b"\x00\x01\xfe\xff", "broadcast": b"\x01\x02"}
    assert [type(e) for e in heard if e.payload == b"\x01\x02"] == [Message]  # a kind 2 frame has no event inside


@pytest.mark.parametrize("vsn", ["v1", "v2"])
def test_04_presence_is_followed_over_updates_two_of_one_key_leaves_and_a_dropped_socket(vsn: str) -> None:
    heard = of_topic(replay(f"04_presence.{vsn}"), "realtime:pres", "A")
    events = [event for event in heard if isinstance(event, Presence)]
    syncs = [{key: [m.get("name") for m in v] for key, v in e.state.items()} for e in events if e.type == "sync"]
    assert syncs[:9] == [
        {},
        {"alice": ["Alice"]},
        {"alice": ["Alice"], "bob": ["Bob"]},
        {"alice": ["Alice"], "bob": ["Bob"]},  # an update; to track the same again says nothing
        {"alice": ["Alice", "Alice2"], "bob": ["Bob"]},
        {"alice": ["Alice2"], "bob": ["Bob"]},
        {"alice": ["Alice2"]},
        {},
        {"carol": ["Carol"]},
    ]
    off = of_topic(replay(f"04_presence.{vsn}"), "realtime:pres", "C")  # joined with presence off
    assert {event.event for event in off} == {"presence_diff"}, "heard raw alone, as it is asked for"
    assert syncs[-1] == {"carol": ["Carol2"]}


def test_05c_changes_come_in_the_order_of_the_statements_each_once() -> None:
    outcomes = replay("05c_postgres_changes_rapid.v2")
    changes = [e for e in of_topic(outcomes, "realtime:norls") if isinstance(e, PostgresChange)]
    plain = [(c.type, (c.record or c.old_record)["plate"], (c.record or c.old_record)["status"]) for c in changes]
    bulk = [f"B{i}" for i in range(1, 201)]
    assert plain == [
        ("INSERT", "RAPID", "1"),
        ("UPDATE", "RAPID", "2"),
        ("DELETE", "RAPID", "2"),
        ("INSERT", "RAPID2", "1"),
        ("UPDATE", "RAPID2", "2"),
        ("UPDATE", "RAPID2", "3"),
        ("DELETE", "RAPID2", "3"),
        *(("INSERT", plate, "bulk") for plate in bulk),
        *(("DELETE", plate, "bulk") for plate in bulk),
    ]
    guarded = [e.type for e in of_topic(outcomes, "realtime:cars") if isinstance(e, PostgresChange)]
    # With row-level security a row that is gone when it is looked at shows its end alone.
    assert guarded[:1] == ["DELETE"]
    assert Counter(guarded)["INSERT"] == 201


@pytest.mark.parametrize("vsn", ["v1", "v2"])
def test_05b_values_and_errors_of_rows_arrive_as_they_are(vsn: str) -> None:
    outcomes = replay(f"05b_postgres_changes_rls_types.{vsn}")
    typed = [e for e in of_topic(outcomes, "realtime:typed", "A") if isinstance(e, PostgresChange)]
    first, second, third = typed
    assert first.record["big"] == 9_007_199_254_740_993  # beyond what a double holds
    assert repr(first.record["n"]) == "Decimal('123.456')"
    assert (first.record["by"], first.record["a"], first.record["j"]) == ("deadbeef", [1, 2, None], {"k": [1, None]})
    assert (second.record["f"], second.record["n"]) == (None, None)  # NaN comes as null
    assert third.errors == ("Error 413: Payload Too Large",)
    assert "t" not in third.record
    for topic, error in (("nogrant", "Error 401: Unauthorized"), ("nopk", "Error 400: Bad Request, no primary key")):
        rows = [e for e in of_topic(outcomes, f"realtime:{topic}", "A") if isinstance(e, PostgresChange)]
        assert {row.errors for row in rows} == {(error,)}
        assert {(row.commit_timestamp, row.columns) for row in rows} == {(None, ())}
    own = [e.type for e in of_topic(outcomes, "realtime:secret", "B") if isinstance(e, PostgresChange)]
    assert own == ["INSERT", "UPDATE", "DELETE", "DELETE"]  # deletes are not filtered


def test_a_second_word_that_changes_flow_is_a_gap_and_only_where_a_feed_was_restarted() -> None:
    gaps = {name: sum(outcome.heard.count(FEED_RESTART) for outcome in replay(name)) for name in NAMES}
    assert {name: count for name, count in gaps.items() if count} == {
        "05b_postgres_changes_rls_types.v1": 12,  # the publication changed under twelve subscriptions
        "05c_postgres_changes_rapid.v2": 2,
    }


@pytest.mark.parametrize(
    ("name", "interval", "heartbeats"),
    [
        ("06b_socket_without_channels.v2", 25.0, 41),
        ("official_js_realtime-js-2.109.0.v1", 4.99, 8),
        ("official_js_realtime-js-2.109.0.v2", 4.99, 8),
    ],
)
def test_heartbeats_fall_due_when_a_patient_client_sent_them(name: str, interval: float, heartbeats: int) -> None:
    outcomes = play(load(name), plain=False, heartbeat_interval=interval)
    assert len(told(outcomes, "heartbeat")) == heartbeats
    for outcome in outcomes:
        assert (outcome.line, outcome.told) == (outcome.line, outcome.expected)
    # JavaScript's timers fire a hair early. While a reply was late, behind a failing join, that client sent no other.
    longest = max(latency for _, latency in told(outcomes, "heartbeat"))
    assert longest > 3.0 if interval < 5.0 else longest < 1.0


@pytest.mark.parametrize("vsn", ["v1", "v2"])
def test_11_replayed_broadcasts_say_so_and_keep_the_ids_of_the_live_ones(vsn: str) -> None:
    outcomes = replay(f"11_replay_and_db_broadcast.{vsn}")
    batches: list[list[Broadcast]] = []
    for outcome in outcomes:
        if outcome.line["c"] == "B":
            if outcome.line["dir"] == "open":
                batches.append([])
            batches[-1] += [event for event in outcome.heard if isinstance(event, Broadcast)]
    numbers = [[event.payload["i"] for event in batch] for batch in batches]
    # No limit, 2, 0 (the server makes it 1), 1000 (it makes it 25), since the future, since 0.
    assert numbers[:6] == [[0, 1, 2, 3, 4], [3, 4], [4], [0, 1, 2, 3, 4], [], [0, 1, 2, 3, 4]]
    replayed = [event for batch in batches[:6] for event in batch]
    assert all(event.replayed for event in replayed)
    assert len({event.id for event in replayed}) == 5
    *live, by_a_client = [e for e in of_topic(outcomes, "realtime:room-rw-db", "A") if isinstance(e, Broadcast)]
    assert all(event.id for event in live)
    assert not any(event.replayed for event in live)
    assert [event.event for event in live][-3:] == ["INSERT", "UPDATE", "DELETE"]
    assert (by_a_client.event, by_a_client.id) == ("ws_sent", None)  # only the database gives ids
    again = [e for e in of_topic(outcomes, "realtime:room-rw-db", "D") if isinstance(e, Broadcast) and e.replayed]
    assert [(e.event, e.id, e.payload) for e in again] == [(e.event, e.id, e.payload) for e in live]


@pytest.mark.parametrize("vsn", ["v1", "v2"])
def test_13a_a_crash_costs_one_channel_and_a_dead_socket_all_of_its_own(vsn: str) -> None:
    outcomes = [o for o in replay(f"13a_crashes_and_disconnects.{vsn}") if o.line["c"] == "A"]
    crash = next(o for o in outcomes if told([o], "lost"))
    assert crash.told == [("lost", "realtime:x1", "phx_error", crash.told[0][3])]
    assert crash.states == {"realtime:x1": "errored", "realtime:x2": "joined"}
    assert outcomes[-2].states == {"realtime:x1": "joined", "realtime:x2": "joined"}  # joined anew
    assert outcomes[-1].line["code"] == 1006
    assert outcomes[-1].states == {"realtime:x1": "errored", "realtime:x2": "errored"}


@pytest.mark.parametrize("vsn", ["v1", "v2"])
def test_14_what_waits_behind_a_failing_join_is_settled_when_its_turn_comes(vsn: str) -> None:
    outcomes = [o for o in replay(f"14_head_of_line.{vsn}") if o.line["c"] == "A"]
    index = next(i for i, o in enumerate(outcomes) if told([o], "refused"))
    behind = [event for o in outcomes[index : index + 5] for event in o.told]
    assert [kind for kind, *_ in behind] == ["refused", "heartbeat", "joined", "received", "settled"]
    assert {"refused", "received"} == {event[0] for o in outcomes[index + 5 :] for event in o.told}
    assert 5.0 < behind[1][1] < 5.1, "the heartbeat waited for the join before it"


def test_15_plain_phoenix_events_and_binary_replies_reach_their_users_untouched() -> None:
    outcomes = replay("15_plain_phoenix_1.8.9.v2")
    events = of_topic(outcomes, "room:1")
    assert [e.payload for e in events if isinstance(e, Message) and e.event == "tick"] == [{"i": 1}, {"i": 2}]
    assert [e.payload for e in events if isinstance(e, Message) and e.event == "broadcast"] == [{"x": 1}, b"\x01\x02"]
    responses = [event[4] for event in told(outcomes, "settled") if event[2] == "reply"]
    assert b"\x00\xff" in responses
    assert {"reason": "no"} in responses
    assert {event[2] for event in told(outcomes, "lost")} == {"phx_error", "phx_close"}


#: The official clients' names for the sockets they used.
OFFICIAL = {"A": "W1", "B": "W2", "private": "W3"}


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("official_")])
def test_the_official_clients_heard_the_same(name: str) -> None:
    outcomes = replay(name)
    calls = [(line["name"], line["args"]) for line in load(name) if line["dir"] == "cb"]
    for who, socket in OFFICIAL.items():
        heard = [event for o in outcomes if o.line["c"] == socket for event in o.heard]
        broadcasts = [
            (e.event, e.payload if not isinstance(e.payload, bytes) else {}) for e in heard if isinstance(e, Broadcast)
        ]
        theirs = [(args[0]["event"], args[0]["payload"]) for call, args in calls if call == f"{who} broadcast"]
        if name.endswith("js-2.109.0.v2"):  # the recorder lost the bytes of nine
            theirs = [call for call in theirs if call[0] == "rp"]
        assert broadcasts == theirs
        for kind in ("join", "leave"):
            keys = [e.key for e in heard if isinstance(e, Presence) and e.type == kind]
            assert keys == [
                args[0]["key"] if isinstance(args[0], dict) else args[0]
                for call, args in calls
                if call == f"{who} {kind}"
            ]
        syncs = [call for call, _ in calls if call in (f"{who} sync", f"{who} presence sync")]
        if who != "private":  # nobody listened to its presence
            assert len([e for e in heard if isinstance(e, Presence) and e.type == "sync"]) == len(syncs)
        changes = [e.type for e in heard if isinstance(e, PostgresChange)]
        rows = [args[0].get("data", args[0]) for call, args in calls if call == f"{who} pg"]
        assert changes == [row.get("eventType") or row["type"] for row in rows]
        statuses = [e.message for e in heard if isinstance(e, SystemMessage)]
        assert statuses == [args[0]["message"] for call, args in calls if call == f"{who} system"]

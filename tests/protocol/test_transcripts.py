"""
Recordings of a real server, fed to rtpool's session and router: nothing is left unparsed, and users hear what the
protocol promises. What each line should come to is read off the recording by `tests/support/recorded_*.py`.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from rtpool.errors import ProtocolError
from rtpool.events import Broadcast, Message, PostgresChange, Presence, SystemMessage
from rtpool.protocol import json_engine
from rtpool.protocol.frames import OP_CLOSE, FrameDecoder, WsMessage, close_code
from rtpool.protocol.refusals import (
    Action,
    classify_changes,
    classify_handshake,
    classify_join,
    classify_system,
    parse_reason,
)
from rtpool.protocol.serializer import serializer_for
from rtpool.protocol.session import Session
from tests.support.recorded_events import FEED_RESTART
from tests.support.recorded_wire import FOREIGN, server_frame
from tests.support.replay import Outcome, play, replay
from tests.support.transcripts import NAMES, frame_of, load

OTHERS_JSON = "a server of version 2.128 relays to version 1 sockets what somebody sent as JSON without its being any"
ODD_REQUEST = "it answers a malformed frame of the client in kind; rtpool sends none"

#: Frames of a server that are no Phoenix message, by recording and a part of them, and why they may stay unparsed.
UNPARSED = {
    ("03_broadcast.v1", '"payload":not json,'): OTHERS_JSON,
    ("03_broadcast.v1", '%{error: "unable to parse response"}'): OTHERS_JSON,
    ("03_broadcast.v1", "040b0800017265616c74696d653a6263626261646a736f6e"): OTHERS_JSON,  # kind 4 says that it is JSON
    ("03_broadcast.v2", '"payload":not json,'): OTHERS_JSON,
    ("03_broadcast.v2", '%{error: "unable to parse response"}'): OTHERS_JSON,
    ("03_broadcast.v2", "040b0800017265616c74696d653a6263626261646a736f6e"): OTHERS_JSON,
    ("12_protocol_edges.v1", '"ref":{"a":1}'): ODD_REQUEST,
    ("12_protocol_edges.v1", '"topic":5'): ODD_REQUEST,
    ("12_protocol_edges.v2", '[null,[2],"phoenix"'): ODD_REQUEST,
    ("12_protocol_edges.v2", "[null,null,null,"): ODD_REQUEST,
    ("12_protocol_edges.v2", '[null,"7",5,'): ODD_REQUEST,
}

#: Where the recorded clients did what rtpool never does, see `FOREIGN` for what and why.
STRANGERS = {
    "no message": {"07", "12", "15", "16"},
    "odd ref": {"03", "12", "official_py"},
    "odd payload": {"12"},
    "odd join_ref": {"03", "05", "10", "12", "15", "16"},
    "not joined": {"01", "04", "09d", "12", "13a", "13b", "15", "16"},
    "reserved": {"12"},
    "not connected": {"09d"},
}

#: Changes that reach nobody, by recording and topic, and why.
UNHEARD = {
    ("05_postgres_changes", "realtime:b12"): "the client's binding had a key `id` of its own, which hides the server's",
}

every_recording = pytest.mark.parametrize("name", NAMES)


def scenario(name: str) -> str:
    """A recording's name without its protocol version."""
    return name.removesuffix(".v1").removesuffix(".v2")


def payload_of(line: dict[str, Any]) -> str:
    return str(line.get("raw") or line.get("hex"))


def of_topic(outcomes: list[Outcome], topic: str, socket: str | None = None) -> list[Any]:
    """What the users of a topic heard, on one socket or on all."""
    return [
        event
        for outcome in outcomes
        if socket in (None, outcome.line["c"])
        for event in outcome.heard
        if getattr(event, "topic", None) == topic
    ]


def told(outcomes: list[Outcome], kind: str) -> list[tuple[Any, ...]]:
    return [event for outcome in outcomes for event in outcome.told if event[0] == kind]


# Every line of every recording


@every_recording
def test_no_line_of_a_socket_is_left_out(name: str) -> None:
    opened = {line["c"] for line in load(name) if line["dir"] == "open"}
    lines = [line for line in load(name) if line["dir"] in (">", "<") and line["c"] in opened]
    assert [o.line for o in replay(name) if o.line["dir"] in (">", "<")] == lines
    lost = [line for line in lines if frame_of(line) is None]
    assert len(lost) == (9 if name == "official_js_realtime-js-2.109.0.v2" else 0)


@every_recording
def test_the_session_says_what_the_protocol_promises_and_drops_the_rest(name: str) -> None:
    for outcome in replay(name):
        assert (outcome.line, outcome.told) == (outcome.line, outcome.expected)
        assert (outcome.line, outcome.dropped) == (outcome.line, outcome.expected_dropped)


@every_recording
def test_every_channel_is_where_the_protocol_puts_it_after_every_line(name: str) -> None:
    for outcome in replay(name):
        assert (outcome.line, outcome.states) == (outcome.line, outcome.expected_states)


@every_recording
def test_the_session_sends_what_the_recorded_client_sent_and_nothing_in_place_of_a_strangers_frame(name: str) -> None:
    for outcome in replay(name):
        act = outcome.act
        same = [act.frame] if act is not None and act.kind != "foreign" else []
        assert (outcome.line, outcome.sent) == (outcome.line, same)


@every_recording
def test_users_hear_what_the_frames_say_when_read_by_hand(name: str) -> None:
    for outcome in replay(name):
        assert (outcome.line, outcome.heard) == (outcome.line, outcome.expected_heard)


@every_recording
def test_a_change_is_for_the_bindings_whose_ids_it_carries(name: str) -> None:
    unheard = Counter()
    for outcome in replay(name):
        assert (outcome.line, outcome.changes) == (outcome.line, outcome.expected_changes)
        unheard.update(
            t[1] for t in outcome.told if t[:1] + t[2:3] == ("received", "postgres_changes") and not outcome.heard
        )
    assert set(unheard) == {topic for where, topic in UNHEARD if where == scenario(name)}


@every_recording
def test_who_is_present_is_what_a_list_of_everybody_says(name: str) -> None:
    for outcome in replay(name):
        assert (outcome.line, outcome.present) == (outcome.line, outcome.expected_present)


@every_recording
def test_every_push_is_settled_once(name: str) -> None:
    tokens = [
        index for index, outcome in enumerate(replay(name)) if outcome.act is not None and outcome.act.kind == "push"
    ]
    settled = [token for _, token, *_ in told(replay(name), "settled")]
    assert len(settled) == len(set(settled)) == len(tokens)


# What is not parsed, and what rtpool would not have sent


def test_nothing_is_unparsed_but_what_is_named() -> None:
    used = set()
    for name in NAMES:
        before: dict[str, dict[str, str]] = {}
        for outcome in replay(name):
            socket = outcome.line["c"]
            if outcome.unparsed is not None:
                named = [key for key in UNPARSED if key[0] == name and key[1] in payload_of(outcome.line)]
                assert named, f"{name}: {outcome.unparsed} in {outcome.line}"
                used.update(named)
                assert type(outcome.unparsed) is ProtocolError
                assert outcome.unparsed.close_code is None, "the frame alone is dropped"
                assert (outcome.told, outcome.dropped, outcome.sent) == ([], 0, [])
                assert outcome.states == before[socket]
            assert (outcome.line, outcome.unparsed is not None) == (outcome.line, outcome.expected_unparsed)
            before[socket] = outcome.states
    assert used == set(UNPARSED)


def test_what_the_recorded_clients_did_and_rtpool_never_does_is_named() -> None:
    found: dict[str, set[str]] = {}
    for name in NAMES:
        for outcome in replay(name):
            if outcome.act is not None and outcome.act.kind == "foreign":
                found.setdefault(outcome.act.reason, set()).add(
                    name.rpartition("_realtime")[0] or name.partition("_")[0]
                )
    assert found == STRANGERS
    assert set(STRANGERS) == set(FOREIGN)


@every_recording
def test_a_reply_or_an_end_that_comes_twice_is_dropped_the_second_time(name: str) -> None:
    lines = []
    for line in load(name):
        lines.append(line)
        text = line.get("raw", "")
        if line["dir"] == "<" and any(f'"{event}"' in text for event in ("phx_reply", "phx_close", "phx_error")):
            lines.append({**line, "again": True})
    outcomes = play(lines, plain=name.startswith("15_"))
    for outcome in outcomes:
        assert (outcome.line, outcome.told) == (outcome.line, outcome.expected)
        assert (outcome.line, outcome.dropped) == (outcome.line, outcome.expected_dropped)
        assert (outcome.line, outcome.states) == (outcome.line, outcome.expected_states)
        if "again" in outcome.line:
            assert outcome.told == []
    first = [outcome for outcome in outcomes if "again" not in outcome.line]
    assert [o.heard for o in first] == [o.heard for o in replay(name)]
    replies = [o for o in outcomes if "again" in o.line and '"phx_reply"' in o.line["raw"] and o.unparsed is None]
    assert all(outcome.dropped == 1 for outcome in replies)


@every_recording
def test_a_session_that_asked_for_nothing_drops_all_of_it(name: str) -> None:
    readable = [o for o in replay(name) if o.line["dir"] == "<" and frame_of(o.line) and not o.expected_unparsed]
    for vsn in {outcome.vsn for outcome in readable}:
        session = Session(
            serializer_for("1.0.0" if vsn.startswith("1") else "2.0.0"),
            heartbeat_interval=25.0,
            heartbeat_timeout=10.0,
            join_timeout=10.0,
            max_joins_in_flight=5,
        )
        session.connected(0.0)
        mine = [outcome for outcome in readable if outcome.vsn == vsn]
        for outcome in mine:
            data, is_binary = frame_of(outcome.line) or (b"", False)
            session.receive(data, is_binary, outcome.line["t"])
        assert session.dropped == len(mine)
        assert (session.events(), session.frames_to_send(), session.topics) == ([], [], {})


@every_recording
def test_frames_decode_alike_with_and_without_orjson(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    received = [o for o in replay(name) if o.line["dir"] == "<" and frame_of(o.line) and not o.expected_unparsed]

    def decoded() -> list[Any]:
        serializers = [serializer_for("1.0.0" if o.vsn.startswith("1") else "2.0.0") for o in received]
        frames = [frame_of(outcome.line) or (b"", False) for outcome in received]
        return [serializer.decode(*frame) for serializer, frame in zip(serializers, frames, strict=True)]

    with_orjson = decoded()
    monkeypatch.setattr(json_engine, "orjson", None)
    assert decoded() == with_orjson
    read = [server_frame(*(frame_of(o.line) or (b"", False)), o.vsn) for o in received]
    assert [tuple(message) for message in with_orjson] == [tuple(frame) for frame in read]


# Refusals

#: What a refused join calls for, by how its reason begins.
JOINS = {
    "TopicNameRequired: You must provide a topic name": Action.FATAL,
    "unmatched topic": Action.FATAL,
    "PrivateOnly: This project only allows private channels": Action.FATAL,
    "UnableToReplayMessages: Replay params are not valid": Action.FATAL,
    "UnableToReplayMessages: Replay is not allowed for public channels": Action.FATAL,
    "Unauthorized: You do not have permissions to read from this Channel topic: ": Action.NEW_TOKEN,
    "InvalidJWTToken: Token has expired ": Action.NEW_TOKEN,
    "InvalidJWTToken: Fields `role` and `exp` are required in JWT": Action.NEW_TOKEN,
    "MalformedJWT: The token provided is not a valid JWT": Action.NEW_TOKEN,
    "JwtSignatureError: Failed to validate JWT signature": Action.NEW_TOKEN,
    "ChannelRateLimitReached: Too many channels": Action.OTHER_SOCKET,
    "ConnectionRateLimitReached: Too many connected users": Action.BACK_OFF_LONG,
    "ClientJoinRateLimitReached: Too many joins per second": Action.BACK_OFF_LONG,
    "IncreaseConnectionPool: Please increase your connection pool size": Action.BACK_OFF,
    "UnknownErrorOnChannel: no function clause matching in Access.get/3": Action.BACK_OFF,
    "UnknownErrorOnChannel: expected params to be a :map, got: `[1]`": Action.BACK_OFF,
    "UnknownErrorOnChannel: expected a map, got:": Action.BACK_OFF,
    "join crashed": Action.BACK_OFF,
    "denied": Action.BACK_OFF,  # an application's own word
}

#: What a `system` error calls for that precedes the end of a channel.
SYSTEM_ERRORS = {
    "Token has expired ": Action.NEW_TOKEN,
    "Fields `role` and `exp` are required in JWT": Action.NEW_TOKEN,
    "The token provided is not a valid JWT": Action.NEW_TOKEN,
    ":signature_error": Action.NEW_TOKEN,
    "You do not have permissions to read from this Channel topic: ": Action.NEW_TOKEN,
    "Too many messages per second": Action.BACK_OFF_LONG,
    "Too many presence messages per second": Action.BACK_OFF_LONG,
    "Client presence rate limit exceeded": Action.BACK_OFF,
    "Track message size exceeded": Action.BACK_OFF,
}

#: What a `system` error of the table feed calls for; after those that are fatal the server does not go on trying.
CHANGES_ERRORS = {
    "Error parsing `filter` params: [": Action.FATAL,
    "Error parsing `select` params: expected a list of column name strings": Action.FATAL,
    "No subscription params provided. Please provide at least a `schema` or `table` to subscribe to: ": Action.FATAL,
    "Unable to subscribe to changes with given parameters. An exception happened so please check": Action.FATAL,
    "Unable to subscribe to changes with given parameters. Please check Realtime is enabled": Action.FATAL,
    '{:error, "Too many database timeouts"}': Action.BACK_OFF,
}

#: What a refused upgrade calls for, by status and the words of its body.
HANDSHAKES = {
    (401, "API key is missing"): Action.FATAL,
    (401, "Failed to generate JWT signer, check your JWT secret or JWKS configuration"): Action.NEW_TOKEN,
    (401, "Failed to validate JWT signature"): Action.NEW_TOKEN,
    (401, "Fields `role` and `exp` are required in JWT"): Action.NEW_TOKEN,
    (401, "The token provided is not a valid JWT"): Action.NEW_TOKEN,
    (401, "Token has expired"): Action.NEW_TOKEN,
    (403, "Realtime was disabled for this tenant"): Action.FATAL,
    (403, ""): Action.BACK_OFF,  # a bad vsn, but servers before 2.115 said all of their refusals so
    (404, "Tenant not found"): Action.FATAL,
    (404, "Not Found"): Action.FATAL,
    (429, "Too many connected users"): Action.BACK_OFF_LONG,
    (429, "Too many joins per second"): Action.BACK_OFF_LONG,
    (401, "rejected 401"): Action.NEW_TOKEN,  # these four are an application's own, on plain Phoenix
    (403, "rejected 403"): Action.FATAL,
    (429, "rejected 429"): Action.BACK_OFF_LONG,
    (503, "rejected 503"): Action.BACK_OFF,
}


def named_in(table: dict[str, Action], words: str) -> str:
    """The one entry of a table that says what to make of a server's words."""
    (entry,) = [start for start in table if words.startswith(start)]
    return entry


def test_every_refused_join_is_classified() -> None:
    used = set()
    for name in NAMES:
        for _, _, response in told(replay(name), "refused"):
            reason = response["reason"]
            used.add(entry := named_in(JOINS, reason))
            assert (reason, classify_join(response)) == (reason, JOINS[entry])
            code, words = parse_reason(response)
            assert (f"{code}: {words}" if code else words) == reason
            assert (code is None) == (": " not in reason.partition(" ")[0] + " ")
    assert used == set(JOINS)


def test_every_system_error_is_classified_and_one_of_the_channel_ends_it() -> None:
    used, used_of_changes = set(), set()
    for name in NAMES:
        outcomes = replay(name)
        for index, outcome in enumerate(outcomes):
            for event in outcome.heard:
                if not isinstance(event, SystemMessage) or event.status != "error":
                    continue
                if event.extension == "postgres_changes":
                    used_of_changes.add(entry := named_in(CHANGES_ERRORS, event.message))
                    assert (event.message, classify_changes(event.message)) == (event.message, CHANGES_ERRORS[entry])
                    assert outcome.states[event.topic] == "joined"
                    continue
                used.add(entry := named_in(SYSTEM_ERRORS, event.message))
                assert (event.message, classify_system(event.message)) == (event.message, SYSTEM_ERRORS[entry])
                later = [o for o in outcomes[index + 1 :] if o.line["c"] == outcome.line["c"]]
                lost = next(t for o in later for t in o.told if t[0] == "lost" and t[1] == event.topic)
                assert lost == ("lost", event.topic, "phx_close", {})
    assert used == set(SYSTEM_ERRORS)
    assert used_of_changes == set(CHANGES_ERRORS)


def test_every_refused_handshake_is_classified() -> None:
    used = set()
    for name in NAMES:
        for line in load(name):
            if line["dir"] != "http_reject":
                continue
            body = line.get("body") or ""
            words = json.loads(body)["error"] if body.startswith("{") else body
            used.add((line["status"], words))
            assert (words, classify_handshake(line["status"], body)) == (words, HANDSHAKES[line["status"], words])
    assert used == set(HANDSHAKES)


#: Ends of a socket that the client did not begin, and what they mean. After each of them rtpool connects again.
CLOSES = {
    1000: "idle for a minute; or, up to 2.128, put out at the limit of joins a second",
    1001: "put out: at the limit of joins a second since 2.129, or by the application",
    1005: "the official JavaScript client's way to end, without a code",
    1006: "no close frame: the process or the server was killed",
    1009: "a frame of more than 5,000,000 bytes",
    1011: "plain Phoenix: a malformed frame",
    1012: "a deploy, a stop, or other settings of the tenant",
}


def test_every_end_of_a_socket_leaves_its_channels_to_be_joined_again() -> None:
    used = set()
    for name in NAMES:
        outcomes = replay(name)
        goodbyes = {line["c"] for line in load(name) if line["dir"] == ">close"}
        for index, outcome in enumerate(outcomes):
            if outcome.line["dir"] != "close":
                continue
            before = next((o for o in reversed(outcomes[:index]) if o.line["c"] == outcome.line["c"]), None)
            assert before is not None
            wanted = {topic for topic, state in before.states.items() if state != "leaving"}
            assert outcome.states == dict.fromkeys(wanted, "errored")
            code = outcome.line["code"]
            if outcome.line["c"] not in goodbyes:
                used.add(code)
            if code not in (1005, 1006):
                frame = b"\x88\x02" + code.to_bytes(2, "big")
                assert FrameDecoder(1_000).receive(frame) == [WsMessage(OP_CLOSE, frame[2:])]
                assert close_code(frame[2:]) == code
    assert close_code(b"") == 1005
    assert used == set(CLOSES)


# Single scenarios, told by hand


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
    closes = [o for o in replay(name) if '"phx_close"' in payload_of(o.line) and f'"{topic}"' in payload_of(o.line)]
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
    events = of_topic(replay(f"04_presence.{vsn}"), "realtime:pres", "A")
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
    assert of_topic(replay(f"04_presence.{vsn}"), "realtime:pres", "C") == []  # joined with presence off
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

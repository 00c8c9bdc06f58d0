"""
Recordings of a real server, fed to rtpool's session and router: nothing is left unparsed, and users hear what the
protocol promises. What each line should come to is read off the recording by `tests/support/recorded_*.py`.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from rtpool.errors import ProtocolError
from rtpool.events import Message, Presence, SystemMessage
from rtpool.protocol import json_engine
from rtpool.protocol.frames import OP_CLOSE, FrameDecoder, close_code
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
from tests.support.recorded_wire import FOREIGN, server_frame
from tests.support.replay import Outcome, play, replay, told
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
    ("05", "realtime:b12"): "the client's binding had a key `id` of its own, which hides the server's",
}


pytestmark = pytest.mark.usefixtures("recordings")


def scenario(name: str) -> str:
    """A recording's number, or whose client it shows."""
    return name.rpartition("_realtime")[0] or name.partition("_")[0]


def everything() -> Iterator[tuple[str, Outcome]]:
    """Every line of every recording, and where it stands."""
    for name in NAMES:
        for outcome in replay(name):
            yield f"{name} at {outcome.line['t']}", outcome


def is_server(line: dict[str, Any]) -> bool:
    """Whether a line is a frame of the server whose bytes are known."""
    return line["dir"] == "<" and frame_of(line) is not None


def is_plain(name: str) -> bool:
    """Whether a recording shows plain Phoenix."""
    return name.startswith("15_")


def payload_of(line: dict[str, Any]) -> str:
    return str(line.get("raw") or line.get("hex"))


def without_tokens(events: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [event[:1] + event[2:] if event[0] == "settled" else event for event in events]


def sorted_within(events: list[Any]) -> list[Any]:
    """What one frame comes to, with the keys of a presence in a fixed order: the protocol names none."""
    order = ("join", "leave", "sync")
    return sorted(events, key=lambda e: (order.index(e.type), e.key) if isinstance(e, Presence) else (-1, ""))


def agree(name: str, outcome: Outcome) -> None:
    """Whether rtpool and the second reading make the same of a line, in every respect."""
    where = name, outcome.line["t"], outcome.line["c"], outcome.line["dir"]
    assert (where, outcome.told) == (where, outcome.expected)
    assert (where, outcome.dropped) == (where, outcome.expected_dropped)
    assert (where, outcome.unparsed is not None) == (where, outcome.expected_unparsed)
    assert (where, outcome.states) == (where, outcome.expected_states)
    assert (where, sorted_within(outcome.heard)) == (where, sorted_within(outcome.expected_heard))
    assert (where, outcome.present) == (where, outcome.expected_present)


# Every line of every recording


def test_no_frame_of_a_socket_is_left_out() -> None:
    lost = Counter()
    for name in NAMES:
        lines = load(name)
        opened = {line["c"] for line in lines if line["dir"] == "open"}
        frames = [line for line in lines if line["dir"] in (">", "<") and line["c"] in opened]
        assert [o.line for o in replay(name) if o.line["dir"] in (">", "<")] == frames
        lost[name] += sum(frame_of(line) is None for line in frames)
    assert +lost == {"official_js_realtime-js-2.109.0.v2": 9}


def test_the_session_says_what_the_protocol_promises() -> None:
    for where, outcome in everything():
        assert (where, outcome.told) == (where, outcome.expected)


def test_what_means_nothing_to_a_session_is_dropped_and_counted() -> None:
    for where, outcome in everything():
        assert (where, outcome.dropped) == (where, outcome.expected_dropped)


def test_every_channel_is_where_the_protocol_puts_it_after_every_line() -> None:
    for where, outcome in everything():
        assert (where, outcome.states) == (where, outcome.expected_states)


def test_the_session_sends_what_the_recorded_client_sent_and_nothing_in_place_of_a_strangers_frame() -> None:
    for where, outcome in everything():
        act = outcome.act
        same = [act.frame] if act is not None and act.kind != "foreign" else []
        assert (where, outcome.sent) == (where, same)


def test_users_hear_what_the_frames_say_when_read_by_hand() -> None:
    for where, outcome in everything():
        assert (where, outcome.heard) == (where, outcome.expected_heard)


def test_a_change_is_for_the_bindings_whose_ids_it_carries() -> None:
    unheard = set()
    for where, outcome in everything():
        assert (where, outcome.changes) == (where, outcome.expected_changes)
        for _, topic, event, _ in told([outcome], "received"):
            if event == "postgres_changes" and not outcome.heard:
                unheard.add((scenario(where), topic))
    assert unheard == set(UNHEARD)


def test_who_is_present_is_what_a_list_of_everybody_says() -> None:
    for where, outcome in everything():
        assert (where, outcome.present) == (where, outcome.expected_present)


def test_every_push_is_settled_once() -> None:
    for name in NAMES:
        pushes = [o for o in replay(name) if o.act is not None and o.act.kind == "push"]
        tokens = [token for _, token, *_ in told(replay(name), "settled")]
        assert len(tokens) == len(set(tokens)) == len(pushes)


# What is not parsed, and what rtpool would not have sent


def test_nothing_is_unparsed_but_what_is_named_and_that_harms_nothing() -> None:
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
            assert (name, outcome.unparsed is not None) == (name, outcome.expected_unparsed)
            before[socket] = outcome.states
    assert used == set(UNPARSED)


def test_what_the_recorded_clients_did_and_rtpool_never_does_is_named() -> None:
    found: dict[str, set[str]] = {}
    for where, outcome in everything():
        if outcome.act is not None and outcome.act.kind == "foreign":
            found.setdefault(outcome.act.reason, set()).add(scenario(where))
    assert found == STRANGERS
    assert set(STRANGERS) == set(FOREIGN)


def test_a_session_that_asked_for_nothing_drops_all_of_it() -> None:
    for name in NAMES:
        readable = [o for o in replay(name) if is_server(o.line) and not o.expected_unparsed]
        for vsn in {outcome.vsn for outcome in readable}:
            session = Session(
                serializer_for(vsn), heartbeat_interval=25, heartbeat_timeout=10, join_timeout=10, max_joins_in_flight=5
            )
            session.connected(0.0)
            mine = [outcome for outcome in readable if outcome.vsn == vsn]
            for outcome in mine:
                session.receive(*frame_of(outcome.line), outcome.line["t"])
            assert session.dropped == len(mine)
            assert (session.events(), session.frames_to_send(), session.topics) == ([], [], {})


def test_frames_decode_alike_with_and_without_orjson(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("orjson")
    received = [(where, o) for where, o in everything() if is_server(o.line) and not o.expected_unparsed]
    with_it = [serializer_for(o.vsn).decode(*frame_of(o.line)) for _, o in received]
    monkeypatch.setattr(json_engine, "orjson", None)
    for (where, outcome), message in zip(received, with_it, strict=True):
        assert (where, serializer_for(outcome.vsn).decode(*frame_of(outcome.line))) == (where, message)
        assert (where, tuple(message)) == (where, tuple(server_frame(*frame_of(outcome.line), outcome.vsn)))


# The recordings, worsened or shuffled: frames that come twice, late, for another join, or not at all


def test_a_reply_or_an_end_that_comes_twice_is_dropped_the_second_time() -> None:
    for name in NAMES:
        lines = []
        for line in load(name):
            ends = any(f'"{event}"' in line.get("raw", "") for event in ("phx_reply", "phx_close", "phx_error"))
            lines += [line, {**line, "again": True}] if line["dir"] == "<" and ends else [line]
        outcomes = play(lines, plain=is_plain(name))
        for outcome in outcomes:
            agree(name, outcome)
            if "again" in outcome.line:
                assert outcome.told == []
                assert outcome.dropped or '"phx_reply"' not in outcome.line["raw"] or outcome.unparsed
        assert [o.heard for o in outcomes if "again" not in o.line] == [o.heard for o in replay(name)]


@pytest.mark.parametrize("seed", range(3))
def test_frames_that_come_again_much_later_are_taken_as_the_protocol_says(seed: int) -> None:
    rng = random.Random(seed)
    dropped = 0
    for name in NAMES:
        lines: list[dict[str, Any]] = []
        earlier: dict[str, list[dict[str, Any]]] = {}
        for line in load(name):
            lines.append(line)
            if is_server(line):
                earlier.setdefault(line["c"], []).append(line)
            elif line["dir"] in (">", "open") and line["c"] in earlier:
                for _ in range(2):
                    lines.append({**rng.choice(earlier[line["c"]]), "t": line["t"]})
        for outcome in play(lines, plain=is_plain(name)):
            agree(name, outcome)
            dropped += outcome.dropped
    assert dropped > 1_000


def test_frames_of_another_join_and_replies_for_another_topic_are_dropped() -> None:
    strangers = 0
    for name in NAMES:
        lines = []
        for line in load(name):
            text = line.get("raw", "")
            if line["dir"] == "<" and text.startswith('["') and not text.startswith('["x"'):
                message = json.loads(text)
                if message[3] == "phx_reply":
                    message[2] += ":other"
                else:
                    message[:2] = ["stale", message[1] and "stale"]
                lines.append({**line, "raw": json.dumps(message, separators=(",", ":")), "stranger": True})
            lines.append(line)
        outcomes = play(lines, plain=is_plain(name))
        for outcome in outcomes:
            agree(name, outcome)
            if "stranger" in outcome.line:
                strangers += 1
                assert (outcome.told, outcome.dropped) == ([], 1)
        mine = [outcome for outcome in outcomes if "stranger" not in outcome.line]
        assert [without_tokens(o.told) for o in mine] == [without_tokens(o.told) for o in replay(name)]
    assert strangers > 500


def test_a_channel_whose_end_got_lost_is_given_up_at_the_word_that_nobody_knows_it() -> None:
    given_up = set()
    for name in NAMES:
        lines = [
            line
            for line in load(name)
            if line["dir"] != "<" or not any(f'"{end}"' in line.get("raw", "") for end in ("phx_close", "phx_error"))
        ]
        for outcome in play(lines, plain=is_plain(name)):
            agree(name, outcome)
            for _, topic, cause, payload in told([outcome], "lost"):
                assert (cause, payload) == ("unmatched topic", {"reason": "unmatched topic"})
                assert outcome.states[topic] == "errored"
                given_up.add(scenario(name))
    assert given_up == {"04", "09d", "13a", "15"}


def test_a_leave_may_be_told_by_its_close_before_its_reply() -> None:
    turned = 0
    for name in NAMES:
        lines = load(name)
        for i in range(len(lines) - 1):
            first, second = lines[i : i + 2]
            same = first["dir"] == second["dir"] == "<" and first.get("c") == second.get("c")
            if same and '"phx_reply"' in payload_of(first) and '"phx_close"' in payload_of(second):
                lines[i : i + 2] = [second, first]
        for outcome in play(lines, plain=is_plain(name)):
            agree(name, outcome)
            turned += bool(told([outcome], "left")) and '"phx_close"' in payload_of(outcome.line)
    assert turned >= 12


def test_a_change_of_another_kind_than_a_binding_asked_for_is_not_for_it() -> None:
    unheard = 0
    for name in NAMES:
        lines = [
            {**line, "raw": line["raw"].replace('"type":"INSERT"', '"type":"UPDATE"')} if "raw" in line else line
            for line in load(name)
        ]
        for outcome in play(lines, plain=is_plain(name)):
            agree(name, outcome)
            assert outcome.changes == outcome.expected_changes
            unheard += any(t[2] == "postgres_changes" for t in told([outcome], "received")) and not outcome.heard
    assert unheard > 50


def test_diffs_that_come_before_the_state_are_kept_and_applied_behind_it() -> None:
    kept = 0
    for name in NAMES:
        lines = load(name)
        for state in [line for line in lines if line["dir"] == "<" and '"presence_state"' in line.get("raw", "")]:
            at = lines.index(state)
            behind = [i for i, line in enumerate(lines) if i > at and line.get("c") == state["c"]]
            lines.insert(behind[min(6, len(behind) - 1)], lines[at])
            del lines[at]
        late = play(lines, plain=is_plain(name))
        for outcome in late:
            agree(name, outcome)
        ends = [[o.present for o in outcomes if o.line["dir"] == "close"] for outcomes in (late, replay(name))]
        assert ends[0] == ends[1]
        kept += sum(
            '"presence_diff"' in payload_of(o.line) and bool(o.told) and all(type(e) is Message for e in o.heard)
            for o in late
        )
    assert kept > 20


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
            assert (code is None) == (reason in ("unmatched topic", "join crashed", "denied"))
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
                assert FrameDecoder(1_000).receive(frame) == [(OP_CLOSE, frame[2:])]
                assert close_code(frame[2:]) == code
    assert close_code(b"") == 1005
    assert used == set(CLOSES)

"""What a failure calls for: every row of every table, and what no table has."""

from __future__ import annotations

import builtins
import inspect
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rtpool.errors import MessageTooBig
from rtpool.protocol import refusals
from rtpool.protocol.refusals import (
    Action,
    Verdict,
    classify_changes,
    classify_close,
    classify_error,
    classify_handshake,
    classify_join,
    classify_proxy,
    classify_push,
    classify_rest,
    classify_socks,
    classify_system,
    judge_join,
    parse_reason,
    printable,
    read_rest_errors,
    words_of,
)
from rtpool.testing.refusals import Handshake, Join, Rest, System

NOW, BO, LONG, TOKEN, SOCKET, FATAL = (
    Action.RETRY,
    Action.BACK_OFF,
    Action.BACK_OFF_LONG,
    Action.NEW_TOKEN,
    Action.OTHER_SOCKET,
    Action.FATAL,
)
SIGNER_OF = 'Failed to generate JWT signer for key ID (kid) "k1", check your JWT secret or JWKS configuration'
#: What the embedded server's refusals are filled with.
VALUES = {"topic": "room", "kid": "k1", "seconds": 3, "error": "oops", "term": "{:badrpc, :nodedown}"}

# Joins. These lists are written from the protocol, not from the tables under test: a wrong row fails.

JOINS: list[tuple[str, Action]] = [
    ("TopicNameRequired: You must provide a topic name", FATAL),
    ("unmatched topic", FATAL),
    ("PrivateOnly: This project only allows private channels", FATAL),
    ("Unauthorized: You do not have permissions to read from this Channel topic: room", TOKEN),
    ("InvalidJWTToken: Token has expired 3 seconds ago", TOKEN),
    ("InvalidJWTToken: Fields `role` and `exp` are required in JWT", TOKEN),
    ("InvalidJWTToken: Token expiration time is invalid", TOKEN),
    ("MalformedJWT: The token provided is not a valid JWT", TOKEN),
    ("JwtSignatureError: Failed to validate JWT signature", TOKEN),
    (f"JwtSignerError: {SIGNER_OF}", BO),  # once, after 30 s
    ("JwtSignerError: Failed to generate JWT signer, check your JWT secret or JWKS configuration", BO),
    ("ChannelRateLimitReached: Too many channels", SOCKET),
    ("ConnectionRateLimitReached: Too many connected users", LONG),
    ("ClientJoinRateLimitReached: Too many joins per second", LONG),
    ("IncreaseConnectionPool: Please increase your connection pool size", BO),
    ("DatabaseLackOfConnections: Database can't accept more connections, Realtime won't connect", LONG),
    ("DatabaseConnectionRateLimitReached: Too many database connections attempts per second", BO),
    ("UnableToConnectToProject: Realtime was unable to connect to the project database", BO),
    ("Realtime was unable to connect to the project database", BO),
    ("InitializingProjectConnection: Realtime is initializing the project connection", NOW),
    ("InitializingProjectConnection: Connecting to the project database", NOW),
    ("QueryCanceled: oops", BO),
    ("MissingPartition: Realtime was unable to find the expected messages partition", BO),
    ("TimeoutOnRpcCall: Node request timeout", BO),
    ("ErrorOnRpcCall: RPC call error: {:badrpc, :nodedown}", BO),
    ("RealtimeRestarting: Realtime is restarting, please standby", SOCKET),
    ("MusterJoinError: oops", BO),
    ("MusterJoinError: timed out after 4000ms", BO),
    ("TenantNotFound: Tenant with the given ID does not exist", FATAL),
    ("RealtimeDisabledForTenant: Realtime disabled for this tenant", FATAL),
    ("UnableToReplayMessages: Replay params are not valid", FATAL),
    ("UnableToReplayMessages: Replay is not allowed for public channels", FATAL),
    ("UnableToReplayMessages: Realtime was unable to replay messages", BO),
    ("Unknown Error on Channel", BO),
    ("UnknownErrorOnChannel: oops", BO),
    ("join crashed", BO),
    ("too many channels joined", SOCKET),
    ("PostgresChangesSubscribeTimeout: oops", BO),
    ("RealtimeDisabledForConfiguration: oops", FATAL),
]


@pytest.mark.parametrize(("reason", "action"), JOINS, ids=[row[0][:60] for row in JOINS])
def test_a_join_refusal_is_classified_by_its_words(reason: str, action: Action) -> None:
    assert classify_join({"reason": reason}) is action
    assert classify_join(reason) is action  # some servers send the words alone
    assert judge_join({"reason": reason}).action is action


def test_every_join_refusal_a_server_or_a_table_knows_is_in_the_list() -> None:
    listed = {reason for reason, _ in JOINS}
    assert {join.value.format(**VALUES) for join in Join} <= listed
    codes = {code for code, _ in map(parse_reason, listed) if code is not None}
    assert codes == set(refusals.JOIN_CODES)
    assert set(refusals.JOIN_TEXTS) <= listed


@pytest.mark.parametrize(
    ("reason", "actions", "not_before"),
    [
        ("Unknown Error on Channel", [BO] * 5 + [LONG, LONG], None),
        ("UnknownErrorOnChannel: a function clause", [BO] * 5 + [LONG, LONG], None),
        ("JwtSignerError: Failed to generate JWT signer", [BO, TOKEN, TOKEN], 30.0),
        ("InitializingProjectConnection: Connecting to the project database", [NOW, BO, BO], None),
        ("DatabaseConnectionRateLimitReached: Too many", [BO] * 50, 5.0),
        ("QueryCanceled: oops", [BO] * 50, None),
        ("Unauthorized: no", [TOKEN] * 3, None),
    ],
)
def test_some_refusals_mean_something_else_after_a_few(
    reason: str, actions: list[Action], not_before: float | None
) -> None:
    assert [classify_join({"reason": reason}, failures) for failures in range(1, len(actions) + 1)] == actions
    assert judge_join({"reason": reason}).not_before == not_before


def test_only_these_join_refusals_have_terms() -> None:
    tables = {**refusals.JOIN_CODES, **refusals.JOIN_TEXTS}
    assert {name for name, row in tables.items() if isinstance(row, Verdict)} == {
        "Unknown Error on Channel",
        "UnknownErrorOnChannel",
        "JwtSignerError",
        "InitializingProjectConnection",
        "DatabaseConnectionRateLimitReached",
    }


CODES = st.from_regex(r"[A-Z][A-Za-z0-9]{0,20}", fullmatch=True).filter(lambda code: code not in refusals.JOIN_CODES)


@given(st.builds("{}: {}".format, CODES, st.text(max_size=20)) | st.text(), st.integers(1, 100))
def test_a_join_refusal_nobody_knows_backs_off(reason: str, failures: int) -> None:
    if parse_reason(reason)[0] not in refusals.JOIN_CODES and reason not in refusals.JOIN_TEXTS:
        assert classify_join({"reason": reason}, failures) is BO


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["reason", "x"]), inner, max_size=2),
    max_leaves=8,
)


@given(ODD)
def test_a_response_of_any_shape_backs_off(response: Any) -> None:
    assert classify_join(response) is BO
    assert classify_push(response) is BO


@pytest.mark.parametrize(
    ("response", "parsed"),
    [
        ({"reason": "Unauthorized: no: really"}, ("Unauthorized", "no: really")),
        ("payload_size_exceeded", (None, "payload_size_exceeded")),
        ({}, (None, "")),
        (["x"], (None, "['x']")),
        ({"reason": {"a": 1}}, (None, "{'a': 1}")),
    ],
)
def test_a_response_of_any_shape_is_parsed(response: Any, parsed: tuple[str | None, str]) -> None:
    assert parse_reason(response) == parsed


# Pushes

PUSHES: list[tuple[Any, Action]] = [
    ({"reason": "unmatched topic"}, NOW),
    ("payload_size_exceeded", FATAL),
    ({"reason": "Presence track payload must be a map"}, FATAL),
    ({}, BO),
]


@pytest.mark.parametrize(("response", "action"), PUSHES)
def test_an_error_reply_to_a_push_is_classified_by_its_words(response: Any, action: Action) -> None:
    assert classify_push(response) is action


def test_every_push_reply_the_table_knows_is_in_the_list() -> None:
    assert set(refusals.PUSH_TEXTS) == {parse_reason(response)[1] for response, _ in PUSHES} - {""}


def test_a_code_before_the_words_of_a_push_reply_makes_them_an_applications_own() -> None:
    assert classify_push({"reason": "Mine: unmatched topic"}) is BO


# Upgrades

UPGRADES: list[tuple[int, str, Action]] = [
    (401, '{"error":"API key is missing"}', FATAL),
    (401, '{"message":"No API key found in request"}', FATAL),  # Kong
    (401, '{"error":"Token has expired"}', TOKEN),
    (401, '{"error":"Fields `role` and `exp` are required in JWT"}', TOKEN),
    (401, '{"error":"The token provided is not a valid JWT"}', TOKEN),
    (401, '{"error":"Failed to validate JWT signature"}', TOKEN),
    (401, '{"error":"Failed to generate JWT signer, check your JWT secret or JWKS configuration"}', TOKEN),
    (401, "", TOKEN),
    (401, "<html>", TOKEN),
    (403, '{"error":"Realtime was disabled for this tenant"}', FATAL),
    (403, "", BO),  # servers before 2.115 answer everything so
    (403, " \r\n", BO),
    (404, '{"error":"Tenant not found"}', FATAL),
    (404, "", FATAL),
    (429, '{"error":"Too many connected users"}', LONG),
    (429, '{"error":"Too many joins per second"}', LONG),
    (429, "", LONG),
    (500, '{"error":"Error connecting to Realtime"}', BO),
    (400, "", FATAL),
    (407, "", FATAL),
    (410, "", FATAL),
    (414, "", FATAL),
    (426, "", FATAL),
    (431, "", FATAL),
    (502, "<html>", BO),
    (503, "", BO),
    (504, "", BO),
]


@pytest.mark.parametrize(("status", "body", "action"), UPGRADES)
def test_a_refused_upgrade_is_classified_by_its_status_and_body(status: int, body: str, action: Action) -> None:
    assert classify_handshake(status, body) is action


@pytest.mark.parametrize("refusal", Handshake)
def test_what_a_real_server_says_to_an_upgrade_is_classified(refusal: Handshake) -> None:
    given_back = refusal(**VALUES)
    expected = {Handshake.API_KEY_MISSING: FATAL, Handshake.FORBIDDEN: BO}.get(refusal)
    expected = expected or {401: TOKEN, 403: FATAL, 404: FATAL, 429: LONG, 500: BO}[given_back.status]
    assert classify_handshake(given_back.status, given_back.body) is expected


def test_every_status_the_upgrade_table_knows_is_in_the_list() -> None:
    assert set(refusals.HANDSHAKE_STATUSES) == {status for status, _, _ in UPGRADES}


@given(st.integers(100, 999).filter(lambda status: status not in refusals.HANDSHAKE_STATUSES), st.text())
def test_an_upgrade_status_nobody_knows_backs_off(status: int, body: str) -> None:
    assert classify_handshake(status, body) is BO


# Closes

CLOSES: list[tuple[int | None, Action]] = [
    (1000, BO),
    (1001, BO),
    (1002, BO),
    (1003, BO),
    (1005, BO),
    (1006, BO),
    (None, BO),
    (1007, BO),
    (1008, LONG),
    (1009, BO),
    (1011, BO),
    (1012, BO),
    (1013, LONG),
    (1014, BO),
    (1015, BO),
    (3000, BO),  # 3000 to 4999 are applications' own
    (3003, BO),
    (4000, BO),
    (4999, BO),
]


@pytest.mark.parametrize(("code", "action"), CLOSES)
def test_a_close_is_classified_by_its_code(code: int | None, action: Action) -> None:
    assert classify_close(code) is action


def test_every_close_code_the_table_knows_is_in_the_list() -> None:
    assert set(refusals.CLOSE_CODES) <= {code for code, _ in CLOSES}


@given(st.integers())
def test_after_every_close_code_the_socket_is_opened_again_and_after_an_unknown_one_in_the_usual_time(
    code: int,
) -> None:
    assert classify_close(code).retryable
    if code not in (1008, 1013):
        assert classify_close(code) is BO


# System messages

SYSTEMS: list[tuple[str, Action]] = [
    ("Token has expired 0 seconds ago", TOKEN),
    ("Token has expired 3 seconds ago", TOKEN),
    ("Fields `role` and `exp` are required in JWT", TOKEN),
    ("The token provided is not a valid JWT", TOKEN),
    (SIGNER_OF, TOKEN),
    (":signature_error", TOKEN),
    (":error_generating_signer", TOKEN),
    ("-12", TOKEN),
    ("0", TOKEN),
    ("3", TOKEN),
    ("You do not have permissions to read from this Channel topic: room", TOKEN),
    ("You no longer have permission to read from this Channel topic: room", TOKEN),
    ("Too many messages per second", LONG),
    ("Too many presence messages per second", LONG),
    ("Client presence rate limit exceeded", BO),
    ("Track message size exceeded", BO),
    ("Replication connection was not established in time", BO),
    ("Realtime was unable to connect to the project database", BO),
    ("Query was cancelled, please try again", BO),
    ("Node request timeout", BO),
    ("RPC call error: {:badrpc, :nodedown}", BO),
    (":initializing", BO),
    (":tenant_database_connection_initializing", BO),
    (":connect_rate_limit_reached", BO),
    (":tenant_db_too_many_connections", BO),
    (":increase_connection_pool", BO),
    (":tenant_suspended", FATAL),
    ("phx_error", BO),
    ("phx_close", BO),
    ("unmatched topic", NOW),
    ("", BO),
]


@pytest.mark.parametrize(("message", "action"), SYSTEMS)
def test_an_end_of_a_channel_is_classified_by_the_system_message_before_it(message: str, action: Action) -> None:
    assert classify_system(message) is action


def test_every_system_message_a_server_or_a_table_knows_is_in_the_list() -> None:
    listed = {message for message, _ in SYSTEMS}
    assert {system(**VALUES) for system in System} <= listed
    for start, _ in refusals.SYSTEM_MESSAGES:
        assert any(message.startswith(start) for message in listed), start


@given(st.text())
def test_a_system_message_nobody_knows_backs_off(message: str) -> None:
    known = tuple(start for start, _ in refusals.SYSTEM_MESSAGES)
    if not message.startswith(known) and not message.lstrip("-").isdigit():
        assert classify_system(message) is BO


@pytest.mark.parametrize("message", ["²", "--5", "5 ", "-", "5.0"])
def test_what_only_looks_like_a_number_is_none(message: str) -> None:
    assert classify_system(message) is BO


CHANGES: list[tuple[str, Action]] = [
    ('Error parsing `filter` params: ["wrong"]', FATAL),
    ("Error parsing `select` params: expected a list of column name strings", FATAL),
    ("`in` filter value must be wrapped by parentheses", FATAL),
    ("filter must not contain empty segments (check for extra commas)", FATAL),
    ("Column selection is not supported for wildcard subscriptions. Provide an explicit schema", FATAL),
    ("No subscription params provided. Please provide at least a `schema` or `table` to subscribe to: …", FATAL),
    ("Unable to subscribe to changes with given parameters. Please check Realtime is enabled", FATAL),
    ("Unable to subscribe to changes with given parameters. An exception happened so please check", FATAL),
    ('{:error, "Too many database timeouts"}', BO),
    ("", BO),
]


@pytest.mark.parametrize(("message", "action"), CHANGES)
def test_trouble_with_changes_is_classified_by_its_words(message: str, action: Action) -> None:
    assert classify_changes(message) is action


def test_every_trouble_with_changes_the_table_knows_is_in_the_list() -> None:
    for start in refusals.CHANGES_GIVEN_UP:
        assert any(message.startswith(start) for message, _ in CHANGES), start


@given(st.text())
def test_trouble_with_changes_nobody_knows_backs_off(message: str) -> None:
    if not message.startswith(refusals.CHANGES_GIVEN_UP):
        assert classify_changes(message) is BO


# REST

RESTS: list[tuple[int, Any, Action]] = [
    (401, {"message": "Unauthorized"}, TOKEN),
    (401, {"message": "Tenant not found in database"}, FATAL),
    (403, {"message": "Tenant is suspended"}, FATAL),
    (403, {"message": "Unauthorized"}, TOKEN),
    (404, "", FATAL),
    (413, "", FATAL),
    (415, {"error": "Unsupported Media Type. Use application/json or application/octet-stream"}, FATAL),
    (422, {"errors": {"messages": [{"payload": ["can't be blank"]}, {}]}}, FATAL),
    (422, {"errors": {"payload": ["Payload size exceeds tenant limit"]}}, FATAL),
    (422, {"message": "RLS policy error"}, BO),
    (422, {"message": "Query canceled"}, BO),
    (422, {"message": "Missing messages partition"}, BO),
    (422, {"message": "Tenant database unavailable"}, BO),
    (422, {"message": "Tenant database initializing"}, BO),
    (422, {"message": "Tenant database connection initializing"}, BO),
    (422, {"message": "Tenant database has too many connections"}, LONG),
    (422, {"message": "Connect rate limit reached"}, LONG),
    (429, {"message": "Too many requests"}, LONG),
    (429, {"message": "You have exceeded your rate limit"}, LONG),
    (429, {"message": "Too many messages to broadcast, please reduce the batch size"}, LONG),
    (429, {"message": "Connection pool exhausted"}, BO),
    (429, "", LONG),
    (500, {"message": "RPC error"}, BO),
    (500, {"message": "Unable to authorize broadcast"}, BO),
    (500, {"message": ["odd"]}, BO),
    (502, "<html>", BO),
    (503, "<html>", BO),
    (504, "", BO),
    (400, {"errors": {"detail": "Bad Request"}}, FATAL),
    (405, "", FATAL),
    (410, "", FATAL),
    (414, "", FATAL),
    (431, "", FATAL),
    (200, "<html>", FATAL),
    (202, {"message": "Query canceled"}, FATAL),
    (308, "", FATAL),
]


@pytest.mark.parametrize(("status", "body", "action"), RESTS)
def test_a_rest_refusal_is_classified_by_its_words_and_else_its_status(status: int, body: Any, action: Action) -> None:
    assert classify_rest(status, body) is action


def test_every_rest_refusal_a_server_or_a_table_knows_is_in_the_list() -> None:
    listed = {
        (status, str(body["message"])) for status, body, _ in RESTS if isinstance(body, dict) and "message" in body
    }
    assert {rest.value for rest in Rest} <= listed
    assert set(refusals.REST_MESSAGES) <= {words for _, words in listed}
    assert set(refusals.REST_STATUSES) <= {status for status, _, _ in RESTS}


@given(st.integers(400, 999).filter(lambda status: status not in refusals.REST_STATUSES), ODD)
def test_a_rest_status_nobody_knows_backs_off(status: int, body: Any) -> None:
    assert classify_rest(status, body) is BO


# Proxies

PROXIES = {400: FATAL, 401: FATAL, 403: FATAL, 404: FATAL, 405: FATAL, 407: FATAL, 501: FATAL}
PROXIES |= {429: LONG, 500: BO, 502: BO, 503: BO, 504: BO}


@given(st.integers(100, 999) | st.sampled_from(sorted(PROXIES)))
@example(407)
@example(418)
def test_a_proxys_refusal_is_classified_by_its_status_and_an_unknown_one_backs_off(status: int) -> None:
    assert classify_proxy(status) is PROXIES.get(status, BO)


def test_every_proxy_status_the_table_knows_is_in_the_list() -> None:
    assert refusals.PROXY_STATUSES == PROXIES


SOCKS = {1: BO, 2: FATAL, 3: BO, 4: BO, 5: BO, 6: BO, 7: FATAL, 8: FATAL, 0x5B: BO, 0x5C: BO, 0x5D: FATAL}


@given(st.integers(1, 255), st.text())
@example(2, "")
@example(9, "")
def test_a_socks_refusal_is_classified_by_its_code_and_an_unknown_one_backs_off(code: int, words: str) -> None:
    assert classify_socks(code, words) is SOCKS.get(code, BO)


def test_every_socks_code_the_table_knows_is_in_the_list() -> None:
    assert refusals.SOCKS_CODES == SOCKS


def test_a_socks_refusal_without_a_code_is_classified_by_its_words() -> None:
    assert classify_socks(0, "Username and password authentication failure") is FATAL
    assert classify_socks(0, "Connection closed unexpectedly") is BO


# Exceptions

FOREIGN = [
    kind
    for kind in vars(builtins).values()
    if inspect.isclass(kind) and issubclass(kind, BaseException) and not re.search("Unicode|Group", kind.__name__)
]


@given(st.sampled_from(FOREIGN))
def test_an_exception_that_is_not_rtpools_backs_off(kind: type[BaseException]) -> None:
    assert classify_error(kind("oops")) is BO


def test_an_error_of_rtpools_says_itself_what_it_calls_for() -> None:
    assert classify_error(MessageTooBig("too big")) is FATAL
    assert classify_error(MessageTooBig("too big", action=LONG)) is LONG


def test_an_attribute_of_the_same_name_that_is_no_action_is_nobodys_verdict() -> None:
    error = ValueError("oops")
    error.action = "fatal"  # type: ignore[attr-defined]
    assert classify_error(error) is BO


# A server's words


def test_a_servers_words_stand_on_one_line_and_move_no_cursor() -> None:
    assert printable("no\r\nSet-Cookie: \x1b[2Jé") == "no\\r\\nSet-Cookie: \\x1b[2Jé"


def test_of_a_servers_words_so_many_are_kept() -> None:
    assert words_of("w" * refusals.MAX_WORDS) == "w" * refusals.MAX_WORDS
    assert words_of("w" * (refusals.MAX_WORDS + 1)) == "w" * refusals.MAX_WORDS + "… (2001 characters)"


def test_a_value_too_deep_to_show_is_named_by_its_kind() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert words_of(deep) == "a list nested too deeply to show"


# What a REST refusal says


@pytest.mark.parametrize(
    ("body", "count", "errors", "words"),
    [
        (
            {"errors": {"messages": [{}, {"event": ["is invalid"]}]}},
            2,
            {1: {"event": ("is invalid",)}},
            "messages[1].event: is invalid",
        ),
        ({"errors": {"messages": [{"event": "odd"}]}}, 1, {0: {"event": ("odd",)}}, "messages[0].event: odd"),
        ({"errors": {"payload": ["too big"]}}, 1, {0: {"payload": ("too big",)}}, "payload: too big"),
        ({"errors": {"payload": ["too big"]}}, 2, {}, "payload: too big"),
        ({"errors": {"messages": ["can't be blank"]}}, 2, {}, "messages: can't be blank"),
        ({"message": "RPC error"}, 1, {}, "RPC error"),
        ({"error": "Unsupported"}, 1, {}, "Unsupported"),
        ({"errors": "odd"}, 1, {}, ""),
        ("<html>", 1, {}, ""),
        ([], 1, {}, ""),
    ],
)
def test_what_is_wrong_with_a_broadcast_is_read_by_message(
    body: Any, count: int, errors: dict[int, Any], words: str
) -> None:
    assert read_rest_errors(body, count) == (errors, words)


def test_of_many_faults_five_are_named_in_the_words_and_all_in_the_errors() -> None:
    errors, words = read_rest_errors({"errors": {"messages": [{"event": ["bad"]}] * 9}}, 9)
    assert len(errors) == 9
    assert words.count("bad") == 5
    assert words.endswith("; …")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["errors", "message", "error", "messages", "payload"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(JSON, st.integers(1, 5), st.integers(100, 999))
def test_no_answer_however_odd_breaks_the_reading_of_a_refusal(body: Any, count: int, status: int) -> None:
    errors, words = read_rest_errors(body, count)
    assert isinstance(words, str)
    assert all(isinstance(index, int) for index in errors)
    assert isinstance(classify_rest(status, body), Action)

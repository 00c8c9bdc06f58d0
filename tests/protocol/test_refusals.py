"""What a refusal calls for, by the server's words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtpool.protocol.refusals import (
    Action,
    classify_handshake,
    classify_join,
    classify_proxy,
    classify_rest,
    classify_socks,
    classify_system,
    parse_reason,
    read_rest_errors,
)


@pytest.mark.parametrize(
    ("reason", "action"),
    [
        ("Unauthorized: You do not have permissions to read from this Channel topic: x", Action.NEW_TOKEN),
        ("InvalidJWTToken: Token has expired 3 seconds ago", Action.NEW_TOKEN),
        ("PrivateOnly: This project only allows private channels", Action.FATAL),
        ("unmatched topic", Action.FATAL),
        ("ChannelRateLimitReached: Too many channels", Action.OTHER_SOCKET),
        ("too many channels joined", Action.OTHER_SOCKET),
        ("ClientJoinRateLimitReached: Too many joins per second", Action.BACK_OFF_LONG),
        ("ConnectionRateLimitReached: Too many connected users", Action.BACK_OFF_LONG),
        ("InitializingProjectConnection: Connecting to the project database", Action.RETRY),
        ("UnableToReplayMessages: Replay is not allowed for public channels", Action.FATAL),
        ("UnableToReplayMessages: Realtime was unable to replay messages", Action.BACK_OFF),
        ("join crashed", Action.BACK_OFF),
        ("SomethingNew: nobody knows", Action.BACK_OFF),
        ("", Action.BACK_OFF),
    ],
)
def test_a_join_refusal_is_classified_by_its_words(reason: str, action: Action) -> None:
    assert classify_join({"reason": reason}) is action


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
    assert classify_join(response)


@pytest.mark.parametrize(
    ("status", "body", "retryable"),
    [
        (401, "{}", False),
        (403, '{"error": "Realtime was disabled"}', False),
        (403, "", True),  # servers before 2.115 answer everything so
        (404, "", False),
        (429, "", True),
        (500, "", True),
        (503, "", True),
        (418, "", True),
    ],
)
def test_a_handshake_refusal_is_classified_by_its_status(status: int, body: str, retryable: bool) -> None:
    assert classify_handshake(status, body).retryable is retryable


@pytest.mark.parametrize(
    ("message", "action"),
    [
        ("Token has expired 0 seconds ago", Action.NEW_TOKEN),
        ("-12", Action.NEW_TOKEN),
        ("Too many messages per second", Action.BACK_OFF_LONG),
        (":tenant_suspended", Action.FATAL),
        (":initializing", Action.BACK_OFF),
        ("", Action.BACK_OFF),
    ],
)
def test_a_close_is_classified_by_the_system_message_before_it(message: str, action: Action) -> None:
    assert classify_system(message) is action


@pytest.mark.parametrize(
    ("status", "body", "action"),
    [
        (401, {"message": "Unauthorized"}, Action.NEW_TOKEN),
        (401, {"message": "Tenant not found in database"}, Action.FATAL),
        (403, {"message": "Unauthorized"}, Action.NEW_TOKEN),
        (403, {"message": "Tenant is suspended"}, Action.FATAL),
        (422, {"errors": {}}, Action.FATAL),
        (422, {"message": "Query canceled"}, Action.BACK_OFF),
        (422, {"message": "Connect rate limit reached"}, Action.BACK_OFF_LONG),
        (429, {"message": "Too many requests"}, Action.BACK_OFF_LONG),
        (429, {"message": "Connection pool exhausted"}, Action.BACK_OFF),
        (500, {"message": ["odd"]}, Action.BACK_OFF),
        (503, "<html>", Action.BACK_OFF),
        (200, "<html>", Action.FATAL),
        (308, "", Action.FATAL),
    ],
)
def test_a_rest_refusal_is_classified_by_its_words_and_else_its_status(status: int, body: Any, action: Action) -> None:
    assert classify_rest(status, body) is action


@pytest.mark.parametrize(("status", "retryable"), [(407, False), (403, False), (502, True), (418, True)])
def test_a_proxys_refusal_is_classified_by_its_status(status: int, retryable: bool) -> None:
    assert classify_proxy(status).retryable is retryable


@pytest.mark.parametrize(
    ("code", "words", "retryable"),
    [
        (0x02, "Connection not allowed by ruleset", False),
        (0x05, "Connection refused by destination host", True),
        (0x5B, "Request rejected or failed", True),
        (0x5D, "", False),
        (0, "Username and password authentication failure", False),
        (0, "Connection closed unexpectedly", True),
    ],
)
def test_a_socks_refusal_is_classified_by_its_code_and_else_its_words(code: int, words: str, retryable: bool) -> None:
    assert classify_socks(code, words).retryable is retryable


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

"""What a refusal calls for, by the server's words."""

from __future__ import annotations

from typing import Any

import pytest

from rtpool.protocol.refusals import (
    Action,
    classify_handshake,
    classify_join,
    classify_system,
    parse_reason,
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

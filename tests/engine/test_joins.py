"""What a join that failed amounts to."""

from __future__ import annotations

import pytest

import rtpool
from rtpool import Action
from rtpool.engine.joins import failure_of
from rtpool.protocol.session_events import JoinFailed


def failed(reason: str, failures: int) -> rtpool.RtpoolError:
    error, action = failure_of("room", JoinFailed("realtime:room", {"reason": reason}, False), 10.0, str, failures)
    assert error.action is action
    return error


@pytest.mark.parametrize(
    ("reason", "failures", "action", "retry_after", "words"),
    [
        ("QueryCanceled: x", 1, Action.BACK_OFF, None, "tries again by itself"),
        ("UnknownErrorOnChannel: x", 5, Action.BACK_OFF, None, "tries again by itself"),
        ("UnknownErrorOnChannel: x", 6, Action.BACK_OFF_LONG, None, "tries again by itself"),
        ("JwtSignerError: x", 1, Action.BACK_OFF, 30.0, "tries again by itself"),
        ("JwtSignerError: x", 2, Action.NEW_TOKEN, None, "new token needed"),
        ("DatabaseConnectionRateLimitReached: x", 9, Action.BACK_OFF, 5.0, "tries again by itself"),
        ("InitializingProjectConnection: x", 1, Action.RETRY, None, "tries again by itself"),
        ("InitializingProjectConnection: x", 2, Action.BACK_OFF, None, "tries again by itself"),
    ],
)
def test_a_refused_join_says_what_it_calls_for_after_so_many(
    reason: str, failures: int, action: Action, retry_after: float | None, words: str
) -> None:
    error = failed(reason, failures)
    assert isinstance(error, rtpool.JoinRefused)
    assert (error.action, error.retryable, error.retry_after) == (action, action.retryable, retry_after)
    assert f"{error.code}: {error.reason}" == reason
    assert words in str(error)


def test_a_join_without_an_answer_backs_off() -> None:
    error, action = failure_of("room", JoinFailed("realtime:room", None, True), 10.0, str, 7)
    assert isinstance(error, rtpool.JoinTimeout)
    assert error.action is action is Action.BACK_OFF

"""Every error says what it calls for, wherever it is carried."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rtpool
from rtpool.actions import Action
from rtpool.protocol.refusals import classify_error

BO, TOKEN, FATAL = Action.BACK_OFF, Action.NEW_TOKEN, Action.FATAL

#: What an error of each kind calls for when whoever raised it said no more.
ERRORS: dict[str, Action] = {
    "BroadcastRefused": FATAL,
    "ConfigConflict": FATAL,
    "ConnectionFailed": BO,
    "HandshakeRefused": BO,
    "InvalidType": FATAL,
    "InvalidValue": FATAL,
    "JoinRefused": FATAL,
    "JoinTimeout": BO,
    "MailboxOverflow": FATAL,
    "MessageTooBig": FATAL,
    "MonkeyPatchConflict": FATAL,
    "NotSubscribed": FATAL,
    "PoolClosed": FATAL,
    "PoolExhausted": BO,
    "PoolForked": FATAL,
    "ProtocolError": BO,
    "ProxyRefused": BO,
    "PushRefused": FATAL,
    "PushTimeout": BO,
    "ReceiveTimeout": BO,
    "RtpoolError": FATAL,
    "SendBufferFull": BO,
}


@pytest.mark.parametrize("name", rtpool.errors.__all__)
def test_every_error_says_what_it_calls_for(name: str) -> None:
    error = getattr(rtpool, name)("what happened")
    assert classify_error(error) is error.action is ERRORS[name]
    assert error.retryable is ERRORS[name].retryable
    assert error.retry_after is None


@given(st.sampled_from(rtpool.errors.__all__), st.sampled_from(Action))
def test_what_an_error_calls_for_and_whether_to_try_again_always_agree(name: str, action: Action) -> None:
    error = getattr(rtpool, name)("what happened", action=action, retry_after=3.0)
    for one in (error, pickle.loads(pickle.dumps(error)), error.again()):
        assert classify_error(one) is one.action is action
        assert one.retryable is action.retryable
        assert one.retry_after == 3.0
    with pytest.raises(AttributeError):
        error.retryable = not error.retryable


def test_only_a_new_token_and_the_hopeless_are_not_tried_again() -> None:
    assert {action for action in Action if not action.retryable} == {TOKEN, FATAL}
    assert pickle.loads(pickle.dumps(Action.RETRY)) is rtpool.Action.RETRY

"""
What a failure calls for: one vocabulary for every refusal, close and exception.
"""

from __future__ import annotations

import enum

__all__ = ["Action", "LONG_BACK_OFF"]

#: Seconds that `Action.BACK_OFF_LONG` waits at least (protocol 7 and 8).
LONG_BACK_OFF = 10.0


class Action(enum.Enum):
    """What a failure calls for; every `RtpoolError` carries one."""

    __module__ = "rtpool"

    RETRY = "retry"  #: at once, then back off
    BACK_OFF = "back off"
    BACK_OFF_LONG = "back off long"  #: `LONG_BACK_OFF` seconds and more; trying sooner makes it worse
    NEW_TOKEN = "new token"  #: only another token helps
    OTHER_SOCKET = "other socket"  #: this socket is full or going away
    FATAL = "fatal"  #: the same request can never succeed

    @property
    def retryable(self) -> bool:
        """Whether rtpool goes on by itself."""
        return self not in (Action.NEW_TOKEN, Action.FATAL)

"""
The life of a server channel, as one table.

Two rules. Everything that decides a channel's state lives here. This module knows nothing of refs, sockets or users.
A pair that is not in the table is no error of the table: the caller asks with `next_state` and is told None; what came
from the server is then counted and dropped, what came from ourselves is a bug.
"""

from __future__ import annotations

import enum

from rtpool.events import ChannelState

__all__ = ["ChannelInput", "TRANSITIONS", "next_state"]


class ChannelInput(enum.Enum):
    """What can happen to a channel."""

    JOIN = "join"  #: we want in, for the first time, again, or with another config
    JOIN_OK = "join_ok"
    JOIN_ERROR = "join_error"
    JOIN_TIMEOUT = "join_timeout"
    LEAVE = "leave"  #: we want out
    LEAVE_OK = "leave_ok"
    LEAVE_TIMEOUT = "leave_timeout"
    PHX_ERROR = "phx_error"  #: the channel process crashed
    PHX_CLOSE = "phx_close"  #: the server ended the channel
    DISCONNECTED = "disconnected"  #: the socket is gone


_C, _J, _D, _E, _L = (
    ChannelState.CLOSED,
    ChannelState.JOINING,
    ChannelState.JOINED,
    ChannelState.ERRORED,
    ChannelState.LEAVING,
)
_I = ChannelInput

TRANSITIONS: dict[tuple[ChannelState, ChannelInput], ChannelState] = {
    (_C, _I.JOIN): _J,
    (_J, _I.JOIN): _J,  # another config before the first was answered
    (_J, _I.JOIN_OK): _D,
    (_J, _I.JOIN_ERROR): _E,
    (_J, _I.JOIN_TIMEOUT): _E,
    (_J, _I.PHX_ERROR): _E,
    (_J, _I.PHX_CLOSE): _E,
    (_J, _I.DISCONNECTED): _E,
    (_J, _I.LEAVE): _L,
    (_D, _I.JOIN): _J,  # a duplicate join replaces the server's channel in one step
    (_D, _I.PHX_ERROR): _E,
    (_D, _I.PHX_CLOSE): _E,  # users still want it: it comes back, or says why not
    (_D, _I.DISCONNECTED): _E,
    (_D, _I.LEAVE): _L,
    (_E, _I.JOIN): _J,
    (_E, _I.PHX_CLOSE): _E,  # the close that follows an error
    (_E, _I.DISCONNECTED): _E,
    (_E, _I.LEAVE): _C,
    (_L, _I.JOIN_OK): _L,  # the answer to a join that was overtaken by the leave
    (_L, _I.JOIN_ERROR): _L,
    (_L, _I.PHX_ERROR): _L,
    (_L, _I.LEAVE_OK): _C,
    (_L, _I.LEAVE_TIMEOUT): _C,
    (_L, _I.PHX_CLOSE): _C,
    (_L, _I.DISCONNECTED): _C,
}


def next_state(state: ChannelState, happened: ChannelInput) -> ChannelState | None:
    """The state that follows, or None when `happened` has no meaning in `state`."""
    return TRANSITIONS.get((state, happened))

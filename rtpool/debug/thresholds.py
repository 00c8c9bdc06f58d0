"""
From when on something is an issue.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from typing import Any

import attrs

from rtpool.errors import InvalidType, InvalidValue

__all__ = ["Thresholds"]


def _number(highest: float) -> Callable[[Any, Any, Any], None]:
    def check(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InvalidType(f"threshold {attribute.name} must be a number, not {type(value).__name__}")
        if not 0 < value <= highest or math.isinf(value):
            raise InvalidValue(f"threshold {attribute.name} must be > 0 and at most {highest:g}, not {value!r}")

    return check


_SHARE, _SECONDS, _COUNT = _number(1.0), _number(1e9), _number(1e9)


@attrs.frozen(kw_only=True)
class Thresholds:
    """
    From when on something is an issue. Times are seconds, shares are parts of 1.

    Attributes:
        recent: so long what has happened counts as present: drops, gaps, errors, slow callbacks that returned.
        slow_callback, stuck_callback: a callback that runs longer.
        mailbox_share: of `mailbox_limit`, that waits.
        send_buffer_share: of `send_buffer_limit`, that waits while a Channel is not joined or its pushes are paced.
        not_ready_after: a subscription to which nothing flows for longer.
        unheard_after: events that nobody takes for longer; a Channel that does nothing for longer.
        late_heartbeat: of `heartbeat_timeout`, that an answer took or has been awaited.
        token_lead: a token that nobody renews and that expires sooner.
        channels_share: of `max_channels_per_connection`; more is nearly full. Merging fills sockets to 0.9 of it.
        reconnect_attempts: failed attempts of the present outage.
        reconnects, reconnect_window: losses of an open connection, for each there was, in so many seconds.
        spare_connections_after: more connections than needed for longer, while none are being merged.
        forgotten_after: a pool in which nothing happens for longer.
        stalled_after: an I/O thread that does not answer and has not come round for longer.

    Raises:
        InvalidType, InvalidValue: naming the threshold.
    """

    recent: float = attrs.field(default=60.0, validator=_SECONDS)
    slow_callback: float = attrs.field(default=1.0, validator=_SECONDS)
    stuck_callback: float = attrs.field(default=30.0, validator=_SECONDS)
    mailbox_share: float = attrs.field(default=0.8, validator=_SHARE)
    send_buffer_share: float = attrs.field(default=0.8, validator=_SHARE)
    not_ready_after: float = attrs.field(default=30.0, validator=_SECONDS)
    unheard_after: float = attrs.field(default=60.0, validator=_SECONDS)
    late_heartbeat: float = attrs.field(default=0.5, validator=_SHARE)
    token_lead: float = attrs.field(default=300.0, validator=_SECONDS)
    channels_share: float = attrs.field(default=0.9, validator=_SHARE)
    reconnect_attempts: float = attrs.field(default=3, validator=_COUNT)
    reconnects: float = attrs.field(default=5, validator=_COUNT)
    reconnect_window: float = attrs.field(default=600.0, validator=_SECONDS)
    spare_connections_after: float = attrs.field(default=300.0, validator=_SECONDS)
    forgotten_after: float = attrs.field(default=300.0, validator=_SECONDS)
    stalled_after: float = attrs.field(default=15.0, validator=_SECONDS)

    @classmethod
    def of(cls, **given: float) -> Thresholds:
        """
        The defaults, and what is given.

        Raises:
            InvalidType: there is none of that name; the nearest is named.
        """
        known = [attribute.name for attribute in attrs.fields(cls)]
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
                raise InvalidType(f"there is no threshold {name!r}{hint}")
        return cls(**given)

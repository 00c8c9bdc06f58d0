"""
One message to 1, 10, 100 and 1,000 Channels of its topic, in one pool.

The official clients have one channel a topic: a second one is the first again (realtime), or takes its place on the
server (phoenix). What they have instead is measured beside it: so many callbacks on one channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tests.benchmarks.model import Case, Goal, Place, Row, Settings
from tests.benchmarks.peers import receiver
from tests.benchmarks.processes import server

__all__ = ["CASE"]

#: Channels, and the messages of a round that each of them gets.
MESSAGES = {1: 50_000, 10: 20_000, 100: 5_000, 1_000: 1_000}
PARTICIPANTS = ("rtpool, Channels", "realtime, callbacks", "realtime-js, callbacks", "floor, mailboxes")


def rows(settings: Settings) -> Sequence[Row]:
    """A row for each number of Channels."""
    return [_row(channels, settings.messages(messages)) for channels, messages in MESSAGES.items()]


def _row(channels: int, messages: int) -> Row:
    plan = {"topics": 1, "messages": messages, "size": 250}
    participants = [receiver(name, channels=channels, messages=messages) for name in PARTICIPANTS]
    return Row(f"{channels:,} Channel{'s' * (channels > 1)}", participants, partial(server, "traffic", plan))


GOAL = Goal(
    text="at least 2,000,000 callbacks/s",
    of=Place("1,000 Channels", "rtpool, Channels", "callbacks/s"),
    at_least=2_000_000,
)
CASE = Case("fanout", "one message of 250 B to many Channels of its topic, all callbacks together", rows, (GOAL,))

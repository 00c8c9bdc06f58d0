"""
What stands on the debug page, whatever a pool does: its tables and its buttons.
"""

from __future__ import annotations

from typing import NamedTuple

import attrs

__all__ = ["ACTIONS", "Action", "Column", "TABLES", "Table"]


class Column(NamedTuple):
    """A column: its heading, and whether it holds numbers."""

    heading: str
    number: bool = False


@attrs.frozen
class Table:
    """A table of the page: its key, its caption, its columns, and what is said where it has no row."""

    key: str
    caption: str
    columns: tuple[Column, ...]
    empty: str


TABLES = (
    Table(
        "connections",
        "Connections",
        (
            Column("Connection"),
            Column("State"),
            Column("Epoch", True),
            Column("Joins", True),
            Column("Failed dials", True),
            Column("Latency", True),
            Column("Last heard", True),
            Column("Messages/s", True),
            Column("In/s", True),
            Column("Out/s", True),
        ),
        "No connection: none is needed yet.",
    ),
    Table(
        "channels",
        "Channels",
        (
            Column("Topic"),
            Column("State"),
            Column("Callbacks", True),
            Column("Queued", True),
            Column("Received", True),
            Column("Delivered", True),
            Column("Dropped", True),
            Column("Events/s", True),
            Column("ms/call", True),
        ),
        "No Channel is subscribed.",
    ),
    Table(
        "joins",
        "Joins",
        (Column("Topic"), Column("State"), Column("Connection", True), Column("Channels", True)),
        "No join: nobody is subscribed.",
    ),
    Table(
        "streams",
        "Streams to browsers",
        (
            Column("Topic"),
            Column("State"),
            Column("Browsers", True),
            Column("Told", True),
            Column("Skipped", True),
            Column("Kept", True),
            Column("Kept bytes", True),
        ),
        "No browser listens to a topic.",
    ),
    Table(
        "recorder",
        "Flight recorder",
        (Column("Time (UTC)"), Column("Level"), Column("What happened")),
        "Nothing is recorded.",
    ),
)


@attrs.frozen
class Action:
    """A button: its key, what is written on it, and what it does."""

    key: str
    label: str
    words: str


ACTIONS = (
    Action("log-stats", "Log stats", "Writes what the pool is doing to the log rtpool.debug."),
    Action("check-lifecycle", "Check lifecycle", "Joins and leaves a probe channel; nothing of it may be left."),
    Action("force-clean-up", "Force clean-up", "Closes idle connections, and mends what the health check would."),
)

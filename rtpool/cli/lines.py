"""
An event as a line: for a person, or a JSON object for a program.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import attrs
from rich.text import Text

from rtpool.events import Broadcast, Event, Gap, Message, PostgresChange, Presence, SystemMessage
from rtpool.protocol.refusals import printable

__all__ = ["json_line", "json_text", "text_line"]

#: Characters within JSON strings that end a line, that a terminal acts on, or that UTF-8 has no bytes for.
UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
#: Characters of base64 that a person is shown.
SHOWN_BASE64 = 48
STYLES = {
    "system": "bright_black",
    "GAP": "bold red",
    "INSERT": "green",
    "UPDATE": "yellow",
    "DELETE": "red",
    "join": "green",
    "leave": "red",
    "present": "blue",
}
#: Fields that may hold anything.
DEEP = {"payload", "metas", "current", "state", "record", "old_record"}


def json_line(event: Event, at: datetime, *, ascii_only: bool = False) -> str:
    """
    A JSON object on one line: ``kind``, the name of the event's class; ``at``, when it came; and each field of the
    class under its own name.

    Times are ISO 8601 with their offset, ``numeric`` cells strings with every digit. Where there is a ``payload``,
    ``encoding`` says what it is: ``"json"`` as it came, or ``"base64"`` of bytes.

    Args:
        at: aware.
        ascii_only: escape all that is not ASCII.
    """
    data: dict[str, Any] = {"kind": type(event).__name__, "at": at.astimezone(timezone.utc).isoformat()}
    data |= {field.name: getattr(event, field.name) for field in attrs.fields(type(event))}
    if "payload" in data:
        binary = isinstance(data["payload"], bytes)
        data["encoding"] = "base64" if binary else "json"
        if binary:
            data["payload"] = base64.b64encode(data["payload"]).decode("ascii")
    return json_text(data, ascii_only=ascii_only)


def text_line(event: Event, at: datetime) -> Text:
    """
    A line for a person: the local time, what kind of thing it is, its name, what it holds.

    Args:
        at: aware.
    """
    kind, name, rest = _parts(event)
    line = Text(f"{at.astimezone():%H:%M:%S}.{at.microsecond // 1000:03} ", style="bright_black")
    line.append(f"{kind:9} ", style=STYLES.get(kind, "cyan"))
    line.append(printable(f"{name} " if name else ""), style="bold")
    return line.append(printable(rest), style="default not bold")


def _parts(event: Event) -> tuple[str, str, str]:
    if isinstance(event, Broadcast):
        return "replayed" if event.replayed else "broadcast", event.event, _content(event.payload)
    if isinstance(event, PostgresChange):
        return event.type, f"{event.schema}.{event.table}", _row(event)
    if isinstance(event, Presence):
        if event.type == "sync":
            return "present", "", ", ".join(event.state or ()) or "nobody"
        return event.type, event.key, " ".join(map(_meta, event.metas))
    if isinstance(event, SystemMessage):
        return "system", event.extension, f"{event.status}: {event.message}"
    if isinstance(event, Gap):
        return "GAP", f"{event.cause},", _lost(event)
    if isinstance(event, Message):
        return "message", event.event, _content(event.payload)
    return type(event).__name__, "", str(event)


def _meta(meta: Mapping[str, Any]) -> str:
    """What was tracked; the server's own mark means nothing to a person."""
    return json_text({name: value for name, value in meta.items() if not name.startswith("phx_ref")})


def _row(change: PostgresChange) -> str:
    parts = [json_text(change.record)] if change.record else []
    if change.old_record:
        parts.append(f"was {json_text(change.old_record)}")
    return " ".join(parts + [f"error: {error}" for error in change.errors])


def _lost(gap: Gap) -> str:
    words = f"{'lost' if gap.certain else 'may be lost'}: {_clock(gap.lost_from)} to {_clock(gap.lost_to)}"
    if gap.replay is not None:
        words += f"; {gap.replay} replayed" + (", perhaps not all" if gap.truncated else "")
    return words


def _clock(moment: datetime) -> str:
    local = moment.astimezone()
    return f"{local:%H:%M:%S}.{local.microsecond // 1000:03}"


def _content(payload: Any) -> str:
    if not isinstance(payload, bytes):
        return json_text(payload)
    text = base64.b64encode(payload[: SHOWN_BASE64 * 3 // 4]).decode("ascii")
    return f"{len(payload):,} bytes, base64 {text}" + ("…" if len(payload) > SHOWN_BASE64 * 3 // 4 else "")


def json_text(value: Any, *, ascii_only: bool = False) -> str:
    """
    JSON on one line that nothing in it can end, and that does nothing to a terminal.

    Args:
        value: made of what JSON knows, mappings and datetimes; anything else as its `str`.
        ascii_only: escape all that is not ASCII.
    """
    try:
        text = json.dumps(value, default=_jsonable, ensure_ascii=ascii_only)
    except RecursionError:  # a server's parser may go deeper than Python does
        if not isinstance(value, dict) or "kind" not in value:
            return "(nested too deeply to show)"
        return json_text(
            {name: None if name in DEEP else field for name, field in value.items()} | {"encoding": "none"}
        )
    return UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return value.isoformat() if isinstance(value, datetime) else str(value)

"""
Compares what each socket of an embedded server got with what the recording of a real one shows.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from typing import Any, Protocol

__all__ = ["LOST", "Played", "differences"]

LOST = "a frame the recorder lost"


class Played(Protocol):
    """A recording that was played: frames, closes and answers by socket, both sides."""

    expected: dict[str, list[Any]]
    got: dict[str, list[Any]]
    rules: set[str]
    foreign: list[tuple[str, str, int]]


_UUID = re.compile(r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}")
_STAMP = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)")


def differences(player: Played) -> list[str]:
    """What each socket should have got and did not, or got and should not have; nothing when all is well."""
    names, found = _Names(), []
    labels = sorted(set(player.expected) | set(player.got))
    for changes in (False, True):  # the replies to joins name the bindings, changes repeat these names
        for label in labels:
            wanted = [item for item in player.expected[label] if _source(item).startswith("changes") is changes]
            got = [item for item in player.got[label] if _source(item).startswith("changes") is changes]
            foreign = [(source, index) for who, source, index in player.foreign if who == label]
            some = _compare(wanted, got, names, foreign, player.rules)
            found += [f"{label}: {text}" for text in some]
            if not changes and not foreign and not some:
                _note_order(player.expected[label], player.got[label], player.rules)
    return found


class _Names:
    """Which made-up name of ours stands for which of the recording: one for one."""

    def __init__(self) -> None:
        self._forth: dict[Any, Any] = {}
        self._back: dict[Any, Any] = {}

    def same(self, wanted: list[Any], got: list[Any]) -> bool:
        for ours, theirs in zip(wanted, got, strict=True):
            if isinstance(ours, tuple):  # the ids of the bindings that a change is for
                if len(ours) == 1:
                    self._forth.setdefault(ours[0], theirs[0])  # one that no reply has named
                if sorted(self._forth.get(name, name) for name in ours) != sorted(theirs):
                    return False
            elif self._forth.setdefault(ours, theirs) != theirs or self._back.setdefault(theirs, ours) != ours:
                return False
        return True


def _note_order(wanted: list[Any], got: list[Any], rules: set[str]) -> None:
    lost = LOST in wanted

    def seen(item: Any) -> Any:
        return "kind 4" if lost and _source(item) in ("lost", "kind 4") else _shape(item)[0]

    if [seen(item) for item in wanted] != [seen(item) for item in got]:
        rules.add("order between sources")
    ids = [[name for name in _shape(item)[1] if isinstance(name, tuple)] for item in wanted]
    if any(list(name) != sorted(name) for names in ids for name in names):
        rules.add("order of ids")


def _compare(
    wanted: list[Any], got: list[Any], names: _Names, foreign: list[tuple[str, int]], rules: set[str]
) -> list[str]:
    """Compare in the order of each source, since a channel and what is fanned out to it run in different processes."""
    found = []
    by_source: dict[str, tuple[list[Any], list[Any]]] = defaultdict(lambda: ([], []))
    for item in wanted:
        by_source[_source(item)][0].append(item)
    for item in got:
        by_source[_source(item)][1].append(item)
    for source, index in sorted(foreign, reverse=True):
        if source.startswith("changes") == any(name.startswith("changes") for name in by_source):
            del by_source[source][0][index]
            rules.add("foreign frame")
    lost = len(by_source["lost"][0])
    for source, (ours, theirs) in by_source.items():
        if source in ("lost", "kind 4"):
            continue
        found += _in_order(source, ours, theirs, names)
    if lost:
        rules.add("lost frame")
        binary = [item for item in got if _source(item) == "kind 4"]
        if len(binary) != lost:
            found.append(f"{lost} frames that the recorder lost, {len(binary)} binary ones")
    else:
        found += _in_order("kind 4", *by_source["kind 4"], names)
    return found


def _in_order(source: str, wanted: list[Any], got: list[Any], names: _Names) -> list[str]:
    found = []
    shapes_wanted, shapes_got = [_shape(item) for item in wanted], [_shape(item) for item in got]
    for index in range(max(len(wanted), len(got))):
        ours = shapes_wanted[index] if index < len(wanted) else (None, [])
        theirs = shapes_got[index] if index < len(got) else (None, [])
        if ours[0] != theirs[0]:
            found.append(f"{source} {index}: wanted {_short(ours[0])}, got {_short(theirs[0])}")
        elif not names.same(ours[1], theirs[1]):
            found.append(f"{source} {index}: other names in {_short(ours[0])}: {ours[1]}, {theirs[1]}")
    return found


def _short(shape: Any) -> str:
    return json.dumps(shape, ensure_ascii=False, default=str)[:400]


def _source(item: Any) -> str:
    if item == LOST:
        return "lost"
    if not isinstance(item, tuple) or item[0] == "close" or not isinstance(item[0], bytes):
        return "ends"
    data, binary = item
    if binary:
        return "kind 4" if data[:1] == b"\x04" else "binary"
    try:
        frame = json.loads(data)
    except ValueError:
        return "broken JSON"
    topic, event = (frame[2], frame[3]) if isinstance(frame, list) else (frame["topic"], frame["event"])
    payload = frame[4] if isinstance(frame, list) else frame["payload"]
    if event in ("postgres_changes", "INSERT", "UPDATE", "DELETE"):
        return f"changes of {topic}"  # protocol: to which topic first is left open
    if event == "presence_diff" or "Server requested" in str(payload):
        return f"{event} of {topic}"
    if event == "broadcast" and not payload.get("meta", {}).get("replayed"):
        return f"broadcasts of {topic}"
    if event == "presence_state" or (event == "system" and payload.get("extension") == "postgres_changes"):
        return f"{event} of {topic}"
    return f"channel {topic}"


def _shape(item: Any) -> tuple[Any, list[Any]]:
    """A frame without its made-up names, and these."""
    if not isinstance(item, tuple) or not isinstance(item[0], bytes):
        return item, []
    data, binary = item
    found: list[Any] = []
    if binary:
        return _binary_shape(data, found), found
    # protocol: what vsn 1 sockets get of broken JSON is no JSON itself
    text = data.replace(b":not json", b':"not json"').replace(b'%{error: "unable to parse response"}', b'"an error"')
    return _value(json.loads(text), found, ""), found


def _binary_shape(data: bytes, found: list[Any]) -> Any:
    if data[:1] != b"\x04":
        return data.hex()
    topic, event, metadata = data[1], data[2], data[3]
    rest = data[5:]
    parts = [rest[:topic], rest[topic : topic + event], rest[topic + event : topic + event + metadata]]
    body = rest[topic + event + metadata :]
    shaped = _value(json.loads(parts[2]), found, "") if parts[2] else ""
    try:
        content = _value(json.loads(body), found, "") if data[4] else body.hex()
    except ValueError:
        content = body.hex()
    return [parts[0].decode(), parts[1].decode(), shaped, data[4], content]


def _value(value: Any, found: list[Any], key: str) -> Any:
    if isinstance(value, dict):
        return {_UUID.sub("a uuid", name): _value(item, found, name) for name, item in sorted(value.items())}
    if key == "ids" and isinstance(value, list):  # protocol: in any order
        found.append(tuple(value))
        return ["a binding"] * len(value)
    if key == "postgres_changes" and isinstance(value, list):
        return [_binding(item, found) for item in value]
    if isinstance(value, list):
        return [_value(item, found, key) for item in value]
    if key in ("phx_ref", "phx_ref_prev", "ref") and isinstance(value, str):
        if re.fullmatch(r"[A-Za-z0-9_-]{16}|F[0-9a-f]{8}", value):
            found.append(value)
            return "a phx_ref"
        return value
    if isinstance(value, str):
        if _UUID.fullmatch(value) and not value.startswith("00000000") and key == "id":
            found.append(value)
            return "a uuid"
        if _UUID.fullmatch(value) and key not in ("id", "u", "owner"):
            return "a uuid"
        return re.sub(r"expired \d+ seconds", "expired some seconds", _STAMP.sub("a time", value))
    return value


def _binding(item: Any, found: list[Any]) -> Any:
    if isinstance(item, dict) and isinstance(item.get("id"), int):
        found.append(item["id"])
        item = {**item, "id": "a binding"}
    return item

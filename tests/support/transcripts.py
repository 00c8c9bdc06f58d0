"""
Recordings of a real Realtime server, `tests/transcripts/`: one JSON object a line, in the order of time.

Keys: `t` seconds; `dir`, see below; `c` the client socket. `meta` scenario · `note` words · `open`, `open_failed`,
`http_reject` handshakes · `>` and `<` frames of client and server (`op` text with `raw`, or bin with `hex`) · `>close`,
`close` · `http` a REST call · `sql` a statement run on the database · `server` something done to the server itself ·
`cb` a callback of an official client.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

__all__ = ["NAMES", "frame_of", "load"]

FOLDER = pathlib.Path(__file__).parent.parent / "transcripts"

#: Every recording, by name.
NAMES = sorted(path.name.removesuffix(".jsonl") for path in FOLDER.glob("*.jsonl"))


def load(name: str) -> list[dict[str, Any]]:
    """The lines of a recording."""
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]


def frame_of(line: dict[str, Any]) -> tuple[bytes, bool] | None:
    """The payload of a ``>`` or ``<`` line, and whether the frame is binary; None where the recorder lost the bytes."""
    if "hex" not in line:
        return line["raw"].encode(), False
    if line["hex"] == "[object ArrayBuffer]":  # nine frames of the official JavaScript client's recording
        return None
    return bytes.fromhex(line["hex"]), True

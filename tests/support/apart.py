"""What a session says, or a serializer, with each broadcast by itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rtpool.protocol.messages import Broadcasts

__all__ = ["apart"]


def apart(said: Iterable[Any]) -> list[Any]:
    """All of it in order, each of the broadcasts that are told together as a message."""
    return [each for one in said for each in (one.messages() if isinstance(one, Broadcasts) else (one,))]

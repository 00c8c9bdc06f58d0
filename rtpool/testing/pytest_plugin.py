"""
pytest fixtures, found by pytest by itself where rtpool is installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from rtpool.testing.server import RealtimeServer

__all__ = ["realtime_server"]


@pytest.fixture
def realtime_server() -> Iterator[RealtimeServer]:
    """
    A running `rtpool.testing.RealtimeServer`, new for each test.
    """
    try:
        from rtpool.testing.server import RealtimeServer
    except ImportError as error:
        raise RuntimeError("the fixture realtime_server needs websockets: pip install 'rtpool[testing]'") from error
    with RealtimeServer() as server:
        yield server

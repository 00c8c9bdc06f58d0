"""What every test of the doctor has."""

from __future__ import annotations

import pytest

from rtpool.doctor import connection


@pytest.fixture(autouse=True)
def heartbeats_in_quick_succession(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of an examination of a healthy server is the time between them."""
    monkeypatch.setattr(connection, "BETWEEN", 0.005)

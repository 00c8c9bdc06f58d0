"""The extension by Flask's conventions."""

from __future__ import annotations

from flask import Flask

from rtpool.flask import Realtime
from rtpool.testing import RealtimeServer
from tests.flask.conftest import state_of


def test_nothing_connects_until_first_use(app: Flask, realtime: Realtime, server: RealtimeServer) -> None:
    assert not state_of(app).has_pool
    with app.app_context():
        assert not server.connections
        realtime.pool.connect(10)
        assert len(server.connections) == 1

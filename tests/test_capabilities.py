"""Supabase's capability matrix for its SDKs: the README has every row, and each names a test that is there."""

from __future__ import annotations

import pathlib
import re

import pytest

import rtpool
from rtpool.testing import RealtimeServer
from tests.support.recorder import Recorder

ROOT = pathlib.Path(__file__).parent.parent

#: supabase/sdk's matrix for Realtime, as of November 2026.
MATRIX = {
    "channel": "broadcast_http broadcast subscribe unsubscribe",
    "client": "channel connect connection_state disconnect get_channels listen_heartbeats remove_all_channels "
    "remove_channel set_auth_token",
    "configuration": "access_token_callback binary_protocol custom_logger custom_websocket_transport "
    "deferred_disconnect heartbeat_interval reconnect_backoff",
    "presence": "presence_key presence_state track untrack",
    "subscriptions": "broadcast broadcast_ack broadcast_replay broadcast_self postgres_changes "
    "postgres_changes_filter postgres_changes_multiple_filters private_channel subscribe_presence",
}
CAPABILITIES = [f"{area}.{name}" for area, names in MATRIX.items() for name in names.split()]


def rows() -> dict[str, str]:
    """The README's rows: the test of each capability."""
    section = (ROOT / "README.md").read_text().split("## Every capability")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `([a-z_.]+)` \|.*\| `(tests/[\w/]+\.py::\w+)` \|$", section, re.MULTILINE))


def test_the_readme_has_all_thirty_three_rows() -> None:
    assert len(CAPABILITIES) == 33
    assert sorted(rows()) == sorted(CAPABILITIES)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_row_names_a_test_that_is_there(capability: str) -> None:
    path, name = rows()[capability].split("::")
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE), (path, name)


def test_connect_opens_one_connection_without_any_channel(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    statuses = Recorder()
    pool.on_status(statuses)
    assert pool.stats().connection_status == "idle"
    pool.connect()
    server.wait_for(lambda s: len(s.connections) == 1)
    assert pool.stats().connection_status == "connected"
    pool.connect()
    assert server.connections_total == 1
    assert [s.status for s in statuses.wait(2)] == ["connecting", "connected"]
    assert pool.close()
    assert pool.stats().connection_status == "closed"
    assert [s.status for s in statuses.wait(3)][-1] == "closed"


def test_the_subscribed_channels_are_listed_and_all_leave_at_once(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    made = [pool.channel(f"topic-{n}").subscribe() for n in range(3)]
    pool.channel("never subscribed")
    assert pool.channels() == made
    made[1].unsubscribe()
    assert pool.channels() == [made[0], made[2]]
    pool.unsubscribe_all()
    assert pool.channels() == []
    server.wait_for(lambda s: not any(c.topics for c in s.connections))

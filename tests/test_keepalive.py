"""The kernel is told to notice a peer that is gone, in the heartbeat's time."""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
from typing import Any

import pytest
import trustme

import rtpool
from rtpool.engine.streams import keep_alive
from rtpool.testing import RealtimeServer
from tests.conftest import MakePool
from tests.support.peer import Peer, relaying, silence, upgrading
from tests.support.proxies import proxy
from tests.support.ways import connect, serving, trusting, works

linux = pytest.mark.skipif(sys.platform != "linux", reason="names and limits of Linux")


def kept(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))


def settings(sock: socket.socket) -> list[int]:
    names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
    return [sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names]


@linux
@pytest.mark.parametrize(
    ("interval", "timeout", "expected"),
    [
        (25.0, 10.0, [25, 3, 3, 32_500]),
        (5.0, 60.0, [5, 20, 3, 55_000]),
        (2.0, 2.5, [2, 1, 2, 3_500]),
        (1.9, 1.0, [1, 1, 1, 1_500]),
        (0.05, 0.1, [1, 1, 1, 1_500]),  # there is nothing shorter
        (1e9, 1e9, [32_767, 32_767, 3, 114_684_500]),  # nor longer
    ],
)
def test_the_options_follow_from_the_heartbeats(interval: float, timeout: float, expected: list[int]) -> None:
    with Peer(upgrading()) as peer:
        url = f"http://127.0.0.1:{peer.port}"
        with connect(url, heartbeat_interval=interval, heartbeat_timeout=timeout) as sock:
            assert kept(sock)
            assert settings(sock) == expected
            idle, between, count, patience = expected
            if interval >= 1 and timeout >= 1:
                assert idle + count * between <= interval + timeout
            assert idle + (count - 1) * between < patience / 1000 < idle + count * between


@linux
def test_every_way_to_a_server_by_tcp_has_them(
    server: RealtimeServer, authority: trustme.CA, make_pool: MakePool, ipv6: str
) -> None:
    def own_dial(host: str, port: int, seconds: float) -> socket.socket:
        return socket.create_connection(("127.0.0.1", server.port), seconds)

    with (
        RealtimeServer(ssl_context=serving(authority, "127.0.0.1")) as secure,
        RealtimeServer(host=ipv6) as six,
        proxy("http") as between,
    ):
        ways: list[tuple[RealtimeServer, dict[str, Any]]] = [
            (server, {}),
            (six, {}),
            (secure, {"ssl_context": trusting(authority)}),
            (server, {"proxy": f"http://127.0.0.1:{between.port}"}),
            (server, {"dial": own_dial}),
        ]
        for to, options in ways:
            pool = make_pool(to.url, api_key=to.api_key, heartbeat_interval=8.0, heartbeat_timeout=6.0, **options)
            works(pool)
            (connection,) = pool._engine.coordinator.connections.all
            assert connection.transport is not None
            assert settings(connection.transport.sock) == [8, 2, 3, 13_000]
            pool.close()


def test_a_unix_socket_is_left_alone(server: RealtimeServer, make_pool: MakePool, tmp_path: Any) -> None:
    path = str(tmp_path / "rt.sock")
    touched: list[tuple[object, ...]] = []

    class Unix(socket.socket):
        def setsockopt(self, *option: Any) -> None:
            touched.append(option)

    def by_unix(host: str, port: int, seconds: float) -> socket.socket:
        sock = Unix(socket.AF_UNIX)
        sock.connect(path)
        return sock

    with Peer(relaying(server.port), path=path):
        pool = make_pool("http://server.example", dial=by_unix)
        works(pool)
        assert pool.close()  # before nobody listens there any more, and what is dialled is in nobody's hands
    assert not touched


def test_a_system_that_refuses_them_harms_nothing(
    server: RealtimeServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    class Stubborn(socket.socket):
        def setsockopt(self, *option: Any) -> None:
            raise OSError("not here")

    def by_hand(host: str, port: int, seconds: float) -> socket.socket:
        sock = Stubborn()
        sock.connect(("127.0.0.1", server.port))
        return sock

    caplog.set_level(logging.DEBUG, "rtpool")
    works(make_pool(dial=by_hand))
    lines = [record for record in caplog.records if "cannot be set" in record.getMessage()]
    assert lines
    assert {record.levelno for record in lines} == {logging.DEBUG}


def test_what_a_system_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT", "TCP_KEEPALIVE"):
        monkeypatch.delattr(socket, name, raising=False)
    with contextlib.ExitStack() as stack:
        peer = stack.enter_context(Peer(silence))
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", peer.port)))
        keep_alive(sock, rtpool.PoolOptions())
        assert kept(sock)


@linux
def test_macos_has_another_name_for_the_first_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "TCP_KEEPALIVE", socket.TCP_KEEPIDLE, raising=False)
    monkeypatch.delattr(socket, "TCP_KEEPIDLE")
    with Peer(silence) as peer, socket.create_connection(("127.0.0.1", peer.port)) as sock:
        keep_alive(sock, rtpool.PoolOptions(heartbeat_interval=77.0))
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPALIVE) == 77

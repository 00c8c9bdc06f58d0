"""Faults of a whole server: gone, deaf, or swallowed by the network, and back on the same port."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator

import pytest

from rtpool.testing import RealtimeServer, faults
from tests.support.plain import FIN, RST, Plain

Connect = Callable[[], Plain]


@pytest.fixture
def connect(server: RealtimeServer) -> Iterator[Connect]:
    made: list[Plain] = []

    def make() -> Plain:
        before = server.connections_total
        made.append(Plain(server))
        assert made[-1].open().startswith(b"HTTP/1.1 101 ")
        server.wait_for(lambda s: s.connections_total > before)
        return made[-1]

    yield make
    for plain in made:
        plain.sock.close()


def test_a_restarted_server_is_refused_meanwhile_and_then_there_on_the_same_port(
    server: RealtimeServer, connect: Connect
) -> None:
    plain, port = connect(), server.port
    with server.inject(faults.Restart()) as injection:
        assert injection.strikes == 1
        assert plain.rest()[1] in (FIN, RST)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=10)
    assert server.port == port
    connect().heartbeat()


def test_faults_outlive_a_restart(server: RealtimeServer) -> None:
    injection = server.inject(faults.Refuse(503))
    with server.inject(faults.Restart()):
        pass
    with Plain(server) as plain:
        assert plain.open().startswith(b"HTTP/1.1 503")
    assert injection.strikes == 1


@pytest.mark.parametrize("secure", [True, False])
def test_a_slow_handshake_waits_until_it_is_undone_and_open_sockets_live(
    certificates: tuple[ssl.SSLContext, ssl.SSLContext], secure: bool
) -> None:
    serving, trusting = certificates if secure else (None, None)
    with RealtimeServer(ssl_context=serving) as server, Plain(server, trusting) as before:
        before.open()
        heads: list[bytes] = []

        def dial() -> None:
            with Plain(server, trusting) as late:
                heads.append(late.open())

        for round_ in (1, 2):
            with server.inject(faults.SlowTls()) as injection:
                dialing = [threading.Thread(target=dial) for _ in range(3)]
                for thread in dialing:
                    thread.start()
                injection.wait()
                before.heartbeat()
                assert before.message()[1] == "hb"
                assert len(heads) == 3 * (round_ - 1)
            for thread in dialing:
                thread.join(10)
            assert len(heads) == 3 * round_


def test_a_black_hole_takes_packets_in_silence_and_gives_everything_back(
    server: RealtimeServer, connect: Connect
) -> None:
    before = connect()
    with server.inject(faults.BlackHole()) as injection:
        assert injection.strikes == 1
        with pytest.raises(TimeoutError):
            socket.create_connection(("127.0.0.1", server.port), timeout=0.3)
        before.heartbeat()
        assert before.nothing_comes()
    assert before.message()[1] == "hb"
    connect()
    server.wait_for(lambda s: s.connections_total == 2)


def test_a_black_hole_may_spare_the_open_sockets_and_end_with_the_server(
    server: RealtimeServer, connect: Connect
) -> None:
    plain = connect()
    with server.inject(faults.BlackHole(sockets=False)):
        plain.heartbeat()
        assert plain.message()[1] == "hb"
        with server.inject(faults.Restart()):
            pass
        connect()  # on another port than the one that fell in
    connect()

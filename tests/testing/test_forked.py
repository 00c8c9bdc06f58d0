"""A server in a forked child: it is the parent's, and says so."""

from __future__ import annotations

import os
import socket

import pytest

import rtpool
from rtpool.testing import RealtimeServer
from tests.support.forking import Child, ask
from tests.support.wait import wait_until

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")


def test_a_child_is_told_that_the_server_is_the_parents_and_may_leave_its_block(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    pool.channel("room").subscribe()

    def in_child() -> list[str]:
        told = []
        for call in (lambda: server.members("room"), lambda: server.broadcast("room", "x", {}), server.start):
            with pytest.raises(RuntimeError) as caught:
                call()
            told.append(str(caught.value))
        server.close()
        return told

    assert ask(in_child) == ["the server runs in the parent of this process and can be asked only there"] * 3
    assert server.members("room") == 1


def test_a_child_holds_neither_the_port_nor_a_connection_of_its_parents_server(
    server: RealtimeServer,
) -> None:
    client = socket.create_connection(("127.0.0.1", server.port))
    wait_until(lambda: server._streams)
    with client, Child(lambda link: link.wait()) as forked:
        server.close()
        client.settimeout(10)
        assert client.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port)).close()
        forked.go()

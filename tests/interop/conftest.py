"""The official clients, started once for all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from rtpool.testing import RealtimeServer
from tests.interop.driver import Driver, Peer
from tests.interop.install import COMMANDS, missing

#: The official clients by name: their process, and the serializer version they speak.
CLIENTS = {"js": ("js", "2.0.0"), "js_vsn1": ("js", "1.0.0"), "py": ("py", "1.0.0")}

Connect = Callable[..., Peer]


@pytest.fixture(scope="session")
def drivers() -> Iterator[dict[str, Driver | str]]:
    """The running processes by name, or what has to be done to have them."""
    started = {name: missing(name) or Driver(name, command) for name, command in COMMANDS.items()}
    yield started
    for driver in started.values():
        if isinstance(driver, Driver):
            driver.close()


@pytest.fixture
def connect(drivers: dict[str, Driver | str], server: RealtimeServer) -> Iterator[Connect]:
    """Official clients on the test's server; gone at the end."""
    peers: list[Peer] = []

    def make(client: str, *, url: str = server.url, key: str = server.api_key, **options: float) -> Peer:
        __tracebackhide__ = True  # what is skipped is the test, and pytest names its line
        name, vsn = CLIENTS[client]
        driver = drivers[name]
        if isinstance(driver, str):
            if os.environ.get("RTPOOL_REQUIRE_INTEROP") == "1":
                pytest.fail(driver)
            pytest.skip(driver)
        peers.append(driver.connect(f"{url.replace('http', 'ws', 1)}/realtime/v1", key, vsn=vsn, **options))
        return peers[-1]

    yield make
    for peer in peers:
        peer.driver.forget(peer)


@pytest.fixture(params=list(CLIENTS))
def client(request: pytest.FixtureRequest) -> str:
    """Each official client in turn, the JavaScript client in both serializer versions."""
    name: str = request.param
    return name


@pytest.fixture
def peer(connect: Connect, client: str) -> Peer:
    """A client of the kind that is in turn."""
    return connect(client)

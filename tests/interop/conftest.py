"""The official clients, started once for all tests of this folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator

import pytest

from rtpool.testing import RealtimeServer
from tests.interop.driver import Driver, Peer
from tests.interop.install import COMMAND, JS, NODE_PACKAGE, PY, PYTHON

#: The official clients by name: their process, and the serializer version they speak.
CLIENTS = {"js": ("js", "2.0.0"), "js_vsn1": ("js", "1.0.0"), "py": ("py", "1.0.0")}

Connect = Callable[..., Peer]


def missing_js() -> str | None:
    if shutil.which("node") is None:
        return f"the JavaScript client needs node and npm; install them and run: {COMMAND}"
    return None if NODE_PACKAGE.is_dir() else f"the JavaScript client is not installed; run: {COMMAND}"


def missing_py() -> str | None:
    return None if PYTHON.exists() else f"the Python client is not installed; run: {COMMAND}"


@pytest.fixture(scope="session")
def drivers() -> Iterator[dict[str, Driver | str]]:
    """The running processes by name, or what has to be done to have them."""
    started: dict[str, Driver | str] = {}
    started["js"] = missing_js() or Driver("js", ["node", str(JS / "client.js")])
    started["py"] = missing_py() or Driver("py", [str(PYTHON), str(PY / "client.py")])
    yield started
    for driver in started.values():
        if isinstance(driver, Driver):
            driver.close()


@pytest.fixture
def connect(drivers: dict[str, Driver | str], server: RealtimeServer) -> Iterator[Connect]:
    """Official clients on the test's server; gone at the end."""
    peers: list[Peer] = []

    def make(client: str, **options: float) -> Peer:
        name, vsn = CLIENTS[client]
        driver = drivers[name]
        if isinstance(driver, str):
            if os.environ.get("RTPOOL_REQUIRE_INTEROP") == "1":
                pytest.fail(driver)
            pytest.skip(driver)
        url = f"{server.url.replace('http', 'ws', 1)}/realtime/v1"
        peers.append(driver.connect(url, server.api_key, vsn=vsn, **options))
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

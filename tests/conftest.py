"""What every test is watched for, and what most of them use."""

from __future__ import annotations

import gc
import os
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import hypothesis
import pytest
import trustme

import rtpool
from rtpool.engine import engine as engine_module
from rtpool.testing import RealtimeServer
from tests.support import checking_lock, secrets_watch
from tests.support.wait import wait_until

checking_lock.install()
secrets_watch.install()

hypothesis.settings.register_profile(  # a busy machine is no failure
    "default", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("examples", deadline=None, phases=[hypothesis.Phase.explicit])
hypothesis.settings.register_profile("mutation", deadline=None, derandomize=True, database=None, max_examples=30)
hypothesis.settings.load_profile("default")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job ignores Ctrl-C, and so would the programs that the tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["pytester"]

Figure = Callable[[str], None]
_FIGURES: list[str] = []


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Figure:
    """Tells what a test measured; shown at the end of the run, whatever is captured and whichever process measured."""
    return lambda text: request.node.user_properties.append(("figure", f"{request.node.name}: {text}"))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "teardown":
        _FIGURES.extend(str(text) for name, text in report.user_properties if name == "figure")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _FIGURES:
        terminalreporter.section("figures")
        for text in _FIGURES:
            terminalreporter.write_line(text)


@pytest.fixture(autouse=True, scope="module")
def the_collector_looks_at_a_module_alone() -> None:
    """Spares it what was there before and stays: after each test that took most of the suite's processor time."""
    gc.collect()
    gc.freeze()


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


@pytest.fixture(autouse=True)
def locks_are_held_well() -> Iterator[None]:
    """Fails a test in which a thread that holds a lock of rtpool takes another, waits, or enters user code."""
    yield
    violations = checking_lock.take_violations()
    assert not violations, "\n".join(violations)


@pytest.fixture(autouse=True)
def secrets_stay_secret() -> Iterator[None]:
    """Fails a test in which a key or token can be read where none belongs."""
    secrets_watch.watch.begin()
    yield
    secrets_watch.watch.end()
    leaks = secrets_watch.watch.take_leaks()
    assert not leaks, "\n".join(leaks)


@pytest.fixture(autouse=True)
def nothing_is_left(locks_are_held_well: None, secrets_stay_secret: None) -> Iterator[None]:
    """Fails a test that leaves a thread, a descriptor or an open pool behind."""
    threads_before, descriptors_before = set(threading.enumerate()), _descriptors()
    yield
    gc.collect()
    assert not list(engine_module._running), "a pool is still open"

    def extra() -> list[str]:
        return [t.name for t in threading.enumerate() if t not in threads_before]

    wait_until(lambda: not extra(), f"threads left: {extra()}", cap=5)
    wait_until(lambda: _descriptors() <= descriptors_before, "descriptors left", cap=5)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    for name, text in report.sections:
        told = name in (f"Captured stdout {report.when}", f"Captured stderr {report.when}")
        if told and secrets_watch.watch.shows_secret(text):
            report.outcome, report.longrepr = "failed", f"{name} shows a secret: {text}"
    return report


@pytest.fixture
def server(realtime_server: RealtimeServer) -> RealtimeServer:
    return realtime_server


MakePool = Callable[..., rtpool.RealtimePool]


@pytest.fixture
def make_pool(server: RealtimeServer) -> Iterator[MakePool]:
    """Pools on the test's server, with fast reconnects; closed at the end, in time."""
    pools = []

    def make(url: str | None = None, **options: Any) -> rtpool.RealtimePool:
        settings: dict[str, Any] = {"api_key": server.api_key, "base_delay": 0.05, "max_joins_per_second": 10_000}
        settings["stable_after"] = 0.0  # tests break connections far more often than a crash loop
        pools.append(rtpool.RealtimePool(url or server.url, **{**settings, **options}))
        return pools[-1]

    yield make
    for pool in pools:
        secrets_watch.watch.look_at_pool(pool)
        assert pool.close(10), "close() was not in time"


@pytest.fixture
def pool(make_pool: MakePool) -> rtpool.RealtimePool:
    return make_pool()


@pytest.fixture(scope="session")
def certificates() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts of a TLS server for 127.0.0.1 and of a client that trusts it."""
    authority = trustme.CA()
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(serving)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return serving, trusting


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """Signs certificates for tests."""
    return trustme.CA()


@pytest.fixture
def ipv6() -> str:
    """An IPv6 address of this machine."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"this machine has no IPv6 loopback: {error}")
    return "::1"

"""
A real Chromium, headless, and Flask apps for it to look at.

playwright's loop runs on the main thread for as long as it is started, and nobody else may run one there then: so it is
started for this package's tests, not for the session. A test that runs a loop itself belongs into another package.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from rtpool.testing import RealtimeServer
from tests.servers.conftest import ROOT, Program, need
from tests.support.wait import CAP

if TYPE_CHECKING:
    from flask import Flask
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

#: It calls nobody but the test's own server, and runs as root where the tests do.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

#: What Chromium itself says in the console of requests that fail: the tests stop servers on purpose.
OF_THE_NETWORK = ("Failed to load resource", "net::ERR_")


def find_chromium() -> str | None:
    """Where it is: RTPOOL_CHROMIUM, or the first on the path."""
    return os.environ.get("RTPOOL_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def chromium() -> str:
    """Its path. Skips where there is none; fails where all must run."""
    found = find_chromium()
    if found is None:
        words = "there is no Chromium; install one, or say in RTPOOL_CHROMIUM where it is"
        if os.environ.get("RTPOOL_REQUIRE_INTEROP") == "1":
            pytest.fail(words)
        pytest.skip(words)
    return found


def expect(subject: Any) -> Any:
    """playwright's assertions, which wait; as long as any other test."""
    from playwright.sync_api import expect

    expect.set_options(timeout=CAP * 1000)
    return expect(subject)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """The browser of all tests here; what one of them sees is apart from the others by `open_page`."""
    for package in ("flask", "playwright"):
        need(package)
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves an app from threads of this process and returns its URL; the test closes what its app has opened."""
    from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None:
            """Nobody reads it."""

    servers: list[tuple[BaseWSGIServer, threading.Thread]] = []

    def start(app: Flask, port: int = 0) -> str:
        server = make_server("127.0.0.1", port, app, threaded=True, request_handler=Quiet)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="web-server")
        servers.append((server, thread))
        thread.start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join(CAP)
        server.server_close()


#: So that nobody waits long for what is back.
QUICK = {"FLASK_RTPOOL_BASE_DELAY": "0.05", "FLASK_RTPOOL_MAX_DELAY": "0.2", "FLASK_RTPOOL_MAX_RETRIES": "1000"}

#: What the development server says of a connection that Ctrl-C met while its thread started: `socketserver` closes it
#: then under that thread's hands.
CUT_OFF = re.compile(r"^-{40}\nException occurred .*\n(?:.*\n){1,30}?OSError: \[Errno 9\].*\n-{40}$", re.MULTILINE)


class Served:
    """
    An example app in a process of its own, on the test's server; `stop` and `start` it as often as you like.

    Attributes:
        url: where it is, every time.
    """

    def __init__(self, name: str, server: RealtimeServer) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._file = ROOT / "examples" / name / "app.py"
        theirs = {"SUPABASE_URL": server.url, "SUPABASE_KEY": server.api_key, "PORT": str(port)}
        self._environment = {**os.environ, **QUICK, **theirs, "PYTHONPATH": str(ROOT)}
        self._program: Program | None = None

    def start(self) -> None:
        """Run it; returns when it answers."""
        program = Program([sys.executable, "-W", "error", str(self._file)], self._environment, ROOT)
        self._program = program
        program.wait_for(lambda: "Running on" in program.err(), "it serves")

    def stop(self, *, number: signal.Signals = signal.SIGKILL) -> None:
        """End it; what it said is looked at only when it was asked to end."""
        program, self._program = self._program, None
        if program is None:
            return
        try:
            if number is signal.SIGKILL:
                return
            program.process.send_signal(number)
            assert program.process.wait(CAP) == 0, program.err()
            assert "Traceback" not in CUT_OFF.sub("", program.err()), program.err()
        finally:
            program.kill()


RunExample = Callable[[str], Served]


@pytest.fixture
def run_example(server: RealtimeServer) -> Iterator[RunExample]:
    """Runs the app of a folder of examples; it must end well."""
    running: list[Served] = []

    def run(name: str) -> Served:
        need("flask")
        running.append(Served(name, server))
        running[-1].start()
        return running[-1]

    yield run
    try:
        for served in running:
            served.stop(number=signal.SIGINT)
    finally:
        for served in running:
            served.stop()


class OpenPage:
    """
    Opens pages, each as another visitor with cookies and storage of its own.

    Attributes:
        complaints: what scripts raised and the console showed as an error, but for the network's; so also what a
            Content-Security-Policy refused. A test that leaves one here fails.
    """

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._contexts: list[BrowserContext] = []
        self.complaints: list[str] = []

    def __call__(self, *, width: int = 1280, height: int = 900, dark: bool = False, **settings: Any) -> Page:
        """Open one; sizes in CSS pixels, and whatever else playwright's `new_context` takes."""
        context = self._browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", **settings
        )
        self._contexts.append(context)
        context.set_default_timeout(CAP * 1000)
        page = context.new_page()
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._listen)
        return page

    def _listen(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not any(words in message.text for words in OF_THE_NETWORK):
            self.complaints.append(f"{message.text} ({message.location})")

    def close(self) -> None:
        """Close them all."""
        for context in self._contexts:
            context.close()


@pytest.fixture
def open_page(browser: Browser, serve: Serve, run_example: RunExample) -> Iterator[OpenPage]:
    """Pages of several visitors; closed before what they look at, which may mind ending in the middle of a request."""
    pages = OpenPage(browser)
    yield pages
    pages.close()
    assert not pages.complaints, "\n".join(pages.complaints)


@pytest.fixture
def page(open_page: OpenPage) -> Page:
    """A page of one visitor, 1,280 pixels wide, light."""
    return open_page()

"""
Pictures of the pages, on a phone and on a desk, light and dark: ``python -m tests.browser.screenshots [FOLDER]``.

They go into build/screenshots, which git ignores.
"""

from __future__ import annotations

import contextlib
import pathlib
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from flask import Flask
from playwright.sync_api import sync_playwright
from werkzeug.serving import make_server

from rtpool.flask import Realtime
from rtpool.testing import RealtimeServer
from rtpool.testing.faults import Restart
from tests.browser.conftest import ARGUMENTS, OpenPage, Served, expect, find_chromium
from tests.browser.test_car_rental import FIAT, VW, admin, example, renter
from tests.browser.test_presence_board import visitor
from tests.servers.conftest import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Page

SCREENS = [
    {"width": width, "height": height, "dark": dark}
    for width, height in ((390, 844), (1280, 900))
    for dark in (False, True)
]


class Album:
    """Takes pictures, into a folder."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def take(self, page: Page, name: str, screen: dict[str, Any]) -> None:
        """The whole page, however long, when nothing moves any more."""
        page.wait_for_function("() => document.getAnimations().every((each) => each.playState === 'finished')")
        path = self._folder / f"{name}-{screen['width']}-{'dark' if screen['dark'] else 'light'}.png"
        page.screenshot(path=path, full_page=True)
        print(path)


@contextlib.contextmanager
def served(name: str, server: RealtimeServer) -> Iterator[str]:
    """The URL of an example."""
    app = Served(name, server)
    try:
        app.start()
        yield app.url
    finally:
        app.stop()


def car_rental(album: Album, open_page: OpenPage) -> None:
    """A renter, the door, an admin; and what both see while the service is away."""
    with RealtimeServer() as server:
        example("demo").keep_cars(server)
        cars = example("cars").Cars(server.url, server.api_key)
        with served("car_rental", server) as url:
            for screen in SCREENS:
                door = open_page(**screen)
                door.goto(f"{url}/admin")
                album.take(door, "rental-door", screen)
                page, watcher = renter(open_page, url, FIAT, VW, **screen), admin(open_page, url, **screen)
                for status in ("reserved", "rented", "available"):
                    cars.set_status(1, status)
                    expect(page.locator("[data-car='1'] .status")).to_have_text(status)
                album.take(page, "rental-renter", screen)
                album.take(watcher, "rental-admin", screen)
                with server.inject(Restart()):
                    expect(page.locator("#notice")).to_contain_text("paused")
                    album.take(page, "rental-away", screen)


def presence_board(album: Album, open_page: OpenPage) -> None:
    """The door, and a board with several people."""
    with RealtimeServer() as server, served("presence_board", server) as url:
        for screen in SCREENS:
            door = open_page(**screen)
            door.goto(url)
            album.take(door, "board-door", screen)
            pages = [
                visitor(open_page, url, name, **screen) for name in ("Ada Lindgren", "Noor", "Marek Novak", "Élodie")
            ]
            expect(pages[1].locator(".people li")).to_have_count(len(pages))
            album.take(pages[1], "board", screen)
            for page in pages:
                page.close()


def debug_page(album: Album, open_page: OpenPage) -> None:
    """What the debug page shows while all is well, and while it is not; and what it asks of strangers."""
    over = threading.Event()
    with RealtimeServer() as server, contextlib.ExitStack() as stack:
        app = Flask("car_rental")
        app.debug = True
        app.config.update(RTPOOL_URL=server.url, RTPOOL_API_KEY=server.api_key)
        realtime = Realtime(app)
        with app.app_context():
            stack.callback(app.extensions["rtpool"].close)
            stack.callback(over.set)
            pool = realtime.pool
        channels = [pool.channel(name, receive_own=True) for name in ("cars", "rides:berlin", "support:4711")]
        for channel in channels:
            channel.on_broadcast("*", id).subscribe()
        app.add_url_rule("/stream", view_func=lambda: realtime.stream("cars"))
        url = stack.enter_context(web(app))
        for screen in SCREENS:
            page = open_page(**screen)
            page.goto(f"{url}/_rtpool/")
            expect(page.locator("#live")).to_have_text("live")
            page.evaluate("() => void new EventSource('/stream')")
            expect(page.locator("[data-table=streams] tbody")).to_contain_text("cars")
            for number in range(40):
                channels[number % 2].send_broadcast("moved", {"number": number}).result(5)
            expect(page.locator("[data-label='ms/call']").first).not_to_have_text("-")
            page.get_by_role("button", name="Check lifecycle").click()
            expect(page.locator("#result")).to_contain_text("nothing of it is left")
            album.take(page, "debug-well", screen)
            page.close()
        pool.channel("reports", receive_own=True).on_broadcast("*", lambda _: over.wait(120)).subscribe()
        pool.channel("invoices", receive_own=True).on_broadcast("*", lambda _: 1 / 0).subscribe()
        pool.channel("drivers", private=True, access_token="not a token").subscribe(wait=False)
        for channel in pool.channels()[-3:-1]:
            channel.send_broadcast("made", {}).result(5)
        for screen in SCREENS:
            page = open_page(**screen)
            page.goto(f"{url}/_rtpool/")
            expect(page.locator("#issue-list")).to_contain_text("RTP009")
            page.get_by_text("Where it is").first.click()
            album.take(page, "debug-trouble", screen)
            page.close()
        app.config["RTPOOL_DEBUG_TOKEN"] = "of sixteen characters or more"
        for screen in SCREENS:
            page = open_page(**screen)
            page.goto(f"{url}/_rtpool/")
            album.take(page, "debug-door", screen)
            page.close()


@contextlib.contextmanager
def web(app: Flask) -> Iterator[str]:
    """The URL of an app in this process."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def main() -> None:
    """Take them all."""
    album = Album(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "screenshots")
    path = find_chromium()
    if path is None:
        raise SystemExit("there is no Chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        for scene in (car_rental, presence_board, debug_page):
            pages = OpenPage(browser)
            scene(album, pages)
            pages.close()
        browser.close()


if __name__ == "__main__":
    main()

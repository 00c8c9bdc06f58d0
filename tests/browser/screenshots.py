"""
Pictures of the pages, on a phone and on a desk, light and dark: ``python -m tests.browser.screenshots [FOLDER]``.

They go into build/screenshots, which git ignores.
"""

from __future__ import annotations

import contextlib
import pathlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from playwright.sync_api import sync_playwright

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


def main() -> None:
    """Take them all."""
    album = Album(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "screenshots")
    path = find_chromium()
    if path is None:
        raise SystemExit("there is no Chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        for scene in (car_rental, presence_board):
            pages = OpenPage(browser)
            scene(album, pages)
            pages.close()
        browser.close()


if __name__ == "__main__":
    main()

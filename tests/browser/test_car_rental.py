"""The example of a car rental, as its renters and admins see it."""

from __future__ import annotations

import importlib.util
import itertools
import time
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from rtpool.testing import RealtimeServer
from rtpool.testing.faults import Restart
from tests.browser.conftest import OpenPage, RunExample, Served, expect
from tests.browser.looks import assert_for_everybody
from tests.conftest import Figure
from tests.servers.conftest import ROOT
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Page

FIAT, VW, ZOE = "Fiat 500 Electric", "VW ID.3", "Renault Zoe"

#: When a car's status was shown, by the clock that the test has too.
WATCH = """
    () => {
        window.seen = [];
        new MutationObserver((changes) => {
            for (const { target } of changes) window.seen.push([target.textContent, Date.now()]);
        }).observe(document.querySelector("[data-car='1'] .status"), { childList: true });
    }
"""

#: What the page's stream tells, and not only what the page shows of it.
OVERHEAR = """
    () => {
        window.heard = [];
        const source = new EventSource(document.querySelector("main").dataset.stream);
        source.addEventListener("change", (event) => window.heard.push(JSON.parse(event.data)));
        return new Promise((resolve) => { source.onopen = () => resolve(null); });
    }
"""

Rows = dict[int, dict[str, Any]]


def example(name: str) -> ModuleType:
    """A module of the example's."""
    spec = importlib.util.spec_from_file_location(f"car_rental_{name}", ROOT / "examples" / "car_rental" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def rows(server: RealtimeServer) -> Rows:
    """The database."""
    found: Rows = example("demo").keep_cars(server)
    return found


@pytest.fixture
def rental(rows: Rows, run_example: RunExample) -> Served:
    return run_example("car_rental")


Set = Callable[[int, str], None]


@pytest.fixture
def set_status(server: RealtimeServer, rows: Rows) -> Set:
    """Changes a car in the database, as others do."""
    cars = example("cars").Cars(server.url, server.api_key)

    def change(car: int, status: str) -> None:
        assert cars.set_status(car, status)

    return change


def renter(open_page: OpenPage, url: str, *models: str, **screen: Any) -> Page:
    """The page of somebody who follows these."""
    page = open_page(**screen)
    page.goto(url)
    for model in models:
        page.get_by_role("button", name=f"Follow {model}", exact=True).click()
    expect(page.locator("#standing")).to_have_text("Live")
    return page


def admin(open_page: OpenPage, url: str, **screen: Any) -> Page:
    page = open_page(**screen)
    page.goto(f"{url}/admin")
    page.get_by_label("Password").fill("demo")
    page.get_by_role("button", name="Enter").click()
    expect(page.locator("#standing")).to_have_text("Live")
    return page


def status(page: Page, car: int) -> Any:
    return page.locator(f"[data-car='{car}'] .status")


def test_a_renter_sees_a_change_within_200_ms_of_it(
    open_page: OpenPage, rental: Served, set_status: Set, server: RealtimeServer, figure: Figure
) -> None:
    page = renter(open_page, rental.url, FIAT)
    server.wait_for(lambda s: s.members("car-rental") == 1)
    page.evaluate(WATCH)
    took = []
    for wanted in itertools.islice(itertools.cycle(["reserved", "rented", "available"]), 7):
        before = time.time() * 1000
        set_status(1, wanted)
        expect(status(page, 1)).to_have_text(wanted)
        shown, at = page.evaluate("() => window.seen.pop()")
        assert shown == wanted
        took.append(at - before)
    figure(f"shown {sorted(took)[0]:.0f} to {sorted(took)[-1]:.0f} ms after the database was asked to change it")
    assert min(took) <= 200
    expect(page.locator("#news li")).to_have_count(7)
    expect(page.locator("#news li").first).to_contain_text(f"{FIAT} is reserved now, was available")


def test_a_renter_is_told_of_followed_cars_only_and_not_who_has_them(
    open_page: OpenPage, rental: Served, set_status: Set
) -> None:
    page = renter(open_page, rental.url, FIAT, VW)
    page.evaluate(OVERHEAR)
    set_status(3, "available")
    set_status(2, "maintenance")
    set_status(4, "rented")
    set_status(1, "reserved")
    expect(status(page, 1)).to_have_text("reserved")
    expect(page.locator("#news li")).to_have_count(2)
    wait_until(lambda: page.evaluate("() => window.heard.length") == 2, "the stream tells of two")
    heard = page.evaluate("() => window.heard")
    car = {"id": 2, "model": VW, "plate": "B-ID 330", "status": "maintenance"}
    assert heard[0] == {"type": "UPDATE", "car": car}
    assert heard[1]["car"]["id"] == 1
    page.get_by_role("button", name=f"Unfollow {VW}").click()
    expect(page.locator("[data-car]")).to_have_count(1)
    expect(page.locator("#news li")).to_have_count(2)


def test_an_admin_sees_all_with_counts_and_changes_what_renters_see_through_one_join(
    open_page: OpenPage, rental: Served, set_status: Set, server: RealtimeServer
) -> None:
    follower = renter(open_page, rental.url, ZOE)
    page = admin(open_page, rental.url)

    def counts() -> list[str]:
        return page.locator("[data-count]").all_text_contents()

    expect(page.locator("tbody tr")).to_have_count(6)
    assert counts() == ["2", "1", "2", "1"]
    expect(page.locator("[data-car='3'] .customer")).to_have_text("Noor Haddad")
    page.get_by_label(f"Status of {ZOE}").select_option("available")
    page.get_by_role("button", name=f"Set the status of {ZOE}").click()
    expect(status(page, 3)).to_have_text("available")
    expect(page.locator("[data-car='3'] .customer")).to_have_text("")
    expect(status(follower, 3)).to_have_text("available")
    assert counts() == ["3", "0", "2", "1"]
    set_status(5, "maintenance")
    expect(status(page, 5)).to_have_text("maintenance")
    assert counts() == ["3", "0", "1", "2"]
    assert (server.connections_total, len(server.joins())) == (1, 1)


def test_a_restart_upstream_is_told_and_what_was_missed_is_there_after_it(
    open_page: OpenPage, rental: Served, rows: Rows, server: RealtimeServer, set_status: Set
) -> None:
    page, watcher = renter(open_page, rental.url, FIAT), admin(open_page, rental.url)
    with server.inject(Restart()):
        for each in (page, watcher):
            expect(each.locator("#notice")).to_contain_text("Live updates are paused")
            expect(each.locator("#standing")).to_have_text("Paused")
        rows[1]["status"] = "maintenance"  # nobody hears of it
    for each in (page, watcher):
        expect(status(each, 1)).to_have_text("maintenance")
        expect(each.locator("#notice")).to_contain_text("Some changes may have been missed. Everything was read anew")
        expect(each.locator("#standing")).to_have_text("Live")
    set_status(1, "available")
    for each in (page, watcher):
        expect(status(each, 1)).to_have_text("available")
        expect(each.locator("#notice")).to_have_text("")


def test_a_page_opened_while_the_database_is_away_comes_by_itself(
    open_page: OpenPage, rental: Served, server: RealtimeServer
) -> None:
    page, watcher, plain = open_page(), admin(open_page, rental.url), open_page(java_script_enabled=False)
    plain.goto(f"{rental.url}/admin")
    plain.get_by_label("Password").fill("demo")
    plain.get_by_role("button", name="Enter").click()
    away = "The cars cannot be read"
    with server.inject(Restart()):
        for each, url in ((page, rental.url), (watcher, f"{rental.url}/admin")):
            answer = each.goto(url)
            assert answer is not None
            assert answer.status == 503
        plain.get_by_role("button", name=f"Set the status of {FIAT}").click()
        for each in (page, watcher, plain):
            expect(each.get_by_role("heading", name=away)).to_be_visible()
    expect(page.get_by_role("heading", name=away)).to_have_count(0)
    expect(page.locator("#standing")).to_have_text("Live")
    for each in (watcher, plain):
        expect(status(each, 1)).to_have_text("available")


def test_a_page_outlives_its_server(
    open_page: OpenPage, rental: Served, server: RealtimeServer, set_status: Set
) -> None:
    page = renter(open_page, rental.url, FIAT)
    set_status(1, "reserved")
    expect(status(page, 1)).to_have_text("reserved")
    rental.stop()
    expect(page.locator("#notice")).to_contain_text("this page's server cannot be reached")
    set_status(1, "rented")
    rental.start()
    expect(status(page, 1)).to_have_text("rented")
    expect(page.locator("#notice")).to_contain_text("Some changes may have been missed")
    set_status(1, "available")
    expect(status(page, 1)).to_have_text("available")
    expect(page.locator("#standing")).to_have_text("Live")


def test_what_a_car_is_called_is_text_and_nothing_else(
    open_page: OpenPage, rental: Served, rows: Rows, set_status: Set
) -> None:
    model = "<img src=x onerror=alert(1)>"
    rows[1]["model"] = model
    page = renter(open_page, rental.url, model)
    set_status(1, "rented")
    expect(page.locator("#news li")).to_contain_text(f"{model} is rented now")
    expect(page.locator("img")).to_have_count(0)


def test_every_page_is_for_everybody(open_page: OpenPage, rental: Served, server: RealtimeServer) -> None:
    door = open_page()
    door.goto(f"{rental.url}/admin")
    assert_for_everybody(door)
    door.get_by_label("Password").fill("wrong")
    door.get_by_role("button", name="Enter").click()
    expect(door.get_by_role("alert")).to_have_text("That is not the password.")
    expect(door.get_by_label("Password")).to_be_focused()
    pages = [door, renter(open_page, rental.url, FIAT), admin(open_page, rental.url)]
    pages[2].get_by_label(f"Status of {FIAT}").focus()
    pages[2].keyboard.type("rented")
    pages[2].keyboard.press("Tab")
    pages[2].keyboard.press("Enter")
    expect(pages[1].locator("#news li")).to_have_count(1)
    expect(pages[2].get_by_role("button", name=f"Set the status of {FIAT}")).to_be_focused()
    for page in pages:
        assert_for_everybody(page)
    with server.inject(Restart()):
        expect(pages[1].locator("#notice")).to_contain_text("Live updates are paused")
        assert_for_everybody(pages[1])

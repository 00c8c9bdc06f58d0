"""The example of a presence board, as its visitors see it."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Any

from rtpool.testing import RealtimeServer
from rtpool.testing.faults import Restart
from tests.browser.conftest import OpenPage, RunExample, expect
from tests.browser.looks import assert_for_everybody
from tests.conftest import Figure

if TYPE_CHECKING:
    from playwright.sync_api import Page

#: When the list of people grew or shrank to so many, by the clock that the test has too.
WATCH = """
    () => {
        const people = document.getElementById("people");
        window.seen = {};
        new MutationObserver(() => { window.seen[people.children.length] = Date.now(); })
            .observe(people, { childList: true });
    }
"""


def visitor(open_page: OpenPage, url: str, name: str, **screen: Any) -> Page:
    page = open_page(**screen)
    page.goto(url)
    page.get_by_label("Your name").fill(name)
    page.get_by_role("button", name="Come in").click()
    return page


def expect_people(page: Page, *names: str) -> None:
    expect(page.locator(".name")).to_have_text(list(names))
    count = "One person is here" if len(names) == 1 else f"{len(names)} people are here"
    expect(page.locator("h1")).to_have_text(count)


def test_visitors_are_here_while_their_pages_are_open(
    open_page: OpenPage, run_example: RunExample, server: RealtimeServer, figure: Figure
) -> None:
    app = run_example("presence_board")
    url = app.url
    ann = visitor(open_page, url, "Ann Other")
    expect_people(ann, "Ann Other")
    ann.evaluate(WATCH)
    bob = visitor(open_page, url, "<b>Bob</b>")
    for page in (ann, bob):
        expect_people(page, "Ann Other", "<b>Bob</b>")
    expect(bob.locator("li", has_text="You")).to_contain_text("<b>Bob</b>")
    again = bob.context.new_page()
    again.goto(url)
    expect_people(again, "Ann Other", "<b>Bob</b>")
    bob.close()
    again.reload()
    expect_people(again, "Ann Other", "<b>Bob</b>")
    left = time.time() * 1000
    again.close()
    expect_people(ann, "Ann Other")
    figure(f"gone from the other's page {ann.evaluate('() => window.seen[1]') - left:.0f} ms after closing")
    assert (server.connections_total, len(server.joins())) == (1, 1)
    app.stop(number=signal.SIGINT)  # though somebody looks


def test_many_come_and_go_and_each_is_seen_at_once(open_page: OpenPage, run_example: RunExample) -> None:
    url = run_example("presence_board").url
    ann, bob = visitor(open_page, url, "Ann"), visitor(open_page, url, "Bob")
    for _ in range(4):  # more than a server lets a presence be told
        expect_people(ann, "Ann", "Bob")
        bob.goto("about:blank")
        expect_people(ann, "Ann")
        bob.goto(url)
    expect_people(ann, "Ann", "Bob")


def test_the_visitors_of_several_processes_are_on_one_board_and_leave_with_theirs(
    open_page: OpenPage, run_example: RunExample, server: RealtimeServer
) -> None:
    one, other = run_example("presence_board"), run_example("presence_board")
    ann, bob = visitor(open_page, one.url, "Ann"), None
    expect_people(ann, "Ann")
    bob = visitor(open_page, other.url, "Bob")
    for page in (ann, bob):
        expect_people(page, "Ann", "Bob")
    assert len(server.presence("presence-board")) == 2
    other.stop()
    expect_people(ann, "Ann")
    expect(bob.locator("#notice")).to_contain_text("this page's server cannot be reached")
    other.start()
    for page in (ann, bob):
        expect_people(page, "Ann", "Bob")


def test_a_restart_upstream_is_told_and_everybody_is_here_after_it(
    open_page: OpenPage, run_example: RunExample, server: RealtimeServer
) -> None:
    url = run_example("presence_board").url
    ann = visitor(open_page, url, "Ann")
    bob = visitor(open_page, url, "Bob")
    expect_people(ann, "Ann", "Bob")
    with server.inject(Restart()):
        expect(ann.locator("#notice")).to_contain_text("Live updates are paused")
    for page in (ann, bob):
        expect(page.locator("#standing")).to_have_text("Live")
        expect_people(page, "Ann", "Bob")
        expect(page.locator("#notice")).to_have_text("")
    bob.get_by_role("button", name="Leave").click()
    expect_people(ann, "Ann")
    expect(bob.get_by_label("Your name")).to_be_visible()


def test_the_board_is_for_everybody_whoever_is_there(open_page: OpenPage, run_example: RunExample) -> None:
    url = run_example("presence_board").url
    door = open_page()
    door.goto(url)
    assert_for_everybody(door)
    names = ["Ann", "Bob B. Builder", "🙂 smiles", "M" * 40]
    pages = [visitor(open_page, url, name) for name in names]
    expect(pages[0].locator(".name")).to_have_text(names)
    assert_for_everybody(pages[0])

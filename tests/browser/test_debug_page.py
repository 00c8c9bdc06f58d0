"""The debug page in a real browser: it shows, it stays up to date, it acts, for everybody on every screen."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest

from rtpool.debug import Debugger
from rtpool.testing import RealtimeServer
from tests.browser.conftest import OpenPage, Serve, expect
from tests.browser.looks import assert_for_everybody
from tests.flask.conftest import MakeApp, make_app, no_project_in_the_environment, realtime, state_of
from tests.support.secrets_watch import watch
from tests.support.wait import wait_until

if TYPE_CHECKING:
    from flask import Flask
    from playwright.sync_api import Locator, Page

__all__ = ["make_app", "no_project_in_the_environment", "realtime"]

TOKEN = "the-token-of-a-browser-4711"
HTML = "<img src=x onerror='window.pwned = 1'><script>window.pwned = 2</script>"


@pytest.fixture
def debug(make_app: MakeApp) -> Flask:
    """An app in debug mode."""
    app = make_app(name="car_rental")
    app.debug = True
    return app


def at(url: str) -> str:
    return f"{url}/_rtpool/"


def rows(page: Page, table: str) -> Locator:
    return page.locator(f"[data-table={table}] tbody tr")


def live(page: Page) -> Page:
    """Wait until what comes by the stream is shown."""
    expect(page.locator("#live")).to_have_text("live")
    return page


def test_it_is_kept_up_to_date(debug: Flask, serve: Serve, page: Page, server: RealtimeServer) -> None:
    state = state_of(debug)
    page.goto(at(serve(debug)))
    expect(page.locator("#word")).to_have_text("OK")
    expect(page.get_by_text("No Channel is subscribed.")).to_be_visible()
    live(page)

    channel = state.pool.channel("cars").on_broadcast("*", id).subscribe()
    expect(rows(page, "channels")).to_have_count(1)
    expect(rows(page, "channels").first).to_contain_text("cars")
    expect(page.get_by_text("No Channel is subscribed.")).to_be_hidden()
    server.broadcast("cars", "moved", {})
    expect(rows(page, "channels").first.locator("[data-label=Delivered]")).to_have_text("1")
    expect(rows(page, "connections").first.locator("[data-label=State]")).to_have_text("open")

    server.close()
    expect(page.locator("#word")).to_have_text("Down")
    expect(page.locator("#reasons")).to_contain_text("'cars' is errored")
    expect(page).to_have_title("Down · car_rental · rtpool")
    assert page.locator("[aria-live=polite] #word").count() == 1
    channel.unsubscribe()
    expect(rows(page, "channels")).to_have_count(0)
    expect(page.locator("#word")).to_have_text("OK")


def test_what_went_wrong_stays_open_while_it_is_read(
    debug: Flask, serve: Serve, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtpool.flask.page.looker.Debugger", partial(Debugger, slow_callback=0.2))
    monkeypatch.setattr("rtpool.flask.page.looker.ISSUES_SECONDS", 0.5)
    begun, over = threading.Event(), threading.Event()

    def slow(_: object) -> None:
        begun.set()
        over.wait(60)

    state = state_of(debug)
    channel = state.pool.channel("cars", receive_own=True).on_broadcast("*", slow).subscribe()
    channel.send_broadcast("moved", {})
    try:
        assert begun.wait(15)
        page.goto(at(serve(debug)))
        issue = page.locator("#issue-list li", has_text="RTP009")
        expect(issue).to_have_count(1)
        issue.get_by_text("Where it is").click()
        expect(issue.locator("pre")).to_contain_text("over.wait(60)")
        age = page.locator("#figures div").last.locator("b")
        before = age.text_content()
        expect(age).not_to_have_text(before or "")
        expect(issue.locator("pre")).to_be_visible()
    finally:
        over.set()


def test_it_acts_by_keyboard_and_the_focus_stays(debug: Flask, serve: Serve, page: Page) -> None:
    state_of(debug).pool.connect(10)
    page.goto(at(serve(debug)))
    live(page)
    for _ in range(30):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            "() => [document.activeElement.textContent, getComputedStyle(document.activeElement).outlineStyle]"
        )
        assert focused[1] != "none", focused  # it is to be seen where one is
        if focused[0] == "Check lifecycle":
            break
    page.keyboard.press("Enter")
    result = page.locator("#result[role=status]")
    expect(result).to_contain_text("nothing of it is left")
    assert page.evaluate("() => document.activeElement.textContent") == "Check lifecycle"
    page.get_by_role("button", name="Force clean-up").click()
    expect(result).to_have_text("1 idle connection closed.")
    page.get_by_role("button", name="Log stats").click()
    expect(result).to_contain_text("The statistics are in the log")
    page.keyboard.press("Control+Home")
    assert page.url.endswith("/_rtpool/")


def test_it_works_without_javascript(debug: Flask, serve: Serve, open_page: OpenPage) -> None:
    state_of(debug).pool.connect(10)
    page = open_page(java_script_enabled=False)
    page.goto(at(serve(debug)))
    expect(page.locator("#word")).to_have_text("OK")
    expect(page.locator("#live")).to_contain_text("as of ")
    page.get_by_role("button", name="Check lifecycle").click()
    expect(page.locator("#result")).to_contain_text("nothing of it is left")
    page.get_by_role("link", name="Refresh").click()
    expect(page.locator("#result")).to_be_hidden()
    expect(rows(page, "connections")).to_have_count(1)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_is_for_everybody_on_every_screen(
    debug: Flask, serve: Serve, open_page: OpenPage, server: RealtimeServer, width: int, dark: bool
) -> None:
    state, url = state_of(debug), serve(debug)
    channels = [state.pool.channel(name).subscribe(wait=False) for name in ("cars", "a-name-without-end-" * 12)]
    state.pool.channel("bad").on_broadcast("*", lambda _: 1 / 0).subscribe()
    server.broadcast("bad", "moved", {})
    wait_until(lambda: state.pool.stats().callback_errors)
    state.pool.channel("refused", private=True, access_token="not-a-token-at-all").subscribe(wait=False)
    page = open_page(width=width, dark=dark)
    page.goto(at(url))
    live(page)
    page.get_by_role("button", name="Check lifecycle").click()
    expect(page.locator("#result p")).to_contain_text("A probe channel")
    expect(page.locator("#word")).to_have_text("Degraded")
    expect(page.locator("#issue-list li").first).to_be_visible()
    assert_for_everybody(page)
    for table in ("connections", "channels", "joins", "recorder"):
        first = (
            page.get_by_role("table", name=table.capitalize())
            if table != "recorder"
            else page.get_by_role("table").last
        )
        assert first.get_by_role("row").count() > 1  # a narrow screen's cards are a table to who hears them
        assert first.get_by_role("cell").count() > 2
    assert len(channels) == 2

    debug.config["RTPOOL_DEBUG_TOKEN"] = TOKEN
    another = open_page(width=width, dark=dark)
    another.goto(at(url))
    another.get_by_label("Token").fill("wrong")
    another.get_by_role("button", name="Open").click()
    expect(another.get_by_role("alert")).to_have_text("That is not the token.")
    assert_for_everybody(another)


def test_the_token_opens_it_and_no_script_sees_the_cookie(make_app: MakeApp, serve: Serve, page: Page) -> None:
    watch.learn(TOKEN)
    page.goto(at(serve(make_app(RTPOOL_DEBUG_PAGE=True, RTPOOL_DEBUG_TOKEN=TOKEN))))
    page.get_by_label("Token").fill(TOKEN)
    page.keyboard.press("Enter")
    live(page)
    assert page.evaluate("() => document.cookie") == ""
    watch.look("the page", page.content())
    page.get_by_role("button", name="Force clean-up").click()
    expect(page.locator("#result")).to_have_text("0 idle connections closed.")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Token")).to_be_visible()


def test_html_is_shown_and_is_none(debug: Flask, serve: Serve, page: Page, server: RealtimeServer) -> None:
    def fails(_: object) -> None:
        raise ValueError(HTML)

    fails.__qualname__ = HTML
    state, url = state_of(debug), serve(debug)
    page.goto(at(url))
    live(page)
    state.pool.channel(HTML).on_broadcast("*", fails).subscribe()
    server.broadcast(HTML, HTML, {HTML: HTML})
    for _ in range(2):  # as the script shows it, and as it is served
        expect(rows(page, "channels").first).to_contain_text(HTML)
        expect(rows(page, "recorder").filter(has_text=HTML).first).to_be_visible()
        assert page.locator("img, script:not([src])").count() == 0
        assert page.evaluate("() => window.pwned") is None
        page.reload()


def test_another_site_can_neither_act_nor_look(
    debug: Flask, serve: Serve, open_page: OpenPage, server: RealtimeServer
) -> None:
    import flask

    state, url = state_of(debug), serve(debug)
    state.pool.connect(10)
    page = open_page()
    page.goto(at(url))
    csrf = page.locator("input[name=csrf]").first.get_attribute("value")

    evil = flask.Flask("evil")
    evil.add_url_rule(
        "/",
        view_func=lambda: (
            f"<form method=post action={url}/_rtpool/actions/force-clean-up><input name=csrf value={csrf}>"
            f"<button>Win</button></form><iframe src={url}/_rtpool/></iframe><link rel=stylesheet href={url}/_rtpool/>"
        ),
    )
    page.goto(serve(evil).replace("127.0.0.1", "localhost"))
    with page.expect_response("**/force-clean-up") as answer:
        page.get_by_role("button", name="Win").click()
    assert answer.value.status == 403
    assert state.pool.stats().active_connections == 1
    read = f"() => fetch('{url}/_rtpool/', {{credentials: 'include'}}).then(() => 'read', () => 'refused')"
    page.goto(serve(evil).replace("127.0.0.1", "localhost"))
    assert page.evaluate(read) == "refused"
    assert all("rtpool" not in (frame.title() or "") for frame in page.frames)
    open_page.complaints.clear()  # the browser says what it refused


def test_a_page_that_is_left_or_not_looked_at_costs_nothing(debug: Flask, serve: Serve, open_page: OpenPage) -> None:
    state, url = state_of(debug), serve(debug)
    pages = [open_page() for _ in range(2)]
    for page in pages:
        page.goto(at(url))
        live(page)
    assert state.streams.open == 2
    pages[0].goto("about:blank")
    wait_until(lambda: state.streams.open == 1)
    pages[0].go_back()
    live(pages[0])
    wait_until(lambda: state.streams.open == 2)
    pages[1].close()
    wait_until(lambda: state.streams.open == 1)


def test_where_the_server_has_no_thread_for_a_stream_the_page_asks_now_and_then(
    debug: Flask, serve: Serve, page: Page
) -> None:
    app = debug.wsgi_app
    debug.wsgi_app = lambda environ, start: app({**environ, "wsgi.multithread": False}, start)  # type: ignore[method-assign]
    state = state_of(debug)
    page.goto(at(serve(debug)))
    expect(page.locator("#live")).to_contain_text("live, as of")
    state.pool.channel("cars").subscribe()
    expect(rows(page, "channels")).to_have_count(1)
    assert not state.streams.open


def test_it_says_when_it_is_not_live_and_comes_back(make_app: MakeApp, serve: Serve, open_page: OpenPage) -> None:
    app = make_app(RTPOOL_MAX_STREAMS=1)
    app.debug = True
    url, first, second = serve(app), open_page(), open_page()
    first.goto(at(url))
    live(first)
    second.goto(at(url))
    expect(second.locator("#live")).to_contain_text("not live")
    assert_for_everybody(second)
    first.close()
    live(second)
    state_of(app).streams.close()
    expect(second.locator("#live")).to_contain_text("not live")
    live(second)

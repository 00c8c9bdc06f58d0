"""The browser itself, and that what the other tests here trust is so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.browser.conftest import OpenPage, Serve
from tests.browser.looks import assert_for_everybody

if TYPE_CHECKING:
    from flask import Flask
    from playwright.sync_api import Page

SEES = "() => [innerWidth, matchMedia('(prefers-color-scheme: dark)').matches, document.cookie]"


def app(body: str, **headers: str) -> Flask:
    import flask

    made = flask.Flask(__name__)
    made.add_url_rule("/", view_func=lambda: (body, headers))
    return made


def test_each_page_is_another_visitor_on_the_screen_asked_for(serve: Serve, open_page: OpenPage) -> None:
    phone, desk = open_page(width=390, dark=True), open_page()
    phone.goto(serve(app("<script>document.cookie = 'seen=1'</script>")))
    assert phone.evaluate(SEES) == [390, True, "seen=1"]
    desk.goto(serve(app("<p>Cookies are shared by all ports of a host.")))
    assert desk.evaluate(SEES) == [1280, False, ""]


def test_what_scripts_and_the_console_complain_of_is_noticed(serve: Serve, open_page: OpenPage) -> None:
    page = open_page()
    policy = {"Content-Security-Policy": "script-src 'nonce-a'"}
    page.goto(serve(app("<script nonce=a>missing()</script><script>refused()</script><img src=/nothing>", **policy)))
    page.evaluate("() => 0")
    raised, refused = sorted(open_page.complaints, key=len)
    open_page.complaints.clear()
    assert "missing is not defined" in raised
    assert "Content Security Policy" in refused


def test_what_not_everybody_can_use_is_noticed(serve: Serve, page: Page) -> None:
    head = "<!doctype html><html lang=en><title>A page</title><h1>Words</h1>"
    head += "<label>Name <input style='height: 2em'></label>"
    page.goto(serve(app(head)))
    assert_for_everybody(page)
    for wrong, words in {
        "<p style='color: #999'>pale</p>": "hard to read.*pale",
        "<button style='width: 3em; height: 3em'></button>": "without a name.*<button",
        "<input>": "without a name.*<input",
        "<p style='width: 120vw'>wide</p>": "wider than the screen",
    }.items():
        page.goto(serve(app(head + wrong)))
        with pytest.raises(AssertionError, match=words):
            assert_for_everybody(page)

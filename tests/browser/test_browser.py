"""The browser itself, and that what the other tests here trust is so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.browser.conftest import OpenPage, Serve

if TYPE_CHECKING:
    from flask import Flask

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

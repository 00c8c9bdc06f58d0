"""Who may see the debug page and act on it: nobody else, by no trick."""

from __future__ import annotations

import re
from typing import Any

import pytest
from flask import Flask, redirect
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from rtpool.flask import Realtime
from rtpool.flask.page.guard import HEADERS, MAX_FORM, SESSION_SECONDS, Guard
from rtpool.testing import RealtimeServer
from tests.flask.conftest import MakeApp, state_of
from tests.support.secrets_watch import watch
from tests.support.wait import wait_until

TOKEN = "a-token-of-enough-length-71"
ADDRESSES = (
    "",
    "/",
    "//",
    "/health",
    "/metrics",
    "/events",
    "/look",
    "/static/page.css",
    "/static/page.js",
    "/actions/log-stats",
    "/sign-in",
    "/sign-out",
    "/nothing",
    "/../",
    "/%2e%2e/",
    "/static/../../page/guard.py",
    "/static/%2e%2e%2fguard.py",
)
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE")
#: What a browser says of the page's own forms.
OURS = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}


@pytest.fixture
def production(make_app: MakeApp) -> Flask:
    """An app with the page, not in debug mode."""
    watch.learn(TOKEN)
    return make_app(RTPOOL_DEBUG_PAGE=True, RTPOOL_DEBUG_TOKEN=TOKEN)


@pytest.fixture
def debug(make_app: MakeApp) -> Flask:
    """An app in debug mode, without a token."""
    app = make_app()
    app.debug = True
    return app


def bearer(token: str = TOKEN) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def csrf_of(client: FlaskClient) -> str:
    return re.findall(r'name="csrf" value="([^"]+)"', client.get("/_rtpool/").text)[0]


def sign_in(client: FlaskClient, token: str = TOKEN, **headers: str) -> TestResponse:
    return client.post("/_rtpool/sign-in", data={"token": token}, headers={**OURS, **headers})


def act(client: FlaskClient, csrf: str, name: str = "force-clean-up", **headers: Any) -> TestResponse:
    return client.post(f"/_rtpool/actions/{name}", data={"csrf": csrf}, headers={**OURS, **headers})


# Whether it is there


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"RTPOOL_DEBUG_PAGE": False},
        {"RTPOOL_DEBUG_PAGE": False, "RTPOOL_DEBUG_TOKEN": TOKEN},
        {"RTPOOL_DEBUG_TOKEN": TOKEN},
    ],
    ids=str,
)
def test_where_it_is_off_nothing_tells_it_from_an_address_that_is_not_there(
    make_app: MakeApp, config: dict[str, Any]
) -> None:
    client = make_app(**config).test_client()
    for method in METHODS:
        there = client.open("/nowhere", method=method)
        for address in ADDRESSES:
            for headers in ({}, bearer(), {"Origin": "http://localhost"}):
                found = client.open(f"/_rtpool{address}", method=method, headers=headers)
                assert (found.status_code, found.data) == (404, there.data), (method, address)
                assert set(found.headers.keys()) == set(there.headers.keys()), (method, address)
    for path in ("//_rtpool//", "//_rtpool/", "/_rtpool//", "///_rtpool"):  # a redirect would tell
        assert client.get("/", environ_overrides={"PATH_INFO": path}).status_code == 404, path


def test_off_in_debug_mode_too_when_the_config_says_so(debug: Flask) -> None:
    debug.config["RTPOOL_DEBUG_PAGE"] = False
    assert debug.test_client().get("/_rtpool/").status_code == 404


@pytest.mark.parametrize("token", [None, "", "15 characters.."])
def test_outside_debug_mode_it_is_not_there_without_a_token_of_some_length(make_app: MakeApp, token: str) -> None:
    app = make_app()
    app.config.update(RTPOOL_DEBUG_PAGE=True, RTPOOL_DEBUG_TOKEN=token)
    for headers in ({}, bearer(token or ""), bearer("")):
        assert app.test_client().get("/_rtpool/", headers=headers).status_code == 404


def test_a_page_that_is_asked_for_but_has_no_token_is_missed_once_in_the_log(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(RTPOOL_DEBUG_PAGE=True)
    client = app.test_client()
    client.get("/")
    assert not caplog.records
    for _ in range(3):
        assert client.get("/_rtpool/").status_code == 404
    (record,) = caplog.records
    assert "RTPOOL_DEBUG_PAGE without an RTPOOL_DEBUG_TOKEN" in record.getMessage()


@pytest.mark.parametrize(
    "name", ["Forwarded", "Via", "True-Client-IP", "X-Forwarded-Proto", "X-Real-IP", "X-Original-Host", "CF-Ray"]
)
def test_what_came_by_a_proxy_is_not_of_this_machine(debug: Flask, name: str) -> None:
    client = debug.test_client()
    assert client.get("/_rtpool/").status_code == 200
    assert client.get("/_rtpool/", headers={name: "x"}).status_code == 403


def test_debug_mode_may_be_set_after_init_app(app: Flask, client: FlaskClient) -> None:
    assert client.get("/_rtpool/").status_code == 404
    app.debug = True
    assert client.get("/_rtpool/").status_code == 200


def test_an_app_that_answers_everything_itself_still_does_not_answer_for_the_page(make_app: MakeApp) -> None:
    app = make_app()
    app.add_url_rule("/<path:rest>", view_func=lambda rest: redirect("/"))
    assert app.test_client().get("/_rtpool/anything").status_code == 404
    assert app.test_client().get("/_rtpoolish").status_code == 302


# Who may see it


def test_without_the_token_everything_is_403(production: Flask) -> None:
    client, cookie = production.test_client(), Guard(state_of(production)).cookie
    wrong = [{}, bearer(""), bearer(TOKEN[:-1]), bearer(f"{TOKEN}x"), {"Authorization": f"Basic {TOKEN}"}]
    wrong += [{"Cookie": f"{cookie}={TOKEN}"}, {"Cookie": f"{cookie}=9999999999.a.b"}, {"X-Forwarded-For": "127.0.0.1"}]
    for headers in wrong:
        for address in ADDRESSES:
            if address in ("/health", "/static/page.css"):  # for probes; the looks of the form
                continue
            for method in METHODS:
                answer = client.open(f"/_rtpool{address}", method=method, headers=headers)
                assert answer.status_code == 403, (method, address)
    assert client.get("/_rtpool/static/page.css").mimetype == "text/css"
    assert not state_of(production).has_pool or not state_of(production).pool._engine.started


def test_the_token_in_a_header_opens_it(production: Flask) -> None:
    client = production.test_client()
    assert client.get("/_rtpool/", headers=bearer()).status_code == 200
    assert "Set-Cookie" not in client.get("/_rtpool/", headers=bearer()).headers
    assert client.post("/_rtpool/actions/force-clean-up", headers=bearer(), data={}).json["ok"] is True


def test_the_form_takes_the_token_and_gives_a_cookie_that_holds_nothing_of_it(production: Flask) -> None:
    client = production.test_client()
    form = client.get("/_rtpool/")
    assert form.status_code == 403
    assert '<label for="token">' in form.text
    assert sign_in(client, "wrong").status_code == 403
    assert "That is not the token." in sign_in(client, "wrong").text

    answer = sign_in(client)
    assert (answer.status_code, answer.location) == (303, "/_rtpool/")
    cookie = answer.headers["Set-Cookie"]
    assert TOKEN not in cookie
    assert {"HttpOnly", "Path=/_rtpool/", "SameSite=Strict"} <= {part.strip() for part in cookie.split(";")}
    assert "Secure" not in cookie
    assert client.get("/_rtpool/").status_code == 200
    secure = production.test_client()
    data = {"token": TOKEN}
    assert secure.post("/_rtpool/sign-in", base_url="https://localhost", data=data, headers=OURS).status_code == 403
    ours = {**OURS, "Origin": "https://localhost"}
    answer = secure.post("/_rtpool/sign-in", base_url="https://localhost", data=data, headers=ours)
    assert "Secure" in answer.headers["Set-Cookie"]


def test_a_form_that_comes_by_another_address_is_told_why_it_is_refused(
    production: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    client = production.test_client()
    for origin in ("https://shop.example.com", "https://localhost", "null"):
        answer = sign_in(client, Origin=origin)
        assert answer.status_code == 403
        assert "another address than the app believes to have" in answer.text
        assert "ProxyFix" in answer.text
    words = "rtpool: 1 forms of the debug page refused, the last from 'https://shop.example.com'"
    (line,) = [record.getMessage() for record in caplog.records if record.name == production.logger.name]
    assert line.startswith(words)
    assert line.endswith("not 'http://localhost'")


def test_who_signs_out_is_out(production: Flask) -> None:
    client = production.test_client()
    sign_in(client)
    assert client.post("/_rtpool/sign-out", headers=OURS, data={}).status_code == 403
    assert client.get("/_rtpool/").status_code == 200
    csrf = csrf_of(client)
    assert client.post("/_rtpool/sign-out", data={"csrf": csrf}, headers=OURS).status_code == 303
    assert client.get("/_rtpool/").status_code == 403


def test_a_cookie_is_good_for_some_hours_and_for_one_token(production: Flask) -> None:
    now = 1_000_000.0
    guard = Guard(state_of(production), clock=lambda: now)
    session = guard.new_session()
    assert guard.is_session(session)
    expires, nonce, signature = session.split(".")
    for forged in (
        f"{int(expires) + 1}.{nonce}.{signature}",
        f"{expires}.{nonce}x.{signature}",
        f"{expires}.{nonce}.{signature[:-1]}",
        f".{signature}",
        "..",
        "",
        "é.ü.ß",
    ):
        assert not guard.is_session(forged), forged
    production.config["RTPOOL_DEBUG_TOKEN"] = "another-token-of-enough-length"
    assert not guard.is_session(session)
    production.config["RTPOOL_DEBUG_TOKEN"] = TOKEN
    assert guard.is_session(session)
    now += SESSION_SECONDS + 1
    assert not guard.is_session(session)


def test_workers_of_an_app_take_each_others_cookies(production: Flask, make_app: MakeApp) -> None:
    another = make_app(RTPOOL_DEBUG_PAGE=True, RTPOOL_DEBUG_TOKEN=TOKEN)
    guards = [Guard(state_of(app)) for app in (production, another)]
    assert guards[1].is_session(guards[0].new_session())


def test_apps_on_one_machine_do_not_take_each_others_cookies_for_theirs(production: Flask, make_app: MakeApp) -> None:
    another = make_app(name="another", RTPOOL_DEBUG_PAGE=True, RTPOOL_DEBUG_TOKEN=f"{TOKEN},another")
    assert Guard(state_of(production)).cookie != Guard(state_of(another)).cookie


def test_wrong_tokens_are_logged_now_and_then_without_their_text(
    production: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    guard = Guard(state_of(production), clock=lambda: now)
    with production.test_request_context("/_rtpool/"):
        for _ in range(1_000):
            assert not guard.is_token("guess-number-one")
        now = 61.0
        assert not guard.is_token("guess-number-one")
    lines = [record.getMessage() for record in caplog.records if "wrong token" in record.getMessage()]
    assert [line.split()[1] for line in lines] == ["1", "1000"]
    assert "guess" not in "".join(lines)


@pytest.mark.parametrize(
    ("host", "address", "headers", "status"),
    [
        ("localhost", "127.0.0.1", {}, 200),
        ("127.0.0.1:5000", "127.0.0.1", {}, 200),
        ("[::1]:5000", "::1", {}, 200),
        ("app.localhost:5000", "127.0.0.1", {}, 200),
        ("localhost", "::ffff:127.0.0.1", {}, 200),
        ("rebound.example", "127.0.0.1", {}, 403),  # a name that an attacker makes lead here
        ("localhost.example", "127.0.0.1", {}, 403),
        ("127.0.0.1.example", "127.0.0.1", {}, 403),
        ("[::1", "127.0.0.1", {}, 403),
        ("192.168.1.5:5000", "192.168.1.5", {}, 403),
        ("localhost", "192.168.1.7", {}, 403),
        ("localhost", "", {}, 403),
        ("localhost", "127.0.0.1", {"X-Forwarded-For": "192.0.2.1"}, 403),  # a proxy here, somebody else behind it
        ("localhost", "127.0.0.1", {"Forwarded": "for=127.0.0.1"}, 403),
        ("localhost", "127.0.0.1", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}, 403),
        ("localhost", "127.0.0.1", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ("localhost", "127.0.0.1", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),  # a link
    ],
)
def test_without_a_token_only_a_browser_on_this_machine_sees_it(
    debug: Flask, host: str, address: str, headers: dict[str, str], status: int
) -> None:
    answer = debug.test_client().get(
        "/_rtpool/", headers={"Host": host, **headers}, environ_overrides={"REMOTE_ADDR": address}
    )
    assert answer.status_code == status


def test_a_cookie_without_a_token_is_good_on_this_machine_alone(debug: Flask) -> None:
    client = debug.test_client()
    assert client.get("/_rtpool/").status_code == 200
    assert client.get_cookie(Guard(state_of(debug)).cookie, path="/_rtpool/") is not None
    elsewhere = {"REMOTE_ADDR": "192.0.2.1"}
    assert client.get("/_rtpool/", environ_overrides=elsewhere).status_code == 403
    assert client.get("/_rtpool/", headers={"X-Forwarded-For": "192.0.2.1"}).status_code == 403
    cross = {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}
    assert client.get("/_rtpool/", headers=cross).status_code == 403


def test_where_there_is_no_token_none_is_the_right_one(debug: Flask) -> None:
    client = debug.test_client()
    for header in ("Bearer", "Bearer ", "Bearer None"):
        answer = client.get(
            "/_rtpool/", headers={"Authorization": header}, environ_overrides={"REMOTE_ADDR": "192.0.2.1"}
        )
        assert answer.status_code == 403, header


def test_in_debug_mode_a_token_that_is_there_is_asked_for(debug: Flask) -> None:
    debug.config["RTPOOL_DEBUG_TOKEN"] = TOKEN
    client = debug.test_client()
    assert client.get("/_rtpool/").status_code == 403
    elsewhere = {"REMOTE_ADDR": "192.0.2.1"}
    assert client.get("/_rtpool/", headers=bearer(), environ_overrides=elsewhere).status_code == 200


# Who may act


def test_actions_are_post_and_need_the_pages_own_form(production: Flask) -> None:
    client = production.test_client()
    sign_in(client)
    csrf = csrf_of(client)
    assert client.get("/_rtpool/actions/force-clean-up").status_code == 405
    assert act(client, csrf).status_code == 200
    for wrong in ("", csrf[:-1], f"{csrf}0", "é"):
        assert act(client, wrong).status_code == 403
    for headers in (
        {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://localhost", "Sec-Fetch-Site": "same-site"},  # another port, or a sibling's name
        {"Origin": "http://localhost:8000"},
        {"Origin": "null"},
        {"Origin": "http://[localhost"},
        {},
    ):
        data = {"csrf": csrf}
        answer = client.post("/_rtpool/actions/force-clean-up", data=data, headers=headers)
        assert answer.status_code == 403, headers
        assert client.post("/_rtpool/sign-out", data=data, headers=headers).status_code == 403, headers
        data = {"token": TOKEN}
        assert client.post("/_rtpool/sign-in", data=data, headers=headers).status_code == 403, headers
    assert act(client, csrf, "no-such-action").status_code == 404


def test_a_form_is_of_use_with_the_cookie_it_came_with_alone(production: Flask) -> None:
    one, another = production.test_client(), production.test_client()
    sign_in(one)
    sign_in(another)
    assert csrf_of(one) != csrf_of(another)
    assert act(one, csrf_of(another)).status_code == 403
    assert act(one, csrf_of(one)).status_code == 200


def test_without_a_token_forms_are_guarded_likewise(debug: Flask) -> None:
    client = debug.test_client()
    first = csrf_of(client)
    assert act(client, first).status_code == 200
    assert act(client, "").status_code == 403
    assert act(client, first, **{"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert act(debug.test_client(), first).status_code == 403
    assert client.post("/_rtpool/sign-in", data={"token": ""}, headers=OURS).status_code == 403


def test_the_script_is_told_in_its_own_language_that_a_form_is_old(production: Flask) -> None:
    client = production.test_client()
    sign_in(client)
    answer = act(client, "of-earlier", Accept="application/json")
    assert answer.status_code == 403
    assert answer.json["ok"] is False
    assert "open the page again" in answer.json["words"]


@pytest.mark.parametrize("address", ["/sign-in", "/actions/log-stats", "/", "/nothing"])
def test_a_body_that_is_no_form_of_the_pages_is_not_read(production: Flask, address: str) -> None:
    class Body:
        def read(self, *_: int) -> bytes:
            raise AssertionError("it was read")

        readline = read

    client = production.test_client()
    for more in (
        {"CONTENT_LENGTH": str(MAX_FORM + 1)},
        {"CONTENT_LENGTH": "9" * 30},
        {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"},
    ):
        environ = {"wsgi.input": Body(), **more}
        answer = client.post(f"/_rtpool{address}", headers={**OURS, **bearer()}, environ_overrides=environ)
        assert answer.status_code == 413, more


# What comes with it


def test_every_answer_has_the_headers_that_keep_it_to_itself(production: Flask) -> None:
    client = production.test_client()
    for headers in ({}, bearer()):
        for address in ADDRESSES[1:]:
            if address == "/events":
                continue
            answer = client.get(f"/_rtpool{address}", headers=headers)
            assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS, (address, headers)
    assert (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'"
        in (HEADERS["Content-Security-Policy"])
    )
    assert "Content-Security-Policy" not in client.get("/").headers


def test_static_files_are_those_two(production: Flask) -> None:
    client = production.test_client()
    assert client.get("/_rtpool/static/page.js", headers=bearer()).mimetype == "text/javascript"
    for name in (
        "../guard.py",
        "..%2fguard.py",
        "%2e%2e/guard.py",
        "page.js/",
        "PAGE.JS",
        "page.js%00",
        "",
        "/etc/hosts",
    ):
        answer = client.get(f"/_rtpool/static/{name}", headers=bearer())
        assert answer.status_code in (404, 308), name
        assert b"Guard" not in answer.data


def test_nothing_of_a_request_is_reflected(production: Flask) -> None:
    client = production.test_client()
    mark = "<script>mark</script>"
    for answer in (
        client.get(f"/_rtpool/{mark}", headers=bearer()),
        client.get(f"/_rtpool/?a={mark}", headers=bearer()),
        client.get(f"/_rtpool/?a={mark}"),
        sign_in(client, mark),
        client.post(f"/_rtpool/actions/{mark}", headers={**OURS, **bearer()}),
        client.get("/_rtpool/", headers={"Authorization": f"Bearer {mark}"}),
        client.get("/_rtpool/", headers={"Cookie": f"{Guard(state_of(production)).cookie}={mark}"}),
        client.get("/_rtpool/", headers={"Host": "x<script>mark", **bearer()}),
    ):
        assert "mark" not in answer.text
        assert "mark" not in str(answer.headers)


def test_probes_get_a_word_and_the_right_status(production: Flask, server: RealtimeServer) -> None:
    client = production.test_client()
    answer = client.get("/_rtpool/health")
    assert (answer.status_code, answer.json) == (200, {"status": "ok"})
    whole = client.get("/_rtpool/health", headers=bearer()).json
    assert whole["status"] == "ok"
    assert (whole["connection_status"], whole["reasons"]) == ("idle", [])

    state_of(production).pool.channel("room").subscribe()
    assert client.get("/_rtpool/health").status_code == 200
    server.close()
    wait_until(lambda: client.get("/_rtpool/health").status_code == 503)
    answer = client.get("/_rtpool/health", headers={"Host": "10.0.0.1"}, environ_overrides={"REMOTE_ADDR": "10.0.0.9"})
    assert (answer.status_code, answer.json) == (503, {"status": "down"})
    assert "'room' is" in " ".join(client.get("/_rtpool/health", headers=bearer()).json["reasons"])


@pytest.mark.parametrize("login_first", [True, False])
def test_probes_are_answered_before_the_apps_own_login(
    make_app: MakeApp, realtime: Realtime, server: RealtimeServer, login_first: bool
) -> None:
    app = make_app(Realtime()) if not login_first else Flask("login")

    def to_the_login() -> Any:
        return redirect("/login")

    if login_first:
        app.before_request(to_the_login)
        app.config.update(RTPOOL_URL=server.url, RTPOOL_API_KEY=server.api_key)
        realtime.init_app(app)
    else:
        app.before_request(to_the_login)
    app.config["RTPOOL_HEALTH"] = True
    client = app.test_client()
    assert client.get("/_rtpool/health").json == {"status": "ok"}
    assert client.head("/_rtpool/health").status_code == 200
    assert client.get("/").status_code == 302
    state_of(app).close()


def test_probes_may_be_answered_without_the_page(make_app: MakeApp) -> None:
    client = make_app(RTPOOL_HEALTH=True, RTPOOL_DEBUG_TOKEN=TOKEN).test_client()
    assert client.get("/_rtpool/health").json == {"status": "ok"}
    assert client.get("/_rtpool/health", headers=bearer()).json == {"status": "ok"}
    for address in ("/", "/metrics", "/events", "/static/page.css", "/health/", "//health", "/actions/log-stats"):
        assert client.get(f"/_rtpool{address}", headers=bearer()).status_code == 404, address


def test_an_app_without_a_url_is_down_and_says_why(make_app: MakeApp) -> None:
    app = make_app(RTPOOL_URL=None)
    app.debug = True
    client = app.test_client()
    assert client.get("/_rtpool/health").status_code == 503
    page = client.get("/_rtpool/")
    assert page.status_code == 200
    assert "no RTPOOL_URL" in page.text
    answer = act(client, csrf_of(client), Accept="application/json")
    assert answer.json["ok"] is False
    assert "no RTPOOL_URL" in answer.json["words"]

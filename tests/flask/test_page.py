"""What the debug page shows, and that its buttons do what is written on them."""

from __future__ import annotations

import json
import logging
import pathlib
import re
import sys
import threading
from html.parser import HTMLParser
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

import rtpool
from rtpool.errors import InvalidValue
from rtpool.flask import Realtime
from rtpool.flask.page.actions import Actions
from rtpool.flask.page.guard import Guard
from rtpool.flask.page.layout import ACTIONS, TABLES
from rtpool.flask.page.looker import Looker
from rtpool.flask.page.model import MAX_ENTRIES, MAX_ROWS
from rtpool.flask.state import AppState
from rtpool.testing import RealtimeServer
from tests.flask.conftest import MakeApp, Serve, state_of
from tests.support.secrets_watch import watch
from tests.support.wait import wait_until

STATIC = pathlib.Path(rtpool.__file__).parent / "flask" / "page" / "static"
OURS = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
HTML = '"><script>alert(1)</script><b onclick=x>&amp;'
#: Elements that have no end.
VOID = {"input", "link", "meta"}


@pytest.fixture
def debug(make_app: MakeApp) -> Flask:
    """An app in debug mode."""
    app = make_app()
    app.debug = True
    return app


class Document(HTMLParser):
    """A page, read strictly: every element that begins has its end."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice: {attrs}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every element of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]

    def has(self, attribute: str) -> list[str | None]:
        """The values of an attribute wherever it is."""
        return [attributes[attribute] for _, attributes in self.elements if attribute in attributes]


def page_of(client: FlaskClient) -> Document:
    answer = client.get("/_rtpool/")
    assert answer.status_code == 200
    return Document(answer.text)


def press(client: FlaskClient, name: str, **headers: str) -> Any:
    csrf = re.findall(r'name="csrf" value="([^"]+)"', client.get("/_rtpool/").text)[0]
    return client.post(f"/_rtpool/actions/{name}", data={"csrf": csrf}, headers={**OURS, **headers})


def rows(model: dict[str, Any], table: str) -> list[list[str]]:
    return [row["cells"] for row in model["tables"][table]["rows"]]


def test_it_shows_what_the_pool_does(debug: Flask, realtime: Realtime, serve: Serve, server: RealtimeServer) -> None:
    debug.add_url_rule("/stream", view_func=lambda: realtime.stream("cars"))
    state = state_of(debug)
    channels = [state.pool.channel("cars").on_broadcast("*", id).subscribe() for _ in range(2)]
    state.pool.channel("rooms", private=True, access_token=server.token(sub="a")).subscribe()
    serving = serve(debug)
    serving.browser().opened()
    wait_until(lambda: [feed.status for feed in state.streams.feeds] == ["joined"])
    server.broadcast("cars", "moved", {})
    wait_until(lambda: state.pool.stats().messages_delivered == 3)

    client = debug.test_client()
    page, model = page_of(client), Looker(state).look().model
    assert (model["word"], model["status"]) == ("OK", "connected")
    assert [row[:4] for row in rows(model, "connections")] == [["1", "open", "1", "2"]]
    assert rows(model, "joins") == [["cars", "joined", "1", "3"], ["rooms (private)", "joined", "1", "1"]]
    assert [row[:7] for row in rows(model, "channels")] == [
        ["cars", "joined", "1", "0", "1", "1", "0"],
        ["cars", "joined", "1", "0", "1", "1", "0"],
        ["cars", "joined", "3", "0", "1", "1", "0"],
        ["rooms (private)", "joined", "0", "0", "0", "0", "0"],
    ]
    assert [row[:3] for row in rows(model, "streams")] == [["cars", "joined", "1"]]
    assert "= 'rooms' joined on connection 1" in [row[2] for row in rows(model, "recorder")]
    figures = {each["label"]: (each["value"], each["note"]) for each in model["figures"]}
    assert figures["Channels ready"] == ("4", "of 4")
    assert (figures["Joins"], figures["Browser streams"]) == (("2", ""), ("1", ""))
    for text in ("OK", "connected", "cars", "rooms (private)", "open", "= 'rooms' joined on connection 1"):
        assert text in page.texts, text
    assert channels[0].is_subscribed


def test_it_says_what_is_wrong_and_what_to_do(debug: Flask, server: RealtimeServer) -> None:
    def fails(_: object) -> None:
        raise ValueError("no such car")

    state = state_of(debug)
    client = debug.test_client()
    assert "Nothing is wrong." in page_of(client).texts
    state.pool.channel("cars").on_broadcast("*", fails).subscribe()
    server.broadcast("cars", "moved", {})
    wait_until(lambda: state.pool.stats().callback_errors)
    model = Looker(state).look().model
    (issue,) = [issue for issue in model["issues"] if issue["code"] == "RTP024"]
    assert issue["severity"] == "warning"
    assert "pool.on_callback_error()" in issue["advice"]
    server.close()
    wait_until(lambda: state.pool.health().verdict == "down")
    page, model = Document(press(client, "log-stats").text), Looker(state).look().model
    assert model["word"] == "Down"
    assert any("'cars' is errored" in reason for reason in model["reasons"])
    assert {"RTP024", "Down"} <= set(page.texts)
    assert [row["tone"] for row in model["tables"]["channels"]["rows"]] == ["bad"]


def test_rates_are_of_two_looks(app: Flask, server: RealtimeServer) -> None:
    now = 0.0
    state = state_of(app)
    state.pool.channel("cars").on_broadcast("*", id).subscribe()
    looker = Looker(state, clock=lambda: now)
    assert [row[7] for row in rows(looker.look().model, "channels")] == ["-"]
    for _ in range(50):
        server.broadcast("cars", "moved", {})
    wait_until(lambda: state.pool.stats().messages_delivered == 50)
    now = 1.0
    (rate,) = [row[7] for row in rows(looker.look().model, "channels")]
    assert float(rate.replace(",", "")) > 0
    now = 1.1  # too soon for other rates: they stay those of the look before
    assert rows(looker.look(0).model, "channels")[0][7] not in ("-", "0.0")
    now = 100.0  # too long ago
    assert [row[7] for row in rows(looker.look().model, "channels")] == ["-"]


def test_one_look_serves_all_for_a_second(app: Flask) -> None:
    now = 0.0
    looker = Looker(state_of(app), clock=lambda: now)
    first = looker.look()
    now = 0.99
    assert looker.look() is first
    assert looker.look(0) is not first
    now = 1.99
    assert looker.look() is not first


def test_who_asks_while_another_looks_gets_what_that_one_sees(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    began, go_on, looks = threading.Event(), threading.Event(), []
    pool = state_of(app).pool

    def stats() -> Any:
        looks.append(1)
        began.set()
        assert go_on.wait(15)
        return pool

    monkeypatch.setattr(AppState, "pool", property(lambda _: stats()))
    now = 0.0
    looker = Looker(state_of(app), clock=lambda: now)
    seen: list[object] = []
    threads = [threading.Thread(target=lambda: seen.append(looker.look())) for _ in range(5)]
    threads[0].start()
    assert began.wait(15)
    now = 5.0  # what takes long is not begun again by each who waited for it
    for thread in threads[1:]:
        thread.start()
    wait_until(lambda: len(looker._changed._waiters) == 4)  # type: ignore[attr-defined]
    go_on.set()
    for thread in threads:
        thread.join(15)
    assert len(seen) == 5
    assert len(set(map(id, seen))) == 1
    assert looks == [1]


def test_a_look_that_fails_is_no_end_of_looking(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    looker = Looker(state_of(app))
    with monkeypatch.context() as patch:
        patch.setattr("rtpool.flask.page.looker.picture_of", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            looker.look()
    assert looker.look().model["word"] == "OK"


def test_open_pages_are_told_once_a_second_and_count_as_streams(debug: Flask, serve: Serve) -> None:
    debug.config["RTPOOL_MAX_STREAMS"] = 2
    serving = serve(debug)
    state = state_of(debug)
    pages = [serving.browser("/_rtpool/events") for _ in range(2)]
    for page in pages:
        heard = page.next()
        assert heard.type == "look"
        assert heard.data["word"] == "OK"
    assert state.streams.open == 2
    assert serving.browser("/_rtpool/events").status == 503
    assert pages[0].head[1]["content-security-policy"].startswith("default-src 'none'")
    for page in pages:
        page.leave()
    wait_until(lambda: not state.streams.open)


def test_a_worker_that_can_do_one_thing_at_a_time_is_asked_now_and_then(debug: Flask) -> None:
    client = debug.test_client()
    for threads, live in ((True, "data-events"), (False, "data-look")):
        answer = client.get("/_rtpool/", environ_overrides={"wsgi.multithread": threads})
        assert Document(answer.text).has(live) == [f"/_rtpool/{live.removeprefix('data-')}"]
    assert client.get("/_rtpool/events", environ_overrides={"wsgi.multithread": False}).status_code == 503
    assert client.get("/_rtpool/look").json["word"] == "OK"


# Nothing on it is anything but text


def test_html_in_topics_names_and_errors_is_shown_as_it_is(debug: Flask, server: RealtimeServer) -> None:
    debug.name = HTML

    def fails(_: object) -> None:
        raise ValueError(HTML)

    fails.__qualname__ = HTML
    state = state_of(debug)
    channel = state.pool.channel(HTML, receive_own=True).on_broadcast("*", fails).subscribe()
    state.pool.channel(f"refused {HTML}", private=True).subscribe(wait=False)
    channel.send_broadcast(HTML, {HTML: HTML})
    wait_until(lambda: state.pool.stats().callback_errors)
    client = debug.test_client()
    for answer in (client.get("/_rtpool/"), press(client, "check-lifecycle")):
        page = Document(answer.text)
        assert [attributes["src"] for attributes in page.all("script")] == ["/_rtpool/static/page.js"]
        assert HTML in page.texts
        assert not page.has("onclick")
        assert "<script>alert" not in answer.text


def test_the_page_has_no_script_and_no_style_of_its_own(debug: Flask) -> None:
    page = page_of(debug.test_client())
    assert not page.all("style")
    assert not page.has("style")
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    addresses = [value for name in ("href", "src", "action") for value in page.has(name)]
    assert addresses
    assert all(value and value.startswith(("/_rtpool/", "#")) for value in addresses), addresses


def test_the_script_writes_text_and_nothing_else() -> None:
    script = (STATIC / "page.js").read_text()
    for way in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        'setAttribute("on',
    ):
        assert way not in script
    assert "http" not in script + (STATIC / "page.css").read_text()


def test_whoever_hears_the_page_finds_their_way(debug: Flask) -> None:
    page = page_of(debug.test_client())
    assert [attributes["lang"] for attributes in page.all("html")] == ["en"]
    for landmark in ("header", "main", "nav", "footer", "h1"):
        assert len(page.all(landmark)) == 1, landmark
    identities = page.has("id")
    assert len(set(identities)) == len(identities)
    for name in ("aria-labelledby", "aria-describedby"):
        assert set(page.has(name)) <= set(identities)
    assert {value for value in page.has("href") if value and value.startswith("#")} <= {
        f"#{name}" for name in identities
    }
    assert len(page.all("caption")) == len(page.all("table")) == len(TABLES)
    assert all(attributes.get("scope") == "col" for attributes in page.all("th"))
    assert "polite" in page.has("aria-live")
    assert not [value for value in page.has("tabindex") if value not in ("0", "-1")]
    assert [attributes["type"] for attributes in page.all("input")] == ["hidden"] * len(ACTIONS)

    debug.config["RTPOOL_DEBUG_TOKEN"] = "of-some-length-and-more"
    form = Document(debug.test_client().get("/_rtpool/").text)
    (label,), (field,) = form.all("label"), form.all("input")
    assert label["for"] == field["id"]


def test_a_page_of_very_many_is_of_bounded_size(debug: Flask) -> None:
    debug.config.update(RTPOOL_URL="http://127.0.0.1:9", RTPOOL_MAX_CONNECTIONS=1, RTPOOL_RECORDER_SIZE=5_000)
    pool = state_of(debug).pool
    channels = [pool.channel(f"{n} {'x' * 200}").subscribe(wait=False) for n in range(500)]
    client = debug.test_client()
    answer = client.get("/_rtpool/")
    assert len(answer.data) < 400_000
    model = Looker(state_of(debug)).look().model
    assert len(rows(model, "channels")) == MAX_ROWS
    assert model["tables"]["channels"]["note"] == "0 of 500 ready; 200 shown, those in trouble first"
    assert len(rows(model, "joins")) == MAX_ROWS
    assert len(rows(model, "recorder")) <= MAX_ENTRIES
    assert len(model["reasons"]) <= 50
    assert len(channels) == 500


def test_no_key_and_no_token_is_ever_on_it(debug: Flask, server: RealtimeServer) -> None:
    token = "the-page-s-own-token-9431"
    watch.learn(token)
    debug.config["RTPOOL_DEBUG_TOKEN"] = token
    state = state_of(debug)
    users = server.token(sub="somebody")
    state.pool.channel("cars", access_token=users).on_broadcast("*", lambda _: 1 / 0).subscribe()
    state.pool.channel("refused", private=True, access_token="not-a-token-at-all").subscribe(wait=False)
    server.broadcast("cars", "moved", {})
    wait_until(lambda: state.pool.stats().callback_errors)
    client = debug.test_client()
    client.post("/_rtpool/sign-in", data={"token": token}, headers=OURS)
    for address in ("", "health", "metrics", "static/page.js", "static/page.css"):
        answer = client.get(f"/_rtpool/{address}")
        assert answer.status_code in (200, 503), address
        watch.look(f"/_rtpool/{address}", answer.text, str(answer.headers))
    for action in ACTIONS:
        answer = press(client, action.key)
        watch.look(action.key, answer.text, str(answer.headers))
    watch.look("the events", json.dumps(Looker(state).look().model))
    assert client.get_cookie(Guard(state).cookie, path="/_rtpool/") is not None


def test_what_looks_like_a_token_is_hidden_in_what_users_wrote_too(debug: Flask) -> None:
    signature = "c2lnbmF0dXJlLW9mLXNvbWVib2R5"
    topic = f"rides eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJzb21lYm9keSJ9.{signature}"
    channel = state_of(debug).pool.channel(topic).subscribe()
    answer = debug.test_client().get("/_rtpool/")
    assert "rides ***" in answer.text
    assert signature not in answer.text
    assert channel.is_subscribed


# Buttons


def test_each_button_says_what_it_did(debug: Flask, caplog: pytest.LogCaptureFixture) -> None:
    client = debug.test_client()
    caplog.set_level(logging.INFO, "rtpool.debug")
    page = Document(press(client, "log-stats").text)
    assert "The statistics are in the log rtpool.debug, at INFO." in page.texts
    assert any("connections open" in record.getMessage() for record in caplog.records)
    told = press(client, "check-lifecycle", Accept="application/json").json
    assert told["ok"] is True
    assert re.fullmatch(r"A probe channel was joined in .+ and left in .+; nothing of it is left\.", told["words"])
    assert press(client, "force-clean-up", Accept="application/json").json["words"] == "1 idle connection closed."
    assert press(client, "force-clean-up", Accept="application/json").json["words"] == "0 idle connections closed."


def test_statistics_that_nobody_takes_are_not_said_to_be_written(
    debug: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    def log_stats() -> dict[str, Any]:
        told: dict[str, Any] = press(debug.test_client(), "log-stats", Accept="application/json").json
        return told

    caplog.set_level(logging.WARNING, "rtpool.debug")
    told = log_stats()
    assert (told["ok"], told["details"][1]) == (False, "logging.getLogger('rtpool.debug').setLevel(logging.INFO)")
    assert "Nobody takes the log rtpool.debug at INFO" in told["words"]
    caplog.set_level(logging.INFO, "rtpool.debug")
    assert log_stats()["ok"] is True
    logging.getLogger("rtpool.debug").propagate = False
    try:
        assert log_stats()["ok"] is False, "it has no handler"
    finally:
        logging.getLogger("rtpool.debug").propagate = True


def test_a_probe_that_fails_says_why(debug: Flask, server: RealtimeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtpool.flask.page.actions.PROBE_SECONDS", 0.2)
    server.close()
    told = press(debug.test_client(), "check-lifecycle", Accept="application/json").json
    assert told["ok"] is False
    assert told["words"].startswith("The probe channel rtpool-probe-")
    assert [line.partition(":")[0] for line in told["details"]] == ["threads", "connections", "joins", "subscriptions"]


def test_one_thing_is_done_at_a_time() -> None:
    began, go_on = threading.Event(), threading.Event()

    class Busy:
        def _pool(self) -> None:
            """It is gone."""

        def log_stats(self) -> None:
            began.set()
            assert go_on.wait(15)

        def force_cleanup(self) -> int:
            raise InvalidValue("no such thing")

    actions, told = Actions(), []
    thread = threading.Thread(target=lambda: told.append(actions.do("log-stats", Busy())))  # type: ignore[arg-type]
    thread.start()
    assert began.wait(15)
    assert "Another action is under way" in actions.do("log-stats", Busy())["words"]  # type: ignore[arg-type]
    go_on.set()
    thread.join(15)
    assert told == [{"ok": False, "words": "The pool is gone.", "details": []}]
    for _ in range(2):  # and one that fails is over, too
        refused = actions.do("force-clean-up", Busy())  # type: ignore[arg-type]
        assert refused == {"ok": False, "words": "InvalidValue: no such thing", "details": []}


# For machines


def test_prometheus_is_told_of_this_app_alone(debug: Flask, make_app: MakeApp, realtime: Realtime) -> None:
    pytest.importorskip("prometheus_client")
    other = make_app(name="another")
    state_of(other).pool.channel("elsewhere").subscribe()
    state_of(debug).pool.channel("here").subscribe()
    client = debug.test_client()
    answer = client.get("/_rtpool/metrics")
    assert answer.mimetype == "text/plain"
    samples = re.findall(r"^rtpool_joins\{(.*)\} (.*)$", answer.text, re.MULTILINE)
    assert samples == [
        (
            f'pool="{state_of(debug).pool._engine.name}",server="{state_of(debug).pool._engine.endpoint.url.split("/")[2]}"',
            "1.0",
        )
    ]
    openly = client.get("/_rtpool/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert openly.mimetype == "application/openmetrics-text"
    assert openly.text.endswith("# EOF\n")
    with debug.app_context():
        realtime.close()
    assert "rtpool_joins{" in client.get("/_rtpool/metrics").text


def test_without_prometheus_client_it_says_what_to_install(debug: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client.exposition", None)
    answer = debug.test_client().get("/_rtpool/metrics")
    assert answer.status_code == 404
    assert "pip install 'rtpool[prometheus]'" in answer.text


# What is seen


def luminance(colour: str) -> float:
    """By WCAG 2.2, "relative luminance"."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, another: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(another)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_colours_keep_the_contrast_of_wcag_aa_in_light_and_dark() -> None:
    style = (STATIC / "page.css").read_text()
    light, dark = (
        dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", part)) for part in re.findall(r":root \{(.*?)\}", style, re.S)
    )
    assert light.keys() == dark.keys()
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for colours in (light, dark):
        for ground in ("ground", "card", "sunken"):
            for text in ("ink", "quiet", "accent", "good", "warn", "bad"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
            assert contrast(colours["edge"], colours[ground]) >= 3, ground  # of buttons and fields
        assert contrast(colours["on-accent"], colours["accent"]) >= 4.5

"""Secrets stay secret: the watch for them is there while every test runs, and sees them wherever one could be read."""

from __future__ import annotations

import base64
import logging
import pathlib
import traceback
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest

import rtpool
from rtpool.protocol.json_engine import dumps
from rtpool.protocol.messages import JsonBody
from rtpool.protocol.session import OutgoingFrame
from rtpool.testing import JoinRefusal, PushReply, RealtimeServer, Refusal
from tests.conftest import MakePool
from tests.support.recorder import Recorder
from tests.support.secrets_watch import SecretsWatch, watch
from tests.support.wait import CAP
from tests.support.ways import fails

#: Found nowhere, and with characters that URLs and base64 write otherwise.
SECRET = "sb_secret/Zq+9 xw?7kLmN=tRv"


@pytest.fixture
def leaks() -> Iterator[Callable[[], list[str]]]:
    """What the watch of this test saw since it was asked last."""
    watch.learn(SECRET)
    return watch.take_leaks


def ours(source: str) -> dict[str, Any]:
    """A function as if it were of rtpool."""
    names: dict[str, Any] = {}
    exec(compile(source, rtpool.__file__.replace("__init__", "offence"), "exec"), names)
    return names


# How it is found


@pytest.mark.parametrize("before", ["", "x", "xy", "xyz"])
@pytest.mark.parametrize(
    "written",
    [
        str,
        lambda text: quote(text, safe=""),
        lambda text: base64.b64encode(text.encode()).decode(),
        lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
    ],
    ids=["plain", "percent-encoded", "base64", "URL-safe base64"],
)
def test_a_secret_is_found_however_it_is_written_and_whatever_is_around_it(
    before: str, written: Callable[[str], str]
) -> None:
    of_mine = SecretsWatch()
    of_mine.learn(SECRET)
    assert of_mine.shows_secret(f"a line with {before}{written(before + SECRET + ' at the end')} in it")
    assert not of_mine.shows_secret(f"a line with {before}{written(before + 'another ' + SECRET[:6])} in it")


@pytest.mark.parametrize("offset", range(8))
def test_a_part_of_twelve_characters_is_found_wherever_it_stands(offset: int) -> None:
    of_mine = SecretsWatch()
    of_mine.learn(SECRET)
    for start in range(len(SECRET) - 11):
        assert of_mine.shows_secret("-" * offset + SECRET[start : start + 12] + "-" * 5)
        assert not of_mine.shows_secret("-" * offset + SECRET[start : start + 11] + "|" * 5)


def test_of_a_token_the_head_is_no_secret_and_all_else_is(server: RealtimeServer) -> None:
    head, claims, signature = server.token(role="anon").split(".")
    assert not watch.shows_secret(f"{head}.")
    assert watch.shows_secret(claims[-20:])
    assert watch.shows_secret(signature[:12])
    assert watch.shows_secret(server.secret)
    assert watch.shows_secret(server.api_key)


def test_what_a_test_made_secret_is_so_until_the_next_and_what_fixtures_share_for_ever() -> None:
    of_mine = SecretsWatch()
    of_mine.learn("shared by several tests")
    of_mine.begin()
    of_mine.learn("of the first test alone")
    of_mine.end()
    assert of_mine.shows_secret("of the first test alone")
    of_mine.begin()
    assert not of_mine.shows_secret("of the first test alone")
    assert of_mine.shows_secret("shared by several tests")


# Where it is found


def raise_deep() -> None:
    ours(f"def fails():\n    query = 'apikey=' + {SECRET!r}\n    raise ValueError('in vain')\n")["fails"]()


def noted(error: BaseException) -> BaseException:
    error.__notes__ = [SECRET]  # type: ignore[attr-defined]
    return error


def caused_by(cause: BaseException) -> BaseException:
    try:
        raise rtpool.ConnectionFailed("in vain") from cause
    except rtpool.ConnectionFailed as error:
        return error


def met_by(other: BaseException) -> BaseException:
    try:
        try:
            raise other
        except BaseException:
            raise KeyError("in vain")  # noqa: B904
    except KeyError as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        ValueError(SECRET),
        OSError(5, SECRET),
        rtpool.JoinRefused("in vain", reason=SECRET),
        rtpool.JoinRefused("in vain", response={"told": [SECRET]}),
        noted(ValueError("in vain")),
        caused_by(ValueError(f"apikey={SECRET}")),
        met_by(ValueError(SECRET)),
    ],
    ids=["words", "arguments", "attribute", "deep in an attribute", "note", "cause", "context"],
)
def test_an_error_that_shows_a_secret_is_found(leaks: Callable[[], list[str]], error: BaseException) -> None:
    watch.look_at_error("a test", error)
    assert leaks()


def test_a_local_variable_of_ours_in_a_logged_traceback_is_found(leaks: Callable[[], list[str]]) -> None:
    try:
        raise_deep()
    except ValueError:
        logging.getLogger("rtpool.io").debug("failed", exc_info=True)
    assert "the variable query shows a secret" in leaks()[0]


@pytest.mark.parametrize("name", ["rtpool.pool", "a.user"])
def test_a_line_of_any_log_at_any_level_is_found(leaks: Callable[[], list[str]], name: str) -> None:
    logging.getLogger(name).debug("apikey=%s", quote(SECRET, safe=""))
    assert name in leaks()[0]


class Loose:
    """A part of a pool that shows more than it should."""

    def __repr__(self) -> str:
        return SECRET


def test_what_leaves_a_pool_is_looked_at(
    pool: rtpool.RealtimePool, leaks: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Recorder()
    channel = pool.channel("room").on_status(heard).subscribe()
    heard.wait(2)
    assert leaks() == []
    pool._engine.loose = Loose()  # type: ignore[attr-defined]
    watch.look_at_pool(pool)
    assert "the repr of a part" in leaks()[0]
    del pool._engine.loose  # type: ignore[attr-defined]

    monkeypatch.setattr(pool._engine, "name", SECRET)
    with pytest.raises(rtpool.PoolClosed):
        pool.close() and channel.send_broadcast("x", {})
    assert any("PoolClosed in Channel.send_broadcast()" in leak for leak in leaks())


def test_what_a_callback_is_told_is_looked_at(
    server: RealtimeServer, make_pool: MakePool, leaks: Callable[[], list[str]]
) -> None:
    pool = make_pool(recorder_size=0)  # which would show it for ever
    server.on_join = lambda *_: JoinRefusal(f"Unauthorized: {SECRET}")
    heard = Recorder()
    channel = pool.channel("room").on_status(heard).subscribe(wait=False)
    heard.wait_for(lambda events: events[-1].error is not None)
    channel.unsubscribe()
    assert any("what a callback is told" in leak for leak in leaks())


def test_what_is_inside_shows_no_token_either(
    server: RealtimeServer, make_pool: MakePool, leaks: Callable[[], list[str]]
) -> None:
    token = server.token(role="authenticated")
    pool = make_pool(access_token=token)
    pool.channel("room").subscribe()
    (join,) = pool._engine.coordinator.joins.values()
    assert join.token == token
    assert "token=" not in repr(join).replace("needs_token=", "")
    assert not watch.shows_secret(repr(join))
    body = JsonBody(dumps({"access_token": token}))
    frame = OutgoingFrame(False, body.data, "7", "room", "access_token")
    assert repr(body) == f"<JsonBody of {len(body.data)} bytes>"
    assert repr(frame) == f"<OutgoingFrame room access_token ref 7, {len(body.data)} bytes>"
    assert leaks() == []


@pytest.mark.parametrize("api_key_in", ["query", "header"])
def test_the_traceback_of_a_refused_dial_has_its_lines_and_none_of_its_variables(
    server: RealtimeServer, api_key_in: str
) -> None:
    server.on_connect = lambda request: Refusal(403, "no", delay=0)
    error = fails(server.url, rtpool.HandshakeRefused, api_key_in=api_key_in)  # which looks at it
    frames = {frame.f_code.co_name: frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)}
    assert frames["upgrade"] == {}
    assert "deadline" in frames["dial"]


def test_a_warning_is_looked_at(leaks: Callable[[], list[str]]) -> None:
    with pytest.warns(ResourceWarning):
        rtpool.engine.engine.warnings.warn(SECRET, ResourceWarning, stacklevel=2)
    assert "a warning shows a secret" in leaks()[0]


def test_a_test_fails_for_what_it_logs_or_prints_in_the_background(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(__file__).parent.parent))
    pytester.makeconftest("from tests.conftest import pytest_runtest_makereport, secrets_stay_secret")
    pytester.makepyfile(
        """
        import logging
        import threading
        from rtpool.testing import RealtimeServer

        def test_that_logs():
            server = RealtimeServer()
            log = logging.getLogger("anybody").debug
            thread = threading.Thread(target=log, args=("%s", server.api_key))
            thread.start()
            thread.join()

        def test_that_prints():
            print(RealtimeServer().secret)

        def test_of_others():
            pass
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:randomly")
    capsys.readouterr()  # what it shows looks like this process's own tokens, and would fail this test
    result.assert_outcomes(passed=2, failed=1, errors=1)


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "JSON"])
def test_what_a_dump_shows_is_looked_at(
    pool: rtpool.RealtimePool, leaks: Callable[[], list[str]], as_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loose = pool.debug_dump(as_json=as_json) + SECRET
    monkeypatch.setattr(pool, "debug_dump", lambda **_: loose)
    watch.look_at_pool(pool)
    assert "the dump shows a secret" in leaks()[0]
    monkeypatch.undo()


# What rtpool does about it


TOKENS = {
    "of its own kind": "opaque/Zq+9 xw?7kLmN=tRv",
    "a JWT": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJtZSJ9.c2lnbmF0dXJlLW9mLWl0",
}


@pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS)
def test_a_token_in_use_that_a_server_repeats_where_it_refuses_is_in_no_words_of_an_error(
    server: RealtimeServer, make_pool: MakePool, token: str, leaks: Callable[[], list[str]]
) -> None:
    words = f"what is {token}"
    server.on_join = lambda topic, *_: JoinRefusal(f"Unauthorized: {words}") if topic == "refused" else None
    server.on_push = lambda topic, event, *_: event == "access_token" or PushReply({"reason": words}, "error")
    pool, heard = make_pool(recorder_size=0), Recorder()
    room = pool.channel("room").on_status(heard).subscribe()
    pool.set_auth(token)
    with pytest.raises(rtpool.PushRefused) as push:
        room.push("x", {}).result(CAP)
    assert str(push.value).endswith("with error: {'reason': 'what is ***'}")
    assert push.value.response == {"reason": words}, "data stays as it came"
    leaks()

    watch.learn(token)
    with pytest.raises(rtpool.JoinRefused, match=r"Unauthorized: what is \*\*\*; not tried") as join:
        pool.channel("refused").on_status(heard).subscribe()
    assert (join.value.code, join.value.reason) == ("Unauthorized", "what is ***")
    server.shut_down("room", words)
    heard.wait_for(lambda events: any(e.error is not None and e.topic == "room" for e in events))
    assert leaks() == []

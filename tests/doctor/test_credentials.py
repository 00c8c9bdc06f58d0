"""What the doctor reads in keys and tokens, and what a wrong one fails by; it is never shown."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

import rtpool
from rtpool.testing import RealtimeServer
from rtpool.testing.tokens import make_token
from tests.doctor.examining import examine, fails_at, fine, step_of
from tests.support.ways import SECRET

NOW = int(time.time())


def key(**claims: Any) -> str:
    return make_token(SECRET, {"role": "anon", "exp": NOW + 10**8, "iss": "supabase", **claims})


def without(name: str) -> str:
    claims = {"role": "anon", "exp": NOW + 10**8}
    del claims[name]
    return make_token(SECRET, claims)


def at_project(server: RealtimeServer) -> rtpool.PoolOptions:
    """Leads every name to the server."""
    return rtpool.PoolOptions(dial=lambda host, port, seconds: socket.create_connection(("127.0.0.1", server.port)))


def read(text: str | None, url: str = "http://abc.localhost", **given: Any) -> Any:
    """The step on a key, without any server."""

    def nowhere(_host: str, _port: int, _seconds: float) -> socket.socket:
        raise ConnectionRefusedError("nobody is there")

    return step_of(examine(url, text, options=rtpool.PoolOptions(dial=nowhere), **given), "key")


@pytest.mark.parametrize(
    ("text", "words", "advice"),
    [
        (None, "there is no API key", "--key, or SUPABASE_KEY"),
        ("", "there is no API key", "--key, or SUPABASE_KEY"),
        (f" {key()}", "has a space or a line break at an end", ".env"),
        (f"{key()}\n", "has a space or a line break at an end", ".env"),
        (f'"{key()}"', "is in quotes", "Take them off; .*.env"),
        (f"Bearer {key()}", "has the word Bearer in front", "Take it off; .*.env"),
        (key().replace(".", " ."), "has a space, a line break", ".env"),
        (f"sbp_{SECRET}", "Management API", "Project Settings"),
        (without("role"), "has no claim role", "Realtime refuses it"),
        (without("exp"), "has no claim exp", "Realtime refuses it"),
        (key(exp=NOW - 200_000), "role anon: expired 2 days ago", "clock says .* is that right"),
    ],
)
def test_a_key_that_cannot_be_right(text: str | None, words: str, advice: str) -> None:
    step = read(text)
    assert step.status == "failed"
    assert words in step.words
    assert re.search(advice, step.advice), step


def test_an_expired_key_is_told_before_the_server_says_the_same() -> None:
    with RealtimeServer(secret=SECRET) as server:
        report = examine(server.url, key(exp=NOW - 7200))
    assert [step.status for step in report.steps[:2]] == ["ok", "failed"]
    assert step_of(report, "key").words == "role anon: expired 2 hours ago"
    upgrade = step_of(report, "upgrade")
    assert upgrade.status == "failed"
    assert upgrade.words.startswith("HTTP 401: Token has expired")
    assert report.exit_code == 1


def test_a_key_that_only_our_wrong_clock_finds_expired_is_let_in_all_the_same() -> None:
    with RealtimeServer(secret=SECRET, clock_at=NOW - 10_000) as server:
        report = examine(server.url, key(exp=NOW - 7200))
    fails_at(report, "key", "expired 2 hours ago", "clock says")


def test_the_key_of_another_project(server: RealtimeServer) -> None:
    report = examine("http://abc.supabase.co", key(ref="other"), options=at_project(server))
    step = step_of(report, "key")
    assert (step.status, step.words) == ("failed", "the key is of project other, the URL of abc")
    assert report.summary().startswith("2 failed, first key")
    assert "another project" in step_of(report, "upgrade").advice


def test_a_key_signed_with_another_secret_looks_right_and_is_refused(server: RealtimeServer) -> None:
    report = examine(server.url, key())
    fails_at(report, "upgrade", "HTTP 401: Failed to validate JWT signature .*waits for another key", "another project")


def test_a_key_that_is_cut(server: RealtimeServer) -> None:
    report = examine(server.url, server.api_key[:60])
    fails_at(report, "upgrade", "HTTP 401: The token provided is not a valid JWT", "is cut", warned=("key",))


def test_no_key_at_all(server: RealtimeServer) -> None:
    report = examine(server.url, None)
    assert step_of(report, "key").status == "failed"
    assert "API key is missing" in step_of(report, "upgrade").words


@pytest.mark.parametrize(
    ("make", "status", "words", "advice"),
    [
        (lambda: key(ref="abc"), "ok", "role anon, project abc, ", ""),
        (lambda: f"sb_publishable_{SECRET}", "ok", "a publishable key", ""),
        (lambda: f"sb_secret_{SECRET}", "warning", "a secret key", "must never reach a browser"),
        (lambda: key(role="service_role", ref="abc"), "warning", "security does not bind it", "Keep it on servers"),
        (lambda: key(exp=time.time() + 86_400 * 5 + 60), "warning", "5 days left", "Take another one in time"),
        (lambda: key(iat=time.time() + 7300), "warning", "left", "issued 2 hours from now"),
        (lambda: key(role="authenticated"), "warning", "a user's access token, no API key", "Give it as --token"),
        (lambda: key(role="mine", session_id="1"), "warning", "a user's access token", "the project's key as --key"),
        (lambda: "some-opaque-key-or-other", "warning", "neither a JWT", "hosted project takes no such key"),
    ],
)
def test_what_a_key_says(make: Callable[[], str], status: str, words: str, advice: str) -> None:
    step = read(make(), "https://abc.supabase.co")
    assert step.status == status
    assert words in step.words
    assert advice in step.advice


def test_a_key_of_the_gateways_is_doubted_where_there_is_none() -> None:
    step = read(f"sb_publishable_{SECRET}", "http://localhost:4000/socket")
    assert step.status == "warning"
    assert "gateway in front" in step.advice


def test_claims_are_in_the_details() -> None:
    details = read(key(ref="abc", iat=NOW - 60), "https://abc.supabase.co").details
    assert {name: details[name] for name in ("kind", "role", "project")} == {
        "kind": "jwt",
        "role": "anon",
        "project": "abc",
    }
    assert details["expires"] > details["issued"]


# Tokens


@pytest.mark.parametrize(
    ("text", "words", "advice"),
    [
        ("not-a-token", "this is no JWT", "sign in again"),
        (key(role="authenticated", exp=NOW - 7300), "role authenticated: expired 2 hours ago", "session refreshed"),
        (
            key(iss="https://other.supabase.co/auth/v1"),
            "the token is of project other, the URL of abc",
            "must be of one",
        ),
    ],
)
def test_a_token_that_cannot_be_right(text: str, words: str, advice: str, server: RealtimeServer) -> None:
    report = examine("http://abc.supabase.co", server.api_key, token=text, options=at_project(server))
    step = step_of(report, "token")
    assert step.status == "failed"
    assert words in step.words
    assert advice in step.advice
    assert step_of(report, "join").status == "failed"  # the server finds the same
    assert report.exit_code == 1


def test_a_token_in_quotes_is_not_used(server: RealtimeServer) -> None:
    report = examine(server.url, server.api_key, token=f'"{server.token()}"')
    fails_at(report, "token", "is in quotes; it is not used", "Take them off")


def test_a_token_of_another_secret_is_refused_at_the_join(server: RealtimeServer) -> None:
    report = examine(server.url, server.api_key, token=make_token(SECRET, {"role": "authenticated", "exp": NOW + 9000}))
    step = step_of(report, "join")
    assert step.status == "failed"
    assert "refused: JwtSignatureError: Failed to validate JWT signature (rtpool waits for another" in step.words
    assert "of another project" in step.advice


def test_the_command_line_tools_own_token_is_not_taken_for_a_users(server: RealtimeServer) -> None:
    steps = fine(examine(server.url, server.api_key, token=f"sbp_{SECRET}"), warned=("token",))
    assert "is not used" in steps["token"].words
    assert steps["private"].status == "skipped"


def test_a_token_about_to_end_is_warned_of(server: RealtimeServer) -> None:
    steps = fine(examine(server.url, server.api_key, token=server.token(expires_in=100)), warned=("token",))
    assert "callable" in steps["token"].advice
    assert steps["token"].details["role"] == "authenticated"

"""The doctor's first steps, each by a mistake of just that: the URL, the name, the port."""

from __future__ import annotations

import socket
import sys
import threading
from typing import Any

import pytest

from rtpool.testing import RealtimeServer, faults
from tests.doctor.examining import PATIENCE, examine, fails_at, fine, step_of
from tests.support.ways import SECRET, closed_port

KEY = "some-key-of-the-project"


@pytest.mark.parametrize(
    ("url", "words", "advice"),
    [
        ("", "begins with none of", "Put https:// in front"),
        ("abc.supabase.co", "begins with none of", "Put https:// in front"),
        ("localhost:54321", "begins with none of", "Put https:// in front"),
        ("ftp://abc.supabase.co", "begins with none of", "https://<project>"),
        (" https://abc.supabase.co", "spaces or quotes", "Take them off"),
        ('"https://abc.supabase.co"', "spaces or quotes", "Take them off"),
        ("postgresql://postgres:x@db.abc.supabase.co:5432/postgres", "database's connection string", "https://<proj"),
        ("https://supabase.com/dashboard/project/abcdef", "the dashboard's", "Give https://abcdef.supabase.co"),
        ("https://app.supabase.com", "the dashboard's", "Data API"),
        ("https://aws-0-eu-central-1.pooler.supabase.com:6543", "connection pooler's", "Data API"),
        ("https://db.abcdef.supabase.co", "the database's", "Give https://abcdef.supabase.co"),
        ("https://my.host.example:5432", "database's, by its port", "Data API"),
        ("http://localhost:54323", "serves Studio", "port 54321"),
        ("http://127.0.0.1:54322", "serves the database", "port 54321"),
        ("https://abc.supabase.co/rest/v1", "that of the REST API", "Leave the path out"),
        ("https://my.host.example/auth/v1/", "that of Auth", "Leave the path out"),
        ("https://abc.supabase.co/realtime", "nothing at /realtime", "Leave the path out"),
        ("https://x:hush-hush@abc.supabase.co", "no credentials", "https://<project>"),
        ("https://abc.supabase.co?apikey=hush-hush", "no credentials, query", "https://<project>"),
        ("https://abc:hush-hush", "cannot be read", "https://<project>"),
        ("https://abc.supabase.co:0", "no usable host and port", "https://<project>"),
    ],
)
def test_a_mistake_in_the_url_is_named(url: str, words: str, advice: str) -> None:
    found = fails_at(examine(url, KEY), "url", words, advice)
    assert SECRET not in repr(found)


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("https://abc.supabase.co", "wss://abc.supabase.co/realtime/v1/websocket"),
        ("wss://abc.supabase.co/realtime/v1/websocket/", "wss://abc.supabase.co/realtime/v1/websocket"),
        ("http://localhost:54321", "ws://localhost:54321/realtime/v1/websocket"),
        ("https://realtime.my.host.example/socket", "wss://realtime.my.host.example/socket/websocket"),
    ],
)
def test_a_url_in_order_is_shown_as_it_is_dialled(url: str, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    step = step_of(examine(url, KEY), "url")
    assert (step.status, step.words) == ("ok", endpoint)


def test_what_goes_over_the_internet_without_tls_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for url in ("http://abc.supabase.co", "ws://8.8.8.8"):
        step = step_of(examine(url, KEY), "url")
        assert step.status == "warning"
        assert "Use https" in step.advice


def unknown(*_: Any, **__: Any) -> Any:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.mark.parametrize(
    ("url", "advice"),
    [("https://abcdef.supabase.co", "reference .abcdef. letter by letter"), ("https://nowhere.test", "VPN")],
)
def test_a_name_that_nobody_knows(url: str, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    fails_at(
        examine(url, "sb_publishable_" + SECRET), "dns", "cannot be found: Name or service", advice, warned=warned(url)
    )


def warned(url: str) -> tuple[str, ...]:
    return () if "supabase" in url else ("key",)


def test_a_name_that_really_does_not_resolve() -> None:
    # RFC 6761 §6.4: never. A machine without a resolver says so in other words.
    fails_at(examine("https://nobody.invalid", KEY), "dns", "nobody.invalid cannot be found", "letter", warned=("key",))


def test_a_look_up_that_hangs_takes_no_longer_than_the_time_given(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def hang(*_: Any, **__: Any) -> Any:
        over.wait(30)
        return unknown()

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    report = examine("https://abc.supabase.co", "sb_publishable_" + SECRET, timeout=PATIENCE)
    over.set()
    fails_at(report, "dns", r"not done when the 1 s of --timeout were over", "it is this step")


def test_a_port_where_nobody_listens() -> None:
    port = closed_port()
    report = examine(f"http://127.0.0.1:{port}", KEY)
    words = f"port {port} of 127.0.0.1: connection refused"
    found = fails_at(report, "tcp", words, "Nothing listens", warned=("key",))
    assert found.details["failed"] == {"127.0.0.1": "connection refused"}


def test_a_port_that_is_closed_while_the_environment_has_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    url = f"http://127.0.0.1:{closed_port()}"
    fails_at(examine(url, KEY), "tcp", "refused", "HTTP_PROXY is set: .* give it as --proxy", warned=("key",))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert "HTTP_PROXY" not in step_of(examine(url, KEY), "tcp").advice


@pytest.mark.skipif(sys.platform != "linux", reason="other systems may refuse what Linux drops")
def test_a_firewall_that_drops_all_packets(server: RealtimeServer) -> None:
    with server.inject(faults.BlackHole()):
        report = examine(server.url, server.api_key, patience=PATIENCE)
    fails_at(report, "tcp", "127.0.0.1: no answer", "firewall")


def test_one_of_several_addresses_that_is_dead(server: RealtimeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = closed_port()
    real = socket.getaddrinfo

    def two(host: str, port: int, **named: Any) -> Any:
        return [*real("127.0.0.2", dead, **named), *real("127.0.0.1", server.port, **named)]

    monkeypatch.setattr(socket, "getaddrinfo", two)
    step = step_of(examine(f"http://two.test:{server.port}", server.api_key), "tcp")
    assert step.status == "warning"
    assert "1 of 2 addresses do not: 127.0.0.2" in step.words
    assert "order of DNS" in step.advice


def test_a_host_with_ipv6_addresses_only_is_told_of(ipv6: str) -> None:
    with RealtimeServer(host=ipv6) as server:
        steps = fine(examine(server.url, server.api_key), warned=("dns",))
    assert "IPv6 addresses only: ::1" in steps["dns"].words
    assert "no IPv6" in steps["dns"].advice

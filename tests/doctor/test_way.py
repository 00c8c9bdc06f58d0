"""The doctor's steps on the way to the server, each by breaking just that: the proxy, TLS, the upgrade, the clocks."""

from __future__ import annotations

import datetime
import pathlib
import re
import socket
import ssl
from email.utils import format_datetime
from typing import Any

import pytest
import trustme

import rtpool
from rtpool.doctor.certificate import read_certificate
from rtpool.testing import RealtimeServer, faults
from rtpool.testing.refusals import Handshake
from tests.doctor.examining import PATIENCE, examine, fails_at, fine, step_of
from tests.support.peer import Peer, Serve, answer, saying, silence, upgrading
from tests.support.proxies import proxy
from tests.support.ways import SECRET, serving, trusting

NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)
KEY = f"sb_publishable_{SECRET}"


def options(**given: Any) -> rtpool.PoolOptions:
    return rtpool.PoolOptions(**given)


# The proxy


@pytest.mark.parametrize("kind", ["http", "socks5"])
def test_the_way_through_a_proxy(kind: str, server: RealtimeServer) -> None:
    with proxy(kind) as between:
        chosen = options(proxy=f"{kind}://127.0.0.1:{between.port}")
        steps = fine(examine(server.url, server.api_key, options=chosen))
        assert between.asked
    assert steps["tcp"].details["port"] == between.port
    assert steps["proxy"].words == f"{kind}://127.0.0.1:{between.port} leads to 127.0.0.1:{server.port}"


@pytest.mark.parametrize(
    ("status", "words", "advice"),
    [
        (407, "HTTP 407", "wants a user and a password"),
        (403, "HTTP 403", "Ask who runs it to allow CONNECT"),
        (502, "HTTP 502", "does not reach the server"),
        (418, "HTTP 418", "Ask who runs the proxy"),
    ],
)
def test_a_proxy_that_refuses(status: int, words: str, advice: str, server: RealtimeServer) -> None:
    with Peer(saying(answer(status))) as between:
        chosen = options(proxy=f"http://me:{SECRET}@127.0.0.1:{between.port}")
        report = examine(server.url, server.api_key, options=chosen)
    found = fails_at(report, "proxy", words, advice)
    assert found.details["status"] == status


def test_a_socks_proxy_that_wants_other_credentials(server: RealtimeServer) -> None:
    with proxy("socks5", username="me", password=SECRET) as between:
        chosen = options(proxy=f"socks5://me:wrong-{SECRET}@127.0.0.1:{between.port}")
        fails_at(examine(server.url, server.api_key, options=chosen), "proxy", "did not connect", "who runs the proxy")


def test_what_is_no_proxy(server: RealtimeServer) -> None:
    with Peer(saying(b"SSH-2.0-OpenSSH_9.2\r\n")) as between:
        chosen = options(proxy=f"http://127.0.0.1:{between.port}")
        report = examine(server.url, server.api_key, options=chosen)
    fails_at(report, "proxy", "no HTTP", "Is there a http proxy at 127.0.0.1")


def test_a_proxy_that_is_not_there_and_one_that_has_no_name(
    server: RealtimeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    report = examine(server.url, server.api_key, options=options(proxy=f"http://127.0.0.1:{port}"))
    refused = f"^the proxy's port {port} of 127.0.0.1: connection refused"
    fails_at(
        report, "tcp", refused, f"Nothing listens at the proxy 127.0.0.1:{port}: .*--proxy.* whether the proxy runs"
    )
    report = examine(server.url, server.api_key, options=options(proxy="http://nobody.invalid:3128"))
    fails_at(report, "dns", "nobody.invalid cannot be found", "--proxy")


def test_a_proxy_of_the_environment_is_not_used_and_that_is_told(
    server: RealtimeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", f"http://me:{SECRET}@127.0.0.1:9")
    step = fine(examine(server.url, server.api_key))["proxy"]
    assert "ALL_PROXY is not used" in step.words
    assert "option proxy" in step.advice


def test_a_dial_function_of_ones_own_opens_the_connections(server: RealtimeServer) -> None:
    def dial(_host: str, _port: int, seconds: float) -> socket.socket:
        return socket.create_connection(("127.0.0.1", server.port), seconds)

    steps = fine(examine("http://abc.localhost", server.api_key, options=options(dial=dial)))
    assert {steps[name].words for name in ("dns", "tcp", "proxy")} == {"the option dial opens the connections"}


# TLS


def test_all_is_well_by_tls(authority: trustme.CA) -> None:
    with RealtimeServer(ssl_context=serving(authority, "127.0.0.1", "localhost")) as server:
        steps = fine(examine(server.url, server.api_key, options=options(ssl_context=trusting(authority))))
    tls = steps["tls"]
    assert tls.words.startswith("TLSv1.3, certificate by ")
    assert tls.words.endswith(" days left")
    assert tls.details["names"] == ["127.0.0.1", "localhost"]
    assert tls.details["self_signed"] is False


def listening(context: ssl.SSLContext) -> Peer:
    def serve(peer: Peer, sock: socket.socket) -> None:
        sock.recv(1)

    return Peer(serve, tls=context)


@pytest.mark.parametrize(
    ("names", "details", "words", "advice"),
    [
        (
            ["127.0.0.1"],
            {"not_before": NOW - 9 * DAY, "not_after": NOW - 2 * DAY},
            "expired on .*, [12] days ago",
            "Renew",
        ),
        (["127.0.0.1"], {"not_before": NOW + 2 * DAY, "not_after": NOW + 9 * DAY}, "begins on", "clock says"),
        (["other.example", "127.0.0.2"], {}, "not for 127.0.0.1: it is for other.example, 127.0.0.2", "Give a URL"),
    ],
    ids=["expired", "not yet valid", "another host's"],
)
def test_a_certificate_that_does_not_hold(
    names: list[str], details: dict[str, Any], words: str, advice: str, authority: trustme.CA
) -> None:
    with listening(serving(authority, *names, **details)) as peer:
        report = examine(f"https://127.0.0.1:{peer.port}", KEY, options=options(ssl_context=trusting(authority)))
    fails_at(report, "tls", words, advice, warned=("key",))


def test_a_certificate_of_nobody_who_is_trusted(authority: trustme.CA) -> None:
    with listening(serving(authority, "127.0.0.1")) as peer:
        report = examine(f"https://127.0.0.1:{peer.port}", KEY)
    fails_at(report, "tls", "nobody here trusts who issued", "SSL_CERT_FILE", warned=("key",))


def test_a_certificate_that_is_its_own_authority(tmp_path: pathlib.Path) -> None:
    alone = trustme.CA(organization_name="Alone")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    path = tmp_path / "alone.pem"
    path.write_bytes(alone.private_key_pem.bytes() + alone.cert_pem.bytes())
    context.load_cert_chain(path)
    with listening(context) as peer:
        report = examine(f"https://127.0.0.1:{peer.port}", KEY)
    fails_at(report, "tls", "is self-signed", "Never turn verification off", warned=("key",))


def test_a_certificate_that_ends_soon_is_warned_of(authority: trustme.CA) -> None:
    context = serving(authority, "127.0.0.1", not_after=NOW + 5 * DAY)
    with RealtimeServer(ssl_context=context) as server:
        report = examine(server.url, server.api_key, options=options(ssl_context=trusting(authority)))
    assert "renew it" in fine(report, warned=("tls",))["tls"].advice


def test_a_server_without_tls(server: RealtimeServer) -> None:
    report = examine(f"https://127.0.0.1:{server.port}", server.api_key)
    fails_at(report, "tls", "no connection to", "give the URL as http://")


def test_a_server_that_never_shakes_hands() -> None:
    with Peer(silence) as peer:
        report = examine(f"https://127.0.0.1:{peer.port}", KEY, patience=PATIENCE)
    fails_at(report, "tls", "within", "its process hangs", warned=("key",))


def test_a_certificate_is_read_as_ssl_reads_one_it_trusts(authority: trustme.CA) -> None:
    with (
        listening(serving(authority, "127.0.0.1", "::1", "*.host.example")) as peer,
        socket.create_connection(("127.0.0.1", peer.port)) as sock,
        trusting(authority).wrap_socket(sock, server_hostname="127.0.0.1") as secured,
    ):
        der, known = secured.getpeercert(True), secured.getpeercert()
    assert der is not None
    assert known is not None
    ours = read_certificate(der)
    assert ours.not_after.timestamp() == ssl.cert_time_to_seconds(str(known["notAfter"]))
    assert ours.not_before.timestamp() == ssl.cert_time_to_seconds(str(known["notBefore"]))
    assert set(ours.names) == {"127.0.0.1", "::1", "*.host.example"}
    assert ours.issuer == {name: value for ((name, value),) in known["issuer"]}["organizationName"]  # type: ignore[misc, str-unpack, union-attr]
    assert not ours.self_signed


@pytest.mark.parametrize("size", [0, 1, 5, 40, 200, 400])
def test_half_a_certificate_is_none(size: int, authority: trustme.CA) -> None:
    whole = ssl.PEM_cert_to_DER_cert(authority.issue_cert("x.test").cert_chain_pems[0].bytes().decode())
    assert read_certificate(whole).names == ("x.test",)
    with pytest.raises(ValueError, match="no certificate"):
        read_certificate(whole[:size])


# The upgrade

UPGRADES: list[tuple[faults.Refuse, str, str]] = [
    (faults.Refuse(400, "'connection' header must contain 'upgrade'"), "HTTP 400: 'conn.*does not try again", "strips"),
    (faults.Refuse(401, '{"error":"API key is missing"}'), "HTTP 401: API key is missing", "No key got there"),
    (faults.Refuse(401, '{"error":"Token has expired"}'), "HTTP 401: Token.*waits for another key", "has expired"),
    (faults.Refuse(401, '{"error":"Failed to validate JWT signature"}'), "HTTP 401", "another project"),
    (faults.Refuse(401, '{"message":"Invalid API key"}'), "HTTP 401: Invalid API key", "not this project's"),
    (faults.Refuse(403), "HTTP 403: no words .*goes on trying", "Servers before 2.115"),
    (faults.Refuse(403, '{"error":"Realtime was disabled for this tenant"}'), "HTTP 403", "suspended"),
    (faults.Refuse(404, '{"error":"Tenant not found"}'), "HTTP 404: Tenant not found", "no project of that reference"),
    (faults.Refuse(404, "no Route matched"), "HTTP 404: no Route", "without a path"),
    (faults.Refuse(407), "HTTP 407", "--proxy"),
    (faults.Refuse(410), "HTTP 410", "deleted"),
    (faults.Refuse(414), "HTTP 414", "too long"),
    (faults.Refuse(426), "HTTP 426", "does not speak WebSocket"),
    (faults.Refuse(429, '{"error":"Too many connected users"}'), "HTTP 429.*after 10 s and more", "share one pool"),
    (faults.Refuse(429, '{"error":"Too many joins per second"}'), "HTTP 429", "joins too fast"),
    (faults.Refuse(429, "", {"retry-after": "7"}), "HTTP 429.*asks to wait 7 s", "Wait"),
    (faults.Refuse(431), "HTTP 431", "too long for a header"),
    (faults.Refuse(500, "oops"), "HTTP 500: oops", "server's log"),
    (faults.Refuse(502), "HTTP 502", "gateway"),
    (faults.Refuse(503), "HTTP 503", "overloaded"),
    (faults.Refuse(504), "HTTP 504", "gateway"),
    (faults.Refuse(540), "HTTP 540", "paused"),
    (faults.Refuse(302, "", {"location": "https://elsewhere.test/"}), "points elsewhere", "https://elsewhere.test/"),
    (faults.Refuse(200, "<HTML><body>Sign in to the Wi-Fi"), "HTTP 200 with a web page", "captive portal"),
    (faults.Refuse(200, "hello"), "HTTP 200 in place of 101", "captive portal"),
]


@pytest.mark.parametrize(
    ("refusal", "words", "advice"), UPGRADES, ids=[f"{r.status} {r.body[:20]}" for r, _, _ in UPGRADES]
)
def test_an_upgrade_that_is_refused(refusal: faults.Refuse, words: str, advice: str, server: RealtimeServer) -> None:
    with server.inject(refusal, times=None):
        report = examine(server.url, server.api_key)
    found = fails_at(report, "upgrade", words, advice)
    assert found.details["status"] == refusal.status


def test_every_refusal_that_a_real_server_has_for_an_upgrade_has_advice_of_its_own(server: RealtimeServer) -> None:
    advice = {}
    for refusal in Handshake:
        server.on_connect = lambda request, refusal=refusal: refusal(kid="1")  # type: ignore[misc]
        advice[refusal] = step_of(examine(server.url, server.api_key), "upgrade").advice
    assert "Look at the server's log." not in {a for r, a in advice.items() if r is not Handshake.CONNECT_ERROR}


@pytest.mark.parametrize(
    ("serve", "words", "advice"),
    [
        (saying(b"SSH-2.0-OpenSSH_9.2\r\n"), "the answer is no HTTP", "no WebSocket server"),
        (
            saying(b"HTTP/1.1 101 Yes\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"),
            "Invalid WebSocket",
            "what answers",
        ),
        (silence, r"no connection to ws://127.0.0.1:\d+ within [01].?[0-9]* s", "^TCP works: .*hangs"),
        (saying(b""), r"no connection to ws://127.0.0.1:\d+: ", "^TCP works"),
    ],
    ids=["another protocol", "a wrong answer", "silence", "a hang-up"],
)
def test_what_is_no_websocket_server(serve: Serve, words: str, advice: str) -> None:
    with Peer(serve) as peer:
        report = examine(f"http://127.0.0.1:{peer.port}", KEY, patience=PATIENCE)
    fails_at(report, "upgrade", words, advice, warned=("key",))


def test_what_speaks_tls_and_no_websocket(authority: trustme.CA) -> None:
    with Peer(silence, tls=serving(authority, "127.0.0.1")) as peer:
        chosen = options(ssl_context=trusting(authority))
        report = examine(f"https://127.0.0.1:{peer.port}", KEY, options=chosen, patience=PATIENCE)
    fails_at(report, "upgrade", "no connection to wss://", "^TCP and TLS work: ", warned=("key",))


# The clocks


@pytest.mark.parametrize(("apart", "words"), [(3600, "3,(59[0-9]|600) s behind"), (-90, "(89|9[0-9]) s ahead of")])
def test_a_clock_that_is_wrong_is_told_of(apart: int, words: str) -> None:
    theirs = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=apart)
    with Peer(upgrading(f"Date: {format_datetime(theirs, usegmt=True)}")) as peer:
        report = examine(f"http://127.0.0.1:{peer.port}", KEY, patience=PATIENCE)
    found = fails_at(report, "heartbeat", "0 of 5 heartbeats", "the server hangs", warned=("key", "clock"))
    assert found.details["answered"] == 0
    clock = step_of(report, "clock")
    assert re.search(words, clock.words), clock
    assert "NTP" in clock.advice


def test_a_server_that_tells_no_date() -> None:
    with Peer(upgrading()) as peer:
        report = examine(f"http://127.0.0.1:{peer.port}", KEY, patience=PATIENCE)
    assert step_of(report, "clock").status == "skipped"

"""What is told of a connection that failed: a typed error, what it calls for, how long the other side asked to wait."""

from __future__ import annotations

import errno
import http.client
import json
import pickle
import socket
import ssl
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest
import websocket

import rtpool
from rtpool import Action
from rtpool.engine.redaction import Redactor
from rtpool.engine.streams import failure
from rtpool.testing import RealtimeServer, Refusal, refusals
from tests.conftest import MakePool
from tests.support.peer import Peer, answer, saying, upgrading
from tests.support.recorder import Recorder
from tests.support.ways import connect, fails, told

# Refused upgrades


@pytest.mark.parametrize(
    ("refusal", "action"),
    [
        (refusals.Handshake.API_KEY_MISSING(delay=0), Action.FATAL),
        (refusals.Handshake.TOKEN_EXPIRED(delay=0), Action.NEW_TOKEN),
        (refusals.Handshake.TENANT_DISABLED(delay=0), Action.FATAL),
        (refusals.Handshake.FORBIDDEN(delay=0), Action.BACK_OFF),
        (refusals.Handshake.TENANT_NOT_FOUND(delay=0), Action.FATAL),
        (refusals.Handshake.TOO_MANY_JOINS(delay=0), Action.BACK_OFF_LONG),
        (refusals.Handshake.CONNECT_ERROR(delay=0), Action.BACK_OFF),
        (Refusal(418, "teapot", delay=0), Action.BACK_OFF),
    ],
    ids=lambda value: getattr(value, "body", None),
)
def test_a_refused_upgrade_says_what_it_calls_for(server: RealtimeServer, refusal: Refusal, action: Action) -> None:
    server.on_connect = lambda request: refusal
    error = fails(server.url, rtpool.HandshakeRefused)
    assert (error.status, error.body, error.action) == (refusal.status, refusal.body, action)
    assert (error.retryable, error.retry_after) == (action.retryable, None)
    assert ("not tried again" in str(error)) is not action.retryable


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {"Retry-After": "3"}, 3.0),
        (503, {"Retry-After": "86400"}, 3600.0),
        (503, {"Retry-After": "soon"}, None),
        (500, {"retry-after": "2"}, 2.0),
        (403, {"RETRY-AFTER": "4"}, 4.0),
        (401, {"Retry-After": "5"}, 5.0),
    ],
)
def test_how_long_a_refused_upgrade_is_to_be_waited_for_is_told(
    server: RealtimeServer, status: int, headers: dict[str, str], seconds: float | None
) -> None:
    server.on_connect = lambda request: Refusal(status, headers=headers, delay=0)
    error = fails(server.url, rtpool.HandshakeRefused)
    assert (error.status, error.retry_after) == (status, seconds)
    assert (f"asks to wait {seconds:g} s" in str(error) if seconds else False) is bool(seconds and error.retryable)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.status, copy.retry_after, copy.action) == (status, seconds, error.action)


@pytest.mark.parametrize("ahead", [-86_400, 0, 86_400])
def test_a_date_to_wait_for_is_by_the_servers_clock(ahead: int) -> None:
    now = 1_795_600_000 + ahead
    dates = {"Date": formatdate(now, usegmt=True), "Retry_After": formatdate(now + 7, usegmt=True)}
    with Peer(saying(answer(503, **dates))) as server:
        assert fails(f"http://127.0.0.1:{server.port}", rtpool.HandshakeRefused).retry_after == 7.0


@pytest.mark.parametrize("action", ["503", "429"])
def test_a_proxy_may_ask_to_wait_as_well(action: str) -> None:
    with Peer(saying(answer(int(action), Retry_After="9"))) as between:
        error = fails("http://server.example", rtpool.ProxyRefused, proxy=f"http://127.0.0.1:{between.port}")
    assert error.retry_after == 9.0
    assert error.action is {"503": Action.BACK_OFF, "429": Action.BACK_OFF_LONG}[action]


def test_what_a_refused_upgrade_calls_for_is_told_to_who_waits_and_who_listens(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    server.on_connect = lambda request: refusals.Handshake.TENANT_NOT_FOUND(delay=0)
    pool, statuses = make_pool(), Recorder()
    pool.on_status(statuses)
    with pytest.raises(rtpool.HandshakeRefused) as caught:
        pool.connect(timeout=10)
    seen = statuses.wait_for(lambda seen: any(s.status == "error" for s in seen))
    change = next(s for s in seen if s.status == "error")
    for error in (caught.value, change.error):
        assert (type(error), error.status, error.action) == (rtpool.HandshakeRefused, 404, Action.FATAL)


@pytest.mark.parametrize("year", ["99999999999999999999", "10000", "0"])
def test_a_server_whose_date_is_nonsense_is_connected_to_all_the_same(year: str) -> None:
    with Peer(upgrading(f"Date: Wed, 25 Nov {year} 12:00:00 GMT")) as peer:
        connect(f"http://127.0.0.1:{peer.port}").close()


# Joins and broadcasts


@pytest.mark.parametrize(
    ("refusal", "action"),
    [
        (refusals.Join.UNMATCHED_TOPIC(delay=0), Action.FATAL),
        (refusals.Join.UNAUTHORIZED(delay=0, topic="room"), Action.NEW_TOKEN),
        (refusals.Join.TENANT_DISABLED(delay=0), Action.FATAL),
    ],
    ids=lambda value: getattr(value, "reason", None),
)
def test_a_refused_join_says_what_it_calls_for(
    server: RealtimeServer, pool: rtpool.RealtimePool, refusal: Any, action: Action
) -> None:
    server.on_join = lambda topic, payload, connection: refusal
    with pytest.raises(rtpool.JoinRefused) as caught:
        pool.channel("room").subscribe(timeout=10)
    assert (caught.value.action, caught.value.retryable) == (action, False)
    assert len(server.joins("room")) == 1


@pytest.mark.parametrize(
    ("refusal", "action", "seconds"),
    [
        (Refusal(401, json.dumps({"message": "Unauthorized"})), Action.NEW_TOKEN, None),
        (Refusal(429, "", {"Retry-After": "7"}), Action.BACK_OFF_LONG, 7.0),
        (Refusal(503, "", {"Retry-After": "99999999999"}), Action.BACK_OFF, 3600.0),
        (Refusal(422, ""), Action.FATAL, None),
    ],
    ids=["401", "429", "503", "422"],
)
def test_a_refused_broadcast_says_what_it_calls_for(
    server: RealtimeServer, pool: rtpool.RealtimePool, refusal: Refusal, action: Action, seconds: float | None
) -> None:
    server.on_request = lambda request: refusal
    with pytest.raises(rtpool.BroadcastRefused) as caught:
        pool.broadcast("room", "x", {})
    assert (caught.value.action, caught.value.retry_after) == (action, seconds)


def test_a_push_that_can_never_succeed_is_told_from_one_that_may(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    server.configure(max_payload_kb=1)
    channel = pool.channel("room", ack=True).subscribe()
    with pytest.raises(rtpool.PushRefused) as caught:
        channel.send_broadcast("x", {"d": "x" * 2_000}).result(10)
    assert (caught.value.response, caught.value.action) == ("payload_size_exceeded", Action.FATAL)


# Exceptions of other libraries on the way to a connection


def tls(reason: str | None) -> ssl.SSLError:
    error = ssl.SSLError(1, f"[SSL: {reason}] oops")
    if reason is not None:
        error.reason = reason
    return error


def untrusted(words: str | None) -> ssl.SSLError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    if words is not None:
        error.verify_message = words
    return error


EXCEPTIONS: dict[str, tuple[Exception, Action, str]] = {
    "a certificate that does not hold": (untrusted("self-signed"), Action.FATAL, "not trusted: self-signed"),
    "the same, out of Python code": (untrusted(None), Action.FATAL, "not trusted: .*verify failed"),
    "a client certificate is wanted": (tls("TLSV13_ALERT_CERTIFICATE_REQUIRED"), Action.FATAL, "load_cert_chain"),
    "ours is of another authority": (tls("TLSV1_ALERT_UNKNOWN_CA"), Action.FATAL, "load_cert_chain"),
    "ours is bad": (tls("SSLV3_ALERT_BAD_CERTIFICATE"), Action.FATAL, "load_cert_chain"),
    "ours has expired": (tls("SSLV3_ALERT_CERTIFICATE_EXPIRED"), Action.FATAL, "load_cert_chain"),
    "ours was revoked": (tls("SSLV3_ALERT_CERTIFICATE_REVOKED"), Action.FATAL, "load_cert_chain"),
    "ours is of no known kind": (tls("SSLV3_ALERT_UNSUPPORTED_CERTIFICATE"), Action.FATAL, "load_cert_chain"),
    "we may not": (tls("TLSV1_ALERT_ACCESS_DENIED"), Action.FATAL, "load_cert_chain"),
    "nothing in common": (tls("SSLV3_ALERT_HANDSHAKE_FAILURE"), Action.FATAL, "refused our side of TLS"),
    "our TLS is too old": (tls("TLSV1_ALERT_PROTOCOL_VERSION"), Action.FATAL, "no TLS version in common"),
    "their TLS is too old": (tls("UNSUPPORTED_PROTOCOL"), Action.FATAL, "no TLS version in common"),
    "we allow no TLS": (tls("NO_PROTOCOLS_AVAILABLE"), Action.FATAL, "no TLS version in common"),
    "no TLS there": (tls("WRONG_VERSION_NUMBER"), Action.BACK_OFF, "no connection to"),
    "TLS broke off": (ssl.SSLEOFError(8, "EOF occurred"), Action.BACK_OFF, "EOF occurred"),
    "TLS without a reason": (tls(None), Action.BACK_OFF, "oops"),
    "no such name": (socket.gaierror(socket.EAI_NONAME, "unknown"), Action.BACK_OFF_LONG, "cannot be found: unknown"),
    "a resolver in trouble": (socket.gaierror(socket.EAI_AGAIN, "temporary"), Action.BACK_OFF, "temporary"),
    "a resolver that fails": (socket.gaierror(socket.EAI_FAIL, "failed"), Action.BACK_OFF, "failed"),
    "what is no name": (UnicodeError("label too long"), Action.FATAL, "no name of a host"),
    "refused": (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), Action.BACK_OFF, "refused"),
    "reset": (ConnectionResetError(errno.ECONNRESET, "reset"), Action.BACK_OFF, "reset"),
    "a broken pipe": (BrokenPipeError(errno.EPIPE, "pipe"), Action.BACK_OFF, "pipe"),
    "no network": (OSError(errno.ENETUNREACH, "unreachable"), Action.BACK_OFF, "unreachable"),
    "no such host in the network": (OSError(errno.EHOSTUNREACH, "no route"), Action.BACK_OFF, "no route"),
    "a firewall": (PermissionError(errno.EPERM, "not permitted"), Action.BACK_OFF, "not permitted"),
    "no descriptor left": (OSError(errno.EMFILE, "too many"), Action.BACK_OFF, "too many"),
    "no answer": (TimeoutError("timed out"), Action.BACK_OFF, "within 7 s"),
    "no answer, by websocket-client": (websocket.WebSocketTimeoutException(), Action.BACK_OFF, "within 7 s"),
    "no WebSocket": (websocket.WebSocketException("no"), Action.BACK_OFF, "no connection to"),
    "no HTTP": (http.client.BadStatusLine("hello"), Action.BACK_OFF, "hello"),
    "an endless answer": (rtpool.ProtocolError("more than 9 bytes"), Action.BACK_OFF, "more than 9 bytes"),
    "what nobody thought of": (RuntimeError(), Action.BACK_OFF, "RuntimeError"),
}


@pytest.mark.parametrize(("error", "action", "words"), EXCEPTIONS.values(), ids=EXCEPTIONS)
def test_every_exception_on_the_way_is_told_in_our_words_with_what_it_calls_for(
    error: Exception, action: Action, words: str
) -> None:
    told_of = failure("wss://server.example", error, 7)
    assert type(told_of) is rtpool.ConnectionFailed
    assert (told_of.action, told_of.retryable) == (action, action.retryable)
    with pytest.raises(rtpool.ConnectionFailed, match=words):
        raise told_of
    assert "server.example" in str(told_of)


WRONG_OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "a dial function that returns no socket": lambda: {"dial": lambda *_: None},
    "a proxy whose host is no name": lambda: {"proxy": f"http://{'x' * 64}.example:1"},
}


@pytest.mark.parametrize("options", WRONG_OPTIONS.values(), ids=WRONG_OPTIONS)
def test_a_wrong_option_is_tried_once(options: Callable[[], dict[str, Any]], make_pool: MakePool) -> None:
    assert fails("http://server.example", **options()).action is Action.FATAL
    pool = make_pool("http://server.example", **options())
    with pytest.raises(rtpool.ConnectionFailed) as caught:
        pool.connect(timeout=10)
    assert pool.stats().reconnect_attempts == 0
    assert "server.example" in told(caught.value) or "proxy" in told(caught.value)


def test_a_broadcast_that_may_have_been_sent_keeps_what_its_failure_calls_for(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise tls("TLSV13_ALERT_CERTIFICATE_REQUIRED")  # with TLS 1.3 it comes when all is sent

    with Peer(saying(answer(202))) as server:
        monkeypatch.setattr("rtpool.rest.read_answer", refuse)
        with pytest.raises(rtpool.ConnectionFailed, match="may have been broadcast") as caught:
            make_pool(f"http://127.0.0.1:{server.port}").broadcast("room", "x", {})
    assert caught.value.action is Action.FATAL


# What is ours in the other side's words

KEY = "eyJ-the-key/of+a=project"


@pytest.mark.parametrize("status", [401, 404, 429, 503])
@pytest.mark.parametrize("api_key_in", ["query", "header"])
def test_a_page_that_repeats_the_request_shows_no_secret_of_ours(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture, status: int, api_key_in: str
) -> None:
    seen = Recorder()

    def repeat(peer: Peer, sock: socket.socket) -> None:
        request = sock.recv(65_536)
        body = b"cannot serve: " + request
        sock.sendall(b"HTTP/1.1 %d No\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body)

    with Peer(repeat) as peer:
        pool = make_pool(
            f"http://127.0.0.1:{peer.port}",
            api_key=KEY,
            api_key_in=api_key_in,
            headers={"X-Secret": "Bearer of-a-header"},
            params={"auth": "of a/parameter"},
        ).on_status(seen)
        pool.channel("room").subscribe(wait=False)
        error = seen.wait_for(lambda events: any(e.error for e in events))[-1].error
        shown = f"{error} {error!r} {error.body} {error.__cause__} {pool.health()} {seen.events} {caplog.text}"
        pool.close()
    assert "cannot serve: GET /realtime" in error.body
    for secret in (KEY, "the-key", "of-a-header", "of%20a%2Fparameter", "of+a%2Fparameter", "of a/parameter"):
        assert secret not in shown
    assert "***" in error.body


@pytest.mark.parametrize("said", [b"SSH-2.0-x ", b"\x1b[31m"])
def test_what_is_no_answer_is_shown_in_one_harmless_line_without_what_is_ours(make_pool: MakePool, said: bytes) -> None:
    seen = Recorder()

    def repeat(peer: Peer, sock: socket.socket) -> None:
        sock.sendall(said + sock.recv(65_536))

    with Peer(repeat) as peer:
        pool = make_pool(f"http://127.0.0.1:{peer.port}", api_key=KEY).on_status(seen)
        pool.channel("room").subscribe(wait=False)
        error = seen.wait_for(lambda events: any(e.error for e in events))[-1].error
        pool.close()
    assert "the answer is no HTTP" in str(error)
    assert str(error).isprintable()
    assert "the-key" not in f"{error!r} {error.__cause__!r} {error.__cause__} {vars(error.__cause__)}"


def test_a_page_of_a_rest_call_that_repeats_it_shows_no_secret_of_ours(make_pool: MakePool) -> None:
    def repeat(peer: Peer, sock: socket.socket) -> None:
        request = sock.recv(65_536)
        sock.sendall(b"HTTP/1.1 500 No\r\nContent-Length: %d\r\n\r\n" % len(request) + request)

    with Peer(repeat) as peer:
        pool = make_pool(f"http://127.0.0.1:{peer.port}", api_key=KEY, access_token="a-token-of-a-user")
        with pytest.raises(rtpool.BroadcastRefused) as caught:
            pool.broadcast("room", "x", {"n": 1})
    shown = f"{caught.value} {caught.value!r} {caught.value.body} {caught.value.reason}"
    assert "the-key" not in shown
    assert "a-token-of-a-user" not in shown
    assert "POST /realtime" in caught.value.body


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "not tried again with the same key"),
        (404, "look at the url"),
        (301, "points to https://elsewhere.example"),
    ],
)
def test_a_refusal_says_what_to_do(make_pool: MakePool, status: int, words: str) -> None:
    seen = Recorder()

    def refuse(peer: Peer, sock: socket.socket) -> None:
        sock.recv(65_536)
        head = (
            b"HTTP/1.1 %d No\r\nLocation: https://elsewhere.example\r\nContent-Length: 12\r\n\r\nno\r\n\x1b[31mno\x00"
        )
        sock.sendall(head % status)

    with Peer(refuse) as peer:
        pool = make_pool(f"http://127.0.0.1:{peer.port}", api_key=KEY).on_status(seen)
        pool.channel("room").subscribe(wait=False)
        error = seen.wait_for(lambda events: any(e.error for e in events))[-1].error
        pool.close()
    assert words in str(error)
    assert str(error).isprintable()


def test_a_secret_that_is_cut_off_at_the_end_of_a_page_is_hidden_too() -> None:
    hide = Redactor(rtpool.PoolOptions(), KEY)
    for length in range(6, len(KEY) + 1):
        assert hide("x" * 50 + KEY[:length]) == "x" * 50 + "***"
    assert hide("eyJ") == "eyJ"

"""Broadcasts by REST: what is sent, who hears it, and every way it can be refused."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import pytest
import trustme

import rtpool
from rtpool.testing import RealtimeServer
from tests.conftest import MakePool
from tests.support.peer import Peer, answer, relaying, saying
from tests.support.proxies import proxy
from tests.support.recorder import Recorder
from tests.support.ways import SECRET, serving, trusting

ACCEPTED = answer(202)


@pytest.fixture
def heard(pool: rtpool.RealtimePool) -> Recorder:
    """What a subscriber of the topic ``room`` hears."""
    recorder = Recorder()
    pool.channel("room").on_broadcast("*", recorder).subscribe()
    return recorder


def lines_of(request: tuple[str, bytes]) -> dict[str, str]:
    first, *headers = request[0].splitlines()[:-1]
    return {"": first, **dict(line.split(": ", 1) for line in headers)}


# Sending


@pytest.mark.parametrize("vsn", ["1.0.0", "2.0.0"])
def test_a_message_sent_by_rest_is_heard_by_a_subscriber(server: RealtimeServer, make_pool: MakePool, vsn: str) -> None:
    pool, heard = make_pool(protocol=vsn), Recorder()
    pool.channel("room").on_broadcast("*", heard).subscribe()
    pool.broadcast("room", "moved", {"lat": 52.5, "who": "Zoë"})
    assert heard.wait(1) == [rtpool.Broadcast("room", "moved", {"lat": 52.5, "who": "Zoë"})]


def test_bytes_sent_by_rest_are_heard_as_bytes(pool: rtpool.RealtimePool, heard: Recorder) -> None:
    for payload in (b"\x00\xff", bytearray(b"more"), memoryview(b""), b""):
        pool.broadcast("room", "raw", payload)  # type: ignore[arg-type]
    assert [event.payload for event in heard.wait(4)] == [b"\x00\xff", b"more", b"", b""]


def test_a_pool_that_never_connected_sends_without_a_thread_or_a_socket(
    server: RealtimeServer, make_pool: MakePool, heard: Recorder
) -> None:
    before, connections = set(threading.enumerate()), server.connections_total
    sender = make_pool()
    sender.broadcast("room", "x", {"n": 1})
    sender.broadcast_many([{"topic": "room", "event": "x", "payload": {"n": 2}}])
    assert {thread for thread in threading.enumerate() if not thread.name.startswith("asyncio")} <= before
    assert server.connections_total == connections
    assert sender.stats().connection_status == "idle"
    heard.wait(2)
    assert heard.numbers == [1, 2]


@pytest.mark.parametrize("name", ["a/b", "ü €", "%2F?x=1&y#z", "..", ".", "a\nb", "x" * 246])
def test_any_topic_and_event_arrives_as_it_is(server: RealtimeServer, pool: rtpool.RealtimePool, name: str) -> None:
    heard = Recorder()
    pool.channel(name).on_broadcast("*", heard).subscribe()
    pool.broadcast(name, "e", {"n": 1})
    pool.broadcast(name, name, {"n": 2})
    pool.broadcast_many([rtpool.BroadcastMessage(name, name, {"n": 3})])
    assert [(e.topic, e.event, e.payload["n"]) for e in heard.wait(3)] == [
        (name, "e", 1),
        (name, name, 2),
        (name, name, 3),
    ]
    by_path = ["/events/" in request.path for request in server.requests]
    assert by_path == ([False] * 3 if name in (".", "..") else [True, True, False])


def test_bytes_whose_path_would_be_taken_for_another_are_refused(pool: rtpool.RealtimePool) -> None:
    with pytest.raises(rtpool.InvalidValue, match="no path can name them"):
        pool.broadcast("room", "..", b"x")


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("{}", "/realtime/v1/api/broadcast"),
        ("{}/realtime/v1", "/realtime/v1/api/broadcast"),
        ("{}/socket", "/api/broadcast"),
        ("{}/socket/websocket", "/api/broadcast"),
        ("{}/base/socket/websocket/", "/base/api/broadcast"),
        ("{}/realtime/v1/websocket", "/realtime/v1/api/broadcast"),
    ],
)
def test_the_path_follows_from_the_url(make_pool: MakePool, url: str, target: str) -> None:
    with Peer(saying(ACCEPTED)) as peer:
        pool = make_pool(url.format(f"http://127.0.0.1:{peer.port}"))
        pool.broadcast("room", "x", {})
        pool.broadcast_many([rtpool.BroadcastMessage("room", "x", {})])
        targets = [lines_of(request)[""] for request in peer.requests.events]
    assert targets == [f"POST {target}/room/events/x HTTP/1.1", f"POST {target} HTTP/1.1"]


def test_many_messages_go_in_one_request_in_their_order(
    server: RealtimeServer, pool: rtpool.RealtimePool, heard: Recorder
) -> None:
    messages = [
        {"topic": "room", "event": "x", "payload": {"n": 0}},
        rtpool.BroadcastMessage("room", "y", {"n": 1}, id="id-1"),
        MappingProxyType({"topic": "room", "event": "z", "payload": MappingProxyType({"n": 2}), "id": None}),
    ]
    pool.broadcast_many(iter(messages))
    events = heard.wait(3)
    assert [(e.event, e.payload["n"], e.id) for e in events] == [("x", 0, None), ("y", 1, "id-1"), ("z", 2, None)]
    (request,) = server.requests
    assert json.loads(request.body) == {
        "messages": [
            {"topic": "room", "event": "x", "private": False, "payload": {"n": 0}},
            {"topic": "room", "event": "y", "private": False, "id": "id-1", "payload": {"n": 1}},
            {"topic": "room", "event": "z", "private": False, "payload": {"n": 2}},
        ]
    }


def test_no_messages_are_no_request(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    pool.broadcast_many([])
    assert server.requests == []


def test_a_private_message_goes_to_the_private_channel_alone(server: RealtimeServer, make_pool: MakePool) -> None:
    pool, public, private = make_pool(), Recorder(), Recorder()
    pool.channel("room").on_broadcast("*", public).subscribe()
    pool.channel("room", private=True).on_broadcast("*", private).subscribe()
    pool.broadcast("room", "x", {"n": 1}, private=True)
    pool.broadcast_many([rtpool.BroadcastMessage("room", "x", {"n": 2}, private=True)])
    pool.broadcast("room", "x", {"n": 3})
    private.wait(2)
    public.wait(1)
    assert (private.numbers, public.numbers) == ([1, 2], [3])


def test_without_permission_one_private_message_is_refused_and_many_are_dropped_without_a_word(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    listener = make_pool(api_key=server.token(role="service_role"))
    heard = Recorder()
    listener.channel("room", private=True).on_broadcast("*", heard).subscribe()
    server.policy = lambda request: False
    with pytest.raises(rtpool.BroadcastRefused, match="Another access token is needed") as caught:
        make_pool().broadcast("room", "x", {"n": 1}, private=True)
    assert (caught.value.status, caught.value.retryable) == (403, False)
    make_pool().broadcast_many([rtpool.BroadcastMessage("room", "x", {"n": 2}, private=True)])
    listener.broadcast("room", "x", {"n": 3}, private=True)
    heard.wait(1)
    assert heard.numbers == [3]


def test_a_server_without_the_single_endpoint_gets_json_by_the_other(make_pool: MakePool) -> None:
    with RealtimeServer(single_rest=False) as old:
        pool, heard = make_pool(old.url, api_key=old.api_key), Recorder()
        pool.channel("room", private=True).on_broadcast("*", heard).subscribe()
        pool.broadcast("room", "x", {"n": 1}, private=True)
        assert heard.wait(1)[0].payload == {"n": 1}
        assert [request.status for request in old.requests] == [404, 202]
        with pytest.raises(rtpool.BroadcastRefused, match=r"Bytes need a Realtime server of version 2\.97") as caught:
            pool.broadcast("room", "x", b"bytes")
        assert (caught.value.status, caught.value.reason, caught.value.retryable) == (404, "Not Found", False)
        pool.close()


def test_a_url_that_is_no_realtime_server_is_told() -> None:
    with (
        Peer(saying(answer(404, b"<html>"))) as other,
        rtpool.RealtimePool(f"http://127.0.0.1:{other.port}", api_key="k") as pool,
    ):
        with pytest.raises(rtpool.BroadcastRefused, match="HTTP 404: <html>"):
            pool.broadcast("room", "x", {})
        assert len(other.requests.events) == 2


# Headers and tokens


JWT = "eyJhbGciOiJIUzI1NiJ9.e30.c2ln"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"api_key": JWT}, {"apikey": JWT, "Authorization": f"Bearer {JWT}"}),
        ({"api_key": JWT, "access_token": "user"}, {"apikey": JWT, "Authorization": "Bearer user"}),
        ({"api_key": JWT, "access_token": lambda: " user\n"}, {"apikey": JWT, "Authorization": "Bearer user"}),
        ({"api_key": "sb_publishable_1"}, {"apikey": "sb_publishable_1"}),
        ({"api_key": "sb_secret_1", "access_token": "user"}, {"apikey": "sb_secret_1", "Authorization": "Bearer user"}),
        ({"api_key": None, "headers": {"X-Api-Key": JWT}}, {"apikey": JWT, "Authorization": f"Bearer {JWT}"}),
        (
            {"api_key": JWT, "headers": {"authorization": "Bearer mine"}},
            {"apikey": JWT, "authorization": "Bearer mine"},
        ),
        ({"api_key": JWT, "headers": {"APIKEY": "mine"}}, {"APIKEY": "mine", "Authorization": f"Bearer {JWT}"}),
    ],
)
def test_key_and_token_go_in_headers_and_never_in_the_url(
    make_pool: MakePool, settings: dict[str, Any], expected: dict[str, str]
) -> None:
    with Peer(saying(ACCEPTED)) as peer:
        make_pool(f"http://127.0.0.1:{peer.port}", **settings).broadcast("room", "x", {"n": 1})
        (request,) = peer.requests.events
    lines = lines_of(request)
    assert lines[""] == "POST /realtime/v1/api/broadcast/room/events/x HTTP/1.1"
    assert {name: value for name, value in lines.items() if name.lower() in ("apikey", "authorization")} == expected
    assert (lines["Host"], lines["Content-Type"]) == (f"127.0.0.1:{peer.port}", "application/json")
    assert request[1] == b'{"n":1}'


def test_the_options_headers_go_along_and_a_host_of_the_users_replaces_ours(make_pool: MakePool) -> None:
    with Peer(saying(ACCEPTED)) as peer:
        pool = make_pool(f"http://127.0.0.1:{peer.port}", headers=[("host", "tenant.example"), ("x-team", "blåbär")])
        pool.broadcast("room", "x", b"\x01", private=True)
        lines = lines_of(peer.requests.events[0])
    assert (lines["host"], lines["x-team"], lines["Content-Type"]) == (
        "tenant.example",
        "blåbär",
        "application/octet-stream",
    )
    assert "Host" not in lines
    assert lines[""].endswith("/room/events/x?private=true HTTP/1.1")


def test_set_auth_holds_for_the_next_broadcast(server: RealtimeServer, make_pool: MakePool) -> None:
    tokens = [server.token(sub="one"), server.token(sub="two"), server.token(sub="three")]
    pool = make_pool(access_token=tokens[0])
    pool.broadcast("room", "x", {})
    pool.set_auth(tokens[1])
    pool.broadcast("room", "x", {})
    pool.set_auth(lambda: tokens[2])
    pool.broadcast("room", "x", {})
    assert [request.headers["authorization"] for request in server.requests] == [f"Bearer {token}" for token in tokens]


def test_a_token_callable_is_asked_each_time_on_the_callers_thread(server: RealtimeServer, make_pool: MakePool) -> None:
    threads: list[threading.Thread] = []

    def token() -> str:
        threads.append(threading.current_thread())
        return server.token()

    pool = make_pool(access_token=token)
    pool.broadcast("room", "x", {})
    pool.broadcast("room", "x", {})
    assert threads == [threading.current_thread()] * 2


class Unhappy(Exception):
    pass


@pytest.mark.parametrize(
    ("outcome", "words", "cause"),
    [
        (Unhappy("in words of its own"), "no access token: Unhappy", Unhappy),
        (None, "must be a str or a callable that returns one, not NoneType", rtpool.InvalidType),
        ("", "access_token is empty", rtpool.InvalidValue),
        (b"jwt", "not bytes", rtpool.InvalidType),
        (f"{SECRET}\r\nInjected: 1", "characters no token has", rtpool.InvalidValue),
        (f"{SECRET} ü", "characters no token has", rtpool.InvalidValue),
    ],
    ids=["an exception", "none", "empty", "bytes", "a header smuggled in", "no ASCII"],
)
def test_a_token_callable_that_raises_or_returns_rubbish_is_told_and_nothing_is_sent(
    server: RealtimeServer, make_pool: MakePool, outcome: Any, words: str, cause: type[Exception]
) -> None:
    def token() -> Any:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    pool = make_pool(access_token=token)
    with pytest.raises(rtpool.BroadcastRefused, match=words) as caught:
        pool.broadcast("room", "x", {})
    assert (caught.value.status, caught.value.retryable) == (0, True)
    assert isinstance(caught.value.__cause__, cause)
    assert SECRET not in str(caught.value)
    assert "words of its own" not in str(caught.value)
    assert server.requests == []


# Bad input


BAD: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    (("", "x", {}), {}, rtpool.InvalidValue, "topic must not be empty"),
    (("t" * 247, "x", {}), {}, rtpool.InvalidValue, "topic has 247 bytes"),
    ((5, "x", {}), {}, rtpool.InvalidType, "topic must be str"),
    (("room", "", {}), {}, rtpool.InvalidValue, "event must not be empty"),
    (("room", "e" * 256, {}), {}, rtpool.InvalidValue, "event has 256 bytes"),
    (("room", "\ud800", {}), {}, rtpool.InvalidValue, "UTF-8"),
    (("room", "x", [1]), {}, rtpool.InvalidType, "payload must be a JSON object"),
    (("room", "x", "text"), {}, rtpool.InvalidType, "payload must be a JSON object"),
    (("room", "x", None), {}, rtpool.InvalidType, "payload must be a JSON object"),
    (("room", "x", {"n": float("nan")}), {}, rtpool.InvalidValue, "JSON"),
    (("room", "x", {"n": object()}), {}, rtpool.InvalidType, "JSON"),
    (("room", "x", {}), {"private": "yes"}, rtpool.InvalidType, "private must be bool"),
    (("room", "x", {}), {"timeout": -1}, rtpool.InvalidValue, "timeout"),
    (("room", "x", {}), {"timeout": "10"}, rtpool.InvalidType, "timeout"),
    (("room", "x", bytes(8_000_001)), {}, rtpool.MessageTooBig, "8000001 bytes.*8000000"),
    (("room", "x", {"d": "x" * 8_000_000}), {}, rtpool.MessageTooBig, "8000008 bytes"),
]


@pytest.mark.parametrize(("arguments", "settings", "kind", "words"), BAD, ids=[case[3][:40] for case in BAD])
def test_a_bad_broadcast_is_refused_at_the_call(
    server: RealtimeServer,
    pool: rtpool.RealtimePool,
    arguments: tuple[Any, ...],
    settings: dict[str, Any],
    kind: type[Exception],
    words: str,
) -> None:
    with pytest.raises(kind, match=words):
        pool.broadcast(*arguments, **settings)
    assert server.requests == []


GOOD = {"topic": "room", "event": "x", "payload": {}}

BAD_MANY: list[tuple[Any, type[Exception], str]] = [
    (None, rtpool.InvalidType, "messages must be an iterable of BroadcastMessage, not NoneType"),
    ("text", rtpool.InvalidType, "not str"),
    (GOOD, rtpool.InvalidType, "not dict"),
    (rtpool.BroadcastMessage("room", "x", {}), rtpool.InvalidType, "not BroadcastMessage"),
    ([GOOD, 5], rtpool.InvalidType, r"messages\[1\] must be a BroadcastMessage or a mapping, not int"),
    ([GOOD, {"topic": "room", "event": "x"}], rtpool.InvalidValue, r"messages\[1\] has no 'payload'"),
    ([{**GOOD, "privat": True}], rtpool.InvalidValue, r"messages\[0\] has 'privat'"),
    ([{**GOOD, 5: True}], rtpool.InvalidValue, r"messages\[0\] has 5"),
    ([GOOD, {**GOOD, "topic": ""}], rtpool.InvalidValue, r"messages\[1\]\.topic must not be empty"),
    ([GOOD, {**GOOD, "event": None}], rtpool.InvalidType, r"messages\[1\]\.event must be str"),
    ([GOOD, {**GOOD, "payload": b"x"}], rtpool.InvalidType, r"messages\[1\]\.payload must be a JSON object"),
    (
        [GOOD, {**GOOD, "payload": {"n": float("inf")}}],
        rtpool.InvalidValue,
        r"messages\[1\]\.payload cannot be written",
    ),
    ([{**GOOD, "private": 1}], rtpool.InvalidType, r"messages\[0\]\.private must be bool"),
    ([{**GOOD, "id": 5}], rtpool.InvalidType, r"messages\[0\]\.id must be str"),
    ([{**GOOD, "payload": {"d": "x" * 3_000_000}}] * 3, rtpool.MessageTooBig, r"up to messages\[2\] has 9000"),
]


@pytest.mark.parametrize(("messages", "kind", "words"), BAD_MANY, ids=[case[2][:50] for case in BAD_MANY])
def test_of_many_messages_none_is_sent_when_one_is_bad(
    server: RealtimeServer, pool: rtpool.RealtimePool, messages: Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        pool.broadcast_many(messages)
    assert server.requests == []


def test_messages_without_end_are_refused_and_not_collected(pool: rtpool.RealtimePool) -> None:
    def endless() -> Iterator[Mapping[str, Any]]:
        while True:
            yield {**GOOD, "payload": {"d": "x" * 100_000}}

    with pytest.raises(rtpool.MessageTooBig) as caught:
        pool.broadcast_many(endless())
    assert caught.value.limit == 8_000_000 < caught.value.size < 8_200_000


def test_plain_phoenix_has_no_rest(make_pool: MakePool) -> None:
    with pytest.raises(rtpool.InvalidValue, match="plain Phoenix"):
        make_pool("http://host/socket", api_key=None, topic_prefix="").broadcast("room", "x", {})


def test_a_closed_pool_sends_nothing(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    pool.close()
    for send in (lambda: pool.broadcast("room", "x", {}), lambda: pool.broadcast_many([GOOD])):
        with pytest.raises(rtpool.PoolClosed, match="make a new one"):
            send()
    assert server.requests == []


# The ways there


def test_rest_goes_every_way_the_websocket_goes(authority: trustme.CA, make_pool: MakePool, tmp_path: Any) -> None:
    path = str(tmp_path / "rest.sock")

    def by_unix(host: str, port: int, seconds: float) -> socket.socket:
        assert (host, port, threading.current_thread()) == ("server.example", 443, threading.main_thread())
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        return sock

    with (
        RealtimeServer(ssl_context=serving(authority, "server.example", "localhost")) as server,
        Peer(relaying(server.port), path=path),
        proxy("http", username="me", password=SECRET) as http,
        proxy("socks5") as socks,
    ):
        ways: list[tuple[str, dict[str, Any]]] = [
            (f"https://localhost:{server.port}", {}),
            ("https://server.example", {"dial": by_unix}),
            (f"https://localhost:{server.port}", {"proxy": f"http://me:{SECRET}@127.0.0.1:{http.port}"}),
            (f"https://localhost:{server.port}", {"proxy": f"socks5h://127.0.0.1:{socks.port}"}),
        ]
        for url, way in ways:
            pool = make_pool(url, api_key=server.api_key, ssl_context=trusting(authority), **way)
            pool.broadcast("room", "x", {})
        assert [request.status for request in server.requests] == [202] * 4
        assert (http.asked, socks.asked) == ([("localhost", server.port)],) * 2
        with pytest.raises(rtpool.ConnectionFailed, match="not trusted"):
            make_pool(f"https://localhost:{server.port}").broadcast("room", "x", {})
        with pytest.raises(rtpool.ProxyRefused):
            bad = f"http://me:wrong@127.0.0.1:{http.port}"
            make_pool(f"https://localhost:{server.port}", proxy=bad).broadcast("room", "x", {})


def test_rest_reaches_an_ipv6_server(ipv6: str, make_pool: MakePool) -> None:
    with RealtimeServer(host=ipv6) as server:
        make_pool(f"http://[{ipv6}]:{server.port}", api_key=server.api_key).broadcast("room", "x", {})
        assert server.requests[0].headers["host"] == f"[::1]:{server.port}"

"""Broadcasts by REST that are refused, get no answer in time, or do not reach the server."""

from __future__ import annotations

import json
import pickle
import socket
import threading
from typing import Any

import pytest

import rtpool
from rtpool.testing import RealtimeServer, Refusal
from tests.conftest import MakePool
from tests.support.peer import Peer, answer, dribble, saying, silence
from tests.support.recorder import Recorder
from tests.support.ways import SECRET, closed_port, told

GOOD = {"topic": "room", "event": "x", "payload": {}}

# Refusals


REFUSALS: list[tuple[int, Any, bool, str]] = [
    (401, {"message": "Unauthorized"}, False, "Unauthorized"),
    (401, {"message": "Tenant not found in database"}, False, "Tenant not found in database"),
    (403, {"message": "Tenant is suspended"}, False, "Tenant is suspended"),
    (403, {"message": "Unauthorized"}, False, "Unauthorized"),
    (413, "", False, "Because"),
    (415, {"error": "Unsupported Media Type."}, False, "Unsupported Media Type."),
    (
        422,
        {"errors": {"payload": ["Payload size exceeds tenant limit"]}},
        False,
        "payload: Payload size exceeds tenant limit",
    ),
    (422, {"message": "RLS policy error"}, True, "RLS policy error"),
    (422, {"message": "Query canceled"}, True, "Query canceled"),
    (422, {"message": "Missing messages partition"}, True, "Missing messages partition"),
    (422, {"message": "Tenant database unavailable"}, True, "Tenant database unavailable"),
    (422, {"message": "Tenant database initializing"}, True, "Tenant database initializing"),
    (422, {"message": "Tenant database connection initializing"}, True, "Tenant database connection initializing"),
    (422, {"message": "Tenant database has too many connections"}, True, "Tenant database has too many connections"),
    (422, {"message": "Connect rate limit reached"}, True, "Connect rate limit reached"),
    (422, {"unheard": "of"}, False, '{"unheard": "of"}'),
    (429, {"message": "Too many requests"}, True, "Too many requests"),
    (429, {"message": "You have exceeded your rate limit"}, True, "You have exceeded your rate limit"),
    (429, {"message": "Connection pool exhausted"}, True, "Connection pool exhausted"),
    (500, {"message": "RPC error"}, True, "RPC error"),
    (500, {"message": "Unable to authorize broadcast"}, True, "Unable to authorize broadcast"),
    (502, "<html>bad gateway</html>", True, "<html>bad gateway</html>"),
    (503, "", True, "Because"),
    (400, {"errors": {"detail": "Bad Request"}}, False, "detail: Bad Request"),
    (301, "", False, "Because"),
    (200, "<html>a shop</html>", False, "<html>a shop</html>"),
    (204, "", False, "Because"),
]


@pytest.mark.parametrize(
    ("status", "body", "retryable", "reason"), REFUSALS, ids=[f"{c[0]} {c[3]}"[:50] for c in REFUSALS]
)
def test_every_refusal_is_a_typed_error_with_the_servers_words(
    make_pool: MakePool, status: int, body: Any, retryable: bool, reason: str
) -> None:
    text = body if isinstance(body, str) else json.dumps(body)
    with Peer(saying(answer(status, text.encode()))) as refusing:
        pool = make_pool(f"http://127.0.0.1:{refusing.port}", api_key=SECRET)
        with pytest.raises(rtpool.BroadcastRefused) as caught:
            pool.broadcast("room", "x", {})
    error = caught.value
    assert (error.status, error.body, error.retryable, error.reason) == (status, text, retryable, reason)
    assert f"HTTP {status}: {reason}" in str(error)
    assert "broadcast of 'x' on 'room'" in str(error)
    assert error.retry_after is None
    assert bool(error.errors) is (status == 422 and "errors" in body)
    assert SECRET not in told(error)
    again = pickle.loads(pickle.dumps(error))
    assert (again.status, again.errors, str(again)) == (status, error.errors, str(error))


def test_a_422_names_what_is_wrong_with_which_message(make_pool: MakePool) -> None:
    found = {"errors": {"messages": [{}, {"payload": ["can't be blank", "is invalid"], "event": "odd"}, {}]}}
    with Peer(saying(answer(422, json.dumps(found).encode()))) as refusing:
        pool = make_pool(f"http://127.0.0.1:{refusing.port}")
        with pytest.raises(
            rtpool.BroadcastRefused, match=r"batch of 3 broadcasts.*messages\[1\]\.payload: can't be"
        ) as caught:
            pool.broadcast_many([GOOD] * 3)
    assert caught.value.errors == {1: {"payload": ("can't be blank", "is invalid"), "event": ("odd",)}}


def test_the_embedded_servers_own_refusals_arrive(server: RealtimeServer, make_pool: MakePool) -> None:
    server.configure(max_payload_kb=1)
    with pytest.raises(rtpool.BroadcastRefused) as single:
        make_pool().broadcast("room", "x", {"d": "x" * 2_000})
    assert single.value.errors == {0: {"payload": ("Payload size exceeds tenant limit",)}}
    with pytest.raises(rtpool.BroadcastRefused) as batch:
        make_pool().broadcast_many([GOOD, {**GOOD, "payload": {"d": "x" * 2_000}}])
    assert batch.value.errors == {1: {"payload": ("Payload size exceeds tenant limit",)}}
    with pytest.raises(rtpool.BroadcastRefused, match="Another access token") as expired:
        make_pool(access_token=server.token(expires_in=-5)).broadcast("room", "x", {})
    assert expired.value.status == 401
    server.configure(max_events_per_second=2)
    with pytest.raises(rtpool.BroadcastRefused, match=r"reduce the batch size\. Wait, or send fewer") as limited:
        make_pool().broadcast_many([GOOD] * 3)
    assert (limited.value.status, limited.value.retryable) == (429, True)
    server.on_request = lambda request: Refusal(429, "", {"retry-after": "7"})
    with pytest.raises(rtpool.BroadcastRefused) as later:
        make_pool().broadcast("room", "x", {})
    assert later.value.retry_after == 7.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry_After": "120"}, 120.0),
        ({"Retry_After": "Wed, 25 Nov 2026 10:00:30 GMT", "Date": "Wed, 25 Nov 2026 10:00:00 GMT"}, 30.0),
        ({"Retry_After": "Wed, 25 Nov 2026 09:00:00 GMT", "Date": "Wed, 25 Nov 2026 10:00:00 GMT"}, 0.0),
        ({"Retry_After": "Wed, 25 Nov 2020 10:00:30 GMT"}, 0.0),
        ({"Retry_After": "soon", "Date": "Wed, 25 Nov 2026 10:00:00 GMT"}, None),
        ({"Retry_After": "-1"}, None),
        ({"Retry_After": "9" * 400}, 3_600.0),
    ],
)
def test_how_long_the_server_asks_to_wait_is_told(make_pool: MakePool, headers: dict[str, str], seconds: float) -> None:
    with Peer(saying(answer(503, **headers))) as refusing, pytest.raises(rtpool.BroadcastRefused) as caught:
        make_pool(f"http://127.0.0.1:{refusing.port}").broadcast("room", "x", {})
    assert caught.value.retry_after == seconds


def test_a_refusal_without_end_is_read_no_further_than_a_megabyte(make_pool: MakePool) -> None:
    def flood(peer: Peer, sock: socket.socket) -> None:
        peer.request(sock)
        sock.sendall(b"HTTP/1.1 500 No\r\n\r\n")
        while not peer.over.is_set():
            sock.sendall(b"x" * 60_000)

    with Peer(flood) as endless, pytest.raises(rtpool.BroadcastRefused) as caught:
        make_pool(f"http://127.0.0.1:{endless.port}").broadcast("room", "x", {})
    assert (caught.value.status, caught.value.body) == (500, "x" * 2_000)


def test_an_answer_given_before_the_body_was_read_counts(make_pool: MakePool) -> None:
    def hasty(peer: Peer, sock: socket.socket) -> None:
        sock.recv(100)
        sock.sendall(answer(413))
        sock.close()

    with Peer(hasty) as refusing, pytest.raises(rtpool.BroadcastRefused) as caught:
        make_pool(f"http://127.0.0.1:{refusing.port}").broadcast("room", "x", bytes(7_900_000))
    assert caught.value.status == 413


# Trouble on the way


def test_a_server_that_cannot_be_reached_is_a_failed_connection(make_pool: MakePool) -> None:
    with pytest.raises(
        rtpool.ConnectionFailed, match=r"no connection to http://127\.0\.0\.1:.*/api/broadcast"
    ) as caught:
        make_pool(f"http://127.0.0.1:{closed_port()}", api_key=SECRET).broadcast("room", "x", {})
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    assert SECRET not in told(caught.value)


@pytest.mark.parametrize("said", [b"", b"SSH-2.0\r\n\r\n", b"HTTP/1.1 2", b"HTTP/1.1 202 OK\r\nX: " + b"x" * 70_000])
def test_an_answer_that_is_none_says_that_the_message_may_be_out(make_pool: MakePool, said: bytes) -> None:
    with Peer(saying(said)) as wrong, pytest.raises(rtpool.ConnectionFailed, match="sent, and may have been broadcast"):
        make_pool(f"http://127.0.0.1:{wrong.port}").broadcast("room", "x", {})


@pytest.mark.parametrize(
    "serve",
    [silence, dribble(b"HTTP/1.1 202 Accepted\r\nX-More: "), dribble(b"", b"HTTP/1.1 100 Continue\r\n\r\n")],
    ids=["silent", "dribbling", "dribbling informational answers"],
)
def test_no_answer_in_time_is_told_with_what_is_known(make_pool: MakePool, serve: Any) -> None:
    with Peer(serve) as slow:
        pool = make_pool(f"http://127.0.0.1:{slow.port}")
        with pytest.raises(rtpool.PushTimeout, match=r"within 0\.3 s; it was sent, and may have been") as caught:
            pool.broadcast("room", "x", {}, timeout=0.3)
    assert (caught.value.topic, caught.value.event, caught.value.timeout, caught.value.sent) == ("room", "x", 0.3, True)


def test_a_refusal_whose_body_dribbles_is_told_by_its_status(make_pool: MakePool) -> None:
    slow = Peer(dribble(b"HTTP/1.1 403 No\r\nContent-Length: 100\r\n\r\n"))
    with slow, pytest.raises(rtpool.BroadcastRefused) as caught:
        make_pool(f"http://127.0.0.1:{slow.port}").broadcast("room", "x", {}, timeout=0.3)
    assert (caught.value.status, caught.value.reason) == (403, "No")


def test_what_was_not_sent_in_time_is_told_as_that(make_pool: MakePool) -> None:
    def deaf(peer: Peer, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        silence(peer, sock)

    with Peer(deaf) as peer, Peer(silence) as hanging:
        pool = make_pool(f"http://127.0.0.1:{peer.port}")
        with pytest.raises(rtpool.PushTimeout, match="it was not sent") as caught:
            pool.broadcast("room", "x", bytes(7_900_000), timeout=0.3)
        assert not caught.value.sent
        with pytest.raises(rtpool.PushTimeout, match="it was not sent") as caught:
            pool.broadcast("room", "x", {}, timeout=0)
        assert not caught.value.sent
        pool = make_pool("http://server.example", proxy=f"http://127.0.0.1:{hanging.port}")
        with pytest.raises(rtpool.PushTimeout, match="it was not sent") as caught:
            pool.broadcast("room", "x", {}, timeout=0.3)
        assert not caught.value.sent
        pool = make_pool("http://server.example", proxy=f"http://127.0.0.1:{hanging.port}", connection_timeout=0.2)
        with pytest.raises(rtpool.ConnectionFailed, match=r"within 0\.2 s"):
            pool.broadcast("room", "x", {}, timeout=30)


@pytest.mark.parametrize("started", [False, True])
def test_close_breaks_a_call_off(server: RealtimeServer, make_pool: MakePool, started: bool) -> None:
    with Peer(silence) as slow:
        pool, outcomes = make_pool(f"http://127.0.0.1:{slow.port}"), Recorder()
        if started:
            pool.channel("room").subscribe(wait=False)

        def call() -> None:
            try:
                pool.broadcast("room", "x", {}, timeout=60)
            except rtpool.RtpoolError as error:
                outcomes(error)

        thread = threading.Thread(target=call)
        thread.start()
        while len(slow._sockets) < 1 + started:
            threading.Event().wait(0.005)
        pool.close(5)
        assert isinstance(outcomes.wait(1)[0], rtpool.PoolClosed)
        thread.join()

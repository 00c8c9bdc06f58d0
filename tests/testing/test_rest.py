"""The REST endpoints of the embedded server."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from rtpool.testing import Permissions, RealtimeServer, Refusal, RestRequest
from tests.support.hand import TOPIC, Hand, call

BATCH = "/realtime/v1/api/broadcast"
MESSAGE = {"topic": "room", "event": "e", "payload": {"n": 1}}


def single(topic: str = "room", event: str = "e") -> str:
    return f"{BATCH}/{topic}/events/{event}"


@pytest.mark.parametrize("mount", ["", "/realtime/v1"])
def test_a_batch_arrives_as_text_and_one_event_as_kind_4(server: RealtimeServer, mount: str) -> None:
    with Hand(server) as second, Hand(server, "1.0.0") as first:
        second.join()
        first.join()
        status, body, headers = call(server, f"{mount}/api/broadcast", {"messages": [{**MESSAGE, "id": "7"}]})
        assert (status, body) == (202, "")
        assert headers["x-rate-limit-remaining"] == "100"
        data = {"type": "broadcast", "event": "e", "payload": {"n": 1}, "meta": {"id": "7"}}
        assert second.receive() == [None, None, TOPIC, "broadcast", data]
        assert first.receive()["payload"] == data
        assert call(server, f"{mount}/api/broadcast/room/events/e%2F1", {"n": 2})[0] == 202
        assert second.receive() == bytes((4, len(TOPIC), 3, 0, 1)) + TOPIC.encode() + b'e/1{"n":2}'
        assert first.receive()["payload"] == {"type": "broadcast", "event": "e/1", "payload": {"n": 2}}


def test_bytes_reach_version_2_only_and_other_json_is_wrapped(server: RealtimeServer) -> None:
    with Hand(server) as second, Hand(server, "1.0.0") as first:
        second.join()
        first.join()
        assert call(server, single(), b"\x00\xff", content_type="application/octet-stream")[0] == 202
        assert call(server, single(), b"[1]")[0] == 202
        assert second.receive() == bytes((4, len(TOPIC), 1, 0, 0)) + TOPIC.encode() + b"e\x00\xff"
        assert second.receive().endswith(b'{"_json":[1]}')
        assert first.receive()["payload"]["payload"] == {"_json": [1]}


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "answer"),
    [
        (BATCH, {"messages": []}, {}, 422, {"errors": {"messages": ["can't be blank"]}}),
        (BATCH, {}, {}, 422, {"errors": {"messages": ["can't be blank"]}}),
        (BATCH, {"messages": [5]}, {}, 422, {"errors": {"messages": ["is invalid"]}}),
        (
            BATCH,
            {"messages": [{"topic": "bc"}, MESSAGE]},
            {},
            422,
            {"errors": {"messages": [{"event": ["can't be blank"], "payload": ["can't be blank"]}, {}]}},
        ),
        (
            BATCH,
            {"messages": [{**MESSAGE, "payload": "no object"}]},
            {},
            422,
            {"errors": {"messages": [{"payload": ["is invalid"]}]}},
        ),
        (BATCH, b"{", {}, 400, {"errors": {"detail": "Bad Request"}}),
        (BATCH, {"messages": [MESSAGE]}, {"apikey": ""}, 401, {"message": "Unauthorized"}),
        (BATCH, {"messages": [MESSAGE]}, {"authorization": "Bearer rubbish"}, 401, {"message": "Unauthorized"}),
        (BATCH + "/room/e", {}, {}, 404, "Not Found"),
        (
            single(),
            {},
            {"content_type": "text/plain"},
            415,
            {"error": "Unsupported Media Type. Use application/json or application/octet-stream"},
        ),
        (single(), b"{", {}, 400, {"errors": {"detail": "Bad Request"}}),
    ],
)
def test_every_refusal_has_the_servers_status_and_body(
    server: RealtimeServer, path: str, body: Any, headers: dict[str, str], status: int, answer: Any
) -> None:
    assert call(server, path, body, **headers)[:2] == (status, answer)


def test_sizes_are_refused_by_their_limits() -> None:
    with RealtimeServer(max_payload_kb=1) as small:
        words = {"payload": ["Payload size exceeds tenant limit"]}
        big = {"d": "x" * 3_000}
        assert call(small, single(), big)[:2] == (422, {"errors": words})
        assert call(small, BATCH, {"messages": [{**MESSAGE, "payload": big}]})[:2] == (
            422,
            {"errors": {"messages": [words]}},
        )
        assert call(small, single(), {"d": "x" * 9_000_000})[0] == 413


def test_rates_refuse_rest_and_say_so_in_headers() -> None:
    with RealtimeServer(max_events_per_second=2, clock_at=1_000.0) as limited:
        status, body, _ = call(limited, BATCH, {"messages": [MESSAGE] * 3})
        assert (status, body["message"]) == (429, "Too many messages to broadcast, please reduce the batch size")
        assert call(limited, BATCH, {"messages": [MESSAGE] * 2})[0] == 202
        status, body, headers = call(limited, BATCH, {"messages": [MESSAGE]})
        assert (status, body["message"]) == (429, "You have exceeded your rate limit")
        assert (headers["x-rate-rolling"], headers["x-rate-limit-remaining"]) == ("2", "0")
        limited.advance(1.0)
        assert call(limited, single(), {})[0] == 202


def test_switches_close_the_endpoints() -> None:
    with RealtimeServer(suspended=True) as server:
        assert call(server, BATCH, {"messages": [MESSAGE]})[:2] == (403, {"message": "Tenant is suspended"})
        server.configure(suspended=False, single_rest=False)
        assert call(server, single(), {})[:2] == (404, "Not Found")
        assert call(server, BATCH, {"messages": [MESSAGE]})[0] == 202


def test_the_policy_denies_one_event_aloud_and_a_batch_in_silence(server: RealtimeServer) -> None:
    server.policy = lambda request: Permissions(read_broadcast=True, write_broadcast=request.claims["role"] == "writer")
    with Hand(server) as reader:
        reader.join(private=True)
        assert call(server, BATCH, {"messages": [{**MESSAGE, "private": True}]})[0] == 202
        assert call(server, single() + "?private=true", {})[:2] == (403, {"message": "Unauthorized"})
        token = f"Bearer {server.token(role='writer')}"
        assert call(server, single(event="let"), {"n": 2}, authorization=token)[0] == 202, "to the public topic"
        assert call(server, single(event="in") + "?private=true", {"n": 3}, authorization=token)[0] == 202
        assert reader.receive().endswith(b'in{"n":3}')
        server.stop_database()
        status, body, _ = call(server, single() + "?private=true", {}, authorization=token)
        assert (status, body) == (422, {"message": "Tenant database unavailable"})


def test_a_hook_answers_in_the_servers_place_and_every_call_is_recorded(server: RealtimeServer) -> None:
    asked: list[RestRequest] = []

    def hook(request: RestRequest) -> Refusal | None:
        asked.append(request)
        if "raise" in request.path:
            raise ValueError
        return Refusal(503, "busy", {"retry-after": "1"}) if "busy" in request.path else None

    server.on_request = hook
    status, body, headers = call(server, single("busy"), {"n": 1})
    assert (status, body, headers["retry-after"]) == (503, "busy", "1")
    assert call(server, single("raise"), {})[:2] == (500, {"message": "RPC error"})
    assert call(server, single() + "?private=false", {})[0] == 202
    assert [(r.method, r.path, r.body, r.status) for r in server.requests] == [
        ("POST", single("busy"), b'{"n": 1}', 503),
        ("POST", single("raise"), b"{}", 500),
        ("POST", single(), b"{}", 202),
    ]
    assert asked[2].query == {"private": "false"}


def test_an_answer_may_be_held_back_by_the_servers_clock() -> None:
    with RealtimeServer(clock_at=0.0) as server:
        server.on_request = lambda request: Refusal(202, delay=30.0)
        connection = Hand(server, key=server.token())
        with connection:
            answers: list[int] = []
            caller = threading.Thread(target=lambda: answers.append(call(server, single(), {})[0]))
            caller.start()
            while not answers:
                server.advance(30.0)
            caller.join()
        assert answers == [202]


def test_what_fits_no_binary_frame_is_a_server_error_and_a_head_has_no_body(server: RealtimeServer) -> None:
    long = "x" * 300
    with Hand(server) as hand:
        assert hand.join(topic=f"realtime:{long}")["status"] == "ok"
        assert call(server, single(long), {})[0] == 500
        assert call(server, BATCH, {"messages": [{**MESSAGE, "topic": long}]})[0] == 202
        assert hand.receive()[3] == "broadcast"
    status, body, headers = call(server, "/nothing", method="HEAD")
    assert (status, body, headers["content-length"]) == (404, "", "9")


def test_browsers_are_answered_with_cors_headers(server: RealtimeServer) -> None:
    status, _, headers = call(server, BATCH, method="OPTIONS", origin="http://example.test")
    assert (status, headers["access-control-allow-origin"]) == (204, "*")
    assert "apikey" in headers["access-control-allow-headers"]


def test_no_upgrade_on_the_websocket_path_is_told_what_is_missing(server: RealtimeServer) -> None:
    words = "'connection' header must contain 'upgrade', got []"
    assert call(server, "/socket/websocket?vsn=1.0.0", method="GET")[:2] == (400, words)
    assert call(server, "/socket/websocket?vsn=1.0.0")[:2] == (400, "")
    assert call(server, "/api/ping", method="GET")[:2] == (200, {"message": "Success"})


def test_rest_goes_over_tls_and_a_dribbling_client_is_understood(certificates: Any) -> None:
    serving, trusting = certificates
    with (
        RealtimeServer(ssl_context=serving) as server,
        trusting.wrap_socket(socket.create_connection(("127.0.0.1", server.port)), server_hostname="127.0.0.1") as s,
    ):
        s.settimeout(10)
        for byte in b"GET /api/ping HTTP/1.1\r\nHost: x\r\n\r\n":
            s.sendall(bytes([byte]))
        assert s.recv(65_536).startswith(b"HTTP/1.1 200 ")

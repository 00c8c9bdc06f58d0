"""However bytes arrive or are held up: the same messages, the same order, the other connections unaffected."""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import Iterator
from typing import Any

import pytest

import rtpool
from rtpool.testing import PushReply, RealtimeServer
from tests.conftest import MakePool
from tests.support.proxy import Holder, Proxy
from tests.support.recorder import Recorder
from tests.support.wait import wait_until

Certificates = tuple[ssl.SSLContext, ssl.SSLContext]


@pytest.fixture(params=["plain", "tls"])
def served(
    request: pytest.FixtureRequest, certificates: Certificates
) -> Iterator[tuple[RealtimeServer, dict[str, object]]]:
    """A server, and the options a pool needs for it."""
    tls = request.param == "tls"
    with RealtimeServer(ssl_context=certificates[0] if tls else None, max_payload_kb=30_000) as server:
        options: dict[str, object] = {"api_key": server.api_key}
        yield server, {**options, "ssl_context": certificates[1]} if tls else options


def through(server: RealtimeServer, proxy: Proxy) -> str:
    return server.url.replace(str(server.port), str(proxy.port))


def test_a_stream_that_arrives_byte_by_byte_loses_nothing(
    served: tuple[RealtimeServer, dict[str, object]], make_pool: MakePool
) -> None:
    server, options = served
    with Proxy(server.port, down=1, up=1) as proxy, contextlib.ExitStack() as stack:
        pool = stack.enter_context(make_pool(through(server, proxy), **options))
        heard = Recorder()
        channel = pool.channel("room", receive_own=True).on_broadcast("*", heard).subscribe()
        for number in range(40):
            server.broadcast("room", "é", {"n": number, "text": "ü" * number})
        heard.wait(40)
        for number in range(40, 60):
            channel.send_broadcast("e", {"n": number})
        heard.wait(60)
    assert heard.numbers == list(range(60))


def test_a_thousand_messages_in_one_write_arrive_in_order(
    served: tuple[RealtimeServer, dict[str, object]], make_pool: MakePool
) -> None:
    server, options = served
    with Holder(server.port) as proxy, contextlib.ExitStack() as stack:
        pool = stack.enter_context(make_pool(through(server, proxy), **options))
        heard = Recorder()
        pool.channel("room").on_broadcast("*", heard).subscribe()
        proxy.hold()
        for number in range(1_000):
            server.broadcast("room", "e", {"n": number})
        wait_until(lambda: proxy.held > 1_000 * 25)
        proxy.release()
        heard.wait(1_000)
    assert heard.numbers == list(range(1_000))


def test_twenty_megabytes_wait_for_a_server_that_does_not_read_and_arrive_whole(
    served: tuple[RealtimeServer, dict[str, object]], make_pool: MakePool
) -> None:
    server, options = served
    pool = make_pool(server.url, max_channels_per_connection=1, **options)
    heard, others = Recorder(), Recorder()
    sender = pool.channel("big").subscribe()
    pool.channel("other", receive_own=True).on_broadcast("*", others).subscribe()
    big, other = server.connections
    make_pool(server.url, **options).channel("big").on_broadcast("*", heard).subscribe()

    big.pause_reading()
    pushes = [sender.send_broadcast("chunk", bytes([n]) * 1_000_000, timeout=60) for n in range(20)]
    wait_until(lambda: pool.stats().connection_details[0].send_queue > 10_000_000)
    server.broadcast("other", "still", {"n": 0})
    others.wait(1)
    assert "realtime:other" in other.topics
    assert not pushes[-1].done()
    big.resume_reading()
    for push in pushes:
        push.result(60)
    heard.wait(20, cap=60)
    assert [event.payload for event in heard.events] == [bytes([n]) * 1_000_000 for n in range(20)]


def test_five_megabyte_frames_pass_both_ways(
    served: tuple[RealtimeServer, dict[str, object]], make_pool: MakePool
) -> None:
    server, options = served
    pool, heard = make_pool(server.url, max_payload_size=None, **options), Recorder()
    channel = pool.channel("room", receive_own=True).on_broadcast("*", heard).subscribe()
    blob = bytes(range(256)) * 19_500  # 4,992,000 bytes
    channel.send_broadcast("up", blob, timeout=60)
    server.broadcast("room", "text", {"data": "x" * 4_900_000})
    server.broadcast("room", "after", {})
    events = heard.wait(3, cap=60)
    assert sorted(e.event for e in events) == ["after", "text", "up"]
    assert next(e.payload for e in events if e.event == "up") == blob
    assert len(next(e.payload["data"] for e in events if e.event == "text")) == 4_900_000


def test_a_message_over_the_limit_recycles_the_connection_with_bounded_memory(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    pool, heard = make_pool(max_message_size=10_000), Recorder()
    pool.channel("room").on_broadcast("*", heard).on_gap(heard).subscribe()
    server.broadcast("room", "big", {"data": "x" * 20_000})
    server.wait_for(lambda s: s.connections_total == 2 and s.members("room"))
    assert isinstance(heard.wait(1)[0], rtpool.Gap)
    server.broadcast("room", "small", {})
    heard.wait(2)


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"\x82\x7f" + (2**40).to_bytes(8, "big"), id="a frame of a terabyte"),
        pytest.param(b"\x81\x81\0\0\0\0x", id="masked"),
        pytest.param(b"\xff\xff\xff\xff", id="reserved bits"),
        pytest.param(b"\x89\x7e\0\xff", id="an oversize ping"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", id="HTTP"),
    ],
)
def test_bytes_that_are_no_websocket_recycle_the_connection(
    server: RealtimeServer, pool: rtpool.RealtimePool, garbage: bytes
) -> None:
    gaps = Recorder()
    pool.channel("room").on_gap(gaps).subscribe()
    server.connections[0].send_raw(garbage)
    gaps.wait(1)
    assert server.connections_total == 2


@pytest.mark.parametrize(
    "frame",
    ['{"payload":not json}', "[]", "[1,2,3]", '["1","1",5,"e",{}]', "", "null", '"x"', "[" * 100_000],
)
def test_a_frame_that_is_no_message_is_dropped_and_nothing_else_happens(
    server: RealtimeServer, pool: rtpool.RealtimePool, frame: str
) -> None:
    heard = Recorder()
    pool.channel("room").on_broadcast("*", heard).subscribe()
    server.connections[0].send_text(frame)
    server.connections[0].send_binary(b"\x09rubbish")
    server.broadcast("room", "x", {"n": 1})
    heard.wait(1)
    assert server.connections_total == 1
    assert pool.stats().messages_unheard == 2


def test_a_text_frame_that_is_not_utf8_is_dropped(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    heard = Recorder()
    pool.channel("room").on_broadcast("*", heard).subscribe()
    server.connections[0].send_raw(b"\x81\x02\xff\xfe")
    server.broadcast("room", "x", {"n": 1})
    heard.wait(1)
    assert server.connections_total == 1


def test_a_ping_is_answered_and_fragments_are_put_together(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    heard = Recorder()
    pool.channel("room").on_broadcast("*", heard).subscribe()
    message = b'[null,null,"realtime:room","broadcast",{"type":"broadcast","event":"x","payload":{"n":1}}]'
    first, second = message[:30], message[30:]
    before = pool.stats().bytes_sent
    server.connections[0].send_raw(b"\x01" + bytes([len(first)]) + first + b"\x89\x02hi")
    server.connections[0].send_raw(b"\x80" + bytes([len(second)]) + second)
    assert heard.wait(1)[0].payload == {"n": 1}
    wait_until(lambda: pool.stats().bytes_sent == before + 8, "a masked pong of two bytes")


def test_an_untrusted_certificate_is_told_and_not_tried_again(certificates: Certificates, make_pool: MakePool) -> None:
    with RealtimeServer(ssl_context=certificates[0]) as server:
        pool = make_pool(server.url, api_key=server.api_key)
        with pytest.raises(rtpool.ConnectionFailed, match="certificate") as caught:
            pool.channel("room").subscribe()
        assert not caught.value.retryable
        assert pool.stats().reconnect_attempts == 0


def test_one_frozen_connection_does_not_hold_up_another(server: RealtimeServer, make_pool: MakePool) -> None:
    pool, heard = make_pool(max_channels_per_connection=1), Recorder()
    pool.channel("frozen").subscribe()
    pool.channel("fine", receive_own=True).on_broadcast("*", heard).subscribe()
    server.connections[0].freeze()
    for number in range(50):
        server.broadcast("fine", "x", {"n": number})
    heard.wait(50)


@pytest.mark.parametrize("vsn", ["1.0.0", "2.0.0"])
def test_both_versions_of_the_protocol_carry_the_same_and_the_second_bytes_too(
    make_pool: MakePool, server: RealtimeServer, vsn: str
) -> None:
    pool, heard = make_pool(protocol=vsn), Recorder()
    channel = pool.channel("room", ack=True, receive_own=True).on_broadcast("*", heard).subscribe()
    assert channel.send_broadcast("x", {"n": 1}).result() == {}
    server.broadcast("room", "y", {"n": 2}, id="some-id")
    events = heard.wait(2)
    assert [(e.event, e.payload, e.id) for e in events] == [("x", {"n": 1}, None), ("y", {"n": 2}, "some-id")]
    if vsn == "2.0.0":
        assert channel.send_broadcast("z", b"\x00\xff").result() == {}
        assert heard.wait(3)[-1].payload == b"\x00\xff"
    channel.unsubscribe()
    assert server.connections[0].vsn == vsn


def test_the_key_may_travel_in_a_header_and_then_not_in_the_url(server: RealtimeServer, make_pool: MakePool) -> None:
    requests = Recorder()
    server.on_connect = requests  # type: ignore[assignment]
    pool = make_pool(api_key_in="header", headers={"x-team": "blue"})
    pool.channel("room").subscribe()
    request = requests.wait(1)[0]
    assert "apikey" not in request.query
    assert (request.headers["x-api-key"], request.headers["x-team"]) == (server.api_key, "blue")


def test_a_plain_phoenix_server_needs_no_key_and_gets_nothing_of_supabases(make_pool: MakePool) -> None:
    with RealtimeServer(plain_phoenix=True) as phoenix:
        pool = make_pool(f"ws://127.0.0.1:{phoenix.port}/socket", api_key=None, topic_prefix="")
        heard = Recorder()
        lobby = pool.channel("room:lobby").on("new_msg", heard).subscribe()
        phoenix.push("room:lobby", "new_msg", {"body": "hi"})
        assert heard.wait(1)[0] == rtpool.Message("room:lobby", "new_msg", {"body": "hi"})
        with pytest.raises(rtpool.InvalidValue, match="plain Phoenix"):
            lobby.send_broadcast("x", b"bytes")
        lobby.push("raw", b"bytes", timeout=0.2)
        lobby.push("shout", {"body": "hey"}, timeout=0.2)
        phoenix.wait_for(lambda s: any(m.event == "shout" for m in s.received))
        assert phoenix.joins()[0].payload == {}
        assert next(m.payload for m in phoenix.received if m.event == "raw") == b"bytes"
        lobby.unsubscribe()
        pool.close()


ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    1e308,
    "",
    "words",
    [],
    [[]],
    {},
    {"": None},
    {"ids": 0},
    {"ids": [None, True, "1"]},
    {"ids": [0], "data": []},
    {"ids": [0], "data": {"type": 1, "record": 1, "columns": 1, "errors": {"a": 1}}},
    {"status": "ok"},
    {"status": None, "response": 1},
    {"status": "error", "response": {"reason": {"a": [1]}}},
    {"joins": 1, "leaves": None},
    {"joins": {"a": {"metas": [{"phx_ref": []}, {"phx_ref": {}}, {}, 1]}}, "leaves": {"a": 1}},
    {"a": {"metas": [{"phx_ref": ["x"]}]}},
    {"a": {"metas": {"b": 1}}},
    {"event": 1},
    {"event": "x", "meta": []},
    {"event": "x", "meta": {"id": [], "replayed": "yes"}},
    {"extension": [], "status": {}, "message": 7},
    {"extension": "postgres_changes", "status": "ok", "message": None},
]
EVENTS = [
    "broadcast",
    "presence_state",
    "presence_diff",
    "postgres_changes",
    "system",
    "phx_reply",
    "own",
    "",
    "phx_join",
]


@pytest.mark.parametrize("protocol", ["2.0.0", "1.0.0"])
def test_whatever_a_server_sends_costs_that_frame_and_nothing_else(
    server: RealtimeServer, make_pool: MakePool, protocol: str
) -> None:
    pool, heard = make_pool(protocol=protocol, mailbox_limit=100_000), Recorder()
    channel = pool.channel("room", private=True, replay=True, receive_own=True).on("*", lambda m: None)
    channel.on_broadcast("end", heard).on_presence_sync(lambda p: None).on_presence_join(lambda p: None)
    channel.on_postgres_changes("*", lambda c: None, table="cars").on_system(lambda s: None).subscribe()
    (join,) = server.joins("room")
    for event in EVENTS:
        for payload in ODD:
            for join_ref, ref in ((None, None), (join.join_ref, None), (None, "7"), (3, 4)):
                if protocol == "2.0.0":
                    frame: Any = [join_ref, ref, "realtime:room", event, payload]
                else:
                    frame = {"topic": "realtime:room", "event": event, "payload": payload, "ref": ref}
                server.connections[0].send_text(json.dumps(frame))
    deep = "[" * 900 + "]" * 900
    for event, payload in (("system", f'{{"message":{deep}}}'), ("broadcast", f'{{"event":"x","payload":{deep}}}')):
        topic = "realtime:room"
        v2 = f'[null,null,"{topic}","{event}",{payload}]'
        v1 = f'{{"topic":"{topic}","event":"{event}","payload":{payload},"ref":null}}'
        server.connections[0].send_text(v2 if protocol == "2.0.0" else v1)
    server.broadcast("room", "end", {}, private=True)
    heard.wait(1)
    assert server.connections_total == 1
    assert pool.stats().callback_errors == 0


def test_a_refusal_of_any_size_and_depth_is_told_in_bounded_words(server: RealtimeServer, make_pool: MakePool) -> None:
    with RealtimeServer(plain_phoenix=True) as phoenix:
        pool = make_pool(f"{phoenix.url}/socket", api_key=None, topic_prefix="")
        channel = pool.channel("room").subscribe()
        deep: Any = []
        for _ in range(900):
            deep = [deep]
        for response in ("x" * 1_000_000, deep, {"reason": deep}):
            phoenix.on_push = lambda topic, event, payload, connection, r=response: PushReply(r, "error")
            with pytest.raises(rtpool.PushRefused) as caught:
                channel.push("ask", {}).result()
            assert len(str(caught.value)) < 3_000
            assert caught.value.response == response
        pool.close()

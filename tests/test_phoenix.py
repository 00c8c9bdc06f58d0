"""Plain Phoenix servers: any topic, any event, any reply, binary too, and not one frame of Supabase's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import rtpool
from rtpool.testing import JoinRefusal, JoinReply, PushReply, RealtimeServer
from tests.support.recorder import Recorder


@pytest.fixture
def phoenix() -> Iterator[RealtimeServer]:
    """A chat application on plain Phoenix."""
    with RealtimeServer(plain_phoenix=True) as server:

        def on_push(topic: str, event: str, payload: Any, connection: Any) -> PushReply | None:
            if event == "shout":
                server.push(topic, "shout", payload)
                return PushReply({"heard": True})
            if event == "who":
                return PushReply("you")
            if event == "bytes":
                return PushReply(b"\x00" + payload)
            if event == "teapot":
                return PushReply({"reason": "short and stout"}, "teapot")
            return None

        server.on_push = on_push
        yield server


@pytest.fixture(params=["2.0.0", "1.0.0"])
def pool(phoenix: RealtimeServer, request: pytest.FixtureRequest) -> Iterator[rtpool.RealtimePool]:
    url = f"{phoenix.url}/socket".replace("http", "ws", 1)
    with rtpool.RealtimePool(url, topic_prefix="", protocol=request.param, heartbeat_interval=0.1) as pool:
        yield pool


def test_any_topic_is_joined_as_it_is_written_with_the_applications_own_payload(
    phoenix: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    pool.channel("room:lobby", params={"token": "t", "since": 7}).subscribe()
    pool.channel("room:hall").subscribe()
    assert [(j.wire_topic, j.payload) for j in phoenix.joins()] == [
        ("room:lobby", {"token": "t", "since": 7}),
        ("room:hall", {}),
    ]


def test_channels_with_different_params_do_not_share_a_join(phoenix: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    for params in ({"a": 1}, {"a": 2}, {"a": 1}):
        pool.channel("room:lobby", params=params).subscribe()
    assert [j.payload for j in phoenix.joins()] == [{"a": 1}, {"a": 2}]


def test_any_event_goes_both_ways(phoenix: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    shouts, everything = Recorder(), Recorder()
    channel = pool.channel("room:lobby").on("shout", shouts).on("*", everything).subscribe()
    assert channel.push("shout", {"n": 1}).result() == {"heard": True}
    assert shouts.wait(1) == [rtpool.Message("room:lobby", "shout", {"n": 1})]
    for event in ("broadcast", "presence", "system", "postgres_changes"):  # the application's own words here
        phoenix.push("room:lobby", event, {"type": "broadcast", "event": "x", "payload": 1})
    assert [m.event for m in everything.wait(5)] == ["shout", "broadcast", "presence", "system", "postgres_changes"]


def test_a_reply_may_have_any_response_and_any_status(phoenix: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    channel = pool.channel("room:lobby").subscribe()
    assert channel.push("who", {}).result() == "you"
    with pytest.raises(rtpool.PushRefused, match="teapot") as caught:
        channel.push("teapot", {}).result()
    assert caught.value.status == "teapot"
    assert caught.value.response == {"reason": "short and stout"}
    with pytest.raises(rtpool.PushTimeout):
        channel.push("nobody answers", {}, timeout=0.1).result()


def test_a_refused_join_is_raised_in_the_applications_words(phoenix: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    phoenix.on_join = lambda topic, payload, connection: JoinRefusal("no such room")
    with pytest.raises(rtpool.JoinRefused, match="no such room"):
        pool.channel("room:lobby").subscribe(timeout=0.5)


def test_a_joins_own_reply_is_nobodys_trouble(phoenix: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    phoenix.on_join = lambda topic, payload, connection: JoinReply({"postgres_changes": "words", "motd": [1]})
    assert pool.channel("room:lobby").subscribe().is_subscribed


def test_presence_of_the_application_is_followed(phoenix: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    joins, syncs = Recorder(), Recorder()
    pool.channel("room:lobby").on_presence_join(joins).on_presence_sync(syncs).subscribe()
    phoenix.push("room:lobby", "presence_state", {"ann": {"metas": [{"phx_ref": "1"}], "user": {"id": 7}}})
    phoenix.push("room:lobby", "presence_diff", {"joins": {"bob": {"metas": [{"phx_ref": "2"}]}}, "leaves": {}})
    assert [p.key for p in joins.wait(2)] == ["ann", "bob"]
    assert list(syncs.wait(2)[-1].state) == ["ann", "bob"]


def test_after_a_drop_the_join_comes_back_and_the_gap_is_told(
    phoenix: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    gaps, shouts = Recorder(), Recorder()
    pool.channel("room:lobby", params={"token": "t"}).on("shout", shouts).on_gap(gaps).subscribe()
    phoenix.connections[0].abort()
    gaps.wait(1)
    phoenix.push("room:lobby", "shout", {"n": 1})
    shouts.wait(1)
    assert [j.payload for j in phoenix.joins()] == [{"token": "t"}] * 2


def test_parameters_of_the_connection_are_in_its_url_with_the_version(phoenix: RealtimeServer) -> None:
    seen: list[Any] = []
    phoenix.on_connect = lambda request: seen.append(request.query)
    params = {"token": "a&b=c", "log level": "ü"}
    with rtpool.RealtimePool(f"{phoenix.url}/socket", topic_prefix="", params=params) as pool:
        pool.connect()
        assert "a&b" not in repr(pool)
        assert "a&b" not in repr(pool.options)
    assert seen == [{"vsn": "2.0.0", **params}]


def test_no_frame_of_supabases_is_ever_sent(phoenix: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    beats = Recorder()
    pool.on_heartbeat(beats)
    channel = pool.channel("room:lobby").on("shout", lambda m: None).on_presence_sync(lambda p: None).subscribe()
    channel.push("shout", {"n": 1}).result()
    beats.wait_for(lambda events: [e for e in events if e.status == "ok"])
    phoenix.connections[0].abort()
    phoenix.wait_for(lambda s: len(s.joins()) == 2 and s.members("room:lobby"))
    channel.unsubscribe()
    assert {m.event for m in phoenix.received} <= {"phx_join", "phx_leave", "heartbeat", "shout"}
    assert [m.payload for m in phoenix.received if m.event == "phx_join"] == [{}, {}]


@pytest.mark.parametrize(
    "use",
    [
        lambda pool, channel: channel.send_broadcast("x", {}),
        lambda pool, channel: channel.send_broadcast("x", b""),
        lambda pool, channel: channel.track({}),
        lambda pool, channel: channel.untrack(),
        lambda pool, channel: channel.on_broadcast("x", print),
        lambda pool, channel: channel.on_postgres_changes("*", print, table="cars"),
        lambda pool, channel: channel.on_system(print),
        lambda pool, channel: pool.on_changes("cars", print),
        lambda pool, channel: pool.set_auth("token"),
        lambda pool, channel: pool.channel("room", private=True),
        lambda pool, channel: pool.channel("room", ack=True),
        lambda pool, channel: pool.channel("room", receive_own=True),
        lambda pool, channel: pool.channel("room", presence_key="ann"),
        lambda pool, channel: pool.channel("room", access_token="token"),
    ],
)
def test_what_is_supabases_own_is_refused_at_the_call(
    phoenix: RealtimeServer, pool: rtpool.RealtimePool, use: Any
) -> None:
    channel = pool.channel("room:lobby").subscribe()
    frames = len(phoenix.received)
    with pytest.raises(rtpool.InvalidValue, match="Supabase Realtime"):
        use(pool, channel)
    assert channel.push("who", {}).result() == "you"
    assert [m.event for m in phoenix.received[frames:] if m.event != "heartbeat"] == ["who"]


def test_an_access_token_is_refused_with_the_pool_itself(phoenix: RealtimeServer) -> None:
    with pytest.raises(rtpool.InvalidValue, match="access_token is for Supabase Realtime"):
        rtpool.RealtimePool(f"{phoenix.url}/socket", topic_prefix="", access_token="t")


@pytest.mark.parametrize("params", [{"a": float("nan")}, {"a": object()}, [1], "x"])
def test_params_that_are_no_json_object_are_refused(pool: rtpool.RealtimePool, params: Any) -> None:
    with pytest.raises((rtpool.InvalidValue, rtpool.InvalidType), match="params"):
        pool.channel("room:lobby", params=params)


def test_params_are_refused_on_a_supabase_topic(server: RealtimeServer) -> None:
    with (
        rtpool.RealtimePool(server.url, api_key=server.api_key) as pool,
        pytest.raises(rtpool.InvalidValue, match="plain Phoenix"),
    ):
        pool.channel("room", params={"a": 1})


class TestBinary:
    """Kinds 0, 1 and 2, which only version 2.0.0 has."""

    @pytest.fixture
    def channel(self, phoenix: RealtimeServer) -> Iterator[rtpool.Channel]:
        with rtpool.RealtimePool(f"{phoenix.url}/socket", topic_prefix="") as pool:
            yield pool.channel("room:lobby")

    def test_a_push_of_bytes_is_answered_with_bytes(self, channel: rtpool.Channel) -> None:
        channel.subscribe()
        assert channel.push("bytes", b"\xff\xfe").result() == b"\x00\xff\xfe"

    def test_bytes_of_the_server_arrive_fanned_out_and_pushed(
        self, phoenix: RealtimeServer, channel: rtpool.Channel
    ) -> None:
        heard = Recorder()
        channel.on("data", heard).subscribe()
        phoenix.push("room:lobby", "data", b"\x01")  # kind 2
        topic, event = b"room:lobby", b"data"
        (join,) = phoenix.joins()
        ref = join.join_ref.encode()
        head = bytes([0, len(ref), len(topic), len(event)])
        phoenix.connections[0].send_binary(head + ref + topic + event + b"\x02")  # kind 0
        assert [m.payload for m in heard.wait(2)] == [b"\x01", b"\x02"]


def test_presence_events_are_heard_raw_with_and_without_presence_callbacks(
    phoenix: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    everything, diffs, syncs = Recorder(), Recorder(), Recorder()
    pool.channel("room:lobby").on("*", everything).subscribe()
    pool.channel("room:lobby").on("presence_diff", diffs).on_presence_sync(syncs).subscribe()
    reader = pool.channel("room:lobby").subscribe()
    phoenix.push("room:lobby", "presence_state", {})
    phoenix.push("room:lobby", "presence_diff", {"joins": {}, "leaves": {}})
    assert [m.event for m in everything.wait(2)] == ["presence_state", "presence_diff"]
    assert diffs.wait(1)[0].payload == {"joins": {}, "leaves": {}}
    syncs.wait(2)
    assert [reader.get(timeout=10).event for _ in range(2)] == ["presence_state", "presence_diff"]  # type: ignore[union-attr]


@pytest.mark.parametrize("event", ["heartbeat", "access_token", "broadcast", "presence"])
def test_words_that_are_supabases_are_the_applications_own_here(
    phoenix: RealtimeServer, pool: rtpool.RealtimePool, event: str
) -> None:
    phoenix.on_push = lambda topic, event, payload, connection: PushReply(event)
    assert pool.channel("room:lobby").subscribe().push(event, {}).result() == event
    with pytest.raises(rtpool.InvalidValue, match="belongs to the protocol"):
        pool.channel("room:lobby").push("phx_leave", {})

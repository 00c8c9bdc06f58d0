"""Bad input is refused at the call, typed and clear, and nothing is lost or left open."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest

import rtpool
from rtpool.testing import RealtimeServer
from tests.conftest import MakePool
from tests.support.recorder import Recorder

URL = "http://127.0.0.1:9"


def offline(**options: Any) -> rtpool.RealtimePool:
    return rtpool.RealtimePool(URL, **{"api_key": "k", **options})


@pytest.mark.parametrize(
    ("topic", "error", "words"),
    [
        ("", rtpool.InvalidValue, "empty"),
        ("x" * 247, rtpool.InvalidValue, "247 bytes"),
        ("ü" * 124, rtpool.InvalidValue, "248 bytes"),
        ("\ud800", rtpool.InvalidValue, "UTF-8"),
        (None, rtpool.InvalidType, "topic must be str, not NoneType"),
        (b"room", rtpool.InvalidType, "bytes"),
    ],
)
def test_a_bad_topic_is_refused(topic: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        offline().channel(topic)


def test_a_topic_of_255_bytes_with_its_prefix_is_fine(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    heard = Recorder()
    channel = pool.channel("x" * 246, receive_own=True).on_broadcast("*", heard).subscribe()
    channel.send_broadcast("e" * 255, b"bytes")
    assert heard.wait(1)[0].event == "e" * 255


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"private": 1}, "private must be bool"),
        ({"ack": "yes"}, "ack must be bool"),
        ({"receive_own": None}, "receive_own must be bool"),
        ({"presence_key": ""}, "presence_key must not be empty"),
        ({"presence_key": 7}, "presence_key must be str"),
        ({"access_token": 7}, "access_token"),
        ({"access_token": ""}, "access_token"),
        ({"replay": {"since": 1}}, "private=True"),
        ({"replay": {}, "private": True}, "since"),
        ({"replay": {"since": 1.5}, "private": True}, "whole number"),
        ({"replay": {"since": 1, "limit": 26}, "private": True}, "1 to 25"),
        ({"replay": {"since": 1, "until": 2}, "private": True}, "replay must be"),
    ],
)
def test_a_bad_channel_setting_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises((rtpool.InvalidValue, rtpool.InvalidType), match=words):
        offline().channel("room", **settings)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://host", "scheme must be https, http, wss or ws, not 'ftp'"),
        ("host.example", "scheme"),
        ("http://", "host"),
        ("http://host:99999", "cannot be read"),
        ("http://host:0", "usable host and port"),
        ("http://user:secret@host", "no credentials"),
        ("http://host/?apikey=secret", "no credentials, query"),
        ("", "scheme"),
    ],
)
def test_a_bad_url_is_refused_without_repeating_secrets(url: str, words: str) -> None:
    with pytest.raises(rtpool.InvalidValue, match=words) as caught:
        rtpool.RealtimePool(url, api_key="k")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("https://abc.supabase.co", "wss://abc.supabase.co/realtime/v1/websocket"),
        ("HTTPS://abc.supabase.co/", "wss://abc.supabase.co/realtime/v1/websocket"),
        ("http://localhost:54321/realtime/v1", "ws://localhost:54321/realtime/v1/websocket"),
        ("ws://localhost:4000/socket", "ws://localhost:4000/socket/websocket"),
        ("wss://host/socket/websocket/", "wss://host/socket/websocket"),
        ("http://[::1]:4000", "ws://[::1]:4000/realtime/v1/websocket"),
    ],
)
def test_a_url_in_any_usual_form_is_understood(url: str, endpoint: str) -> None:
    assert endpoint in repr(rtpool.RealtimePool(url, api_key="k"))


@pytest.mark.parametrize("key", [None, ""])
def test_a_missing_key_is_told_with_what_to_do(key: str | None) -> None:
    with pytest.raises(rtpool.InvalidValue, match="api_key is missing"):
        rtpool.RealtimePool(URL, api_key=key)
    rtpool.RealtimePool(URL, api_key=key, topic_prefix="")
    rtpool.RealtimePool(URL, api_key=key, headers=[("X-Api-Key", "k")])


def test_an_unknown_option_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(rtpool.InvalidType, match="'max_conections'; did you mean 'max_connections'"):
        offline(max_conections=3)
    with pytest.raises(rtpool.InvalidType, match="PoolOptions"):
        offline(zzz=3)
    with pytest.raises(rtpool.InvalidType, match="options must be a PoolOptions"):
        offline(options={"num_workers": 1})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_connections", 0),
        ("max_connections", 1.5),
        ("max_connections", True),
        ("connection_timeout", 0),
        ("connection_timeout", -1),
        ("join_timeout", math.nan),
        ("join_timeout", math.inf),
        ("join_timeout", "10"),
        ("max_joins_per_second", 0),
        ("max_retries", -1),
        ("cleanup_interval", -0.1),
        ("num_workers", 0),
        ("mailbox_limit", 0),
        ("overflow", "explode"),
        ("protocol", "3.0.0"),
        ("after_fork", "panic"),
        ("api_key_in", "cookie"),
        ("auto_reconnect", 1),
        ("topic_prefix", None),
        ("ssl_context", "yes"),
        ("proxy", "host:80"),
        ("proxy", "ftp://host:80"),
        ("proxy", 80),
        ("headers", "x"),
        ("headers", {"a b\r\n": "c"}),
        ("headers", {"a": "b\r\nInjected: 1"}),
        ("headers", {"a": 1}),
        ("headers", 5),
        ("max_message_size", 10),
        ("max_delay", 0.5),
        ("reconnect", 3),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises((rtpool.InvalidValue, rtpool.InvalidType), match=option):
        offline(**{option: value})


def test_a_reconnect_strategy_must_be_callable() -> None:
    with pytest.raises(rtpool.InvalidType, match="wait must be callable"):
        rtpool.ReconnectPolicy(wait=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "method", ["on_presence_sync", "on_presence_join", "on_presence_leave", "on_system", "on_gap", "on_status"]
)
def test_a_callback_that_cannot_be_called_is_refused(method: str) -> None:
    with pytest.raises(rtpool.InvalidType, match="callable, not int"):
        getattr(offline().channel("room"), method)(3)


def test_bad_bindings_are_refused() -> None:
    pool = offline()
    channel = pool.channel("room")
    with pytest.raises(rtpool.InvalidType, match="callable"):
        channel.on_broadcast("x", "print")  # type: ignore[call-overload]
    with pytest.raises(rtpool.InvalidValue, match="event must not be empty"):
        channel.on_broadcast("", print)
    with pytest.raises(rtpool.InvalidValue, match="256 bytes"):
        channel.on("e" * 256, print)
    with pytest.raises(rtpool.InvalidType, match="callable"):
        pool.on_status(3)  # type: ignore[call-overload]
    with pytest.raises(rtpool.InvalidType, match="callable"):
        pool.on_callback_error(3)  # type: ignore[arg-type]
    assert channel._subscriber.bindings == ()


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"event": "UPSERT"}, rtpool.InvalidValue, "event must be one of .*INSERT.*, not 'UPSERT'"),
        ({"event": None}, rtpool.InvalidType, "event must be str"),
        ({"table": 3}, rtpool.InvalidType, "table must be str, not int"),
        ({"table": ""}, rtpool.InvalidValue, "table must not be empty"),
        ({"schema": ""}, rtpool.InvalidValue, "schema must not be empty"),
        ({"schema": 3}, rtpool.InvalidType, "schema must be str, not int"),
        (
            {"filter": "status"},
            rtpool.InvalidValue,
            "position 0: 'status' names no column; write column=operator.value",
        ),
        ({"filter": "id=eq.1,,a=eq.2"}, rtpool.InvalidValue, "position 8: a condition is empty"),
        ({"filter": "id=in.5"}, rtpool.InvalidValue, "position 6: .*parentheses"),
        ({"filter": "gone=is.maybe"}, rtpool.InvalidValue, "position 8: .*'maybe'"),
        ({"filter": 'a=eq."x'}, rtpool.InvalidValue, "position 5: nothing closes the quote"),
        ({"filter": 5}, rtpool.InvalidType, "filter must be .*, not int"),
        ({"select": "id"}, rtpool.InvalidType, "list or tuple of column names, not str"),
        ({"select": []}, rtpool.InvalidValue, "names no column"),
        ({"select": ["id", ""]}, rtpool.InvalidValue, "column in select must not be empty"),
        ({"select": [3]}, rtpool.InvalidType, "column in select must be str, not int"),
        ({"select": ["id"], "table": "*"}, rtpool.InvalidValue, "select needs one table"),
        ({"select": ["id"], "schema": "*"}, rtpool.InvalidValue, "select needs one table"),
        ({"callback": 3}, rtpool.InvalidType, "callable, not int"),
    ],
)
def test_a_bad_wish_for_changes_is_refused_at_either_call(
    settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    pool = offline()
    channel, arguments = pool.channel("room"), {"event": "*", "callback": print, "table": "cars", **settings}
    with pytest.raises(error, match=words):
        channel.on_postgres_changes(arguments.pop("event"), arguments.pop("callback"), **arguments)
    arguments = {"event": "*", "callback": print, "table": "cars", **settings}
    with pytest.raises(error, match=words):
        pool.on_changes(arguments.pop("table"), arguments.pop("callback"), **arguments)
    assert channel._subscriber.bindings == ()
    assert pool.stats().total_subscriptions == 0


def test_changes_of_neither_a_schema_nor_a_table_are_refused() -> None:
    pool = offline()
    with pytest.raises(rtpool.InvalidValue, match="both schema and table are missing"):
        pool.channel("room").on_postgres_changes("*", print, schema=None)
    with pytest.raises(rtpool.InvalidValue, match="select needs one table, not schema='public', table=None"):
        pool.channel("room").on_postgres_changes("*", print, select=["id"])
    with pytest.raises(rtpool.InvalidType, match="table must be str, not NoneType"):
        pool.on_changes(None, print)  # type: ignore[arg-type]
    with pytest.raises(rtpool.InvalidType, match="timeout"):
        pool.on_changes("cars", print, timeout="1")  # type: ignore[arg-type]
    with pytest.raises(rtpool.InvalidType, match="callable, not NoneType"):
        pool.on_changes("cars", None)  # type: ignore[arg-type]


CIRCLE: dict[str, Any] = {}
CIRCLE["self"] = CIRCLE


@pytest.mark.parametrize(
    ("payload", "error", "words"),
    [
        ([1], rtpool.InvalidType, "JSON object"),
        ("text", rtpool.InvalidType, "JSON object"),
        (None, rtpool.InvalidType, "JSON object"),
        ({"a": object()}, rtpool.InvalidType, "JSON"),
        ({"a": {1, 2}}, rtpool.InvalidType, "JSON"),
        ({"a": b"bytes"}, rtpool.InvalidType, "JSON"),
        ({"a": math.nan}, rtpool.InvalidValue, "JSON"),
        ({"a": math.inf}, rtpool.InvalidValue, "JSON"),
        ({"a": "\ud800"}, rtpool.InvalidValue, "JSON"),
        (CIRCLE, rtpool.InvalidValue, "JSON"),
        ({"a": "x" * 5_000_000}, rtpool.MessageTooBig, "5,000,000"),
        (b"x" * 5_000_000, rtpool.MessageTooBig, "5,000,000"),
    ],
    ids=[
        "list",
        "str",
        "None",
        "object",
        "set",
        "nested bytes",
        "nan",
        "inf",
        "surrogate",
        "cycle",
        "big",
        "big bytes",
    ],
)
def test_a_payload_that_cannot_travel_is_refused_and_nothing_is_sent(
    server: RealtimeServer, pool: rtpool.RealtimePool, payload: Any, error: type[Exception], words: str
) -> None:
    heard = Recorder()
    channel = pool.channel("room", receive_own=True).on_broadcast("*", heard).subscribe()
    with pytest.raises(error, match=words):
        channel.send_broadcast("x", payload)
    with pytest.raises(error, match=words):
        channel.push("x", payload)
    channel.send_broadcast("good", {"n": 1}).result()
    assert [e.event for e in heard.wait(1)] == ["good"]
    assert channel._subscriber.unsettled == 0


def test_a_payload_is_taken_at_the_call_and_later_changes_are_not_seen(
    server: RealtimeServer, pool: rtpool.RealtimePool
) -> None:
    heard, payload = Recorder(), {"n": 1}
    pool.channel("room").on_broadcast("*", heard).subscribe()
    pool.channel("room").subscribe().send_broadcast("x", payload)
    payload["n"] = 2
    assert heard.wait(1)[0].payload == {"n": 1}


def test_bytes_need_protocol_2(make_pool: MakePool) -> None:
    channel = make_pool(protocol="1.0.0").channel("room").subscribe()
    with pytest.raises(rtpool.InvalidValue, match=r"protocol='2\.0\.0'"):
        channel.send_broadcast("x", b"bytes")
    with pytest.raises(rtpool.InvalidValue, match=r"protocol='2\.0\.0'"):
        channel.push("x", b"bytes")


@pytest.mark.parametrize("event", ["phx_join", "phx_leave", "access_token", "heartbeat"])
def test_the_protocols_own_events_cannot_be_pushed(pool: rtpool.RealtimePool, event: str) -> None:
    with pytest.raises(rtpool.InvalidValue, match="belongs to the protocol"):
        pool.channel("room").subscribe().push(event, {})


@pytest.mark.parametrize("timeout", [-1, math.nan, math.inf, "5", True])
def test_a_bad_timeout_is_refused_everywhere(timeout: Any) -> None:
    pool = offline()
    channel = pool.channel("room")
    calls = [
        lambda: channel.subscribe(timeout=timeout),
        lambda: channel.unsubscribe(timeout=timeout),
        lambda: channel.events(timeout=timeout),
        lambda: channel.get(timeout=timeout),
        lambda: pool.connect(timeout=timeout),
        lambda: pool.close(timeout=timeout),
        lambda: pool.unsubscribe_all(timeout=timeout),
    ]
    for call in calls:
        with pytest.raises((rtpool.InvalidValue, rtpool.InvalidType), match="timeout"):
            call()
    assert not pool.closed
    assert pool.stats().total_subscriptions == 0


def test_sending_or_taking_before_subscribe_is_told(pool: rtpool.RealtimePool) -> None:
    channel = pool.channel("room")
    for call in (
        lambda: channel.send_broadcast("x", {}),
        lambda: channel.push("x", {}),
        lambda: channel.track({}),
        lambda: channel.untrack(),
        lambda: channel.get(timeout=1),
    ):
        with pytest.raises(rtpool.NotSubscribed, match="subscribe"):
            call()
    with pytest.raises(rtpool.InvalidType, match="JSON object"):
        channel.subscribe().track([1])  # type: ignore[arg-type]


def test_after_close_every_call_that_needs_the_pool_says_so(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    channel = pool.channel("room").subscribe()
    pool.close()
    for call in (
        lambda: channel.subscribe(),
        lambda: channel.send_broadcast("x", {}),
        lambda: pool.channel("other"),
        lambda: pool.connect(),
        lambda: pool.set_auth("token"),
    ):
        with pytest.raises(rtpool.PoolClosed, match="closed"):
            call()
    channel.unsubscribe()
    assert channel.state is rtpool.ChannelState.CLOSED
    assert pool.stats().connection_status == "closed"
    assert pool.health() == rtpool.Health(verdict="down", status="closed", reasons=("the pool is closed",))
    assert pool.close() is True


def test_too_many_pushes_before_the_join_are_refused_at_the_call(server: RealtimeServer, make_pool: MakePool) -> None:
    from rtpool.testing import Refusal

    server.on_connect = lambda request: Refusal(503)
    pool = make_pool(send_buffer_limit=3, max_retries=1_000)
    channel = pool.channel("room").subscribe(wait=False)
    pushes = [channel.send_broadcast("x", {"n": n}) for n in range(3)]
    with pytest.raises(rtpool.SendBufferFull, match="send_buffer_limit is 3") as caught:
        channel.send_broadcast("x", {"n": 3})
    assert caught.value.limit == 3
    server.on_connect = None
    for push in pushes:
        push.result(10)
    channel.send_broadcast("x", {"n": 4}).result()


def test_from_env_reads_the_usual_names_and_tells_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("URL", "KEY", "ANON_KEY", "SERVICE_ROLE_KEY"):
        monkeypatch.delenv(f"SUPABASE_{name}", raising=False)
    with pytest.raises(rtpool.InvalidValue, match="SUPABASE_URL"):
        rtpool.RealtimePool.from_env()
    monkeypatch.setenv("SUPABASE_URL", "https://abc.supabase.co")
    with pytest.raises(rtpool.InvalidValue, match="SUPABASE_KEY, SUPABASE_ANON_KEY, SUPABASE_SERVICE_ROLE_KEY"):
        rtpool.RealtimePool.from_env()
    monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", "service")
    assert rtpool.RealtimePool.from_env()._endpoint.api_key == "service"
    monkeypatch.setenv("SUPABASE_ANON_KEY", "anon")
    assert rtpool.RealtimePool.from_env(num_workers=2)._endpoint.api_key == "anon"
    monkeypatch.setenv("OTHER_URL", "https://other.supabase.co")
    monkeypatch.setenv("OTHER_KEY", "other")
    assert "other.supabase.co" in repr(rtpool.RealtimePool.from_env("OTHER"))


def test_no_secret_shows_in_reprs_stats_or_errors(server: RealtimeServer, pool: rtpool.RealtimePool) -> None:
    token = server.token(sub="me")
    channel = pool.channel("room", access_token=token).subscribe()
    shown = "".join(
        map(repr, [pool, channel, pool.stats(), pool.health(), pool.options, channel._subscriber.key, pool._endpoint])
    )
    assert server.api_key not in shown
    assert token not in shown


@pytest.mark.parametrize("name", list(rtpool.errors.__all__))
def test_every_error_is_an_rtpool_error_can_be_pickled_and_names_its_module(name: str) -> None:
    error = getattr(rtpool, name)("what happened", topic="room")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.topic) == (type(error), "what happened", "room")
    assert isinstance(error, rtpool.RtpoolError)
    assert type(error).__module__ == "rtpool"
    again = error.again()
    assert again is not error
    assert again.__cause__ is error


@pytest.mark.parametrize(
    "number", [10**400, 1e10, float("inf"), float("nan"), -(10**400)], ids=["10**400", "1e10", "inf", "nan", "-10**400"]
)
def test_numbers_no_clock_takes_are_refused_by_name(server: RealtimeServer, number: Any) -> None:
    for name in ("heartbeat_interval", "connection_timeout", "join_timeout", "base_delay", "cleanup_interval"):
        with pytest.raises(rtpool.InvalidValue, match=name):
            rtpool.RealtimePool(server.url, api_key="k", **{name: number})
    with rtpool.RealtimePool(server.url, api_key=server.api_key) as pool:
        channel = pool.channel("room").subscribe()
        for use in (
            lambda: channel.subscribe(timeout=number),
            lambda: channel.unsubscribe(timeout=number),
            lambda: channel.send_broadcast("x", {}, timeout=number),
            lambda: channel.track({}, timeout=number),
            lambda: channel.get(timeout=number),
            lambda: pool.broadcast("room", "x", {}, timeout=number),
            lambda: pool.connect(timeout=number),
            lambda: pool.close(timeout=number),
        ):
            with pytest.raises(rtpool.InvalidValue, match="timeout"):
                use()
        with pytest.raises(rtpool.InvalidValue, match="since"):
            pool.channel("room", private=True, replay={"since": 10**5000})
        assert channel.is_subscribed

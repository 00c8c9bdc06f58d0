"""The fault kit, seen by a socket driven by hand: each fault strikes when, where and as often as it was told."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rtpool.testing import RealtimeServer, faults
from tests.support.plain import FIN, RST, Plain

TOPIC = "realtime:room"
REPLY = b'[null,"hb","phoenix","phx_reply",{"status":"ok","response":{}}]'
FRAME = bytes([0x81, len(REPLY)]) + REPLY

Connect = Callable[..., Plain]


@pytest.fixture
def connect(server: RealtimeServer) -> Iterator[Connect]:
    made: list[Plain] = []

    def make(*, opened: bool = True, to: RealtimeServer | None = None, **kwargs: Any) -> Plain:
        made.append(Plain(to or server, **kwargs))
        if opened:
            assert made[-1].open().startswith(b"HTTP/1.1 101 ")
            (to or server).wait_for(lambda s: s.connections)
        return made[-1]

    yield make
    for plain in made:
        plain.sock.close()


def join(plain: Plain, ref: str = "1", topic: str = TOPIC) -> Any:
    plain.send(ref, ref, topic, "phx_join", {"config": {}})
    return plain.message()


# Of the stream


@pytest.mark.parametrize(("fault", "end"), [(faults.Reset, RST), (faults.Finish, FIN)])
@pytest.mark.parametrize("after", [0, 1, 2, 3, len(FRAME) - 1, len(FRAME)])
def test_a_stream_is_cut_at_any_byte_of_a_frame(
    server: RealtimeServer, connect: Connect, fault: Any, end: str, after: int
) -> None:
    plain = connect()
    injection = server.inject(fault(after=after), on=faults.Replying("heartbeat", skip=2))
    for ref in ("1", "2"):
        plain.heartbeat(ref)
        assert plain.message()[1] == ref
    assert injection.strikes == 0
    plain.heartbeat()
    assert plain.rest() == (FRAME[:after], end)
    assert injection.wait().struck == (faults.Strike(1, "phoenix", "phx_reply"),)


@pytest.mark.parametrize(("fault", "end"), [(faults.Reset, RST), (faults.Finish, FIN)])
@pytest.mark.parametrize("after", [0, 1, 17, 60])
@pytest.mark.parametrize("moment", [faults.Accepting, faults.Upgrading])
def test_a_stream_is_cut_at_any_byte_of_the_upgrades_answer(
    server: RealtimeServer, connect: Connect, fault: Any, end: str, after: int, moment: Any
) -> None:
    head = connect(opened=False).open()
    injection = server.inject(fault(after=after), on=moment())
    try:
        plain = connect(opened=False)
    except ConnectionResetError:
        assert (moment, fault, after) == (faults.Accepting, faults.Reset, 0)
    else:
        if after > 0 or moment is faults.Upgrading:
            plain.ask()
        assert plain.rest() == (head[:after], end)
    assert injection.wait().struck == (faults.Strike(),)
    connect()


def test_a_stream_is_cut_at_a_byte_counted_over_frames(server: RealtimeServer, connect: Connect) -> None:
    plain = connect()
    with server.inject(faults.Reset(after=2 * len(FRAME) + 5)) as injection:
        for _ in range(3):
            plain.heartbeat()
        assert plain.rest() == (2 * FRAME + FRAME[:5], RST)
        injection.wait()


def test_a_finished_stream_still_takes_what_the_client_sends(server: RealtimeServer, connect: Connect) -> None:
    plain = connect()
    server.inject(faults.Finish()).wait()
    assert plain.rest() == (b"", FIN)
    plain.heartbeat("late")
    server.wait_for(lambda s: s.received and s.received[-1].ref == "late")


@pytest.mark.parametrize("after", [0, 1, len(FRAME)])
def test_a_frozen_stream_is_silent_from_the_byte_on_and_thaws_in_order(
    server: RealtimeServer, connect: Connect, after: int
) -> None:
    plain = connect()
    with server.inject(faults.Freeze(after=after), on=faults.Sending("phx_reply")) as injection:
        plain.heartbeat()
        injection.wait()
        assert plain.exactly(after) == FRAME[:after]
        server.connections[0].send_text("[]")
        plain.heartbeat("deaf")
        server.advance()
        assert plain.nothing_comes()
        assert [m.ref for m in server.received] == ["hb"]
    assert plain.exactly(len(FRAME) - after) == FRAME[after:]
    assert plain.message() == []
    assert plain.message()[1] == "deaf"


def test_two_freezes_of_a_socket_need_two_thaws(server: RealtimeServer, connect: Connect) -> None:
    plain = connect()
    with server.inject(faults.Freeze()).wait():
        with server.inject(faults.Freeze()).wait():
            plain.heartbeat()
        server.advance()
        assert plain.nothing_comes()
    assert plain.message()[1] == "hb"


def test_now_strikes_each_open_socket_that_matches_once(server: RealtimeServer, connect: Connect) -> None:
    sockets = [connect() for _ in range(3)]
    join(sockets[1])
    server.wait_for(lambda s: s.members("room") == 1 and len(s.connections) == 3)
    with server.inject(faults.Freeze(), on=faults.Now(topic="room")) as injection:
        assert [strike.connection_id for strike in injection.struck] == [2]
    with server.inject(faults.Freeze(), on=faults.Now(connection=server.connections[2])) as injection:
        assert [strike.connection_id for strike in injection.struck] == [3]
    with server.inject(faults.Freeze(), on=faults.Now(where=lambda o: o.connection_id != 2)) as injection:
        assert [strike.connection_id for strike in injection.struck] == [1, 3]


def test_dribbled_bytes_come_one_by_one_by_the_servers_clock_until_it_is_undone() -> None:
    with RealtimeServer(clock_at=0.0) as server, Plain(server) as plain:
        with server.inject(faults.Dribble(size=3, every=1.0), on=faults.Opening()) as injection:
            plain.open()
            injection.wait()
            plain.heartbeat()
            assert plain.exactly(3) == FRAME[:3]
            for start in (3, 6):
                assert plain.nothing_comes()
                server.advance(1.0)
                assert plain.exactly(3) == FRAME[start : start + 3]
            assert plain.nothing_comes()
        assert plain.exactly(len(FRAME) - 9) == FRAME[9:]


def test_a_dribble_at_full_speed_loses_nothing(server: RealtimeServer, connect: Connect) -> None:
    plain = connect()
    with server.inject(faults.Dribble()):
        for number in range(20):
            plain.heartbeat(str(number))
        assert [plain.message()[1] for _ in range(20)] == [str(number) for number in range(20)]


def test_a_socket_that_dribbles_can_be_closed_and_reset(server: RealtimeServer, connect: Connect) -> None:
    closed, reset = connect(), connect()
    server.wait_for(lambda s: len(s.connections) == 2)
    with server.inject(faults.Dribble()):
        server.connections[0].close(1001)
        assert closed.frame() == (8, b"\x03\xe9")
        server.connections[-1].abort()
        assert reset.rest() == (b"", RST)


def test_a_socket_cut_at_once_loses_what_waits_and_one_cut_at_a_frame_does_not() -> None:
    with RealtimeServer(clock_at=0.0) as server, Plain(server) as one, Plain(server) as two:
        for number, plain in enumerate((one, two), 1):
            plain.open()
            server.wait_for(lambda s, n=number: len(s.connections) == n)  # type: ignore[misc]
        first, second = server.connections
        server.inject(faults.Dribble(size=len(FRAME), every=1.0))
        behind = server.inject(faults.Reset(after=3), on=faults.Sending(connection=second, skip=2))
        for plain in (one, one, two, two, two):
            plain.heartbeat()
        server.wait_for(lambda s: len(s.received) == 5)
        server.advance()
        server.inject(faults.Finish(after=2), on=faults.Now(connection=first))
        server.advance(1.0)
        assert one.rest() == (FRAME + FRAME[:2], FIN)
        assert behind.strikes == 0, "what was sent before it still waits"
        server.advance(1.0)
        behind.wait()
        assert two.rest() == (2 * FRAME + FRAME[:3], RST)


def test_raw_bytes_may_be_anything_and_may_come_before_the_upgrade(server: RealtimeServer, connect: Connect) -> None:
    server.inject(faults.Raw(b"SSH-2.0-OpenSSH\r\n"), on=faults.Accepting())
    assert connect(opened=False).exactly(17) == b"SSH-2.0-OpenSSH\r\n"
    plain = connect()
    server.inject(faults.Raw(b"\xff\x00"), on=faults.Sending(skip=1))
    plain.heartbeat()
    plain.heartbeat()
    assert plain.exactly(2 * len(FRAME) + 2) == FRAME + b"\xff\x00" + FRAME


@pytest.mark.parametrize(("fault", "end"), [(faults.Reset, RST), (faults.Finish, FIN)])
def test_a_stream_is_cut_and_frozen_over_tls_too(
    certificates: tuple[ssl.SSLContext, ssl.SSLContext], fault: Any, end: str
) -> None:
    serving, trusting = certificates
    with RealtimeServer(ssl_context=serving) as server, Plain(server, trusting) as plain:
        plain.open()
        with server.inject(faults.Freeze(after=3), on=faults.Sending()) as frozen:
            plain.heartbeat()
            frozen.wait()
            assert plain.exactly(3) == FRAME[:3]
        assert plain.exactly(len(FRAME) - 3) == FRAME[3:]
        server.inject(fault(after=7), on=faults.Sending())
        plain.heartbeat()
        assert plain.rest() == (FRAME[:7], end)


# Frames that no server sends


@pytest.mark.parametrize(
    ("fault", "data"),
    [
        (faults.GarbageText(), b"\x81\x0a{]not JSON"),
        (faults.GarbageText("x" * 126), b"\x81\x7e\x00\x7e" + b"x" * 126),
        (faults.BadUtf8(), b"\x81\x03\xc3\x28\xff"),
        (faults.HugeFrame(), b"\x82\x7f\x00\x00\x01\x00\x00\x00\x00\x00"),
        (faults.HugeFrame(announced=200), b"\x82\x7e\x00\xc8"),
        (faults.MaskedFrame("abc"), b"\x81\x83\x01\x02\x03\x04" + b"`" + b"`" + b"`"),
        (faults.OversizePing(), b"\x89\x7e\x00\x7e" + b"x" * 126),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, bytes) else "",
)
def test_a_forged_frame_comes_right_before_the_frame_it_strikes_at(
    server: RealtimeServer, connect: Connect, fault: faults.Fault, data: bytes
) -> None:
    plain = connect()
    injection = server.inject(fault, on=faults.Replying("heartbeat", skip=1))
    plain.heartbeat()
    plain.heartbeat()
    assert plain.exactly(2 * len(FRAME) + len(data)) == FRAME + data + FRAME
    assert injection.strikes == 1


def test_a_forged_frame_comes_at_once_on_an_open_socket(server: RealtimeServer, connect: Connect) -> None:
    plain = connect()
    server.inject(faults.BadUtf8())
    assert plain.frame() == (1, b"\xc3\x28\xff")


@pytest.mark.parametrize("code", [0, 999, 1000, 1005, 1006, 1012, 1015, 4999, 65_535])
def test_a_socket_is_closed_with_any_code(server: RealtimeServer, connect: Connect, code: int) -> None:
    plain = connect()
    server.inject(faults.Close(code, "why"), on=faults.Replying("heartbeat"))
    plain.heartbeat()
    assert plain.frame() == (8, code.to_bytes(2, "big") + b"why")
    plain.sock.sendall(b"\x88\x82\0\0\0\0\x03\xe8")
    assert plain.rest() == (b"", FIN)


def test_a_close_during_a_join_leaves_it_without_an_answer(server: RealtimeServer, connect: Connect) -> None:
    plain = connect()
    server.inject(faults.Close(1001), on=faults.Receiving("phx_join"))
    plain.send("1", "1", TOPIC, "phx_join", {})
    assert plain.frame() == (8, b"\x03\xe9")


# Of messages


def test_a_reply_is_dropped_and_the_next_is_not(server: RealtimeServer, connect: Connect) -> None:
    plain = connect()
    injection = server.inject(faults.Drop(), on=faults.Replying("phx_join", topic="room"))
    plain.send("1", "1", "realtime:other", "phx_join", {"config": {}})
    assert plain.message()[2] == "realtime:other"
    plain.send("2", "2", TOPIC, "phx_join", {"config": {}})
    plain.heartbeat()
    assert plain.message()[1] == "hb"
    assert server.members("room") == 1, "let in without a word"
    assert injection.struck == (faults.Strike(1, "room", "phx_reply"),)
    plain.send("2", "3", TOPIC, "phx_leave", {})
    assert plain.message()[1] == "3"


def test_a_message_that_is_dropped_on_its_way_never_reaches_the_server(
    server: RealtimeServer, connect: Connect
) -> None:
    plain = connect()
    server.inject(faults.Drop(), on=faults.Receiving("phx_join"), times=2)
    for ref in "12":
        plain.send(ref, ref, TOPIC, "phx_join", {"config": {}})
    plain.heartbeat()
    assert plain.message()[1] == "hb"
    assert server.joins() == []
    assert join(plain, "3")[1] == "3"


def test_a_fault_without_an_end_strikes_until_it_is_taken_back(server: RealtimeServer, connect: Connect) -> None:
    plain = connect()
    with server.inject(faults.Drop(), on=faults.Replying("heartbeat"), times=None) as injection:
        for _ in range(5):
            plain.heartbeat()
        injection.wait(5)
        assert plain.nothing_comes()
    plain.heartbeat("after")
    assert plain.message()[1] == "after"
    assert injection.strikes == 5


def test_a_delay_holds_back_what_is_behind_it_by_the_servers_clock() -> None:
    with RealtimeServer(clock_at=0.0) as server, Plain(server) as plain:
        plain.open()
        server.wait_for(lambda s: s.connections)
        server.inject(faults.Delay(3.0), on=faults.Sending())
        for ref in "12":
            plain.heartbeat(ref)
        server.advance(2.9)
        assert plain.nothing_comes()
        server.advance(0.2)
        assert [plain.message()[1] for _ in range(2)] == ["1", "2"]


def test_a_delayed_message_may_be_overtaken_and_comes_when_it_is_undone() -> None:
    with RealtimeServer(clock_at=0.0) as server, Plain(server) as plain:
        plain.open()
        with server.inject(faults.Delay(3.0, overtaken=True), on=faults.Sending(), times=2):
            for ref in "123":
                plain.heartbeat(ref)
            assert plain.message()[1] == "3"
            assert plain.nothing_comes()
        assert [plain.message()[1] for _ in range(2)] == ["1", "2"]


@pytest.mark.parametrize("moment", [faults.Sending(), faults.Receiving("heartbeat"), faults.Upgrading()])
def test_a_delay_that_is_undone_ends_at_once(moment: faults.Moment) -> None:
    with RealtimeServer(clock_at=0.0) as server, Plain(server) as plain:
        with server.inject(faults.Delay(3.0), on=moment) as injection:
            plain.ask()
            plain.heartbeat()
            injection.wait()
        assert plain.head().startswith(b"HTTP/1.1 101")
        assert plain.message()[1] == "hb"


@pytest.mark.parametrize("moment", [faults.Receiving("heartbeat"), faults.Upgrading()])
def test_a_server_may_be_slow_to_read_and_slow_to_upgrade(moment: faults.Moment) -> None:
    with RealtimeServer(clock_at=0.0) as server, Plain(server) as plain:
        slow = server.inject(faults.Delay(3.0), on=moment)
        plain.ask()
        plain.heartbeat()
        slow.wait()
        server.advance(3.0)
        assert plain.head().startswith(b"HTTP/1.1 101")
        assert plain.message()[1] == "hb"


def test_a_duplicated_message_comes_word_for_word_again(server: RealtimeServer, connect: Connect) -> None:
    plain = connect()
    join(plain)
    server.inject(faults.Duplicate(copies=2), on=faults.Sending("broadcast", skip=1))
    for number in range(3):
        server.broadcast("room", "x", {"n": number}, as_text=True)
    assert [plain.message()[4]["payload"]["n"] for _ in range(5)] == [0, 1, 1, 1, 2]


@pytest.mark.parametrize(("by", "order"), [(1, [1, 0, 2, 3]), (2, [1, 2, 0, 3]), (3, [1, 2, 3, 0])])
def test_a_message_comes_after_those_that_overtake_it(
    server: RealtimeServer, connect: Connect, by: int, order: list[int]
) -> None:
    plain = connect()
    join(plain)
    server.inject(faults.Reorder(by=by), on=faults.Sending("broadcast"))
    for number in range(4):
        server.broadcast("room", "x", {"n": number}, as_text=True)
    assert [plain.message()[4]["payload"]["n"] for _ in range(4)] == order


def test_a_message_that_nothing_overtook_comes_when_it_is_undone(server: RealtimeServer, connect: Connect) -> None:
    plain = connect()
    with server.inject(faults.Reorder()) as injection:
        plain.heartbeat()
        injection.wait()
        assert plain.nothing_comes()
    assert plain.message()[1] == "hb"


def test_a_message_may_carry_a_stale_join_ref_or_lack_its_payload(server: RealtimeServer, connect: Connect) -> None:
    plain = connect()
    server.inject(faults.StaleJoinRef("77"), on=faults.Replying("phx_join"))
    assert join(plain, "1") == ["77", "1", TOPIC, "phx_reply", {"status": "ok", "response": {"postgres_changes": []}}]
    server.inject(faults.WrongArity(), on=faults.Sending("broadcast"))
    server.broadcast("room", "x", {})
    assert plain.message() == [None, None, TOPIC, "broadcast"]


def test_on_serializer_1_an_object_lacks_its_payload_and_a_stale_join_ref_changes_nothing(
    server: RealtimeServer, connect: Connect
) -> None:
    plain = connect(vsn="1.0.0")
    server.inject(faults.StaleJoinRef())
    server.inject(faults.WrongArity(), on=faults.Sending(skip=1))
    for ref in "12":
        text = json.dumps({"topic": "phoenix", "event": "heartbeat", "payload": {}, "ref": ref}).encode()
        plain.sock.sendall(b"\x81" + bytes([0x80 | len(text)]) + b"\0\0\0\0" + text)
    assert plain.message()["payload"] == {"status": "ok", "response": {}}
    assert plain.message() == {"topic": "phoenix", "event": "phx_reply", "ref": "2"}


def test_faults_of_one_moment_strike_in_the_order_of_injection(server: RealtimeServer, connect: Connect) -> None:
    plain = connect()
    server.inject(faults.Duplicate(), on=faults.Sending())
    server.inject(faults.GarbageText("first"), on=faults.Sending())
    server.inject(faults.Reset(after=9), on=faults.Sending())
    plain.heartbeat()
    assert plain.rest() == ((b"\x81\x05first" + FRAME)[:9], RST)


# Of decisions


def test_upgrades_are_refused_so_often_and_the_next_is_let_in(server: RealtimeServer, connect: Connect) -> None:
    def version_2(occasion: faults.Occasion) -> bool:
        return occasion.request is not None and occasion.request.query["vsn"] == "2.0.0"

    fault = faults.Refuse(429, "slow down", {"Retry-After": "3"})
    injection = server.inject(fault, times=2, on=faults.Upgrading(where=version_2))
    for _ in range(2):
        plain = connect(opened=False)
        head = plain.open()
        assert head.startswith(b"HTTP/1.1 429 ")
        assert b"\r\nRetry-After: 3\r\n" in head
        assert plain.rest() == (b"slow down", FIN)
    connect()
    assert injection.strikes == 2


def test_a_refusal_is_held_back_by_the_servers_clock() -> None:
    with RealtimeServer(clock_at=0.0) as server, Plain(server) as plain:
        refused = server.inject(faults.Refuse(503, delay=3.0))
        plain.ask()
        refused.wait()
        assert plain.nothing_comes()
        server.advance(3.0)
        assert plain.head().startswith(b"HTTP/1.1 503 ")


def test_joins_are_refused_and_pushes_are_not(server: RealtimeServer, connect: Connect) -> None:
    plain = connect()
    injection = server.inject(faults.RefuseJoin("Unauthorized: no"), on=faults.Receiving(topic="room"), times=2)
    plain.send("9", "9", TOPIC, "phx_leave", {})
    assert plain.message()[4]["status"] == "ok"
    assert injection.strikes == 0
    for _ in range(2):
        assert join(plain)[4] == {"status": "error", "response": {"reason": "Unauthorized: no"}}
    assert join(plain)[4]["status"] == "ok"
    assert [record.accepted for record in server.joins("room")] == [False, False, True]


def test_a_storm_of_joins_costs_the_socket(server: RealtimeServer, connect: Connect) -> None:
    plain = connect()
    join(plain)
    injection = server.inject(faults.JoinStorm(), on=faults.Receiving("phx_join", topic="other"))
    reply = join(plain, "2", "realtime:other")
    assert reply[4]["response"]["reason"].startswith("ClientJoinRateLimitReached")
    assert plain.frame() == (8, b"\x03\xe9")
    assert injection.strikes == 1


def test_tokens_expire_for_one_channel_or_for_all(server: RealtimeServer, connect: Connect) -> None:
    plain = connect()
    for number, name in enumerate("abc"):
        join(plain, str(number), f"realtime:{name}")
    server.inject(faults.ExpireToken("b"))
    events = [plain.message()[2:4] for _ in range(2)]
    assert events == [["realtime:b", "system"], ["realtime:b", "phx_close"]]
    server.inject(faults.ExpireToken(), on=faults.Receiving("phx_leave", topic="a"))
    plain.send("0", "9", "realtime:a", "phx_leave", {})
    assert "expired" in plain.message()[4]["message"]
    assert plain.message()[3] == "phx_close"
    assert plain.message()[1] == "9"
    assert server.connections[0].topics == ("realtime:c",)
    server.inject(faults.ExpireToken())
    assert [plain.message()[2] for _ in range(2)] == ["realtime:c"] * 2


# What cannot be


@pytest.mark.parametrize(
    ("fault", "moment"),
    [
        (faults.Refuse(503), faults.Now()),
        (faults.Close(), faults.Accepting()),
        (faults.Duplicate(), faults.Receiving()),
        (faults.JoinStorm(), faults.Sending()),
        (faults.Restart(), faults.Receiving()),
    ],
)
def test_a_fault_at_a_moment_where_it_cannot_strike_is_refused(
    server: RealtimeServer, fault: faults.Fault, moment: faults.Moment
) -> None:
    with pytest.raises(ValueError, match=f"{type(fault).__name__} strikes at .*not at {type(moment).__name__}"):
        server.inject(fault, on=moment)


def test_times_is_a_number_of_times(server: RealtimeServer) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        server.inject(faults.Drop(), times=0)


def test_waiting_for_what_does_not_strike_says_so(server: RealtimeServer) -> None:
    injection = server.inject(faults.Refuse(503))
    with pytest.raises(TimeoutError, match=r"Refuse.*struck 0 of 1 times"):
        injection.wait(timeout=0.01)
    assert "0 strikes" in repr(injection)


def test_a_port_can_only_fail_where_there_is_one() -> None:
    with pytest.raises(RuntimeError, match="not been started"):
        RealtimeServer().inject(faults.SlowTls())


def test_every_fault_says_what_it_is_and_where_it_belongs() -> None:
    kinds = [getattr(faults, name) for name in faults.__all__]
    kinds = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, faults.Fault) and kind.moments]
    assert len(kinds) >= 24
    text = faults.__doc__ or ""
    for kind in kinds:
        assert kind.__doc__
        assert f"`{kind.__name__}`" in text, f"{kind.__name__} is not in the table"
        assert isinstance(kind(1.0) if kind is faults.Delay else kind(), faults.Fault)


def test_what_is_put_on_a_stream_whose_end_was_sent_harms_nobody(server: RealtimeServer, connect: Connect) -> None:
    connect()
    (connection,) = server.connections
    server.call(connection._ws.transport.write_eof)
    connection.send_raw(b"too late")
    server.inject(faults.BadUtf8())

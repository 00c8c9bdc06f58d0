"""What `rtpool top` draws of which pictures, and what each key leads to: exact, without a terminal."""

from __future__ import annotations

import io
from typing import Any

import attrs
import pytest
from rich.console import Console

import rtpool
from rtpool.cli.keyboard import keys_of
from rtpool.cli.screen import CHANNELS, CONNECTIONS, FIXED_LINES, Frame, View, draw, press
from rtpool.debug.picture import Picture, Rates, channel_rows, connection_rows


def connection(number: int, **changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {"connection_id": number, "state": "open", "epoch": 1, "joins": 2, "attempts": 0}
    plain |= {"bytes_received": 0, "bytes_sent": 0, "messages_received": 0, "heartbeat_latency": None}
    return plain | changes


def channel(topic: str, **changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {"topic": topic, "state": "joined", "private": False, "received": 0, "queued": 0}
    return plain | {"delivered": 0, "dropped": 0, "callback_seconds": 0.0} | changes


def answer(
    at: float = 100.0,
    connections: tuple[dict[str, Any], ...] = (),
    channels: tuple[dict[str, Any], ...] = (),
    issues: int = 0,
    **changes: Any,
) -> dict[str, Any]:
    names = "messages_received messages_delivered pushes_sent bytes_received bytes_sent total_joins gaps"
    names += " messages_dropped callback_errors reconnect_attempts"
    stats: dict[str, Any] = dict.fromkeys(names.split(), 0)
    stats |= {"active_connections": len(connections), "total_connections": len(connections)}
    stats |= {"active_subscriptions": len(channels), "total_subscriptions": len(channels)}
    stats |= {"connection_details": list(connections), "subscription_details": list(channels)}
    found = [
        {"code": f"RTP00{n}", "severity": "warning", "subject": f"'{n}'", "observed": "9 of 10 events wait"}
        for n in range(1, issues + 1)
    ]
    top: dict[str, Any] = {"name": "1", "pid": 7, "url": "ws://host/realtime/v1/websocket", "at": at, "age": at}
    top |= {"health": {"verdict": "ok", "status": "connected", "reasons": []}, "mailbox_limit": 10_000}
    top |= {"issues": found, "commands": True}
    return top | {"stats": stats | changes.pop("stats", {})} | changes


def frame(before: dict[str, Any] | None, now: dict[str, Any] | None, **changes: Any) -> Frame:
    pictures = [None if each is None else Picture.of(each) for each in (before, now)]
    return Frame(*pictures, path="/run/x.sock", interval=1.0, **changes)


def lines(frame: Frame, view: View | None = None, width: int = 80, height: int | None = 24) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False)
    console.print(draw(frame, view or View(), width, height))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in text.removesuffix("\n").split("\n")]


BEFORE = answer(100.0, (connection(1), connection(2)), (channel("cars"), channel("bikes"), channel("vans")))
NOW = answer(
    102.0,
    (
        connection(1, bytes_received=24_690, bytes_sent=400, messages_received=2_469, heartbeat_latency=0.0124),
        connection(2, state="waiting", attempts=3, joins=0),
    ),
    (
        channel("cars", received=20, delivered=10, queued=9_000, dropped=1_234, callback_seconds=0.5),
        channel("bikes", received=4_000, delivered=4_000, callback_seconds=0.04),
        channel("vans", state="joining", private=True),
    ),
    issues=2,
    health={"verdict": "degraded", "status": "reconnecting", "reasons": ["connection 2 is waiting"]},
    stats={
        "messages_received": 2_469,
        "messages_delivered": 4_010,
        "bytes_received": 24_690,
        "bytes_sent": 400,
        "messages_dropped": 1_234,
        "gaps": 2,
        "active_connections": 1,
        "active_subscriptions": 2,
        "total_joins": 2,
    },
)


def test_a_screen_says_it_all_on_eighty_columns() -> None:
    assert lines(frame(BEFORE, NOW)) == [
        "rtpool top  pool 1 of process 7  ws://host/realtime/v1/websocket",
        "reconnecting  health degraded  up 0:01:42  every 1 s  connection 2 is waiting",
        "in     1,234/s   12.3 kB/s   out       0.0/s     200 B/s   delivered     2,005/s",
        "queued 9,000   gaps 2   dropped 1,234   callback errors 0   reconnects 0",
        "Connections: 1 of 2 open, 2 joins",
        "  id^ state     epoch  joins  tries   latency    msgs/s      in/s     out/s",
        "    1 open          1      2      0   12.4 ms     1,234   12.3 kB     200 B",
        "    2 waiting       1      0      3         -       0.0       0 B       0 B",
        "Channels: 2 of 3 ready",
        "topic                       state             queue  events/sv  ms/call  dropped",
        "bikes                       joined         0/10,000      2,000    0.010        0",
        "cars                        joined     9,000/10,000         10       50    1,234",
        "vans (private)              joining        0/10,000          -        -        0",
        "Issues: 2",
        "RTP001 '1': 9 of 10 events wait",
        "RTP002 '2': 9 of 10 events wait",
        *[""] * 7,
        "q quit  s sort  r reverse  c table  j/k scroll  p pause  f clean up  ? help",
    ]


def test_before_a_second_picture_there_are_no_rates() -> None:
    shown = lines(frame(None, NOW))
    assert shown[2] == "in         -/s         -/s   out         -/s         -/s   delivered         -/s"
    assert shown[6].split()[-3:] == ["-", "-", "-"]


def test_another_process_has_no_rates_with_the_one_before() -> None:
    assert lines(frame({**BEFORE, "pid": 8}, NOW)) == lines(frame(None, NOW))
    assert lines(frame({**BEFORE, "at": 103.0}, NOW)) == lines(frame(None, NOW))


def test_rates_are_by_the_programs_own_clock() -> None:
    before, now = Picture.of(BEFORE), Picture.of(NOW)
    assert Rates.between(before, now) == Rates(1_234.5, 2_005.0, 0.0, 12_345.0, 200.0)


def test_channels_of_one_topic_are_told_apart_and_a_new_one_has_no_rate() -> None:
    before = Picture.of(answer(1.0, (), (channel("a", received=10), channel("a", received=500))))
    now = Picture.of(answer(2.0, (), (channel("a", received=14), channel("a", received=3), channel("a", received=9))))
    assert [row.rate for row in channel_rows(now, before)] == [4.0, None, None]


def test_a_new_connection_has_no_rate() -> None:
    before = Picture.of(answer(1.0, (connection(1, bytes_received=5),)))
    now = Picture.of(answer(2.0, (connection(1, bytes_received=6), connection(2, bytes_received=9))))
    assert [row.bytes_in for row in connection_rows(now, before)] == [1.0, None]


MANY = answer(
    2.0,
    tuple(connection(n) for n in range(1, 13)),
    tuple(channel(f"room {n}", received=n) for n in range(1, 101)),
    issues=9,
)
MANY_BEFORE = answer(
    1.0, tuple(connection(n) for n in range(1, 13)), tuple(channel(f"room {n}") for n in range(1, 101))
)


@pytest.mark.parametrize("focus", ["connections", "channels"])
@pytest.mark.parametrize("height", [FIXED_LINES, 12, 24, 25, 40, 200])
@pytest.mark.parametrize("width", [80, 132])
@pytest.mark.parametrize("pair", [(None, None), (None, NOW), (BEFORE, NOW), (MANY_BEFORE, MANY), (None, answer())])
def test_every_screen_fills_its_terminal_and_no_more(
    focus: str, height: int, width: int, pair: tuple[Any, Any]
) -> None:
    shown = lines(frame(*pair), View(focus=focus), width, height)
    assert len(shown) == height
    assert max(map(len, shown)) <= width
    assert shown[-1].startswith("q quit")


def test_the_table_that_has_the_keys_gets_most_of_the_lines() -> None:
    shown = lines(frame(MANY_BEFORE, MANY))
    assert "Connections: 12 of 12 open, 0 joins, lines 1 to 3" in shown
    assert "Channels: 100 of 100 ready, lines 1 to 8" in shown
    assert "Issues: 9, the worst 3" in shown
    shown = lines(frame(MANY_BEFORE, MANY), View(focus="connections"))
    assert "Connections: 12 of 12 open, 0 joins, lines 1 to 8" in shown
    assert "Channels: 100 of 100 ready, lines 1 to 3" in shown


def test_without_a_height_all_of_it_is_there() -> None:
    shown = lines(frame(MANY_BEFORE, MANY), height=None)
    assert len(shown) == FIXED_LINES - 1 + 12 + 100 + 9
    assert not any("quit" in line for line in shown)


def topics(view: View, pair: tuple[Any, Any] = (MANY_BEFORE, MANY), height: int = 24) -> list[str]:
    shown = lines(frame(*pair), view, height=height)
    at = next(index for index, line in enumerate(shown) if line.startswith("topic"))
    end = next(index for index, line in enumerate(shown) if line.startswith(("Issues", "No issues")))
    return [line[:27].strip() for line in shown[at + 1 : end]]


def after(keys: str | list[str], view: View | None = None, of: Frame | None = None) -> View:
    view = view or View()
    for key in keys:
        view, _ = press(view, key, of or frame(MANY_BEFORE, MANY), 24)
    return view


def test_the_busiest_comes_first_and_s_and_r_sort_otherwise() -> None:
    assert topics(View())[:2] == ["room 100", "room 99"]
    assert topics(after("r"))[:2] == ["room 1", "room 2"]
    by_topic = after("sss")  # ms/call, dropped, topic
    assert topics(by_topic)[:3] == ["room 1", "room 2", "room 3"]
    assert topics(after("r", by_topic))[:2] == ["room 100", "room 99"]
    assert after("s" * len(CHANNELS)) == View()


def test_each_table_is_sorted_by_itself() -> None:
    view = after("css")
    assert (view.connections.sort, view.channels.sort) == (2, 3)
    assert after("c" + "s" * len(CONNECTIONS) + "c") == View()


def test_what_has_no_value_comes_last_whichever_way_it_is_sorted() -> None:
    view = after("s")
    assert CHANNELS[view.channels.sort].heading == "ms/call"
    assert topics(view, (BEFORE, NOW))[-1] == "vans (private)"
    assert topics(after("r", view), (BEFORE, NOW))[-1] == "vans (private)"


@pytest.mark.parametrize(
    ("keys", "first"),
    [
        ("j", 99),
        ("jjk", 99),
        ("k", 100),
        (["down", "down", "up"], 99),
        (" ", 92),
        ("  b", 92),
        (["pgdn", "pgdn", "pgup"], 92),
        ("G", 8),
        ("Gj", 8),
        ("Gg", 100),
        (["end", "home"], 100),
        ("x", 100),
    ],
)
def test_the_table_is_scrolled_and_no_further_than_it_goes(keys: Any, first: int) -> None:
    assert topics(after(keys))[0] == f"room {first}"


def test_a_table_that_has_become_shorter_is_shown_to_its_end() -> None:
    assert topics(after("G"), (BEFORE, NOW)) == ["bikes", "cars", "vans (private)"]


def test_the_keys_that_change_no_table() -> None:
    both = frame(BEFORE, NOW)
    assert press(View(), "q", both, 24)[1] == "quit"
    assert press(View(), "f", both, 24)[1] == "cleanup"
    paused = after("p", of=both)
    assert "PAUSED" in lines(both, paused)[1]
    assert after("p", paused, both) == View()
    helped = after("?", of=both)
    assert lines(both, helped)[0].startswith("q, Ctrl-C    quit")
    assert len(lines(both, helped, height=10)) <= 10
    assert after("f", helped, both) == View()
    assert after(["escape"], helped, both) == View()
    assert after(["escape"], of=both) == View()
    assert press(helped, "q", both, 24)[1] == "quit"
    several = frame(BEFORE, NOW, programs=2)
    assert after(["n"], of=several).program == 1
    assert after(["n", "tab"], of=several).program == 0
    assert "[2 of 2, n next]" in lines(several, after("n", of=several))[0]


def test_a_clean_up_that_is_not_allowed_says_so_and_asks_nothing() -> None:
    watched = frame(None, {**NOW, "commands": False})
    view, wish = press(View(), "f", watched, 24)
    assert wish == ""
    assert "allows no commands" in lines(watched, view)[-1]
    assert "quit" in lines(watched, press(view, "j", watched, 24)[0])[-1]
    view, wish = press(View(), "f", attrs.evolve(watched, trouble="gone"), 24)
    assert (view.message, wish) == ("there is no program to do that", "")


@pytest.mark.parametrize("width", [60, 40, 75])
def test_a_narrow_terminal_is_told_the_keys_it_has_room_for_and_that_which_shows_all(width: int) -> None:
    keys = lines(frame(BEFORE, NOW), width=width)[-1]
    assert keys.startswith("q quit  s sort")
    assert keys.endswith("  ? help")
    assert len(keys) <= width


def test_trouble_is_said_in_place_of_the_state() -> None:
    shown = lines(frame(BEFORE, NOW, trouble="process 7 is gone"))
    assert shown[1] == "process 7 is gone"
    assert lines(frame(None, None, trouble="nobody"))[:2] == ["rtpool top  /run/x.sock", "nobody"]


def test_what_is_shown_cannot_act_on_the_terminal() -> None:
    nasty = "\x1b]0;owned\x07[red]\r\n\u202e\x9b2J"
    now = answer(2.0, (connection(1, state=nasty),), (channel(nasty, state=nasty),), name=nasty, url=nasty)
    now["health"] = {"verdict": nasty, "status": nasty, "reasons": [nasty]}
    now["issues"] = [{"code": nasty, "severity": nasty, "subject": nasty, "observed": nasty}]
    text = "\n".join(lines(frame(None, now), width=200))
    assert not set(text) & {"\x1b", "\x07", "\r", "\u202e", "\x9b"}
    assert "[red]" in text


def test_wide_characters_keep_the_columns() -> None:
    shown = lines(frame(None, answer(2.0, (), (channel("車両の状態" * 8),))))
    row = next(line for line in shown if line.startswith("車"))
    assert row.endswith("joined         0/10,000          -        -        0")
    assert "…" in row


@pytest.mark.parametrize("missing", ["stats", "health", "issues", "at", "age", "name", "url", "pid", "mailbox_limit"])
def test_a_picture_that_lacks_something_is_refused(missing: str) -> None:
    told = dict(NOW)
    del told[missing]
    with pytest.raises(rtpool.ProtocolError, match=missing):
        Picture.of(told)


def test_a_picture_whose_tables_lack_something_is_refused() -> None:
    for table in ("connection_details", "subscription_details"):
        with pytest.raises(rtpool.ProtocolError):
            Picture.of({**NOW, "stats": {**NOW["stats"], table: [{}]}})
    with pytest.raises(rtpool.ProtocolError):
        Picture.of({**NOW, "stats": []})


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("jk", ["j", "k"]),
        ("\x1b[A\x1b[Bq", ["up", "down", "q"]),
        ("\x1bOA\x1b[5~\x1b[6~", ["up", "pgup", "pgdn"]),
        ("\t", ["tab"]),
        ("\x1b[17~", []),
        ("\x1b", ["escape"]),
        ("j\x1b", ["j", "escape"]),
        ("\x00\x01", []),
        ("é", ["é"]),
    ],
)
def test_keys_are_read_as_terminals_send_them(text: str, keys: list[str]) -> None:
    assert keys_of(text) == keys

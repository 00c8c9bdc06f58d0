"""`rtpool listen`, as a person and as a program use it: in processes of their own, and in a terminal."""

from __future__ import annotations

import base64
import json
import os
import pathlib
import re
import subprocess
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import click
import pytest
from click.testing import CliRunner

from rtpool.cli.listen import listen as command
from rtpool.testing import JoinRefusal, Permissions, PolicyRequest, RealtimeServer, Refusal
from tests.support.commands import interrupt, run, start
from tests.support.terminal import Terminal
from tests.support.wait import CAP

SCREENS = pathlib.Path(__file__).parent / "screens"
TIME = r"\d\d:\d\d:\d\d\.\d{3}"
CARS = {"id": "int8", "price": "numeric", "status": "text"}

Listen = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def listen(server: RealtimeServer) -> Iterator[Listen]:
    """Starts one that is subscribed when it is there; all are ended."""
    processes: list[subprocess.Popen[str]] = []

    def begin(*arguments: str, of: RealtimeServer = server, **env: str) -> subprocess.Popen[str]:
        joined = sum(join.accepted for join in of.joins())
        processes.append(start("listen", *arguments, server=of, **env))
        of.wait_for(lambda s: sum(join.accepted for join in s.joins()) > joined, CAP)
        return processes[-1]

    yield begin
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait(10)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def read(process: subprocess.Popen[str], kind: str = "") -> Any:
    """The next JSON line, of that kind."""
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if kind in ("", event["kind"]):
            return event
    raise AssertionError(f"it ended without a {kind or 'line'}: {process.communicate()}")


def read_text(process: subprocess.Popen[str]) -> str:
    """The next line without its time."""
    assert process.stdout is not None
    time, _, rest = process.stdout.readline().partition(" ")
    assert re.fullmatch(TIME, time), (time, rest)
    return rest.rstrip("\n")


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=CAP)
    assert "Traceback" not in err
    assert "Exception" not in err
    return process.returncode, out, err


def test_listen_prints_what_send_sends_until_ctrl_c(server: RealtimeServer, listen: Listen) -> None:
    text, lines = listen("room", "--event", "moved", "--event", "stopped"), listen("room", "--json")
    for event, payload in (("other", "{}"), ("moved", '{"n": 1}'), ("stopped", '{"n": 2}')):
        assert run("send", "room", event, payload, server=server).returncode == 0
    assert [read_text(text), read_text(text)] == ['broadcast moved {"n": 1}', 'broadcast stopped {"n": 2}']
    first, second = read(lines), read(lines)
    assert (first["kind"], first["event"], second["payload"]) == ("Broadcast", "other", {"n": 1})
    for process in (text, lines):
        out, err = interrupt(process)
        assert process.returncode == 0
        assert "Traceback" not in out + err
    server.wait_for(lambda s: not s.connections)


def test_a_json_line_holds_every_field_and_says_how_the_payload_is_written(
    server: RealtimeServer, listen: Listen
) -> None:
    process = listen("room", "--json")
    before = datetime.now(timezone.utc)
    server.broadcast("room", "moved", {"text": "line\u2028break\x9b ü"}, id="77")
    server.broadcast("room", "photo", b"\x89PNG")
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "\\u2028break\\u009b ü" in line, "nothing that ends a line or that a terminal acts on"
    event = json.loads(line)
    assert before <= datetime.fromisoformat(event.pop("at")) <= datetime.now(timezone.utc)
    assert event == {
        "kind": "Broadcast",
        "topic": "room",
        "event": "moved",
        "payload": {"text": "line\u2028break\x9b ü"},
        "id": "77",
        "replayed": False,
        "encoding": "json",
    }
    event = read(process)
    assert (event["encoding"], base64.b64decode(event["payload"])) == ("base64", b"\x89PNG")


def test_a_terminal_that_knows_ascii_only_is_given_no_more(server: RealtimeServer, listen: Listen) -> None:
    text, lines = listen("room", PYTHONIOENCODING="ascii"), listen("room", "--json", PYTHONIOENCODING="ascii")
    server.broadcast("room", "fährt", {"n": "ü"})
    assert read_text(text) == 'broadcast f\\xe4hrt {"n": "\\xfc"}'
    assert read(lines)["event"] == "fährt"


def test_what_a_sender_wrote_does_nothing_to_a_terminal(server: RealtimeServer, listen: Listen) -> None:
    process = listen("room")
    server.broadcast("room", "[red]\x1b[2J\n", {"[b]": "\x1b]0;x\x07"})
    assert read_text(process) == 'broadcast [red]\\x1b[2J\\n {"[b]": "\\u001b]0;x\\u0007"}'


def test_changes_of_a_table_come_filtered_and_need_no_topic(server: RealtimeServer, listen: Listen) -> None:
    server.table("cars", CARS)
    all_of_it = listen("--table", "cars")
    some = listen("room", "--table", "cars", "--changes", "update", "--filter", "status=eq.rented", "--json")
    for process in (all_of_it, some):
        assert process.stdout is not None
        assert "Subscribed to PostgreSQL" in process.stdout.readline()
    columns = [{"name": name, "type": kind} for name, kind in CARS.items()]
    rented = {"id": 1, "price": 10.50, "status": "rented"}
    server.change("public", "cars", "INSERT", rented, columns=columns)
    server.change("public", "cars", "UPDATE", {**rented, "status": "free"}, {"id": 1}, columns=columns)
    server.change("public", "cars", "UPDATE", rented, {"id": 1}, columns=columns)
    server.change("public", "cars", "DELETE", None, {"id": 1}, columns=columns)
    shown = list(iter(lambda: read_text(all_of_it), 'DELETE    public.cars was {"id": 1}'))
    shown = [line for line in shown if not line.startswith("system")]
    assert shown[0] == 'INSERT    public.cars {"id": 1, "price": "10.5", "status": "rented"}'
    assert shown[2] == 'UPDATE    public.cars {"id": 1, "price": "10.5", "status": "rented"} was {"id": 1}'
    assert len(shown) == 3
    change = read(some, "PostgresChange")
    assert (change["type"], change["record"]) == ("UPDATE", {"id": 1, "price": "10.5", "status": "rented"})
    assert datetime.fromisoformat(change["commit_timestamp"]).utcoffset() is not None


def test_presence_tells_who_is_there_comes_and_goes(server: RealtimeServer, listen: Listen) -> None:
    text, lines = listen("room", "--presence"), listen("room", "--presence", "--json")
    assert read_text(text) == "present   nobody"
    connection = server.connections[0]
    server.track(connection, "room", "ann", {"at": "home"})
    server.track(connection, "room", "ann", None)
    joined, present, left, nobody = (read_text(text) for _ in range(4))
    assert joined == 'join      ann {"at": "home"}'
    assert present == "present   ann"
    assert left == 'leave     ann {"at": "home"}'
    assert nobody == "present   nobody"
    seen = [read(lines, "Presence") for _ in range(5)]
    assert [event["type"] for event in seen] == ["sync", "join", "sync", "leave", "sync"]
    assert list(seen[2]["state"]) == ["ann"]


def test_a_lost_connection_is_told_on_one_side_and_its_gap_on_the_other(server: RealtimeServer, listen: Listen) -> None:
    text, lines = listen("room"), listen("room", "--json")
    for connection in server.connections:
        connection.abort()
    gap = read_text(text)
    assert re.fullmatch(rf"GAP       transport, may be lost: {TIME} to {TIME}", gap), gap
    event = read(lines)
    assert (event["kind"], event["cause"], event["certain"], event["replay"]) == ("Gap", "transport", False, None)
    assert datetime.fromisoformat(event["lost_from"]) <= datetime.fromisoformat(event["lost_to"])
    server.broadcast("room", "moved", {"n": 2})
    assert read_text(text) == 'broadcast moved {"n": 2}'
    _, err = interrupt(text)
    told = [re.sub(rf"^{TIME} status +", "", line) for line in err.splitlines()]
    shown = [line for line in told if line != "listening on 'room'; Ctrl-C ends it"]
    assert told.index("listening on 'room'; Ctrl-C ends it") == told.index("connected") + 1
    assert shown[0] == "connecting"
    assert shown[-1] == "connected"
    again = shown[shown.index("connected") + 1 :]
    assert re.match(r"reconnecting \(attempt \d, in \d\.\d s\): ConnectionFailed: connection 1 to ws://", again[0])
    assert len(again) <= 3, "once each"


def test_quiet_keeps_standard_error_empty_and_gaps_are_told_all_the_same(
    server: RealtimeServer, listen: Listen
) -> None:
    process = listen("room", "--quiet")
    server.connections[0].abort()
    assert read_text(process).startswith("GAP ")
    _, err = interrupt(process)
    assert err == ""


def test_what_was_stored_is_replayed_and_what_an_interruption_missed(server: RealtimeServer, listen: Listen) -> None:
    def store(*numbers: int, topic: str = "room") -> None:
        for n in numbers:
            server.database_send(topic, "x", {"n": n, "id": str(n)})

    store(1, 2)
    since = listen("room", "--private", "--replay", "10m")
    missed = listen("other", "--private", "--json", "--replay")
    assert read_text(since) == 'replayed  x {"n": 1, "id": "1"}'
    assert read_text(since) == 'replayed  x {"n": 2, "id": "2"}'
    store(0, topic="other")
    assert read(missed)["payload"]["n"] == 0, "it is subscribed: what is stored from now on is its to miss"
    left = [2]

    def while_away(request: object) -> None:
        left[0] -= 1
        if left[0] == 1:
            store(3)
            store(3, topic="other")

    server.on_connect = while_away
    for connection in server.connections:
        connection.abort()
    shown = {read_text(since)[:9].rstrip(), read_text(since)[:9].rstrip()}
    assert shown == {"replayed", "GAP"}
    events = [read(missed), read(missed)]
    assert {event["kind"] for event in events} == {"Broadcast", "Gap"}, [event.get("payload") for event in events]
    assert [event["payload"]["n"] for event in events if event["kind"] == "Broadcast"] == [3]
    assert [event["replay"] for event in events if event["kind"] == "Gap"] == [1]


@pytest.mark.parametrize(
    ("text", "ago"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("3d", 259_200), ("2026-01-31T10:00:00Z", None)]
)
def test_a_moment_is_written_as_people_write_it(text: str, ago: float | None) -> None:
    option = next(parameter for parameter in command.params if parameter.name == "replay")
    moment = option.process_value(click.Context(command), text)
    assert isinstance(moment, datetime)
    if ago is None:
        assert moment == datetime(2026, 1, 31, 10, tzinfo=timezone.utc)
    else:
        assert abs(datetime.now(timezone.utc).timestamp() - ago - moment.timestamp()) < 60


def test_a_token_says_whose_private_channel_it_is(server: RealtimeServer, listen: Listen) -> None:
    def policy(request: PolicyRequest) -> Permissions | bool:
        return request.claims.get("sub") == "ann"

    server.policy = policy
    token = server.token(sub="ann")
    process = listen("room", "--private", "--json", SUPABASE_ACCESS_TOKEN=token)
    assert run("send", "room", "moved", "{}", "--private", "--token", token, server=server).returncode == 0
    assert read(process)["event"] == "moved"
    done = run("listen", "room", "--private", server=server)
    assert done.returncode == 1
    assert "failed: JoinRefused: " in done.stderr
    assert "You do not have permissions to read from this Channel topic: room" in done.stderr
    assert "advice: a policy on realtime.messages has to let this user read" in done.stderr
    assert token not in done.stderr


def test_any_topic_of_a_plain_phoenix_server_is_heard_and_no_supabase_key_goes_there(listen: Listen) -> None:
    with RealtimeServer(plain_phoenix=True) as phoenix:
        urls: list[Any] = []
        phoenix.on_connect = urls.append
        mount = f"{phoenix.url}/socket"
        secrets = {"SUPABASE_KEY": "a-key-of-supabases", "SUPABASE_ACCESS_TOKEN": "a.b.c"}
        text = listen("room:lobby", "--plain", "--event", "new_msg", "--url", mount, of=phoenix, **secrets)
        lines = listen("room:lobby", "--plain", "--json", "--url", mount, of=phoenix, **secrets)
        phoenix.push("room:lobby", "other", {"n": 0})
        phoenix.push("room:lobby", "new_msg", {"n": 1})
        assert read_text(text) == 'message   new_msg {"n": 1}'
        assert [(e["kind"], e["event"]) for e in (read(lines), read(lines))] == [
            ("Message", "other"),
            ("Message", "new_msg"),
        ]
        assert len(urls) == 2
        assert "a-key-of-supabases" not in repr(urls)
        for process in (text, lines):
            interrupt(process)


# When it ends


def test_it_ends_after_so_many_events_with_0_and_a_gap_is_none(server: RealtimeServer, listen: Listen) -> None:
    process = listen("room", "--count", "2", "--timeout", "60")
    server.connections[0].abort()
    server.wait_for(lambda s: s.connections_total == 2 and s.members("room") == 1, CAP)
    server.broadcast("room", "a", {})
    server.broadcast("room", "b", {})
    code, out, _ = ended(process)
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()] == ["GAP", "broadcast", "broadcast"]


def test_a_count_that_is_not_reached_in_time_is_1_and_says_how_far_it_came(
    server: RealtimeServer, listen: Listen
) -> None:
    process = listen("room", "--count", "5", "--timeout", "3", "--quiet")
    for n in range(3):
        server.broadcast("room", "x", {"n": n})
    code, out, err = ended(process)
    assert (code, len(out.splitlines())) == (1, 3)
    assert err == "failed: 3 of 5 came within 3 s\n"


def test_the_time_is_over_without_a_count_and_that_is_0(server: RealtimeServer) -> None:
    done = run("listen", "room", "--timeout", "1.5", "--quiet", server=server)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    server.wait_for(lambda s: not s.connections)


def test_no_server_in_time_is_1_with_a_count_and_0_without() -> None:
    nowhere = ("--url", "http://127.0.0.1:1", "--key", "k", "--timeout", "0.7")
    done = run("listen", "room", *nowhere)
    assert done.returncode == 0
    assert "ConnectionFailed: " in done.stderr
    assert "listening on" not in done.stderr
    done = run("listen", "room", *nowhere, "--count", "1", "--quiet")
    assert done.returncode == 1
    failed, advice = done.stderr.splitlines()
    assert re.match(r"failed: 0 of 1 came within 0\.7 s; (connecting|reconnecting|no connection)", failed)
    assert advice == "advice: `rtpool doctor` looks at each step on the way."


@pytest.mark.parametrize("limit", [(), ("--timeout", "60")])
def test_a_server_that_is_not_there_yet_is_waited_for(server: RealtimeServer, limit: tuple[str, ...]) -> None:
    refusals = iter([Refusal(503)])
    server.on_connect = lambda request: next(refusals, None)
    no = iter([JoinRefusal("UnableToConnectToProject: later")])
    server.on_join = lambda *_: next(no, None)
    process = start("listen", "room", "--count", "1", *limit, server=server)
    server.wait_for(lambda s: s.members("room"), CAP)
    server.broadcast("room", "x", {})
    code, out, err = ended(process)
    assert (code, len(out.splitlines())) == (0, 1)
    assert "HTTP 503" in err
    assert err.count("listening on") == 1


def test_when_a_server_stays_away_it_is_told_that_the_next_attempt_takes_longer(server: RealtimeServer) -> None:
    server.on_connect = lambda request: Refusal(503)
    process = start("listen", "room", server=server)
    assert process.stderr is not None
    told = [next(process.stderr) for _ in range(4)]
    interrupt(process)
    attempts = [re.search(r"(\w+) \(attempt (\d), in ([\d.]+) s\): HandshakeRefused", line) for line in told[1:]]
    found = [(attempt[1], attempt[2]) for attempt in attempts if attempt]
    assert found == [("reconnecting", "2"), ("reconnecting", "3"), ("connection", "4")], told
    assert attempts[2] is not None
    assert 15 <= float(attempts[2][3]) <= 30
    assert "every 15 to 30 s" in run("listen", "--help").stdout


def test_a_refusal_is_told_once_and_not_said_to_be_tried_again(server: RealtimeServer) -> None:
    server.table("cars", CARS)
    done = run("listen", "--table", "carz", "--timeout", "9", "--count", "1", server=server)
    assert done.returncode == 1
    assert done.stderr.count("Unable to subscribe to changes") == 1, done.stderr
    assert "joining again" not in done.stderr
    assert done.stderr.count("failed: JoinRefused: ") == 1


def test_a_token_that_is_over_is_to_be_replaced(server: RealtimeServer) -> None:
    token = server.token(sub="ann", exp=1)
    done = run("listen", "room", "--private", "--token", token, server=server)
    assert done.returncode == 1
    assert "Token has expired" in done.stderr
    assert "advice: the server takes no such token: give a fresh one, --token" in done.stderr


def test_words_of_a_server_that_look_like_markup_are_shown_as_they_are(server: RealtimeServer) -> None:
    server.on_join = lambda *_: JoinRefusal("Unauthorized: [bold]not[/bold] [/x] you :smile:")
    done = run("listen", "room", server=server)
    assert done.returncode == 1
    assert "[bold]not[/bold] [/x] you :smile:" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_can_never_come_back_ends_it_with_the_reason(server: RealtimeServer, listen: Listen) -> None:
    refused_join, refused_key = listen("room", "--quiet"), listen("other", "--quiet")
    server.on_join = lambda topic, *_: JoinRefusal("Unauthorized: no more") if topic == "room" else None
    server.on_connect = lambda request: None
    server.crash_channel("room")
    code, _, err = ended(refused_join)
    assert code == 1
    assert "failed: JoinRefused: " in err
    assert "no more" in err
    server.on_connect = lambda request: Refusal(401, "no such key")
    for connection in server.connections:
        connection.abort()
    code, _, err = ended(refused_key)
    assert code == 1
    assert "failed: HandshakeRefused: " in err
    assert "advice: give the project's own key" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "TOPIC, or a --table"),
        ([""], "topic must not be empty"),
        (["", "--table", "cars"], "topic must not be empty"),
        (["room", "--filter", "id=eq.1"], "--filter goes with --table"),
        (["room", "--changes", "INSERT"], "--changes goes with --table"),
        (["--table", "cars", "--filter", "id=is"], "filter"),
        (["--table", "cars", "--changes", "TRUNCATE"], "TRUNCATE"),
        (["room", "--replay"], "--replay goes with --private"),
        (["--private", "--replay", "room"], "'room' is no moment"),
        (["room", "--private", "--replay=99999999d"], "is no moment"),
        (["room", "--private", "--replay=1800-01-01"], "since"),
        (["room", "--count", "0"], "--count"),
        (["room", "--timeout", "0"], "--timeout"),
        (["room", "--plain", "--private"], "private is for Supabase"),
        (["room", "--plain", "--token", "a.b.c"], "access_token is for Supabase"),
        (["room", "--plain", "--table", "cars"], "on_postgres_changes is for Supabase"),
        (["x" * 300], "topic"),
    ],
)
def test_wrong_usage_is_2_and_says_why(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(command, [*arguments, "--url", "http://127.0.0.1:1", "--key", "k"])
    assert done.exit_code == 2, done.output
    assert words in done.output


def test_a_reader_that_leaves_ends_it_quietly(server: RealtimeServer, listen: Listen) -> None:
    process = listen("room", "--json")
    server.broadcast("room", "x", {"n": 1})
    assert read(process)["payload"] == {"n": 1}
    assert process.stdout is not None
    process.stdout.close()
    server.broadcast("room", "x", {"n": 2})
    server.wait_for(lambda s: not s.connections, CAP)
    assert process.wait(CAP) == 0
    assert process.stderr is not None
    err = process.stderr.read()
    assert "BrokenPipe" not in err
    assert "Exception" not in err


# In a terminal


def kept(name: str, lines: list[str]) -> None:
    """Keep a screen, without what is of this run alone; it is the same as the one of before."""
    text = "\n".join(lines) + "\n"
    for pattern, stands in (
        (TIME, "hh:mm:ss.mmm"),
        (r"127\.0\.0\.1:\d+", "127.0.0.1:port"),
        (r" · last \d+ s ago", ""),
    ):
        text = re.sub(pattern, stands, text)
    path = SCREENS / f"{name}.txt"
    if os.environ.get("RTPOOL_KEEP_SCREENS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text


def test_a_person_sees_how_it_stands_below_what_came(server: RealtimeServer, tmp_path: pathlib.Path) -> None:
    with Terminal(tmp_path, SUPABASE_URL=server.url, SUPABASE_KEY=server.api_key) as terminal:
        terminal.type("clear; rtpool listen room; echo exit code $?\n")
        terminal.wait_for(lambda lines: lines[-1] == "connected · 0 received · 0 gaps · 0 reconnects")
        server.broadcast("room", "moved", {"lat": 52.5})
        server.broadcast("room", "moved", {"lat": 52.6})
        terminal.wait_for(lambda lines: re.fullmatch(r"connected · 2 received .* last \d s ago", lines[-1]))
        server.on_connect = lambda request: Refusal(503)
        server.connections[0].abort()
        lines = terminal.wait_for(
            lambda lines: "HTTP 503" in "".join(lines) and lines[-1].startswith(("reconnecting", "no connection"))
        )
        said = r"(reconnecting|no connection) \(attempt \d, in \d+(\.\d)? s\) · 2 received · 0 gaps · 0 reconnects"
        assert re.match(said, lines[-1])
        assert len(lines[-1]) < 80
        kept("listen_reconnecting", [*lines[:-1], re.sub("^.*\\)", "reconnecting (attempt n, in n.n s)", lines[-1])])
        server.on_connect = None
        lines = terminal.wait_for(
            lambda lines: lines[-1].startswith("connected · 2 received · 1 gap · 1 reconnect"), 40
        )
        kept("listen_with_a_gap", lines)
        terminal.type("\x03")
        lines = terminal.wait_for_exit_code()
        assert lines[-1] == "exit code 0"
        assert not any("received" in line for line in lines), "the status line is gone"


def test_quiet_in_a_terminal_shows_the_events_alone(server: RealtimeServer, tmp_path: pathlib.Path) -> None:
    with Terminal(tmp_path, SUPABASE_URL=server.url, SUPABASE_KEY=server.api_key) as terminal:
        terminal.type("clear; rtpool listen room --quiet --count 1; echo exit code $?\n")
        server.wait_for(lambda s: s.members("room"), CAP)
        server.broadcast("room", "moved", {"text": "long " * 40})
        lines = terminal.wait_for_exit_code()
        assert re.match(TIME, lines[0])
        assert len("".join(lines[:-1])) > 200, "all of it, however long"
        assert lines[-1] == "exit code 0"

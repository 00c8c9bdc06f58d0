"""The benchmarks' frame: what is asked for is measured in real processes and judged rightly. No time is looked at."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.benchmarks.cases import all_cases, receive
from tests.benchmarks.clients.counting import Counted, rate
from tests.benchmarks.goals import judge, table
from tests.benchmarks.model import Case, Goal, Participant, Place, Row, Settings, Summary
from tests.benchmarks.peers import receiver
from tests.benchmarks.processes import Failed, run, server
from tests.benchmarks.runner import measure, number

ROOT = pathlib.Path(__file__).parent.parent
CASES = all_cases()


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "tests.benchmarks", *arguments]
    return subprocess.run(whole, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)


def case_of(*participants: Participant, goals: tuple[Goal, ...] = ()) -> Case:
    return Case("made", "a made case", lambda settings: [Row("a row", participants)], goals)


def made(name: str, *values: float, missing: str | None = None) -> Participant:
    """Measures the values given, one a round."""
    left = list(values)
    return Participant(name, lambda _: {"messages/s": left.pop(0)}, missing)


def place(participant: str) -> Place:
    return Place("a row", participant, "messages/s")


def test_the_list_names_every_case_and_its_goals() -> None:
    told = command("--list")
    assert told.returncode == 0, told.stderr
    for case in CASES.values():
        assert f"\n{case.name} " in f"\n{told.stdout}"
        for goal in case.goals:
            assert f"{goal.of.variant}: {goal.text}" in told.stdout


def test_a_case_that_does_not_exist_is_refused_with_those_that_do() -> None:
    told = command("nonsense")
    assert told.returncode == 2
    assert "no case 'nonsense'" in told.stderr
    assert "receive" in told.stderr


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_goals_of_a_case_look_at_its_own_rows(case: Case) -> None:
    rows = {row.variant: {p.name for p in row.participants} for row in case.rows(Settings())}
    assert rows
    for goal in case.goals:
        for looked_at in (goal.of, goal.over):
            assert looked_at is None or looked_at.participant in rows[looked_at.variant], goal.text


def test_a_goal_has_one_bound() -> None:
    for bounds in ({}, {"at_least": 1.0, "at_most": 2.0}):
        with pytest.raises(ValueError, match="one bound"):
            Goal(text="both or none", of=place("rtpool"), **bounds)


def test_rounds_take_turns_and_the_middle_one_counts() -> None:
    turns: list[str] = []

    def noting(name: str) -> Participant:
        return Participant(name, lambda _: turns.append(name) or {"messages/s": float(len(turns))})

    results = measure([case_of(noting("a"), noting("b"))], Settings(rounds=3), lambda line: None)
    assert turns == ["a", "b"] * 3
    assert results.summary("made", place("b")) == Summary([2.0, 4.0, 6.0])
    summary = Summary([9.0, 1.0, 2.0])
    assert (summary.median, summary.low, summary.high) == (2.0, 1.0, 9.0)


def test_a_goal_is_met_at_its_bound_and_missed_beyond_it() -> None:
    of, over = place("rtpool"), place("realtime")
    goals = (
        Goal(text="met from below", of=of, over=over, at_least=3),
        Goal(text="missed from below", of=of, over=over, at_least=3.01),
        Goal(text="met from above", of=of, at_most=30),
        Goal(text="missed from above", of=of, at_most=29.9),
    )
    case = case_of(made("rtpool", 30), made("realtime", 10), goals=goals)
    verdicts = judge(measure([case], Settings(rounds=1), lambda line: None), [case])
    assert [verdict.word for verdict in verdicts] == ["met", "MISSED", "met", "MISSED"]
    assert [verdict.measured for verdict in verdicts] == [3, 3, 30, 30]
    lines = table(verdicts)
    assert lines[1].split("  ")[0] == "made, a row"
    assert "3.00 x" in lines[1]
    assert lines[2].endswith("MISSED")


def test_who_is_missing_is_named_with_what_to_do_and_fails_no_goal() -> None:
    lines: list[str] = []
    goal = Goal(text="faster", of=place("rtpool"), over=place("realtime"), at_least=2)
    case = case_of(made("rtpool", 1), made("realtime", missing="run: install it"), goals=(goal,))
    (verdict,) = judge(measure([case], Settings(rounds=1), lines.append), [case])
    assert any("realtime" in line and "run: install it" in line for line in lines)
    assert verdict.word == "not measured (run: install it)"
    assert not verdict.missed


def test_who_fails_is_told_of_and_none_of_its_figures_counts() -> None:
    rounds = iter((True, False))

    def measured(_: Any) -> Mapping[str, float]:
        if next(rounds):
            return {"messages/s": 1.0}
        raise Failed("message 3 came twice")

    case = case_of(Participant("rtpool", measured), made("realtime", 1, 2, 3))
    results = measure([case], Settings(rounds=3), lambda line: None)
    assert results.failures == ["made, a row, rtpool: message 3 came twice"]
    assert results.summary("made", place("rtpool")) is None
    assert results.summary("made", place("realtime")) == Summary([1, 2, 3])


def test_a_goal_that_looks_at_no_figure_is_a_mistake() -> None:
    case = case_of(made("rtpool", 1), goals=(Goal(text="x", of=Place("a row", "rtpool", "misspelt"), at_least=1),))
    with pytest.raises(ValueError, match="misspelt"):
        judge(measure([case], Settings(rounds=1), lambda line: None), [case])


def test_only_those_asked_for_are_measured() -> None:
    case = case_of(made("rtpool, TLS", 1), made("realtime"))
    results = measure([case], Settings(rounds=1, only=("rtpool",)), lambda line: None)
    assert [key for _, key in results.values] == [place("rtpool, TLS")]
    (verdict,) = judge(results, [case_of(goals=(Goal(text="x", of=place("realtime"), at_least=1),))])
    assert verdict.word == "not measured (realtime was left out)"


def test_numbers_are_told_with_three_digits_that_count() -> None:
    assert [number(value) for value in (1234567.8, 100, 99.94, 9.994, 0.12345)] == [
        "1,234,568",
        "100",
        "99.9",
        "9.99",
        "0.123",
    ]


@pytest.mark.parametrize(
    ("numbers", "at"), [([0, 2, 1], 1), ([0, 1], 2), ([0, 1, 1, 2], 2), ([0, 1, 2, 2], 3)], ids=repr
)
def test_a_message_lost_doubled_or_out_of_order_fails_its_client(numbers: list[int], at: int) -> None:
    counted = Counted(3)
    for each in numbers:
        counted.take(each)
    with pytest.raises(SystemExit, match=f"wrong one is at {at}"):
        rate([counted])


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(Failed, match="what went wrong"):
        run([sys.executable, "-c", "print('{}'); raise SystemExit('what went wrong')"], {})
    with pytest.raises(Failed, match="did not end within"):
        run([sys.executable, "-c", "import time; time.sleep(60)"], {}, timeout=0.5)


def test_a_server_that_has_something_to_say_fails_its_row() -> None:
    @contextlib.contextmanager
    def serve() -> Iterator[None]:
        yield
        raise Failed("a client left before it had all")

    case = Case("made", "a made case", lambda settings: [Row("a row", [made("rtpool", 1)], serve)])
    assert measure([case], Settings(rounds=1), lambda line: None).failures == [
        "made, a row, its server: a client left before it had all"
    ]


def test_what_a_server_writes_to_its_stderr_is_told() -> None:
    with pytest.raises(Failed, match="No module named"), server("nonsense", {}):
        pass


def tiny(name: str, told: Mapping[str, Any], **plan: Any) -> Mapping[str, float]:
    participant = receiver(name, messages=200, **told)
    if participant.missing is not None:
        (pytest.fail if os.environ.get("RTPOOL_REQUIRE_INTEROP") == "1" else pytest.skip)(participant.missing)
    with server("traffic", {"topics": 1, "messages": 200, "size": 250, **plan}) as served:
        return participant.measure(served)


def test_a_row_is_measured_in_real_processes() -> None:
    lines: list[str] = []
    row = receive.row("250 B", 250, {"rtpool": 1.0, "websocket-client": 1.0}, Settings(scale=0.002))
    results = measure([Case("receive", "a tiny one", lambda settings: [row])], Settings(rounds=1), lines.append)
    assert not results.failures
    assert [line.split()[2] for line in lines[1:]] == ["rtpool", "websocket-client"]
    assert all(values[0] > 0 for values in results.values.values())


@pytest.mark.parametrize(
    ("name", "told", "plan"),
    [
        ("rtpool, no orjson", {}, {}),
        ("rtpool, debugger", {}, {}),
        ("rtpool, Prometheus", {}, {}),
        ("rtpool, frames recorded", {}, {}),
        ("rtpool", {"binary": True}, {"binary": True}),
        ("rtpool", {"topics": 10, "sockets": 10, "options": {"max_channels_per_connection": 1}}, {"topics": 10}),
        ("rtpool, Channels", {"channels": 3}, {}),
        ("rtpool", {}, {"tls": True}),
        ("websockets", {}, {}),
        ("floor", {}, {"size": 100_000}),
        ("floor, mailboxes", {"channels": 3}, {}),
        ("realtime", {}, {"tls": True}),
        ("realtime, callbacks", {"channels": 3}, {}),
        ("realtime-js", {"binary": True}, {"binary": True, "tls": True}),
        ("realtime-js, callbacks", {"channels": 3}, {}),
    ],
)
def test_a_client_receives_what_the_traffic_sends(name: str, told: dict[str, Any], plan: dict[str, Any]) -> None:
    assert all(value > 0 for value in tiny(name, told, **plan).values())


def test_what_was_measured_is_written_as_json(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "measured.json"
    done = command("floor", "--only", "wake a thread", "--rounds", "2", "--quick", "--json", str(path))
    assert done.returncode == 0, done.stderr
    written = json.loads(path.read_text())
    (figure,) = written["figures"]
    assert (figure["case"], figure["participant"], len(figure["values"])) == ("floor", "wake a thread", 2)
    assert written["environment"]["python"]


def test_the_page_of_the_benchmarks_says_what_each_case_does() -> None:
    page = (ROOT / "tests" / "benchmarks" / "README.md").read_text()
    section = page.split("## What each case does")[1].split("\n## ")[0]
    assert {*CASES} - set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set()

"""
A bounded piece of what `python -m tests.fuzz` does without end: a fixed seed, and a fresh one that a failure names.

RTPOOL_FUZZ=seconds makes it as long for each target.
"""

from __future__ import annotations

import os
import pathlib
import random
import secrets
import time

import pytest

from rtpool.protocol.frames import FrameDecoder, WsMessage
from rtpool.protocol.session import Session
from tests.fuzz import corpus, engine, targets
from tests.fuzz.__main__ import main
from tests.fuzz.engine import Failure, Report

SECONDS = float(os.environ.get("RTPOOL_FUZZ", "0"))
#: Beyond the seeds, for each run.
INPUTS = {"frames": 400, "serializer": 8_000, "session": 1_500}


def fuzz(name: str, seed: int, inputs: int) -> Report:
    until = time.monotonic() + SECONDS
    seeds = corpus.seeds(name)

    def go_on(report: Report) -> bool:
        return time.monotonic() < until if SECONDS else report.tried < len(seeds) + inputs

    return engine.run(name, targets.TARGETS[name], seeds, seed, go_on)


@pytest.mark.timeout(2 * SECONDS + 120)
@pytest.mark.parametrize("seed", [1, pytest.param(None, id="fresh")])
@pytest.mark.parametrize("name", targets.TARGETS)
def test_any_bytes_give_messages_or_a_protocol_error_and_nothing_else(name: str, seed: int | None) -> None:
    seed = seed or secrets.randbelow(1 << 31)
    print(f"again with: python -m tests.fuzz {name} --engine random --seed {seed}")
    assert fuzz(name, seed, INPUTS[name]).tried > 0


@pytest.mark.parametrize("name", targets.TARGETS)
def test_a_run_depends_on_its_seed_alone(name: str) -> None:
    first, second = (engine.mutated(corpus.seeds(name)[0], b"other", random.Random(7)) for _ in range(2))
    assert first == second
    reports = []
    for _ in range(2):
        report = engine.run(name, targets.TARGETS[name], corpus.seeds(name)[:20], 7, lambda report: report.tried < 60)
        reports.append((report.tried, report.outcomes))
    assert reports[0] == reports[1]
    assert reports[0][1] > 1


def test_the_seeds_lead_far() -> None:
    """Recorded lives of real connections, as programs: joins, answers, pushes, ends."""
    seen = set().union(*(targets.session(data) for data in corpus.seeds("session")))  # type: ignore[arg-type]
    assert seen >= {"Joined", "JoinFailed", "Left", "ChannelLost", "WireMessage", "PushSettledreply", "PushSettledlost"}
    kinds = {targets.serializer(data) for data in corpus.seeds("serializer")}
    assert len(kinds) > 30
    assert all(targets.frames(data)[1] == "" for data in corpus.seeds("frames"))  # type: ignore[index]


def test_a_failing_input_is_made_small_written_down_and_replayed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(data: bytes) -> bytes:
        assert b"close" not in data, "found"
        return data[:2]

    monkeypatch.setitem(targets.TARGETS, "session", broken)
    monkeypatch.setattr("resource.setrlimit", lambda *limits: None)  # this process has more to do
    assert main(["session", "--engine", "random", "--seed", "1", "--seconds", "60", "--out", str(tmp_path)]) == 1
    (found,) = tmp_path.iterdir()
    assert found.read_bytes() == b"close"
    assert f"--replay {found}" in capsys.readouterr().out
    assert main(["--replay", str(found)]) == 1
    assert "found" in capsys.readouterr().err
    found.write_bytes(b"mended")
    assert main(["--replay", str(found)]) == 0


@pytest.mark.parametrize("name", targets.TARGETS)
def test_the_targets_see_what_is_wrong(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Each against code that has one fault."""
    if name == "frames":
        right = FrameDecoder.receive

        def receive(self: FrameDecoder, data: bytes) -> list[WsMessage]:
            return [message for message in right(self, data) if message.data != b"ping"]

        monkeypatch.setattr(FrameDecoder, "receive", receive)
    elif name == "serializer":
        monkeypatch.setattr("rtpool.protocol.serializer.ENCODING_JSON", 0)
    else:
        monkeypatch.setattr(Session, "_fail_pushes", lambda self, topic: self._pending.clear())
    with pytest.raises(Failure):
        fuzz(name, 7, 10_000)

"""One call writes a line and an entry: how floods are told, what is left out, where a line comes from."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Iterator

import pytest

import rtpool
from rtpool.engine import logs
from rtpool.engine.flight_recorder import FlightRecorder
from rtpool.engine.logs import RARELY, SUBJECTS, Log
from tests.support.lines import Lines


@pytest.fixture
def lines() -> Iterator[Lines]:
    kept = Lines()
    yield kept
    kept.logger.removeHandler(kept)


class Clock:
    """In the place of `time.monotonic`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        monkeypatch.setattr(logs.time, "monotonic", lambda: self.now)


def test_what_comes_in_floods_is_told_now_and_then_with_what_was_left_out(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, log = Clock(monkeypatch), Log(lines.logger)
    for subject in (1, 2, 1, 1):
        log.rarely(subject, "flood", "! subject %(subject)d", subject=subject)
    assert [line.text for line in lines.all] == ["! subject 1", "! subject 2"]
    clock.now += RARELY - 0.01
    log.rarely(1, "flood", "! subject %(subject)d", subject=1)
    clock.now += 0.01
    log.rarely(1, "flood", "! subject %(subject)d", subject=1)
    log.rarely(1, "another", "! another", subject=1)
    assert [line.text for line in lines.all[2:]] == ["! subject 1; 3 more like it in between", "! another"]
    assert [line.fields["untold"] for line in lines.all] == [0, 0, 3, 0]


def test_subjects_beyond_so_many_are_one(lines: Lines) -> None:
    log = Log(lines.logger)
    for subject in range(3 * SUBJECTS):
        log.rarely(subject, "flood", "! subject")
        assert len(log._told) <= SUBJECTS + 1
    assert len(lines.all) == SUBJECTS + 1


def test_every_way_of_telling_is_attributed_to_who_tells(lines: Lines) -> None:
    log, files = Log(lines.logger), []
    lines.emit = lambda record: files.append(record.filename)  # type: ignore[method-assign]
    for tell in (log.debug, log.info, log.warning, log.exception, log.bug):
        tell("mine", "= mine")
    log.rarely(0, "mine", "= mine")
    log.received(1, b"")
    assert files == ["test_logs.py"] * 6


def test_an_error_becomes_fields_and_is_not_kept() -> None:
    recorder = FlightRecorder(5)
    log = Log(logging.getLogger("nobody"), recorder, pool="7")
    error = rtpool.JoinRefused("the server refused it", code="Unauthorized", reason="no")
    log.warning("refused", "! %(why)s", error=error)
    (entry,) = recorder.entries()
    assert entry.fields == {
        "event": "refused",
        "pool": "7",
        "error": "JoinRefused",
        "why": "the server refused it",
        "code": "Unauthorized",
        "reason": "no",
    }
    gone = weakref.ref(error)
    del error
    gc.collect()
    assert gone() is None


def test_entries_go_with_an_error_now_and_then() -> None:
    now = [0.0]
    recorder = FlightRecorder(500, clock=lambda: now[0])
    for number in range(100):
        recorder.add(logging.INFO, "= number %(number)d", {"number": number})
    assert recorder.for_error().count("\n") == 19
    now[0] = 59.9
    assert recorder.for_error() == ""
    now[0] = 60.0
    assert recorder.for_error().endswith("INFO = number 99")

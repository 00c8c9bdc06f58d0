"""What pools log, line by line, with the fields that structured loggers see."""

from __future__ import annotations

import itertools
import json
import logging
from typing import Any, NamedTuple

from tests.support.recorder import Recorder
from tests.support.wait import wait_until

#: What every record has, whoever logs.
OF_RECORDS = {*vars(logging.LogRecord("", 0, "", 0, "", (), None)), "message", "asctime", "taskName"}

_numbers = itertools.count(1)


class Line(NamedTuple):
    """One record: its logger's last name, its level, its words, its fields."""

    room: str
    level: str
    text: str
    fields: dict[str, Any]

    @property
    def event(self) -> Any:
        """The kind of what happened."""
        return self.fields["event"]

    @property
    def short(self) -> tuple[str, str, Any]:
        """Where, how grave, what."""
        return self.room, self.level, self.event


class Lines(logging.Handler):
    """A logger for the option `logger`, and what it gets. Every line must be one that a JSON formatter can write."""

    def __init__(self, level: int = logging.DEBUG) -> None:
        super().__init__()
        self.told = Recorder()
        self.logger = logging.getLogger(f"story{next(_numbers)}")
        self.logger.addHandler(self)
        self.logger.setLevel(level)

    def emit(self, record: logging.LogRecord) -> None:
        fields = {name: value for name, value in vars(record).items() if name not in OF_RECORDS}
        text = record.getMessage()
        json.dumps(fields)
        room = record.name.rpartition(".")[2]
        self.told(Line(room, record.levelname, text, fields))

    @property
    def all(self) -> list[Line]:
        """Every line so far."""
        return list(self.told.events)

    def of(self, *events: str) -> list[Line]:
        """The lines of these kinds so far."""
        return [line for line in self.all if line.event in events]

    def wait(self, event: str, count: int = 1) -> Line:
        """Wait for so many lines of a kind; the last of them."""
        wait_until(lambda: len(self.of(event)) >= count, f"{event}, after {[line.text for line in self.all[-5:]]}")
        return self.of(event)[count - 1]

"""From the start of a fresh interpreter to the first message: import, connect, join, ask for a message, receive it."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from tests.benchmarks.model import Case, Figures, Participant, Row, Settings
from tests.benchmarks.processes import ROOT, run, server
from tests.interop import install

__all__ = ["CASE"]

CLIENTS = ROOT / "tests" / "benchmarks" / "clients"
PYTHON = str(CLIENTS / "startup.py")
OURS = {"PYTHONPATH": str(ROOT)}
#: The command of each, what is missing to run it, and its part of the environment.
COMMANDS: Mapping[str, tuple[list[str], str | None, Mapping[str, str]]] = {
    "rtpool": ([sys.executable, PYTHON], None, OURS),
    "websocket-client": ([sys.executable, PYTHON], None, OURS),
    "realtime": ([str(install.PYTHON), PYTHON], install.missing("py"), {}),
    "realtime-js": (["node", str(CLIENTS / "startup.js")], install.missing("js"), {}),
}
#: Programs of a round; its figure is their median.
TIMES = 7


def _participant(name: str) -> Participant:
    command, missing, own = COMMANDS[name]

    def measure(served: Mapping[str, Any]) -> Figures:
        with tempfile.TemporaryDirectory() as folder:  # of compiled modules, which not every machine keeps
            env = {**os.environ, "PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": "", **own}

            def once() -> float:
                return run(command, {**served, "with": name, "started": time.monotonic()}, env=env)["ms"]

            once()  # compiles
            return {"ms": statistics.median(once() for _ in range(TIMES))}

    return Participant(name, measure, missing)


def rows(_settings: Settings) -> Sequence[Row]:
    """One row."""
    return [Row("first message", [_participant(name) for name in COMMANDS], partial(server, "lean", {}))]


CASE = Case("startup", "from the start of the interpreter to the first message", rows)

"""What is written of a run beside its tables: on which machine it was made, and every figure as JSON."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata

import attrs

from tests.benchmarks import peers
from tests.benchmarks.goals import Verdict
from tests.benchmarks.model import Results, Summary

__all__ = ["as_json", "environment", "environment_line"]


def environment() -> dict[str, str]:
    """The machine, and the versions that were measured."""
    names = ("rtpool", "orjson", "websocket-client", "websockets")
    there = {found.metadata["Name"] for found in metadata.distributions()}
    return {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        **{name: metadata.version(name) if name in there else "missing" for name in names},
        **peers.versions(),
    }


def environment_line() -> str:
    """All of it in one line."""
    return ", ".join(f"{name} {value}" if name != "machine" else value for name, value in environment().items())


def as_json(results: Results, verdicts: list[Verdict]) -> str:
    """Every round's figures, their medians, and what became of the goals."""
    rows = [
        {"case": case, **attrs.asdict(place), "median": Summary(values).median, "values": values}
        for (case, place), values in results.values.items()
    ]
    missing = [
        {"case": case, "variant": variant, "participant": name, "missing": why}
        for (case, variant, name), why in results.missing.items()
    ]
    goals = [{"case": v.case, **attrs.asdict(v.goal), "measured": v.measured, "verdict": v.word} for v in verdicts]
    return json.dumps({"environment": environment(), "figures": rows, "missing": missing, "goals": goals}, indent=1)

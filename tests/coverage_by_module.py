"""
Branch coverage of each module of the core by its own test module: ``python -m tests.coverage_by_module [NAME …]``.

Each pair is measured by itself, so that no branch is covered only because some other test happens to come by; and of
hypothesis' tests only the given examples run, so that none is covered by chance. Ends with 1 unless all reach 100 %.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent


class Pair(NamedTuple):
    """A module and the tests of its own."""

    name: str
    module: str
    tests: str


class Measured(NamedTuple):
    """What the tests of one module reached; `missing` names the lines and branches that they did not."""

    passed: bool
    statements: int
    branches: int
    percent: float
    missing: str
    output: str


def pairs() -> list[Pair]:
    """All that are measured."""
    names = sorted(p.stem for p in (ROOT / "rtpool" / "protocol").glob("*.py") if p.stem != "__init__")
    return [
        *(Pair(name, f"rtpool/protocol/{name}.py", f"tests/protocol/test_{name}.py") for name in names),
        Pair("registry", "rtpool/registry.py", "tests/test_registry.py"),
        Pair("dispatcher", "rtpool/engine/dispatcher.py", "tests/engine/test_dispatcher.py"),
    ]


def measure(pair: Pair) -> Measured:
    """Run a module's tests under coverage of that module alone."""
    if not (ROOT / pair.tests).is_file():
        return Measured(False, 0, 0, 0.0, f"there is no {pair.tests}", "")
    with tempfile.TemporaryDirectory() as folder:
        data, report = os.path.join(folder, "data"), os.path.join(folder, "report.json")
        coverage = [sys.executable, "-m", "coverage"]
        pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--hypothesis-profile=examples"]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "COVERAGE_FILE": data}
        ran = subprocess.run(
            [*coverage, "run", f"--include={pair.module}", *pytest, pair.tests],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        told = subprocess.run(
            [*coverage, "json", "-q", "-o", report], cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )
        if told.returncode:
            return Measured(False, 0, 0, 0.0, told.stdout.strip(), ran.stdout + ran.stderr)
        (found,) = json.loads(pathlib.Path(report).read_text())["files"].values()
    summary = found["summary"]
    missing = [str(line) for line in found["missing_lines"]]
    missing += [f"{source}->{'exit' if target < 0 else target}" for source, target in found["missing_branches"]]
    return Measured(
        ran.returncode == 0,
        summary["num_statements"],
        summary["num_branches"],
        summary["percent_covered"],
        " ".join(missing),
        ran.stdout + ran.stderr,
    )


def main(names: list[str]) -> int:
    """Print the table; 0 when every module is covered whole by tests that pass."""
    chosen = [pair for pair in pairs() if not names or pair.name in names]
    unknown = set(names) - {pair.name for pair in chosen}
    if unknown:
        print(f"no such module: {', '.join(sorted(unknown))}")
        return 2
    whole = True
    print(f"{'module':<16}{'statements':>11}{'branches':>10}{'covered':>9}  missing")
    for pair in chosen:
        done = measure(pair)
        whole = whole and done.passed and not done.missing
        print(
            f"{pair.name:<16}{done.statements:>11}{done.branches:>10}{done.percent:>8.1f}%  {done.missing}", flush=True
        )
        if not done.passed:
            print(done.output)
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

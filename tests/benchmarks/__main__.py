"""
How fast rtpool is, beside its peers, in one run. README.md says what is measured and how the numbers are read.

    python -m tests.benchmarks [names…] [--only NAME] [--rounds N] [--quick] [--json FILE] [--check] [--list]
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time

from tests.benchmarks import goals, report
from tests.benchmarks.cases import all_cases
from tests.benchmarks.model import Settings
from tests.benchmarks.runner import measure

ROUNDS, QUICK_ROUNDS, QUICK_SCALE = 5, 1, 0.25


def main() -> int:
    """Measure what was asked for; 0 when all went well, 1 for a missed goal if `--check` asks, 2 for a failure."""
    cases = all_cases()
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="How fast rtpool is.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"of cases, all by default: {', '.join(cases)}")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write every round's figures there")
    parser.add_argument("--rounds", type=int, help=f"{ROUNDS} by default, {QUICK_ROUNDS} with --quick")
    parser.add_argument("--quick", action="store_true", help="fewer rounds of fewer messages; rough numbers")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="measure this participant alone")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a goal is missed")
    parser.add_argument("--list", action="store_true", help="tell the cases and measure nothing")
    asked = parser.parse_args()
    for name in asked.names:
        if name not in cases:
            parser.error(f"there is no case {name!r}; the cases are {', '.join(cases)}")
    if asked.list:
        for case in cases.values():
            print(f"{case.name:<10} {case.about}")
            for goal in case.goals:
                print(f"{'':<10} - {goal.of.variant}: {goal.text}")
        return 0
    rounds = asked.rounds or (QUICK_ROUNDS if asked.quick else ROUNDS)
    settings = Settings(rounds, QUICK_SCALE if asked.quick else 1.0, asked.only)
    chosen = [case for case in cases.values() if case.name in (asked.names or cases)]
    print(report.environment_line(), flush=True)
    started = time.monotonic()
    results = measure(chosen, settings, lambda line: print(line, flush=True))
    verdicts = goals.judge(results, chosen)
    if verdicts:
        print("", *goals.table(verdicts), sep="\n")
    print(f"\n{time.monotonic() - started:.0f} s")
    if asked.json:
        asked.json.write_text(report.as_json(results, verdicts))
    for failure in results.failures:
        print(f"\nFAILED {failure}", file=sys.stderr)
    if results.failures:
        return 2
    return 1 if asked.check and any(verdict.missed for verdict in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())

"""How long an import takes in a fresh interpreter: the median of many, which are started in turn."""

from __future__ import annotations

import statistics
import subprocess
import sys

from tests.benchmarks.clients.counting import arguments, say

CODE = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


def main() -> None:
    """Import what is asked for as often as is asked for."""
    told = arguments()
    command = [*told.get("python", [sys.executable]), "-c", CODE.format(told["modules"])]
    seconds = [
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(told["times"])
    ]
    say({"ms": statistics.median(seconds) * 1_000})


if __name__ == "__main__":
    main()

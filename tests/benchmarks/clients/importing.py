"""
How long an import takes in a fresh interpreter: the median of many, one after the other.

All of them find their modules compiled, in a folder of this run's own: some machines keep no compiled modules, or only
those of what is installed, and rtpool is measured from its source tree.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

from tests.benchmarks.clients.counting import arguments, say

CODE = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


def main() -> None:
    """Import what is asked for as often as is asked for."""
    told = arguments()
    command = [*told.get("python", [sys.executable]), "-c", CODE.format(told["modules"])]
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}

        def measure() -> float:
            return float(subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout)

        measure()  # compiles
        seconds = [measure() for _ in range(told["times"])]
    say({"ms": statistics.median(seconds) * 1_000})


if __name__ == "__main__":
    main()

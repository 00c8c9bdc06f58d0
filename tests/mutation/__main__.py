"""
Small faults put into the heart of the protocol, one by one: do its tests notice? ``python -m tests.mutation [NAME …]``.

It needs ``pip install mutmut``, works on a copy, and takes some minutes. A fault that no test notices is shown, unless
README.md beside this file says why it is none. Ends with 1 when one is shown.
"""

from __future__ import annotations

import collections
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent.parent
#: The modules, and the tests that are to notice.
TESTS = {
    "placement": ["test_placement.py"],
    "presence": ["test_presence.py"],
    "session": ["test_session.py", "test_session_details.py"],
    "states": ["test_states.py"],
}
CONFIG = """
[mutmut]
source_paths = rtpool
only_mutate = rtpool/protocol/{name}.py
pytest_add_cli_args =
    -p
    no:randomly
    -p
    no:cacheprovider
    --hypothesis-profile=mutation
pytest_add_cli_args_test_selection =
"""


def changes(diff: str) -> frozenset[str]:
    """The lines that a diff takes away and adds, without their indentation."""
    return frozenset(
        line[0] + line[1:].strip() for line in diff.splitlines() if re.match(r"[-+](?![-+]{2} )", line)
    )  # fmt: skip


def equivalent() -> set[frozenset[str]]:
    """The faults that are none, by README.md."""
    text = (pathlib.Path(__file__).parent / "README.md").read_text()
    return {changes(block) for block in re.findall(r"```diff\n(.*?)```", text, re.DOTALL)}


def mutate(name: str, folder: pathlib.Path) -> tuple[collections.Counter[str], list[str]]:
    """How many faults ended how, and the diffs of those that no test noticed."""
    for part in ("rtpool", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
    chosen = "".join(f"    tests/protocol/{file}\n" for file in TESTS[name])
    (folder / "setup.cfg").write_text((ROOT / "setup.cfg").read_text() + CONFIG.format(name=name) + chosen)

    def mutmut(*arguments: str, check: bool = True) -> str:
        command = [sys.executable, "-m", "mutmut", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if check and done.returncode:
            sys.exit(f"mutmut {' '.join(arguments)} failed:\n{done.stdout[-5_000:]}{done.stderr[-5_000:]}")
        return done.stdout

    mutmut("run", "--max-children", "2")
    outcomes = dict(line.strip().rsplit(": ", 1) for line in mutmut("results", "--all", "true").splitlines() if line)
    unnoticed = [fault for fault, outcome in outcomes.items() if outcome not in ("killed", "timeout")]
    return collections.Counter(outcomes.values()), [mutmut("show", fault) for fault in unnoticed]


def main(names: list[str]) -> int:
    """Print a line for each module, and every fault that no test noticed and that is one."""
    unknown = set(names) - set(TESTS)
    if unknown:
        print(f"no such module: {', '.join(sorted(unknown))}")
        return 2
    harmless, failed = equivalent(), False
    for name in names or TESTS:
        with tempfile.TemporaryDirectory() as folder:
            counts, survivors = mutate(name, pathlib.Path(folder))
        faults = [diff for diff in survivors if changes(diff) not in harmless]
        figures = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
        print(f"{name}: {counts.total()} faults: {figures}; {len(survivors) - len(faults)} are none", flush=True)
        for diff in faults:
            print(diff)
        failed = failed or bool(faults)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

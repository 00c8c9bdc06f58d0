"""Processes of the benchmarks: a client is run to its end and says one line of JSON, a server until its stdin ends."""

from __future__ import annotations

import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["ROOT", "Failed", "module", "run", "server"]

ROOT = pathlib.Path(__file__).parent.parent.parent
#: Seconds a client may take for one round, far more than any does.
PATIENCE = 60.0


class Failed(Exception):
    """A process did not do what it was started for; what it wrote to its stderr is told."""


def module(name: str) -> list[str]:
    """The command that runs a module of this package, from the source tree it lies in."""
    return [sys.executable, "-m", f"tests.benchmarks.{name}"]


def run(
    command: Sequence[str],
    arguments: Mapping[str, Any],
    *,
    env: Mapping[str, str] | None = None,
    timeout: float = PATIENCE,
) -> dict[str, float]:
    """
    Run a program that takes one JSON object as its last argument and prints one as its last line: its figures.

    Args:
        env: the whole environment, None for this process's.
        timeout: seconds it may take.

    Raises:
        Failed: it ended badly, or not in time.
    """
    try:
        done = subprocess.run(
            [*command, json.dumps(arguments)],
            capture_output=True, text=True, timeout=timeout, env=env, cwd=ROOT, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        told = error.stderr.decode(errors="replace") if isinstance(error.stderr, bytes) else error.stderr or ""
        raise Failed(f"{' '.join(command)} did not end within {timeout:.0f} s\n{told[-2000:]}") from None
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        raise Failed(f"{' '.join(command)} ended with {done.returncode}\n{done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(lines[-1])
    return figures


@contextlib.contextmanager
def server(name: str, arguments: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """
    A module of this package that serves until its stdin ends.

    Yields:
        What it said in its first line, a JSON object: its ports.
    """
    with tempfile.TemporaryFile("w+") as stderr:
        command = [*module(name), json.dumps(arguments)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=ROOT
        ) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            try:
                line = process.stdout.readline()
                if line:
                    yield json.loads(line)
            finally:
                process.stdin.close()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
        stderr.seek(0)
        told = stderr.read()
        if told or not line:
            raise Failed(f"{' '.join(command)} wrote to its stderr:\n{told[-2000:]}")

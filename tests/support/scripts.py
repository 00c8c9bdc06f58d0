"""Programs that use rtpool, run as processes of their own: how they end, and how soon after their last line."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from tests.support.wait import CAP

#: Every program begins so. `step(name)` has the test do something, `ready()` says that the last line is reached,
#: `waiting(names…)` says it once the main thread waits within a function of one of these names.
PREAMBLE = """
import atexit, gc, logging, os, signal, sys, threading, time
import rtpool
URL, KEY = sys.argv[1:3]

def step(name):
    print(name, flush=True)
    sys.stdin.readline()

def ready():
    print("ready", flush=True)

def waiting(*functions, main=threading.get_ident()):
    def watch():
        at, since = None, 0
        while True:
            frame, names = sys._current_frames()[main], set()
            now, since = (id(frame), frame.f_lasti), since + 1 if at == (id(frame), frame.f_lasti) else 0
            at = now
            while frame is not None:
                names.add(frame.f_code.co_name)
                frame = frame.f_back
            # Not while it starts a thread of the pool, where Python waits as well.
            if since > 10 and names & set(functions) and "start_thread" not in names:
                return ready()
            time.sleep(0.001)
    threading.Thread(target=watch, daemon=True, name="watch").start()

def new_pool(url=URL, **options):
    return rtpool.RealtimePool(url, **{"api_key": KEY, "base_delay": 0.05, **options})

def forever(_=None):
    threading.Event().wait()
"""


class Ended(NamedTuple):
    """How a program ended: its code, what it wrote after "ready" and to stderr, seconds since its last line."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def warnings(self) -> list[str]:
        """The `ResourceWarning`s it was told, without Python's hint at tracemalloc that follows each."""
        return [words for words in re.findall(r"ResourceWarning: (.*)", self.err) if not words.startswith("Enable")]

    @property
    def other_lines(self) -> list[str]:
        """What else it wrote to stderr; Python 3.13 quotes the line of a program that a warning is on."""
        return re.sub(
            r"^<.*ResourceWarning: .*\n(  .*\n)?|^.*ResourceWarning: .*\n", "", self.err, flags=re.M
        ).splitlines()


def run_script(
    body: str,
    *arguments: str,
    before: str = "",
    steps: Mapping[str, Callable[[], object]] | None = None,
    signals: Sequence[signal.Signals] = (),
    flags: Sequence[str] = ("-W", "default"),
    env: Mapping[str, str] | None = None,
    python: str = sys.executable,
) -> Ended:
    """
    Run a program to its end.

    Args:
        body: comes after `PREAMBLE`.
        before: comes before it, when nothing of rtpool was imported.
        arguments: the URL and the key, and more.
        steps: what is done when the program says a name by `step`.
        signals: sent when it is ready.
        flags: of the interpreter.
        env: variables beyond those of this process.
    """
    arguments = (*flags, "-c", before + PREAMBLE + body, *arguments)
    with subprocess.Popen(
        [python, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd(), **(env or {})},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        hangs = threading.Timer(4 * CAP, process.kill)
        hangs.start()
        began, out = None, ""
        for line in process.stdout:
            word = line.strip()
            if word == "ready":
                began = time.monotonic()
                for number in signals:
                    process.send_signal(number)
            elif word in (steps or {}):
                steps[word]()  # type: ignore[index]
                process.stdin.write("\n")
                process.stdin.flush()
            else:
                out += line
        err = process.stderr.read()
        process.wait()
        ended = time.monotonic()
        hangs.cancel()
        hangs.join()
    assert began is not None, err
    return Ended(process.returncode, out, err, ended - began)

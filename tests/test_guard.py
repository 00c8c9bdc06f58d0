"""The guard of the core's tests: it fails on each thing that is forbidden, and on nothing that tools do."""

from __future__ import annotations

import pathlib
import time

import pytest

from tests.support.checking_lock import CheckingLock
from tests.support.guard import watched

ROOT = pathlib.Path(__file__).parent.parent

#: What a test may not do, and what the guard says of it.
FORBIDDEN = {
    "import time\ntime.time()": "reads a clock: time.time ",
    "from time import monotonic as seconds\nseconds()": "reads a clock: time.monotonic ",
    "import time\ntime.perf_counter()": "reads a clock: time.perf_counter ",
    "import time\ntime.monotonic_ns()": "reads a clock: time.monotonic_ns ",
    "from datetime import datetime, timezone\ndatetime.now(timezone.utc)": "reads a clock: type.now ",
    "import datetime\ndatetime.date.today()": "reads a clock: type.today ",
    "import time\ntime.sleep(0)": "sleeps: time.sleep ",
    "import threading\nthread = threading.Thread(target=int)\nthread.start()\nthread.join()": (
        "starts a thread: threading.start "
    ),
    "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(1) as pool:\n    pool.submit(int)": (
        "starts a thread: threading.start "
    ),
    "import socket\nsocket.socket().close()": "opens a socket: socket.__init__ ",
    "import socket\nfor end in socket.socketpair():\n    end.close()": "opens a socket: socket.__init__ ",
    "import os\nos.urandom(1)": "draws a random number: posix.urandom ",
    "import secrets\nsecrets.token_hex()": "draws a random number: posix.urandom ",
    "import uuid\nuuid.uuid4()": "draws a random number: posix.urandom ",
    "import random\nrandom.shuffle([1, 2])": "draws a random number: Random.getrandbits ",
    "import random\nrandom.random()": "draws a random number: Random.random ",
    "import random\nrandom.Random()": "draws a random number: random.seed ",
    "import queue, contextlib\nwith contextlib.suppress(queue.Empty):\n    queue.Queue().get(timeout=0.001)": (
        "reads a clock: time.monotonic "
    ),
    "import time\ntry:\n    time.time()\nexcept BaseException:\n    pass": "reads a clock: time.time ",
}


@pytest.fixture
def guarded(pytester: pytest.Pytester) -> pytest.Pytester:
    """A project whose tests are guarded by the very file that guards ours."""
    pytester.makeconftest((ROOT / "tests" / "protocol" / "conftest.py").read_text())
    return pytester


@pytest.mark.parametrize("body", FORBIDDEN)
def test_a_core_test_fails_that_does_what_is_forbidden(guarded: pytest.Pytester, body: str) -> None:
    lines = "".join(f"    {line}\n" for line in body.split("\n"))
    guarded.makepyfile(f"def test_it():\n{lines}")
    done = guarded.runpytest_inprocess("-p", "no:randomly")
    done.assert_outcomes(passed=1, errors=1)
    done.stdout.fnmatch_lines([f"E *{FORBIDDEN[body]}at *test_a_core_test_fails_that_does_what_is_forbidden.py:*"])


def test_a_core_test_fails_when_the_code_it_calls_does_what_is_forbidden(guarded: pytest.Pytester) -> None:
    guarded.makepyfile(
        ours="import time\ndef now():\n    return time.monotonic()",
        test_it="import ours\ndef test_it():\n    ours.now()",
    )
    done = guarded.runpytest_inprocess("-p", "no:randomly")
    done.assert_outcomes(passed=1, errors=1)
    done.stdout.fnmatch_lines(["E *reads a clock: time.monotonic at *ours.py:3"])


def test_what_tools_do_and_what_a_seed_decides_is_allowed(guarded: pytest.Pytester) -> None:
    guarded.makepyfile(
        """
        import random
        from datetime import datetime, timezone

        from hypothesis import given, strategies as st

        @given(st.lists(st.integers()), st.randoms(use_true_random=False))
        def test_hypothesis(numbers, rng):
            rng.shuffle(numbers)
            assert datetime.fromtimestamp(0, timezone.utc).year == 1970

        def test_a_seed(tmp_path):
            assert random.Random(7).random() == random.Random(7).random()
            assert tmp_path.exists()
        """
    )
    guarded.runpytest_inprocess("-p", "no:randomly").assert_outcomes(passed=2)


def test_the_guard_goes_on_watching_behind_and_under_a_lock_of_rtpools() -> None:
    lock = CheckingLock()
    with watched() as found:
        with lock:
            time.monotonic()
        time.time()
    assert [line.split(" at ")[0] for line in found] == (["reads a clock: time.monotonic", "reads a clock: time.time"])

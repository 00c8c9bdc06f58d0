"""However a program ends, it ends at once, with its own exit code, and with no word but one ResourceWarning a pool."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator

import pytest

from rtpool.testing import NO_REPLY, RealtimeServer
from tests.conftest import Figure
from tests.support.programs import CLOSED, OPEN, SUBSCRIBED
from tests.support.scripts import Ended, run_script

#: Seconds from a program's last line to its end; a pool takes one of them at the most.
LIMIT = 2.0
#: Further interpreters, with rtpool's requirements, that run every program here: paths, separated by colons.
PYTHONS = [sys.executable, *filter(None, os.environ.get("RTPOOL_PYTHONS", "").split(":"))]

Run = Callable[..., Ended]


@pytest.fixture(params=PYTHONS, ids=lambda path: path.split(os.sep)[-3] if len(PYTHONS) > 1 else "here")
def run(request: pytest.FixtureRequest, server: RealtimeServer, figure: Figure) -> Run:
    """Runs a program against the server, and holds it to `LIMIT`."""

    def run(body: str, url: str | None = None, *, once: bool = False, **options: object) -> Ended:
        key = options.pop("key", server.api_key)
        for attempt in range(1 if once else 3):  # others where the machine was too busy for the first
            ended = run_script(body, url or server.url, key, python=request.param, **options)  # type: ignore[arg-type]
            figure(f"ended {ended.seconds:.2f} s after its last line, code {ended.code}{' again' * attempt}")
            assert server.api_key not in ended.out + ended.err
            if ended.seconds < LIMIT:
                return ended
        raise AssertionError(f"{ended.seconds:.2f} s: {ended}")

    return run


@contextlib.contextmanager
def silence() -> Iterator[str]:
    """A port of this machine where a server accepts and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield f"127.0.0.1:{silent.getsockname()[1]}"


@contextlib.contextmanager
def nobody() -> Iterator[str]:
    """A port of this machine where nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@pytest.mark.parametrize("what", OPEN)
def test_a_pool_open_at_the_end_of_a_script_is_closed_with_one_warning(
    what: str, server: RealtimeServer, run: Run
) -> None:
    ended = run(OPEN[what] + "ready()")
    assert ended.code == 0, ended
    assert_one_warning(ended)
    server.wait_for(lambda s: not s.connections)


def assert_one_warning(ended: Ended, pools: int = 1) -> None:
    assert (len(ended.warnings), ended.other_lines) == (pools, []), ended.err
    for words in ended.warnings:
        assert re.search(r"^the pool \d+ of wss?://\S+ was open at exit; use `with .*close\(\)$", words), words


@pytest.mark.parametrize("state", ["frozen", "not reading", "full"])
def test_a_peer_that_is_silent_holds_up_no_exit(state: str, server: RealtimeServer, run: Run) -> None:
    def befall() -> None:
        connection = server.connections[0]
        connection.freeze() if state == "frozen" else connection.pause_reading()

    body = SUBSCRIBED + "step('subscribed')\n"
    if state == "full":
        body += "pushes = [channel.send_broadcast('x', bytes(1_000_000)) for _ in range(20)]\n"
    ended = run(body + "ready()", steps={"subscribed": befall})
    assert ended.code == 0, ended
    assert_one_warning(ended)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_handshake_that_is_stuck_holds_up_no_exit(scheme: str, run: Run) -> None:
    with silence() as where:
        ended = run(
            "pool = new_pool()\npool.channel('room').subscribe(wait=False)\n"
            "while not pool._engine.dialer._dials: time.sleep(0.005)\nready()",
            f"{scheme}://{where}",
        )
    assert ended.code == 0, ended
    assert_one_warning(ended)


def test_a_pool_that_reconnects_holds_up_no_exit(run: Run) -> None:
    with RealtimeServer() as gone, nobody() as where:
        ended = run(
            SUBSCRIBED + "step('subscribed')\nwhile pool.stats().reconnect_attempts < 2: time.sleep(0.005)\nready()",
            gone.url,
            once=True,
            key=gone.api_key,
            steps={"subscribed": gone.close},
        )
        assert ended.code == 0, ended
        assert_one_warning(ended)
        ended = run("pool = new_pool()\npool.channel('room').subscribe(wait=False)\nready()", f"http://{where}")
        assert ended.code == 0, ended
        assert_one_warning(ended)


def test_pools_without_number_share_the_second_that_an_exit_takes(server: RealtimeServer, run: Run) -> None:
    """Each says goodbye to a peer that is silent, which takes half of it; none is left out, or not waited for."""
    ended = run(
        """
logging.basicConfig(level="WARNING")
pools = [new_pool() for _ in range(6)]
for number, pool in enumerate(pools):
    pool.channel(f"room {number}").subscribe()
step("subscribed")
ready()
""",
        steps={"subscribed": lambda: [connection.freeze() for connection in server.connections]},
    )
    assert ended.code == 0, ended
    assert len(ended.warnings) == 6, ended
    assert ended.err.count("is closed: the process ends") == 6, ended
    assert "did not stop" not in ended.err, ended


#: How a program may end, with the code and what it says then.
ENDINGS = {
    "sys.exit(3)": (3, ""),
    "sys.exit('no')": (1, "no\n"),
    "raise RuntimeError('x')": (1, "RuntimeError: x\n"),
    "raise SystemExit": (0, ""),
    "os._exit(4)": (4, ""),
    "os.kill(os.getpid(), signal.SIGTERM)": (-signal.SIGTERM, ""),
    "os.abort()": (-signal.SIGABRT, ""),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_exit_code_is_the_programs_own(ending: str, run: Run) -> None:
    code, words = ENDINGS[ending]
    ended = run(SUBSCRIBED + "ready()\n" + ending)
    assert ended.code == code, ended
    assert len(ended.warnings) == ending.startswith(("sys.", "raise")), ended
    if "RuntimeError" not in words:
        assert ended.other_lines == words.splitlines(), ended


def test_an_exception_is_told_and_nothing_else_where_warnings_are_off(run: Run) -> None:
    ended = run(SUBSCRIBED + "ready()\nraise RuntimeError('x')", flags=[])
    assert ended.code == 1, ended
    assert re.fullmatch(r"Traceback.*\n(  .*\n)+RuntimeError: x\n", ended.err), ended


@pytest.mark.parametrize("what", CLOSED)
def test_a_pool_that_is_closed_or_shared_by_design_gives_no_warning(
    what: str, server: RealtimeServer, run: Run
) -> None:
    ended = run(CLOSED[what] + "ready()")
    assert (ended.code, ended.err) == (0, ""), ended
    server.wait_for(lambda s: not s.connections)


def test_sys_exit_in_user_code_takes_no_thread_of_ours_along(run: Run) -> None:
    ended = run(
        """
logging.lastResort = None
calls, done = [], threading.Event()
def token():
    calls.append("token")
    if calls.count("token") == 1:
        sys.exit(5)
    return KEY
def callback(message):
    if message.payload["n"] == 9:
        done.set()
    sys.exit(5)
def hook(error, callback, event):
    calls.append("hook")
    sys.exit(5)
pool = new_pool(num_workers=1, access_token=token).on_callback_error(hook).on_status(callback)
channel = pool.channel("room", receive_own=True).on_broadcast("*", callback).subscribe()
for n in range(10):
    channel.send_broadcast("x", {"n": n}).add_done_callback(sys.exit)
assert done.wait(10)
names = [thread.name for thread in threading.enumerate()]
assert f"rtpool-{pool._engine.name}-worker-0" in names, names
assert pool.close()
ready()
print(calls.count("hook") >= 20, calls.count("token"))
""",
    )
    assert (ended.code, ended.out, ended.err) == (0, "True 2\n", ""), ended


#: A main thread that waits for rtpool: what in, and in which function. Each is preceded by `SUBSCRIBED`.
WAITS = {
    "pool.run_forever()": "run_forever",
    "channel.get()": "take",
    "channel.get(timeout=60)": "take",
    "list(channel.events())": "take",
    "new_pool('http://SILENT').channel('room').subscribe(timeout=60)": "subscribe",
    "pool.channel('mute').subscribe(timeout=60)": "subscribe",
    "new_pool('http://SILENT').connect(timeout=60)": "connect",
    "pool.on_changes('mute', print, timeout=60)": "subscribe",
    "frozen.push('x', {}, timeout=60).result()": "result",
    "frozen.unsubscribe(timeout=60)": "unsubscribe",
    "pool.unsubscribe_all(timeout=60)": "unsubscribe_all",
    "[slow.send_broadcast('x', {}, timeout=60) for _ in range(200)]": "acquire",
    "new_pool('http://SILENT').broadcast('room', 'x', {}, timeout=60)": "broadcast",
    "stuck.close(timeout=60)": "close",
    "with stuck: pass": "__exit__",
}

PREPARED = """
pool = new_pool()
channel = pool.channel("room").subscribe()
if "frozen." in BODY or "unsubscribe_all" in BODY:
    frozen = pool.channel("frozen").subscribe()
    step("freeze")
if "slow." in BODY:
    slow = new_pool(max_events_per_second=1, send_buffer_limit=2).channel("slow").subscribe()
if "stuck" in BODY:
    begun, stuck = threading.Event(), new_pool()
    def callback(message):
        begun.set()
        forever()
    stuck.channel("room", receive_own=True).on_broadcast("*", callback).subscribe().send_broadcast("x", {})
    begun.wait()
waiting(WAITS_IN)
"""


@pytest.fixture
def waiting(server: RealtimeServer, run: Run) -> Iterator[Run]:
    """Runs a program whose main thread waits in one of `WAITS`, and sends it signals then."""
    server.on_join = lambda topic, payload, connection: NO_REPLY if "mute" in topic or "changes:" in topic else None

    def run_waiting(wait: str, then: str, **options: object) -> Ended:
        wait_ = wait.replace("SILENT", where)
        body = PREPARED.replace("WAITS_IN", repr(WAITS.get(wait, "run_forever"))).replace("BODY", repr(wait_))
        steps = {"freeze": lambda: server.connections[0].freeze(), **options.pop("steps", {})}  # type: ignore[dict-item]
        return run(body + then.replace("WAIT", wait_), steps=steps, **options)

    with silence() as where:
        yield run_waiting


@pytest.mark.parametrize("wait", WAITS)
def test_ctrl_c_is_heard_whatever_the_main_thread_waits_for(wait: str, waiting: Run) -> None:
    ended = waiting(
        wait,
        """
try:
    WAIT
except KeyboardInterrupt:
    print("interrupted")
""",
        signals=[signal.SIGINT],
    )
    forever = wait == "pool.run_forever()"
    assert (ended.code, ended.out) == (0, "" if forever else "interrupted\n"), ended
    assert ended.other_lines == [], ended


def test_ctrl_c_that_nobody_catches_ends_a_program_as_usual(waiting: Run) -> None:
    ended = waiting("channel.get()", "WAIT", signals=[signal.SIGINT])
    assert ended.code == -signal.SIGINT, ended
    assert len(ended.warnings) == 1, ended
    assert re.fullmatch(r"Traceback.*\n(  .*\n)+KeyboardInterrupt", "\n".join(ended.other_lines)), ended


def test_ctrl_c_gives_a_subscription_up_and_it_can_be_asked_for_again(server: RealtimeServer, run: Run) -> None:
    def speak() -> None:
        server.on_join = None

    server.on_join = lambda topic, payload, connection: NO_REPLY
    ended = run(
        """
pool = new_pool(join_timeout=0.5)  # so long it waits for the word that the join is left
pool.connect()
channel = pool.channel("room")
waiting("subscribe")
try:
    channel.subscribe(timeout=60)
except KeyboardInterrupt:
    print(channel.state.value, pool.channels())
    step("speak")
    channel.subscribe(timeout=60)
    print(channel.state.value)
""",
        signals=[signal.SIGINT],
        steps={"speak": speak},
        once=True,
    )
    assert ended.out == "closed []\njoined\n", ended


@pytest.mark.parametrize("what", ["subscribed", "never used", "get_pool"])
def test_sigterm_closes_the_pool_and_run_forever_returns_where_it_was_asked_to(
    what: str, server: RealtimeServer, run: Run
) -> None:
    ended = run(
        {"subscribed": SUBSCRIBED, **CLOSED}[what]
        + """
def own(number, frame):
    print("own")
signal.signal(signal.SIGTERM, own)
waiting("run_forever")
pool.run_forever(handle_sigterm=True)
print(pool.closed, signal.getsignal(signal.SIGTERM) is own)
os.kill(os.getpid(), signal.SIGTERM)
""",
        signals=[signal.SIGTERM],
    )
    assert (ended.code, ended.out, ended.err) == (0, "True True\nown\n", ""), ended
    server.wait_for(lambda s: not s.connections)


def test_without_being_asked_nothing_handles_sigterm_and_it_ends_the_process(run: Run) -> None:
    ended = run(SUBSCRIBED + "waiting('run_forever')\npool.run_forever()", signals=[signal.SIGTERM])
    assert (ended.code, ended.out, ended.err) == (-signal.SIGTERM, "", ""), ended


def test_further_sigterms_do_nothing_while_the_first_closes(run: Run) -> None:
    ended = run(
        """
pool, begun, terms = new_pool(), threading.Event(), []
def callback(message):
    begun.set()
    while not pool.closed:
        time.sleep(0.001)
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
    print("callback")
pool.channel("room", receive_own=True).on_broadcast("*", callback).subscribe().send_broadcast("x", {})
begun.wait()
waiting("run_forever")
pool.run_forever(handle_sigterm=True)
print("returned", signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
""",
        signals=[signal.SIGTERM],
    )
    assert (ended.code, ended.out, ended.err) == (0, "callback\nreturned True\n", ""), ended


def test_ctrl_c_gives_back_the_handler_of_sigterm_too(run: Run) -> None:
    ended = run(
        SUBSCRIBED + "waiting('run_forever')\npool.run_forever(handle_sigterm=True)\n"
        "print(pool.closed, signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)",
        signals=[signal.SIGINT],
    )
    assert (ended.code, ended.out, ended.err) == (0, "True True\n", ""), ended


def test_a_thread_that_works_on_when_the_main_thread_has_ended_is_served_to_its_end(run: Run) -> None:
    ended = run(
        """
pool, heard, ending = new_pool(), threading.Semaphore(0), threading.Event()
channel = pool.channel("room", receive_own=True).on_broadcast("*", lambda m: heard.release()).subscribe()
def work():
    threading.main_thread().join()
    for n in range(20):
        channel.send_broadcast("x", {"n": n}).result()
        assert heard.acquire(timeout=10)
    pool.channel("another").subscribe()
    print("worked")
threading.Thread(target=work).start()
ready()
"""
    )
    assert (ended.code, ended.out) == (0, "worked\n"), ended
    assert_one_warning(ended)


def test_a_pool_first_used_when_the_main_thread_has_ended_works_or_says_why_not(run: Run) -> None:
    """Python 3.12 starts no thread then."""
    ended = run(
        """
def work():
    threading.main_thread().join()
    for _ in range(2):
        try:
            with new_pool() as pool:
                pool.channel("room").subscribe()
                print("subscribed")
        except rtpool.ConnectionFailed as error:
            print(error)
threading.Thread(target=work).start()
ready()
"""
    )
    assert (ended.code, ended.err) == (0, ""), ended
    refused = r"(the pool \d could not start: can't create new thread at interpreter shutdown\n){2}"
    assert re.fullmatch(rf"subscribed\nsubscribed\n|{refused}", ended.out), ended


def test_a_thread_that_ends_by_sys_exit_is_no_end_of_the_program(run: Run) -> None:
    ended = run(
        """
pool = new_pool()
def work():
    pool.channel("room").subscribe()
    sys.exit(7)
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(pool.channels()[0].is_subscribed)
ready()
"""
    )
    assert (ended.code, ended.out) == (0, "True\n"), ended


LATE = """
def late(fresh):
    try:
        with_pool = new_pool() if fresh else pool
        with_pool.channel("late").subscribe(timeout=1)
        print("subscribed")
    except rtpool.RtpoolError as error:
        print(type(error).__name__)
"""


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("fresh", [False, True], ids=["the pool", "a new pool"])
def test_subscribing_in_an_exit_handler_comes_to_an_end(order: str, fresh: bool, run: Run) -> None:
    """Handlers run in reverse order; those registered before rtpool was imported find the pool closed."""
    register = f"atexit.register(late, {fresh})\n"
    if order == "before":
        # Exit handlers run last in, first out: this one runs after rtpool's own.
        register = f"from rtpool.engine import engine\natexit.unregister(engine._stop_at_exit)\n{register}"
        register += "atexit.register(engine._stop_at_exit)\n"
    ended = run(SUBSCRIBED + LATE + register + "ready()")
    assert ended.code == 0, ended
    assert ended.other_lines == [], ended
    expected = {"subscribed"} if order == "after" and not fresh else {"subscribed", "PoolClosed", "ConnectionFailed"}
    assert ended.out.strip() in expected, ended


def test_threads_of_executors_and_pools_end_in_any_order(run: Run) -> None:
    ended = run(
        """
from concurrent.futures import ThreadPoolExecutor
pool = new_pool()
channel = pool.channel("room", receive_own=True).subscribe()
executor = ThreadPoolExecutor(4)
sent = [executor.submit(lambda n=n: channel.send_broadcast("x", {"n": n}).result()) for n in range(50)]
def work(n):
    channel.send_broadcast("y", {"n": n}).result()
    time.sleep(0.1)
[executor.submit(work, n) for n in range(4)]
ready()
"""
    )
    assert ended.code == 0, ended
    assert_one_warning(ended)


def test_an_exit_with_everything_logged_tells_no_trouble_of_logging(run: Run) -> None:
    ended = run(
        "logging.basicConfig(level='DEBUG')\n" + SUBSCRIBED + "ready()",
    )
    assert ended.code == 0, ended
    assert "Traceback" not in ended.err, ended
    assert "Logging error" not in ended.err, ended


#: Ways to start Python in which warnings, and what goes wrong late, are not passed over in silence.
MODES = {
    "-X dev": (["-X", "dev"], {}),
    "PYTHONDEVMODE": ([], {"PYTHONDEVMODE": "1"}),
    "-W error": (["-W", "error"], {}),
    "-X faulthandler -O": (["-X", "faulthandler", "-O", "-W", "default"], {}),
}


@pytest.mark.parametrize(
    ("mode", "what"), [*((mode, "subscribed") for mode in MODES), ("-X dev", "a callback that never returns")]
)
def test_the_strict_modes_of_python_find_nothing_but_the_pool_that_is_open(mode: str, what: str, run: Run) -> None:
    flags, env = MODES[mode]
    ended = run(OPEN[what] + "another = new_pool()\nanother.connect()\nready()", flags=flags, env=env)
    assert ended.code == 0, ended
    assert len(ended.warnings) == 2, ended
    assert all("open at exit" in words for words in ended.warnings), ended
    if mode != "-W error":
        assert ended.other_lines == [], ended
    else:
        assert ended.err.count("Traceback") == 2, ended


def test_a_second_ctrl_c_during_the_exit_ends_it_sooner(run: Run) -> None:
    body = OPEN["a callback that never returns"] + "waiting('_stop_at_exit')"
    ended = run(body, signals=[signal.SIGINT])
    assert ended.code == 0, ended

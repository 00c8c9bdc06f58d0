"""Promise: under gevent's monkey patches a pool works as ever and stops nobody, or it says what is wrong."""

from __future__ import annotations

import os
import pathlib
import signal
import ssl
from collections.abc import Iterator

import pytest
import trustme

from rtpool.testing import RealtimeServer, faults
from tests.servers.conftest import ROOT, Goodbyes, Guests, Run, need

PATCHED = "from gevent import monkey; monkey.patch_all()\n"


@pytest.fixture(autouse=True)
def gevent() -> None:
    need("gevent")


@pytest.fixture(params=["plain", "tls"])
def server(
    request: pytest.FixtureRequest, authority: trustme.CA, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RealtimeServer]:
    """A server for the guests, of either kind."""
    context = None
    if request.param == "tls":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
        monkeypatch.setenv("GUEST_CA", str(tmp_path / "authority.pem"))
    with RealtimeServer(ssl_context=context) as server:
        yield server


plain = pytest.mark.parametrize("server", ["plain"], indirect=True)

EVERYTHING = (
    PATCHED
    + """
import os, threading, time
import gevent
import rtpool
from tests.servers import guest

pool, hub = guest.pool, gevent.get_hub()
ticks = []

def tick():
    while True:
        gevent.sleep(0.005)
        ticks.append(time.monotonic())

ticking = gevent.spawn(tick)
heard, gaps, at_once = {}, set(), [0, 0]

def hear(message):
    at_once[0] += 1
    at_once[1] = max(at_once)
    time.sleep(0.02)
    at_once[0] -= 1
    heard.setdefault(message.topic, []).append(message.payload["number"])

def join(number):
    channel = pool.channel(f"room {number}", receive_own=True, ack=True)
    channel.on_broadcast("word", hear).on_gap(lambda gap: gaps.add(gap.topic))
    return channel.subscribe(timeout=60)

def speak(channel, numbers):
    for number in numbers:
        channel.send_broadcast("word", {"number": number}).result(30)

def everywhere(call, *args):
    greenlets = [gevent.spawn(call, channel, *args) for channel in channels]
    gevent.joinall(greenlets, raise_error=True)

channels = [greenlet.get() for greenlet in [gevent.spawn(join, number) for number in range(100)]]
everywhere(speak, range(3))
guest.wait_until(lambda: all(heard.get(channel.topic) == [0, 1, 2] for channel in channels))
assert at_once[1] == 4, "as many callbacks as workers ran at once"

# A reader in a greenlet, a REST call, and more than any buffer holds, to and fro.
reader = pool.channel("reader").subscribe()
reading = gevent.spawn(reader.get, 30)
pool.broadcast("reader", "word", {"number": 1})
assert reading.get(timeout=30).payload == {"number": 1}
large = pool.channel("large", receive_own=True)
taken = []
large.on_broadcast("lump", lambda message: taken.append(len(message.payload))).subscribe()
pushes = [large.send_broadcast("lump", bytes(400_000)) for _ in range(20)]
for push in pushes:
    push.result(30)
guest.wait_until(lambda: taken == [400_000] * 20)

# Who waits stops nobody.
before = len(ticks)
try:
    reader.get(timeout=0.5)
    raise AssertionError("nothing was sent")
except rtpool.ReceiveTimeout:
    assert len(ticks) - before > 20, len(ticks) - before
ticking.kill()
spent = time.process_time()
gevent.sleep(1)
spent = time.process_time() - spent
assert spent < 0.2, f"{spent} s of CPU in a second in which nothing happened"

print("cut", flush=True)
guest.wait_until(lambda: len(gaps) == 100)
guest.wait_until(lambda: all(channel.is_subscribed for channel in channels))
everywhere(speak, [3])
guest.wait_until(lambda: all(heard[channel.topic] == [0, 1, 2, 3] for channel in channels))
assert gevent.spawn(pool.close).get(timeout=10)
left = [thread.name for thread in threading.enumerate() if thread.name.startswith("rtpool-")]
assert not left, left
print("done", flush=True)
"""
)


def test_a_patched_process_does_everything_and_its_other_greenlets_run_all_the_time(
    server: RealtimeServer, run: Run
) -> None:
    program = run(script=EVERYTHING)
    program.wait_for(lambda: "cut" in program.out(), "all was heard")
    server.disconnect_all()
    program.wait_for(lambda: "done" in program.out(), "all was heard again")
    assert program.ends() == ""
    server.wait_for(lambda s: not s.connections)


@plain
@pytest.mark.parametrize(
    ("ending", "code"), [("", 0), ("sys.exit(3)", 3), ("pool.run_forever()", 0), ("channel.get()", -signal.SIGINT)]
)
def test_a_patched_process_exits_promptly_whatever_ends_it(
    server: RealtimeServer, run: Run, tmp_path: pathlib.Path, ending: str, code: int
) -> None:
    interrupted = ending.startswith(("pool.", "channel."))
    script = f"""
import os, sys, time
import rtpool
pool = rtpool.RealtimePool(os.environ["GUEST_URL"], api_key=os.environ["GUEST_KEY"])
channel = pool.channel("room").on_broadcast("*", print).subscribe()
print("ready", flush=True)
while not {interrupted} and not os.path.exists("go"):
    time.sleep(0.01)
{ending}
"""
    program = run(script=PATCHED + script)
    program.wait_for(lambda: "ready" in program.out(), "it was subscribed")
    goodbyes = Goodbyes(server)
    (tmp_path / "go").touch()
    err = program.ends(signal.SIGINT if interrupted else None, code=code)
    closed = ending == "pool.run_forever()"
    assert err.count("was open at exit") == (0 if closed else 1), err
    assert ("Traceback" in err) == (ending == "channel.get()"), err
    assert goodbyes.all_said()


@plain
@pytest.mark.parametrize("where", ["a callback", "the I/O thread"])
def test_ctrl_c_that_strikes_a_thread_of_the_pools_ends_a_patched_program(
    server: RealtimeServer, run: Run, where: str
) -> None:
    """A signal is handled in whatever greenlet runs at the moment."""
    script = f"""
import signal
from tests.servers import guest

def strike(message=None):
    signal.raise_signal(signal.SIGINT)

def strike_loop(message):
    guest.pool._engine.post(strike)

guest.channel.on_broadcast("strike", {"strike" if where == "a callback" else "strike_loop"}).subscribe()
while True:
    guest.channel.get()
"""
    program = run(script=PATCHED + script)
    program.wait_for(lambda: server.members("room"), "it is subscribed")
    server.broadcast("room", "strike", {})
    err = program.ends(code=-signal.SIGINT)
    assert "KeyboardInterrupt" in err


REFUSED = """
import rtpool
from gevent import monkey
from tests.servers import guest

def refused(words):
    for attempt in (guest.channel.subscribe, guest.pool.connect):
        try:
            attempt()
        except rtpool.MonkeyPatchConflict as error:
            assert words in str(error), error
        else:
            raise AssertionError("it was not refused")

monkey.patch_socket()
refused("has patched socket of this process, but not threading, select, selectors, ssl: ")
monkey.patch_select()
refused("but not threading, selectors, ssl: ")
monkey.patch_selectors()
refused("but not threading, ssl: ")
monkey.patch_ssl()
refused("but not threading: ")
assert not guest.pool.closed
monkey.patch_all()
guest.channel.subscribe()
guest.wait_until(lambda: guest.heard)
guest.pool.close()
"""


@plain
def test_half_a_patch_is_refused_and_a_whole_one_may_come_after_the_import(guests: Guests, run: Run) -> None:
    program = run(script=REFUSED)
    program.wait_for(lambda: guests.server.members("room"), "it was subscribed")
    guests.call(1)
    guests.say(1)
    assert program.ends() == ""


TOO_LATE = """
import logging
import gevent
import rtpool
from gevent import monkey
from tests.servers import guest

logging.basicConfig()
guest.channel.subscribe()
while not guest.heard:  # gevent without patches: threads and greenlets side by side
    gevent.sleep(0.01)
monkey.patch_all()
try:
    guest.channel.subscribe()
    raise AssertionError("it was not refused")
except rtpool.MonkeyPatchConflict as error:
    assert "after the threads of pool" in str(error), error
guest.wait_until(lambda: guest.pool.closed)
assert guest.pool.close()
fresh = rtpool.RealtimePool(guest.os.environ["GUEST_URL"], api_key=guest.os.environ["GUEST_KEY"])
with fresh:
    fresh.channel("another").subscribe()
print("done", flush=True)
"""


@plain
def test_a_patch_that_comes_too_late_is_refused_and_a_new_pool_works(guests: Guests, run: Run) -> None:
    program = run(script=TOO_LATE)
    guests.wait(1)
    guests.say(1)
    err = program.ends()
    assert "done" in program.out()
    assert "MonkeyPatchConflict" in err, "the I/O thread told why it ended"


CONTEXT = """
import os, ssl
import rtpool
context = ssl.create_default_context(cafile=os.environ["GUEST_CA"])
from gevent import monkey; monkey.patch_all()
with rtpool.RealtimePool(
    os.environ["GUEST_URL"], api_key=os.environ["GUEST_KEY"], ssl_context=context
) as pool:
    pool.connect()
"""


@pytest.mark.parametrize("server", ["tls"], indirect=True)
@pytest.mark.filterwarnings("default")
def test_an_ssl_context_from_before_the_patch_is_refused(server: RealtimeServer, run: Run) -> None:
    program = run(script=CONTEXT)
    assert "ssl_context was made before gevent patched the process" in program.ends(code=1)


FORKING = """
import os, pathlib, sys, time
import gevent
from tests.servers import guest

over = []

def be_busy(message):
    time.sleep(0.5)
    over.append(os.getpid())

busy = guest.pool.channel("busy").on_broadcast("*", be_busy).subscribe()
guest.channel.subscribe()
guest.pool.broadcast("busy", "word", {})
gevent.sleep(0.1)  # a callback is in its midst, and its greenlet will be in both
assert [details.queued for details in guest.pool.stats().subscription_details if details.topic == "busy"] == [1]
pid = os.fork()
if pid == 0:
    while not over or not pathlib.Path("go").exists():  # that greenlet ends here, too, and without a word
        time.sleep(0.01)
    guest.channel.subscribe()
    guest.pool.run_forever()
    os._exit(1)
print("forked", flush=True)
os.waitpid(pid, 0)
assert guest.pool.close()
"""


@pytest.mark.parametrize("mode", ["close", "resubscribe"])
def test_a_patched_child_has_its_parents_greenlets_and_yet_leaves_the_parents_sockets_alone(
    server: RealtimeServer, guests: Guests, run: Run, tmp_path: pathlib.Path, mode: str
) -> None:
    program = run(script=PATCHED + FORKING, GUEST_AFTER_FORK=mode)
    program.wait_for(lambda: "forked" in program.out(), "it forked")
    guests.wait(1 if mode == "close" else 2)
    for number in range(50):
        guests.say(number)
    (tmp_path / "go").touch()
    answers = guests.call(2)
    parent, (child,) = answers.pop(program.pid), answers.values()
    assert (parent.connection, parent.heard, parent.gaps) == (1, list(range(50)), [])
    assert child.parent == program.pid
    if mode == "resubscribe":
        assert (child.heard, child.gaps) == (list(range(50)), ["fork"])
    events = [message.event for message in server.received if message.connection_id == 1]
    assert events == ["phx_join", "phx_join", "broadcast"], "the child said nothing there"
    os.kill(child.pid, signal.SIGKILL)
    assert program.ends() == ""


DIALING = """
import os, pathlib, time
from tests.servers import guest

guest.channel.subscribe(wait=False)
while not pathlib.Path("go").exists():
    time.sleep(0.01)
pid = os.fork()
guest.channel.subscribe()
print("subscribed", flush=True)
if pid == 0:
    guest.pool.run_forever()
    os._exit(1)
os.waitpid(pid, 0)
assert guest.pool.close()
"""


@plain
@pytest.mark.parametrize("mode", ["close", "resubscribe"])
def test_a_dial_that_is_under_way_when_a_patched_process_forks_goes_on_in_the_parent_alone(
    server: RealtimeServer, guests: Guests, run: Run, tmp_path: pathlib.Path, mode: str
) -> None:
    slow = server.inject(faults.Delay(1.0), on=faults.Upgrading())
    program = run(script=PATCHED + DIALING, GUEST_AFTER_FORK=mode)
    slow.wait()
    (tmp_path / "go").touch()
    program.wait_for(lambda: program.out().count("subscribed") == 2, "both subscribed")
    answers = guests.call(2)
    assert server.connections_total == 2
    os.kill((answers.keys() - {program.pid}).pop(), signal.SIGKILL)
    assert program.ends() == ""


SUITE = """
from gevent import monkey; monkey.patch_all()
import sys
import pytest

class Plugin:
    def pytest_sessionstart(self):
        from tests.support import checking_lock
        checking_lock.WATCHES_CALLS = False  # gevent's own are Python, and called with a lock held

sys.exit(pytest.main(sys.argv[1:], plugins=[Plugin()]))
"""
#: What sees most of threads, timers and sockets, and runs no event loop of its own beside the server's.
FILES = ("engine/test_transport.py", "engine/test_io_loop.py")


@plain
def test_the_tests_of_threads_and_sockets_pass_when_all_of_them_are_patched(run: Run) -> None:
    files = [str(ROOT / "tests" / file) for file in FILES]
    program = run("-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *files, script=SUITE, PYTHONWARNINGS="")
    program.ends(within=100)
    assert "passed" in program.out()
    assert "skipped" not in program.out()

"""Pools in the processes that `multiprocessing`, and servers like uWSGI, make."""

from __future__ import annotations

import pathlib
import signal

import pytest

from rtpool.testing import RealtimeServer
from tests.servers.conftest import Goodbyes, Guests, Run

METHODS = """
import multiprocessing, pathlib, sys, time
from concurrent.futures import ProcessPoolExecutor
from tests.servers import guest

def join():
    guest.channel.subscribe()

def stay():
    join()
    wait(None)
    guest.channel.send_broadcast("last", {})  # and at once the end

def wait(_):
    while not pathlib.Path("go").exists():
        time.sleep(0.01)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    if len(sys.argv) > 2:
        join()
    process = context.Process(target=stay)
    process.start()
    with context.Pool(2, join) as workers, ProcessPoolExecutor(2, context, join) as executor:
        waiting = [executor.submit(wait, None) for _ in range(2)]
        for handle in (guest.pool, guest.channel):
            for give in (
                lambda: workers.apply(print, (handle,)),
                lambda: executor.submit(print, handle).result(),
            ):
                try:
                    give()
                except TypeError as error:
                    print(error, flush=True)
        workers.map(wait, range(2))
        [future.result() for future in waiting]
        workers.close()
        workers.join()
    process.join()
    sys.exit(process.exitcode)
"""


@pytest.mark.parametrize(
    ("method", "subscribed"), [("fork", False), ("fork", True), ("forkserver", True), ("spawn", True)]
)
def test_every_process_of_multiprocessing_has_a_connection_of_its_own_and_says_goodbye(
    server: RealtimeServer, guests: Guests, run: Run, tmp_path: pathlib.Path, method: str, subscribed: bool
) -> None:
    program = run(method, *(["now"] if subscribed else []), script=METHODS)
    answers = guests.call(5 + subscribed)
    assert (program.pid in answers) == subscribed
    guests.say(1)
    assert {tuple(answer.heard) for answer in guests.call(5 + subscribed).values()} == {(1,)}
    assert {tuple(answer.gaps) for answer in answers.values()} == {()}
    program.wait_for(lambda: program.out().count("cannot be pickled") == 4, "handles were refused")
    assert program.out().count("make one there") == 4
    goodbyes = Goodbyes(server)
    (tmp_path / "go").touch()
    err = program.ends()
    assert err == "" or method == "fork", err
    assert goodbyes.all_said()
    assert [m.payload["event"] for m in server.received if m.event == "broadcast"].count("last") == 1


RESUBSCRIBED = """
import multiprocessing, time
from tests.servers import guest

def stay():
    guest.wait_until(lambda: guest.heard)

if __name__ == "__main__":
    guest.channel.subscribe()
    processes = [multiprocessing.get_context("fork").Process(target=stay) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    guest.pool.close()
"""


def test_a_forked_process_that_resubscribed_at_once_says_goodbye_as_well(
    server: RealtimeServer, guests: Guests, run: Run
) -> None:
    program = run(script=RESUBSCRIBED, GUEST_AFTER_FORK="resubscribe")
    answers = guests.call(3)
    assert sorted(answer.gaps for answer in answers.values()) == [[], ["fork"], ["fork"]]
    goodbyes = Goodbyes(server)
    guests.say(1)
    program.ends()
    assert goodbyes.all_said()


MASTER = """
import os, signal, sys

if "lazy" not in sys.argv:
    from tests.servers import wsgi

def work():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    from tests.servers import wsgi  # with lazy apps each worker is the first to import it
    assert wsgi.app.test_client().get("/").status_code == 200
    wsgi.guest.pool.run_forever()

workers = []
for _ in range(2):
    pid = os.fork()
    if pid == 0:
        work()
        sys.exit(1)
    workers.append(pid)
signal.signal(signal.SIGTERM, lambda *_: [os.kill(pid, signal.SIGTERM) for pid in workers])
codes = [os.waitpid(pid, 0)[1] for pid in workers]
sys.exit(sum(codes))
"""


@pytest.mark.parametrize(("mode", "subscribed"), [("lazy", True), ("by the master", False), ("by the master", True)])
def test_workers_of_a_server_like_uwsgi_have_connections_of_their_own(
    server: RealtimeServer, guests: Guests, run: Run, mode: str, subscribed: bool
) -> None:
    program = run(mode, script=MASTER, **({"GUEST_AT_IMPORT": "1"} if subscribed else {}))
    with_master = subscribed and mode != "lazy"
    answers = guests.call(2 + with_master)
    assert (program.pid in answers) == with_master
    assert {answer.parent for pid, answer in answers.items() if pid != program.pid} == {program.pid}
    goodbyes = Goodbyes(server)
    program.ends(signal.SIGTERM)
    assert goodbyes.all_said()


BEHIND = """
import ctypes, os, sys
import rtpool
from tests.servers import guest

if len(sys.argv) > 1:
    guest.channel.subscribe()
pid = ctypes.PyDLL(None).fork()  # as uWSGI does; no hook of Python's is called
if pid == 0:
    if len(sys.argv) > 1:
        for call in (guest.channel.subscribe, guest.pool.connect, lambda: guest.channel.send_broadcast("word", {})):
            try:
                call()
            except rtpool.PoolForked as error:
                print(error, flush=True)
        os._exit(0)
    guest.channel.subscribe()
    guest.wait_until(lambda: guest.heard)
    guest.pool.close()
    os._exit(0)
code = os.waitpid(pid, 0)[1]
guest.pool.close()
sys.exit(code)
"""


def test_a_fork_behind_pythons_back_is_told_where_it_would_be_silence(server: RealtimeServer, run: Run) -> None:
    program = run("subscribed", script=BEHIND)
    program.ends()
    assert program.out().count("was forked without telling Python") == 3
    assert server.connections_total == 1


def test_a_pool_that_was_not_used_before_does_not_mind_a_fork_behind_pythons_back(guests: Guests, run: Run) -> None:
    program = run(script=BEHIND)
    guests.call(1)
    guests.say(1)
    program.ends()

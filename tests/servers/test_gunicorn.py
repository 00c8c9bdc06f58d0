"""Pools in the workers of a real gunicorn, imported before and after its forks."""

from __future__ import annotations

import itertools
import os
import pathlib
import signal
import urllib.error

import pytest

from rtpool.testing import RealtimeServer
from tests.servers.conftest import Goodbyes, Guests, Run, need
from tests.servers.gunicorn import Gunicorn
from tests.support.wait import wait_until


@pytest.fixture(autouse=True)
def gunicorn() -> None:
    need("gunicorn")


CLASSES = ("sync", "gthread")


@pytest.mark.parametrize("kind", CLASSES)
def test_preloaded_and_resubscribed_each_worker_has_a_connection_of_its_own_and_the_master_keeps_his(
    server: RealtimeServer, guests: Guests, run: Run, kind: str
) -> None:
    gunicorn = Gunicorn(run, "--preload", "--worker-class", kind, GUEST_AT_IMPORT="1", GUEST_AFTER_FORK="resubscribe")
    answers = guests.call(3)
    master = answers[gunicorn.program.pid]
    workers = [answer for answer in answers.values() if answer is not master]
    assert (master.connection, master.gaps) == (1, [])
    assert {(w.parent, *w.gaps) for w in workers} == {(master.pid, "fork")}
    guests.say(1)
    gunicorn.ask()

    os.kill(workers[0].pid, signal.SIGKILL)
    server.wait_for(lambda s: s.connections_total == 4 and len(s.connections) == 3, 30)  # another took its place
    guests.wait(3)
    guests.say(2)
    answers = guests.call(3)
    assert workers[0].pid not in answers
    assert answers[master.pid].heard == answers[workers[1].pid].heard == [1, 2]
    assert answers[master.pid].connection == 1
    assert server.connections_total == 4
    (newcomer,) = answers.keys() - {master.pid, workers[1].pid}
    assert (answers[newcomer].heard, answers[newcomer].gaps) == ([2], ["fork"])

    goodbyes = Goodbyes(server)
    gunicorn.ends()
    assert goodbyes.all_said()


def test_preloaded_and_closed_a_worker_subscribes_when_it_first_needs_to(
    server: RealtimeServer, guests: Guests, run: Run
) -> None:
    gunicorn = Gunicorn(run, "--preload", GUEST_AT_IMPORT="1", GUEST_AFTER_FORK="close")
    assert set(guests.call(1)) == {gunicorn.program.pid}
    workers = gunicorn.ask_all()
    guests.say(1)
    answers = guests.call(3)
    assert set(answers) == {gunicorn.program.pid, *workers}
    assert {tuple(answer.heard) for answer in answers.values()} == {(1,)}
    assert {tuple(answer.gaps) for answer in answers.values()} == {()}
    goodbyes = Goodbyes(server)
    gunicorn.ends()
    assert goodbyes.all_said()


def test_preloaded_and_first_used_in_the_worker_no_fork_is_noticed(
    server: RealtimeServer, guests: Guests, run: Run
) -> None:
    gunicorn = Gunicorn(run, "--preload", GUEST_AFTER_FORK="resubscribe")
    workers = gunicorn.ask_all()
    answers = guests.call(2)
    assert set(answers) == workers
    assert server.connections_total == 2
    assert {tuple(answer.gaps) for answer in answers.values()} == {()}
    gunicorn.ends()


@pytest.mark.parametrize("kind", CLASSES)
def test_without_preload_each_worker_subscribes_at_import_and_its_successor_too(
    server: RealtimeServer, guests: Guests, run: Run, kind: str
) -> None:
    gunicorn = Gunicorn(run, "--worker-class", kind, "--max-requests", "3", GUEST_AT_IMPORT="1")
    first = guests.call(2)
    assert {answer.parent for answer in first.values()} == {gunicorn.program.pid}
    assert gunicorn.program.pid not in first
    goodbyes = Goodbyes(server)
    for _ in range(5):  # one of them has had three by then, and is replaced
        gunicorn.ask()
    wait_until(lambda: server.connections_total > 2, "a worker was replaced", 30)
    then = guests.call(2)
    assert set(then) != set(first)
    guests.say(1)
    assert {tuple(answer.heard) for answer in guests.call(2).values()} == {(1,)}
    gunicorn.ends()
    assert goodbyes.all_said()


def test_code_that_changes_is_reloaded_with_a_subscription_of_its_own(
    server: RealtimeServer, guests: Guests, run: Run, tmp_path: pathlib.Path
) -> None:
    extra = tmp_path / "settings.ini"
    extra.touch()
    gunicorn = Gunicorn(
        run, "--reload", "--reload-engine", "poll", "--reload-extra-file", str(extra), GUEST_AT_IMPORT="1"
    )
    first = guests.call(2)
    goodbyes = Goodbyes(server)
    times = itertools.count(2**31)

    def replaced() -> bool:
        if server.connections_total == 2:  # what changes before a worker's first look is no change to it
            os.utime(extra, (next(times),) * 2)
        return server.connections_total == 4

    wait_until(replaced, "both workers were replaced", 30)
    assert not guests.call(2).keys() & first.keys()
    assert goodbyes.all_said()
    gunicorn.ends()


EARLY = "from gevent import monkey; monkey.patch_all()\n"


@pytest.mark.parametrize("preload", [False, True], ids=["each loads", "preloaded"])
def test_workers_of_gevent_have_subscriptions_of_their_own(
    server: RealtimeServer, guests: Guests, run: Run, tmp_path: pathlib.Path, preload: bool
) -> None:
    need("gevent")
    options = ["--worker-class", "gevent"]
    if preload:  # before the application is imported
        (tmp_path / "gunicorn.conf.py").write_text(EARLY)
        options.append("--preload")
    gunicorn = Gunicorn(run, *options, GUEST_AT_IMPORT="1", GUEST_AFTER_FORK="resubscribe")
    answers = guests.call(2 + preload)
    assert (gunicorn.program.pid in answers) == preload
    workers = answers.keys() - {gunicorn.program.pid}
    for number in range(20):
        guests.say(number)
        assert gunicorn.ask() in workers
    os.kill(min(workers), signal.SIGKILL)
    wait_until(lambda: server.connections_total == 3 + preload, "another one took its place", 30)
    answers = guests.call(2 + preload)
    assert answers[max(workers)].heard == list(range(20))
    goodbyes = Goodbyes(server)
    gunicorn.ends(with_greenlets=True)
    assert goodbyes.all_said()


def test_workers_of_gevent_that_patch_what_was_preloaded_subscribe_after_it_or_are_told_what_to_do(
    server: RealtimeServer, guests: Guests, run: Run
) -> None:
    need("gevent")
    options = ["--preload", "--worker-class", "gevent"]
    late = Gunicorn(run, *options, GUEST_AT_IMPORT="1", GUEST_AFTER_FORK="close")
    workers = late.ask_all()
    guests.say(1)
    answers = guests.call(3)
    assert set(answers) == {late.program.pid, *workers}
    assert {tuple(answer.heard) for answer in answers.values()} == {(1,)}
    late.program.ends(signal.SIGTERM)

    started = Gunicorn(run, *options, GUEST_AT_IMPORT="1", GUEST_AFTER_FORK="resubscribe")
    with pytest.raises(urllib.error.HTTPError):
        started.ask()
    assert "MonkeyPatchConflict: gevent has patched this process after the threads" in started.program.err()
    started.program.ends(signal.SIGTERM)

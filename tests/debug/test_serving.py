"""A pool is looked at from another process: who may, what is told, and that nothing of it stays."""

from __future__ import annotations

import errno
import gc
import json
import os
import pathlib
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

import rtpool
from rtpool.debug import Debugger, serving, sockets
from rtpool.debug.inspector import Inspector
from rtpool.debug.remote import Remote, ask_all
from rtpool.debug.serving import DebugServer
from rtpool.debug.sockets import default_directory, living_sockets
from rtpool.testing import RealtimeServer
from tests.conftest import MakePool
from tests.support.forking import Child, Link, ask
from tests.support.secrets_watch import watch
from tests.support.wait import CAP, wait_until

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this platform has no Unix sockets")


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "pool.sock")


@pytest.fixture
def served(pool: rtpool.RealtimePool, path: str) -> Iterator[DebugServer]:
    with pool.serve_debug(path) as server:
        yield server


class Raw:
    """A client that sends what it likes."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(CAP)
        self.sock.connect(path)
        self.file = self.sock.makefile("rb")

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def line(self) -> dict[str, Any]:
        """The next answer; ends the test when there is none."""
        line = self.file.readline()
        assert line.endswith(b"\n"), "the server closed the connection"
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def ended(self) -> bool:
        """Whether the server closes the connection without another word."""
        try:
            return self.file.readline() == b""
        except ConnectionResetError:
            return True

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.sock.close()


# What is told


def test_what_is_told_is_what_the_pool_says(pool: rtpool.RealtimePool, served: DebugServer) -> None:
    pool.channel("room").on_broadcast("*", print).subscribe()
    with Remote(served.path) as remote:
        wait_until(lambda: remote.ask("stats")["stats"] == pool.stats().as_dict(), "the numbers rest")
        told = remote.ask("stats")
    health = pool.health().as_dict()
    assert told["health"].pop("age") <= health.pop("age")
    assert told["health"] == health
    assert told["issues"] == [issue.as_dict() for issue in Debugger(pool).issues()]
    assert (told["name"], told["pid"]) == (pool._engine.name, os.getpid())
    assert told["url"] == pool._endpoint.url
    assert (told["mailbox_limit"], told["commands"]) == (10_000, False)
    assert 0 < told["age"] < told["at"]


def test_an_issue_is_told(make_pool: MakePool, path: str) -> None:
    pool = make_pool(max_channels_per_connection=1)
    pool.channel("room").subscribe()
    with pool.serve_debug(path), Remote(path) as remote:
        issues = remote.ask("stats")["issues"]
    assert [(issue["code"], issue["severity"]) for issue in issues] == [("RTP013", "info")]


def test_nothing_secret_is_told(pool: rtpool.RealtimePool, served: DebugServer, server: RealtimeServer) -> None:
    watch.learn(server.api_key)
    pool.channel("room").subscribe()
    server.api_key = "another"
    server.connections[0].abort()
    wait_until(lambda: pool.health().verdict != "ok", "the connection is gone")
    with Raw(served.path) as client:
        client.send(b'{"ask": "stats"}\n')
        told = json.dumps(client.line())
    watch.look("what serve_debug() tells", told, repr(served))
    assert "?" not in json.loads(told)["url"]


def test_a_pool_that_was_never_used_is_told_of_and_not_started(pool: rtpool.RealtimePool, served: DebugServer) -> None:
    with Remote(served.path) as remote:
        assert remote.ask("stats")["stats"]["connection_status"] == "idle"
    assert not pool._engine.started


# Commands


def test_without_leave_nothing_can_be_done(pool: rtpool.RealtimePool, served: DebugServer) -> None:
    pool.channel("room").subscribe().unsubscribe()
    with Remote(served.path) as remote:
        assert "allow_commands=True" in remote.ask("cleanup")["error"]
        assert remote.ask("stats")["stats"]["total_connections"] == 1


def test_with_leave_idle_connections_are_closed(pool: rtpool.RealtimePool, path: str, server: RealtimeServer) -> None:
    pool.channel("room").subscribe().unsubscribe()
    server.wait_for(lambda s: not s.members("room"))
    with pool.serve_debug(path, allow_commands=True), Remote(path) as remote:
        assert remote.ask("stats")["commands"] is True
        assert remote.ask("cleanup") == {"closed": 1}
        assert remote.ask("stats")["stats"]["total_connections"] == 0


def test_a_pool_that_was_never_used_has_nothing_to_clean_up(pool: rtpool.RealtimePool, path: str) -> None:
    with pool.serve_debug(path, allow_commands=True), Remote(path) as remote:
        assert remote.ask("cleanup") == {"closed": 0}


# Who may look


@pytest.mark.parametrize("platform", ["Linux", "another"])
def test_the_file_is_its_owners_from_the_first_moment(
    platform: str, pool: rtpool.RealtimePool, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    bind = socket.socket.bind

    def binding(sock: socket.socket, address: Any) -> None:
        bind(sock, address)
        modes.append(stat.S_IMODE(os.lstat(address).st_mode))

    def refusing(*_: object) -> None:
        raise OSError(errno.EINVAL, "not for sockets")

    monkeypatch.setattr(socket.socket, "bind", binding)
    if platform == "another":
        monkeypatch.setattr(os, "fchmod", refusing)
    before = os.umask(0)
    try:
        with pool.serve_debug(path):
            assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert modes == [0o600]


def as_nobody(path: str) -> bytes:
    """What another user is told."""
    os.setgroups([])
    os.setgid(65_534)
    os.setuid(65_534)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(CAP)
        sock.connect(path)
        try:
            sock.sendall(b'{"ask": "stats"}\n')
            return sock.recv(100)
        except (BrokenPipeError, ConnectionResetError):
            return b""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_is_told_nothing_even_where_the_file_lets_him_in(pool: rtpool.RealtimePool) -> None:
    with pool.serve_debug(f"/tmp/rtpool-test-{os.getpid()}.sock") as served:
        with pytest.raises(AssertionError, match="PermissionError"):
            ask(lambda: as_nobody(served.path))
        os.chmod(served.path, 0o666)
        assert ask(lambda: as_nobody(served.path)) == b""
        with Remote(served.path) as remote:
            assert "stats" in remote.ask("stats")


def test_who_cannot_be_identified_is_turned_away(
    served: DebugServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(socket, "SO_PEERCRED", raising=False)
    monkeypatch.setattr(sockets, "_peer_by_libc", lambda _: None)
    with Raw(served.path) as client:
        assert client.ended()
    assert "turned away" in caplog.text
    with pytest.raises(rtpool.ConnectionFailed, match="another user"):
        Remote(served.path)


def test_the_other_end_is_known_by_the_kernels_word() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = sockets.peer_of(ours)
    assert peer is not None
    assert peer.uid == os.geteuid()
    if hasattr(socket, "SO_PEERCRED"):
        assert peer.pid == os.getpid()


# Hostile and clumsy clients


@pytest.mark.parametrize(
    "line",
    [b"", b"stats", b"{", b"\xff\xfe\x00", b"[" * 1_000, b"[]", b"null", b'{"ask": 1}', b'{"ask": ["stats"]}', b"{}"],
)
def test_garbage_is_answered_and_harms_nothing(line: bytes, served: DebugServer) -> None:
    with Raw(served.path) as client:
        client.send(line + b"\n")
        assert "error" in client.line()
        client.send(b'{"ask": "stats"}\n')
        assert "stats" in client.line()


def test_what_is_unknown_is_said_to_be(served: DebugServer) -> None:
    with Remote(served.path) as remote:
        assert remote.ask("shutdown") == {"error": 'ask for one of: stats, cleanup, as in {"ask": "stats"}'}


@pytest.mark.parametrize(("size", "is_read"), [(1_024, True), (1_025, False), (100_000, False)])
def test_a_request_is_bounded(size: int, is_read: bool, served: DebugServer) -> None:
    with Raw(served.path) as client:
        request = b'{"ask": "stats"}'.ljust(size)
        try:
            client.send(request + (b"\n" if is_read else b""))
        except (BrokenPipeError, ConnectionResetError):
            assert not is_read
        answer = client.line()
        if is_read:
            assert "stats" in answer
        else:
            assert answer == {"error": "a request may have 1024 bytes"}
            assert client.ended()


def test_requests_that_come_together_or_in_pieces_are_each_answered(served: DebugServer) -> None:
    with Raw(served.path) as client:
        client.send(b'{"ask": "a"}\n{"ask": "stats"}\n{"as')
        assert "error" in client.line()
        assert "stats" in client.line()
        client.send(b'k": "stats"}\n')
        assert "stats" in client.line()


def test_one_who_hangs_up_after_asking_is_answered(served: DebugServer) -> None:
    with Raw(served.path) as client:
        client.send(b'{"ask": "stats"}\n')
        client.sock.shutdown(socket.SHUT_WR)
        assert "stats" in client.line()
        assert client.ended()


def test_no_more_than_so_many_are_served(served: DebugServer) -> None:
    clients = [Raw(served.path) for _ in range(serving.MAX_CLIENTS)]
    try:
        for client in clients:
            client.send(b'{"ask": "stats"}\n')
            client.line()
        with Raw(served.path) as late:
            assert late.line() == {"error": "8 others look at this pool already"}
            assert late.ended()
        with Remote(served.path) as remote:
            assert "8 others" in remote.ask("stats")["error"]
        clients.pop().__exit__()
        wait_until(lambda: len(served._clients) < serving.MAX_CLIENTS, "one left")
        with Remote(served.path) as remote:
            assert "stats" in remote.ask("stats")
    finally:
        for client in clients:
            client.__exit__()


def test_one_who_does_not_take_his_answers_is_dropped_and_holds_up_nobody(
    make_pool: MakePool, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "TRANSFER_SECONDS", 0.3)
    pool = make_pool()
    for number in range(400):  # an answer that no socket's buffer has room for
        pool.channel(f"{number} {'x' * 200}").subscribe(wait=False)
    with pool.serve_debug(path) as served, Raw(path) as slow:
        slow.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
        for _ in range(20):
            slow.send(b'{"ask": "stats"}\n')
        with Remote(path) as remote:
            assert "stats" in remote.ask("stats")
        wait_until(lambda: not served._clients, "he is dropped")


def test_a_request_that_never_ends_is_dropped(served: DebugServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "TRANSFER_SECONDS", 0.1)
    with Raw(served.path) as client:
        client.send(b'{"ask"')
        assert client.ended()


def test_one_who_asks_nothing_for_long_is_dropped(served: DebugServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "IDLE_SECONDS", 0.1)
    with Raw(served.path) as client:
        client.send(b'{"ask": "stats"}\n')
        client.line()
        assert client.ended()


def test_a_bug_in_an_answer_ends_nothing(
    served: DebugServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(_: object) -> None:
        raise LookupError("ours")

    with Remote(served.path) as remote:
        with monkeypatch.context() as patched:
            patched.setattr(serving, "health_of", failing)
            assert "LookupError" in remote.ask("stats")["error"]
        assert "stats" in remote.ask("stats")
    assert "could not be answered" in caplog.text


def test_when_the_system_has_no_descriptor_left_it_rests_and_goes_on(
    served: DebugServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(serving, "REST_SECONDS", 0.05)
    accept, left = socket.socket.accept, [3]

    def accepting(sock: socket.socket) -> Any:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(sock)

    monkeypatch.setattr(socket.socket, "accept", accepting)
    with Remote(served.path) as remote:
        assert "stats" in remote.ask("stats")
    assert caplog.text.count("nobody can be let in") == 3


# The file


def test_a_living_servers_socket_is_refused_to_others(pool: rtpool.RealtimePool, served: DebugServer) -> None:
    with pytest.raises(rtpool.InvalidValue, match="is served by this process"):
        pool.serve_debug(served.path)

    def elsewhere() -> str:
        try:
            rtpool.RealtimePool("http://127.0.0.1:9", api_key="key").serve_debug(served.path)
        except rtpool.InvalidValue as error:
            return str(error)
        return ""

    assert f"is served by process {os.getpid()}" in ask(elsewhere)
    with Remote(served.path) as remote:
        assert "stats" in remote.ask("stats")


def leave_stale(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(path)


def test_what_a_dead_process_left_is_replaced(pool: rtpool.RealtimePool, path: str) -> None:
    leave_stale(path)
    neighbour = f"{path}.{os.getpid()}"
    with open(neighbour, "w", encoding="utf-8") as file:
        file.write("somebody's")
    with pool.serve_debug(path), Remote(path) as remote:
        assert "stats" in remote.ask("stats")
    assert os.listdir(os.path.dirname(path)) == [os.path.basename(neighbour)]


def test_of_two_that_find_it_stale_the_second_does_not_remove_the_firsts(
    pool: rtpool.RealtimePool, make_pool: MakePool, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_stale(path)
    refuse, first, looks = sockets._refuse_living, [], []

    def both_at_once(found: str) -> None:
        refuse(found)
        looks.append(found)
        if len(looks) == 2:  # both found twice that nobody is there
            os.unlink(path)
            first.append(make_pool().serve_debug(path))

    monkeypatch.setattr(sockets, "_refuse_living", both_at_once)
    with pytest.raises(rtpool.InvalidValue, match="is served by this process"):
        pool.serve_debug(path)
    with Remote(path) as remote:
        assert "stats" in remote.ask("stats")
    first[0].close()
    assert os.listdir(os.path.dirname(path)) == []


def test_who_has_bound_its_file_and_listens_in_a_moment_is_alive(
    pool: rtpool.RealtimePool, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        rest = SimpleNamespace(wait=lambda _: other.listen())
        monkeypatch.setattr(sockets, "threading", SimpleNamespace(Event=lambda: rest))
        with pytest.raises(rtpool.InvalidValue, match="is served by this process"):
            pool.serve_debug(path)
        assert os.path.exists(path)
    os.unlink(path)


def test_a_file_that_is_no_socket_is_left_alone(pool: rtpool.RealtimePool, path: str) -> None:
    pathlib.Path(path).write_text("precious")
    with pytest.raises(rtpool.InvalidValue, match="is no socket"):
        pool.serve_debug(path)
    assert pathlib.Path(path).read_text() == "precious"


def test_a_file_that_another_has_put_in_its_place_is_left_alone(served: DebugServer) -> None:
    os.unlink(served.path)
    leave_stale(served.path)
    served.close()
    assert os.path.exists(served.path)


@pytest.mark.parametrize(
    ("place", "error", "words"),
    [
        (5, rtpool.InvalidType, "path must be str"),
        ("x" * 104, rtpool.InvalidValue, "103 bytes"),
        ("a\0b", rtpool.InvalidValue, "no zero"),
        ("no such directory/x", rtpool.ConnectionFailed, "No such file or directory"),
    ],
)
def test_a_bad_path_is_refused(
    place: Any, error: type[Exception], words: str, pool: rtpool.RealtimePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    with pytest.raises(error, match=words):
        pool.serve_debug(place)
    with pytest.raises(rtpool.InvalidType, match="allow_commands"):
        pool.serve_debug("/tmp/x", allow_commands=1)  # type: ignore[arg-type]


def test_the_longest_path_works(pool: rtpool.RealtimePool) -> None:
    path = f"/tmp/{os.getpid()}-".ljust(sockets.LONGEST_PATH, "x")
    with pool.serve_debug(path), Remote(path) as remote:
        assert "stats" in remote.ask("stats")


def test_without_a_path_it_is_found(
    pool: rtpool.RealtimePool, make_pool: MakePool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pool.serve_debug() as one, make_pool().serve_debug() as other:
        assert stat.S_IMODE(os.stat(tmp_path / "rtpool").st_mode) == 0o700
        assert os.path.basename(one.path) == f"{os.getpid()}-{pool._engine.name}.sock"
        leave_stale(str(tmp_path / "rtpool" / "dead.sock"))
        (tmp_path / "rtpool" / "none.sock").write_text("")
        assert living_sockets(default_directory()) == sorted([one.path, other.path])
    assert living_sockets(default_directory()) == []
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_directory() == f"/tmp/rtpool-{os.geteuid()}"
    assert living_sockets(str(tmp_path / "none")) == []


@pytest.mark.parametrize("kind", ["file", "open to others"])
def test_a_directory_that_others_may_enter_is_refused(
    kind: str, pool: rtpool.RealtimePool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    if kind == "file":
        (tmp_path / "rtpool").write_text("")
    else:
        (tmp_path / "rtpool").mkdir()
        (tmp_path / "rtpool").chmod(0o755)
    with pytest.raises(rtpool.ConnectionFailed, match="only this user may enter"):
        pool.serve_debug()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "none"))
    with pytest.raises(rtpool.ConnectionFailed, match="cannot be made"):
        pool.serve_debug()


def test_a_platform_without_such_sockets_says_so(
    pool: rtpool.RealtimePool, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(rtpool.ConnectionFailed, match="has no Unix sockets"):
        pool.serve_debug(path)
    with pytest.raises(rtpool.ConnectionFailed, match="has no Unix sockets"):
        Remote(path)


# Its end


def test_when_close_returns_nothing_is_left(pool: rtpool.RealtimePool, path: str) -> None:
    served = pool.serve_debug(path)
    assert [thread.name for thread in served.threads] == [f"rtpool-{pool._engine.name}-serve"]
    with Raw(path) as client:
        client.send(b'{"ask": "stats"}\n')
        client.line()
        served.close()
        assert client.ended()
    assert served.closed
    assert not served.threads[0].is_alive()
    assert not os.path.exists(path)
    served.close()
    with pool.serve_debug(path) as again:
        assert not again.closed


@pytest.mark.parametrize("used", [True, False])
def test_it_ends_with_its_pool(used: bool, make_pool: MakePool, path: str) -> None:
    pool = make_pool()
    if used:
        pool.channel("room").subscribe()
    served = pool.serve_debug(path)
    with Remote(path) as remote:
        assert pool.close(CAP)
        assert not served.threads[0].is_alive()
        assert not os.path.exists(path)
        with pytest.raises(rtpool.ConnectionFailed, match="is gone"):
            remote.ask("stats")
    with pytest.raises(rtpool.PoolClosed):
        pool.serve_debug(path)
    assert not os.path.exists(path)


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_it_keeps_no_pool_alive_and_ends_with_a_forgotten_one(used: bool, server: RealtimeServer, path: str) -> None:
    pool = rtpool.RealtimePool(server.url, api_key=server.api_key)
    if used:
        pool.connect()
    served = pool.serve_debug(path)
    with Remote(path) as remote:
        remote.ask("stats")
        del pool
        gc.collect()
        wait_until(lambda: not served.threads[0].is_alive(), "it ended")
    assert not os.path.exists(path)


def test_a_pool_closes_in_time_while_it_is_looked_at(
    pool: rtpool.RealtimePool, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking = threading.Event()

    def long_look(_self: Inspector, _engine: object, over: threading.Event) -> list[Any]:
        looking.set()
        over.wait(60)
        return []

    monkeypatch.setattr(Inspector, "look", long_look)
    pool.channel("room").subscribe()
    served = pool.serve_debug(path)
    with Raw(path) as client:
        client.send(b'{"ask": "stats"}\n')
        assert looking.wait(CAP)
        assert pool.close(CAP)
    assert not served.threads[0].is_alive()


def test_a_callback_may_close_it(pool: rtpool.RealtimePool, served: DebugServer, server: RealtimeServer) -> None:
    closed = threading.Event()

    def callback(_: object) -> None:
        served.close()
        closed.set()

    pool.channel("room").on_broadcast("*", callback).subscribe()
    server.broadcast("room", "x", {})
    assert closed.wait(CAP)
    assert not os.path.exists(served.path)


def test_without_a_thread_nothing_is_left(
    pool: rtpool.RealtimePool, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(serving, "start_thread", none_left)
    with pytest.raises(rtpool.ConnectionFailed, match="no thread"):
        pool.serve_debug(path)
    assert not os.path.exists(path)
    assert pool._engine._companions == ()


PROGRAM = """
import os, sys, rtpool
pool = rtpool.RealtimePool(sys.argv[1], api_key=sys.argv[2])
if sys.argv[4] == "used":
    pool.connect()
served = pool.serve_debug(sys.argv[3])
assert os.path.exists(sys.argv[3])
"""


@pytest.mark.parametrize("used", ["used", "unused"])
def test_a_program_that_ends_leaves_no_file(used: str, server: RealtimeServer, path: str) -> None:
    arguments = [sys.executable, "-c", PROGRAM, server.url, server.api_key, path, used]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert not os.path.exists(path)


# Forks


def test_a_forked_child_neither_serves_nor_removes_its_parents_socket(
    pool: rtpool.RealtimePool, served: DebugServer
) -> None:
    pool.connect()
    with Remote(served.path) as remote:
        remote.ask("stats")

        def child(link: Link) -> None:
            link.tell((served.closed, [t.name for t in threading.enumerate() if "serve" in t.name]))
            served.close()
            served.stop()
            serving._stop_at_exit()
            link.tell(os.path.exists(served.path))
            link.wait()

        with Child(child) as forked:
            assert forked.told() == (True, [])
            assert forked.told() is True
            assert remote.ask("stats")["pid"] == os.getpid()
            with Remote(served.path) as another:
                assert another.ask("stats")["pid"] == os.getpid()
            served.close()  # the child holds no copy of what is closed here
            with pytest.raises(rtpool.ConnectionFailed):
                remote.ask("stats")
            forked.go()


def test_a_forked_child_can_serve_by_itself(pool: rtpool.RealtimePool, served: DebugServer) -> None:
    def child() -> tuple[int, int]:
        with pool.serve_debug(served.path + "2") as own, Remote(own.path) as remote:
            return os.getpid(), remote.ask("stats")["pid"]

    ours, told = ask(child)
    assert ours == told != os.getpid()


# The client


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (b"not JSON\n", rtpool.ProtocolError, "not JSON"),
        (b"[1]\n", rtpool.ProtocolError, "no object"),
        (b"", rtpool.ConnectionFailed, "gone"),
        (b'{"x": ' + b"1" * 3_000, rtpool.ProtocolError, "more than 2000 bytes"),
    ],
)
def test_what_is_no_pool_is_recognised(
    answer: bytes, error: type[Exception], words: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtpool.debug.remote.MAX_ANSWER", 2_000)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        with Remote(path) as remote:
            other, _ = listener.accept()
            with other:
                other.sendall(answer)
                if not answer:
                    other.close()
                with pytest.raises(error, match=words):
                    remote.ask("stats")


def test_a_program_that_does_not_answer_is_not_waited_for_beyond_the_time(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        with Remote(path) as remote, pytest.raises(rtpool.ConnectionFailed, match=r"within 0\.05 s"):
            remote.ask("stats", timeout=0.05)
    with pytest.raises(rtpool.ConnectionFailed, match="nobody serves"):
        Remote(path)


def test_of_several_that_are_asked_none_waits_for_the_answer_of_another(tmp_path: pathlib.Path) -> None:
    """The first answers when the last was asked, and the second not at all."""
    paths = [str(tmp_path / name) for name in ("first", "never", "gone", "last")]
    with ExitStack() as stack:
        listeners = []
        for path in paths:
            listeners.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
            listeners[-1].bind(path)
            listeners[-1].listen()
        remotes = [stack.enter_context(Remote(path)) for path in paths]
        first, never, gone, last = (stack.enter_context(listener.accept()[0]) for listener in listeners)
        gone.close()

        def serve() -> None:
            last.recv(1 << 10)
            first.sendall(b'{"number": 1}\n')
            last.sendall(b'{"number": 4}\n')

        thread = threading.Thread(target=serve)
        thread.start()
        answers = ask_all(remotes, "stats", 2.0)
        thread.join(CAP)
        assert never.recv(1 << 10) == b'{"ask": "stats"}\n'
    assert (answers[0], answers[3]) == ({"number": 1}, {"number": 4})
    for answer, words in ((answers[1], "did not answer within 2 s"), (answers[2], "is gone")):
        assert isinstance(answer, rtpool.ConnectionFailed)
        assert words in str(answer)

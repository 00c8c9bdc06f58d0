"""A real gunicorn, its workers and what it says."""

from __future__ import annotations

import json
import re
import signal
import sys
import urllib.request
from typing import TYPE_CHECKING, Any

from tests.support.wait import wait_until

if TYPE_CHECKING:
    import pathlib

    from tests.servers.conftest import Program, Run

__all__ = ["CLASSES", "STREAMING", "Gunicorn", "Shop"]

#: Worker classes, and those of them that suit streams.
CLASSES = ("sync", "gthread", "gevent")
STREAMING = ("gthread", "gevent")

#: What gunicorn itself says: its log, and that it leaves its listening socket to the end of the process.
OWN = (
    r"\[\S+ \S+ \S+\] \[\d+\] (\[INFO\]|\[WARNING\] Reloader is on|\[ERROR\] Worker \(pid:\d+\) was sent SIGKILL)",
    r".*ResourceWarning: unclosed <\S+ [^>]*laddr=\('[^>]*', \d+\)>$",
    r"ResourceWarning: Enable tracemalloc",
)


class Gunicorn:
    """
    A gunicorn that serves an application of this folder.

    Args:
        app: where the application is, ``"module:name"``; None where the options are the whole of it.
        said: lines that it may say beside gunicorn's own, as regular expressions.
    """

    def __init__(
        self,
        run: Run,
        *options: str,
        app: str | None = "tests.servers.wsgi:app",
        workers: int = 2,
        said: tuple[str, ...] = (),
        **environment: str,
    ) -> None:
        settings = ["--bind", "127.0.0.1:0", "--workers", str(workers), "--graceful-timeout", "5", *options, app]
        self._workers, self._may_say = workers, OWN + said
        whole = [setting for setting in settings if setting is not None] if app is not None else options
        self.program: Program = run(sys.executable, "-m", "gunicorn", *whole, **environment)
        self.program.wait_for(lambda: self._said("Booting worker") == workers, "all workers were started")

    def _said(self, words: str) -> int:
        return self.program.err().count(words)

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        found = re.search(r"Listening at: http://([\d.]+):(\d+)", self.program.err())
        assert found is not None
        return found[1], int(found[2])

    def get(self, path: str = "/") -> dict[str, object]:
        """Have a request answered with a JSON object."""
        host, port = self.address
        with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=30) as answer:
            told: dict[str, object] = json.load(answer)
            return told

    def alive(self) -> set[int]:
        """Its workers, as it tells of them."""
        err = self.program.err()
        booted, exiting = (re.findall(words, err) for words in (r"worker with pid: (\d+)", r"exiting \(pid: (\d+)\)"))
        return set(map(int, booted)) - set(map(int, exiting))

    def ask(self) -> int:
        """Have a request answered; return the process that did."""
        pid = self.get()["pid"]
        assert isinstance(pid, int)
        return pid

    def ask_all(self) -> set[int]:
        """Have requests answered until every worker has answered one."""
        pids: set[int] = set()
        wait_until(lambda: pids.add(self.ask()) or len(pids) == self._workers, "all workers answered")
        return pids

    def ends(self, *, with_greenlets: bool = False) -> None:
        """Stop it gracefully; it is in time, and nothing but gunicorn itself said anything."""
        err = self.program.ends(signal.SIGTERM)
        if with_greenlets and sys.version_info >= (3, 12) and "in _delete\n" in err:
            return  # `threading` misses a greenlet of the parent's that ends in a child, and says so
        noise = [line for line in err.splitlines() if not any(re.match(own, line) for own in self._may_say)]
        assert not noise, "\n".join(noise)
        assert "graceful timeout" not in err


#: For the app of this folder that has rtpool's extension.
SHOP = "tests.servers.shop:app"
HOOK = """
def post_worker_init(worker):
    from tests.servers.shop import realtime
    with worker.wsgi.app_context():
        realtime.start(alive=lambda: worker.alive)
"""
PATCH = "from gevent import monkey; monkey.patch_all()\n"
#: What an app tells its log of what was lost.
LOGGED = (r"\[\S+ \S+\] WARNING in ",)


class Shop:
    """Starts gunicorns that serve `tests.servers.shop`."""

    def __init__(self, run: Run, folder: pathlib.Path) -> None:
        self._run, self._folder = run, folder

    def __call__(self, kind: str, *options: str, preload: bool = False, hook: str = HOOK, **arguments: Any) -> Gunicorn:
        """
        Start one.

        Args:
            kind: the class of its workers.
            hook: more for its configuration.
            arguments: for `Gunicorn`.
        """
        early = PATCH if kind == "gevent" and preload else ""
        (self._folder / "gunicorn.conf.py").write_text(early + hook)
        given = ["--worker-class", kind, *(["--preload"] if preload else []), *options]
        return Gunicorn(self._run, *given, app=SHOP, said=LOGGED, **arguments)

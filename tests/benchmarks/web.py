"""
A Flask app in a gunicorn of two workers with four threads each, and the embedded Realtime server that it uses.

    python -m tests.benchmarks.web '{}'

The app is `tests.servers.shop`. It is told fields of `ServerOptions`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

from tests.benchmarks.processes import ROOT, Failed, server

__all__: list[str] = []

WORKERS, THREADS = 2, 4
CONFIG = """
def post_worker_init(worker):
    from tests.servers.shop import realtime
    with worker.wsgi.app_context():
        realtime.start(alive=lambda: worker.alive)
"""


def main() -> None:
    """Serve until stdin ends."""
    with (
        server("embedded", json.loads(sys.argv[1])) as upstream,
        tempfile.NamedTemporaryFile("w", suffix=".conf.py") as config,
        tempfile.TemporaryFile("w+") as log,
        socket.create_server(("127.0.0.1", 0), backlog=100) as listener,
    ):
        config.write(CONFIG)
        config.flush()
        options = ["--config", config.name, "--worker-class", "gthread", "--keep-alive", "60"]
        options += ["--workers", str(WORKERS), "--threads", str(THREADS), "--bind", f"fd://{listener.fileno()}"]
        command = [sys.executable, "-m", "gunicorn", *options, "tests.servers.shop:app"]
        environment = {**os.environ, "GUEST_URL": f"http://127.0.0.1:{upstream['port']}", "GUEST_KEY": "k"}
        with subprocess.Popen(
            command, env=environment, cwd=ROOT, pass_fds=[listener.fileno()], stdout=log, stderr=log
        ) as process:
            try:
                port = listener.getsockname()[1]
                _wait(port, process, log)
                print(json.dumps({"port": port, "workers": WORKERS}), flush=True)
                sys.stdin.read()
            finally:
                process.terminate()
                process.wait(20)


def _wait(port: int, process: subprocess.Popen[bytes], log: object) -> None:
    """Until both workers have their join."""
    ready: set[int] = set()
    deadline = time.monotonic() + 30
    while len(ready) < WORKERS:
        if time.monotonic() > deadline or process.poll() is not None:
            log.seek(0)  # type: ignore[attr-defined]
            raise Failed(f"the workers are not ready:\n{log.read()[-2000:]}")  # type: ignore[attr-defined]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/stats", timeout=10) as answer:
            told = json.load(answer)
        if told["joins"]:
            ready.add(told["pid"])


if __name__ == "__main__":
    main()

"""
The whole of it by one command, until Ctrl-C: `python examples/celery_worker`.

Two Celery workers and one listener, in your project where SUPABASE_URL and SUPABASE_KEY are set; else in an embedded
server, in which a car changes twice a second. The broker is CELERY_BROKER_URL's, else a folder.
"""

import contextlib
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator

HERE = pathlib.Path(__file__).parent


@contextlib.contextmanager
def project(stop: threading.Event) -> Iterator[dict[str, str]]:
    if os.environ.get("SUPABASE_URL") and os.environ.get("SUPABASE_KEY"):
        yield {}
        return
    from rtpool.testing import RealtimeServer

    def change() -> None:
        for number in itertools.count():
            if stop.wait(0.5):
                return
            car = {"id": number % 9 + 1, "status": ("free", "rented", "in service")[number % 3]}
            server.change("public", "cars", "UPDATE", car, {"id": car["id"]})

    with RealtimeServer() as server:
        changing = threading.Thread(target=change)
        changing.start()
        try:
            yield {"SUPABASE_URL": server.url, "SUPABASE_KEY": server.api_key}
        finally:
            stop.set()
            changing.join()


def main() -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    stop = threading.Event()
    with tempfile.TemporaryDirectory() as folder, project(stop) as keys:
        environment = {**os.environ, "CELERY_FOLDER": folder, **keys}
        worker = ["celery", "--app", "worker", "worker", "--concurrency", "2", "--loglevel", "info"]
        commands = [worker, ["flask", "--app", "app", "enqueue-changes"]]
        processes = [
            subprocess.Popen([sys.executable, "-m", *command], cwd=HERE, env=environment) for command in commands
        ]
        with contextlib.suppress(KeyboardInterrupt):
            while all(process.poll() is None for process in processes):
                stop.wait(0.2)
        failed = [process.args for process in processes if process.poll()]
        stop.set()
        for process in reversed(processes):  # the listener first: what it has enqueued is still done
            process.terminate()
            process.wait(20)
        return bool(failed)


if __name__ == "__main__":
    sys.exit(main())

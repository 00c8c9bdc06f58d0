"""
How gunicorn serves a Flask app with rtpool.

    gunicorn -c examples/gunicorn/gunicorn.conf.py

It is for your project where SUPABASE_URL and SUPABASE_KEY are set; else for a server of its own, as a demonstration.
"""

import os
import pathlib
import secrets
import subprocess
import sys

#: gthread needs nothing but gunicorn, and a thread for each open stream; gevent suits hundreds of them. sync serves one
#: request at a time: callbacks and Channels work with it, a stream would be all that a worker does.
worker_class = os.environ.get("WORKER_CLASS", "gthread")
workers = int(os.environ.get("WEB_CONCURRENCY", "4"))
threads = 32  # of gthread
worker_connections = 1000  # of gevent
max_streams = {"gthread": threads - 8, "gevent": worker_connections // 2}.get(worker_class, 0)  # the rest for requests

if worker_class == "gevent":
    from gevent import monkey

    monkey.patch_all()  # before the app is preloaded, or rtpool would have made its locks of real threads

chdir = str(pathlib.Path(__file__).parent)
wsgi_app = "app:create_app()"
bind = os.environ.get("BIND", "127.0.0.1:8000")
raw_env = [
    f"FLASK_RTPOOL_MAX_STREAMS={max_streams}",
    # The same in every worker: by it they know each other's events again when a browser comes back to another one.
    f"FLASK_SECRET_KEY={os.environ.get('FLASK_SECRET_KEY') or secrets.token_hex()}",
]
preload_app = True  # less memory; importing and create_app() connect nothing, so the master has no connection
timeout = 30  # of a worker's loop; with gthread and gevent a stream may last as long as it likes
graceful_timeout = 10  # for requests under way; streams end at once, and their browsers come back to another worker
keepalive = 75  # longer than the proxy's before it, so that it is the proxy which closes


def post_worker_init(worker):
    from app import realtime

    with worker.wsgi.app_context():
        realtime.start(alive=lambda: worker.alive)  # callbacks hear from now on, not from the first request on


# What follows is for the demonstration alone.

demo = None


def on_starting(server):
    """Once, in the master, before it has workers."""
    global demo
    if os.environ.get("SUPABASE_URL") and os.environ.get("SUPABASE_KEY"):
        return
    demo = subprocess.Popen(
        [sys.executable, "demo_project.py"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    with demo.stdout:
        os.environ["SUPABASE_URL"], os.environ["SUPABASE_KEY"] = demo.stdout.readline().split()


def post_fork(server, worker):
    if demo is not None:  # it ends with its stdin, of which the master alone is to have the other end
        demo.stdin.close()
        demo.returncode = 0  # and is no child of this process


def on_exit(server):
    if demo is not None:
        demo.stdin.close()
        demo.wait()

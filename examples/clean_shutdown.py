"""A service that ends on Ctrl-C or SIGTERM with nothing left behind."""

import os
import signal
import sys
import threading

from _project import project

import rtpool

with project() as (url, key):
    pool = rtpool.RealtimePool(url, api_key=key)
    pool.on_status(lambda change: print(f"pool: {change.status}"))
    pool.channel("jobs").on_broadcast("*", print).on_gap(print).subscribe()

    if "--stay" not in sys.argv:  # for the demonstration: end ourselves after a moment
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    pool.run_forever(handle_sigterm=True)  # without it, SIGTERM ends the process at once, as it does any other

    alive = [t.name for t in threading.enumerate() if t.name.startswith("rtpool-") and "testing" not in t.name]
    if alive:
        raise SystemExit(f"left behind: {alive}")
    print("closed, no thread left")

"""A service that ends on Ctrl-C or SIGTERM with nothing left behind."""

import os
import signal
import sys
import threading

from _project import project

import rtpool

with project() as (url, key):
    pool = rtpool.RealtimePool(url, api_key=key)
    # close() may be called from anywhere; in a signal handler a thread does it, so that the handler returns at once.
    signal.signal(signal.SIGTERM, lambda number, frame: threading.Thread(target=pool.close).start())

    pool.on_status(lambda change: print(f"pool: {change.status}"))
    pool.channel("jobs").on_broadcast("*", print).on_gap(print).subscribe()

    if "--stay" not in sys.argv:  # for the demonstration: end ourselves after a moment
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    pool.run_forever()

    pool.close()  # waits for the close that the signal began; calling it twice is fine
    alive = [t.name for t in threading.enumerate() if t.name.startswith("rtpool-") and "testing" not in t.name]
    if alive:
        raise SystemExit(f"left behind: {alive}")
    print("closed, no thread left")

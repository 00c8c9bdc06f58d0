"""Workers forked from a process that is subscribed already, as a prefork server has them: each goes on by itself."""

import multiprocessing
import sys
import threading
import warnings

from _project import project

import rtpool

WORKERS = 3

if sys.platform == "win32":
    raise SystemExit("this platform has no fork")
warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12 and later: this process has threads
context = multiprocessing.get_context("fork")
heard = threading.Event()


def on_news(event: rtpool.Broadcast) -> None:
    print(f"{multiprocessing.current_process().name}: {event.payload}", flush=True)
    heard.set()


def work(ready, pool: rtpool.RealtimePool, news: rtpool.Channel) -> None:
    while not news.is_subscribed:  # it is by itself, on a connection of this process
        threading.Event().wait(0.01)
    ready.release()
    if not heard.wait(10):
        raise SystemExit("nothing came")
    pool.close()


with project() as (url, key), rtpool.RealtimePool(url, api_key=key, after_fork="resubscribe") as pool:
    news = pool.channel("news").on_broadcast("*", on_news).subscribe()
    ready = context.Semaphore(0)
    workers = [context.Process(target=work, args=(ready, pool, news)) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    for _ in workers:
        ready.acquire(timeout=10)
    pool.broadcast("news", "breaking", {"text": "hello to every process"})
    if not heard.wait(10):
        raise SystemExit("the parent heard nothing")
    for worker in workers:
        worker.join(10)
    if any(worker.exitcode for worker in workers):
        raise SystemExit(f"a worker failed: {[worker.exitcode for worker in workers]}")

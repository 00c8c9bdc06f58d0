"""Postgres changes: two filters, one join. On your own project set EXAMPLE_SECONDS and change a row of `cars`."""

import os
import threading

from _project import project

import rtpool
from rtpool.filters import col

with project() as (url, key), rtpool.RealtimePool(url, api_key=key) as pool:
    seen = threading.Event()

    def changed(change: rtpool.PostgresChange) -> None:
        print(change.type, change.record or change.old_record, change.commit_timestamp)
        seen.set()

    cars = pool.channel("cars")
    cars.on_postgres_changes("UPDATE", changed, table="cars", filter=col("status").eq("rented") & col("id").gt(5))
    cars.on_postgres_changes("DELETE", changed, table="cars")
    cars.on_gap(lambda gap: print(f"fetch anew what changed since {gap.lost_from}: {gap.cause}"))
    cars.subscribe(timeout=15)  # returns when the server says that changes flow
    print("changes flow:", cars.is_subscribed)
    if "EXAMPLE_SECONDS" in os.environ:
        seen.wait(float(os.environ["EXAMPLE_SECONDS"]))

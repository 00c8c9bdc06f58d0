"""What a probe asks and an operator reads: the verdict, the status with its reasons, what may have been lost."""

import json
import logging

from _project import project

import rtpool

logging.basicConfig(format="%(levelname)s %(name)s %(message)s")


def probe(pool: rtpool.RealtimePool) -> tuple[int, str]:
    """Body and status of a ``/health`` page: 200 while something is served, 503 when nothing can be."""
    health = pool.health()
    return 503 if health.verdict == "down" else 200, json.dumps(health.as_dict())


def tell(change: rtpool.StatusChange) -> None:
    where = change.topic or "pool"
    again = "" if change.delay is None else f"; attempt {change.attempt} in {change.delay:.1f} s"
    print(f"{where}: {change.status} {change.error or ''}{again}")


with project() as (url, key), rtpool.RealtimePool(url, api_key=key) as pool:
    pool.on_status(tell)
    orders = pool.channel("orders").on_status(tell)
    orders.on_gap(lambda gap: print(f"between {gap.lost_from} and {gap.lost_to} something may be missing: {gap.cause}"))
    orders.subscribe(timeout=15)
    print(*probe(pool))
print(*probe(pool))

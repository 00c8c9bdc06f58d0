"""A /metrics page for Prometheus: what every pool of the process does. examples/grafana_dashboard.json shows it."""

import threading
import urllib.request

from _project import project
from prometheus_client import REGISTRY, start_http_server

import rtpool
from rtpool.metrics import PrometheusCollector

REGISTRY.register(PrometheusCollector())
page, serving = start_http_server(0, "127.0.0.1")  # a port of your own in place of 0
came = threading.Event()

with project() as (url, key), rtpool.RealtimePool(url, api_key=key) as pool:
    cars = pool.channel("cars", receive_own=True).on_broadcast("moved", lambda _: came.set()).subscribe(timeout=15)
    cars.send_broadcast("moved", {"lat": 52.5}).result(10)
    if not came.wait(10):
        raise SystemExit("nothing came")
    with urllib.request.urlopen(f"http://127.0.0.1:{page.server_port}/metrics") as scrape:
        for line in scrape.read().decode().splitlines():
            if line.startswith("rtpool_"):
                print(line)
page.shutdown()
page.server_close()
serving.join()

"""A Flask app for gunicorn: each worker hears of changed cars and shows them to browsers; a view makes cars honk."""

import collections
import os

from flask import Flask, Response

import rtpool
from rtpool.flask import Realtime

realtime = Realtime()
#: What this worker has heard of. Each worker hears everything: good for a cache; work to be done once is for Celery.
seen: collections.Counter[str] = collections.Counter()

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Cars</title>
<h1>Cars</h1>
<p><button onclick="fetch('/cars/7/horn', {method: 'POST'})">Honk</button></p>
<ol id="news" aria-live="polite"></ol>
<script>
  const source = new EventSource("/cars/stream");
  for (const name of ["change", "broadcast", "gap", "status"])
    source.addEventListener(name, ({data}) => {
      const line = document.createElement("li");
      line.textContent = `${name} ${data}`;
      document.getElementById("news").prepend(line);
    });
</script>
"""


@realtime.on_changes("cars")
def count(change: rtpool.PostgresChange) -> None:
    seen[change.type] += 1


def create_app() -> Flask:
    app = Flask(__name__)
    app.config.from_prefixed_env()  # FLASK_RTPOOL_MAX_STREAMS, as gunicorn.conf.py has it
    realtime.init_app(app)

    @app.get("/")
    def page() -> str:
        return PAGE

    @app.get("/cars/stream")
    def stream() -> Response:
        return realtime.stream("cars", broadcasts="horn", changes="cars")

    @app.post("/cars/<int:number>/horn")
    def honk(number: int) -> tuple[str, int]:
        with realtime.channel("cars", ack=True) as cars:
            cars.send_broadcast("horn", {"car": number}).result(10)
        return "", 204

    @app.get("/worker")
    def worker() -> dict[str, object]:
        return {"pid": os.getpid(), "seen": dict(seen)}

    return app

"""
A presence board: who has this page open, live. Each visitor is here under their name while the page is open.

    python examples/presence_board/app.py

runs it on a server of its own; with SUPABASE_URL and SUPABASE_KEY it runs on that project, which needs no table for it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import threading
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from flask import Flask, Response, jsonify, redirect, render_template, request, session, url_for

import rtpool
from rtpool.flask import Realtime

realtime = Realtime()

TOPIC = "presence-board"
LONGEST = 40  # characters of a name

State = Mapping[str, tuple[Mapping[str, Any], ...]]


class Visitors:
    """
    Those whose pages this process serves, told to all other processes.

    A process is present once, with a list of its visitors, however many they are: one connection and one join, for a
    channel has one presence a connection. Any thread may use it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._here: dict[int, dict[str, str]] = {}
        self._channel: rtpool.Channel | None = None

    def come(self, pool: rtpool.RealtimePool, name: str) -> int:
        """Somebody opened the page; returns their number."""
        with self._lock:
            number = next(self._numbers)
            self._here[number] = {"name": name, "since": datetime.now(timezone.utc).isoformat(timespec="milliseconds")}
            if self._channel is None:
                self._channel = pool.channel(TOPIC).on_presence_sync(lambda presence: None)
                self._channel.subscribe(wait=False)
            self._tell(self._channel)
        return number

    def go(self, number: int) -> None:
        """They closed it. With the last one the process leaves the channel."""
        with self._lock:
            channel = self._channel
            del self._here[number]
            if channel is not None and self._here:
                self._tell(channel)
            elif channel is not None:
                self._channel = None
                channel.unsubscribe(timeout=0)

    def state(self) -> State:
        """Who is present, by process."""
        channel = self._channel
        return {} if channel is None else channel.presence_state()

    def _tell(self, channel: rtpool.Channel) -> None:
        channel.track({"visitors": list(self._here.values())})  # sent at once, or as soon as it is subscribed


def people(state: State) -> list[dict[str, str]]:
    """Everybody who is here, once, however many pages they have open; who came first is first."""
    found: dict[str, str] = {}
    for meta in itertools.chain.from_iterable(state.values()):
        for visitor in meta.get("visitors", ()):
            found[visitor["name"]] = min(visitor["since"], found.get(visitor["name"], visitor["since"]))
    return [{"name": name, "since": since} for name, since in sorted(found.items(), key=lambda item: item[::-1])]


def create_app(config: dict[str, Any] | None = None) -> Flask:
    """The app; also from gunicorn, as ``app:create_app()``. Settings: FLASK_<NAME> in the environment, or `config`."""
    app = Flask(__name__)
    app.config.from_mapping(
        SECRET_KEY="only-for-this-example",
        SESSION_COOKIE_NAME="presence_board",
        SESSION_COOKIE_SAMESITE="Lax",  # no other site can send a form in somebody's name
        RTPOOL_URL=os.environ.get("SUPABASE_URL"),
        RTPOOL_API_KEY=os.environ.get("SUPABASE_KEY"),
    )
    app.config.from_prefixed_env()
    app.config.update(config or {})
    realtime.init_app(app)
    visitors = Visitors()

    @app.get("/")
    def board() -> str:
        return render_template("board.html" if "name" in session else "enter.html", longest=LONGEST)

    @app.post("/")
    def enter() -> Any:
        name = " ".join(request.form.get("name", "").split())[:LONGEST]
        session.update({"name": name} if name else {})
        return redirect(url_for("board"))

    @app.post("/leave")
    def leave() -> Any:
        session.pop("name", None)
        return redirect(url_for("board"))

    @app.get("/people")
    def everybody() -> Response:
        return jsonify(people=people(visitors.state()))

    @app.get("/stream")
    def stream() -> Response:
        def view(presence: rtpool.Presence) -> dict[str, Any] | None:
            return {"people": people(presence.state)} if presence.state is not None else None

        response = realtime.stream(
            TOPIC, broadcasts=None, presence=True, authorize=lambda: "name" in session, view=view
        )
        if response.status_code == 200:  # neither refused nor one too many
            response.call_on_close(functools.partial(visitors.go, visitors.come(realtime.pool, session["name"])))
        return response

    @app.after_request
    def harden(response: Response) -> Response:
        response.headers.setdefault("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'")
        return response

    return app


def main() -> None:
    """Serve it until Ctrl-C; PORT says where."""
    with contextlib.ExitStack() as stack:
        config = {}
        if not (os.environ.get("SUPABASE_URL") and os.environ.get("SUPABASE_KEY")):
            from rtpool.testing import RealtimeServer

            server = stack.enter_context(RealtimeServer())
            config = {"RTPOOL_URL": server.url, "RTPOOL_API_KEY": server.api_key}
        app = create_app(config)
        port = int(os.environ.get("PORT", "5051"))
        print(f"The board: http://127.0.0.1:{port}/", flush=True)
        app.run(port=port, threaded=True)
        with app.app_context():
            realtime.close()


if __name__ == "__main__":
    main()

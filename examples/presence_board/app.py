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
import uuid
from datetime import datetime, timezone
from typing import Any

from flask import Flask, Response, jsonify, redirect, render_template, request, session, url_for

import rtpool
from rtpool.flask import Realtime

realtime = Realtime()

TOPIC = "presence-board"
LONGEST = 40  # characters of a name

#: What a process tells of itself: its name, a number that grows, its visitors.
Told = dict[str, Any]


class Visitors:
    """
    Those whose pages this process serves, told to all other processes; and what those tell.

    A process is present once, with a list of its visitors, for a channel and a connection of its own for each of them
    would be many. A server takes a presence five times in 30 s, and rtpool merges what comes faster: so each list is
    broadcast as well, at once. The newest counts; a process whose presence ends is gone, and its visitors with it.

    Any thread may use it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = uuid.uuid4().hex
        self._numbers = itertools.count(1)
        self._here: dict[int, dict[str, str]] = {}
        self._known: dict[str, Told] = {}
        self._channel: rtpool.Channel | None = None

    def come(self, pool: rtpool.RealtimePool, name: str) -> int:
        """Somebody opened the page; returns their number."""
        with self._lock:
            number = next(self._numbers)
            self._here[number] = {"name": name, "since": datetime.now(timezone.utc).isoformat(timespec="milliseconds")}
            if self._channel is None:
                self._channel = pool.channel(TOPIC)
                self._channel.on_presence_sync(self._hear_presence).on_broadcast("visitors", self._hear_broadcast)
                self._channel.subscribe(wait=False)
            self._tell(self._channel)
        return number

    def go(self, number: int) -> None:
        """They closed it. With the last one the process leaves the channel."""
        with self._lock:
            del self._here[number]
            if self._channel is None:
                return
            with contextlib.suppress(rtpool.PoolClosed):  # the app ends, and its presence with it
                self._tell(self._channel)
                if not self._here:
                    self._channel.unsubscribe(timeout=0)
            if not self._here:
                self._channel, self._known = None, {}

    def everybody(self) -> list[Told]:
        """What each process told last."""
        with self._lock:
            return list(self._known.values())

    def _tell(self, channel: rtpool.Channel) -> None:
        told = {"process": self._process, "number": next(self._numbers), "visitors": list(self._here.values())}
        self._known[self._process] = told
        channel.track(told)  # at once, or when there is a connection (again)
        if channel.is_subscribed:
            channel.send_broadcast("visitors", told)

    def _hear_presence(self, presence: rtpool.Presence) -> None:
        with self._lock:
            self._known = {told["process"]: self._newer(told) for told in present(presence)}

    def _hear_broadcast(self, broadcast: rtpool.Broadcast) -> None:
        told = checked(broadcast.payload)
        if told is not None:
            with self._lock:
                self._known[told["process"]] = self._newer(told)

    def _newer(self, told: Told) -> Told:
        return max(told, self._known.get(told["process"], told), key=lambda one: one["number"])


def present(presence: rtpool.Presence) -> list[Told]:
    """What each process that is present tells."""
    metas = itertools.chain.from_iterable((presence.state or {}).values())
    return [told for meta in metas if (told := checked(meta)) is not None]


def checked(told: Any) -> Told | None:
    """What a process tells, None when that is something else: whoever has the project's key can send to the channel."""
    try:
        visitors = [{"name": str(one["name"])[:LONGEST], "since": str(one["since"])} for one in told["visitors"]]
        return {"process": str(told["process"]), "number": int(told["number"]), "visitors": visitors}
    except (KeyError, TypeError, ValueError):
        return None


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
        return jsonify(processes=visitors.everybody())

    @app.get("/stream")
    def stream() -> Response:
        def view(event: rtpool.Presence | rtpool.Broadcast) -> Told | None:
            if isinstance(event, rtpool.Broadcast):
                return checked(event.payload)
            return {"processes": present(event)} if event.type == "sync" else None

        response = realtime.stream(
            TOPIC, broadcasts="visitors", presence=True, authorize=lambda: "name" in session, view=view
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

"""
What is served below ``/_rtpool/``.
"""

from __future__ import annotations

import functools
import json
import os
from importlib import resources
from typing import TYPE_CHECKING, Any

import jinja2
from flask import Blueprint, Response, abort, g, redirect, request, url_for

from rtpool.errors import RtpoolError
from rtpool.flask.config import SHORTEST_TOKEN
from rtpool.flask.page.guard import PREFIX, SESSION_SECONDS, Guard, Visitor
from rtpool.flask.page.layout import ACTIONS, TABLES
from rtpool.protocol.refusals import printable

if TYPE_CHECKING:
    from flask import Flask
    from prometheus_client import CollectorRegistry
    from werkzeug.wrappers import Response as AnyResponse

    from rtpool.flask.page.actions import Actions
    from rtpool.flask.page.looker import Looker
    from rtpool.flask.state import AppState
    from rtpool.pool import RealtimePool

__all__ = ["Page", "register"]

#: The blueprint's; apps have an "rtpool" of their own.
NAME = "_rtpool"
STATIC = {"page.css": "text/css", "page.js": "text/javascript"}
#: What whoever has not shown the token gets: the looks of the form that asks for it.
OPEN = f"{PREFIX}/static/page.css"
HEALTH = f"{PREFIX}/health"
#: Behind a proxy a right token would be asked for again and again. Says nothing of the request: its log does.
ANOTHER_ORIGIN = (
    "This form came from another address than the app believes to have. Behind a proxy the app needs werkzeug's "
    "ProxyFix, and the proxy has to pass on the host and the scheme; the app's log says which addresses these are."
)


def register(app: Flask, state: AppState) -> None:
    """
    Have the app serve the page. Called by `Realtime.init_app`. Whether it is there is decided at each request.
    """
    page = Page(state)
    blueprint = Blueprint(NAME, __name__, url_prefix=PREFIX)
    blueprint.add_url_rule("/", "page", page.show)
    blueprint.add_url_rule("/events", "events", page.events)
    blueprint.add_url_rule("/look", "look", page.look)
    blueprint.add_url_rule("/health", "health", page.health)
    blueprint.add_url_rule("/metrics", "metrics", page.metrics)
    blueprint.add_url_rule("/sign-in", "sign_in", page.sign_in, methods=["POST"])
    blueprint.add_url_rule("/sign-out", "sign_out", page.sign_out, methods=["POST"])
    blueprint.add_url_rule("/actions/<name>", "act", page.act, methods=["POST"])
    blueprint.add_url_rule("/static/<name>", "asset", page.asset)
    app.register_blueprint(blueprint)
    # Before the app's own, which may send whoever has not logged in, a probe too, to their form.
    app.before_request_funcs[None].insert(0, page.let_in)
    app.after_request(page.finish)


@functools.cache
def _templates() -> jinja2.Environment:
    """Its own: an app's Jinja may be set up in any way."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("rtpool.flask.page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@functools.cache
def _asset(name: str) -> bytes:
    return resources.files("rtpool.flask.page").joinpath("static").joinpath(name).read_bytes()


class Page:
    """
    One app's page.

    Thread-safety: every method may be called from any thread.
    """

    def __init__(self, state: AppState) -> None:
        self._state = state
        self._guard = Guard(state)
        self._rooms: dict[int, tuple[Looker, Actions]] = {}
        self._registry: tuple[RealtimePool, CollectorRegistry] | None = None

    @property
    def looker(self) -> Looker:
        """Who looks at the pool."""
        return self._room[0]

    @property
    def actions(self) -> Actions:
        """What the buttons do."""
        return self._room[1]

    @property
    def _room(self) -> tuple[Looker, Actions]:
        """This process's own: a forked child may find the locks of its parent's held."""
        from rtpool.flask.page.actions import Actions  # not before it is asked for
        from rtpool.flask.page.looker import Looker

        found = self._rooms.get(os.getpid())
        return found or self._rooms.setdefault(os.getpid(), (Looker(self._state), Actions()))

    # Around every request

    def let_in(self) -> AnyResponse | None:
        """
        Before every request of the app, and before the router's own answers: one that is none of the page's goes on.
        """
        if not self._guard.concerns(request.path):
            return None
        is_health = request.path == HEALTH
        if not (self._guard.on or (is_health and self._guard.health_on)):
            self._guard.tell_of_a_missing_token()
            abort(404)
        self._guard.check_body()
        g.rtpool_visitor = visitor = self._guard.visitor() if self._guard.on else None
        if is_health and request.method in ("GET", "HEAD"):
            return self.health()
        if is_health or request.path == OPEN:
            return None
        if request.path == f"{PREFIX}/sign-in" and request.method == "POST":
            return None
        if visitor is None:
            return self._refuse(403)
        if visitor.by == "local" and self._guard.is_drawn_in():
            abort(403)
        return None

    def finish(self, response: Response) -> Response:
        """After every request of the app."""
        if self._guard.concerns(request.path) and "rtpool_visitor" in g:
            self._guard.protect(response)
        return response

    def _refuse(self, status: int, words: str = "") -> Response:
        """What whoever may see nothing gets: a form where there is a token to show, else how there can be one."""
        return self._render("refused.html", status, words=words, has_token=self._guard.has_token, least=SHORTEST_TOKEN)

    def _render(self, template: str, status: int = 200, **values: Any) -> Response:
        title = printable(self._state.app.name)
        text = _templates().get_template(template).render(url_for=url_for, app_name=title, **values)
        return Response(text, status, mimetype="text/html")

    # The page

    def show(self) -> Response:
        """The page itself."""
        return self._page(g.rtpool_visitor)

    def _page(self, visitor: Visitor, result: dict[str, Any] | None = None, *, now: bool = False) -> Response:
        looked = self.looker.look(0.0) if now else self.looker.look()
        response = self._render(
            "page.html",
            model=looked.model,
            tables=TABLES,
            actions=ACTIONS,
            result=result,
            csrf=self._guard.csrf_of(visitor),
            signed_in=visitor.by == "cookie",
            streams=_has_threads(),
        )
        if visitor.by == "local":
            self._keep_session(response, visitor.session)
        return response

    def _keep_session(self, response: Response, session: str) -> None:
        response.set_cookie(
            self._guard.cookie,
            session,
            max_age=int(SESSION_SECONDS),
            path=url_for("_rtpool.page"),
            secure=request.is_secure,
            httponly=True,
            samesite="Strict",
        )

    def look(self) -> Response:
        """A look, where there can be no stream of them."""
        return _json(self.looker.look().model)

    def events(self) -> Response:
        """The page's live updates: a look a second, made once for all that are open."""
        if not _has_threads():
            return Response("a stream would be all that this worker does; ask for look\n", 503, mimetype="text/plain")
        return self._state.streams.repeat("look", lambda: self.looker.look().model)

    def asset(self, name: str) -> Response:
        """The page's script and its looks; by name, from a list."""
        if name not in STATIC:
            abort(404)
        return Response(_asset(name), mimetype=STATIC[name])

    # What a form does

    def sign_in(self) -> AnyResponse:
        """Take the token, and give a cookie for it."""
        if not self._guard.has_token:
            return self._refuse(403)
        if not self._guard.is_same_origin():
            self._guard.tell_of_another_origin()
            return self._refuse(403, ANOTHER_ORIGIN)
        if not self._guard.is_token(self._guard.field("token")):
            return self._refuse(403, "That is not the token.")
        response = redirect(url_for("_rtpool.page"), 303)
        self._keep_session(response, self._guard.new_session())  # type: ignore[arg-type]
        return response

    def sign_out(self) -> AnyResponse:
        """Take the cookie back."""
        if not self._guard.may_act(g.rtpool_visitor):
            return self._stale()
        response = redirect(url_for("_rtpool.page"), 303)
        response.delete_cookie(self._guard.cookie, path=url_for("_rtpool.page"), httponly=True, samesite="Strict")
        return response

    def act(self, name: str) -> Response:
        """Press a button: the page with what came of it, or that alone as JSON."""
        if name not in {action.key for action in ACTIONS}:
            abort(404)
        visitor: Visitor = g.rtpool_visitor
        if not self._guard.may_act(visitor):
            return self._stale()
        try:
            debugger = self.looker.debugger(self._state.pool)
        except RtpoolError as error:
            result: dict[str, Any] = {"ok": False, "words": str(error), "details": []}
        else:
            result = self.actions.do(name, debugger)
            hide = self._state.pool._engine.logs.hide
            result = {**result, "words": printable(hide(result["words"]))}
        if visitor.by == "token" or request.accept_mimetypes.best == "application/json":
            return _json(result)
        return self._page(visitor, result, now=True)

    def _stale(self) -> Response:
        words = "This form is not the page's, or is of an earlier one: open the page again."
        if request.accept_mimetypes.best == "application/json":
            return _json({"ok": False, "words": words, "details": []}, 403)
        return self._refuse(403, words)

    # For machines

    def health(self) -> Response:
        """For probes: 200, or 503 while the pool is down. Whoever may see the page sees why."""
        try:
            told = self._state.pool.health().as_dict()
        except RtpoolError as error:
            told = {"ok": False, "verdict": "down", "status": "", "reasons": [str(error)], "age": None}
        status = 503 if told["verdict"] == "down" else 200
        if g.rtpool_visitor is None:
            return _json({"status": told["verdict"]}, status)
        return _json({**told, "status": told["verdict"], "connection_status": told["status"]}, status)

    def metrics(self) -> Response:
        """For Prometheus: this process's pool."""
        try:
            from prometheus_client.exposition import choose_encoder
        except ImportError:
            words = "There are no metrics: prometheus-client is not installed. pip install 'rtpool[prometheus]'\n"
            return Response(words, 404, mimetype="text/plain")
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return Response(encode(self._collectors()), content_type=content_type)

    def _collectors(self) -> CollectorRegistry:
        from prometheus_client import CollectorRegistry

        from rtpool.metrics import PrometheusCollector

        pool, known = self._state.pool, self._registry
        if known is None or known[0] is not pool:
            registry = CollectorRegistry()
            registry.register(PrometheusCollector(pool))
            known = self._registry = (pool, registry)
        return known[1]


def _has_threads() -> bool:
    """Whether the server handles other requests beside a stream: a sync worker of gunicorn's would be killed for it."""
    return bool(request.environ.get("wsgi.multithread"))


def _json(value: dict[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(value, default=str) + "\n", status, mimetype="application/json")

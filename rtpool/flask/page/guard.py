"""
Who may see the debug page, and act on it.

Off, it is not there: 404, as for any address the app does not have. On, whoever has not shown the token gets 403. In an
app in debug mode without a token, only a browser on the same machine sees it, by a name of that machine: a site whose
name is made to lead there (DNS rebinding) does not.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import attrs
from flask import abort, request

from rtpool.errors import RtpoolError
from rtpool.flask.config import Settings, read_settings
from rtpool.protocol.refusals import printable

if TYPE_CHECKING:
    from flask import Response

    from rtpool.flask.state import AppState

__all__ = ["Guard", "HEADERS", "PREFIX", "Visitor"]

PREFIX = "/_rtpool"
#: Bytes of a form; more is refused unread.
MAX_FORM = 4_096
#: Characters of a header in the log.
MAX_TOLD = 200
#: Seconds until the token is asked for again.
SESSION_SECONDS = 12 * 3600.0
#: Seconds between two lines in the log about one kind of trouble.
TELL_SECONDS = 60.0
#: What proxies add, and how it begins: what seems to come from this machine then does not.
FORWARDED = ("forwarded", "via", "true-client-ip", "x-forwarded-", "x-real-", "x-original-", "cf-")

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    # "no-referrer" would take the Origin from the page's own forms.
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Robots-Tag": "noindex, nofollow",
}


@attrs.frozen
class Visitor:
    """
    Who may see the page.

    Attributes:
        by: ``"token"`` in a header, ``"cookie"``, ``"local"``: nobody asked.
        session: what their cookie holds, or has to; empty for the first.
    """

    by: str
    session: str


class Guard:
    """
    Decides about every request to the page. Keeps nothing of any visitor.

    Thread-safety: every method may be called from any thread.
    """

    def __init__(self, state: AppState, *, clock: Callable[[], float] = time.time) -> None:
        self._state = state
        self._clock = clock
        self._random = secrets.token_bytes(32)
        self._told_why_off = False
        self._told: dict[str, tuple[float, int]] = {}  # of each line: when, and how many were not told; not to be exact

    # Whether it is there

    @staticmethod
    def concerns(path: str) -> bool:
        """Whether an address is the page's."""
        return path == PREFIX or path.startswith(f"{PREFIX}/")

    @property
    def on(self) -> bool:
        """Whether the page is there. Asked at each request: `app.debug` may be set after `init_app`."""
        settings, debug = self._settings, self._state.app.debug
        if settings.debug_page is None:
            return debug
        return settings.debug_page and (debug or self.has_token)

    @property
    def health_on(self) -> bool:
        """Whether probes are answered."""
        return self.on or self._settings.health

    @property
    def has_token(self) -> bool:
        """Whether there is a token to be shown."""
        return bool(self._token)

    @property
    def cookie(self) -> str:
        """The cookie's name, this app's own: all ports of a machine share their cookies."""
        app = self._state.app
        whose = hashlib.sha256(f"{app.name}\0{app.root_path}".encode()).hexdigest()
        return f"rtpool_{whose[:8]}"

    @property
    def _settings(self) -> Settings:
        """As the config is now: an app's may be completed after `init_app`."""
        try:
            return read_settings(self._state.app.config)
        except RtpoolError:  # the page shows it, where it is on
            return self._state.settings

    @property
    def _token(self) -> str:
        return self._settings.debug_token or ""

    # Who asks

    def visitor(self) -> Visitor | None:
        """Who the current request comes from; None for one who may see nothing."""
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return Visitor("token", "") if self.is_token(given.strip()) else None
        session = request.cookies.get(self.cookie, "")
        if self.is_session(session):
            return Visitor("cookie" if self._token else "local", session) if self._token or _is_local() else None
        return Visitor("local", self.new_session()) if not self._token and _is_local() else None

    def is_token(self, given: str) -> bool:
        """Whether it is the token, in a time that says nothing of how much of it is right. Wrong ones are logged."""
        right = hmac.compare_digest(*(hashlib.sha256(text.encode()).digest() for text in (given, self._token)))
        if right and self._token:
            return True
        self._tell("rtpool: %d wrong tokens for the debug page, the last from %s", request.remote_addr)
        return False

    def tell_of_another_origin(self) -> None:
        """Say in the log whose form it was that is refused."""
        origin = printable(request.headers.get("Origin", "none"))[:MAX_TOLD]
        own = printable(_own_origin())[:MAX_TOLD]
        words = "rtpool: %d forms of the debug page refused, the last from %r (a proxy's, without ProxyFix?), not %r"
        self._tell(words, origin, own)

    def tell_of_a_missing_token(self) -> None:
        """Say in the log, once, why the page is not there though the config asks for it."""
        if self._settings.debug_page and not self.on and not self._told_why_off:
            self._told_why_off = True
            words = "rtpool: RTPOOL_DEBUG_PAGE without an RTPOOL_DEBUG_TOKEN opens no page outside of debug mode"
            self._state.app.logger.warning(words)

    def _tell(self, words: str, *values: object) -> None:
        """Say something about visitors, now and then; how often it was begins the values."""
        now = self._clock()
        told_at, untold = self._told.get(words, (-TELL_SECONDS, 0))
        if now - told_at < TELL_SECONDS:
            self._told[words] = told_at, untold + 1
            return
        self._told[words] = now, 0
        self._state.app.logger.warning(words, untold + 1, *values)

    def new_session(self) -> str:
        """What the cookie of somebody who showed the token holds: nothing of the token, and how long it is good for."""
        head = f"{int(self._clock() + SESSION_SECONDS)}.{secrets.token_urlsafe(16)}"
        return f"{head}.{self._sign('session', head)}"

    def is_session(self, session: str) -> bool:
        """Whether a cookie is one of ours, and still good."""
        head, _, signature = session.rpartition(".")
        expires = head.partition(".")[0]
        if not hmac.compare_digest(signature.encode(), self._sign("session", head).encode()):
            return False
        return expires.isdecimal() and int(expires) > self._clock()

    def csrf_of(self, visitor: Visitor) -> str:
        """What a form has to bring along: nobody but this app can make it, and it is of use with one cookie only."""
        return self._sign("form", visitor.session)

    def _sign(self, purpose: str, text: str) -> str:
        """By a key that all workers of an app have; without token and secret key, only this process."""
        secret = self._token or self._state.app.secret_key or self._random
        raw = secret.encode() if isinstance(secret, str) else secret
        key = hashlib.sha256(b"rtpool debug page\0" + raw).digest()
        return hmac.new(key, f"{purpose}\0{text}".encode(), hashlib.sha256).hexdigest()

    # What they may do

    @staticmethod
    def check_body() -> None:
        """Abort a request whose body is none of the page's forms, unread."""
        if request.headers.get("Transfer-Encoding") or (request.content_length or 0) > MAX_FORM:
            abort(413)

    @staticmethod
    def field(name: str) -> str:
        """What a form has in a field, empty without one; of a body of unknown length nothing is read."""
        return request.form.get(name, "") if request.content_length else ""

    @staticmethod
    def is_same_origin() -> bool:
        """Whether the page itself made a request, by the browser's word."""
        site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
        if site is not None and site != "same-origin":
            return False
        if origin is None:
            return site is not None
        return origin.lower() == _own_origin()

    @staticmethod
    def is_drawn_in() -> bool:
        """Whether another site's page fetches this, rather than a person following a link."""
        cross = request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site")
        return cross and request.headers.get("Sec-Fetch-Mode") != "navigate"

    def may_act(self, visitor: Visitor) -> bool:
        """Whether the current request may change something: a form of the page's own, or a program with the token."""
        if visitor.by == "token":
            return True
        given = self.field("csrf")
        return self.is_same_origin() and hmac.compare_digest(given.encode(), self.csrf_of(visitor).encode())

    @staticmethod
    def protect(response: Response) -> Response:
        """Give a response the headers that all of the page's have."""
        for name, value in HEADERS.items():
            response.headers[name] = value
        return response


def _is_local() -> bool:
    """Whether a browser on this machine asks, by a name that no other machine can have."""
    if any(name.lower().startswith(FORWARDED) for name, _ in request.headers):
        return False
    return _is_loopback(request.remote_addr or "") and _is_loopback(_hostname(request.host))


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _own_origin() -> str:
    return f"{request.scheme}://{request.host}".lower()

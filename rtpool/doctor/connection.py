"""
The steps of one connection: the upgrade to a WebSocket, the clocks, heartbeats, and what limits there are.
"""

from __future__ import annotations

import queue
import time
from typing import Any
from urllib.parse import urlsplit

import attrs

from rtpool.doctor.case import Case, spread
from rtpool.doctor.report import Finding, failed, ok, skipped, warning
from rtpool.engine.descriptors import close
from rtpool.engine.dialer import Endpoint, dial
from rtpool.engine.streams import Address
from rtpool.engine.timed import HEAD_LIMIT, Answer, TimedSocket, read_answer, request_head
from rtpool.errors import ConnectionFailed, HandshakeRefused, InvalidValue
from rtpool.events import Heartbeat, StatusChange
from rtpool.protocol.refusals import Action, printable

__all__ = ["ACTIONS", "beat", "compare_clocks", "list_limits", "upgrade"]

#: What rtpool does by itself about a refusal.
ACTIONS = {
    Action.RETRY: "rtpool tries again at once",
    Action.BACK_OFF: "it may pass: rtpool goes on trying",
    Action.BACK_OFF_LONG: "it may pass: rtpool tries again after 10 s and more",
    Action.OTHER_SOCKET: "rtpool moves to another connection",
    Action.NEW_TOKEN: "rtpool waits for another key or token",
    Action.FATAL: "rtpool does not try again",
}

#: What to do about a refused upgrade: words of the body, then statuses.
BY_WORDS = {
    "API key is missing": "No key got there. Does a proxy or gateway strip the query?",
    "No API key found": "No key got there. Does a proxy or gateway strip the query?",
    "Token has expired": "The key has expired: take the project's present one.",
    "Fields `role` and `exp`": "The key is a JWT that Realtime cannot use: take one of Project Settings, API Keys.",
    "Failed to validate JWT signature": "The key is of another project, or was made with another JWT secret.",
    "JWT signer": "Look at the project's JWT secret or signing keys; after a rotation wait half a minute.",
    "not a valid JWT": "The key is cut, or sb_… was sent past Supabase's gateway, which alone knows such keys.",
    "Tenant not found": "There is no project of that reference here; of a self-hosted server the tenant is the first "
    "label of the host's name.",
    "Realtime was disabled": "The project is suspended or Realtime switched off: Project Settings, and billing.",
    "Too many connected users": "As many sockets are joined as the plan allows. Close others: let all of a process "
    "share one pool.",
    "Too many joins": "The project joins too fast, all clients together: spread them, or raise the plan's limit.",
}
BY_STATUS = {
    400: "Something between strips the headers of the upgrade. Look at the proxy's configuration for WebSockets.",
    401: "The key is not this project's, or not complete.",
    403: "Servers before 2.115 answer every refusal so: look at the key, the project and its limits. A gateway or "
    "firewall may forbid WebSockets.",
    404: "There is no Realtime server at this path: give the project's URL without a path. A project that is paused "
    "answers so, too.",
    407: "A proxy between wants credentials: give it as --proxy.",
    410: "The project was deleted.",
    414: "The key is too long for a URL.",
    426: "Something between does not speak WebSocket.",
    429: "Too many connections or joins at present. Wait, and share one pool.",
    431: "The key is too long for a header.",
    502: "The gateway does not reach the server behind it: is it running? See status.supabase.com.",
    503: "The server is overloaded or starting. See status.supabase.com.",
    504: "The gateway got no answer from the server behind it.",
    540: "The project is paused: restore it in the dashboard.",
}

#: Seconds the clocks may be apart; the header that tells has whole seconds.
CLOCKS_APART = 2.0
#: Heartbeats that are sent, and seconds between them.
BEATS, BETWEEN = 5, 0.05
#: Part of a limit from which on it is told of.
NEAR = 0.8


def upgrade(case: Case) -> Finding:
    """Whether the server lets the key in, by rtpool's own dial."""
    try:
        endpoint = Endpoint.from_url(case.url, case.key or None)
    except InvalidValue as error:
        return failed(str(error), "The step key says what is wrong with it.")
    options = attrs.evolve(case.options, connection_timeout=max(0.1, case.wait))
    started = time.monotonic()
    try:
        dialed = dial(endpoint, options, case.cancelled)
    except HandshakeRefused as error:
        return _refused(case, error)
    except ConnectionFailed as error:
        way = "TCP and TLS work" if Address.from_url(endpoint.url).secure else "TCP works"
        advice = f"{way}: what answers is no WebSocket server, or hangs."
        return failed(str(error), advice, retryable=error.retryable)
    close(dialed.sock)
    case.skew = dialed.clock_skew
    milliseconds = (time.monotonic() - started) * 1000
    return ok(f"HTTP 101: the server lets this key in, {milliseconds:.0f} ms in all", status=101)


def _refused(case: Case, error: HandshakeRefused) -> Finding:
    status, body = error.status, printable(error.body.strip())
    case.refusals.append(f"HTTP {status}: {body[:100]}")
    details = {"status": status, "action": error.action.value, "retry_after": error.retry_after}
    advice = next((text for words, text in BY_WORDS.items() if words in body), None) or BY_STATUS.get(status)
    if 200 <= status < 300 or "<html" in body.lower():
        said = f"HTTP {status} with a web page" if "<html" in body.lower() else f"HTTP {status} in place of 101"
        advice = (
            "Something else answers in the server's place: a captive portal (open a browser and sign in to the "
            "network), a proxy's page, or a website at this address."
        )
    elif 300 <= status < 400:
        said, advice = f"HTTP {status}: it points elsewhere", _elsewhere(error)
    else:
        said = f"HTTP {status}: {_said(body)}"
    wait = f", and asks to wait {error.retry_after:g} s" if error.retry_after is not None else ""
    return failed(f"{said} ({ACTIONS[error.action]}{wait})", advice or "Look at the server's log.", **details)


def _said(body: str) -> str:
    """The words of a refusal, without the JSON around them."""
    for start in ('{"error":"', '{"message":"'):
        if body.startswith(start) and body.endswith('"}'):
            return body[len(start) : -2].replace('\\"', '"')[:200]
    return body[:200] or "no words"


def _elsewhere(error: HandshakeRefused) -> str:
    _, points, rest = str(error).partition("It points to ")
    return f"It points to {rest}" if points else "Give the URL it points to."


def compare_clocks(case: Case) -> Finding:
    """How far this machine's clock is from the server's, by the header ``Date``."""
    skew = case.skew
    if not skew:
        return skipped("the server's answer has no date")
    # The header is cut to whole seconds: as it comes it tells up to one too few.
    seconds = skew if skew > 0 else min(0.0, skew + 1.0)
    if abs(seconds) <= CLOCKS_APART:
        return ok("this machine's clock and the server's agree", seconds=round(skew, 3))
    late = "behind" if seconds > 0 else "ahead of"
    return warning(
        f"this machine's clock is {abs(seconds):,.0f} s {late} the server's",
        "Set it (NTP). By it tokens seem to be valid or over, gaps are dated, and replays asked for.",
        seconds=round(skew, 3),
    )


def beat(case: Case) -> Finding:
    """Whether heartbeats are answered, and how fast."""
    told: queue.SimpleQueue[Heartbeat | StatusChange] = queue.SimpleQueue()
    pool = case.new_pool(heartbeat_interval=BETWEEN, heartbeat_timeout=max(0.1, case.wait), auto_reconnect=False)
    pool.on_heartbeat(told.put)
    latencies: list[float] = []
    try:
        pool.connect(max(0.1, case.wait))
        pool.on_status(told.put)
        deadline = time.monotonic() + case.wait + BETWEEN * BEATS
        while len(latencies) < BEATS:
            news = told.get(timeout=max(0.0, deadline - time.monotonic()))
            if isinstance(news, StatusChange):
                if news.error is not None:
                    raise news.error
            elif news.status == "timeout":
                raise queue.Empty
            elif news.latency is not None:
                latencies.append(news.latency)
    except queue.Empty:
        return failed(
            f"{len(latencies)} of {BEATS} heartbeats were answered within {case.patience:g} s",
            "The upgrade went through and then nothing: the server hangs, or something between keeps the connection "
            "and passes nothing on (a proxy without support for WebSockets, an antivirus).",
            answered=len(latencies),
        )
    except ConnectionFailed as error:
        return failed(str(error), "The connection ended at once: look at the server's log, and at proxies between.")
    finally:
        pool.close(1.0)
    shown = dict(spread(latencies))
    return ok(
        f"{BEATS} answered, p50 {shown['p50'] * 1000:.1f} ms",
        milliseconds={name: round(value * 1000, 3) for name, value in shown.items() if name == "p50"},
        answered=BEATS,
    )


def list_limits(case: Case) -> Finding:
    """What the server tells of its limits, and which were met."""
    pace = case.pool.stats().joins_per_second
    announced = _announced(case)
    limit, rolling = announced.get("x-rate-limit"), announced.get("x-rate-rolling")
    details: dict[str, Any] = {
        "events_per_second": limit,
        "events_at_present": rolling,
        "joins_per_second": pace,
        "refused": list(case.refusals),
        "max_channels_per_connection": case.options.max_channels_per_connection,
        "max_payload_size": case.options.max_payload_size,
    }
    words = f"{limit:g} events/s announced ({rolling or 0:g} used), no others" if limit else "none announced"
    met = [refusal for refusal in case.refusals if "Too many" in refusal or "limit" in refusal.lower()]
    if met:
        return warning(f"{words}; met: {met[0]}", LIMITS, **details)
    if limit and rolling is not None and rolling >= NEAR * limit:
        who = "unless a doctor just before this one sent them, the project is near its limit of events"
        return warning(words, f"{who[0].upper()}{who[1:]}. {LIMITS}", **details)
    return ok(words, **details)


LIMITS = "Set max_joins_per_second and max_events_per_second below the plan's (supabase.com/docs, Realtime quotas)."


def _announced(case: Case) -> dict[str, float]:
    """The ``x-rate-…`` headers of the server's REST side; none where it cannot be reached."""
    parts = urlsplit(case.endpoint.url)
    path = parts.path.removesuffix("/websocket").removesuffix("/socket").rstrip("/")
    headers = [("Host", parts.netloc), ("Connection", "close"), ("Accept-Encoding", "identity"), *case.options.headers]
    if case.key:
        headers.append(("apikey", case.key))
    try:
        answer = _get(case, f"{path}/api/ping", headers)
    except Exception:  # of several libraries; what is not announced is not known
        return {}
    found = {}
    for name in ("x-rate-limit", "x-rate-rolling"):
        value = (answer.headers[name] or "").strip()
        if value.replace(".", "", 1).isdigit() and value.isascii():
            found[name] = float(value)
    return found


def _get(case: Case, path: str, headers: list[tuple[str, str]]) -> Answer:
    with case.open(secure=Address.from_url(case.endpoint.url).secure) as sock:
        stream = TimedSocket(sock, time.monotonic() + case.wait, 2 * HEAD_LIMIT)
        stream.sendall(request_head("GET", path, headers))
        return read_answer(stream, "GET", expected=(), limit=1_000)

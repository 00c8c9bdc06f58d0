"""
The first steps: what the URL says, what the host's name means.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Any
from urllib.parse import SplitResult, urlsplit

from rtpool.doctor.case import Case
from rtpool.doctor.report import Finding, failed, ok, skipped, warning
from rtpool.engine.dialer import Endpoint
from rtpool.errors import InvalidValue
from rtpool.protocol.refusals import printable

__all__ = ["look_up", "project_of", "read_url"]

#: What a URL is asked to look like.
SHAPE = "It looks like https://<project>.supabase.co: Project Settings, Data API."
#: Where a project of Supabase's own is.
_PROJECT = re.compile(r"([a-z0-9-]+)\.supabase\.(?:co|in|red)")
#: Hosts and ports of Supabase that are something else, what it is, and what to give in its place.
OTHERS = (
    (re.compile(r"(.*\.)?supabase\.com"), None, "the dashboard's, or the connection pooler's"),
    (re.compile(r"db\..*\.supabase\.(co|in|red)"), None, "the database's"),
    (re.compile(r".*"), 5432, "the database's, by its port"),
    (re.compile(r".*"), 6543, "the connection pooler's, by its port"),
)
#: Ports of the Supabase CLI on a developer's machine, beside 54321, which is the API's.
CLI_PORTS = {54322: "the database", 54323: "Studio", 54324: "the mail catcher", 54329: "the connection pooler"}
#: Paths of a project's other services.
SERVICES = {
    "/rest/v1": "the REST API",
    "/auth/v1": "Auth",
    "/storage/v1": "Storage",
    "/functions/v1": "Edge Functions",
    "/graphql/v1": "GraphQL",
}
#: Last labels of names that are nobody's on the internet.
INSIDE = ("localhost", "local", "internal", "lan", "test", "example", "home", "corp", "docker")


def project_of(host: str) -> str | None:
    """The reference of the project behind a host of Supabase's; None for any other."""
    match = _PROJECT.fullmatch(host)
    return match[1] if match else None


def read_url(case: Case) -> Finding:
    """Whether the URL has the form of a project's, and none of the usual mistakes."""
    url = case.url
    if url != url.strip().strip("\"'"):
        return failed("there are spaces or quotes around the URL", "Take them off; look at the .env file it is from.")
    try:
        parts = urlsplit(url)
        if parts.scheme in ("postgres", "postgresql"):
            return failed("this is the database's connection string", SHAPE)
        if parts.scheme.lower() not in ("https", "http", "wss", "ws"):
            hint = "" if "://" in url else "Put https:// in front. "
            return failed("the URL begins with none of https://, http://, wss:// and ws://", hint + SHAPE)
        parts.port  # noqa: B018 - raises; its words may repeat a password
        endpoint = Endpoint.from_url(url, None)
    except InvalidValue as error:
        return failed(str(error), SHAPE)
    except ValueError:
        return failed("the URL cannot be read: look at its host and port", SHAPE)
    case.endpoint = endpoint
    return _mistake(parts, case.host) or _in_the_clear(parts, case) or ok(endpoint.url, url=endpoint.url)


def _mistake(parts: SplitResult, host: str) -> Finding | None:
    for hosts, port, whose in OTHERS:
        if hosts.fullmatch(host) and port in (None, parts.port):
            found = re.search(r"/project/([a-z0-9]+)", parts.path) or re.match(r"db\.([a-z0-9]+)\.", host)
            return failed(
                f"this address is {whose}, not the project's API",
                f"Give https://{found[1]}.supabase.co." if found else SHAPE,
            )
    if parts.port in CLI_PORTS and _is_here(host):
        return failed(
            f"on port {parts.port} the Supabase CLI serves {CLI_PORTS[parts.port]}",
            "The API is on port 54321: see API URL in `supabase status`.",
        )
    for path, service in SERVICES.items():
        if parts.path.startswith(path):
            return failed(f"the path {path} is that of {service}", "Leave the path out: rtpool adds /realtime/v1.")
    path = parts.path.rstrip("/")
    if project_of(host) and path not in ("", "/realtime/v1", "/realtime/v1/websocket"):
        return failed(
            f"a project has nothing at {printable(path)[:60]}", "Leave the path out: rtpool adds /realtime/v1."
        )
    return None


def _in_the_clear(parts: SplitResult, case: Case) -> Finding | None:
    """What goes over the internet without TLS."""
    if parts.scheme.lower() in ("https", "wss") or not _is_public(case.host):
        return None
    url = case.endpoint.url
    return warning(f"{url}: without TLS", "The key and all messages can be read on the way. Use https://.", url=url)


def _is_public(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return "." in host and host.rpartition(".")[2] not in INSIDE


def _is_here(host: str) -> bool:
    return host in ("localhost", "127.0.0.1", "::1", "host.docker.internal")


def look_up(case: Case) -> Finding:
    """Which addresses the host, or the proxy, has."""
    if case.options.dial is not None:
        return skipped("the option dial opens the connections")
    host, port, _ = case.target
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        return failed(f"{host} cannot be found: {why}", _unknown(case, host), host=host)
    case.addresses = [(family, str(address[0]), port) for family, _, _, _, address in found]
    texts = [text for _, text, _ in case.addresses]
    details: dict[str, Any] = {"host": host, "addresses": texts}
    if all(family == socket.AF_INET6 for family, _, _ in case.addresses):
        return warning(
            f"{host} has IPv6 addresses only: {_listed(texts)}",
            "Where this machine's network has no IPv6 they cannot be reached. Many containers have none.",
            **details,
        )
    whose = "the proxy " if case.options.proxy else ""
    return ok(texts[0] if texts == [host] else f"{whose}{host}: {_listed(texts)}", **details)


def _unknown(case: Case, host: str) -> str:
    if case.options.proxy:
        return "Look at the name in --proxy, and at this machine's DNS."
    project = project_of(host)
    if project:
        return (
            f"Look at the project's reference ({project}) letter by letter. A project that was deleted, or has been "
            "paused for long, has no name any more. Else this machine's DNS is in trouble."
        )
    return "Look at the name letter by letter, and at this machine's DNS, VPN and /etc/hosts."


def _listed(texts: list[str]) -> str:
    shown = ", ".join(texts[:3])
    return shown if len(texts) <= 3 else f"{shown} and {len(texts) - 3} more"

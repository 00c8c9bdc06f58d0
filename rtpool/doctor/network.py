"""
The steps between the address and the WebSocket: TCP, a proxy, TLS.
"""

from __future__ import annotations

import errno
import ssl
import time
from datetime import datetime, timezone
from socket import AF_INET6, IPPROTO_TCP, SOCK_STREAM, socket
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from rtpool.doctor.case import Case
from rtpool.doctor.certificate import Certificate, read_certificate
from rtpool.doctor.report import Finding, failed, ok, skipped, warning
from rtpool.engine.descriptors import close
from rtpool.engine.streams import Address, failure
from rtpool.errors import ConnectionFailed, ProxyRefused

__all__ = ["connect", "shake_hands", "through_proxy"]

#: Addresses that are tried at most; nobody has so many by intent.
MOST = 8
#: What else leads to a certificate for other names, and what to do about an authority that is not trusted.
ASTRAY = "A name in /etc/hosts, and a proxy that ends TLS, lead to a wrong one as well."
UNTRUSTED = (
    "For a private authority pass an ssl_context with its cafile, or set SSL_CERT_FILE. For a public one the server "
    "leaves out an intermediate, or this machine lacks root certificates (ca-certificates, certifi)."
)
#: Days before its end from which on a certificate is told of.
SOON = 14


def connect(case: Case) -> Finding:
    """Whether each address takes a connection, and how fast."""
    if case.options.dial is not None:
        return skipped("the option dial opens the connections")
    tried = case.addresses[:MOST]
    deadline = time.monotonic() + case.wait
    times: dict[str, float] = {}
    troubles: dict[str, OSError] = {}
    for index, (family, address, port) in enumerate(tried):
        share = max(0.1, (deadline - time.monotonic()) / (len(tried) - index))
        started = time.monotonic()
        try:
            _connect(case, family, address, port, share)
        except OSError as trouble:
            troubles[address] = trouble
        else:
            times[address] = time.monotonic() - started
    port = case.target.port
    whose = "the proxy's " if case.options.proxy else ""
    details: dict[str, Any] = {
        "port": port,
        "milliseconds": {address: round(seconds * 1000, 3) for address, seconds in times.items()},
        "failed": {address: _why(error) for address, error in troubles.items()},
    }
    if not times:
        last = list(troubles.values())[-1]
        at = ", ".join(troubles) if len(troubles) < 3 else f"none of {len(troubles)} addresses"
        return failed(f"{whose}port {port} of {at}: {_why(last)}", _blocked(case, last), **details)
    fastest = f"{whose}port {port} answers in {min(times.values()) * 1000:.1f} ms"
    if troubles:
        address, error = next(iter(troubles.items()))
        return warning(
            f"{fastest}, but {len(troubles)} of {len(tried)} addresses do not: {address}: {_why(error)}",
            "rtpool tries them in the order of DNS, and a silent one costs its share of connection_timeout first. "
            "Mend the route to it, or take it out of DNS.",
            **details,
        )
    return ok(fastest if len(times) == 1 else f"{fastest}, all {len(times)} addresses do", **details)


def _connect(case: Case, family: int, address: str, port: int, seconds: float) -> None:
    sock = socket(family, SOCK_STREAM, IPPROTO_TCP)
    try:
        sock.settimeout(seconds)
        sock.connect((address, port, 0, 0) if family == AF_INET6 else (address, port))
    finally:
        close(sock)


def _why(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    return (error.strerror or str(error)).lower()


def _blocked(case: Case, error: OSError) -> str:
    proxy = case.options.proxy is not None
    asked = f"the proxy {case.target}" if proxy else f"{case.target}"
    if error.errno == errno.ECONNREFUSED:
        port, whose = ("the port in --proxy", "the proxy") if proxy else ("the port", "the server")
        words = f"Nothing listens at {asked}: look at {port}, and whether {whose} runs."
    elif error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
        words = f"There is no route to {asked}: look at this machine's network, VPN and IPv6."
    else:
        words = f"A firewall between here and {asked} drops the packets, or the machine is off."
    named = _of_environment(case)
    return f"{words} {named} is set: if only the proxy leads out, give it as --proxy." if named else words


def _of_environment(case: Case) -> str | None:
    """The variable that names a proxy for this server; rtpool itself heeds none."""
    if case.options.proxy is not None:
        return None
    proxies = getproxies_environment()
    scheme = "https" if urlsplit(case.endpoint.url).scheme == "wss" else "http"
    name = next((name for name in (scheme, "all") if name in proxies), None)
    if name is None or proxy_bypass(case.host):
        return None
    return f"{name.upper()}_PROXY"


def through_proxy(case: Case) -> Finding:
    """Whether a proxy lets us through; and whether there is one that is not used."""
    if case.options.dial is not None:
        return skipped("the option dial opens the connections")
    if case.options.proxy is None:
        named = _of_environment(case)
        if named is None:
            return ok("none: the way is direct", used=False)
        return ok(
            f"none: the way is direct, and {named} is not used",
            f"rtpool heeds no variable. It works without; if it is to go by the proxy, give option proxy ({named}).",
            used=False,
            variable=named,
        )
    at, scheme = case.target, urlsplit(case.options.proxy).scheme
    try:
        with case.open(secure=False):
            return ok(f"{scheme}://{at} leads to {_server(case)}", used=True, proxy=f"{scheme}://{at}")
    except ProxyRefused as error:
        return failed(f"{error}", _refused_by_proxy(error), used=True, status=error.status)
    except Exception as error:  # of several libraries
        failing = error if isinstance(error, ConnectionFailed) else failure(f"the proxy {at}", error, case.wait)
        return failed(f"{failing}", f"Is there a {scheme} proxy at {at}? Look at the scheme in --proxy.", used=True)


def _server(case: Case) -> Address:
    return Address.from_url(case.endpoint.url)


def _refused_by_proxy(error: ProxyRefused) -> str:
    if error.status in (401, 407):
        return "The proxy wants a user and a password: --proxy http://user:password@host:port, each quoted for a URL."
    if error.status in (403, 405, 2):
        return "The proxy's rules forbid it. Ask who runs it to allow CONNECT to this host and port."
    if error.status in (502, 503, 504, 3, 4, 5):
        return "The proxy itself does not reach the server: look at its DNS and its way out."
    return "Ask who runs the proxy; rtpool tries again by itself only where it may pass."


def shake_hands(case: Case) -> Finding:
    """What TLS is spoken, and what the certificate says."""
    if not Address.from_url(case.endpoint.url).secure:
        return skipped("the URL asks for none")
    where = f"{_server(case)}"
    try:
        with case.open(secure=True) as sock:
            assert isinstance(sock, ssl.SSLSocket)
            version, cipher = sock.version() or "TLS", (sock.cipher() or ("",))[0]
            certificate = read_certificate(sock.getpeercert(True) or b"")
    except ssl.SSLCertVerificationError as error:
        return _distrusted(case, error)
    except Exception as error:  # of several libraries
        failing = error if isinstance(error, ConnectionFailed) else failure(where, error, case.wait)
        return failed(f"{failing}", _no_tls(error), where=where)
    days = (certificate.not_after - _now()).days
    words = f"{version}, certificate by {certificate.issuer or 'nobody'}, {days} days left"
    details = {"version": version, "cipher": cipher, **_described(certificate)}
    if days < SOON:
        return warning(
            words, f"It ends on {certificate.not_after:%Y-%m-%d}: renew it, or see why that fails.", **details
        )
    return ok(words, **details)


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _described(certificate: Certificate) -> dict[str, Any]:
    return {
        "subject": certificate.subject,
        "issuer": certificate.issuer,
        "names": list(certificate.names[:20]),
        "not_before": certificate.not_before.isoformat(),
        "not_after": certificate.not_after.isoformat(),
        "self_signed": certificate.self_signed,
    }


def _distrusted(case: Case, error: ssl.SSLCertVerificationError) -> Finding:
    """Look at the certificate all the same, to tell why; nothing is sent over that connection."""
    why = getattr(error, "verify_message", str(error))
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    try:
        with case.open(secure=True, ssl_context=unverified) as sock:
            assert isinstance(sock, ssl.SSLSocket)
            certificate = read_certificate(sock.getpeercert(True) or b"")
    except (ConnectionFailed, OSError, ValueError):
        return failed(f"the certificate is not trusted: {why}", "Its contents could not be read.")
    words, advice = _explained(case, certificate, why)
    return failed(words, advice, reason=why, **_described(certificate))


def _explained(case: Case, certificate: Certificate, why: str) -> tuple[str, str]:
    now = _now()
    clock = f"This machine's clock says {now:%Y-%m-%d %H:%M} UTC: if that is wrong, set it."
    if now > certificate.not_after:
        days = (now - certificate.not_after).days
        return (
            f"the certificate expired on {certificate.not_after:%Y-%m-%d}, {days} days ago",
            f"Renew it on the server. {clock}",
        )
    if now < certificate.not_before:
        return f"the certificate begins on {certificate.not_before:%Y-%m-%d}", clock
    if "mismatch" in why.lower() or "doesn't match" in why:
        names = ", ".join(certificate.names[:4]) or certificate.subject or "nobody"
        return (
            f"the certificate is not for {case.host}: it is for {names}",
            f"Give a URL with one of its names, or have the server serve one for {case.host}. {ASTRAY}",
        )
    if certificate.self_signed:
        return (
            f"the certificate of {certificate.subject or case.host} is self-signed",
            "Pass an ssl_context that trusts it (cafile=…), or set SSL_CERT_FILE. Never turn verification off.",
        )
    return (
        f"nobody here trusts who issued the certificate, {certificate.issuer or 'unnamed'}: {why}",
        UNTRUSTED,
    )


def _no_tls(error: Exception) -> str:
    reason = getattr(error, "reason", None) or ""
    if "WRONG_VERSION_NUMBER" in str(reason) or "RECORD_LAYER_FAILURE" in str(reason):
        return "What answers speaks no TLS: look at the port, or give the URL as http://."
    if isinstance(error, TimeoutError):
        return "It takes connections and answers nothing: its process hangs, or a firewall swallows TLS."
    if "EOF" in str(reason):
        return "It hung up: it may speak no TLS (then give the URL as http://), or a firewall between breaks it off."
    return "Something between, such as a proxy that ends TLS or a firewall, may break it off."

"""TLS on the way to the server: who is trusted, who is told, client certificates."""

from __future__ import annotations

import contextlib
import datetime
import re
import socket
import ssl
from typing import Any

import pytest
import trustme

from rtpool import Action
from rtpool.testing import RealtimeServer
from tests.conftest import MakePool
from tests.support.peer import Peer, Serve, silence
from tests.support.ways import fails, serving, trusting, works

YESTERDAY = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)


def only_shaking_hands(context: ssl.SSLContext) -> Serve:
    """Serve TLS as far as its handshake, whether it succeeds or not, then keep still."""

    def serve(peer: Peer, sock: socket.socket) -> None:
        with (
            contextlib.suppress(ssl.SSLError),
            context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False) as secured,
        ):
            try:
                secured.do_handshake()
            finally:
                silence(peer, sock)  # hanging up at once could overtake the alert

    return serve


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_private_authority_is_trusted_and_the_name_is_indicated(
    version: ssl.TLSVersion, authority: trustme.CA, make_pool: MakePool
) -> None:
    names: list[str | None] = []
    context = serving(authority, "localhost", "127.0.0.1")
    context.maximum_version = version
    context.sni_callback = lambda sock, name, _: names.append(name)
    with RealtimeServer(ssl_context=context) as server:
        for host in ("localhost", "127.0.0.1"):
            url = f"https://{host}:{server.port}"
            works(make_pool(url, api_key=server.api_key, ssl_context=trusting(authority)))
    assert names == ["localhost", None]  # RFC 6066 §3: an address is not indicated


@pytest.mark.parametrize(
    ("names", "details", "trusted", "words"),
    [
        (["127.0.0.1"], {}, False, "certificate of wss://127.0.0.1:.* is not trusted: .*pass ssl_context"),
        (["127.0.0.1"], {"not_before": YESTERDAY, "not_after": YESTERDAY}, True, "has expired"),
        (["other.example"], {}, True, "IP address mismatch"),
        (["127.0.0.2"], {}, True, "IP address mismatch"),
    ],
    ids=["another authority", "expired", "another name", "another address"],
)
def test_a_certificate_that_does_not_hold_is_told_and_not_tried_again(
    names: list[str], details: dict[str, Any], trusted: bool, words: str, authority: trustme.CA
) -> None:
    def serve(peer: Peer, sock: socket.socket) -> None:
        sock.recv(1)

    with Peer(serve, tls=serving(authority, *names, **details)) as peer:
        context = trusting(authority if trusted else trustme.CA())
        error = fails(f"https://127.0.0.1:{peer.port}", ssl_context=context)
    assert re.search(words, str(error))
    assert error.action is Action.FATAL
    assert isinstance(error.__cause__, ssl.SSLCertVerificationError)


def test_a_client_certificate_is_shown_to_a_server_that_wants_one(authority: trustme.CA, make_pool: MakePool) -> None:
    wanting = serving(authority, "127.0.0.1")
    wanting.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(wanting)
    ours = trusting(authority)
    authority.issue_cert("client@example.org").configure_cert(ours)
    with RealtimeServer(ssl_context=wanting) as server:
        works(make_pool(server.url, api_key=server.api_key, ssl_context=ours))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("shown", ["none", "of another authority"])
def test_a_client_certificate_that_is_missing_or_wrong_is_told_and_not_tried_again(
    version: ssl.TLSVersion, shown: str, authority: trustme.CA
) -> None:
    wanting = serving(authority, "127.0.0.1")
    wanting.verify_mode, wanting.maximum_version = ssl.CERT_REQUIRED, version
    authority.configure_trust(wanting)
    ours = trusting(authority)
    if shown != "none":
        trustme.CA().issue_cert("client@example.org").configure_cert(ours)

    with Peer(only_shaking_hands(wanting)) as peer:
        error = fails(f"https://127.0.0.1:{peer.port}", ssl_context=ours)
    assert "refused our side of TLS" in str(error)
    assert "load_cert_chain" in str(error)
    assert not error.retryable


@pytest.mark.parametrize("ours_is_newer", [True, False])
def test_a_server_without_a_tls_version_in_common_is_told_and_not_tried_again(
    ours_is_newer: bool, authority: trustme.CA
) -> None:
    theirs, ours = serving(authority, "127.0.0.1"), trusting(authority)
    old, new = (theirs, ours) if ours_is_newer else (ours, theirs)
    old.maximum_version, new.minimum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3

    with Peer(only_shaking_hands(theirs)) as peer:
        error = fails(f"https://127.0.0.1:{peer.port}", ssl_context=ours)
    assert "no TLS version in common" in str(error)
    assert error.action is Action.FATAL
    assert isinstance(error.__cause__, ssl.SSLError)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_certificate_that_has_expired_is_told_and_not_tried_again(
    version: ssl.TLSVersion, authority: trustme.CA
) -> None:
    wanting, ours = serving(authority, "127.0.0.1"), trusting(authority)
    wanting.verify_mode, wanting.maximum_version = ssl.CERT_REQUIRED, version
    authority.configure_trust(wanting)
    authority.issue_cert("client@example.org", not_before=YESTERDAY, not_after=YESTERDAY).configure_cert(ours)

    with Peer(only_shaking_hands(wanting)) as peer:
        error = fails(f"https://127.0.0.1:{peer.port}", ssl_context=ours)
    assert "refused our side of TLS" in str(error)
    assert error.action is Action.FATAL


def test_a_server_without_tls_is_told_where_tls_was_asked_for(server: RealtimeServer) -> None:
    assert isinstance(fails(f"https://127.0.0.1:{server.port}").__cause__, ssl.SSLError)

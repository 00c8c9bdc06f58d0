"""Ways to the server: addresses, proxies, dial functions, TLS, headers; what goes wrong on them, and what is told."""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from typing import Any

import pytest
import trustme
import websocket._handshake

import rtpool
from rtpool.engine.dialer import Endpoint
from rtpool.testing import RealtimeServer, RequestInfo
from tests.conftest import MakePool
from tests.support.peer import Peer, Serve, answer, dribble, relaying, saying, silence, upgrading
from tests.support.proxies import proxy
from tests.support.recorder import Recorder
from tests.support.ways import SECRET, closed_port, connect, dialed, fails, serving, told, trusting, works


@pytest.fixture(autouse=True)
def no_secret_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    assert SECRET not in "".join(r.getMessage() for r in caplog.get_records("call") if r.name.startswith("rtpool"))


# Addresses


@pytest.mark.parametrize("tls", [False, True], ids=["ws", "wss"])
def test_an_ipv6_address_in_the_url_is_reached(
    ipv6: str, authority: trustme.CA, make_pool: MakePool, tls: bool
) -> None:
    with RealtimeServer(host=ipv6, ssl_context=serving(authority, ipv6) if tls else None) as server:
        seen = Recorder()
        server.on_connect = seen  # type: ignore[assignment]
        url = f"{'https' if tls else 'http'}://[{ipv6}]:{server.port}"
        works(make_pool(url, api_key=server.api_key, ssl_context=trusting(authority) if tls else None))
        assert seen.wait(1)[0].headers["host"] == f"[::1]:{server.port}"


def test_the_next_address_of_a_name_is_tried_when_one_refuses_or_does_not_answer(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener, queued = full_listener()
    ports = [closed_port(), listener.getsockname()[1], server.port]

    def three_addresses(host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports]

    monkeypatch.setattr("rtpool.engine.streams.socket.getaddrinfo", three_addresses)
    with contextlib.ExitStack() as stack:
        for sock in (listener, *queued):
            stack.enter_context(sock)
        works(make_pool("http://three.example", connection_timeout=1.0))


def test_a_host_that_does_not_exist_is_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_such_name(host: str, port: int, **_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("rtpool.engine.streams.socket.getaddrinfo", no_such_name)
    error = fails("http://nowhere.example")
    assert "the host of ws://nowhere.example cannot be found: Name or service not known" in str(error)
    assert isinstance(error.__cause__, socket.gaierror)
    assert error.action is rtpool.Action.BACK_OFF_LONG


@pytest.mark.parametrize("url", ["http://a b", "http://a<b>", "http://" + "x" * 64 + "ü.example", "http://[::zz]"])
def test_what_cannot_be_a_host_is_refused_at_once(url: str) -> None:
    with pytest.raises(rtpool.InvalidValue, match=r"host|cannot be read"):
        rtpool.RealtimePool(url, api_key="k")


def test_names_and_paths_beyond_ascii_go_as_the_wire_wants_them() -> None:
    endpoint = Endpoint.from_url("https://bücher.example/mein pfad/ü", "k")
    assert endpoint.url == "wss://xn--bcher-kva.example/mein%20pfad/%C3%BC/websocket"


@pytest.mark.parametrize("key", ["a\r\nInjected: 1", "schlüssel", "a\0b"])
@pytest.mark.parametrize("where", ["query", "header"])
def test_a_key_that_could_break_a_request_is_refused_and_not_shown(key: str, where: str) -> None:
    with pytest.raises(rtpool.InvalidValue, match="api_key") as caught:
        rtpool.RealtimePool("http://host", api_key=key, api_key_in=where)
    assert key not in str(caught.value)


# Proxies


PROXIES = [
    ("http", "http", {}),
    ("http", "http", {"username": "me", "password": f"{SECRET}:@/"}),
    ("socks4", "socks4", {}),
    ("socks4", "socks4a", {"username": SECRET}),
    ("socks5", "socks5", {}),
    ("socks5", "socks5h", {"username": "me", "password": f"{SECRET}:@/"}),
]


def through(kind: str, port: int, credentials: dict[str, str]) -> str:
    quoted = ":".join(
        value.replace(":", "%3A").replace("@", "%40").replace("/", "%2F") for value in credentials.values()
    )
    return f"{kind}://{quoted + '@' if quoted else ''}127.0.0.1:{port}"


@pytest.mark.parametrize("tls", [False, True], ids=["ws", "wss"])
@pytest.mark.parametrize(("kind", "scheme", "credentials"), PROXIES, ids=lambda value: str(value)[:9])
def test_a_real_proxy_is_gone_through(
    kind: str, scheme: str, credentials: dict[str, str], tls: bool, authority: trustme.CA, make_pool: MakePool
) -> None:
    with (
        RealtimeServer(ssl_context=serving(authority, "localhost") if tls else None) as server,
        proxy(kind, **credentials) as between,
    ):
        pool = make_pool(
            server.url.replace("127.0.0.1", "localhost"),
            api_key=server.api_key,
            proxy=through(scheme, between.port, credentials),
            ssl_context=trusting(authority) if tls else None,
        )
        works(pool)
        by_name = scheme in ("http", "socks4a", "socks5h")
        assert between.asked == [("localhost" if by_name else "127.0.0.1", server.port)]
        assert SECRET not in repr(pool) + repr(pool.options) + repr(pool.stats())


@pytest.mark.parametrize(
    ("kind", "scheme", "status", "words"),
    [
        ("http", "http", 401, "HTTP 401.*check the user and password"),
        ("socks4", "socks4", 0x5D, "different user"),
        ("socks5", "socks5", 0, "authentication failure"),
    ],
)
def test_a_proxy_that_wants_other_credentials_is_not_asked_again(
    kind: str, scheme: str, status: int, words: str, make_pool: MakePool
) -> None:
    wanted = {"username": "me"} if kind == "socks4" else {"username": "me", "password": "right"}
    with proxy(kind, **wanted) as between:
        pool = make_pool("http://localhost:9", proxy=f"{scheme}://me{SECRET}:{SECRET}@127.0.0.1:{between.port}")
        changes = Recorder()
        pool.on_status(changes)
        with pytest.raises(rtpool.ProxyRefused, match=words) as caught:
            pool.channel("room").subscribe()
        assert not caught.value.retryable
        assert caught.value.status == status
        assert pool.stats().reconnect_attempts == 0
        assert changes.wait_for(lambda seen: any(isinstance(c.error, rtpool.ProxyRefused) for c in seen))
        assert SECRET not in told(caught.value) + repr(changes.events)


@pytest.mark.parametrize(("kind", "status"), [("http", 502), ("socks4", 0x5C), ("socks5", 0x05)])
def test_a_proxy_that_cannot_reach_the_server_says_so_and_may_be_asked_again(kind: str, status: int) -> None:
    with proxy(kind) as between:
        error = fails(
            f"http://127.0.0.1:{closed_port()}", rtpool.ProxyRefused, proxy=f"{kind}://127.0.0.1:{between.port}"
        )
    assert (error.status, error.retryable) == (status, True)


@pytest.mark.parametrize(
    ("status", "retryable"),
    [(407, False), (403, False), (405, False), (301, True), (429, True), (500, True), (503, True)],
)
def test_a_proxys_refusal_is_told_with_its_status(status: int, retryable: bool) -> None:
    with Peer(saying(answer(status))) as refusing:
        url = f"http://me:{SECRET}@127.0.0.1:{refusing.port}"
        error = fails("https://server.example", rtpool.ProxyRefused, proxy=url)
        head, _ = refusing.requests.events[0]
    assert head.startswith("CONNECT server.example:443 HTTP/1.1\r\nHost: server.example:443\r\n")
    assert f"Proxy-Authorization: Basic {'bWU6aHVzaC1odXNo'}" in head
    assert (error.status, error.reason, error.retryable) == (status, "Because", retryable)
    assert f"the proxy 127.0.0.1:{refusing.port} refused to connect to server.example:443" in str(error)


def test_what_a_terminal_would_act_on_is_escaped_in_a_refusal() -> None:
    with Peer(saying(b"HTTP/1.1 401 Un\x1b[35mauth\r\n\r\n")) as refusing:
        error = fails("http://server.example", rtpool.ProxyRefused, proxy=f"http://127.0.0.1:{refusing.port}")
    assert r"with HTTP 401: Un\x1b[35mauth; check" in str(error)
    with Peer(saying(b"HTTP/1.1 302 Found\r\nLocation: http://portal.example/\x1b[35mlogin\r\n\r\n")) as pointing:
        refused = fails(f"http://127.0.0.1:{pointing.port}", rtpool.HandshakeRefused)
    assert r"It points to http://portal.example/\x1b[35mlogin: give that" in str(refused)


def test_an_ipv6_server_is_asked_of_a_proxy_in_brackets() -> None:
    with Peer(saying(answer(502))) as refusing:
        fails("http://[::1]:4000", rtpool.ProxyRefused, proxy=f"http://127.0.0.1:{refusing.port}")
        assert refusing.requests.events[0][0].startswith("CONNECT [::1]:4000 HTTP/1.1\r\nHost: [::1]:4000\r\n")


@pytest.mark.parametrize("scheme", ["http", "socks4", "socks5"])
@pytest.mark.parametrize("said", [b"", b"\0", b"SSH-2.0-none\r\n", b"\xff" * 3000])
def test_what_is_no_proxy_at_all_is_a_typed_error(scheme: str, said: bytes) -> None:
    def serve(peer: Peer, sock: socket.socket) -> None:
        sock.recv(1)
        sock.sendall(said)
        sock.close()

    with Peer(serve) as wrong, pytest.raises(rtpool.ConnectionFailed) as caught:
        connect("http://server.example", proxy=f"{scheme}://u:{SECRET}@127.0.0.1:{wrong.port}")
    assert SECRET not in told(caught.value)


def test_a_proxy_that_cannot_be_reached_is_named_without_its_credentials() -> None:
    port = closed_port()
    error = fails("http://server.example", proxy=f"socks5://u:{SECRET}@127.0.0.1:{port}")
    assert f"no connection to the proxy 127.0.0.1:{port}" in str(error)
    assert error.retryable


def test_socks_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "python_socks", None)
    with Peer(silence) as nobody:
        error = fails("http://server.example", proxy=f"socks5://127.0.0.1:{nobody.port}")
    assert "pip install 'rtpool[socks]'" in str(error)
    assert not error.retryable


@pytest.mark.parametrize("secret", ["schlüssel", "x" * 256, "a%0Ab"])
def test_credentials_that_socks_cannot_carry_are_refused_and_not_shown(secret: str) -> None:
    with pytest.raises(rtpool.InvalidValue, match="SOCKS user or password") as caught:
        rtpool.PoolOptions(proxy=f"socks5://u:{secret}@host:1080")
    assert secret not in str(caught.value)


def test_the_environments_proxy_is_left_alone(
    server: RealtimeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    works(make_pool())


# One deadline


def full_listener() -> tuple[socket.socket, list[socket.socket]]:
    """A port on which the kernel answers no more connections."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    queued = []
    for _ in range(3):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(listener.getsockname())
        queued.append(sock)
    return listener, queued


SLOW: list[tuple[str, Serve, dict[str, str]]] = [
    ("upgrade, silent", silence, {}),
    ("upgrade, dribbling", dribble(b"HTTP/1.1 101 Switching Protocols\r\nX-More: "), {}),
    ("upgrade, dribbling informational answers", dribble(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), {}),
    ("http proxy, silent", silence, {"proxy": "http"}),
    ("http proxy, dribbling", dribble(b"HTTP/1.1 200 OK\r\nX-More: "), {"proxy": "http"}),
    ("socks4 proxy, silent", silence, {"proxy": "socks4"}),
    ("socks5 proxy, dribbling", dribble(b"\x05\x00\x05\x00\x00\x03\xff", b"x"), {"proxy": "socks5"}),
    ("TLS, silent", silence, {"scheme": "https"}),
    ("upgrade over a dial function's socket", silence, {"dial": "yes"}),
]


def settings_of(way: dict[str, str], port: int) -> dict[str, Any]:
    if "dial" in way:
        return {"dial": lambda host, _, seconds: socket.create_connection((host, port))}
    return {"proxy": f"{way['proxy']}://127.0.0.1:{port}"} if "proxy" in way else {}


@pytest.mark.parametrize(("serve", "way"), [case[1:] for case in SLOW], ids=[case[0] for case in SLOW])
def test_one_deadline_covers_every_step(serve: Serve, way: dict[str, str]) -> None:
    with Peer(serve) as slow:
        scheme = way.get("scheme", "http")
        error = fails(f"{scheme}://127.0.0.1:{slow.port}", connection_timeout=0.3, **settings_of(way, slow.port))
    assert "within 0.3 s" in str(error)
    assert error.retryable


@pytest.mark.parametrize(("serve", "way"), [case[1:] for case in SLOW], ids=[case[0] for case in SLOW])
def test_close_breaks_off_every_step(serve: Serve, way: dict[str, str], make_pool: MakePool) -> None:
    reached = threading.Event()

    def noting(peer: Peer, sock: socket.socket) -> None:
        sock.recv(1, socket.MSG_PEEK)  # it has spoken, and waits
        reached.set()
        serve(peer, sock)

    with Peer(noting) as slow:
        scheme = way.get("scheme", "http")
        pool = make_pool(f"{scheme}://127.0.0.1:{slow.port}", connection_timeout=60, **settings_of(way, slow.port))
        pool.channel("room").subscribe(wait=False)
        assert reached.wait(10)
        assert pool.close(5)


def test_close_breaks_off_a_connect_that_nobody_answers(make_pool: MakePool) -> None:
    listener, queued = full_listener()
    with contextlib.ExitStack() as stack:
        for sock in (listener, *queued):
            stack.enter_context(sock)
        pool = make_pool(f"http://127.0.0.1:{listener.getsockname()[1]}", connection_timeout=60)
        pool.channel("room").subscribe(wait=False)
        while not any(c._sock for c in list(pool._engine.dialer._dials)):
            threading.Event().wait(0.005)
        assert pool.close(5)


def test_an_answer_whose_head_never_ends_is_given_up(make_pool: MakePool) -> None:
    def flood(peer: Peer, sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\n")
        while not peer.over.is_set():
            sock.sendall(b"X-More: " + b"x" * 60_000 + b"\r\n")

    with Peer(flood) as endless:
        assert "more than 65536 bytes" in str(fails(f"http://127.0.0.1:{endless.port}"))


# The upgrade


def test_what_the_server_says_right_behind_its_answer_is_not_lost() -> None:
    with Peer(upgrading()) as peer, connect(f"http://127.0.0.1:{peer.port}") as sock:
        sock.settimeout(10)
        assert sock.recv(100) == b"\x81\x02hi"


@pytest.mark.parametrize("ahead", [-86_400, 0, 3_600])
def test_the_handshake_tells_how_far_the_servers_clock_is_ahead(ahead: int) -> None:
    date = formatdate(time.time() + ahead, usegmt=True)
    with Peer(upgrading(f"Date: {date}")) as peer:
        opened = dialed(f"http://127.0.0.1:{peer.port}")
        opened.sock.close()
    assert abs(opened.clock_skew - ahead) < 60


@pytest.mark.parametrize("headers", [(), ("Date: soon",), ("Date:",), ("Date: Mon, 31 Feb 2026 06:40:17 GMT",)])
def test_a_server_that_does_not_tell_its_time_is_taken_to_have_ours(headers: tuple[str, ...]) -> None:
    with Peer(upgrading(*headers)) as peer:
        opened = dialed(f"http://127.0.0.1:{peer.port}")
        opened.sock.close()
    assert opened.clock_skew == 0.0


def test_a_redirect_is_a_refusal_and_no_connection() -> None:
    with Peer(saying(answer(302, Location="http://elsewhere.example/"))) as elsewhere:
        assert fails(f"http://127.0.0.1:{elsewhere.port}", rtpool.HandshakeRefused).status == 302


def test_a_refusal_in_chunks_is_read_and_only_the_start_of_a_long_one() -> None:
    chunked = b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nsuspe\r\n4\r\nnded\r\n0\r\n\r\n"
    with Peer(saying(chunked)) as gateway:
        error = fails(f"http://127.0.0.1:{gateway.port}", rtpool.HandshakeRefused)
    assert (error.status, error.body, error.retryable) == (403, "suspended", False)
    with Peer(dribble(b"HTTP/1.1 503 No\r\nContent-Length: 99999999999\r\n\r\n", b"x" * 5_000)) as gateway:
        error = fails(f"http://127.0.0.1:{gateway.port}", rtpool.HandshakeRefused)
    assert (error.status, error.body, error.retryable) == (503, "x" * 2_000, True)


@pytest.mark.parametrize(
    "head", ["", "hello", "HTTP/1.1 abc", "HTTP/1.1 101 OK", "HTTP/1.1 101 OK\r\nUpgrade: h2c", "HTTP/3 101 OK"]
)
def test_what_is_no_websocket_server_is_a_typed_error(head: str) -> None:
    with Peer(saying(f"{head}\r\n\r\n".encode() if head else b"")) as wrong:
        assert fails(f"http://127.0.0.1:{wrong.port}").__cause__ is not None


def test_cookies_of_one_pool_are_never_sent_by_another_nor_kept() -> None:
    cookies = ["Set-Cookie: a=1; Domain=127.0.0.1", "Set-Cookie: b=2; Domain=localhost", "Set-Cookie: (bad]=3"]
    websocket._handshake.CookieJar.set("others=4; Domain=127.0.0.1")  # some other code in this process
    before = dict(websocket._handshake.CookieJar.jar)
    try:
        with Peer(upgrading(*cookies)) as peer:
            for host in ("127.0.0.1", "localhost", "127.0.0.1", "localhost"):
                connect(f"http://{host}:{peer.port}").close()
            connect(f"http://127.0.0.1:{peer.port}", headers={"Cookie": "mine=5"}).close()
            heads = [head for head, _ in peer.requests.events]
        assert [line for head in heads for line in head.splitlines() if line.startswith("Cookie")] == ["Cookie: mine=5"]
        assert before == websocket._handshake.CookieJar.jar
    finally:
        websocket._handshake.CookieJar.jar.clear()


def test_the_upgrade_has_the_headers_it_should_and_no_others() -> None:
    with Peer(upgrading()) as peer:
        url = f"http://127.0.0.1:{peer.port}"
        connect(url, api_key_in="header", headers={"x-team": "blåbär", "Host": "tenant.example"}).close()
        connect(url).close()
        (first, _), (second, _) = peer.requests.events
    fixed = ["Upgrade: websocket", "Sec-WebSocket-Version: 13", "Connection: Upgrade"]
    lines = [line for line in first.splitlines() if not line.startswith("Sec-WebSocket-Key")]
    assert lines[0] == "GET /realtime/v1/websocket?vsn=2.0.0 HTTP/1.1"
    assert sorted(lines[1:-1]) == sorted([*fixed, "Host: tenant.example", "x-team: blåbär", f"x-api-key: {SECRET}"])
    lines = [line for line in second.splitlines() if not line.startswith("Sec-WebSocket-Key")]
    assert lines[0] == f"GET /realtime/v1/websocket?apikey={SECRET}&vsn=2.0.0 HTTP/1.1"
    assert sorted(lines[1:-1]) == sorted([*fixed, f"Host: 127.0.0.1:{peer.port}"])


@pytest.mark.parametrize("name", ["Upgrade", "connection", "Sec-WebSocket-Key", "Content-Length", "Transfer-Encoding"])
def test_a_header_that_belongs_to_the_protocol_is_refused(name: str) -> None:
    with pytest.raises(rtpool.InvalidValue, match="belongs to the protocol"):
        rtpool.PoolOptions(headers={name: "x"})


def test_from_env_makes_a_pool_that_works(server: RealtimeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REALTIME_URL", server.url)
    monkeypatch.setenv("REALTIME_SERVICE_ROLE_KEY", server.api_key)
    requests: list[RequestInfo] = []
    server.on_connect = lambda request: requests.append(request)  # type: ignore[func-returns-value]
    with rtpool.RealtimePool.from_env("REALTIME", api_key_in="header") as pool:
        works(pool)
    assert requests[0].headers["x-api-key"] == server.api_key
    assert "apikey" not in requests[0].query


# A dial function


@pytest.mark.parametrize("tls", [False, True], ids=["ws", "wss"])
def test_a_dial_function_opens_the_way_here_a_unix_socket(
    tls: bool, authority: trustme.CA, make_pool: MakePool, tmp_path: Any
) -> None:
    path, calls = str(tmp_path / "rt.sock"), Recorder()

    def by_unix(host: str, port: int, seconds: float) -> socket.socket:
        calls((threading.current_thread().name, host, port, 0 < seconds <= 30))
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(path)
        except OSError:  # also of an attempt after the peer has gone
            sock.close()
            raise
        return sock

    with (
        RealtimeServer(ssl_context=serving(authority, "server.example") if tls else None) as server,
        Peer(relaying(server.port), path=path),
    ):
        url = f"{'https' if tls else 'http'}://server.example"
        works(make_pool(url, api_key=server.api_key, dial=by_unix, ssl_context=trusting(authority) if tls else None))
    name, *arguments = calls.wait(1)[0]
    assert "-dial-" in name
    assert arguments == ["server.example", 443 if tls else 80, True]


def test_a_dial_function_may_give_a_tls_socket_of_its_own(authority: trustme.CA, make_pool: MakePool) -> None:
    with RealtimeServer(ssl_context=serving(authority, "127.0.0.1")) as server:

        def secured(host: str, port: int, seconds: float) -> socket.socket:
            plain = socket.create_connection(("127.0.0.1", server.port), seconds)
            return trusting(authority).wrap_socket(plain, server_hostname="127.0.0.1")

        works(make_pool("http://server.example", api_key=server.api_key, dial=secured))
        error = fails("https://server.example", dial=secured)
        assert "returned a TLS socket" in str(error)
        assert not error.retryable


@pytest.mark.parametrize("raised", [RuntimeError(SECRET), OSError(5, SECRET), rtpool.InvalidValue(SECRET)])
def test_what_a_dial_function_raises_is_chained_to_a_typed_error(raised: Exception) -> None:
    def broken(host: str, port: int, seconds: float) -> socket.socket:
        raise raised

    with pytest.raises(rtpool.ConnectionFailed, match=f"dial failed.*{type(raised).__name__}") as caught:
        connect("http://server.example", dial=broken)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is raised
    assert caught.value.retryable


def test_even_a_dial_function_that_exits_leaves_nobody_waiting(make_pool: MakePool) -> None:
    pool = make_pool("http://server.example", dial=lambda host, port, seconds: sys.exit(3), max_retries=0)
    with pytest.raises(rtpool.ConnectionFailed, match="SystemExit"):
        pool.connect(timeout=30)


def closed_socket() -> socket.socket:
    one, other = socket.socketpair()
    one.close()
    other.close()
    return one


def datagram_socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(("127.0.0.1", 9))
    return sock


WRONG: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "a string": lambda: "sock",
    "a socket that is not connected": socket.socket,
    "a datagram socket": datagram_socket,
    "a closed socket": closed_socket,
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
def test_what_a_dial_function_may_not_return_is_told(make: Callable[[], Any]) -> None:
    error = fails("http://server.example", dial=lambda host, port, seconds: make())
    assert "the option dial returned" in str(error)
    assert not error.retryable


def test_a_dial_function_that_comes_too_late_has_its_socket_closed() -> None:
    ours, theirs = socket.socketpair()

    def late(host: str, port: int, seconds: float) -> socket.socket:
        threading.Event().wait(seconds + 0.05)
        return ours

    assert "within 0.1 s" in str(fails("http://server.example", dial=late, connection_timeout=0.1))
    assert ours.fileno() == -1
    theirs.close()


def test_dial_and_proxy_exclude_each_other_and_dial_must_be_callable() -> None:
    with pytest.raises(rtpool.InvalidValue, match="exclude each other"):
        rtpool.PoolOptions(dial=lambda *_: socket.socket(), proxy="http://host:1")
    with pytest.raises(rtpool.InvalidType, match="dial must be callable"):
        rtpool.PoolOptions(dial="host:1")  # type: ignore[arg-type]


def test_a_socks4_proxy_is_not_asked_for_an_ipv6_address() -> None:
    with Peer(silence) as nobody:
        error = fails("http://[::1]:4000", proxy=f"socks4://127.0.0.1:{nobody.port}")
    assert "cannot reach the IPv6 address [::1]:4000" in str(error)
    assert not error.retryable


def test_a_header_that_cannot_be_encoded_is_refused_and_not_shown() -> None:
    with pytest.raises(rtpool.InvalidValue, match=r"x-note.*cannot be written") as caught:
        rtpool.PoolOptions(headers={"x-note": f"{SECRET}\udcff"})
    assert SECRET not in told(caught.value)

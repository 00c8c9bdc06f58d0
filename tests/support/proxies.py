"""Real proxies, of the package tiny-proxy, in a thread of their own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import anyio.abc
import attrs
from tiny_proxy import HttpProxyHandler, Socks4ProxyHandler, Socks5ProxyHandler

HANDLERS: dict[str, Any] = {"http": HttpProxyHandler, "socks4": Socks4ProxyHandler, "socks5": Socks5ProxyHandler}


@attrs.define
class RunningProxy:
    """
    Attributes:
        port: on 127.0.0.1.
        asked: hosts and ports it was asked for.
    """

    port: int = 0
    asked: list[tuple[str, int]] = attrs.field(factory=list)


@contextlib.contextmanager
def proxy(kind: str, **credentials: str) -> Iterator[RunningProxy]:
    """A proxy of `kind` (http, socks4 or socks5) that wants these credentials."""
    running, ready = RunningProxy(), threading.Event()
    stops: list[Callable[[], object]] = []
    base: Any = HANDLERS[kind]

    class Handler(base):  # type: ignore[misc]
        def create_proxy(self, stream: Any) -> Any:
            made = super().create_proxy(stream)
            negotiate = made.negotiate

            async def noted() -> Any:
                running.asked.append(await negotiate())
                return running.asked[-1]

            made.negotiate = noted
            return made

    async def main() -> None:
        handler = Handler(**credentials)
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        running.port = listener.extra(anyio.abc.SocketAttribute.local_port)
        with anyio.CancelScope() as scope:
            loop = asyncio.get_running_loop()
            stops.append(lambda: loop.call_soon_threadsafe(scope.cancel))
            ready.set()
            await listener.serve(handler.handle)
        await listener.aclose()

    thread = threading.Thread(target=anyio.run, args=(main,), name="proxy", daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield running
    finally:
        stops[0]()
        thread.join(10)

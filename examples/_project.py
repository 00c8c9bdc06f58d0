"""Where the examples connect: your project when SUPABASE_URL and SUPABASE_KEY are set, else a server of their own."""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def project() -> Iterator[tuple[str, str]]:
    url, key = os.environ.get("SUPABASE_URL"), os.environ.get("SUPABASE_KEY")
    if url and key:
        yield url, key
        return
    from rtpool.testing import RealtimeServer

    with RealtimeServer() as server:
        yield server.url, server.api_key

"""rtpool's embedded server in a process of its own: ``python -m tests.benchmarks.embedded '{}'``."""

from __future__ import annotations

import json
import sys
from urllib.parse import urlsplit

from rtpool.testing import RealtimeServer


def main() -> None:
    """Serve until stdin ends."""
    with RealtimeServer(api_key="k", **json.loads(sys.argv[1])) as server:
        print(json.dumps({"port": urlsplit(server.url).port, "ca": None}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()

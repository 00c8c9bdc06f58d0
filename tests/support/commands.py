"""The command, as a person at a terminal runs it: in processes of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from rtpool.testing import RealtimeServer

RTPOOL = [sys.executable, "-W", "error", "-m", "rtpool"]


def environment(server: RealtimeServer | None = None, **more: str) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("SUPABASE")}
    if server is not None:
        env |= {"SUPABASE_URL": server.url, "SUPABASE_KEY": server.api_key}
    return {**env, "COLUMNS": "100", "PYTHONUNBUFFERED": "1", **more}


def run(*arguments: str, server: RealtimeServer | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RTPOOL, *arguments], capture_output=True, text=True, timeout=60, env=environment(server, **env), check=False
    )


def start(*arguments: str, server: RealtimeServer | None = None, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*RTPOOL, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(server, **env),
    )


def interrupt(process: subprocess.Popen[str]) -> tuple[str, str]:
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=10)

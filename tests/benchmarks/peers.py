"""Who receives beside rtpool: how each is started, what is missing to start it, and in which version it is here."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

from tests.benchmarks.model import Figures, Participant
from tests.benchmarks.processes import module, run
from tests.interop import install

__all__ = ["PEERS", "SENDERS", "receiver", "sender", "versions"]

CLIENTS = install.JS.parent.parent / "benchmarks" / "clients"
RTPOOL = module("clients.rtpool_receive")
LOOP = module("clients.loops")
OFFICIAL_PY = [str(install.PYTHON), "-I", str(CLIENTS / "realtime_receive.py")]
OFFICIAL_JS = ["node", str(CLIENTS / "realtime_receive.js")]

#: The command of each, and what it is told beside the numbers.
PEERS: Mapping[str, tuple[list[str], Mapping[str, Any]]] = {
    "rtpool": (RTPOOL, {}),
    "rtpool, no orjson": (RTPOOL, {"orjson": False}),
    "rtpool, debugger": (RTPOOL, {"watched": "debugger"}),
    "rtpool, Prometheus": (RTPOOL, {"watched": "prometheus"}),
    "rtpool, frames recorded": (RTPOOL, {"options": {"record_frames": True}}),
    "realtime": (OFFICIAL_PY, {}),
    "realtime-js": (OFFICIAL_JS, {}),
    "websocket-client": (LOOP, {"with": "websocket-client"}),
    "websocket-client, no UTF-8 check": (LOOP, {"with": "websocket-client", "trusting": True}),
    "websockets": (LOOP, {"with": "websockets"}),
    "floor": (module("clients.prototype"), {}),
    "rtpool, Channels": (module("clients.rtpool_fanout"), {}),
    "realtime, callbacks": (OFFICIAL_PY, {}),
    "realtime-js, callbacks": (OFFICIAL_JS, {}),
    "floor, mailboxes": (module("clients.prototype_fanout"), {}),
}

SENDERS: Mapping[str, tuple[list[str], Mapping[str, Any]]] = {
    "rtpool": (module("clients.rtpool_send"), {}),
    "realtime": ([*OFFICIAL_PY[:-1], str(CLIENTS / "realtime_send.py")], {}),
    "realtime-js": ([*OFFICIAL_JS[:-1], str(CLIENTS / "realtime_send.js")], {}),
    "websocket-client": (module("clients.loops_send"), {"with": "websocket-client"}),
    "websockets": (module("clients.loops_send"), {"with": "websockets"}),
}


def _missing(command: list[str]) -> str | None:
    programs = {OFFICIAL_PY[0]: "py", OFFICIAL_JS[0]: "js"}
    return install.missing(programs[command[0]]) if command[0] in programs else None


def receiver(name: str, **told: Any) -> Participant:
    """A participant of a row that receives what `traffic` sends, told the number of messages and what else there is."""
    command, own = PEERS[name]

    def measure(served: Mapping[str, Any]) -> Figures:
        ca = served["ca"]  # the official clients have no argument for it, Node and OpenSSL have a variable
        env = {**os.environ, "NODE_EXTRA_CA_CERTS": ca, "SSL_CERT_FILE": ca} if ca else None
        return run(command, {**served, **own, **told}, env=env)

    return Participant(name, measure, _missing(command))


def sender(name: str, **told: Any) -> Participant:
    """A participant of a row that sends to `exchange` or `embedded`, told what there is to do."""
    command, own = SENDERS[name]

    def measure(served: Mapping[str, Any]) -> Figures:
        return run(command, {**served, **own, **told})

    return Participant(name, measure, _missing(command))


@functools.cache
def versions() -> dict[str, str]:
    """Of the official clients and of what runs them, where they are here."""
    found = {}
    if shutil.which("node"):
        told = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
        found["node"] = told.stdout.strip().lstrip("v")
    if install.missing("js") is None:
        found["realtime-js"] = json.loads((install.JS / "package.json").read_text())["dependencies"][
            "@supabase/realtime-js"
        ]
    if install.missing("py") is None:
        found["realtime"] = install.REQUIREMENTS.read_text().splitlines()[-1].partition("==")[2]
    return found

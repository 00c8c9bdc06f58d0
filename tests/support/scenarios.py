"""
What each recording needs besides its lines: options of the server, tokens, hooks.
"""

from __future__ import annotations

import json
from typing import Any

from rtpool.testing import (
    NO_REPLY,
    JoinRefusal,
    JoinReply,
    PushReply,
    RealtimeServer,
    Refusal,
    RequestInfo,
    ServerConnection,
)
from tests.support.replayer import Scenario

__all__ = ["scenario_of"]

ANON: dict[str, Any] = {"role": "anon"}
AUTHENTICATED: dict[str, Any] = {"role": "authenticated"}
SERVICE: dict[str, Any] = {"role": "service_role"}
BAD_TOKENS: list[tuple[str, dict[str, Any]]] = [
    (r"(wrong secret|bad signature)", {"role": "anon", "secret": "another"}),
    (r"\|[^|]*(expired\b|with expired)", {"role": "anon", "expires": -100}),
    (r"no exp\b", {"role": "anon", "expires": None}),
    (r"no role", {}),
    (r"HS512", {"role": "anon", "alg": "HS512"}),
    (r"exp as string", {"role": "anon", "expires": "soon"}),
    (r"unknown (db )?role", {"role": "nobody"}),
]


def _tenant(info: RequestInfo) -> Refusal | None:
    tenant = info.headers["host"].split(":")[0].split(".")[0]
    return (
        None
        if tenant == "realtime-dev"
        else Refusal(404, json.dumps({"error": "Tenant not found"}, separators=(",", ":")))
    )


def _of_a_tenant(server: RealtimeServer) -> None:
    server.on_connect = _tenant


def _hanging_join(server: RealtimeServer) -> None:
    words = "IncreaseConnectionPool: Please increase your connection pool size"
    server.on_join = lambda topic, payload, connection: JoinRefusal(words, 16.0) if topic == "room-rw-d" else None


def _messages_of_an_earlier_run(server: RealtimeServer) -> None:
    server.database_send("room-rw-js", "rp", {"r": 1})
    server.database_send("room-rw-js", "live", {"r": 2})


def _plain_application(server: RealtimeServer) -> None:
    """The Phoenix application that was recorded."""
    keys: dict[int, str] = {}

    def on_connect(info: RequestInfo) -> Refusal | None:
        status = info.query.get("reject")
        return (
            None
            if status is None
            else Refusal(int(status), json.dumps({"error": f"rejected {status}"}, separators=(",", ":")))
        )

    def on_join(topic: str, payload: Any, connection: ServerConnection) -> JoinRefusal | JoinReply:
        if "error" in payload:
            return JoinRefusal(payload["error"])
        if "crash" in payload:
            raise ValueError
        pushes = [("tick", {"i": n + 1}) for n in range(payload.get("push_after", 0))]
        if "presence" in payload:
            keys[connection.id] = payload["presence"]
            pushes.append(("presence_state", server.presence(topic)))
        return JoinReply({"joined": True}, payload.get("delay", 0) / 1000, tuple(pushes))

    def on_push(topic: str, event: str, payload: Any, connection: ServerConnection) -> Any:
        if event == "broadcast":
            server.push(topic, event, payload)
            return NO_REPLY if isinstance(payload, bytes) else PushReply()
        if event in ("track", "update", "untrack"):
            meta = None if event == "untrack" else payload
            ref = server.track(connection, topic, keys[connection.id], meta)
            return PushReply({} if meta is None else {"ref": ref})
        if event == "stop_reply":
            server.clock.call_later(0.0001, lambda: connection.stop(topic))
        deeds: dict[str, Any] = {
            "crash": lambda: 1 / 0,
            "stop": lambda: connection.stop(topic),
            "stop_shutdown": lambda: connection.stop(topic),
            "disconnect": lambda: connection.close(1001),
            "kill_transport": connection.abort,
        }
        if event in deeds:
            deeds[event]()
            return NO_REPLY
        answers = {
            "error": PushReply(payload, "error"),
            "status_only": PushReply(),
            "broadcast_from": PushReply(),
            "noreply": NO_REPLY,
        }
        return answers.get(event, PushReply(payload, delay=payload["ms"] / 1000 if event == "slow" else 0.0))

    server.on_connect, server.on_join, server.on_push = on_connect, on_join, on_push


def scenario_of(name: str) -> Scenario:
    """The scenario of a recording, by the beginning of its name."""
    for prefix, scenario in _SCENARIOS.items():
        if name.startswith(prefix):
            return scenario
    return Scenario()


_SCENARIOS = {
    "05b_postgres_changes_rls_types.v1": Scenario(
        tokens=[(r"^B", AUTHENTICATED), (r"^S", SERVICE)], at={8.0: lambda player: player.server.restart_changes_feed()}
    ),
    "05b": Scenario(tokens=[(r"^B", AUTHENTICATED), (r"^S", SERVICE)]),
    "05c": Scenario(at={7.7: lambda player: player.server.restart_changes_feed()}, first_id=52),
    "10": Scenario(
        tokens=[
            (r"^X\|", ANON),
            (r"^S\||http_service", SERVICE),
            (r"unknown db role", {"role": "nobody"}),
            (r"^Y\|.*apikey$", ANON),
            (r"^Y\|refresh to a token", ANON),
            (r"http_anon", ANON),
            (r"^[AY]\||http_auth|events/", AUTHENTICATED),
        ]
    ),
    "11": Scenario(tokens=[(r"", AUTHENTICATED)]),
    "06b": Scenario(options={"no_channel_timeout": 299.67}, at={396.95: lambda player: player.server.disconnect_all()}),
    "13b": Scenario(
        options={"postgres_retry": 7.0},
        tokens=[(r"^[PB]", AUTHENTICATED)],
        at={34.0: lambda player: player.server.start_database()},
        prepare=_hanging_join,
    ),
    "15": Scenario(
        options={
            "plain_phoenix": True,
            "strict_join_ref": True,
            "disconnect_code": 1001,
            "idle_timeout": 3.0,
            "join_error_backoff": 0.0,
        },
        prepare=_plain_application,
    ),
    "16": Scenario(
        options={"strict_join_ref": True, "disconnect_code": 1001, "crash_reason": "channel_crash"},
        at={
            20.238: lambda player: player.limit_joins(2),
            35.775: lambda player: player.limit_joins(None),
            35.79: lambda player: player.server.disconnect_all(),
        },
        foreign=[
            ("A.1", "broadcasts of realtime:x", 1),
            ("A.1", "broadcasts of realtime:y", 0),
            ("A.1", "presence_diff of realtime:p", 1),
            ("A.1", "presence_diff of realtime:p", 3),
            ("A.1", "changes of realtime:pg", 1),
        ],
    ),
    "official_js_realtime-js-2.109.0.v1": Scenario(
        tokens=[(r"^W3", AUTHENTICATED)], client_closes=True, first_id=50, prepare=_messages_of_an_earlier_run
    ),
    "official_js_realtime-js-2.109.0.v2": Scenario(tokens=[(r"^W3", AUTHENTICATED)], client_closes=True, first_id=49),
    "official_py": Scenario(tokens=[(r"^W3", AUTHENTICATED)], client_closes=True, first_id=51),
    "07": Scenario(tokens=BAD_TOKENS, prepare=_of_a_tenant),
    "08": Scenario(
        tokens=[
            (r"^A\|.*exp2.*access_token\",|expires 4 s.*\"access_token\",", AUTHENTICATED),
            (r"expires 3 s.*:exp\"", {"role": "authenticated", "expires": 3}),
            (r"expires 4 s", {"role": "authenticated", "expires": 4}),
            (r"^B\|.*apikey$", {"role": "anon", "expires": 3}),
            (r"refresh with .*phx_join", AUTHENTICATED),
            *BAD_TOKENS,
            (r"valid", AUTHENTICATED),
        ]
    ),
}

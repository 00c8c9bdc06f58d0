"""Every refusal of a real server can be had from the embedded one, word for word."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import websocket

from rtpool.testing import RealtimeServer, refusals
from tests.support.hand import TOPIC, Hand, call
from tests.support.transcripts import NAMES, frame_of, load

VALUES = {"topic": "room", "kid": "k1", "seconds": 7, "error": "oops", "term": "{:badrpc, :nodedown}"}
MESSAGE = {"topic": "room", "event": "e", "payload": {}}


@pytest.mark.parametrize("refusal", refusals.Handshake)
def test_an_upgrade_is_refused_by_name(server: RealtimeServer, refusal: refusals.Handshake) -> None:
    server.on_connect = lambda request: refusal(**VALUES)
    with pytest.raises(websocket.WebSocketBadStatusException) as refused:
        Hand(server)
    status, words = refusal.value
    body = json.dumps({"error": words.format(**VALUES)}, separators=(",", ":")) if words else ""
    assert (refused.value.status_code, refused.value.resp_body) == (status, body.encode())


@pytest.mark.parametrize("refusal", refusals.Join)
def test_a_join_is_refused_by_name(server: RealtimeServer, refusal: refusals.Join) -> None:
    server.on_join = lambda topic, payload, connection: refusal(**VALUES)
    with Hand(server) as hand:
        assert hand.join() == {"status": "error", "response": {"reason": refusal.value.format(**VALUES)}}
        if refusal in (refusals.Join.TOO_MANY_JOINS, refusals.Join.TENANT_NOT_FOUND):
            assert hand.receive() == ("close", 1001)
        else:
            assert hand.until_heartbeat() == []


@pytest.mark.parametrize("refusal", refusals.System)
def test_a_channel_is_shut_down_by_name(server: RealtimeServer, refusal: refusals.System) -> None:
    with Hand(server) as hand:
        hand.join()
        assert server.shut_down("room", refusal(**VALUES)) == 1
        words = refusal.value.format(**VALUES)
        payload = {"extension": "system", "status": "error", "message": words, "channel": "room"}
        assert hand.receive() == ["1", None, TOPIC, "system", payload]
        assert hand.receive() == ["1", "1", TOPIC, "phx_close", {}]
        assert server.members("room") == 0


@pytest.mark.parametrize("refusal", refusals.Rest)
def test_a_rest_call_is_refused_by_name(server: RealtimeServer, refusal: refusals.Rest) -> None:
    server.on_request = lambda request: refusal()
    assert call(server, "/api/broadcast", {"messages": [MESSAGE]})[:2] == (
        refusal.value[0],
        {"message": refusal.value[1]},
    )


def test_a_refusal_is_held_back_as_the_hook_says() -> None:
    with RealtimeServer(clock_at=0.0, join_error_backoff=5.0) as server, Hand(server, key=server.token()) as hand:
        server.on_join = lambda topic, payload, connection: refusals.Join.CRASHED(delay=9.0)
        hand.send("1", "1", "phx_join", {"config": {}})
        hand.send(None, "2", "heartbeat", {}, "phoenix")
        server.wait_for(lambda s: len(s.joins()) == 1)
        server.advance(9.0)
        assert [hand.receive()[1], hand.receive()[1]] == ["1", "2"]


def texts(line: dict[str, Any]) -> list[tuple[type[Any], str]]:
    """What a line of a recording refuses, and the table it is in."""
    if line["dir"] == "http_reject":
        return [(refusals.Handshake, json.loads(line["body"])["error"] if line["body"].startswith("{") else "")]
    if line["dir"] == "http" and str(line.get("resp", "")).startswith('{"message"') and line["status"] != 200:
        return [(refusals.Rest, json.loads(line["resp"])["message"])]
    frame = frame_of(line) if line["dir"] == "<" else None
    if frame is None or frame[1]:
        return []
    try:
        value = json.loads(frame[0])
    except ValueError:
        return []
    event, payload = (value[3], value[4]) if isinstance(value, list) else (value["event"], value["payload"])
    if event == "system" and payload["extension"] == "system" and payload["status"] == "error":
        return [(refusals.System, payload["message"])]
    response = payload.get("response") if event == "phx_reply" and payload["status"] == "error" else None
    return [(refusals.Join, response["reason"])] if isinstance(response, dict) and "reason" in response else []


#: Replies to pushes and by applications, not to joins.
OTHERS = {"Presence track payload must be a map"}


def test_every_refusal_that_was_recorded_is_in_the_tables() -> None:
    recorded = {found for name in NAMES if not name.startswith("15_") for line in load(name) for found in texts(line)}
    assert len(recorded) > 30
    for table, words in recorded:
        known = [entry.value if isinstance(entry.value, str) else entry.value[1] for entry in table]
        patterns = [re.sub(r"\\{[a-z]+\\}", ".*", re.escape(text)) for text in known]
        assert words in OTHERS or any(re.fullmatch(p, words, re.DOTALL) for p in patterns), (table, words)

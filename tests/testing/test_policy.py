"""Private topics and tokens of the embedded server."""

from __future__ import annotations

import pytest

from rtpool.testing import Permissions, PolicyRequest, RealtimeServer
from rtpool.testing.tokens import make_token, token_error
from tests.support.hand import TOPIC, Hand

NOW = 1_800_000_000.0
TRACK = {"type": "presence", "event": "track", "payload": {"n": 1}}
MESSAGE = {"type": "broadcast", "event": "e", "payload": {}}
NO_READ = "You do not have permissions to read from this Channel topic: room"


def test_who_may_not_read_is_refused_at_the_join(server: RealtimeServer) -> None:
    server.policy = lambda request: Permissions(write_broadcast=True, write_presence=True)
    with Hand(server) as hand:
        assert hand.join(private=True)["response"]["reason"] == f"Unauthorized: {NO_READ}"
        assert hand.join("2")["status"] == "ok", "policies are for private topics"


def test_a_policy_that_raises_denies_and_the_service_role_is_not_asked(server: RealtimeServer) -> None:
    def broken(request: PolicyRequest) -> bool:
        raise ZeroDivisionError

    server.policy = broken
    with Hand(server) as hand:
        assert hand.join(private=True)["response"]["reason"] == f"Unauthorized: {NO_READ}"
        assert hand.join("2", token=server.token(role="service_role"), private=True)["status"] == "ok"


def test_a_policy_sees_topic_claims_and_headers(server: RealtimeServer) -> None:
    asked: list[PolicyRequest] = []
    server.policy = lambda request: bool(asked.append(request)) or True
    with Hand(server, **{"x-tenant": "7"}) as hand:
        hand.join(token=server.token(sub="ann"), private=True)
    assert asked[0].topic == "room"
    assert (asked[0].claims["role"], asked[0].claims["sub"]) == ("authenticated", "ann")
    assert asked[0].headers == {"x-tenant": "7"}


def test_without_write_permission_a_broadcast_is_swallowed_and_a_track_denied(server: RealtimeServer) -> None:
    server.policy = lambda request: Permissions(read_broadcast=True, read_presence=True)
    with Hand(server) as hand:
        hand.join(private=True, broadcast={"ack": True, "self": True}, presence={"enabled": True})
        assert hand.receive()[3] == "presence_state"
        hand.send("1", "2", "broadcast", MESSAGE)
        assert hand.until_heartbeat() == []
        hand.send("1", "3", "presence", TRACK)
        assert hand.receive()[4] == {"status": "error", "response": {}}
        hand.send("1", "4", "presence", {"type": "presence", "event": "untrack"})
        assert hand.receive()[4] == {"status": "ok", "response": {}}
        assert server.presence("room") == {}


def test_who_reads_presence_only_hears_no_broadcast_and_the_other_way_round(server: RealtimeServer) -> None:
    def policy(request: PolicyRequest) -> Permissions:
        presence = request.claims["role"] == "watcher"
        return Permissions(not presence, True, presence, True)

    server.policy = policy
    with Hand(server) as watcher, Hand(server) as listener:
        watcher.join(token=server.token(role="watcher"), private=True, presence={"enabled": True, "key": "w"})
        assert watcher.receive()[3] == "presence_state"
        listener.join(token=server.token(role="listener"), private=True, presence={"enabled": True, "key": "l"})
        listener.send("1", "2", "presence", TRACK)
        assert listener.receive()[3] == "phx_reply"
        assert server.broadcast("room", "e", {}, private=True, as_text=True) == 1
        assert listener.receive()[3] == "broadcast"
        assert [frame[3] for frame in watcher.until_heartbeat()] == ["presence_diff"]


def test_writing_is_asked_about_at_the_first_try_and_again_after_a_new_token(server: RealtimeServer) -> None:
    allowed = {"write": False}
    server.policy = lambda request: Permissions(True, allowed["write"], True, True)
    with Hand(server) as hand:
        hand.join(private=True, broadcast={"ack": True})
        hand.send("1", "2", "broadcast", MESSAGE)
        assert hand.until_heartbeat() == []
        allowed["write"] = True
        hand.send("1", "3", "broadcast", MESSAGE)
        assert hand.until_heartbeat() == [], "the answer is kept as long as the token"
        hand.send("1", "4", "access_token", {"access_token": server.token()})
        hand.send("1", "5", "broadcast", MESSAGE)
        assert hand.receive()[4] == {"status": "ok", "response": {}}


def test_a_new_token_that_may_not_read_ends_the_channel(server: RealtimeServer) -> None:
    server.policy = lambda request: request.claims["role"] == "reader"
    with Hand(server) as hand:
        hand.join(token=server.token(role="reader"), private=True)
        hand.send("1", "2", "access_token", {"access_token": server.token(role="anon")})
        system = hand.receive()
        assert (system[0], system[4]["message"], system[4]["status"]) == ("1", NO_READ, "error")
        assert hand.receive() == ["1", "1", TOPIC, "phx_close", {}]


def test_a_token_expires_while_joined_unless_a_new_one_came() -> None:
    with RealtimeServer(clock_at=NOW, idle_timeout=1e6) as server, Hand(server) as hand:
        hand.join(token=server.token(expires_in=3))
        hand.join("2", "realtime:kept", token=server.token(expires_in=4))
        server.advance(2.0)
        hand.send("2", "3", "access_token", {"access_token": server.token(expires_in=3_000)}, "realtime:kept")
        assert hand.until_heartbeat() == []
        server.advance(1.0)
        assert hand.receive()[4]["message"] == "Token has expired 0 seconds ago"
        assert hand.receive() == ["1", "1", TOPIC, "phx_close", {}]
        server.advance(2_990.0)
        assert hand.until_heartbeat() == []
        server.advance(20.0)
        assert hand.receive()[4]["message"] == "Token has expired 0 seconds ago"


def test_the_connections_token_stands_in_for_a_join_without_one() -> None:
    with RealtimeServer(clock_at=NOW) as server, Hand(server, key=server.token(expires_in=3)) as hand:
        for ref, token in [("1", None), ("2", "sb_publishable_x")]:
            assert hand.join(ref, f"realtime:{ref}", token=token)["status"] == "ok"
        server.advance(5.0)
        assert [frame[3] for frame in hand.until_heartbeat()] == ["system", "phx_close"] * 2
        reason = hand.join("3")["response"]["reason"]
        assert reason == "InvalidJWTToken: Token has expired 2 seconds ago"


def test_tokens_can_be_made_to_expire_at_once(server: RealtimeServer) -> None:
    with Hand(server) as hand:
        hand.join()
        assert server.expire_tokens("other") == 0
        assert server.expire_tokens("room") == 1
        assert hand.receive()[4]["message"] == "Token has expired 0 seconds ago"
        assert hand.receive()[3] == "phx_close"


@pytest.mark.parametrize(
    ("token", "code", "words"),
    [
        ("", "MalformedJWT", "The token provided is not a valid JWT"),
        ("a.b.c", "MalformedJWT", "The token provided is not a valid JWT"),
        (make_token("s", {"role": "x"}), "InvalidJWTToken", "Fields `role` and `exp` are required in JWT"),
        (make_token("s", {"exp": 9}), "InvalidJWTToken", "Fields `role` and `exp` are required in JWT"),
        (make_token("s", {"role": "x", "exp": 1}), "InvalidJWTToken", "Token has expired 4 seconds ago"),
        (make_token("t", {"role": "x", "exp": 9}), "JwtSignatureError", "Failed to validate JWT signature"),
        (
            "eyJhbGciOiJub25lIn0.eyJyb2xlIjoieCJ9.",
            "JwtSignerError",
            "Failed to generate JWT signer, check your JWT secret or JWKS configuration",
        ),
        (
            "eyJhbGciOiJSUzI1NiIsImtpZCI6ImsxIn0.eyJyb2xlIjoieCJ9.eA",
            "JwtSignerError",
            'Failed to generate JWT signer for key ID (kid) "k1", check your JWT secret or JWKS configuration',
        ),
    ],
)
def test_bad_tokens_are_told_apart(token: str, code: str, words: str) -> None:
    assert token_error("s", token, 5.0) == (code, words)


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_tokens_of_three_algorithms_and_with_an_odd_exp_are_good(algorithm: str) -> None:
    assert token_error("s", make_token("s", {"role": "x", "exp": 9}, algorithm), 5.0) is None
    for odd in ("soon", True, [], float("nan"), float("inf"), 10**400, -(10**400)):
        assert token_error("s", make_token("s", {"role": "x", "exp": odd}, algorithm), 5.0) is None, odd


def test_a_token_without_a_usable_end_never_expires() -> None:
    with (
        RealtimeServer(clock_at=NOW, idle_timeout=1e9) as server,
        Hand(server, key=server.token(expires_in=1e8)) as hand,
    ):
        for number, odd in enumerate(("soon", float("nan"), 10**400)):
            token = make_token(server.secret, {"role": "x", "exp": odd})
            assert hand.join(str(number), f"realtime:{number}", token)["status"] == "ok"
        server.advance(1e6)
        assert hand.until_heartbeat() == []


def test_a_refresh_says_less_of_a_bad_signature_than_a_join(server: RealtimeServer) -> None:
    with Hand(server) as hand:
        for n, (token, words) in enumerate(
            [
                (make_token("other", {"role": "x", "exp": 4e9}), ":signature_error"),
                ("", "The token provided is not a valid JWT"),
                (make_token(server.secret, {"role": "x"}), "Fields `role` and `exp` are required in JWT"),
            ]
        ):
            hand.join(str(n))
            hand.send(str(n), "t", "access_token", {"access_token": token})
            assert hand.receive()[4]["message"] == words
            assert hand.receive()[3] == "phx_close"
        hand.join("9")
        for ignored in (None, 5, "sb_x"):
            hand.send("9", "t", "access_token", {"access_token": ignored})
        hand.send("9", "t", "access_token", {})
        assert hand.until_heartbeat() == []

"""Tables, row-level security and the feed of changes of the embedded server."""

from __future__ import annotations

from typing import Any

import pytest

from rtpool.testing import RealtimeServer
from tests.support.hand import TOPIC, Hand

CARS = {"id": "int8", "status": "text", "owner": "uuid", "sold": "bool"}
ALL = {"event": "*", "schema": "public", "table": "cars"}
UNABLE = "Unable to subscribe to changes with given parameters. "
CHECK = UNABLE + "Please check Realtime is enabled for the given connect parameters: "
FAILED = UNABLE + "An exception happened so please check your connect parameters: "


def subscribe(
    hand: Hand, *bindings: dict[str, Any], ref: str = "1", topic: str = TOPIC, token: str | None = None
) -> str:
    hand.join(ref, topic, token, postgres_changes=list(bindings))
    payload = hand.receive()[4]
    assert payload["extension"] == "postgres_changes"
    return str(payload["message"])


def changes(hand: Hand) -> list[Any]:
    return [frame[4]["data"] for frame in hand.until_heartbeat()]


@pytest.mark.parametrize(
    ("binding", "words"),
    [
        (ALL, "Subscribed to PostgreSQL"),
        ({"schema": "*"}, "Subscribed to PostgreSQL"),
        ({**ALL, "filter": "id=in.(1,2),sold=is.true"}, "Subscribed to PostgreSQL"),
        (
            {**ALL, "table": "boats", "event": "insert"},
            CHECK + "[event: INSERT, schema: public, table: boats, filters: [], select: nil]",
        ),
        ({"schema": "other"}, CHECK + "[event: *, schema: other, table: *, filters: [], select: nil]"),
        (
            {**ALL, "filter": "nope=eq.1"},
            FAILED + '[event: *, schema: public, table: cars, filters: [{"nope", "eq", "1", false}], select: nil]. '
            "Exception: ERROR P0001 (raise_exception) invalid column for filter nope",
        ),
        (
            {**ALL, "filter": "id=not.eq.abc"},
            FAILED + '[event: *, schema: public, table: cars, filters: [{"id", "eq", "abc", true}], select: nil]. '
            'Exception: ERROR 22P02 (invalid_text_representation) invalid input syntax for type bigint: "abc"',
        ),
        (
            {**ALL, "select": ["nope"]},
            FAILED + '[event: *, schema: public, table: cars, filters: [], select: ["nope"]]. '
            "Exception: ERROR P0001 (raise_exception) invalid column for select nope",
        ),
    ],
)
def test_what_is_not_there_is_refused_in_the_databases_words(
    server: RealtimeServer, binding: dict[str, Any], words: str
) -> None:
    server.table("cars", CARS)
    with Hand(server) as hand:
        assert subscribe(hand, binding) == words
        hand.send("1", "2", "access_token", {"access_token": server.token()})
        assert len(hand.until_heartbeat()) == (words == "Subscribed to PostgreSQL"), "renewed, or given up"


def test_old_rows_are_reduced_to_the_key_unless_the_identity_is_full(server: RealtimeServer) -> None:
    row = {"id": 1, "status": "new", "owner": "a", "sold": False}
    server.table("cars", CARS)
    server.table("full", CARS, full_identity=True)
    server.table("guarded", CARS, full_identity=True, row_security=lambda claims, row: True)
    with Hand(server) as hand:
        subscribe(hand, {"schema": "public"})
        for table in ("cars", "full", "guarded"):
            server.change("public", table, "UPDATE", {**row, "status": "sold"}, row)
            server.change("public", table, "DELETE", None, row)
        seen = [(data["table"], data["type"], data["old_record"]) for data in changes(hand)]
        assert seen == [
            ("cars", "UPDATE", {"id": 1}),
            ("cars", "DELETE", {"id": 1}),
            ("full", "UPDATE", row),
            ("full", "DELETE", row),
            ("guarded", "UPDATE", row),
            ("guarded", "DELETE", {"id": 1}),
        ]


def test_row_security_hides_rows_by_claims_but_no_deletion(server: RealtimeServer) -> None:
    server.table("cars", CARS, row_security=lambda claims, row: row["owner"] == claims["sub"])
    with Hand(server) as ann, Hand(server) as bob, Hand(server) as service:
        subscribe(ann, ALL, token=server.token(sub="ann"))
        subscribe(bob, ALL, token=server.token(sub="bob"))
        subscribe(service, ALL, token=server.token(role="service_role"))
        row = {"id": 1, "status": "x", "owner": "ann", "sold": None}
        assert server.change("public", "cars", "INSERT", row) == 2
        assert server.change("public", "cars", "DELETE", None, row) == 3
        assert [data["type"] for data in changes(ann)] == ["INSERT", "DELETE"]
        assert [data["type"] for data in changes(bob)] == ["DELETE"]
        assert [data["type"] for data in changes(service)] == ["INSERT", "DELETE"]


def test_what_is_gone_before_anybody_looks_is_only_seen_to_be_deleted(server: RealtimeServer) -> None:
    row = {"id": 1, "status": "new"}
    batch = [("INSERT", row, None), ("UPDATE", {**row, "status": "x"}, row), ("DELETE", None, row)]
    server.table("cars", CARS, row_security=lambda claims, row: True)
    server.table("free", CARS)
    with Hand(server) as hand:
        subscribe(hand, {"schema": "public"})
        assert server.changes(*(("public", "cars", *change) for change in batch)) == 1
        assert server.changes(*(("public", "free", *change) for change in batch)) == 3
        assert [data["type"] for data in changes(hand)] == ["DELETE", "INSERT", "UPDATE", "DELETE"]


def test_rows_that_cannot_be_shown_come_as_errors(server: RealtimeServer) -> None:
    server.table("keyless", {"x": "int4"}, primary_key=())
    server.table("barred", CARS, roles=["service_role"])
    server.table("cars", CARS)
    with Hand(server) as hand:
        subscribe(hand, {"schema": "public"})
        server.change("public", "keyless", "INSERT", {"x": 1})
        server.change("public", "barred", "UPDATE", {"id": 1}, {"id": 1})
        server.change("public", "cars", "INSERT", {"id": 1, "status": "y" * 1_100_000, "sold": None})
        keyless, barred, huge = changes(hand)
        assert (keyless["errors"], keyless["record"], keyless["columns"]) == (
            ["Error 400: Bad Request, no primary key"],
            {},
            [],
        )
        assert keyless["commit_timestamp"] is None
        assert (barred["errors"], barred["record"], barred["old_record"]) == (["Error 401: Unauthorized"], {}, {})
        assert (huge["errors"], huge["record"]) == (["Error 413: Payload Too Large"], {"id": 1})
        assert [column["name"] for column in huge["columns"]] == list(CARS)


def test_a_selection_shows_its_columns_and_the_key_in_a_frame_of_its_own(server: RealtimeServer) -> None:
    server.table("cars", CARS, full_identity=True)
    with Hand(server) as hand:
        subscribe(hand, {**ALL, "select": ["status"]}, ALL, {**ALL, "select": ["status"]}, ALL)
        row = {"id": 1, "status": "new", "owner": "a", "sold": False}
        assert server.change("public", "cars", "UPDATE", row, row) == 2
        chosen, whole = hand.until_heartbeat()
        assert chosen[4]["data"]["record"] == chosen[4]["data"]["old_record"] == {"id": 1, "status": "new"}
        assert [column["name"] for column in chosen[4]["data"]["columns"]] == ["id", "status"]
        assert whole[4]["data"]["record"] == row
        assert len(set(chosen[4]["ids"])) == len(set(whole[4]["ids"])) == 1, "equal bindings share an id"
        assert len(chosen[4]["ids"]) == len(whole[4]["ids"]) == 2


def test_without_a_config_the_topic_is_the_subscription(server: RealtimeServer) -> None:
    with Hand(server) as hand:
        hand.send("1", "1", "phx_join", {}, "realtime:public:cars:id=gt.1")
        (entry,) = hand.receive()[4]["response"]["postgres_changes"]
        assert {**entry, "id": 0} == {"id": 0, "schema": "public", "table": "cars", "filter": "id=gt.1"}
        assert hand.receive()[3] == "system"
        server.change("public", "cars", "INSERT", {"id": 1})
        server.change("public", "cars", "INSERT", {"id": 2})
        (frame,) = hand.until_heartbeat()
        assert (frame[:4], frame[4]["record"]) == ([None, None, "realtime:public:cars:id=gt.1", "INSERT"], {"id": 2})


def test_a_restarted_feed_says_so_once_more_and_a_dropped_table_is_gone(server: RealtimeServer) -> None:
    server.table("cars", CARS)
    server.table("boats", CARS)
    with Hand(server) as hand:
        subscribe(hand, ALL)
        server.restart_changes_feed()
        assert hand.receive()[4]["message"] == "Subscribed to PostgreSQL"
        server.drop_table("cars")
        assert server.change("public", "cars", "INSERT", {"id": 1}) == 0
        server.restart_changes_feed()
        assert hand.receive()[4]["message"].startswith(CHECK)


def test_a_lost_database_loses_changes_and_keeps_subscribers_waiting() -> None:
    with RealtimeServer(postgres_retry=7.0, clock_at=0.0) as server, Hand(server, key=server.token()) as hand:
        subscribe(hand, ALL)
        server.stop_database()
        assert server.change("public", "cars", "INSERT", {"id": 1}) == 0
        words = "IncreaseConnectionPool: Please increase your connection pool size"
        assert hand.join("2", "realtime:private", private=True)["response"]["reason"] == words
        hand.join("3", "realtime:late", postgres_changes=[ALL])
        assert hand.until_heartbeat() == []
        server.start_database()
        assert hand.receive()[4]["message"] == '{:error, "Too many database timeouts"}'
        server.advance(7.0)
        assert hand.receive()[4]["message"] == "Subscribed to PostgreSQL"
        assert server.change("public", "cars", "INSERT", {"id": 2}) == 2


def test_the_subscription_follows_a_cold_start_and_is_renewed_later_than_the_token() -> None:
    with (
        RealtimeServer(postgres_delay=3.0, postgres_renewal_delay=2.0, clock_at=0.0) as server,
        Hand(server, key=server.token()) as hand,
    ):
        hand.join(postgres_changes=[ALL])
        server.advance(2.9)
        assert hand.until_heartbeat() == []
        server.advance(0.2)
        assert hand.receive()[4]["message"] == "Subscribed to PostgreSQL"
        hand.send("1", "2", "access_token", {"access_token": server.token(sub="other")})
        assert hand.until_heartbeat() == []
        server.advance(2.0)
        assert hand.receive()[4]["message"] == "Subscribed to PostgreSQL"


def test_a_binding_that_is_no_object_refuses_the_join(server: RealtimeServer) -> None:
    with Hand(server) as hand:
        reply = hand.join(postgres_changes=["cars"])
        assert reply["response"]["reason"] == 'UnknownErrorOnChannel: expected a map, got:\n\n    "cars"\n'
        assert hand.join("2", postgres_changes=[None, ALL])["response"]["postgres_changes"][0]["table"] == "cars"

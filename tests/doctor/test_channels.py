"""The doctor's steps on the open connection, each by breaking just that: heartbeats, joins, permissions, broadcasts."""

from __future__ import annotations

from typing import Any

import pytest

from rtpool.doctor import CHECKS, Case, Examination
from rtpool.testing import JoinReply, Permissions, RealtimeServer, ServerOptions, faults
from rtpool.testing.refusals import Join, System
from tests.doctor.examining import NAMES, PATIENCE, examine, fails_at, fine, step_of


def test_all_is_well_on_a_server_that_is_well(server: RealtimeServer) -> None:
    server.table("cars", {"id": "int8"})
    report = examine(server.url, server.api_key, token=server.token(), table="cars")
    steps = fine(report)
    assert steps["upgrade"].details == {"status": 101}
    assert steps["heartbeat"].details["answered"] == 5
    assert steps["join"].details["topic"].startswith("rtpool-doctor-")
    assert steps["private"].details["write"] is True
    assert "public.cars: Subscribed to PostgreSQL" in steps["replication"].words
    assert "Not proven" in steps["replication"].advice
    assert steps["broadcast"].details["sent"] == 10
    assert set(steps["broadcast"].details["milliseconds"]) == {"p50", "p95", "p99"}
    assert report.summary() == "14 fine"
    server.wait_for(lambda s: not s.connections)


def test_all_is_well_with_the_limits_and_delays_of_a_real_server() -> None:
    with RealtimeServer(**ServerOptions.real()) as server:
        fine(examine(server.url, server.api_key, token=server.token(), table="cars", messages=50))


def test_what_is_not_asked_for_is_left_out(server: RealtimeServer) -> None:
    steps = fine(examine(server.url, server.api_key))
    assert [name for name in NAMES if steps[name].status == "skipped"] == ["token", "tls", "private", "replication"]


def test_the_given_topic_is_the_one_that_is_joined(server: RealtimeServer) -> None:
    fine(examine(server.url, server.api_key, topic="room"))
    assert {record.topic for record in server.joins()} == {"room"}
    assert {message.event for message in server.received if message.topic == "realtime:room"} == {
        "phx_join",
        "broadcast",
    } | ({"phx_leave"} if server.leaves("room") else set())


def test_what_others_say_is_made_printable(server: RealtimeServer) -> None:
    server.table("cars", {"id": "int8"})
    bad = "\x1b[35mx\ny\u202e"
    server.on_join = lambda _topic, payload, _: (
        Join.UNKNOWN_EXCEPTION(error=bad) if payload["config"]["private"] else None
    )
    report = examine(server.url, server.api_key, token=server.token(role=bad), table=f"{bad}z")
    for step in report.steps:
        assert step.words.isprintable(), step
        assert all(line.isprintable() for line in step.advice.split("\n")), step
    assert r"\x1b[35mx\ny\u202e" in step_of(report, "token").words
    assert r"\x1b[35mx\ny\u202e" in step_of(report, "private").words
    assert step_of(report, "replication").advice.count("\n") == 1

    server.on_join = None
    server.policy = lambda request: False
    denied = step_of(examine(server.url, server.api_key, token=server.token(role=bad)), "private")
    assert r"denied to \x1b[35mx\ny\u202e" in denied.words
    assert denied.advice.count("\n") == 4  # those of the policy alone


# Heartbeats


def test_a_server_that_answers_no_heartbeat(server: RealtimeServer) -> None:
    with server.inject(faults.Drop(), on=faults.Receiving("heartbeat"), times=None):
        report = examine(server.url, server.api_key, patience=PATIENCE)
    fails_at(report, "heartbeat", "0 of 5 heartbeats were answered within 1 s", "passes nothing on")


def test_a_server_that_freezes_after_two_heartbeats(server: RealtimeServer) -> None:
    with server.inject(faults.Freeze(), on=faults.Receiving("heartbeat", skip=2)):
        report = examine(server.url, server.api_key, patience=PATIENCE)
    fails_at(report, "heartbeat", "2 of 5 heartbeats were answered", "the server hangs")


def test_a_server_that_lets_in_and_hangs_up(server: RealtimeServer) -> None:
    with server.inject(faults.Reset(), on=faults.Receiving("heartbeat"), times=None):
        report = examine(server.url, server.api_key)
    fails_at(report, "heartbeat", "connection|reset", "ended at once")


# Joins

JOINS: list[tuple[Any, str, str]] = [
    (Join.TOO_MANY_USERS(), "ConnectionRateLimitReached: Too many connected users.*10 s and more", "share one pool"),
    (Join.TOO_MANY_JOINS(), "ClientJoinRateLimitReached: Too many joins per second", "Lower max_joins_per_second"),
    (Join.TOO_MANY_CHANNELS(), "ChannelRateLimitReached.*another connection", "100"),
    (Join.TENANT_NOT_FOUND(), "TenantNotFound", "no project"),
    (Join.TENANT_DISABLED(), "RealtimeDisabledForTenant.*does not try again", "suspended"),
    (Join.PRIVATE_ONLY(), "PrivateOnly: This project only allows private", "--private and a --token"),
    (Join.TOKEN_EXPIRED(seconds=3), "InvalidJWTToken: Token has expired 3 seconds", "fresh one"),
    (Join.DATABASE_FULL(), "DatabaseLackOfConnections", "no connection left"),
    (Join.UNABLE_TO_CONNECT(), "UnableToConnectToProject", "running, or paused"),
    (Join.INCREASE_POOL(), "IncreaseConnectionPool", "pool size"),
    (Join.RESTARTING(), "RealtimeRestarting", "again in some seconds"),
    (Join.UNKNOWN_EXCEPTION(error="boom"), "UnknownErrorOnChannel: boom", "Realtime logs"),
    (Join.UNMATCHED_TOPIC(), "unmatched topic", "is this a Realtime server"),
]


@pytest.mark.parametrize(("refusal", "words", "advice"), JOINS, ids=[r.reason.split(":")[0] for r, _, _ in JOINS])
def test_a_join_that_is_refused(refusal: Any, words: str, advice: str, server: RealtimeServer) -> None:
    server.on_join = lambda topic, payload, connection: refusal
    report = examine(server.url, server.api_key)
    limits = ("limits",) if "Too many" in refusal.reason else ()
    found = fails_at(report, "join", words, advice, warned=limits)
    assert found.details["reason"] in refusal.reason
    assert step_of(report, "limits").details["refused"] == [refusal.reason]


def test_a_project_that_wakes_up_is_waited_for(server: RealtimeServer) -> None:
    with server.inject(faults.RefuseJoin("InitializingProjectConnection: Connecting to the project database")):
        fine(examine(server.url, server.api_key))


def test_a_join_that_nobody_answers(server: RealtimeServer) -> None:
    with server.inject(faults.Drop(), on=faults.Receiving("phx_join"), times=None):
        report = examine(server.url, server.api_key, patience=PATIENCE)
    fails_at(report, "join", "no answer within 1 s", "overloaded")


def test_every_refusal_that_a_real_server_has_for_a_join_has_words(server: RealtimeServer) -> None:
    values = {"seconds": 1, "topic": "x", "kid": "1", "error": "e", "term": "t"}
    case = Case(server.url, server.api_key, patience=PATIENCE)
    for refusal in Join:
        server.on_join = lambda *_, refusal=refusal: refusal(delay=0.0, **values)  # type: ignore[misc]
        checks = {check.name: check for check in CHECKS}
        for name in ("url", "join"):
            finding = checks[name].look(case)
        assert finding.status == "failed" or "Initializing" in refusal.value, refusal
        assert finding.advice, refusal
    case.close()


def test_no_more_time_is_taken_than_was_given(server: RealtimeServer) -> None:
    server.on_join = lambda *_: JoinReply(delay=20.0)
    report = examine(server.url, server.api_key, timeout=1.2)
    found = step_of(report, "join")
    assert found.status == "failed"
    assert "no answer" in found.words or "--timeout were over" in found.words
    assert report.exit_code == 1
    assert report.seconds < 6.0


# Row-level security


def test_a_private_channel_that_may_not_be_read(server: RealtimeServer) -> None:
    server.policy = lambda request: False
    report = examine(server.url, server.api_key, token=server.token(), topic="it's", private=True)
    found = fails_at(
        report, "private", "reading is denied to authenticated: You do not have permissions", "realtime.mess"
    )
    assert 'create policy "authenticated may read" on realtime.messages' in found.advice
    assert "for select to authenticated using (\n    realtime.topic() = 'it''s'" in found.advice
    assert found.details["read"] is False
    assert found.details["code"] == "Unauthorized"


def test_a_private_channel_that_may_be_read_and_not_written(server: RealtimeServer) -> None:
    server.policy = lambda request: Permissions(read_broadcast=True)
    report = examine(server.url, server.api_key, token=server.token(), private=True, patience=PATIENCE)
    step = fine(report, warned=("private",))["private"]
    assert "may read and, it seems, not write" in step.words
    assert "for insert to authenticated with check (" in step.advice
    assert (step.details["read"], step.details["write"]) == (True, False)
    assert step_of(report, "broadcast").words == "row-level security does not let this role write"


def test_a_probe_of_private_channels_that_nobody_asked_for_is_no_failure(server: RealtimeServer) -> None:
    server.policy = lambda request: False
    report = examine(server.url, server.api_key, token=server.token())
    assert "reading is denied" in fine(report, warned=("private",))["private"].words
    assert step_of(report, "broadcast").status == "ok"


def test_a_project_with_private_channels_only(server: RealtimeServer) -> None:
    server.configure(private_only=True)
    report = examine(server.url, server.api_key, token=server.token(), private=True, table="cars")
    assert fine(report)["join"].status == "skipped"


def test_a_private_channel_while_the_database_is_down(server: RealtimeServer) -> None:
    server.stop_database()
    report = examine(server.url, server.api_key, token=server.token(), private=True)
    fails_at(report, "private", "refused: IncreaseConnectionPool", "connection pool size")


def test_a_channel_that_is_ended_at_the_first_broadcast(server: RealtimeServer) -> None:
    def end(topic: str, _event: str, _payload: Any, _connection: Any) -> None:
        member = next(iter(server.rooms.of(f"realtime:{topic}")))
        for one in list(member.members):
            one.connection.shut_down(one, System.NO_LONGER_READ(topic=topic))

    server.on_push = end
    report = examine(server.url, server.api_key, token=server.token(), private=True, patience=2.0)
    fails_at(
        report,
        "private",
        "ended at the first broadcast: refused: You no longer have permission",
        "Row-level security has changed",
    )


# A table's changes


def test_a_table_that_is_not_published(server: RealtimeServer) -> None:
    server.table("cars", {"id": "int8"})
    report = examine(server.url, server.api_key, table="shop.orders")
    found = fails_at(report, "replication", "shop.orders: not in the publication", "Look at the spelling")
    assert "\nalter publication supabase_realtime add table shop.orders;" in found.advice
    assert found.details["table"] == "shop.orders"


def test_a_table_whose_subscription_the_database_refuses(server: RealtimeServer) -> None:
    words = "Unable to subscribe to changes with given parameters. An exception happened so please check: permission"
    pushes = (("system", {"extension": "postgres_changes", "status": "error", "message": words, "channel": "x"}),)

    def answer(_topic: str, payload: Any, _connection: Any) -> JoinReply | None:
        changes = payload["config"].get("postgres_changes")
        return JoinReply({"postgres_changes": [{**c, "id": 1} for c in changes]}, pushes=pushes) if changes else None

    server.on_join = answer
    report = examine(server.url, server.api_key, table="cars")
    fails_at(report, "replication", "public.cars: Unable to subscribe", "role anon have `grant select on public.cars`")


def test_a_table_of_a_database_that_is_down(server: RealtimeServer) -> None:
    server.stop_database()
    report = examine(server.url, server.api_key, table="cars", patience=PATIENCE)
    fails_at(report, "replication", "public.cars: ", "Realtime|database|15 s")


def test_a_feed_that_does_not_begin(server: RealtimeServer) -> None:
    server.configure(postgres_delay=30.0)
    report = examine(server.url, server.api_key, table="cars", patience=PATIENCE)
    fails_at(report, "replication", "joined, and not subscribed within 1 s", "replication slot")


# Broadcasts


def test_broadcasts_that_are_lost(server: RealtimeServer) -> None:
    with server.inject(faults.Drop(), on=faults.Sending("broadcast"), times=2):
        report = examine(server.url, server.api_key, patience=PATIENCE)
    found = fails_at(report, "broadcast", "2 of 10 broadcasts did not come back", "over its limit")
    assert (found.details["sent"], found.details["lost"]) == (10, 2)
    assert found.details["milliseconds"]["p50"] > 0


def test_broadcasts_that_are_all_lost_are_not_sent_for_long(server: RealtimeServer) -> None:
    with server.inject(faults.Drop(), on=faults.Sending("broadcast"), times=None):
        report = examine(server.url, server.api_key, patience=PATIENCE)
    fails_at(report, "broadcast", "3 of 3 broadcasts did not come back", "over its limit")


def test_more_messages_than_the_server_allows(server: RealtimeServer) -> None:
    server.configure(max_events_per_second=10)
    report = examine(server.url, server.api_key, messages=50)
    found = fails_at(
        report, "broadcast", "ended after .*: refused: Too many messages per second", "max_events_per_second"
    )
    assert 1 <= found.details["sent"] <= 20


@pytest.mark.parametrize(("skip", "count"), [(0, "1 broadcast"), (4, "5 broadcasts")])
def test_a_connection_that_breaks_between_broadcasts(skip: int, count: str, server: RealtimeServer) -> None:
    with server.inject(faults.Reset(), on=faults.Receiving("broadcast", skip=skip)):
        report = examine(server.url, server.api_key, patience=PATIENCE)
    fails_at(report, "broadcast", f"the channel was ended after {count}: ", "connection was lost")


# Limits


def test_limits_are_told_as_the_server_announces_them(server: RealtimeServer) -> None:
    server.configure(max_events_per_second=500)
    step = fine(examine(server.url, server.api_key))["limits"]
    assert step.words == "500 events/s announced (0 used), no others"
    assert step.details["events_per_second"] == 500
    assert step.details["joins_per_second"] == 50


def test_a_limit_that_is_nearly_reached_is_warned_of(server: RealtimeServer) -> None:
    server.configure(max_events_per_second=100, rate_tick=1000.0)
    server.events._judged = 95.0
    report = examine(server.url, server.api_key)
    assert "near its limit" in fine(report, warned=("limits",))["limits"].advice


def test_a_server_that_announces_nothing(server: RealtimeServer) -> None:
    from rtpool.testing import Refusal

    server.on_request = lambda request: Refusal(404)
    assert fine(examine(server.url, server.api_key))["limits"].words.startswith("none announced")


# The doctor itself


def test_a_mistake_of_the_doctors_ends_one_step_alone(server: RealtimeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtpool.doctor.network._of_environment", lambda case: 1 / 0)
    fails_at(examine(server.url, server.api_key), "proxy", "ZeroDivisionError", "please report it")


def test_ctrl_c_leaves_what_is_known(server: RealtimeServer) -> None:
    def interrupt(name: str) -> None:
        if name == "heartbeat":
            raise KeyboardInterrupt

    report = Examination(Case(server.url, server.api_key), begun=interrupt).run()
    assert report.interrupted
    assert report.exit_code == 1
    assert [step.words for step in report.steps if step.words == "interrupted"] == ["interrupted"] * 6
    assert report.summary() == "interrupted: 7 fine"

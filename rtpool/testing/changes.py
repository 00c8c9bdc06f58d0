"""
The feed of Postgres changes: who is subscribed, when, and what of each change goes to whom.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rtpool.testing.postgres import BadFilter, binding_id, binding_matches, check_binding
from rtpool.testing.rooms import Member
from rtpool.testing.tables import Table

if TYPE_CHECKING:
    from rtpool.testing.server import RealtimeServer

__all__ = ["Feed"]

SUBSCRIBED = "Subscribed to PostgreSQL"


class Feed:
    """
    Delivers changes to members' bindings.

    Thread-safety: confined to the server's loop.
    """

    def __init__(self, server: RealtimeServer) -> None:
        self._server = server
        self._waiting: list[Member] = []  # joined while the database was down

    def subscribe(self, member: Member, delay: float) -> None:
        """Subscribe a member's bindings, in so many seconds, and tell it how that went."""
        if not member.bindings:
            return
        if delay > 0:
            self._server.clock.call_later(delay, lambda: self.subscribe(member, 0))
        elif self._server.database_is_down:
            self._waiting.append(member)
        else:
            self._tell(member)

    def _tell(self, member: Member) -> None:
        if not member.bindings or not self._server.rooms.present(member):
            return  # it may have left since this was set going
        status, words = "ok", SUBSCRIBED
        try:
            for binding in member.bindings:
                check_binding(binding)
            for binding in member.bindings:
                self._server.tables.check(binding)
        except BadFilter as error:
            status, words = "error", str(error)
            member.bindings = []
        member.subscribed = status == "ok"
        member.system("postgres_changes", status, words)

    def restart(self) -> None:
        """Begin anew: every subscribed member is told once more."""
        for room in self._server.rooms.all():
            for member in list(room.members):
                if member.subscribed:
                    self._tell(member)

    def database_is_back(self) -> None:
        """Those that joined meanwhile are told of the failure, and subscribed at the next attempt."""
        waiting, self._waiting = self._waiting, []
        for member in waiting:
            if self._server.rooms.present(member):
                member.system("postgres_changes", "error", '{:error, "Too many database timeouts"}')
                self.subscribe(member, self._server.options.postgres_retry)

    def deliver(self, batch: list[dict[str, Any]]) -> int:
        """Fan changes out that were found in one look at the log; returns how many frames were sent."""
        server = self._server
        if server.database_is_down:
            return 0  # protocol: what is committed before the poller is back is lost
        return sum(self._deliver(data, self._hidden(data, batch[index + 1 :])) for index, data in enumerate(batch))

    def _hidden(self, data: dict[str, Any], later: list[dict[str, Any]]) -> bool:
        """Whether row-level security hides a row since it is gone by the time somebody looks."""
        table = self._server.tables.get(data["schema"], data["table"])
        if table is None or table.row_security is None or data["type"] == "DELETE":
            return False
        key = table.key(data["record"])
        return any(
            other["type"] == "DELETE"
            and (other["schema"], other["table"]) == (table.schema, table.name)
            and table.key(other["old_record"]) == key
            for other in later
        )

    def _deliver(self, data: dict[str, Any], hidden: bool) -> int:
        server = self._server
        if hidden or not server.tables.published(data["schema"], data["table"]):
            return 0
        if server.change_events.over(server.options.max_events_per_second):
            return 0
        table = server.tables.get(data["schema"], data["table"])
        row = data.get("record") if data["type"] != "DELETE" else data.get("old_record")
        sent = 0
        for room in server.rooms.all():
            for member in room.members:
                if member.subscribed and (table is None or table.may_see(member.claims, data["type"], row or {})):
                    sent += self._to(member, table, data, row or {})
        server.change_events.count(sent)
        return sent

    def _to(self, member: Member, table: Table | None, data: dict[str, Any], row: dict[str, Any]) -> int:
        if table is not None:
            data = table.finish(data, member.claims)
            row = row if data["type"] != "DELETE" else data.get("old_record") or {}
        by_columns: dict[tuple[str, ...] | None, list[int]] = {}
        for binding in member.bindings:
            if binding_matches(binding, data["schema"], data["table"], data["type"], row):
                columns = tuple(binding["select"]) if "select" in binding else None
                by_columns.setdefault(columns, []).append(binding_id(binding))
        for columns, ids in by_columns.items():
            shown = data if columns is None else (table or _guess(data)).select(data, columns)
            if member.legacy:
                member.send(data["type"], shown, own=False)
            else:
                member.send("postgres_changes", {"ids": ids, "data": shown}, own=False)
        return len(by_columns)


def _guess(data: dict[str, Any]) -> Table:
    return Table(schema=data["schema"], name=data["table"], columns={})

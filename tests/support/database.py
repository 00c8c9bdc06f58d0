"""
The few statements of SQL that the recordings ran, done to the embedded server instead of a database.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

from rtpool.testing import Permissions, PolicyRequest, RealtimeServer

Row = dict[str, Any]

_TYPES = {"int": "int4", "boolean": "bool", "bigint": "int8", "varchar(5)": "varchar", "numeric(12,3)": "numeric"}
_CARS = {"id": "int8", "plate": "text", "status": "text", "updated_at": "timestamptz"}


_READ = (
    "topic() like 'room-rw%' or topic() like 'room-ro%' or topic() like 'room-bo%' and extension='broadcast'"
    " or topic() like 'room-po%' and extension='presence'"
)
_WRITE = _READ.replace("room-ro", "room-wo")


class _Table:
    def __init__(self, columns: Mapping[str, str]) -> None:
        self.columns = dict(columns)
        self.key: tuple[str, ...] = ()
        self.full = False
        self.security: Callable[[Mapping[str, Any], Mapping[str, Any]], bool] | None = None
        self.roles: set[str] | None = None
        self.rows: list[Row] = []
        self.next_id = 1
        self.published = False


class Database:
    """Executes a recorded statement; changes of rows are gathered and delivered together by `poll`."""

    def __init__(self, server: RealtimeServer, first_id: int = 1) -> None:
        self._server = server
        cars = _Table(_CARS)
        # as it was set up before the recordings: row-level security that lets everybody see everything
        cars.key, cars.full, cars.security, cars.published = ("id",), True, lambda claims, row: True, True
        cars.next_id = first_id
        self._tables = {"cars": cars}
        self._changes: list[tuple[Any, ...]] = []
        self._policies = {"h_read": _READ, "h_write": _WRITE}
        self._triggers = False
        self._publish("cars")
        server.policy = self._permissions

    def execute(self, sql: str) -> None:
        """Run one statement, or several between ``begin`` and ``commit``."""
        if sql.startswith("begin; "):
            if not sql.endswith("rollback"):
                for part in sql.split("; ")[1:-1]:
                    self._statement(part)
            return
        self._statement(sql)

    def poll(self) -> None:
        """What the server's look at the log finds since the last one."""
        changes, self._changes = self._changes, []
        if changes:
            self._server.changes(*changes)

    def _statement(self, sql: str) -> None:
        for pattern, action in _STATEMENTS:
            match = re.fullmatch(pattern, sql, re.DOTALL)
            if match is not None:
                action(self, *match.groups())
                return
        raise AssertionError(f"no translation for {sql!r}")

    # Tables

    def _create(self, name: str, columns: str) -> None:
        table = _Table({})
        for column in re.split(r",\s*(?![^(]*\))", columns):
            title, kind, *rest = column.split()
            array = kind.endswith("[]")
            kind = _TYPES.get(kind.removesuffix("[]"), kind.removesuffix("[]"))
            table.columns[title] = f"_{kind}" if array else kind
            if "primary" in rest:
                table.key = (title,)
        self._tables[name] = table

    def _drop(self, name: str) -> None:
        self._tables.pop(name, None)
        self._server.drop_table(name)

    def _alter(self, name: str, change: str) -> None:
        if change == "replica identity full":
            self._tables[name].full = True
        else:
            self._tables[name].security = lambda claims, row: False
        self._publish(name)

    def _row_policy(self, name: str) -> None:
        self._tables[name].security = lambda claims, row: row["owner"] == claims.get("sub")
        self._publish(name)

    def _revoke(self, name: str) -> None:
        self._tables[name].roles = set()
        self._publish(name)

    def _publication(self, verb: str, names: str) -> None:
        for name in re.findall(r"public\.(\w+)", names):
            self._tables[name].published = verb == "add"
            self._publish(name)

    def _publish(self, name: str) -> None:
        table = self._tables[name]
        if not table.published:
            self._server.drop_table(name)
            return
        self._server.table(
            name,
            table.columns,
            primary_key=table.key,
            row_security=table.security,
            roles=table.roles,
            full_identity=table.full,
        )

    # Rows

    def _insert(self, name: str, columns: str | None, values: str) -> None:
        table = self._tables[name]
        titles = re.findall(r"\w+", columns) if columns else list(table.columns)
        for group in re.findall(r"\(((?:E?'(?:[^'\\]|\\.)*'|[^()'])*)\)", values):
            cells = re.findall(r"E?'(?:[^'\\]|\\.)*'|[^,]+", group)
            self._add(table, name, {t: _cell(table.columns[t], c) for t, c in zip(titles, cells, strict=True)})

    def _insert_series(self, name: str, letter: str, status: str, count: str) -> None:
        for number in range(1, int(count) + 1):
            self._add(self._tables[name], name, {"plate": f"{letter}{number}", "status": status})

    def _add(self, table: _Table, name: str, given: Row) -> None:
        row: Row = dict.fromkeys(table.columns)
        if "updated_at" in row:
            row["updated_at"] = datetime.now(timezone.utc).isoformat()
        if "id" in row and "id" not in given:
            row["id"], table.next_id = table.next_id, table.next_id + 1
        row.update(given)
        table.rows.append(row)
        self._changed(name, "INSERT", row, None)

    def _update(self, name: str, assignments: str, where: str | None) -> None:
        table = self._tables[name]
        for row in self._where(table, where):
            before = dict(row)
            for title, value in re.findall(r"(\w+)=(repeat\([^)]*\)|'[^']*'|\w+)", assignments):
                row[title] = _cell(table.columns[title], value)
            self._changed(name, "UPDATE", dict(row), before)

    def _delete(self, name: str, where: str | None) -> None:
        table = self._tables[name]
        for row in self._where(table, where):
            table.rows.remove(row)
            self._changed(name, "DELETE", None, row)

    def _where(self, table: _Table, where: str | None) -> list[Row]:
        if where is None:
            return list(table.rows)
        title, value = where.split("=")
        wanted = _cell(table.columns[title], value)
        return [row for row in table.rows if row[title] == wanted]

    def _truncate(self, name: str, restart: str | None) -> None:
        self._tables[name].rows.clear()
        if restart:
            self._tables[name].next_id = 1

    def _changed(self, name: str, kind: str, record: Row | None, old: Row | None) -> None:
        record, old = record and dict(record), old and dict(old)
        self._changes.append(("public", name, kind, record, old))
        if self._triggers and name == "cars":
            data = {"schema": "public", "table": name, "operation": kind, "record": record, "old_record": old}
            self._server.database_send("room-rw-db", kind, data)

    # Messages and policies

    def _send(self, payload: str, event: str, topic: str, private: str) -> None:
        self._server.database_send(topic, event, json.loads(payload.replace('\\"', '"')), private=private == "true")

    def _send_binary(self, payload: str, event: str, topic: str, private: str) -> None:
        self._server.database_send(topic, event, bytes.fromhex(payload), private=private == "true")

    def _forget_messages(self) -> None:
        self._server.call(self._server.store.clear)

    def _policy(self, verb: str, name: str, condition: str | None) -> None:
        if verb == "create":
            self._policies[name] = condition or ""
        else:
            self._policies.pop(name, None)

    def _trigger(self, verb: str) -> None:
        self._triggers = verb == "create"

    def _permissions(self, request: PolicyRequest) -> Permissions:
        if request.claims.get("role") != "authenticated":
            return Permissions()
        read, write = self._policies.get("h_read", ""), self._policies.get("h_write", "")

        def allows(condition: str, extension: str) -> bool:
            for start, only in re.findall(r"topic\(\) like '([^%']*)%'(?: and extension='(\w+)')?", condition):
                if request.topic.startswith(start) and only in ("", extension):
                    return True
            return False

        return Permissions(
            allows(read, "broadcast"),
            allows(write, "broadcast"),
            allows(read, "presence"),
            allows(write, "presence"),
        )


def _cell(kind: str, text: str) -> Any:
    """A literal of SQL as the JSON of a column of that type."""
    if text == "null":
        return None
    repeat = re.fullmatch(r"repeat\('(.)',(\d+)\)", text)
    if repeat is not None:
        return repeat.group(1) * int(repeat.group(2))
    if text.startswith("E'"):
        text = re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m.group(1), m.group(1)), text[1:])
    text = text.strip("'") if not text.startswith("'") else text[1:-1]
    if kind == "bool":
        return text == "true"
    if kind in ("int2", "int4", "int8"):
        return int(text)
    if kind in ("float8", "numeric"):
        return None if text == "NaN" else float(text)
    if kind == "jsonb":
        return json.loads(text)
    if kind == "_int4":
        return [None if item == "null" else int(item) for item in text[1:-1].split(",")]
    if kind == "_text":
        return [item.strip('"') for item in text[1:-1].split(",")]
    if kind == "bytea":
        return text.lstrip("\\x")
    if kind == "timestamp":
        return text.replace(" ", "T")
    if kind == "timestamptz":
        moment = datetime.strptime(text + "00", "%Y-%m-%d %H:%M:%S.%f%z").astimezone(timezone.utc)
        return moment.isoformat(timespec="milliseconds")
    return text


def _nothing(database: Database, *groups: Any) -> None:
    """Nothing the server would notice."""


_D = Database
_STATEMENTS: list[tuple[str, Callable[..., None]]] = [
    (r"insert into public\.(\w+)(?:\(([^)]*)\))? ?values ?(.*)", _D._insert),
    (
        r"insert into public\.(\w+)\(plate,status\) select '(\w)'\|\|i,'(\w+)' from generate_series\(1,(\d+)\) i",
        _D._insert_series,
    ),
    (r"update public\.(\w+) set (.*?)(?: where (.*))?", _D._update),
    (r"delete from public\.(\w+)(?: where (.*))?", _D._delete),
    (r"truncate public\.(\w+)( restart identity)?", _D._truncate),
    (r"create table public\.(\w+)\((.*)\)", _D._create),
    (r"drop table if exists public\.(\w+)", _D._drop),
    (r"alter table public\.(\w+) (replica identity full|enable row level security)", _D._alter),
    (r"create policy p on public\.(\w+) for select to authenticated using \(owner = auth\.uid\(\)\)", _D._row_policy),
    (r"revoke all on public\.(\w+) from .*", _D._revoke),
    (r"alter publication supabase_realtime (add|drop) table (.*)", _D._publication),
    (r"select realtime\.send\('(.*)'::jsonb,'(\w+)','([\w-]+)',(true|false)\)", _D._send),
    (r"select realtime\.send_binary\('\\\\?x(\w+)'::bytea,'(\w+)','([\w-]+)',(true|false)\)", _D._send_binary),
    (r"delete from realtime\.messages", _D._forget_messages),
    (r"(create|drop) policy (?:if exists )?(\w+) on realtime\.messages(.*)", _D._policy),
    (r"(create|drop) trigger .*", _D._trigger),
    (r"grant .*|create or replace function .*|select count.*", _nothing),
]

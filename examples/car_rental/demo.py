"""A project in memory: rtpool's embedded server, a table of cars, and as much of the REST API as cars.py uses."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from rtpool.testing import RealtimeServer, Refusal, RestRequest

COLUMNS = {"id": "int8", "model": "text", "plate": "text", "status": "text", "customer": "text"}

CARS = (
    (1, "Fiat 500 Electric", "B-EL 105", "available", None),
    (2, "VW ID.3", "B-ID 330", "rented", "Ada Lindgren"),
    (3, "Renault Zoe", "B-ZO 77", "reserved", "Noor Haddad"),
    (4, "Toyota Yaris", "B-TY 412", "available", None),
    (5, "Skoda Octavia", "B-SO 208", "rented", "Marek Novak"),
    (6, "Volvo EX30", "B-VX 30", "maintenance", None),
)


@contextlib.contextmanager
def project() -> Iterator[tuple[str, str]]:
    """URL and key of one; gone at the end."""
    with RealtimeServer() as server:
        keep_cars(server)
        yield server.url, server.api_key


def keep_cars(server: RealtimeServer) -> dict[int, dict[str, Any]]:
    """Give a server the table, and return its rows by id; while the server runs they belong to its thread."""
    server.table("cars", COLUMNS)
    rows: dict[int, dict[str, Any]] = {car[0]: dict(zip(COLUMNS, car, strict=True)) for car in CARS}

    def answer(request: RestRequest) -> Refusal | None:
        if request.path != "/rest/v1/cars":
            return None
        if request.headers.get("apikey") != server.api_key:
            return Refusal(401, '{"message": "Invalid API key"}')
        found = list(rows.values())
        if request.method == "PATCH":
            found = [row for row in found if f"eq.{row['id']}" == request.query["id"]]
            for row in found:
                row.update(json.loads(request.body))
                server.change("public", "cars", "UPDATE", row, {"id": row["id"]})
        return Refusal(200, json.dumps(found), {"content-type": "application/json"})

    server.on_request = answer
    return rows

"""The table `cars`, read and written through a project's REST API."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

STATUSES = ("available", "reserved", "rented", "maintenance")


class Unavailable(Exception):
    """The database did not answer, or not with rows."""


class Cars:
    """
    All that this app knows of the database. Any thread may use it.

    The key stays here, in the server: no browser gets it.
    """

    def __init__(self, url: str, key: str) -> None:
        self._table = f"{url.rstrip('/')}/rest/v1/cars"
        self._headers = {"apikey": key, "Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def all(self) -> list[dict[str, Any]]:
        """Every car, in the order of their ids."""
        return self._ask("?select=*&order=id")

    def set_status(self, car: int, status: str) -> bool:
        """Whether there is such a car; whoever had it has brought it back when it is available."""
        change = {"status": status, **({"customer": None} if status == "available" else {})}
        return bool(self._ask(f"?id=eq.{car}", "PATCH", change))

    def _ask(self, query: str, method: str = "GET", body: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        data = None if body is None else json.dumps(body).encode()
        headers = {**self._headers, "Prefer": "return=representation"}
        request = urllib.request.Request(self._table + query, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                rows: list[dict[str, Any]] = json.load(answer)
                return rows
        except (OSError, ValueError) as error:  # urllib's own errors are OSErrors
            raise Unavailable(f"{method} {self._table}: {error}") from error

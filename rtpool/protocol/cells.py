"""
Cells of changed rows: exact, and of one Python type per column type whichever server wrote them.

Today's servers write native JSON, old ones the text that PostgreSQL prints. Native cells stay as they are, but for
``numeric``, which becomes `Decimal`; text in a column whose type is not text is read as PostgreSQL's text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from rtpool.errors import ProtocolError
from rtpool.protocol.json_engine import NumberText, loads

__all__ = ["NUMERIC_TYPES", "convert_rows"]

#: The column types whose cells a float may not hold.
NUMERIC_TYPES = ("numeric", "_numeric")

#: Dimensions of an array, PostgreSQL's limit.
MAX_DIMENSIONS = 6

_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|NaN|Infinity)")

#: An element of an array's text, up to the comma or the end behind it.
_ELEMENT = re.compile(r'(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>(?:[^",{}\\]|\\.)+))(?=,|\Z)', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


def _bool(text: str) -> Any:
    return {"t": True, "f": False}.get(text, text)


def _int(text: str) -> Any:
    try:
        return int(text) if _INTEGER.fullmatch(text) else text
    except ValueError:  # more digits than Python converts
        return text


def _float(text: str) -> Any:
    return float(text) if _NUMBER.fullmatch(text) else text


def _numeric(text: str) -> Any:
    try:
        return Decimal(text) if _NUMBER.fullmatch(text) else text
    except InvalidOperation:  # an exponent beyond all bounds
        return text


def _json(text: str) -> Any:
    try:
        return loads(text.encode("utf-8"))
    except (ProtocolError, UnicodeEncodeError):
        return text


def _timestamp(text: str) -> Any:
    return text.replace(" ", "T", 1)


_READERS: dict[str, Callable[[str], Any]] = {
    "bool": _bool,
    **dict.fromkeys(("int2", "int4", "int8", "oid"), _int),
    **dict.fromkeys(("float4", "float8"), _float),
    "numeric": _numeric,
    **dict.fromkeys(("json", "jsonb"), _json),
    "timestamp": _timestamp,
}


def _array(text: str, element_type: str) -> Any:
    """The list in an array's text; `text` itself when it is no one-dimensional array."""
    if len(text) < 2 or text[0] != "{" or text[-1] != "}" or element_type == "box":  # boxes are separated by semicolons
        return text
    inner, index = text[1:-1], 0
    values: list[Any] = []
    read = _READERS.get(element_type, str)
    while inner and index <= len(inner):
        element = _ELEMENT.match(inner, index)
        if element is None:
            return text
        quoted, bare = element.group("quoted", "bare")
        if bare is not None and bare.upper() == "NULL":
            values.append(None)
        else:
            values.append(read(_ESCAPED.sub(r"\1", bare if quoted is None else quoted)))
        index = element.end() + 1
    return values


def _exact(cell: Any, dimensions: int = MAX_DIMENSIONS) -> Any:
    """A native ``numeric``, or those in an array."""
    if isinstance(cell, list) and dimensions:
        return [_exact(value, dimensions - 1) for value in cell]
    if isinstance(cell, bool) or not isinstance(cell, (int, float)):
        return cell
    exact = (
        _numeric(cell.text) if isinstance(cell, NumberText) else Decimal(cell if isinstance(cell, int) else str(cell))
    )
    return cell if isinstance(exact, str) else exact


def _convert(cell: Any, column_type: str) -> Any:
    if not isinstance(cell, str):
        return _exact(cell) if column_type in NUMERIC_TYPES else cell
    if column_type[0] == "_":
        return _array(cell, column_type[1:])
    return _READERS[column_type](cell)


def _is_native(row: Mapping[str, Any], types: Mapping[str, str]) -> bool:
    """Whether a cell of `row` proves that no old server wrote it: theirs are text, with a blank in timestamps."""
    return any(
        cell is not None and (not isinstance(cell, str) or ("T" in cell and types.get(name, "")[:9] == "timestamp"))
        for name, cell in row.items()
    )


def convert_rows(rows: Iterable[Any], columns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """
    The records of one change with their cells converted by column type.

    Rubbish, unknown types and arrays of several dimensions in text are left as they are. Text in a ``json`` column is
    parsed unless other cells prove that the server writes natively: then it is a JSON string.

    Args:
        rows: ``record`` and ``old_record``; what is no object counts as empty. Not changed.
        columns: ``{"name": …, "type": …}`` each.
    """
    records = [row if isinstance(row, dict) else {} for row in rows]
    types = {c["name"]: c["type"] for c in columns if isinstance(c.get("name"), str) and isinstance(c.get("type"), str)}
    if any(kind in ("json", "jsonb") for kind in types.values()) and any(_is_native(row, types) for row in records):
        types = {name: kind for name, kind in types.items() if kind not in ("json", "jsonb")}
    types = {name: kind for name, kind in types.items() if kind[:1] == "_" or kind in _READERS}
    converted = []
    for row in records:
        cells = {name: _convert(row[name], kind) for name, kind in types.items() if row.get(name) is not None}
        converted.append({**row, **cells})
    return converted

"""
Cells of changed rows: exact, and of one Python type per column type whichever server wrote them.

Today's servers write native JSON, old ones the text that PostgreSQL prints. Native cells stay as they are, but for
``numeric``, which becomes `Decimal`; text in a column whose type is not text is read as PostgreSQL's text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
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
    if isinstance(cell, NumberText):
        exact = _numeric(cell.text)
        return cell if isinstance(exact, str) else exact
    if isinstance(cell, float):
        return Decimal(str(cell))
    return Decimal(cell) if isinstance(cell, int) and not isinstance(cell, bool) else cell


def _read(text: str, column_type: str) -> Any:
    return _array(text, column_type[1:]) if column_type[0] == "_" else _READERS[column_type](text)


def _is_native(rows: Iterable[Mapping[str, Any]], types: Iterable[tuple[str, str]]) -> bool:
    """Whether a cell proves that no old server wrote it: theirs are text, with a blank in timestamps."""
    times = {name for name, kind in types if kind in ("timestamp", "timestamptz")}
    return any(
        not isinstance(cell, str) or ("T" in cell and name in times)
        for row in rows
        for name, cell in row.items()
        if cell is not None
    )


def convert_rows(rows: Iterable[Any], columns: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """
    The records of one change with their cells converted by column type.

    Rubbish, unknown types and arrays of several dimensions in text are left as they are. Text in a ``json`` column is
    parsed unless other cells prove that the server writes natively: then it is a JSON string.

    Args:
        rows: ``record`` and ``old_record``; what is no object counts as empty. Not changed.
        columns: ``{"name": …, "type": …}`` each.
    """
    originals = [row if isinstance(row, dict) else {} for row in rows]
    records = [dict(row) for row in originals]
    named = ((column.get("name"), column.get("type")) for column in columns)
    types = [(name, kind) for name, kind in named if isinstance(name, str) and isinstance(kind, str)]
    native = None
    for name, kind in types:
        if kind not in _READERS and kind[:1] != "_":
            continue
        for record in records:
            cell = record.get(name)
            if isinstance(cell, str):
                if kind in ("json", "jsonb"):
                    native = _is_native(originals, types) if native is None else native
                    if native:
                        continue
                record[name] = _read(cell, kind)
            elif kind in NUMERIC_TYPES and cell is not None:
                record[name] = _exact(cell)
    return records

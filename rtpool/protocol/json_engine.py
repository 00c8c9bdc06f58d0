"""
Strict JSON in and out, the same with and without orjson.

Encoding is the standard library's: orjson writes NaN as null and refuses large integers. Decoding takes orjson where
it is installed; it turns integers beyond 64 bits into floats, so text with such digits goes to the standard library.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from rtpool.errors import InvalidType, InvalidValue, ProtocolError

try:
    import orjson
except ImportError:  # the `speedups` extra is not installed
    orjson = None  # type: ignore[assignment, unused-ignore]

__all__ = ["NumberText", "canonical", "dumps", "json_object", "loader_for", "loads", "quoted"]

#: Each character of a number is made a zero, and zeros are searched for, which takes a tenth of a regular expression's
#: time. So many of them in a row cover four of every byte that is a quarter of that from the next, so those are looked
#: at first, and hardly ever all.
_DIGITS_TO_ZERO = bytes(ord("0") if chr(code) in "-0123456789" else ord(" ") for code in range(256))
#: The shortest integers that orjson does not read exactly have twenty characters, a sign included.
_LONG_NUMBER = 20
#: How deep an object of ours may be nested: half of what Python's recursion limit lets a fresh thread write or compare.
MAX_DEPTH = 500
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{\]}]')
#: Digits of an integer that Python reads (`sys.set_int_max_str_digits`); PostgreSQL's numeric has up to 131,072.
MAX_DIGITS = 4_000


class NumberText(float):
    """
    A float that remembers how it was written, because a float may not hold all its digits.

    Attributes:
        text: the JSON number.
    """

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str | float) -> NumberText:
        number = super().__new__(cls, text)
        number.text = str(text)
        return number


_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
#: What `_encoder` makes for each value it encodes, where Python has it in C; without its detours a small value takes
#: half the time.
_make_encoder = getattr(json.encoder, "c_make_encoder", None)


def _write(value: Any) -> str:
    if _make_encoder is None:  # PyPy
        return _encoder.encode(value)
    # The table of what is being encoded, by which a cycle is seen, is this call's own.
    parts = _make_encoder(
        {}, _encoder.default, json.encoder.encode_basestring, None, ":", ",", False, False, False
    )  # fmt: skip
    return "".join(parts(value, 0))


def dumps(value: Any, what: str = "the payload") -> bytes:
    """
    Encode a JSON value as compact UTF-8.

    Args:
        value: what to encode.
        what: how the error names it.

    Raises:
        InvalidType: a type JSON does not have.
        InvalidValue: NaN or infinity, a lone surrogate, a cycle, nesting beyond Python's recursion limit.
    """
    try:
        return _write(value).encode("utf-8")
    except TypeError as error:
        raise InvalidType(f"{what} cannot be written as JSON: {error}") from error
    except (ValueError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
        raise InvalidValue(f"{what} cannot be written as JSON: {error}") from error


@functools.lru_cache(maxsize=256, typed=True)
def quoted(name: str | int | None) -> bytes:
    """
    What `dumps` makes of a name that comes again and again: a topic, an event, the ref of a join.

    Raises:
        InvalidValue: as `dumps`.
    """
    return dumps(name, "a name")


def canonical(value: Any) -> bytes:
    """A JSON value as bytes that are equal when the values are: in one order of keys, and 1 is not true."""
    return json.dumps(value, sort_keys=True, default=repr).encode("utf-8", "surrogatepass")


def json_object(value: object, what: str = "the payload") -> bytes:
    """
    Encode what has to be a JSON object.

    Raises:
        InvalidType: no mapping, or a type JSON does not have.
        InvalidValue: as `dumps`; or it is nested deeper than `MAX_DEPTH`.
    """
    if not isinstance(value, (dict, Mapping)):
        raise InvalidType(f"{what} must be a JSON object (a dict), not {type(value).__name__}")
    data = dumps(value if isinstance(value, dict) else dict(value), what)
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and (depth := _depth(data)) > MAX_DEPTH:
        raise InvalidValue(f"{what} is nested {depth} deep; {MAX_DEPTH} is the most that every thread can look through")
    return data


def _depth(text: bytes) -> int:
    """How deep a JSON text is nested."""
    depth = deepest = 0
    for found in _BRACKETS.finditer(text):
        if found[0] in (b"[", b"{"):
            depth += 1
            deepest = max(deepest, depth)
        elif found[0] in (b"]", b"}"):
            depth -= 1
    return deepest


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _integer(text: str) -> int | NumberText:
    return int(text) if len(text) - text.startswith("-") <= MAX_DIGITS else NumberText(text)


def loads(data: bytes, *, exact: bool = False) -> Any:
    """
    Decode UTF-8 JSON text. Integers are exact; one of more than `MAX_DIGITS` digits is a `NumberText`.

    How deep lists and objects may be nested is Python's recursion limit, less what is on the stack, and where orjson is
    installed 1,024 at the least. Up to 900 levels that is the same; to look at every text's depth would take as long as
    to decode it.

    Args:
        data: the text.
        exact: give numbers that are no integers as `NumberText`. Several times slower.

    Raises:
        ProtocolError: the bytes are no JSON text.
    """
    try:
        if orjson is None or exact or _has_number(data, _LONG_NUMBER):
            return _plain(data, exact)
        try:
            return orjson.loads(data)
        except ValueError:  # it refuses numbers beyond a float's range, which Python reads as infinite
            return _plain(data, exact)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a frame of {len(data)} bytes holds no JSON: {error}") from error


def loader_for(texts: Sequence[bytes]) -> Callable[[bytes], Any]:
    """
    What decodes each of several texts: as `loads` does, but they are looked through all at once for what takes longer.

    It may raise ValueError where `loads` would read a text, or say better why not: ask `loads` then.
    """
    data = texts[0] if len(texts) == 1 else b" ".join(texts)
    decode: Callable[[bytes], Any] | None = getattr(orjson, "loads", None)
    if decode is not None:
        return loads if _has_number(data, _LONG_NUMBER) else decode
    return loads if _has_half_characters(data) or _has_number(data, MAX_DIGITS + 1) else _scanned


def _has_number(data: bytes, length: int) -> bool:
    """Whether there may be a number of so many characters."""
    samples = data[:: length // 4].translate(_DIGITS_TO_ZERO)
    return b"0" * 4 in samples and b"0" * length in data.translate(_DIGITS_TO_ZERO)


def _has_half_characters(data: bytes) -> bool:
    """Whether there may be an escape of half a character outside the first 65,536."""
    return b"\\" in data and (b"\\ud" in data or b"\\uD" in data)  # one byte is found ten times as fast as three


@functools.cache
def _decoder(exact: bool, endless: bool) -> json.JSONDecoder:
    """Python's own. To make one takes longer than to decode a small text."""
    return json.JSONDecoder(
        parse_constant=_refuse_constant,
        parse_float=NumberText if exact else None,
        parse_int=_integer if endless else None,
    )


def _plain(data: bytes, exact: bool) -> Any:
    """What Python's own decoder reads."""
    value = _decoder(exact, _has_number(data, MAX_DIGITS + 1)).decode(data.decode("utf-8"))
    if _has_half_characters(data):
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # fails at half a character, as orjson does
    return value


#: Its scanner; typeshed does not know it.
_scan: Callable[[str, int], tuple[Any, int]] = _decoder(False, False).scan_once  # type: ignore[attr-defined]


def _scanned(data: bytes) -> Any:
    """What Python's own decoder reads where nothing stands around the value: to look for that takes half the time."""
    text = data.decode("utf-8")
    try:
        value, end = _scan(text, 0)
    except (StopIteration, RecursionError) as error:
        raise ValueError("no JSON that is read so") from error
    if end != len(text):
        raise ValueError("more than the value")
    return value

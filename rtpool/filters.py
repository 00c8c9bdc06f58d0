"""
Filters for Postgres changes: a builder for the server's grammar, and the check of what is written by hand.

```python
from rtpool.filters import col

channel.on_postgres_changes("UPDATE", print, table="cars", filter=col("status").eq("rented") & col("id").gt(5))
```

The grammar is ``column=operator.value``, conditions joined by commas, all of which must hold. ``not.`` before an
operator negates it. A value in double quotes may hold anything, with ``\\"`` and ``\\\\`` for a quote and a backslash;
commas within quotes or parentheses do not separate conditions. ``in`` takes ``(a,b,"c,d")``, at most 100 values, read
as the elements of a PostgreSQL array. Source: supabase/realtime 2.128, its parser of subscriptions and the trigger that
checks them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import date
from decimal import Decimal
from typing import NoReturn
from uuid import UUID

import attrs

from rtpool.errors import InvalidType, InvalidValue

__all__ = ["Column", "Filter", "Value", "check_filter", "col"]

#: What a column can be compared with. A `datetime` is a `date`; one without a time zone means the database's own.
Value = str | bool | int | float | Decimal | date | UUID

#: Values of one ``in``.
MAX_VALUES = 100

_OPERATORS = (
    *("eq", "neq", "lt", "lte", "gt", "gte", "in"),
    *("like", "ilike", "is", "match", "imatch", "isdistinct"),
)
_IS_WORDS = ("null", "true", "false", "unknown")
_FORM = "write column=operator.value, e.g. status=eq.rented"

#: A quote opens a quoted value only right behind one of these.
_BEFORE_QUOTE = frozenset(".(,")
_NEEDS_QUOTES = re.compile(r'[,()"\\]|\A\s|\s\Z')
#: What an array's element may not be without quotes: empty, with braces, or the word for NULL.
_ELEMENT_NEEDS_QUOTES = re.compile(r"\A\Z|[{}]|\Anull\Z", re.IGNORECASE)
_ELEMENT = re.compile(r'\s*(?:"(?:[^"\\]|\\.)*"\s*|(?:[^\s",{}\\]|\\.)(?:[^",{}\\]|\\.)*)', re.DOTALL)


@attrs.frozen(repr=False)
class Filter:
    """
    Conditions that must all hold; `col` makes them, ``&`` joins them, ``~`` negates one.

    ``str()`` is the server's text. Filters are equal when their texts are. There is no ``|``: the server has no OR.

    Thread-safety: immutable.
    """

    conditions: tuple[str, ...]

    def __and__(self, other: Filter) -> Filter:
        """Both."""
        if not isinstance(other, Filter):
            raise InvalidType(f"& joins two filters, not a filter and {type(other).__name__}; make both with col()")
        return Filter(self.conditions + other.conditions)

    __rand__ = __and__

    def __or__(self, other: object) -> NoReturn:
        """
        Refused.

        Raises:
            InvalidValue: always.
        """
        raise InvalidValue(
            "the server has no OR in filters: use in_() for values of one column, or register the callback twice, "
            "with a filter each"
        )

    __ror__ = __or__

    def __invert__(self) -> Filter:
        """
        The opposite of one condition; needs server 2.112 or later. A NULL meets neither a comparison nor its opposite.

        Raises:
            InvalidValue: of several conditions, since that would be an OR.
        """
        if len(self.conditions) != 1:
            raise InvalidValue(
                f"~ negates one condition, not {len(self.conditions)} ({self}): that would be an OR, which the server "
                "does not have"
            )
        column, _, rest = self.conditions[0].partition("=")
        positive = rest.removeprefix("not.")
        return Filter((f"{column}={positive}" if positive != rest else f"{column}=not.{rest}",))

    def __bool__(self) -> NoReturn:
        """
        Refused, because ``a and b`` would drop ``a`` without a word.

        Raises:
            InvalidType: always.
        """
        raise InvalidType(f"a filter is neither true nor false ({self}); join with &, negate with ~")

    def __str__(self) -> str:
        return ",".join(self.conditions)

    def __repr__(self) -> str:
        return f"<rtpool.filters.Filter {self}>"


def _check_column(_column: object, _attribute: object, name: str) -> None:
    text = _checked_text("a column's name", name)
    segments, open_quote = _split(f"{text}=,")
    alone = open_quote is None and [segment for _, segment in segments] == [f"{text}=", ""]
    if not text or text != text.strip() or "=" in text or not alone:
        raise InvalidValue(
            f"{text!r} cannot be a column in a filter: the server's grammar takes no empty name, no outer blanks, no "
            "'=', no ',' and no open '(' in one"
        )


@attrs.frozen
class Column:
    """
    A column to filter by; `col` makes it.

    Every method raises `InvalidValue` or `InvalidType` for a value that PostgreSQL could not read or that is no
    `Value`. None means NULL where a method takes it.

    Attributes:
        name: as the table has it.

    Thread-safety: immutable.
    """

    name: str = attrs.field(validator=_check_column)

    def eq(self, value: Value | None) -> Filter:
        """Equal to `value`; ``eq(None)`` is ``is_(None)``, because nothing equals NULL."""
        return self.is_(None) if value is None else self._compare("eq", value)

    def neq(self, value: Value | None) -> Filter:
        """Neither equal to `value` nor NULL; ``neq(None)`` is ``~is_(None)``."""
        return ~self.is_(None) if value is None else self._compare("neq", value)

    def lt(self, value: Value) -> Filter:
        """Less than `value`."""
        return self._compare("lt", value)

    def lte(self, value: Value) -> Filter:
        """Less than or equal to `value`."""
        return self._compare("lte", value)

    def gt(self, value: Value) -> Filter:
        """Greater than `value`."""
        return self._compare("gt", value)

    def gte(self, value: Value) -> Filter:
        """Greater than or equal to `value`."""
        return self._compare("gte", value)

    def in_(self, values: Iterable[Value]) -> Filter:
        """
        Equal to one of 1 to 100 values.

        Raises:
            InvalidValue: none, or over 100.
            InvalidType: a bare str, or what is no iterable.
        """
        if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
            raise InvalidType(f"in_() takes a list of values, not {type(values).__name__}")
        texts = [_text(value) for value in values]
        if not 1 <= len(texts) <= MAX_VALUES:
            raise InvalidValue(f"in_() takes 1 to {MAX_VALUES} values, not {len(texts)}")
        return self._condition("in", f"({','.join(_quoted(text, within_array=True) for text in texts)})")

    def like(self, pattern: str) -> Filter:
        """Matches an SQL pattern: ``%`` any text, ``_`` one character. Needs server 2.112 or later."""
        return self._condition("like", _quoted(_checked_text("a pattern", pattern)))

    def ilike(self, pattern: str) -> Filter:
        """As `like`, in any case. Needs server 2.112 or later."""
        return self._condition("ilike", _quoted(_checked_text("a pattern", pattern)))

    def is_(self, value: bool | str | None) -> Filter:
        """
        NULL (None), true or false (bool, on boolean columns only), or ``"unknown"``.

        Needs server 2.112 or later.
        """
        word = "null" if value is None else _text(value)
        if word not in _IS_WORDS:
            raise InvalidValue(f"is_() takes None, True, False or 'unknown', not {value!r}")
        return self._condition("is", word)

    def match(self, pattern: str) -> Filter:
        """Matches a POSIX regular expression somewhere. Needs server 2.112 or later."""
        return self._condition("match", _quoted(_checked_text("a pattern", pattern)))

    def imatch(self, pattern: str) -> Filter:
        """As `match`, in any case. Needs server 2.112 or later."""
        return self._condition("imatch", _quoted(_checked_text("a pattern", pattern)))

    def is_distinct(self, value: Value | None) -> Filter:
        """
        Other than `value`, NULL included; ``is_distinct(None)`` is ``~is_(None)``. Needs server 2.112 or later.
        """
        return ~self.is_(None) if value is None else self._compare("isdistinct", value)

    def _compare(self, operator: str, value: Value) -> Filter:
        return self._condition(operator, _quoted(_text(value)))

    def _condition(self, operator: str, value: str) -> Filter:
        return Filter((f"{self.name}={operator}.{value}",))


def col(name: str) -> Column:
    """
    A column to filter by.

    Args:
        name: as the table has it, without quotes.

    Raises:
        InvalidValue, InvalidType: the server's grammar cannot carry the name.
    """
    return Column(name)


def check_filter(value: Filter | str | None) -> str | None:
    """
    The server's text of a filter, checked against its grammar; None when there is nothing to filter by.

    What only the database can know is not checked: whether a column exists and takes the value. A quote that is never
    closed is refused although the server would take the rest of the text as the value.

    Args:
        value: from the builder, or written by hand.

    Raises:
        InvalidValue: with the position, counted from 0, the bad part and the right form.
        InvalidType: neither a filter, a str nor None.
    """
    if value is None:
        return None
    if not isinstance(value, (Filter, str)):
        raise InvalidType(f"filter must be a rtpool.filters.Filter, str or None, not {type(value).__name__}")
    text = _checked_text("filter", str(value))
    if not text.strip():
        return None
    segments, open_quote = _split(text)
    if open_quote is not None:
        raise _bad(
            open_quote, f"nothing closes the quote of {text[open_quote:]!r:.60}", r'write "\"" for a quote itself'
        )
    for position, segment in segments:
        _check_condition(position, segment)
    return text


def _bad(position: int, what: str, remedy: str) -> InvalidValue:
    return InvalidValue(f"bad filter at position {position}: {what}; {remedy}")


def _split(text: str) -> tuple[list[tuple[int, str]], int | None]:
    """
    The conditions of a filter as the server splits them, each with its position, and where an unclosed quote opens.
    """
    segments = []
    start, depth, open_quote, before = 0, 0, None, ""
    characters = enumerate(text)
    for index, char in characters:
        if open_quote is not None:
            if char == "\\":
                next(characters, None)
            elif char == '"':
                open_quote = None
        elif char == '"' and before in _BEFORE_QUOTE:
            open_quote = index
        elif char == "," and not depth:
            segments.append((start, text[start:index]))
            start, char = index + 1, ""
        else:
            depth = max(0, depth + (char == "(") - (char == ")"))
        before = char
    segments.append((start, text[start:]))
    return segments, open_quote


def _check_condition(position: int, segment: str) -> None:
    position += len(segment) - len(segment.lstrip())
    condition = segment.strip()
    if not condition:
        raise _bad(position, "a condition is empty", "remove the extra comma")
    column, equals, rest = condition.partition("=")
    if not equals or not column:
        raise _bad(position, f"{condition!r:.60} names no column", _FORM)
    operator, dot, value = rest.removeprefix("not.").partition(".")
    behind = position + len(condition) - len(value)
    if not dot:
        raise _bad(position, f"{condition!r:.60} has no operator", _FORM)
    if operator not in _OPERATORS:
        known = ", ".join(_OPERATORS)
        raise _bad(behind - len(operator) - 1, f"unknown operator {operator!r:.60}", f"{_FORM}, with one of {known}")
    if operator == "in":
        _check_in(behind, value)
    elif operator == "is" and (value[1:-1] if value[:1] == '"' else value) not in _IS_WORDS:
        raise _bad(behind, f"'is' takes {', '.join(_IS_WORDS)} in lower case, not {value!r:.60}", "e.g. gone=is.null")


def _check_in(position: int, value: str) -> None:
    if len(value) < 2 or value[0] != "(" or value[-1] != ")":
        raise _bad(position, f"the values of 'in' stand in parentheses, not {value!r:.60}", "e.g. id=in.(1,2)")
    elements = value[1:-1]
    if not elements.strip():
        return
    index = count = 0
    while index <= len(elements):
        element = _ELEMENT.match(elements, index)
        end = element.end() if element else index
        follows = elements[end : end + 1]
        if follows in ("{", "}"):
            return  # nested arrays: PostgreSQL's to judge
        if element is None or follows not in ("", ","):
            raise _bad(
                position + 1 + end, f"no value of 'in' is {elements[end:]!r:.60}", 'quote it: id=in.(1,"a,b","")'
            )
        index, count = end + 1, count + 1
    if count > MAX_VALUES:
        raise _bad(position, f"'in' has {count} values", f"at most {MAX_VALUES} are possible")


def _checked_text(what: str, text: object) -> str:
    """`text` as a plain str that JSON and PostgreSQL can carry."""
    if not isinstance(text, str):
        raise InvalidType(f"{what} must be str, not {type(text).__name__}")
    if "\0" in text:
        raise InvalidValue(f"{what} holds a NUL character, which PostgreSQL's text cannot: {text[:40]!r}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidValue(f"{what} cannot be written as UTF-8: {error}") from error
    return str.__str__(text)  # the value of a str enum, not its name


def _text(value: object) -> str:
    """A value as PostgreSQL reads it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _checked_text("a filter's value", value)
    if isinstance(value, int):
        return f"{Decimal(int(value)):f}"  # str() refuses integers of over 4300 digits
    if isinstance(value, (float, Decimal)):
        if not Decimal(value).is_finite():
            raise InvalidValue(f"a filter's value must be finite, not {value!r}; write 'NaN' as text where it is meant")
        return str(value) if isinstance(value, Decimal) else repr(float(value))
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    raise InvalidType(
        f"a filter's value must be str, bool, int, float, Decimal, date, datetime or UUID, not {type(value).__name__}"
    )


def _quoted(text: str, *, within_array: bool = False) -> str:
    """`text`, in quotes when the grammar would read it differently without."""
    if _NEEDS_QUOTES.search(text) or (within_array and _ELEMENT_NEEDS_QUOTES.search(text)):
        escaped = text.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return text

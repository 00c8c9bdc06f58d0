"""JSON in and out, the same with and without orjson."""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
import tracemalloc
import types
from collections import UserDict
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rtpool.errors import InvalidType, InvalidValue, ProtocolError
from rtpool.protocol import json_engine
from rtpool.protocol.json_engine import (
    MAX_DEPTH,
    MAX_DIGITS,
    NumberText,
    canonical,
    dumps,
    json_object,
    loader_for,
    loads,
    quoted,
)

EDGES = [edge + step for edge in (2**53, 2**63, -(2**63), 2**64, 10**18, 10**19) for step in (-1, 0, 1)]


def with_orjson() -> types.ModuleType:
    pytest.importorskip("orjson")
    return json_engine


@functools.cache
def without_orjson() -> types.ModuleType:
    """The module as it is where the extra is not installed."""
    spec = importlib.util.spec_from_file_location("plain_json_engine", json_engine.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "orjson", None)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(params=[with_orjson, without_orjson])
def engine(request: pytest.FixtureRequest) -> Any:
    return request.param()


def test_orjson_is_taken_where_it_is_installed_and_missed_nowhere() -> None:
    assert with_orjson().orjson is not None
    assert without_orjson().orjson is None


@pytest.mark.parametrize("number", EDGES)
def test_an_integer_of_any_size_is_exact(engine: Any, number: int) -> None:
    for text in (f"{number}", f"[{number}]", f'{{"a":[1,{number},2]}}'):
        assert str(number) in str(engine.loads(text.encode()))


@given(number=st.integers(-(10**30), 10**30), before=st.text(), after=st.text())
def test_an_integer_is_exact_wherever_it_stands(number: int, before: str, after: str) -> None:
    value = [before, number, after]
    assert loads(dumps(value)) == value


def test_an_exact_decode_remembers_the_text_of_what_is_no_integer() -> None:
    one, two, three = loads(b"[1.10, 1e2, 7]", exact=True)
    assert (one, one.text) == (1.1, "1.10")
    assert (two, two.text) == (100.0, "1e2")
    assert not isinstance(three, NumberText)


def test_a_numeric_of_any_length_is_exact() -> None:
    digits = "7" * 20_000
    for exact in (False, True):
        (value,) = loads(f"[{digits}]".encode(), exact=exact)
        assert value.text == digits
    assert loads(b"[%s]" % (b"1" * MAX_DIGITS)) == [int("1" * MAX_DIGITS)]


def test_digits_in_text_or_in_many_numbers_are_no_long_number(engine: Any) -> None:
    text = "1" * (MAX_DIGITS + 1)
    assert engine.loads(dumps([text, 3])) == [text, 3]
    assert engine.loads(dumps([7] * MAX_DIGITS)) == [7] * MAX_DIGITS


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[1,]", b"{'a':1}", b"NaN", b"[Infinity]", b"-Infinity", b'"\xff"', b"\x00", b"[" * 100_000],
    ids=repr,
)
def test_what_is_no_json_is_refused_with_its_length(engine: Any, data: bytes) -> None:
    with pytest.raises(ProtocolError, match=f"a frame of {len(data)} bytes holds no JSON"):
        engine.loads(data)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=8))
def test_both_engines_read_alike_what_is_written(value: Any) -> None:
    assert without_orjson().loads(dumps(value)) == loads(dumps(value)) == value


def test_a_value_is_written_compactly_in_utf_8() -> None:
    assert dumps({"a": [1, None, True, "é"]}) == '{"a":[1,null,true,"é"]}'.encode()


@pytest.mark.parametrize("value", [Decimal(1), {1, 2}, b"x", {(1, 2): 3}], ids=repr)
def test_a_type_that_json_lacks_is_refused_and_what_it_was_for_is_named(value: Any) -> None:
    with pytest.raises(InvalidType, match="the metadata cannot be written as JSON"):
        dumps(value, "the metadata")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", [-float("inf")]], ids=repr)
def test_a_value_that_json_lacks_is_refused(value: Any) -> None:
    with pytest.raises(InvalidValue, match="the payload cannot be written as JSON"):
        dumps(value)


def test_what_holds_itself_or_is_nested_without_end_is_refused() -> None:
    round_and_round: list[Any] = []
    round_and_round.append(round_and_round)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (round_and_round, deep):
        with pytest.raises(InvalidValue):
            dumps(value)


def test_an_object_may_be_any_mapping_and_nothing_else() -> None:
    assert json_object({"a": 1}) == json_object(UserDict(a=1)) == b'{"a":1}'
    with pytest.raises(InvalidType, match=r"params must be a JSON object \(a dict\), not list"):
        json_object([("a", 1)], "params")


def test_equal_values_have_one_canonical_form_and_others_another() -> None:
    assert canonical({"a": 1, "b": [2]}) == canonical({"b": [2], "a": 1})
    different = [canonical(value) for value in (1, True, "1", 1.0, None, [1], "\ud800", b"1", {"1": 1})]
    assert len(set(different)) == len(different)


@pytest.mark.parametrize("orjson", [pytest.param(True, id="orjson"), pytest.param(False, id="plain")])
@pytest.mark.parametrize("text", [rb'"\ud800"', rb'{"\uDe00":1}', rb'["\ud800", 12345678901234567890123]'])
def test_half_a_character_is_no_json(monkeypatch: pytest.MonkeyPatch, orjson: bool, text: bytes) -> None:
    if orjson:
        pytest.importorskip("orjson")
    else:
        monkeypatch.setattr(json_engine, "orjson", None)
    assert loads(rb'["\ud83d\ude00", "\\ud800"]') == ["\U0001f600", "\\ud800"]
    with pytest.raises(ProtocolError):
        loads(text)


@pytest.mark.parametrize("orjson", [pytest.param(True, id="orjson"), pytest.param(False, id="plain")])
def test_a_number_no_float_can_hold_costs_no_frame(monkeypatch: pytest.MonkeyPatch, orjson: bool) -> None:
    if orjson:
        pytest.importorskip("orjson")
    else:
        monkeypatch.setattr(json_engine, "orjson", None)
    assert loads(b"[1e999, -1e999, 1e-999]") == [float("inf"), float("-inf"), 0.0]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text('aé\n"\u2028😀'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=20,
)


@given(value=JSON)
@example(value={"a": [1, None, True, "é\n", 2.5, {}]})
def test_it_is_written_as_the_standard_library_writes_it_also_where_python_has_no_c(value: Any) -> None:
    expected = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    assert dumps(value) == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_engine, "_make_encoder", None)
        assert dumps(value) == expected


def test_a_cycle_is_named_as_one_and_spoils_nothing_that_is_written_later() -> None:
    cycle: dict[str, Any] = {}
    cycle["itself"] = cycle
    for _ in range(2):
        with pytest.raises(InvalidValue, match="Circular reference"):
            dumps(cycle)
    cycle["itself"] = 1
    assert dumps([cycle, cycle]) == b'[{"itself":1},{"itself":1}]'


def test_a_name_is_quoted_as_it_is_written() -> None:
    for name in ("room", 'a"b\\c', "é😀", "", None, 1, 0):
        assert quoted(name) == dumps(name)
    assert (quoted(1), quoted(True)) == (b"1", b"true")
    with pytest.raises(InvalidValue):
        quoted("\ud800")


def nested(depth: int) -> dict[str, object]:
    """An object so deep, with brackets in texts that are none."""
    value: object = '[{"\\'
    for _ in range(depth - 1):
        value = [value]
    return {"[": value}


def test_an_object_is_refused_that_is_nested_deeper_than_any_thread_can_look_through() -> None:
    assert json.loads(json_object(nested(MAX_DEPTH))) == nested(MAX_DEPTH)
    with pytest.raises(InvalidValue, match=f"nested {MAX_DEPTH + 1} deep"):
        json_object(nested(MAX_DEPTH + 1))
    wide = {"rows": [{} for _ in range(3 * MAX_DEPTH)]}
    assert json.loads(json_object(wide)) == wide


LONG_NUMBER = b'{"n":123456789012345678901234567890}'


@pytest.mark.parametrize("texts", [[b"{}"], [b"{}", b'{"n":1}'], [LONG_NUMBER], [b"{}", LONG_NUMBER], [b"1" * 13]])
def test_what_decodes_several_texts_reads_each_as_it_would_be_read_alone(
    texts: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [loader_for(texts)(text) for text in texts] == [loads(text) for text in texts]
    monkeypatch.setattr(json_engine, "orjson", None)
    assert [loader_for(texts)(text) for text in texts] == [loads(text) for text in texts]


def test_a_cycle_is_seen_at_once_and_not_written_until_the_stack_ends() -> None:
    payload: dict[str, Any] = {"big": "x" * 10_000}
    payload["self"] = payload
    tracemalloc.start()
    with pytest.raises(InvalidValue, match="Circular"):
        json_object(payload)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("text", [b" [1]", b"[1] ", b"[1", b"[1]x", b"", b"[" * 100_000])
def test_the_quick_way_refuses_what_the_careful_one_is_to_look_at(text: bytes) -> None:
    plain = without_orjson()
    with pytest.raises(ValueError, match=r"."):
        plain.loader_for([b"[1]"])(text)
    assert plain.loader_for([b"[1]"])(b"[1]") == [1]

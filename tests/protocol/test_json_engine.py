"""JSON numbers, the same with and without orjson."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtpool.errors import ProtocolError
from rtpool.protocol import json_engine
from rtpool.protocol.json_engine import NumberText, loads

EDGES = [edge + step for edge in (2**53, 2**63, -(2**63), 2**64, 10**18, 10**19) for step in (-1, 0, 1)]


@pytest.mark.parametrize("orjson", [pytest.param(True, id="orjson"), pytest.param(False, id="plain")])
@pytest.mark.parametrize("number", EDGES)
def test_an_integer_of_any_size_is_exact(monkeypatch: pytest.MonkeyPatch, orjson: bool, number: int) -> None:
    if orjson:
        pytest.importorskip("orjson")
    else:
        monkeypatch.setattr(json_engine, "orjson", None)
    for text in (f"{number}", f"[{number}]", f'{{"a":[1,{number},2]}}'):
        assert str(number) in str(loads(text.encode()))


@given(number=st.integers(-(10**30), 10**30), before=st.text(), after=st.text())
def test_an_integer_is_exact_wherever_it_stands(number: int, before: str, after: str) -> None:
    value = [before, number, after]
    assert loads(json_engine.dumps(value)) == value


def test_an_exact_decode_remembers_the_text_of_what_is_no_integer() -> None:
    one, two, three = loads(b"[1.10, 1e2, 7]", exact=True)
    assert (one, one.text) == (1.1, "1.10")
    assert (two, two.text) == (100.0, "1e2")
    assert not isinstance(three, NumberText)


def test_a_numeric_of_any_length_is_exact() -> None:
    digits = "7" * 20_000
    for exact in (False, True):
        (value,) = json_engine.loads(f"[{digits}]".encode(), exact=exact)
        assert value.text == digits
    assert json_engine.loads(b"[%s]" % (b"1" * 4_000)) == [int("1" * 4_000)]


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

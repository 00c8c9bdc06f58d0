"""
One text, two engines: with orjson and without, the same value to the last bit, or the same refusal in the same words.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import enum
import itertools
import json
import re
import struct
import types
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rtpool.errors import InvalidType, InvalidValue, ProtocolError
from rtpool.protocol import json_engine
from rtpool.protocol.json_engine import MAX_DIGITS, NumberText, dumps, loads
from rtpool.protocol.serializer import serializer_for
from tests.protocol.test_json_engine import without_orjson
from tests.protocol.test_serializer import VECTORS, wire_of
from tests.support.transcripts import NAMES, frame_of, load

pytest.importorskip("orjson")

#: A run of digits this long is never orjson's to read.
LONG = 19


def bits(value: Any) -> Iterator[Any]:
    """A decoded value, piece by piece: types, keys in their order, floats by their eight bytes. However deep it is."""
    left = [value]
    while left:
        value = left.pop()
        yield type(value).__name__
        if isinstance(value, float):
            yield struct.pack(">d", value), getattr(value, "text", None)
        elif isinstance(value, (dict, list)):
            yield len(value)
            left += [part for pair in value.items() for part in pair] if isinstance(value, dict) else value
        else:
            yield value if isinstance(value, bytes) else repr(value)


def read(engine: types.ModuleType, data: bytes, **options: Any) -> Any:
    try:
        return list(bits(engine.loads(data, **options)))
    except ProtocolError as error:
        return f"refused: {error}"


def both(data: bytes) -> Any:
    """What both engines say of a text; they must say the same, by the quick way as well unless that refuses it."""
    plain = without_orjson()
    with_it = read(json_engine, data)
    assert with_it == read(plain, data)
    for engine, texts in itertools.product((json_engine, plain), ([data], [b"{}", data])):
        with contextlib.suppress(ValueError, ProtocolError):
            value = engine.loader_for(texts)(data)
            assert list(bits(value)) == with_it
    return with_it


def both_read(data: bytes) -> Any:
    assert not isinstance(both(data), str), both(data)
    return loads(data)


def both_refuse(data: bytes) -> None:
    told = both(data)
    assert isinstance(told, str), loads(data)
    assert told.startswith(f"refused: a frame of {len(data)} bytes holds no JSON: ")


# Integers


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(
    "edge", [2**31, 2**32, 2**53, 10**17, 10**18, 2**63, 10**19, 2**64, 10**20, 2**65, 2**128, 10**30, 10**400]
)
def test_an_integer_is_exact_at_every_edge(edge: int, sign: int) -> None:
    for number in range(sign * edge - 2, sign * edge + 3):
        for text, expected in (("%d", number), (" [%d]", [number]), ('{"a":[0.5,%d,"x"]}', {"a": [0.5, number, "x"]})):
            assert both_read((text % number).encode()) == expected


@pytest.mark.parametrize("sign", ["", "-"])
@pytest.mark.parametrize("digits", [MAX_DIGITS - 1, MAX_DIGITS, MAX_DIGITS + 1, 20_000])
@pytest.mark.parametrize("beside", ["0", "7" * (MAX_DIGITS + 1)], ids=["alone", "beside one that is too long"])
def test_an_integer_of_thousands_of_digits_is_exact_or_keeps_its_text(digits: int, sign: str, beside: str) -> None:
    text = sign + "7" * digits
    value, _ = both_read(f"[{text},{beside}]".encode())
    if digits <= MAX_DIGITS:
        assert (type(value), value) == (int, int(text))
    else:
        assert (type(value), value.text) == (NumberText, text)


def test_minus_nothing_is_the_integer_or_the_float_that_it_is_written_as() -> None:
    assert repr(both_read(b"[-0, -0.0, -0e1, 0, 0.0]")) == "[0, -0.0, -0.0, 0, 0.0]"


# A long run of digits is never missed, whatever is searched for it


def surroundings() -> list[tuple[str, str]]:
    """What a number may stand between: nothing, other numbers that are short, text that has digits, too."""
    short = ["1" * size for size in range(1, LONG)]
    return [
        ("[", "]"),
        ('{"a":', "}"),
        *((f"[{digits},", f",{digits}]") for digits in short),
        *((f'["{digits}x",', f',"x{digits}"]') for digits in short),
        ("[" + ",".join(short) + ",", "]"),
        ("[1,2,3,4,5,6,7,8,9,", ",1,2,3,4,5,6,7,8,9]"),
        ('["é\\u00e9\U0001f600",', ',"é"]'),
    ]


@pytest.mark.parametrize("size", [*range(LONG, LONG + 18), 63, 64, 65, 255, 256, 257, 1_000])
def test_a_long_run_of_digits_is_seen_wherever_it_begins(size: int) -> None:
    # The first is beyond a signed integer of 64 bits with its sign, and from twenty digits on without it, too.
    for number in (-int("9" * size), int("9" * size) if size > LONG else 2**63, int("1" + "0" * (size - 1))):
        for before, after in surroundings():
            for shift in range(16):
                text = f"{' ' * shift}{before}{number}{after}"
                assert loads(text.encode()) == json.loads(text), text


@given(
    before=st.text(alphabet='0123456789 ,.:"x[{é', max_size=40),
    after=st.text(alphabet='0123456789 ,.:"x]}é', max_size=40),
    run=st.text(alphabet="0123456789", min_size=LONG, max_size=90).filter(lambda digits: digits[0] != "0"),
    shift=st.integers(0, 70),
    sign=st.sampled_from(["", "-"]),
)
def test_a_long_run_of_digits_is_seen_between_any_texts(
    before: str, after: str, run: str, shift: int, sign: str
) -> None:
    text = f"{' ' * shift}[{json.dumps(before)},{sign}{run},{json.dumps(after)}]"
    assert both_read(text.encode()) == [before, int(sign + run), after]


@pytest.mark.parametrize("shift", range(8))
@pytest.mark.parametrize("size", [LONG - 1, LONG, LONG + 1, 40])
def test_digits_of_a_fraction_an_exponent_and_a_text_are_read_alike_too(size: int, shift: int) -> None:
    run = ("1234567890" * 5)[:size]
    for text in (f"0.{run}", f"1.5e-{run}", f"-{run}.{run}", f"{run}e-3", f'"{run}"', f'{{"{run}":{run}}}'):
        data = f"{' ' * shift}[{text}]".encode()
        assert list(bits(both_read(data))) == list(bits(json.loads(data)))


# Floats


@pytest.mark.parametrize(
    "text",
    [
        *("0.1", "0.3", "1E5", "1e+5", "1e-5", "123456789.123456789", "5e-324", "4.9406564584124654e-324"),
        *("2.4703282292062327e-324", "2.4703282292062328e-324", "-1e-400", "2.2250738585072011e-308"),
        *("2.2250738585072014e-308", "1.7976931348623157e308", "1.7976931348623158e308", "9007199254740993.0"),
        *("0.500000000000000166533453693773481063544750213623046875", "1e23", "8.5e22", "17976931348623157e292"),
        *("1.7976931348623159e308", "1e309", "1e400", "-1e400", "1e99999999999", "0e400", "1e-99999999999"),
    ],
)
def test_a_float_is_the_same_to_its_last_bit(text: str) -> None:
    for number in (text, f"-{text}" if text[0] != "-" else text[1:]):
        value = both_read(f"[{number}]".encode())[0]
        assert (type(value), struct.pack(">d", value)) == (float, struct.pack(">d", float(number)))


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 25))
@example(-0.0, 17)
@example(5e-324, 17)
def test_a_float_goes_out_and_comes_back_to_its_last_bit(number: float, digits: int) -> None:
    for text in (repr(number), f"{number:.{digits}e}", dumps(number).decode()):
        data = f"[{text}]".encode()
        assert struct.pack(">d", both_read(data)[0]) == struct.pack(">d", float(text))
    assert struct.pack(">d", loads(dumps(number))) == struct.pack(">d", number)


@given(st.from_regex(r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,25})?([eE][-+]?[0-9]{1,4})?", fullmatch=True))
def test_any_number_in_any_spelling_is_read_alike(text: str) -> None:
    assert list(bits(both_read(text.encode()))) == list(bits(json.loads(text)))


def test_an_exact_decode_is_the_same_without_orjson() -> None:
    for data in (b"[1.10, 1e400, -0.0, 7]", b"[%s.5]" % (b"7" * 5_000)):
        assert read(json_engine, data, exact=True) == read(without_orjson(), data, exact=True)


# What is no JSON

NUMBERS = ["NaN", "Infinity", "-Infinity", "nan", "inf", "+1", "01", "-01", "1.", ".5", "-", "-.5", "1e", "1e+", "0x10"]
NUMBERS += ["1_000", "--1", "1 2", "1.2.3", "1e5.5", "00", "-00", "٣", "1٣", "0.٣"]
TEXTS = [b'"\xff"', b'"\xc0\x80"', b'"\xc1\xbf"', b'"\xe0\x80\x80"', b'"\xf0\x80\x80\x80"', b'"\xe0\x9f\xbf"']
TEXTS += [b'"\xed\xa0\x80"', b'"\xed\xbf\xbf"', b'"\xed\xa0\xbd\xed\xb8\x80"', b'"\xf4\x90\x80\x80"', b'"\xf8\x88\x80"']
TEXTS += [
    b'"\xc3"',
    b'"\xe2\x82"',
    b'"\xf0\x9f\x98"',
    b'"\x80"',
    b'"\xbf"',
    b'"\xc3\x28"',
    b'"\xe2\x28\xa1"',
    b'"\xfe"',
]
ESCAPES = [rb'"\x41"', rb'"\u12"', rb'"\u12zz"', rb'"\u 123"', rb'"\u+123"', rb'"\u1_23"', rb'"\U00000041"', rb'"\'"']
ESCAPES += [rb'"\ud800"', rb'"\uDBFF"', rb'"\udc00"', rb'"\uDFFF"', rb'"\ud83d\u0041"', rb'"\ude00\ud83d"']
ESCAPES += [rb'"\ud83d\ud83d\ude00"', rb'"\\\ud800"', rb'"\ud800', b'"\\', rb'"\ud83d\\ude00"']
SHAPES = [
    b"",
    b" ",
    b"\n",
    b"{",
    b"}",
    b"[",
    b"]",
    b"[1,]",
    b"[,1]",
    b'{"a"}',
    b'{"a":}',
    b'{"a":1,}',
    b"{1:2}",
    b"{a:1}",
]
SHAPES += [b"[1 2]", b"[1}", b"1 1", b"[] []", b"[]x", b"null0", b"nul", b"True", b"undefined", b"'a'", b'"a', b"[1]//"]
SHAPES += [
    b"\xef\xbb\xbf[]",
    b"\xef\xbb\xbf",
    "[]".encode("utf-16"),
    b"[]\x00",
    b"\x00[]",
    b"\x00",
    b"/**/[]",
    b"{null:1}",
]
SPACES = [b"\x0b", b"\x0c", b"\x1c", b"\x85", "\xa0".encode(), "\u2028".encode(), "\u3000".encode(), "\ufeff".encode()]


@pytest.mark.parametrize("number", NUMBERS)
def test_what_is_no_number_is_refused(number: str) -> None:
    for around in ("%s", "[%s]", '{"a":%s}', " %s "):
        both_refuse((around % number).encode())


@pytest.mark.parametrize("text", [*TEXTS, *ESCAPES], ids=repr)
def test_what_is_no_text_is_refused_as_a_value_a_key_and_beside_a_long_number(text: bytes) -> None:
    for around in (b"%s", b"[%s]", b"{%s:1}", b"[%s,12345678901234567890123]", b'["' + b"x" * 70_000 + b'",%s]'):
        both_refuse(around % text)


@pytest.mark.parametrize("text", SHAPES, ids=repr)
def test_what_is_no_value_is_refused(text: bytes) -> None:
    both_refuse(text)


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_other_white_space_than_jsons_is_refused(space: bytes) -> None:
    assert both_read(b" \t\r\n[ \t\r\n1 \t\r\n, \t\r\n2 \t\r\n] \t\r\n") == [1, 2]
    for text in (space + b"[]", b"[]" + space, b"[1," + space + b"2]"):
        both_refuse(text)


@pytest.mark.parametrize("code", range(0x20))
def test_a_control_character_is_refused_bare_and_read_as_an_escape(code: int) -> None:
    both_refuse(b'"%c"' % code)
    both_refuse(b'{"%c":1}' % code)
    assert both_read(b'"\\u%04x"' % code) == chr(code)


def test_text_comes_through_in_every_spelling() -> None:
    wanted = "\x00\x7f\x80é߿ࠀ\ud7ff\ue000\ufeff\uffff\U00010000\U0001f600\U0010ffff"
    escaped = json.dumps(wanted)
    for text in (json.dumps(wanted, ensure_ascii=False), escaped, escaped.replace("\\ud83d", "\\uD83D")):
        assert both_read(text.encode()) == wanted
        assert both_read(f"{{{text}:1}}".encode()) == {wanted: 1}
    assert both_read(rb'"\"\\\/\b\f\n\r\t"') == '"\\/\b\f\n\r\t'
    assert both_read(rb'"\\ud800"') == "\\ud800"


def test_of_a_key_that_comes_twice_the_last_value_stands_where_the_first_stood() -> None:
    value = both_read(rb'{"a":1,"b":2,"a":{"x":1,"x":2},"\u0062":3,"":4,"c":5,"":6}')
    assert list(value.items()) == [("a", {"x": 2}), ("b", 3), ("", 6), ("c", 5)]
    half = rb'{"a":"\ud800","a":1}'
    assert both_read(half) == {"a": 1}


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[0,{"a":', "}]"), (" [ ", "")])
@pytest.mark.parametrize("depth", [2, 100, 250, 254, 256, 500, 800, 1_200, 3_000, 100_000])
def test_the_same_depth_is_read_or_refused(opening: str, closing: str, depth: int) -> None:
    times = depth // (opening.count("[") + opening.count("{"))
    both((opening * times + "1" + closing * times).encode())


# Whatever else

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


@given(VALUES, st.booleans(), st.sampled_from([None, 1]))
def test_any_value_in_any_dress_is_read_alike(value: Any, ascii_only: bool, indent: int | None) -> None:
    data = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    assert list(bits(both_read(data))) == list(bits(json.loads(data)))


@given(VALUES, st.data())
def test_any_text_with_a_wound_is_read_alike(value: Any, data: st.DataObject) -> None:
    text = bytearray(json.dumps(value, ensure_ascii=False).encode())
    at = data.draw(st.integers(0, len(text)))
    text[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3) | st.sampled_from(TEXTS + ESCAPES))
    both(bytes(text))


@given(st.binary(max_size=60) | st.from_regex(rb'[-0-9eE.+"\\u,:{}\[\] ]{0,60}', fullmatch=True))
def test_any_bytes_are_read_alike(data: bytes) -> None:
    both(data)


# The wire


def test_every_recorded_vector_is_decoded_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [(vector["vsn"], wire_of(vector), vector["frame"] == "binary") for vector in VECTORS]
    frames += [
        (vsn, *frame) for name in NAMES for line in load(name) if "op" in line for frame in [frame_of(line)] if frame
        for vsn in ("1.0.0", "2.0.0")
    ]  # fmt: skip

    def decoded() -> list[Any]:
        said = []
        for vsn, data, is_binary in frames:
            try:
                said.append([list(bits(field)) for field in serializer_for(vsn).decode(data, is_binary)])
            except ProtocolError as error:
                said.append([str(error)])
        return said

    with_it = decoded()
    monkeypatch.setattr(json_engine, "orjson", None)
    for frame, one, other in zip(frames, with_it, decoded(), strict=True):
        assert (frame, one) == (frame, other)
    assert sum(len(said) == 5 for said in with_it) > 500


# Out


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass
class Point:
    x: int = 1


class Text(str):
    __slots__ = ()


WRITTEN: list[Any] = [
    0,
    -0.0,
    1e16,
    1e-7,
    1e22,
    5e-324,
    2**64,
    -(2**63) - 1,
    10**30,
    0.1,
    1.0,
    Level.LOW,
    Text("x"),
    (1, (2,)),
]
WRITTEN += [
    '\x00\x1f\x7f\u2028/\\"é\U0001f600',
    {"é": 1},
    {1: 2, None: 3, False: 4, 1.5: 5},
    OrderedDict(b=1, a=2),
    {},
    [],
]
REFUSED: list[tuple[Any, type[Exception]]] = [(value, InvalidType) for value in (
    Point(), datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc), datetime.date(2026, 1, 1), uuid.UUID(int=1),
    b"x", {1}, {(1,): 1}, object(), enum.Enum("E", "A").A,  # type: ignore[attr-defined]
)]  # fmt: skip
REFUSED += [(value, InvalidValue) for value in (float("nan"), float("inf"), -float("inf"), "\ud800", {"\udfff": 1})]
ENGINES: list[Callable[[], types.ModuleType]] = [lambda: json_engine, without_orjson]


@pytest.mark.parametrize("engine", ENGINES, ids=["orjson", "plain"])
@pytest.mark.parametrize("value", WRITTEN, ids=repr)
def test_a_value_is_written_as_pythons_own_library_writes_it(value: Any, engine: Callable[[], Any]) -> None:
    assert engine().dumps([value]) == json.dumps([value], ensure_ascii=False, separators=(",", ":")).encode()


@pytest.mark.parametrize("engine", ENGINES, ids=["orjson", "plain"])
@pytest.mark.parametrize(
    ("value", "error"),
    REFUSED,
    ids=lambda given: re.sub(r" at 0x\w+", "", repr(given)),  # the same in every process
)
def test_what_pythons_own_library_does_not_write_is_refused(
    value: Any, error: type[Exception], engine: Callable[[], Any]
) -> None:
    for whole in (value, [value], {"a": value}):
        with pytest.raises(error, match="the payload cannot be written as JSON"):
            engine().dumps(whole)


@given(VALUES)
def test_any_value_is_written_as_the_same_bytes(value: Any) -> None:
    written = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    assert dumps(value) == without_orjson().dumps(value) == written

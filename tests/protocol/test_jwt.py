"""A token's own word on when it expires."""

from __future__ import annotations

import base64
import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from rtpool.protocol.jwt import claims_of, expiry_of


def token(claims: Any) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    return f"e30.{body}.signature"


@pytest.mark.parametrize("claims", [{"exp": 12}, {"exp": 12.0, "role": "x"}])
def test_the_expiry_is_read(claims: Any) -> None:
    assert expiry_of(token(claims)) == 12.0


@pytest.mark.parametrize(
    "text",
    [
        "sb_publishable_x",
        "a.b",
        "a.b.c.d",
        "a.!.c",
        "a.e30.c",
        token([]),
        token({"exp": "soon"}),
        token({"exp": True}),
        token({"exp": None}),
        token({"exp": 10**400}),
        "e30." + base64.urlsafe_b64encode(b'{"exp": Infinity}').decode() + ".x",
        "é.é.é",
    ],
)
def test_what_has_none_has_none(text: str) -> None:
    assert expiry_of(text) is None


@given(st.text())
def test_no_text_makes_it_raise(text: str) -> None:
    expiry_of(text)
    expiry_of(f"a.{text}.b")


def test_the_claims_are_read() -> None:
    assert claims_of(token({"role": "anon", "exp": 12})) == {"role": "anon", "exp": 12}


@pytest.mark.parametrize("text", ["sb_publishable_x", "a.b", "a.!.c", token([1]), token("x"), "", "a.é.c"])
def test_what_is_no_token_has_no_claims(text: str) -> None:
    assert claims_of(text) is None

"""What tests of the protocol share: they act on nothing but their arguments, and a guard sees to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import strategies as st

from tests.support.guard import watched
from tests.support.replay import replay


@pytest.fixture(autouse=True, scope="session")
def characters() -> None:
    """Lets hypothesis look at every character there is, once and unwatched: watched, that would take half a minute."""
    st.text().validate()


@pytest.fixture(autouse=True)
def nothing_but_arguments(characters: None) -> Iterator[None]:
    """Fails a test that opens a socket, starts a thread, reads a clock, sleeps or draws an unseeded random number."""
    with watched() as found:
        yield
    assert not found, "\n".join(["a test of the protocol", *found])


@pytest.fixture(autouse=True)
def nothing_is_left() -> None:
    """Nothing can be left where nothing is opened or started; looking for it would take longer than the tests."""


@pytest.fixture(scope="module")
def recordings() -> Iterator[None]:
    """Forgets the played recordings behind a module: every later test's garbage collection would look through them."""
    yield
    replay.cache_clear()

"""What tests of the protocol share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.replay import replay


@pytest.fixture(scope="module")
def recordings() -> Iterator[None]:
    """Forgets the played recordings behind a module: every later test's garbage collection would look through them."""
    yield
    replay.cache_clear()

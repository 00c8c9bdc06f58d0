"""
The engine that needs nothing installed: random changes to known inputs, keeping those that make something new happen.
"""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Callable, Hashable

import attrs

from tests.fuzz.corpus import DICTIONARY
from tests.fuzz.targets import Target

__all__ = ["Failure", "Report", "mutated", "run", "shrunk"]

#: Of an input.
MAX_BYTES = 8_192
#: Inputs kept besides the first ones, and tries to make a failing one smaller.
MAX_KEPT, MAX_TRIES = 4_096, 600


class Failure(Exception):
    """A target raised what it must not; `data` is the input, the cause is chained."""

    def __init__(self, target: str, data: bytes, error: BaseException) -> None:
        super().__init__(f"{target}: {type(error).__name__}: {error}, by {len(data)} bytes {data[:60]!r}")
        self.target, self.data = target, data
        self.__cause__ = error


@attrs.define
class Report:
    """What a run did: inputs tried, outcomes that were different, and the slowest input in seconds."""

    tried: int = 0
    outcomes: int = 0
    slowest: float = 0.0


def mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """`data` with one to five changes; `other` gives what is pasted in."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 5)):
        at = rng.randint(0, len(out))
        size = min(rng.choice((1, 1, 2, 4, 16, 64, 300)), len(out) - at)
        way = rng.randrange(8)
        if way == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif way == 1 and at < len(out):
            out[at] = rng.choice((0, 1, 0x7D, 0x7E, 0x7F, 0x80, 0x81, 0xFF, rng.randrange(256)))
        elif way == 2:
            del out[at : at + size]
        elif way == 3:
            out[at:at] = rng.randbytes(rng.randint(1, 8))
        elif way == 4:
            out[at:at] = out[at : at + size] * rng.choice((1, 1, 2, 8))
        elif way == 5:
            out[at : at + rng.choice((0, size))] = rng.choice(DICTIONARY)
        elif way == 6:
            start = rng.randint(0, len(other))
            out[at : at + rng.choice((0, size))] = other[start : start + rng.choice((4, 16, 64, 300))]
        else:
            out[at:] = other[rng.randint(0, len(other)) :]
    return bytes(out[:MAX_BYTES])


def run(
    name: str,
    target: Target,
    seeds: list[bytes],
    seed: int,
    go_on: Callable[[Report], bool],
) -> Report:
    """
    Try the seeds, then changed ones while `go_on` says so. What happens depends on `seed` alone.

    Raises:
        Failure: at the first input by which the target fails, made smaller.
    """
    rng, report = random.Random(seed), Report()
    known: set[Hashable] = set()
    pool = list(seeds) or [b""]
    limit = len(pool) + MAX_KEPT
    todo = iter(seeds)
    while go_on(report):
        data = next(todo, None)
        if data is None:
            data = mutated(rng.choice(pool), rng.choice(pool), rng)
        began = time.perf_counter()
        try:
            outcome = target(data)
        except Exception as error:
            raise Failure(name, *shrunk(target, data, error)) from error
        report.tried += 1
        report.slowest = max(report.slowest, time.perf_counter() - began)
        if outcome not in known:
            known.add(outcome)
            report.outcomes += 1
            if len(pool) < limit:
                pool.append(data)
    return report


def shrunk(target: Target, data: bytes, error: Exception) -> tuple[bytes, Exception]:
    """A smaller input that fails in the same place, and how it does."""
    size, tries = len(data) // 2, 0
    while size and tries < MAX_TRIES:
        at, found = 0, False
        while at < len(data) and tries < MAX_TRIES:
            tries += 1
            shorter = data[:at] + data[at + size :]
            try:
                target(shorter)
            except Exception as again:
                if place_of(again) == place_of(error):
                    data, error, found = shorter, again, True
                    continue
            at += size
        if not found:
            size //= 2
    return data, error


def place_of(error: BaseException) -> tuple[type, str, int | None]:
    """What was raised, and where."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return type(error), last.filename, last.lineno

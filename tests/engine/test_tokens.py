"""Tokens under an injected clock: asked once for all, renewed before they expire, looked for when refused."""

from __future__ import annotations

import base64
import json
import logging
import random
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest

from rtpool.engine.io_loop import Timer
from rtpool.engine.logs import Log
from rtpool.engine.tokens import Tokens, TokenSource
from rtpool.errors import JoinRefused


def jwt(expires: float, name: str = "") -> str:
    claims = base64.urlsafe_b64encode(json.dumps({"exp": expires, "name": name}).encode()).rstrip(b"=").decode()
    return f"e30.{claims}.x"


class World:
    """A loop, a dialer and a clock in one: nothing happens before `advance` or `answer`."""

    def __init__(self, *, in_use: bool = True) -> None:
        self.now = 1_000.0
        self.skew = 0.0  # of the wall clock
        self.in_use = in_use
        self.timers: list[tuple[float, Timer]] = []
        self.jobs: list[Callable[[], None]] = []
        self.renewed: list[TokenSource] = []
        self.given: list[Any] = []
        self.tokens = Tokens(
            self,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            patience=30.0,
            base_delay=1.0,
            max_delay=30.0,
            in_use=lambda source: self.in_use,
            renewed=self.renewed.append,
            rng=random.Random(1),
            wall=lambda: datetime.fromtimestamp(self.now + self.skew, timezone.utc),
            log=Log(logging.getLogger("rtpool.io")),
        )

    def submit(self, job: Callable[[], None]) -> bool:
        self.jobs.append(job)
        return True

    def post(self, call: Callable[..., None], *args: Any) -> bool:
        call(*args)
        return True

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        self.timers.append((self.now + delay, Timer(call)))
        return self.timers[-1][1]

    @property
    def due(self) -> list[float]:
        """Seconds until each live timer."""
        return [at - self.now for at, timer in self.timers if not timer.cancelled]

    def answer(self) -> None:
        """The callables that were asked answer."""
        jobs, self.jobs = self.jobs, []
        for job in jobs:
            job()

    def advance(self, seconds: float) -> None:
        self.now += seconds
        ready = [timer for at, timer in self.timers if at <= self.now and not timer.cancelled]
        self.timers = [(at, timer) for at, timer in self.timers if at > self.now]
        for timer in ready:
            timer.call()

    def resolve(self, source: TokenSource) -> None:
        self.tokens.resolve(source, lambda token, error: self.given.append(error or token))


class Callables:
    """An access_token callable that gives what it was told to."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked = 0

    def __call__(self) -> str:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer  # type: ignore[no-any-return]


def test_a_string_and_none_are_given_at_once() -> None:
    world = World()
    world.resolve(TokenSource("token"))
    world.resolve(TokenSource(None))
    assert world.given == ["token", None]
    assert not world.jobs


def test_a_callable_is_asked_once_for_all_who_wait_and_not_again_while_its_token_lives() -> None:
    world, ask = World(), Callables("opaque")
    source = TokenSource(ask)
    world.resolve(source)
    world.resolve(source)
    assert world.given == []
    world.answer()
    world.resolve(source)
    assert world.given == ["opaque"] * 3
    assert ask.asked == 1
    assert world.due == []


def test_a_callable_is_asked_again_once_its_token_has_expired() -> None:
    world, ask = World(in_use=False), Callables(jwt(1_060), jwt(5_000))
    source = TokenSource(ask)
    world.resolve(source)
    world.answer()
    world.now = 1_060.0
    world.resolve(source)
    world.answer()
    assert world.given == [jwt(1_060), jwt(5_000)]


def test_a_token_that_has_expired_on_arrival_is_for_the_server_to_judge() -> None:
    """A clock of ours that is ahead must not make a storm of calls."""
    world, ask = World(), Callables(jwt(900))
    source = TokenSource(ask)
    world.resolve(source)
    world.answer()
    world.resolve(source)
    world.advance(1_000)
    assert world.given == [jwt(900)] * 2
    assert ask.asked == 1
    assert not world.jobs


def test_a_token_is_renewed_before_it_expires() -> None:
    world, ask = World(), Callables(jwt(4_600), jwt(8_200))
    source = TokenSource(ask)
    world.resolve(source)
    world.answer()
    world.renewed.clear()
    (due,) = world.due
    assert 3_600 - 120 <= due <= 3_600 - 60
    world.advance(due)
    assert not world.renewed, "asked off the I/O thread"
    world.answer()
    assert world.renewed == [source]
    assert source.value == jwt(8_200)
    assert len(world.due) == 1, "and the next is watched too"


@pytest.mark.parametrize("seed", range(20))
def test_the_renewal_of_a_short_token_is_spread_over_the_last_fifth_of_its_life(seed: int) -> None:
    world = World()
    world.tokens._rng = random.Random(seed)
    world.resolve(TokenSource(Callables(jwt(1_010))))
    world.answer()
    (due,) = world.due
    assert 8.0 <= due <= 9.0


def test_whoever_lives_with_an_older_token_is_told_of_one_that_a_join_fetched() -> None:
    world = World()
    source = TokenSource(Callables(jwt(4_600, "a"), jwt(4_600, "b")))
    world.resolve(source)
    world.answer()
    world.renewed.clear()
    world.tokens.expire(source)
    world.resolve(source)
    world.answer()
    assert world.renewed == [source]


def test_a_renewal_that_fails_or_brings_the_same_token_is_tried_again_ever_more_slowly() -> None:
    same = jwt(1_100)
    world = World()
    source = TokenSource(Callables(same, same, same, same, jwt(9_000)))
    world.resolve(source)
    world.answer()
    world.renewed.clear()
    world.advance(world.due[0])
    delays = []
    for _ in range(3):
        world.answer()
        delay = min(world.due)
        delays.append(delay)
        source.renewal.cancel()  # type: ignore[union-attr]
        world.advance(delay)
    assert 0.5 <= delays[0] <= 1.0 <= delays[1] <= 2.0 <= delays[2] <= 4.0
    assert not world.renewed
    world.answer()
    assert world.renewed == [source]


def test_a_failure_counts_for_all_until_the_callable_may_be_asked_again() -> None:
    world, ask = World(), Callables(OSError("no net"), OSError("no net"), "good")
    source = TokenSource(ask)
    for _ in range(50):
        world.resolve(source)
    world.answer()
    assert len(world.given) == 50
    for _ in range(50):
        world.resolve(source)
    assert (ask.asked, len(world.given)) == (1, 50)
    world.advance(1.0)
    world.answer()
    assert (ask.asked, len(world.given)) == (2, 100)
    assert all(isinstance(error, JoinRefused) for error in world.given)
    for _ in range(50):
        world.resolve(source)
    world.advance(2.0)
    world.answer()
    assert (ask.asked, world.given[-1]) == (3, "good")


def test_a_callable_that_hangs_is_given_up_and_its_late_answer_is_taken_all_the_same() -> None:
    world, ask = World(), Callables("late")
    source = TokenSource(ask)
    world.resolve(source)
    world.advance(30.0)
    (error,) = world.given
    assert "within 30.0 s" in str(error)
    assert error.retryable
    world.answer()
    assert source.value == "late"
    assert world.renewed == [source]


def test_a_token_nobody_uses_is_not_renewed() -> None:
    world, ask = World(in_use=False), Callables(jwt(1_100))
    source = TokenSource(ask)
    world.resolve(source)
    world.answer()
    world.advance(100)
    assert not world.jobs
    assert ask.asked == 1


def test_a_refused_token_of_a_callable_is_looked_for_and_of_a_string_is_not() -> None:
    world = World()
    world.tokens.refused(TokenSource("mine"), "mine")
    assert world.due == []
    source = TokenSource(Callables("bad", "bad", "good"))
    world.resolve(source)
    world.answer()
    world.renewed.clear()
    world.tokens.refused(source, "bad")
    world.tokens.refused(source, "bad")  # a second join with the same token
    assert len(world.due) == 1
    for _ in range(2):
        world.advance(world.due[0])
        world.answer()
    assert world.renewed == [source]
    assert source.value == "good"
    assert world.due == []


def test_a_search_is_not_forgotten_when_another_join_asks_meanwhile() -> None:
    world = World()
    source = TokenSource(Callables(jwt(90_000, "bad"), jwt(90_000, "bad"), jwt(90_000, "good")))
    world.resolve(source)
    world.answer()
    world.renewed.clear()
    world.tokens.refused(source, jwt(90_000, "bad"))
    world.resolve(source)
    world.answer()
    assert min(world.due) <= 1.0, "still looked for"
    world.advance(min(world.due))
    world.answer()
    assert world.renewed == [source]


def test_a_refusal_of_an_older_token_needs_no_asking() -> None:
    world, ask = World(), Callables("new")
    source = TokenSource(ask)
    world.resolve(source)
    world.answer()
    world.renewed.clear()
    world.tokens.refused(source, "old")
    assert world.renewed == [source]
    assert ask.asked == 1


def test_a_source_that_is_replaced_while_it_is_asked_answers_with_the_new_one_at_once() -> None:
    world = World()
    source = TokenSource(Callables("old"))
    world.resolve(source)
    world.tokens.replace(source, "new")
    assert world.given == ["new"], "the old callable may hang for ever"
    world.answer()
    assert world.given == ["new"]
    assert source.value == "new"


def test_a_new_callable_that_fails_at_first_is_asked_until_it_works() -> None:
    world = World()
    source = TokenSource("old")
    world.tokens.replace(source, Callables(OSError("net"), "new"))
    world.answer()
    assert not world.renewed
    world.advance(min(world.due))
    world.answer()
    assert world.renewed == [source]
    assert source.value == "new"


@pytest.mark.parametrize(
    "answer",
    [RuntimeError("secret words"), SystemExit("secret"), None, 7, "", "\ud800x", "line\nbreak.a.b"],
    ids=ascii,
)
def test_a_callable_that_raises_or_returns_rubbish_becomes_a_typed_error_without_its_words(answer: Any) -> None:
    world = World()
    world.resolve(TokenSource(Callables(answer)))
    world.answer()
    (error,) = world.given
    assert isinstance(error, JoinRefused)
    assert error.code == "TokenUnavailable"
    assert error.retryable
    assert "secret" not in str(error)


def test_the_token_of_a_channel_that_is_gone_is_watched_no_longer() -> None:
    world = World()
    source = TokenSource(Callables(jwt(4_600)))
    world.resolve(source)
    world.answer()
    world.tokens.release(source)
    assert len(world.due) == 1, "another Channel still uses it"
    world.in_use = False
    world.tokens.release(source)
    assert world.due == []


@pytest.mark.parametrize("jump", [-2_000.0, 2_000.0])
def test_when_the_clocks_part_a_token_is_renewed_by_the_wall_clock(jump: float) -> None:
    world = World()
    source = TokenSource(lambda: jwt(1_000.0 + 3_600))
    world.resolve(source)
    world.answer()
    (before,) = world.due
    world.skew += jump
    world.tokens.clocks_parted(source)
    (after,) = world.due
    assert after == pytest.approx(before - jump)


def test_a_token_that_expired_in_a_suspend_is_renewed_at_once() -> None:
    world = World()
    source = TokenSource(lambda: jwt(1_000.0 + world.skew + 3_600))
    world.resolve(source)
    world.answer()
    world.skew += 7_200
    world.tokens.clocks_parted(source)
    world.advance(0.0)
    world.answer()
    assert len(world.renewed) == 2

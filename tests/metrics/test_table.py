"""The table of metrics tells all that the statistics do, by names that both systems take."""

from __future__ import annotations

import pathlib
import re
import threading
from collections import Counter
from typing import Any, get_type_hints

import attrs

import rtpool
from rtpool.events import Gap
from rtpool.metrics.table import METRICS, SUFFIXES, UNMEASURED
from rtpool.stats import GAP_CAUSES, PoolStats
from rtpool.testing import RealtimeServer
from tests.conftest import MakePool
from tests.support.recorder import Recorder
from tests.support.wait import wait_until


class Noting:
    """Statistics that note which of their fields are read."""

    def __init__(self, stats: PoolStats) -> None:
        self._stats = stats
        self.read: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        return getattr(self._stats, name)


def test_every_number_of_the_statistics_is_in_a_metric_or_named_with_the_reason_why_not(
    pool: rtpool.RealtimePool,
) -> None:
    noting = Noting(pool.stats())
    for metric in METRICS:
        metric.read(noting)  # type: ignore[arg-type]
    assert noting.read.isdisjoint(UNMEASURED), "named, and in a metric all the same"
    numbers = {name for name, kind in get_type_hints(PoolStats).items() if "int" in str(kind) or "float" in str(kind)}
    assert {"gaps", "heartbeat_latency", "events_per_second", "callback_seconds"} <= numbers
    assert numbers - noting.read == {*UNMEASURED}
    assert {field.name for field in attrs.fields(PoolStats)} == noting.read | {*UNMEASURED}


def test_names_are_taken_once_and_say_their_unit() -> None:
    names = [name for metric in METRICS for name in (metric.name, *(metric.messaging or ())[:1])]
    assert len(set(names)) == len(names)
    for name in names:
        assert not [other for other in names if other.startswith(f"{name}.")], f"{name} is a namespace, too"
    for metric in METRICS:
        assert re.fullmatch(r"rtpool(_[a-z]+)+", metric.sample)
        assert metric.sample.endswith("_total") == (metric.kind == "counter")
        unit = metric.unit.partition("/")[0]
        assert unit in SUFFIXES or re.fullmatch(r"(\{[a-z]+\})?", unit), metric.unit
        assert SUFFIXES.get(unit, "") in metric.family
        assert metric.help.endswith(".")


def test_the_causes_of_gaps_are_those_that_a_gap_names() -> None:
    told = re.search(r"cause: (.*?)lost_from:", Gap.__doc__ or "", re.DOTALL)
    assert told
    assert tuple(re.findall(r'``"([\w ]+)"``', told[1])) == GAP_CAUSES


def test_gaps_are_counted_by_their_causes(server: RealtimeServer, make_pool: MakePool) -> None:
    pool, told, go_on = make_pool(mailbox_limit=2), Recorder(), threading.Event()
    room = pool.channel("room").on_broadcast("*", lambda _: go_on.wait(10)).on_gap(told).subscribe()
    for number in range(20):
        server.broadcast("room", "x", {"n": number})
    wait_until(lambda: pool.stats().messages_dropped)
    go_on.set()
    told.wait(1)
    server.connections[0].abort()
    wait_until(lambda: room.is_subscribed and told.events[-1].cause == "transport")
    causes = Counter(gap.cause for gap in told.events)
    assert set(causes) == {"overflow", "transport"}
    wait_until(lambda: pool.stats().gaps == causes.total())
    assert pool.stats().gaps_by_cause == {**dict.fromkeys(GAP_CAUSES, 0), **causes}
    assert isinstance(hash(pool.stats()), int)


def test_the_gap_of_a_channel_that_is_closed_for_falling_behind_is_counted(
    server: RealtimeServer, make_pool: MakePool
) -> None:
    pool, go_on = make_pool(mailbox_limit=2, overflow="close"), threading.Event()
    pool.channel("room").on_broadcast("*", lambda _: go_on.wait(10)).subscribe()
    for number in range(20):
        server.broadcast("room", "x", {"n": number})
    wait_until(lambda: pool.stats().gaps)
    go_on.set()
    assert pool.stats().gaps_by_cause["overflow"] == pool.stats().gaps == 1


def test_the_readmes_table_is_the_table() -> None:
    readme = (pathlib.Path(__file__).parents[2] / "README.md").read_text()
    rows = [row.split("|")[1:3] for row in readme.split("## Metrics")[1].split("\n## ")[0].splitlines() if "| `" in row]
    told = [re.findall(r"`([\w.]+)(?:\{(\w+)\})?`", cell) for row in rows for cell in row]
    names = {metric.sample: (metric.label or "").rpartition(".")[2] for metric in METRICS}
    assert dict(each for cell in told[::2] for each in cell) == names
    assert {name for cell in told[1::2] for name, _ in cell} == {(m.messaging or (m.name,))[0] for m in METRICS}

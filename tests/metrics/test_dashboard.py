"""The dashboard for Grafana asks for what the collector tells."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import pytest

from rtpool.metrics.table import METRICS

DASHBOARD = json.loads((pathlib.Path(__file__).parents[2] / "examples" / "grafana_dashboard.json").read_text())
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"]}
SAMPLES = {metric.sample: metric for metric in METRICS}
#: Panels for what matters, and a metric that each looks at.
WANTED = {
    "Connections by state": "rtpool_connections",
    "Messages a second": "rtpool_events_delivered_total",
    "Drops a second": "rtpool_events_dropped_total",
    "Gaps by cause": "rtpool_gaps_total",
    "Queue depth": "rtpool_events_queued",
    "Heartbeat latency": "rtpool_heartbeat_latency_seconds",
    "Callback time": "rtpool_callback_duration_seconds_total",
    "Callback errors": "rtpool_callback_errors_total",
    "Reconnects": "rtpool_reconnect_attempts_total",
}


def queries(panel: dict[str, Any]) -> list[str]:
    return [target["expr"] for target in panel["targets"]]


def every_query() -> Iterator[str]:
    for panel in PANELS.values():
        yield from queries(panel)
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def test_every_metric_that_is_asked_for_exists_and_none_is_left_out() -> None:
    asked = {name for query in every_query() for name in re.findall(r"\brtpool_\w+", query)}
    assert asked == {*SAMPLES}


def test_every_label_that_is_asked_for_exists() -> None:
    common = {"pool", "server", "job", "instance"}
    for query in every_query():
        for name, selector in re.findall(r"(rtpool_\w+)\{([^}]*)\}", query):
            label = (SAMPLES[name].label or "").rpartition(".")[2]
            assert set(re.findall(r"(\w+)=", selector)) <= {*common, label}, query
        for grouped in re.findall(r"by \(([\w, ]+)\)", query):
            labels = {(SAMPLES[name].label or "").rpartition(".")[2] for name in re.findall(r"\brtpool_\w+", query)}
            assert {*grouped.split(", ")} <= common | labels, query


def test_counters_are_looked_at_by_their_growth_and_gauges_as_they_are() -> None:
    for query in every_query():
        for name, metric in SAMPLES.items():
            if re.search(rf"\b{name}\b", query) and name != "rtpool_repairs_total":
                grows = re.search(rf"(rate|increase)\({name}\{{[^}}]*\}}\[\$__(rate_interval|range)\]\)", query)
                assert bool(grows) == (metric.kind == "counter"), query


@pytest.mark.parametrize("title", WANTED)
def test_there_is_a_panel_for_what_matters(title: str) -> None:
    assert any(re.search(rf"\b{WANTED[title]}\b", query) for query in queries(PANELS[title]))


def test_legends_name_labels_that_the_query_leaves() -> None:
    for panel in PANELS.values():
        for target in panel["targets"]:
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                grouped = re.search(r"by \(([\w, ]+)\)", target["expr"])
                assert grouped is None or label in grouped[1].split(", "), panel["title"]


def test_panels_have_each_a_place_of_their_own_a_description_and_the_chosen_source() -> None:
    taken: set[tuple[int, int]] = set()
    assert len({panel["id"] for panel in PANELS.values()}) == len(PANELS) == len(DASHBOARD["panels"])
    for panel in PANELS.values():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["description"].endswith(".")
        assert panel["datasource"]["uid"] == "${datasource}"

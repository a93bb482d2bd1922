"""Metrics: every one is described, counting is exact, labels stay few."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from aimo_node.telemetry.metrics import LABEL_SETS_MAX, METRICS, NodeMetrics


def samples(metrics: NodeMetrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Everything a scrape shows, by name and sorted labels."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_a_scrape_shows_exactly_the_metrics_of_the_table() -> None:
    metrics = NodeMetrics()
    metrics.refused("Overloaded")
    metrics.edge.request_started("chat")
    metrics.edge.request_ended("chat", "ok", 0.1)
    text = metrics.render().decode()
    shown = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE aimo_")}
    assert shown == {definition.name for definition in METRICS}
    for definition in METRICS:
        assert f"# HELP {definition.name} {definition.help}" in text


def test_the_life_of_a_request_is_counted_for_its_role() -> None:
    metrics = NodeMetrics()
    edge = metrics.edge
    edge.request_started("chat")
    edge.request_started("chat")
    edge.first_token(0.02)
    edge.chunks(3)
    edge.chunks(2)
    edge.request_ended("chat", "ok", 0.2)
    seen = samples(metrics)
    role = ("role", "edge")
    assert seen["aimo_requests_running", (role,)] == 1
    assert seen["aimo_requests_running", (("role", "provider"),)] == 0
    outcome = (("endpoint", "chat"), ("outcome", "ok"), role)
    assert seen["aimo_requests_total", outcome] == 1
    assert seen["aimo_chunks_total", (role,)] == 5
    assert seen["aimo_request_seconds_sum", (role,)] == 0.2
    assert seen["aimo_time_to_first_token_seconds_count", (role,)] == 1


@pytest.mark.parametrize(("seconds", "bound"), [(0.0, "0.005"), (0.005, "0.005"), (0.0051, "0.01")])
def test_a_value_on_a_bound_belongs_to_its_bucket(seconds: float, bound: str) -> None:
    metrics = NodeMetrics()
    metrics.edge.request_seconds.observe(seconds)
    seen = samples(metrics)
    buckets = {
        dict(labels)["le"]: value
        for (name, labels), value in seen.items()
        if name == "aimo_request_seconds_bucket" and ("role", "edge") in labels
    }
    assert min((float(le) for le, count in buckets.items() if count == 1)) == float(bound)
    assert buckets["+Inf"] == 1


def test_counters_of_the_mesh_appear() -> None:
    metrics = NodeMetrics()
    metrics.watch("aimo_link_bytes_total", lambda: 10, "sent")
    metrics.attempts_total += 3
    metrics.directory_providers = 4
    seen = samples(metrics)
    assert seen["aimo_link_bytes_total", (("direction", "sent"),)] == 10
    assert seen["aimo_link_bytes_total", (("direction", "received"),)] == 0
    assert seen["aimo_attempts_total", ()] == 3
    assert seen["aimo_directory_providers", ()] == 4


def test_a_watched_metric_is_read_at_each_scrape() -> None:
    metrics = NodeMetrics()
    links = [1.0]
    metrics.watch("aimo_links_open", lambda: links[0])
    assert samples(metrics)["aimo_links_open", ()] == 1
    links[0] = 5.0
    assert samples(metrics)["aimo_links_open", ()] == 5


@pytest.mark.parametrize(
    ("name", "labels"), [("aimo_request_seconds", ("edge",)), ("aimo_links_open", ("too many",))]
)
def test_watching_what_does_not_fit_is_refused(name: str, labels: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=name):
        NodeMetrics().watch(name, lambda: 0, *labels)


def test_a_flood_of_label_values_ends_as_other() -> None:
    metrics = NodeMetrics()
    for number in range(LABEL_SETS_MAX + 50):
        metrics.refused(f"reason {number}")
        metrics.edge.request_started("chat")
        metrics.edge.request_ended("chat", f"outcome {number}", 0.0)
    assert len(metrics.refusals) == LABEL_SETS_MAX + 1
    assert metrics.refusals["other"] == 50
    assert metrics.edge.outcomes["other", "other"] == 50


def test_engines_come_and_go_in_a_scrape() -> None:
    metrics = NodeMetrics()
    engines = {"vllm": 1.0, "llama": 0.0}
    metrics.watch_each("aimo_engine_up", lambda: engines)
    assert samples(metrics)["aimo_engine_up", (("engine", "vllm"),)] == 1
    del engines["vllm"]
    seen = samples(metrics)
    assert ("aimo_engine_up", (("engine", "vllm"),)) not in seen
    assert seen["aimo_engine_up", (("engine", "llama"),)] == 0
    with pytest.raises(ValueError, match="gauge with labels"):
        metrics.watch_each("aimo_links_open", lambda: engines)

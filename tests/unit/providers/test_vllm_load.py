"""The numbers that make a vLLM's load, from what it really writes."""

import pytest

from providers.vllm.load import LoadMeter, Reading, read_metrics

METRICS = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
vllm:num_requests_waiting{engine="0",model_name="tiny"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.25
vllm:prefix_cache_queries_total{engine="0",model_name="tiny"} 100.0
vllm:prefix_cache_queries_created{engine="0",model_name="tiny"} 1.7951886783343062e+09
vllm:prefix_cache_hits_total{engine="0",model_name="tiny"} 4e+01
vllm:external_prefix_cache_hits_total{engine="0",model_name="tiny"} 77.0
vllm:num_preemptions_total{engine="0",model_name="tiny"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="tiny"} 0.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="tiny"} 10.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="tiny"} 2.5
"""


def test_numbers_are_read_by_their_exact_names():
    assert read_metrics(METRICS) == Reading(3.0, 2.0, 0.25, 100.0, 40.0, 2.5, 10.0)


def test_several_engines_are_added_up_and_their_caches_averaged():
    two = METRICS + METRICS.replace(b'engine="0"', b'engine="1"').replace(b" 0.25", b" 0.75")
    reading = read_metrics(two)
    assert (reading.running, reading.waiting, reading.kv_used) == (6.0, 4.0, 0.5)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"vllm:num_requests_running",
        b"vllm:num_requests_running{} eee",
        b"vllm:num_requests_running{} NaN",
        b"\xff\xfe\x00",
        b"<html>" * 1000,
    ],
)
def test_nonsense_counts_as_nothing(text):
    assert read_metrics(text) == Reading()


def test_label_cannot_forge_a_sample():
    """A model's name is the owner's, an adapter's too; still one line is one sample."""
    text = b'vllm:lora{name="x} 1.0 vllm:num_requests_running{a=\\"b\\"} 99.0"} 1.0\n'
    assert read_metrics(text).running == 0


def test_means_are_those_of_the_last_intervals():
    meter = LoadMeter()
    meter.take(Reading(prefix_queries=100, prefix_hits=40, first_tokens=10, first_token_seconds=5))
    assert meter.prefix_hits == pytest.approx(0.4)
    assert meter.first_token_seconds == pytest.approx(0.5)
    for number in range(1, 31):
        meter.take(
            Reading(
                prefix_queries=100 + 10 * number,
                prefix_hits=40 + 9 * number,
                first_tokens=10 + number,
                first_token_seconds=5 + 2 * number,
            )
        )
    assert meter.prefix_hits == pytest.approx(0.9, abs=0.01)
    assert meter.first_token_seconds == pytest.approx(2.0, abs=0.01)


def test_interval_without_requests_changes_nothing():
    meter = LoadMeter()
    reading = Reading(prefix_queries=10, prefix_hits=5, first_tokens=1, first_token_seconds=1)
    meter.take(reading)
    meter.take(reading)
    assert (meter.prefix_hits, meter.first_token_seconds) == (0.5, 1.0)


def test_counters_of_a_new_process_begin_anew():
    meter = LoadMeter()
    meter.take(Reading(running=4, first_tokens=100, first_token_seconds=900, prefix_queries=10))
    meter.forget()
    assert meter.reading.running == 0
    meter.take(Reading(first_tokens=2, first_token_seconds=1))
    assert meter.first_token_seconds == pytest.approx(0.5)


def test_unseen_restart_is_noticed_by_counters_that_run_backwards():
    meter = LoadMeter()
    meter.take(Reading(first_tokens=100, first_token_seconds=100))
    meter.take(Reading(first_tokens=1, first_token_seconds=3))
    assert meter.first_token_seconds == pytest.approx(3.0)

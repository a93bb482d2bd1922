"""Reads the few numbers of vLLM's ``/metrics`` that make its load, and smooths them. Sans-I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

METRICS_BYTES_MAX: Final = 4 << 20
"""One engine writes 54 kB; data-parallel ones several times that."""

FRESH_SHARE: Final = 0.3
"""How much of a smoothed number the newest interval makes, if anything happened in it."""

_NAMES: Final = {
    b"num_requests_running": "running",
    b"num_requests_waiting": "waiting",
    b"kv_cache_usage_perc": "kv_used",
    b"prefix_cache_queries_total": "prefix_queries",
    b"prefix_cache_hits_total": "prefix_hits",
    b"time_to_first_token_seconds_sum": "first_token_seconds",
    b"time_to_first_token_seconds_count": "first_tokens",
}
_SAMPLE: Final = re.compile(
    rb"^vllm:(" + b"|".join(_NAMES) + rb")(?:\{[^\n]*\})? ([0-9.eE+-]{1,32})(?: \d{1,20})?\r?$",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Reading:
    """One scrape; counters run from the start of the process.

    Attributes:
        kv_used: share 0–1, the mean of several data-parallel engines.
        first_token_seconds: the sum over all requests so far.
    """

    running: float = 0.0
    waiting: float = 0.0
    kv_used: float = 0.0
    prefix_queries: float = 0.0
    prefix_hits: float = 0.0
    first_token_seconds: float = 0.0
    first_tokens: float = 0.0


def read_metrics(text: bytes) -> Reading:
    """The numbers we use; what is not there counts as 0.

    Several engines of one server (data parallel) are added up.
    """
    sums: dict[str, float] = {}
    engines = 0
    for found in _SAMPLE.finditer(text):
        try:
            value = float(found[2])
        except ValueError:
            continue
        name = _NAMES[found[1]]
        sums[name] = sums.get(name, 0.0) + value
        engines += name == "kv_used"
    if engines > 1:
        sums["kv_used"] /= engines
    return Reading(**sums)


@dataclass(slots=True)
class LoadMeter:
    """What the scrapes of one process say, the newest for the most part.

    Attributes:
        reading: the last scrape.
        prefix_hits: share 0–1 of prompt tokens found in the cache lately.
        first_token_seconds: per request, lately.
    """

    reading: Reading = field(default_factory=Reading)
    prefix_hits: float = 0.0
    first_token_seconds: float = 0.0

    def take(self, reading: Reading) -> None:
        """Add a scrape; a counter that runs backwards belongs to a new process."""
        before = self.reading
        if reading.first_tokens < before.first_tokens:
            before = Reading()
        self.prefix_hits = min(
            1.0,
            _smoothed(
                self.prefix_hits,
                reading.prefix_hits - before.prefix_hits,
                reading.prefix_queries - before.prefix_queries,
                first=before.prefix_queries == 0,
            ),
        )
        self.first_token_seconds = _smoothed(
            self.first_token_seconds,
            reading.first_token_seconds - before.first_token_seconds,
            reading.first_tokens - before.first_tokens,
            first=before.first_tokens == 0,
        )
        self.reading = reading

    def forget(self) -> None:
        """The process is gone: nothing runs, nothing is cached."""
        self.reading = Reading()


def _smoothed(old: float, sum_now: float, count_now: float, *, first: bool) -> float:
    """The old mean, drawn towards that of the last interval if there was anything in it."""
    if count_now <= 0 or sum_now < 0:
        return old
    now = sum_now / count_now
    return now if first else old + FRESH_SHARE * (now - old)

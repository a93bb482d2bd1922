"""Counting what the node does, and rendering it for Prometheus.

Counting is adding to plain numbers: everything runs in one thread, and there is a chunk to
count every few microseconds. Prometheus' own library is used, and imported, when asked to render.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from aimo_node import __version__

if TYPE_CHECKING:
    from prometheus_client.core import Metric
    from prometheus_client.registry import CollectorRegistry

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Content type of what `NodeMetrics.render` returns."""

LABEL_SETS_MAX: Final = 256
"""Different label values kept per metric; whatever comes after is counted as `other`."""


@dataclass(frozen=True, slots=True)
class MetricDefinition:
    """One metric: its full name, kind, meaning and labels."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


METRICS: Final = tuple(
    MetricDefinition(*row)
    for row in (
        ("aimo_build_info", "gauge", "Always 1; the label carries the version.", ("version",)),
        ("aimo_requests_running", "gauge", "Requests in progress.", ("role",)),
        (
            "aimo_requests_total",
            "counter",
            "Requests that ended, by endpoint and outcome.",
            ("role", "endpoint", "outcome"),
        ),
        (
            "aimo_request_seconds",
            "histogram",
            "Time from admission to the end of the answer.",
            ("role",),
        ),
        (
            "aimo_time_to_first_token_seconds",
            "histogram",
            "Time from admission to the first piece of the answer.",
            ("role",),
        ),
        ("aimo_chunks_total", "counter", "Pieces of answers that passed.", ("role",)),
        ("aimo_attempts_total", "counter", "Candidates that were tried for requests."),
        ("aimo_refused_total", "counter", "Requests refused before they started.", ("reason",)),
        ("aimo_links_open", "gauge", "Links to peers that are open."),
        ("aimo_links_by_path", "gauge", "Open links by the path they took.", ("path",)),
        ("aimo_link_bytes_total", "counter", "Bytes over all links.", ("direction",)),
        ("aimo_directory_providers", "gauge", "Providers this node knows."),
        ("aimo_engine_up", "gauge", "1 while the engine answers.", ("engine",)),
        ("aimo_engine_requests_running", "gauge", "Requests an engine works on.", ("engine",)),
        ("aimo_engine_requests_waiting", "gauge", "Requests that wait for it.", ("engine",)),
        ("aimo_engine_kv_used_ratio", "gauge", "Share of its key-value cache.", ("engine",)),
        (
            "aimo_engine_prefix_hit_ratio",
            "gauge",
            "Share of prompt tokens its prefix cache held lately.",
            ("engine",),
        ),
        ("aimo_provider_paused", "gauge", "1 while its owner has the provider paused."),
        ("aimo_provider_over_quota_total", "counter", "Requests of peers over their quota."),
    )
)
"""Every metric there is, in the order in which they are rendered."""

REQUEST_SECONDS_BUCKETS: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)
FIRST_TOKEN_SECONDS_BUCKETS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)

_OTHER: Final = "other"


class Histogram:
    """How often a value fell into each bucket."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value, in the unit of the bounds."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> Iterator[tuple[str, float]]:
        """Pairs of upper bound and number of values up to it, as Prometheus wants them."""
        total = 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            total += count
            yield "+Inf" if bound == float("inf") else str(bound), float(total)


class RoleMetrics:
    """Requests as one role sees them; the numbers may also be added to directly."""

    __slots__ = ("chunks_total", "first_token_seconds", "outcomes", "request_seconds", "running")

    def __init__(self) -> None:
        self.running = 0
        self.chunks_total = 0
        self.outcomes: dict[tuple[str, str], int] = {}
        self.request_seconds = Histogram(REQUEST_SECONDS_BUCKETS)
        self.first_token_seconds = Histogram(FIRST_TOKEN_SECONDS_BUCKETS)

    def request_started(self, endpoint: str) -> None:
        """A request was admitted."""
        self.running += 1

    def request_ended(self, endpoint: str, outcome: str, seconds: float) -> None:
        """The same request has ended.

        Args:
            endpoint: from the closed set of endpoints, such as `chat`.
            outcome: `ok`, `cancelled` or the name of an error code.
            seconds: since it was admitted.
        """
        self.running -= 1
        self.request_seconds.observe(seconds)
        outcomes = self.outcomes
        key = (endpoint, outcome)
        if key not in outcomes and len(outcomes) >= LABEL_SETS_MAX:
            key = (_OTHER, _OTHER)
        outcomes[key] = outcomes.get(key, 0) + 1

    def first_token(self, seconds: float) -> None:
        """The first piece of an answer came so long after its admission."""
        self.first_token_seconds.observe(seconds)

    def chunks(self, count: int) -> None:
        """So many pieces of an answer passed."""
        self.chunks_total += count


class NodeMetrics:
    """All numbers of one node. Touched by any task of the node's one thread.

    Attributes:
        edge, provider: requests as the two roles see them.
        attempts_total: add one per candidate that is tried.
        directory_providers: set to the number of providers that are known.
    """

    __slots__ = (
        "_registry",
        "_watched",
        "_watched_each",
        "attempts_total",
        "directory_providers",
        "edge",
        "provider",
        "refusals",
    )

    def __init__(self) -> None:
        self.edge = RoleMetrics()
        self.provider = RoleMetrics()
        self.attempts_total = 0
        self.directory_providers = 0
        self.refusals: dict[str, int] = {}
        self._watched: dict[tuple[str, tuple[str, ...]], Callable[[], float]] = {}
        self._watched_each: dict[str, Callable[[], Mapping[str, float]]] = {}
        self._registry: CollectorRegistry | None = None

    def refused(self, reason: str) -> None:
        """A request was refused before it started, for a reason such as an error code's name."""
        if reason not in self.refusals and len(self.refusals) >= LABEL_SETS_MAX:
            reason = _OTHER
        self.refusals[reason] = self.refusals.get(reason, 0) + 1

    def watch(self, name: str, read: Callable[[], float], *labels: str) -> None:
        """Take a counter or gauge from `read` at each rendering instead of from this object.

        Args:
            name: full name from `METRICS`.
            read: must not block or raise.
            labels: values for the metric's labels, in their order.
        """
        definition = next(row for row in METRICS if row.name == name)
        if definition.kind == "histogram" or len(labels) != len(definition.labels):
            raise ValueError(f"{name} is a {definition.kind} with labels {definition.labels}")
        self._watched[name, labels] = read

    def watch_each(self, name: str, read: Callable[[], Mapping[str, float]]) -> None:
        """As `watch`, for a gauge with one label whose values come and go.

        Args:
            read: the values by that label, at most `LABEL_SETS_MAX`.
        """
        definition = next(row for row in METRICS if row.name == name)
        if definition.kind != "gauge" or len(definition.labels) != 1:
            raise ValueError(f"{name} is a {definition.kind} with labels {definition.labels}")
        self._watched_each[name] = read

    def render(self) -> bytes:
        """Everything in Prometheus' text format, with memory and CPU time of the process."""
        from prometheus_client.exposition import generate_latest  # noqa: PLC0415 (only if scraped)

        if self._registry is None:
            from prometheus_client.process_collector import ProcessCollector  # noqa: PLC0415
            from prometheus_client.registry import CollectorRegistry  # noqa: PLC0415

            self._registry = CollectorRegistry(auto_describe=False)
            self._registry.register(self)
            ProcessCollector(registry=self._registry)
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """What Prometheus' registry asks its collectors for."""
        from prometheus_client.core import Metric  # noqa: PLC0415 (only if scraped)

        values = self._values()
        for definition in METRICS:
            family = Metric(
                definition.name.removesuffix("_total"), definition.help, definition.kind
            )
            for labels, value in values.get(definition.name, {}).items():
                pairs = dict(zip(definition.labels, labels, strict=True))
                if isinstance(value, Histogram):
                    for bound, count in value.cumulative():
                        family.add_sample(
                            f"{definition.name}_bucket", {**pairs, "le": bound}, count
                        )
                    family.add_sample(f"{definition.name}_count", pairs, float(sum(value.counts)))
                    family.add_sample(f"{definition.name}_sum", pairs, value.sum)
                else:
                    family.add_sample(definition.name, pairs, float(value))
            yield family

    def _values(self) -> dict[str, dict[tuple[str, ...], float | Histogram]]:
        """Every metric's samples by their label values."""
        roles = {"edge": self.edge, "provider": self.provider}
        values: dict[str, dict[tuple[str, ...], float | Histogram]] = {
            "aimo_build_info": {(__version__,): 1},
            "aimo_requests_running": {(name,): role.running for name, role in roles.items()},
            "aimo_requests_total": {
                (name, *key): count
                for name, role in roles.items()
                for key, count in role.outcomes.items()
            },
            "aimo_request_seconds": {(name,): role.request_seconds for name, role in roles.items()},
            "aimo_time_to_first_token_seconds": {
                (name,): role.first_token_seconds for name, role in roles.items()
            },
            "aimo_chunks_total": {(name,): role.chunks_total for name, role in roles.items()},
            "aimo_attempts_total": {(): self.attempts_total},
            "aimo_refused_total": {(reason,): n for reason, n in self.refusals.items()},
            "aimo_links_open": {(): 0},
            "aimo_link_bytes_total": {("received",): 0, ("sent",): 0},
            "aimo_directory_providers": {(): self.directory_providers},
        }
        for (name, labels), read in self._watched.items():
            values.setdefault(name, {})[labels] = read()
        for name, read_each in self._watched_each.items():
            values[name] = {(label,): value for label, value in read_each().items()}
        return values

"""What the owner says about an upstream, the same for every engine that lists its models."""

from __future__ import annotations

import argparse
from pathlib import Path

from aimo_node.domain.ids import Endpoint
from aimo_node.domain.models import Feature
from aimo_node.errors import ConfigError
from aimo_node.ports.engine import EngineSettings
from providers.arguments import EngineArguments, integer_between, number_between
from providers.http.unix_client import UnixUpstream
from providers.http.upstream import Upstream
from providers.upstreams.listing_engine import UpstreamPlan
from providers.upstreams.model_offer import EVERY_MODEL, Wish


def upstream_arguments(engine: str, *, probe_seconds: float) -> EngineArguments:
    """The engine arguments that all have; each adds its own.

    Args:
        probe_seconds: between two probes, if the owner does not say.
    """
    arguments = EngineArguments(engine)
    arguments.add_argument("--context", type=integer_between(0, 1 << 24), default=0)
    arguments.add_argument("--features", type=_features)
    arguments.add_argument("--ca-file", type=Path)
    arguments.add_argument("--start-seconds", type=number_between(0, 3600), default=30.0)
    arguments.add_argument(
        "--probe-seconds", type=number_between(0.05, 3600), default=probe_seconds
    )
    return arguments


def upstream_plan(
    settings: EngineSettings,
    found: argparse.Namespace,
    *,
    endpoint: str,
    secret: str,
    endpoints: tuple[Endpoint, ...] | None,
) -> UpstreamPlan:
    """The plan that settings and engine arguments make.

    Args:
        found: what `upstream_arguments` read.
        endpoints: what every model is for; None takes what the upstream's list says.

    Raises:
        ConfigError: the names contradict each other.
    """
    if settings.served_name and settings.model == EVERY_MODEL:
        raise ConfigError("--served-name names one model, --model '*' takes all: use --models")
    return UpstreamPlan(
        endpoint=endpoint,
        wish=Wish(
            models=dict(settings.models),
            model=settings.model,
            served_name=settings.served_name,
            endpoints=endpoints,
            features=found.features,
            context_tokens=found.context,
        ),
        start_seconds=found.start_seconds,
        probe_every_seconds=found.probe_seconds,
        secret=secret,
    )


def connect_to(
    root: str, *, requests_max: int, api_key: str = "", ca_file: Path | None
) -> Upstream:
    """A client of the server at `root`, see `split_endpoint`; nothing is sent yet.

    Args:
        api_key: sent as bearer token.

    Raises:
        ConfigError: `ca_file` cannot be used.
    """
    if root.startswith("unix:"):
        return UnixUpstream(Path(root.removeprefix("unix:")), api_key=api_key)
    # Half a tenth of a second to load, and only engines with an upstream elsewhere need it.
    from providers.http.client import HttpUpstream  # noqa: PLC0415

    return HttpUpstream(root, requests_max=requests_max, api_key=api_key, ca_file=ca_file)


def _features(text: str) -> tuple[Feature, ...]:
    """Reads ``tools,vision``; argparse reports the ValueError with the flag's name."""
    return tuple(Feature(name.strip()) for name in text.split(",") if name.strip())

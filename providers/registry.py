"""Finds an engine by name: entry points of group ``aimo_node.engines``, ours and anybody's."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Final, cast

from aimo_node.errors import ConfigError
from aimo_node.ports.engine import Engine, EngineFactory, EngineSettings

ENTRY_POINT_GROUP: Final = "aimo_node.engines"

BUILT_IN: Final[Mapping[str, str]] = {
    "anthropic": "providers.engines.anthropic_http:create",
    "copilot": "providers.engines.copilot:create",
    "echo": "providers.engines.echo:create",
    "llama": "providers.engines.llama:create",
    "openai": "providers.engines.openai_http:create",
    "vllm": "providers.engines.vllm:create",
}
"""Engines of this distribution, so that a source tree works before it is installed."""


def engine_names() -> list[str]:
    """Every engine that can be named, in alphabetical order; imports none of them."""
    return sorted(_entries())


def create_engine(name: str, settings: EngineSettings) -> Engine:
    """Make the engine called `name`; nothing is started.

    Raises:
        ConfigError: no such engine, it cannot be imported, or the settings cannot work.
    """
    entries = _entries()
    entry = entries.get(name)
    if entry is None:
        raise ConfigError(_unknown(name, sorted(entries)))
    return _load(entry)(settings)


def _entries() -> dict[str, EntryPoint]:
    built_in = {
        name: EntryPoint(name=name, value=value, group=ENTRY_POINT_GROUP)
        for name, value in BUILT_IN.items()
    }
    return built_in | {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}


def _load(entry: EntryPoint) -> EngineFactory:
    try:
        loaded = entry.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"engine {entry.name} ({entry.value}) cannot be loaded: {error}"
        ) from error
    return cast("EngineFactory", loaded)


def _unknown(name: str, names: list[str]) -> str:
    nearest = difflib.get_close_matches(name.lower(), names, n=1)
    hint = f" (did you mean {nearest[0]}?)" if nearest else ""
    return f"there is no engine {name!r}{hint}; known engines: {', '.join(names)}"

"""From settings to engines: which are made, with which label and folder."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from aimo_node.config.provider import EngineSection
from aimo_node.config.settings import Settings
from aimo_node.config.values import is_loopback
from aimo_node.dispatch.hosting import EnginePlan
from aimo_node.dispatch.parameters import OwnerLimits
from aimo_node.domain.ids import ModelName, Role
from aimo_node.errors import ConfigError
from aimo_node.ports.engine import Engine, EngineSettings
from providers.children.child_environment import withhold

ENGINE_FOLDER: Final = "engine"
LABEL: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")
"""A label is a folder's name too."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
"""An engine's own name, and a label made of it."""


class EngineMaker:
    """Makes the plans of a node's engines.

    Args:
        settings: with the defaults of `roles` filled in.
    """

    def __init__(self, settings: Settings, roles: Role) -> None:
        self._folder = settings.node.state / ENGINE_FOLDER
        bind = settings.edge.http_bind
        self._owner_only = (
            Role.EDGE in roles
            and bind is not None
            and is_loopback(bind[0])
            and not settings.edge.behind_proxy
        )

    def plan(self, section: EngineSection, label: str, *, essential: bool = True) -> EnginePlan:
        """The plan for one engine; its folder is made.

        Raises:
            ConfigError: its name is none.
        """
        if not _NAME.fullmatch(label):
            raise ConfigError(f"{section.name[:80]!r} is no name of an engine")
        folder = self._folder / label
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings = self._engine_settings(section, folder)
        if section.api_key_env:
            # Here and not with the engine: another engine's child may start before it is made.
            withhold(section.api_key_env)

        def make() -> Engine:
            from providers.registry import create_engine  # noqa: PLC0415 (an edge needs none)

            return create_engine(section.name, settings)

        return EnginePlan(
            label=label,
            kind=section.name,
            make=make,
            idle_seconds=section.idle_unload,
            waiting_max=section.waiting_max,
            limits=OwnerLimits(section.tokens_max, settings.media_domains),
            models=_names_known(section),
            essential=essential,
        )

    def folder(self, label: str) -> Path:
        """Where an engine keeps its files."""
        return self._folder / label

    def _engine_settings(self, section: EngineSection, folder: Path) -> EngineSettings:
        return EngineSettings(
            state_folder=folder,
            model=section.model,
            endpoint=section.endpoint,
            api_key_file=section.api_key_file,
            api_key_env=section.api_key_env,
            engine_args=section.engine_args,
            requests_max=section.requests_max,
            served_name=section.served_name,
            models=section.models,
            media_domains=frozenset(domain.lower() for domain in section.media_domains),
            owner_only=self._owner_only,
        )


def _names_known(section: EngineSection) -> tuple[ModelName, ...]:
    """Names in the mesh that the configuration itself gives; a file or ``*`` gives none."""
    names = list(section.models) or [section.served_name or section.model]
    return tuple(ModelName(name) for name in names if name not in {"", "*"} and not _is_file(name))


def _is_file(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.endswith(".gguf")


def free_label(name: str, taken: Iterable[str]) -> str:
    """`name`, or with the first number behind it that makes it different from all `taken`."""
    known = set(taken)
    label, number = name, 1
    while label in known:
        number += 1
        label = f"{name}-{number}"
    return label

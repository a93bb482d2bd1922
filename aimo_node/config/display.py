"""Showing settings to people without showing secrets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from aimo_node.config.provider import EngineOptions, EngineSection
from aimo_node.config.settings import KEYS, Settings
from aimo_node.domain.join import JOIN_PREFIX, parse_join

HIDDEN: Final = "***"

_CREDENTIALS_IN_URL: Final = re.compile(r"(?<=://)[^/@]+(?=@)")
_SECRET_WORD: Final = re.compile(r"key|token|secret|password", re.IGNORECASE)


def shown_values(settings: Settings) -> dict[str, Any]:
    """Every `section.key` with its value as JSON knows values, secrets replaced."""
    values: dict[str, Any] = {}
    for key in KEYS:
        section, _, name = key.partition(".")
        values[key] = _plain(getattr(getattr(settings, section), name))
    values["mesh.join"] = [_shown_join(text) for text in settings.mesh.join]
    values.update(
        {f"provider.{name}": value for name, value in _shown_engine(settings.provider).items()}
    )
    engine = settings.provider.engine
    if not isinstance(engine, str):
        values["provider.engine"] = [
            {"name": table.name, **_said(table), **_shown_engine(table)} for table in engine
        ]
    return values


def _said(table: EngineSection) -> dict[str, object]:
    return {name: _plain(getattr(table, name)) for name in sorted(table.model_fields_set)}


def _shown_engine(options: EngineOptions) -> dict[str, object]:
    """The two that may hold secrets."""
    return {
        "engine_args": _shown_arguments(options.engine_args),
        "endpoint": _CREDENTIALS_IN_URL.sub(HIDDEN, options.endpoint),
    }


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _shown_join(text: str) -> str:
    """A join string by its addresses: the rest of it is the mesh secret or an invite."""
    if not text.strip().startswith(JOIN_PREFIX):
        return text
    target = parse_join(text)
    secret = f", secret {HIDDEN}" if target.secret is not None else ""
    if target.invite:
        secret = f", invite {HIDDEN}"
    return f"{JOIN_PREFIX}… ({', '.join(target.addresses)}{secret})"


def _shown_arguments(arguments: tuple[str, ...]) -> list[str]:
    """Hide the value of `--some-key VALUE` and `--some-key=VALUE`."""
    shown: list[str] = []
    hide_next = False
    for argument in arguments:
        name, separator, _ = argument.partition("=")
        is_option = argument.startswith("-")
        if hide_next and not is_option:
            shown.append(HIDDEN)
        elif is_option and separator and _SECRET_WORD.search(name):
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(argument)
        hide_next = is_option and not separator and bool(_SECRET_WORD.search(name))
    return shown

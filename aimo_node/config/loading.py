"""Putting flags, environment, file and defaults together; saying which value came from where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource

from aimo_node.config.layers import Layer, find_file, read_environment, read_file
from aimo_node.config.places import default_state_folder
from aimo_node.config.provider import FORM_TABLES
from aimo_node.config.settings import KEYS, KEYS_BY_ROLE, Settings
from aimo_node.errors import ConfigError

_EXPECTED = {
    "bool_type": "expected true or false",
    "int_type": "expected a whole number",
    "float_type": "expected a number",
    "string_type": "expected a text",
    "tuple_type": "expected a list of texts",
    "missing": "is missing",
    "is_instance_of": "expected a path",
    "path_type": "expected a path",
}


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """Settings and their history.

    Attributes:
        origins: for every `section.key`, where its value came from, in words.
        file: the configuration file that was read, if any.
    """

    settings: Settings
    origins: Mapping[str, str]
    file: Path | None


def load_settings(
    flags: Layer, *, environ: Mapping[str, str], file: Path | None = None
) -> LoadedSettings:
    """Read and check all settings: flags win over environment over file over defaults.

    Args:
        flags: what the command line says.
        environ: the environment; `os.environ` outside of tests.
        file: a configuration file that must exist; without it the usual places are tried.

    Raises:
        ConfigError: an unknown key or a wrong value; the message names key, source and fix.
    """
    defaults = Layer()
    defaults.add("node.state", default_state_folder(environ), "default")
    path = file or find_file(environ)
    layers = [flags, read_environment(environ), read_file(path) if path else Layer(), defaults]
    origins = {key: _origin(key, layers) for key in KEYS}
    try:
        settings = _build(layers)
    except ValidationError as error:
        lines = [_explain(details, origins) for details in error.errors(include_url=False)]
        raise ConfigError("; ".join(lines)) from error
    return LoadedSettings(settings, origins, path)


def _origin(key: str, layers: Sequence[Layer]) -> str:
    default = "default, by role" if key in KEYS_BY_ROLE else "default"
    return next((layer.origins[key] for layer in layers if key in layer.origins), default)


def _build(layers: Sequence[Layer]) -> Settings:
    class LayeredSettings(Settings):
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *_args: object, **_kwargs: object
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return tuple(InitSettingsSource(settings_cls, layer.values) for layer in layers)

    return LayeredSettings()


def _explain(details: ErrorDetails, origins: Mapping[str, str]) -> str:
    """One sentence: which key, what is expected, where the wrong value came from."""
    location = [str(part) for part in details["loc"] if not str(part).startswith("function-")]
    key = ".".join(location[:2])
    kind, context = details["type"], details.get("ctx", {})
    if kind == "literal_error":
        expected = f"expected {context['expected']}"
    elif kind == "value_error":
        expected = str(context["error"])
    else:
        expected = _EXPECTED.get(kind) or details["msg"].replace("Input should", "it should")
    where = (
        f" ({origins[key]})" if key in origins and not origins[key].startswith("default") else ""
    )
    return f"{key}{_index(location[2:])}: {expected}{where}"


def _index(location: Sequence[str]) -> str:
    parts = [part for part in location if part != FORM_TABLES]
    return "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in parts)

"""Reading where settings come from: the file, the environment. Each becomes a `Layer`."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from aimo_node.config.places import config_folder
from aimo_node.config.provider import EngineSection
from aimo_node.config.settings import KEYS, SECTIONS, variable_of
from aimo_node.errors import ConfigError

FILE_NAME: Final = "aimo.toml"
FILE_BYTES_MAX: Final = 1024 * 1024
"""A configuration is a page or two; more is the wrong file."""

_PREFIX: Final = "AIMO_"
_KEY_OF_VARIABLE: Final = {variable_of(key): key for key in KEYS}
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_ENGINE_TABLES: Final = "provider.engine"
_FALSE: Final = frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True, slots=True)
class Layer:
    """Settings from one source.

    Attributes:
        values: nested as in the file: section, then key.
        origins: for each `section.key` in `values`, where it came from, in words.
    """

    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def add(self, key: str, value: object, origin: str) -> None:
        """Set `section.key`, replacing what was there."""
        section, _, name = key.partition(".")
        self.values.setdefault(section, {})[name] = value
        self.origins[key] = origin


def find_file(environ: Mapping[str, str]) -> Path | None:
    """`aimo.toml` in the current folder, or else in the XDG configuration folder."""
    for candidate in (Path(FILE_NAME), config_folder(environ) / FILE_NAME):
        if candidate.is_file():
            return candidate.absolute()
    return None


def read_file(path: Path) -> Layer:
    """The settings in a TOML file; relative paths in it start at the file's folder.

    Raises:
        ConfigError: it cannot be read, is not TOML, or has a key that does not exist.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigError(f"{path} has more than {FILE_BYTES_MAX} bytes: not a configuration")
    try:
        document = tomllib.loads(raw.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    layer = Layer()
    for section, table in document.items():
        if section not in SECTIONS:
            raise ConfigError(f"{path}: {_unknown_section(section)}")
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: expected a table [{section}], not a value")
        for name, value in table.items():
            key = f"{section}.{name}"
            if key not in KEYS:
                raise ConfigError(f"{path}: unknown key {key!r}{_suggest(key, KEYS)}")
            folder = path.absolute().parent
            if key == _ENGINE_TABLES and isinstance(value, list):
                found: object = [_engine_table(entry, folder, path) for entry in value]
            else:
                found = _from_folder(key, value, folder)
            layer.add(key, found, f"file {path}")
    return layer


def read_environment(environ: Mapping[str, str]) -> Layer:
    """The settings in `AIMO_SECTION__KEY` variables; an empty one counts as not set.

    Raises:
        ConfigError: a variable of that form, or one that differs from a known one only in its
            underscores, names no setting.
    """
    layer = Layer()
    plain = {variable.replace("_", ""): variable for variable in _KEY_OF_VARIABLE}
    for variable, text in sorted(environ.items()):
        if not variable.startswith(_PREFIX) or not text:
            continue
        key = _KEY_OF_VARIABLE.get(variable)
        if key is not None:
            layer.add(key, _from_text(key, text), f"environment {variable}")
            continue
        # Other AIMO_… variables are not ours: Kubernetes sets AIMO_EDGE_SERVICE_HOST and the like.
        meant = plain.get(variable.upper().replace("_", ""))
        if meant is not None:
            raise ConfigError(f"unknown variable {variable}; did you mean {meant}?")
        if "__" in variable:
            raise ConfigError(f"unknown variable {variable}{_suggest(variable, _KEY_OF_VARIABLE)}")
    return layer


def _unknown_section(section: str) -> str:
    homes = [key for key in KEYS if key.partition(".")[2] == section]
    if homes:
        return f"key {section!r} stands outside of a section; did you mean {homes[0]!r}?"
    return f"unknown section [{section}]{_suggest(section, SECTIONS)}"


def _suggest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` with the nearest known name, or where to find all of them.

    A key in the wrong section is found by its own name: `log.engine` is `provider.engine`.
    """
    names = list(known)
    section, dot, name = word.partition(".")
    near = [key for key in names if dot and key.partition(".")[2] == name]
    if dot and not near:
        here = [key for key in names if key.startswith(section + ".")]
        near = difflib.get_close_matches(name, [key.partition(".")[2] for key in here], n=1)
        near = [f"{section}.{near[0]}"] if near else []
    near = near or difflib.get_close_matches(word, names, n=1, cutoff=0.7)
    return f"; did you mean {near[0]!r}?" if near else "; 'aimo config show' lists all settings"


def _annotation(key: str) -> object:
    section, _, name = key.partition(".")
    return SECTIONS[section].model_fields[name].annotation


def _engine_table(entry: object, folder: Path, path: Path) -> object:
    """One ``[[provider.engine]]``: its keys are those of the section, and ``name``."""
    if not isinstance(entry, dict):
        return entry
    known = sorted(EngineSection.model_fields)
    for name in entry:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            raise ConfigError(f"{path}: unknown key {name!r} in [[provider.engine]]{hint}")
    return {
        name: _from_folder(f"provider.{name}", value, folder) if name != "name" else value
        for name, value in entry.items()
    }


def _is_path(key: str) -> bool:
    return _annotation(key) in {Path, Path | None}


def _from_folder(key: str, value: object, folder: Path) -> object:
    if isinstance(value, str) and value and _is_path(key):
        return folder / Path(value).expanduser()
    return value


def _from_text(key: str, text: str) -> object:
    """What the text of a variable means; what cannot be read stays text and fails validation."""
    annotation = _annotation(key)
    if annotation is bool:
        lowered = text.strip().lower()
        return lowered in _TRUE if lowered in _TRUE | _FALSE else text
    try:
        if annotation is int:
            return int(text)
        if annotation is float:
            return float(text)
    except ValueError:
        pass
    return text

"""The file behind ``--join @FILE``: where it is and what it holds."""

from __future__ import annotations

from pathlib import Path

from aimo_node.domain.join import JOIN_CHARACTERS_MAX, parse_join
from aimo_node.errors import ConfigError


def join_file_of(text: str) -> Path | None:
    """The file that `text` stands for; None if it is a join string itself."""
    return Path(text.removeprefix("@")).expanduser() if text.startswith("@") else None


def read_join_file(path: Path) -> str:
    """The join string in `path`; empty while there is no file or nothing in it.

    Raises:
        ConfigError: it cannot be read or holds something else.
    """
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(JOIN_CHARACTERS_MAX + 1).strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ConfigError(f"cannot read the join string in {path}: {error.strerror}") from error
    if text:
        try:
            parse_join(text)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    return text

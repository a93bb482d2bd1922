"""Turning `--join @FILE` into the join string that the file holds, or will hold in a moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from aimo_node.config.settings import Settings
from aimo_node.domain.join import JOIN_CHARACTERS_MAX, parse_join
from aimo_node.errors import ConfigError, JoinFailed

JOIN_FILE_SECONDS: Final = 30.0
"""As long as a first join may take: the relay that writes the file may start after us."""

_POLL_SECONDS: Final = 0.05


async def resolve_joins(settings: Settings, say: Callable[[str], None]) -> Settings:
    """The settings with every `@FILE` in `mesh.join` replaced by what the file holds.

    Args:
        say: told one line when there is something to wait for.

    Raises:
        JoinFailed: the file did not appear within `JOIN_FILE_SECONDS`.
        ConfigError: it cannot be read or holds something else.
    """
    texts = [
        await _wait_for_file(_path_of(text), say) if text.startswith("@") else text
        for text in settings.mesh.join
    ]
    mesh = settings.mesh.model_copy(update={"join": tuple(texts)})
    return settings.model_copy(update={"mesh": mesh})


def _path_of(text: str) -> Path:
    return Path(text.removeprefix("@")).expanduser()


async def _wait_for_file(path: Path, say: Callable[[str], None]) -> str:
    text = _read(path)
    if text:
        return text
    say(f"waiting up to {JOIN_FILE_SECONDS:.0f} s for a join string in {path}")
    with trio.move_on_after(JOIN_FILE_SECONDS):
        while not text:
            await trio.sleep(_POLL_SECONDS)
            text = _read(path)
    if not text:
        raise JoinFailed(
            f"no join string appeared in {path} within {JOIN_FILE_SECONDS:.0f} s:"
            " start the relay with --join-file and this path"
        )
    return text


def _read(path: Path) -> str:
    """What the file holds; empty while there is no file or nothing in it."""
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

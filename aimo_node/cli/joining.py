"""Turning `--join @FILE` into the join string that the file holds, or will hold in a moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from aimo_node.config.join_file import join_file_of, read_join_file
from aimo_node.config.settings import Settings
from aimo_node.errors import JoinFailed

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
    texts = []
    for text in settings.mesh.join:
        path = join_file_of(text)
        texts.append(text if path is None else await _wait_for_file(path, say))
    mesh = settings.mesh.model_copy(update={"join": tuple(texts)})
    return settings.model_copy(update={"mesh": mesh})


async def _wait_for_file(path: Path, say: Callable[[str], None]) -> str:
    text = read_join_file(path)
    if text:
        return text
    say(f"waiting up to {JOIN_FILE_SECONDS:.0f} s for a join string in {path}")
    with trio.move_on_after(JOIN_FILE_SECONDS):
        while not text:
            await trio.sleep(_POLL_SECONDS)
            text = read_join_file(path)
    if not text:
        raise JoinFailed(
            f"no join string appeared in {path} within {JOIN_FILE_SECONDS:.0f} s:"
            " start the relay with --join-file and this path"
        )
    return text

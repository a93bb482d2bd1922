"""`--join @FILE`: the file may come later, may never come, or may hold something else."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from aimo_node.cli.joining import JOIN_FILE_SECONDS, resolve_joins
from aimo_node.config.settings import MeshSettings, Settings
from aimo_node.domain.join import JoinTarget, format_join
from aimo_node.errors import ConfigError, JoinFailed

PEER = "12D3KooWPGreadLx9nfqoQArVVMG95SG2CpQvbJGqipMVTNNu1zk"
JOIN = format_join(JoinTarget((f"/ip4/192.0.2.7/tcp/4001/p2p/{PEER}",), bytes(32)))


def waiting_for(path: Path) -> Settings:
    return Settings(mesh=MeshSettings(join=(f"@{path}",)))


def ignore(_line: str) -> None:
    """Say nothing."""


async def test_a_file_that_comes_later_is_waited_for(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "join"
    said: list[str] = []

    async def write_in_two_steps() -> None:
        await trio.sleep(10)
        path.write_text("")  # a writer that is not careful: empty first
        await trio.sleep(10)
        path.write_text(JOIN)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_in_two_steps)
        settings = await resolve_joins(waiting_for(path), said.append)
    assert settings.mesh.join == (JOIN,)
    assert said == [f"waiting up to 30 s for a join string in {path}"]


async def test_a_file_that_never_comes_is_a_failed_join(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    before = trio.current_time()
    with pytest.raises(JoinFailed, match="--join-file"):
        await resolve_joins(waiting_for(tmp_path / "join"), ignore)
    assert trio.current_time() - before == pytest.approx(JOIN_FILE_SECONDS, abs=1)


async def test_a_file_with_something_else_is_a_configuration_error(tmp_path: Path) -> None:
    path = tmp_path / "join"
    path.write_text("hello")
    with pytest.raises(ConfigError, match=str(path)):
        await resolve_joins(waiting_for(path), ignore)


async def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        await resolve_joins(waiting_for(tmp_path), ignore)

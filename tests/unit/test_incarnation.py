"""The number of a node's life grows, or the mesh would not believe what it says."""

from __future__ import annotations

import pytest

from aimo_node.assembly.incarnation import next_incarnation
from aimo_node.errors import ConfigError


def test_lives_are_numbered_upwards_though_the_clock_goes_back(tmp_path) -> None:
    path = tmp_path / "incarnation"
    clock = [1_000, 2_000, 2_000, 500, 3_000]
    assert [next_incarnation(path, now) for now in clock] == [1_000, 2_000, 2_001, 2_002, 3_000]
    assert [file.name for file in tmp_path.iterdir()] == ["incarnation"]


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"-5", b"9" * 40, b"12 monkeys"])
def test_damaged_file_is_replaced(tmp_path, damage: bytes) -> None:
    path = tmp_path / "incarnation"
    path.write_bytes(damage)
    assert next_incarnation(path, 1_000) == 1_000
    assert next_incarnation(path, 1_000) == 1_001


def test_folder_that_cannot_be_written_is_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match="incarnation"):
        next_incarnation(tmp_path / "missing" / "incarnation", 1_000)

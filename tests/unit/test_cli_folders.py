"""State folders have one user at a time; join files are whole or absent."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from aimo_node.cli import folders
from aimo_node.cli.folders import claim_folder, prepare_join_file, write_join_file
from aimo_node.errors import ConfigError


def test_a_new_folder_is_for_its_owner_only(tmp_path: Path) -> None:
    with claim_folder(tmp_path / "deep" / "state"):
        assert stat.S_IMODE((tmp_path / "deep" / "state").stat().st_mode) == 0o700


def test_a_second_node_in_the_same_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "LOCK_SECONDS", 0.0)
    with (
        claim_folder(tmp_path),
        pytest.raises(ConfigError, match="--state"),
        claim_folder(tmp_path),
    ):
        pass
    with claim_folder(tmp_path):
        pass


def test_a_killed_node_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; "
        "from aimo_node.cli.folders import claim_folder\n"
        "with claim_folder(Path(sys.argv[1])):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.kill()
    with claim_folder(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--state"), claim_folder(tmp_path / "file" / "state"):
        pass
    with pytest.raises(ConfigError, match="not a folder"), claim_folder(tmp_path / "file"):
        pass


def test_a_join_file_of_the_past_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "join"
    path.write_text("old")
    prepare_join_file(path)
    assert not path.exists()
    with pytest.raises(ConfigError, match="cannot write"):
        prepare_join_file(tmp_path / "missing" / "join")
    with pytest.raises(ConfigError, match="cannot replace"):
        prepare_join_file(tmp_path)


def test_a_join_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "join"
    path.write_text("a much longer text than the new one")
    write_join_file(path, "aimo:x")
    assert path.read_text() == "aimo:x\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [path]

"""`aimo provider` with and without a command behind it."""

from __future__ import annotations

from pathlib import Path

import pytest

from aimo_node.cli import main as program


def test_the_bare_command_runs_a_provider(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Without an engine it is refused by the configuration: so far it gets."""
    assert program.run(["provider", "--state", str(tmp_path), "--config", "/dev/null"]) == 2
    assert "--engine llama" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["pause", "resume", "who"])
def test_without_a_node_there_is_nobody_to_ask(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    arguments = ["provider", command, "--state", str(tmp_path), "--config", "/dev/null"]
    assert program.run(arguments) == 1
    assert "no node runs with the state folder" in capsys.readouterr().err


def test_flags_before_the_command_are_refused_and_not_ignored(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """`--state` there would name a node, and another one would be paused."""
    assert program.run(["provider", "--state", str(tmp_path), "pause"]) == 2
    assert "aimo provider pause --state" in capsys.readouterr().err


def test_a_time_that_is_none_is_wrong_usage(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["provider", "who", "--since", "yesterday", "--state", str(tmp_path)]
    assert program.run(arguments) == 2
    assert "expected a duration" in capsys.readouterr().err


def test_an_unknown_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.run(["provider", "halt"]) == 2
    assert "No such command 'halt'" in capsys.readouterr().err

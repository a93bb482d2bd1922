"""Tables of the command line: in a pipe, in a wide terminal, in a narrow one."""

from __future__ import annotations

import re

import pytest

from aimo_node.cli.listing import print_table

COLUMNS = ("label", "state", "models", "detail")
ROWS = (("vllm", "not_installed", "Qwen/Qwen3-0.6B", "give it " * 12), ("llama", "running", "", ""))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("FORCE_COLOR", "1")
    return monkeypatch


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out).splitlines()


def test_a_pipe_gets_one_line_a_row_without_trailing_blanks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_table(COLUMNS, ROWS, wrapping=("detail",))
    lines = printed(capsys)
    assert len(lines) == 3
    assert lines[2] == "llama  running"


def test_a_wide_terminal_folds_only_the_columns_that_may(
    capsys: pytest.CaptureFixture[str], terminal: pytest.MonkeyPatch
) -> None:
    terminal.setenv("COLUMNS", "80")
    print_table(COLUMNS, ROWS, wrapping=("detail",))
    lines = printed(capsys)
    assert lines[0].split() == list(COLUMNS)
    assert lines[1].startswith("vllm   not_installed  Qwen/Qwen3-0.6B  give it give it")
    assert lines[2].startswith(" " * 39 + "give it")
    assert max(map(len, lines)) <= 80


def test_a_narrow_terminal_gets_a_block_for_each_row_and_no_broken_words(
    capsys: pytest.CaptureFixture[str], terminal: pytest.MonkeyPatch
) -> None:
    terminal.setenv("COLUMNS", "50")
    print_table(COLUMNS, ROWS, wrapping=("detail",))
    lines = printed(capsys)
    assert lines[:3] == ["label   vllm", "state   not_installed", "models  Qwen/Qwen3-0.6B"]
    assert lines[-3:] == ["", "label   llama", "state   running"]
    assert max(map(len, lines)) <= 50

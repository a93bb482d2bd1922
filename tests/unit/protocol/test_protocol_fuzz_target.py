"""The fuzz target runs, finds what is wrong and says how to see it again."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from aimo_node.protocol.credit import WindowBudget

SCRIPT = Path(__file__).parents[3] / "scripts" / "fuzz_protocol.py"


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("fuzz_protocol", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_few_hundred_inputs_find_nothing(
    fuzz: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fuzz.main(["--plain", "--inputs", "400", "--seed", "3"]) == 0
    assert "no finding" in capsys.readouterr().out


def test_a_fault_is_found_and_can_be_reproduced(
    fuzz: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(WindowBudget, "give_back", lambda _self, _size: None)
        assert fuzz.main(["--plain", "--inputs", "400", "--seed", "3"]) == 1
        found = capsys.readouterr().out.splitlines()[-1].split()[-1]
        assert fuzz.main(["--reproduce", found]) == 1
    assert fuzz.main(["--reproduce", found]) == 0


def test_the_same_seed_makes_the_same_inputs(fuzz: ModuleType) -> None:
    one, other = fuzz.Mutator(9), fuzz.Mutator(9)
    assert [one.next_input() for _ in range(50)] == [other.next_input() for _ in range(50)]


def test_dialogues_without_damage_end_no_link(fuzz: ModuleType) -> None:
    """Otherwise nothing would be fuzzed but the first frame."""
    sessions = [fuzz._opened(), fuzz._asking()]
    for session in sessions:
        for story in fuzz.stories():
            for frame in story:
                fuzz._react(session, session.receive_data(frame, 0.0))
            assert not session.closed

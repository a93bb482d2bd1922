"""scripts/install.py: what it says when something is lacking, and which environments it touches."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
MODULES = ("install", "machine", "pip_run")


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; it finds its neighbours as it does when run."""
    monkeypatch.syspath_prepend(SCRIPTS)
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import install

    return install


def only_manager(install: ModuleType, monkeypatch: pytest.MonkeyPatch, present: str) -> None:
    monkeypatch.setattr(
        install.machine.shutil, "which", lambda name: name if name == present else None
    )


@pytest.mark.parametrize(
    ("manager", "line"),
    [
        ("apt-get", "sudo apt-get install -y libgomp1 build-essential"),
        ("dnf", "sudo dnf install -y libgomp gcc gcc-c++ make"),
        ("pacman", "sudo pacman -S --needed gcc-libs base-devel"),
        ("nothing", None),
    ],
)
def test_one_line_mends_all_that_is_lacking(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch, manager: str, line: str | None
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(install.machine.os, "geteuid", lambda: 1000)
    only_manager(install, monkeypatch, manager)
    lacking = ["the OpenMP library libgomp.so.1", "a C and C++ compiler", "disk space: 700 MB free"]
    assert install.machine.mending_line(lacking) == line


def test_machine_that_runs_this_test_lacks_nothing(install: ModuleType, tmp_path: Path) -> None:
    assert install.machine.lacking_for_wheels(tmp_path) == []


def test_library_that_does_not_load_is_lacking(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(install.machine.ctypes, "CDLL", refuse)
    lacking = install.machine.lacking_for_wheels(tmp_path)
    assert [what.split()[-1] for what in lacking] == ["libgomp.so.1", "libstdc++.so.6"]


def test_pip_failures_are_told_apart(install: ModuleType) -> None:
    no_wheel = "ERROR: No matching distribution found for coincurve==21.0.0"
    offline = f"WARNING: Retrying after NewConnectionError(…)\n{no_wheel}"
    assert install.missing_wheel(no_wheel) == "coincurve"
    assert install.missing_wheel(offline) is None
    assert "registry could not be reached" in install.explain(offline)
    assert "PIP_CERT" in install.explain(f"SSLError(CERTIFICATE_VERIFY_FAILED)\n{no_wheel}")
    assert "differs from what scripts/locks says" in install.explain("DO NOT MATCH THE HASHES")
    assert "last words" in install.explain("first words\nlast words")


def test_environment_made_by_somebody_else_is_left_alone(
    install: ModuleType, tmp_path: Path
) -> None:
    foreign = tmp_path / ".venv"
    foreign.mkdir()
    (foreign / "pyvenv.cfg").touch()
    with pytest.raises(SystemExit, match="move it away"):
        install.install(install.argparse.Namespace(venv=foreign, dev=False, copy=False))
    assert (foreign / "pyvenv.cfg").exists()


def test_interrupted_environment_is_removed_and_a_sound_one_kept(
    install: ModuleType, tmp_path: Path
) -> None:
    environment = install.Environment(tmp_path / ".venv")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    environment.mark_sound()
    environment.discard_if_unsound()
    assert environment.is_sound

    (tmp_path / ".venv" / ".aimo-sound").rename(tmp_path / ".venv" / ".aimo-building")
    environment.discard_if_unsound()
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize(
    ("output", "is_sound"),
    [("Collecting trio==0.35.0", True), ("Installing collected packages: trio", False)],
)
@pytest.mark.parametrize("end", ["PipFailedError", "Interrupted"])
def test_end_before_anything_changed_leaves_the_environment_usable(
    install: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    output: str,
    is_sound: bool,
    end: str,
) -> None:
    """Without network nothing is unpacked, and what was there before still works."""
    environment = install.Environment(tmp_path / ".venv")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    environment.mark_sound()

    def fail(folder: Path, *_arguments: object, **_settings: object) -> None:
        (folder / install.LOG_NAME).write_text(output)
        raise getattr(install, end)(output)

    monkeypatch.setattr(install, "run_pip", fail)
    with pytest.raises(getattr(install, end)):
        environment.pip("Installing", [])
    assert environment.is_sound is is_sound

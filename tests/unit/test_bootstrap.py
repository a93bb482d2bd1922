"""scripts/quickstart and scripts/test install once, never trust half an installation, and explain.

The interpreter is a small shell script that records what it was asked to do, so nothing is
installed and no network is used.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

FAKE_PYTHON = """#!/bin/sh
case $1 in
-c) exit {verdict} ;;
*install.py)
    echo "$*" >>"{log}"
    [ {status} = 0 ] || exit {status}
    mkdir -p "{venv}/bin"
    touch "{venv}/.aimo-sound"
    printf '#!/bin/sh\\n' >"{venv}/bin/python"
    printf '#!/bin/sh\\necho "aimo $*"\\n' >"{venv}/bin/aimo"
    chmod +x "{venv}/bin/python" "{venv}/bin/aimo"
    ;;
esac
"""


@dataclass
class Checkout:
    """A copy of what bootstrapping reads, in a folder with a space in its name."""

    folder: Path
    python: Path
    log: Path
    path: str = os.environ["PATH"]

    def give_python(self, *, verdict: int = 0, status: int = 0) -> None:
        venv = self.folder / ".venv"
        self.python.write_text(
            FAKE_PYTHON.format(verdict=verdict, status=status, log=self.log, venv=venv)
        )
        self.python.chmod(0o755)

    def quickstart(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": self.path, "PYTHON": str(self.python)}
        return subprocess.run(
            [self.folder / "scripts" / "quickstart", *arguments],
            cwd="/",
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def installations(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    folder = tmp_path / "my checkout"
    wanted = (
        "pyproject.toml",
        "aimo_node/__init__.py",
        "scripts/quickstart",
        "scripts/bootstrap.sh",
        "scripts/locks/build.txt",
        "scripts/locks/runtime.txt",
        "scripts/locks/dev.txt",
        "scripts/standins/fastecdsa/pyproject.toml",
    )
    for name in wanted:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    made = Checkout(folder, tmp_path / "python3.13", tmp_path / "installations")
    made.give_python()
    return made


def test_first_start_installs_and_second_only_starts(checkout: Checkout) -> None:
    first = checkout.quickstart("--once")
    assert (first.returncode, first.stdout) == (0, "aimo demo --once\n")
    assert checkout.installations() == 1
    second = checkout.quickstart("--question", "two words")
    assert (second.returncode, second.stdout) == (0, "aimo demo --question two words\n")
    assert checkout.installations() == 1


@pytest.mark.parametrize(
    "changed", ["pyproject.toml", "scripts/locks/runtime.txt", "aimo_node/__init__.py"]
)
def test_changed_list_is_installed_again(checkout: Checkout, changed: str) -> None:
    checkout.quickstart()
    with (checkout.folder / changed).open("a") as file:
        file.write("\n")
    assert checkout.quickstart().returncode == 0
    assert checkout.installations() == 2


def test_moved_checkout_is_installed_again(checkout: Checkout, tmp_path: Path) -> None:
    """A virtual environment holds absolute paths."""
    checkout.quickstart()
    checkout.folder = checkout.folder.rename(tmp_path / "elsewhere")
    checkout.give_python()
    assert checkout.quickstart().returncode == 0
    assert checkout.installations() == 2


@pytest.mark.parametrize("lost", [".aimo-sound", "bin/python"])
def test_environment_that_is_not_whole_is_not_trusted(checkout: Checkout, lost: str) -> None:
    checkout.quickstart()
    (checkout.folder / ".venv" / lost).unlink()
    assert checkout.quickstart().returncode == 0
    assert checkout.installations() == 2


@pytest.mark.parametrize("status", [1, 130])
def test_failed_installation_starts_nothing_and_is_tried_again(
    checkout: Checkout, status: int
) -> None:
    checkout.give_python(status=status)
    failed = checkout.quickstart()
    assert (failed.returncode, failed.stdout) == (status, "")
    checkout.give_python()
    assert checkout.quickstart().stdout == "aimo demo\n"


@pytest.mark.parametrize(
    ("manager", "line"),
    [
        ("apt-get", "sudo apt-get install -y python3.12 python3.12-venv libgomp1"),
        ("dnf", "sudo dnf install -y python3.13 libgomp"),
        ("brew", "brew install python@3.13"),
        ("pacman", "sudo pacman -S --needed uv && uv python install 3.13"),
        ("none", "install Python 3.13, or name one: PYTHON=/path/to/python3.13"),
    ],
)
@pytest.mark.parametrize(("verdict", "reason"), [(1, "was not found"), (2, "is newer")])
def test_missing_python_is_mended_by_one_line(
    checkout: Checkout, tmp_path: Path, manager: str, line: str, verdict: int, reason: str
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "dirname", "cat", "cmp", "grep"):
        (tools / name).symlink_to(shutil.which(name) or "")
    fakes = {manager: "exit 0", "apt-cache": '[ "$2" = python3.12 ] && echo found', "id": "echo 1"}
    for name, body in fakes.items():
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    checkout.path = str(tools)
    checkout.give_python(verdict=verdict)
    refused = checkout.quickstart()
    assert refused.returncode == 1
    assert reason in refused.stderr
    assert refused.stderr.splitlines()[-1] == f"Mend it with:  {line}"
    assert checkout.installations() == 0

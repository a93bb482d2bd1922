"""`aimo doctor` as a program: what it prints, what it exits with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from aimo_node.assembly.doctor.checkup import CHECKS
from tests.integration.doctor_cases import free_port, relay_at

SECONDS = 60
"""Far more than the twenty it takes at most; the machine may be busy."""


def doctor(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run it with a state folder of its own and nobody's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AIMO_")}
    own = ["--state", str(folder / "state"), "--http", "127.0.0.1:0"]
    return subprocess.run(
        [sys.executable, "-m", "aimo_node", "doctor", *own, *flags],
        env={**kept, "XDG_CONFIG_HOME": str(folder), "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def test_without_a_problem_it_exits_with_0_and_tells_every_check(tmp_path) -> None:
    done = doctor(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    lines = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert [line.split()[1] for line in lines] == [check.name for check in CHECKS]
    assert not (tmp_path / "state").exists()


def test_a_problem_exits_with_1_and_stands_in_the_list(tmp_path) -> None:
    address = relay_at(free_port())
    done = doctor(tmp_path, "--open", "--join", address, "--json")
    assert done.returncode == 1, done.stdout + done.stderr
    listed = json.loads(done.stdout)
    assert all(set(one) == {"check", "layer", "verdict", "seen", "do"} for one in listed)
    (bad,) = [one for one in listed if one["verdict"] == "problem"]
    assert (bad["check"], bad["layer"]) == ("reach", "relay")
    assert "start the relay" in bad["do"]
    assert {one["check"] for one in listed} == {check.name for check in CHECKS}


def test_a_wrong_setting_is_a_finding_and_a_wrong_flag_is_wrong_usage(tmp_path) -> None:
    done = doctor(tmp_path, "--join", "nonsense")
    assert done.returncode == 1
    assert "FAIL  config" in done.stdout
    assert doctor(tmp_path, "--no-such-flag").returncode == 2
    assert doctor(tmp_path, "--role", "king").returncode == 2

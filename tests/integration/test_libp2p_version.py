"""Another release of libp2p is refused by whatever would run on it, and the doctor names it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aimo_node.mesh.fixes.version import LIBP2P_VERSION
from tests.integration.libp2p_parties import ROOT


@pytest.mark.parametrize("command", ["relay", "doctor"])
def test_a_node_does_not_start_on_another_libp2p(tmp_path: Path, command: str) -> None:
    """What the fixes know of 0.8.1 may be wrong of any other release."""
    other = tmp_path / "site" / "libp2p-0.9.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: libp2p\nVersion: 0.9.0\n")
    done = subprocess.run(
        [sys.executable, "-m", "aimo_node", command, "--state", str(tmp_path / "state")],
        env={**os.environ, "PYTHONPATH": f"{other.parent}{os.pathsep}{ROOT}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == (2 if command == "relay" else 1)
    said = done.stdout + done.stderr
    assert "libp2p 0.9.0" in said
    assert LIBP2P_VERSION in said
    assert "Traceback" not in said

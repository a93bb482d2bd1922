"""An engine from a package outside this distribution, installed as anybody would install it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.http_client import ask
from tests.e2e.mesh import LOOPBACK
from tests.e2e.node_process import ROOT, NodeProcess, environment

PLUGIN = ROOT / "docs" / "examples" / "engine-plugin"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed package; built from a copy, since building leaves things."""
    folder = tmp_path_factory.mktemp("plugin")
    source, target = folder / "source", folder / "site"
    shutil.copytree(PLUGIN, source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps"]
    command += ["--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    done = subprocess.run(
        [*command, "--target", str(target), str(source)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return target


def variables(site: Path) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join((str(ROOT), str(site)))}


async def test_installed_engine_serves_by_its_name(site, tmp_path):
    flags = ("--engine", "parrot", "--http", "127.0.0.1:0", "--listen", LOOPBACK)
    node = NodeProcess("up", "up", *flags, folder=tmp_path, variables=variables(site))
    try:
        node.wait_ready()
        assert node.ready_line["models"] == ["parrot"]
        body = {"model": "parrot", "messages": [{"role": "user", "content": "polly wants"}]}
        answer = await ask(node.port, "POST", "/v1/chat/completions", body)
        assert answer.status == 200
        assert answer.json["choices"][0]["message"]["content"].strip() == "POLLY WANTS"
    finally:
        node.end()


def test_name_is_known_only_where_the_package_is_installed(site, tmp_path):
    command = [sys.executable, "-m", "aimo_node", "provider", "--engine", "parrott"]
    told = [
        subprocess.run(
            [*command, "--state", str(tmp_path / "state"), "--open"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=environment(tmp_path) | more,
        )
        for more in (variables(site), {})
    ]
    assert [done.returncode for done in told] == [2, 2]
    assert "there is no engine 'parrott' (did you mean parrot?)" in told[0].stderr
    assert "did you mean" not in told[1].stderr


def test_installed_engine_passes_the_suite(site, tmp_path):
    """The engine as it was installed, not as it lies in the source tree."""
    tests = tmp_path / "test_parrot.py"
    shutil.copy(PLUGIN / "test_parrot.py", tests)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path), str(tests)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        cwd=tmp_path,
        env={**os.environ, **variables(site)},
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout

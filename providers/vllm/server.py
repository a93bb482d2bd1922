"""The program of the vllm engine's child: vLLM's own HTTP server, made to die with its node.

Run by its path, mostly by another interpreter than the node's, so it imports nothing of ours by
name and leaves nothing of ours on the import path. Usage: ``python server.py ARGUMENTS OF VLLM``.
Everything it and vLLM print goes to standard error.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
from pathlib import Path

NOT_INSTALLED = 69
"""Exit code when this interpreter has no vLLM; EX_UNAVAILABLE of sysexits.h."""

MODULES = ("vllm.entrypoints.openai.api_server", "vllm.entrypoints.launchers.api_server.entry")
"""The same program, by the name all versions have and by the one that is to replace it."""


def main() -> None:
    """Serve until killed."""
    here = Path(__file__).resolve().parent
    # The folder of this file holds modules with common names; vLLM's must not find them.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    _die_with_parent(here.parent / "children" / "parent_watch.py")
    os.dup2(2, 1)
    for module in MODULES:
        if _is_there(module):
            sys.argv[0] = module
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            return
    sys.stderr.write(f"No vLLM is installed for {sys.executable}\n")
    sys.exit(NOT_INSTALLED)


def _die_with_parent(path: Path) -> None:
    specification = importlib.util.spec_from_file_location("aimo_parent_watch", path)
    if specification is None or specification.loader is None:
        sys.exit(f"{path} is missing: install aimo-node again")
    parent_watch = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(parent_watch)
    parent_watch.die_with_parent()


def _is_there(module: str) -> bool:
    """Whether the module can be found; looking for it imports its packages."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "vllm":
            return False
        raise


if __name__ == "__main__":
    main()

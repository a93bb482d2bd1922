"""A how-to page whose commands are run as they stand there, on loopback and with real processes.

What a page leaves to its reader is filled in: names in capitals, `aimo:…`, where to listen.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.mesh import LOOPBACK, Mesh
from tests.e2e.node_process import NodeProcess, environment

ROOT = Path(__file__).parents[2]
ROLES = {"relay", "provider", "edge"}
ANYWHERE = "/ip4/0.0.0.0/tcp/4001"
COMMAND_SECONDS = 60
_BLOCK = re.compile(r"^ *```sh\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#{2,3} (.+)$", re.MULTILINE)


class Page:
    """The commands of one page by the heading they stand under, each to be followed once."""

    def __init__(self, name: str, mesh: Mesh) -> None:
        self._mesh = mesh
        parts = _HEADING.split((ROOT / "docs" / "how-to" / name).read_text("utf-8"))
        self._left = {
            heading: list(_commands(text))
            for heading, text in zip(parts[1::2], parts[2::2], strict=True)
        }

    def run(self, heading: str, expected: str, **names: Path | str) -> str:
        """Run the next command under a heading, which begins as expected; what it prints."""
        words = self._next(heading, expected, names)
        if words[0] == "aimo":
            words = [sys.executable, "-m", "aimo_node", *words[1:]]
            words += ["--config", os.devnull]
        elif words[0] == "python3":
            words[0] = sys.executable
        done = subprocess.run(
            words,
            env=environment(self._mesh.folder),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    async def start(
        self, heading: str, expected: str, *more: str, listen: str = LOOPBACK, **names: Path | str
    ) -> NodeProcess:
        """Start the node of the next command, and wait until it is ready."""
        names[ANYWHERE] = listen
        _, role, *flags = self._next(heading, expected, names)
        assert role in ROLES
        state = flags.index("--state")
        name = Path(flags[state + 1]).name
        del flags[state : state + 2]
        flags += ["--http", "127.0.0.1:0"] if role == "edge" else []
        flags += [] if "--listen" in flags else ["--listen", listen]
        return await self._mesh.start(name, role, *flags, *more).ready()

    def assert_followed(self, *headings: str) -> None:
        """Nothing under these headings was left out."""
        left = {heading: self._left[heading] for heading in headings if self._left[heading]}
        assert not left

    def _next(self, heading: str, expected: str, names: dict[str, Path | str]) -> list[str]:
        command = self._left[heading].pop(0)
        assert command.startswith(expected), f"under {heading!r} stands {command!r}"
        join = str(names.pop("join", "aimo:…"))
        words = [join if word == "aimo:…" else word for word in shlex.split(command)]
        for name, value in names.items():
            words = [
                word if word == join else re.sub(rf"(?<!\w){name}(?!\w)", str(value), word)
                for word in words
            ]
        return words


def _commands(text: str) -> Iterator[str]:
    for block in _BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip() and not line.strip().startswith("#"):
                yield line.strip()

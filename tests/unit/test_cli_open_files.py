"""The limit on open files: raised, never lowered, never beyond what is allowed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from aimo_node.cli.open_files import OPEN_FILES

SCRIPT = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
from aimo_node.cli.open_files import raise_limit
raise_limit()
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(
    ("soft", "hard", "after"),
    [
        (1_024, 20_000, OPEN_FILES),
        (1_024, 4_096, 4_096),
        (20_000, 20_000, 20_000),
    ],
)
def test_the_soft_limit_is_raised_as_far_as_allowed(soft: int, hard: int, after: int) -> None:
    command = [sys.executable, "-c", SCRIPT, str(soft), str(hard)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) == after

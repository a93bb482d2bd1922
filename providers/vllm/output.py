"""What vLLM prints: cut into lines, kept in a bounded log, its last lines at hand.

Progress bars write a carriage return between their lines, and several processes write at once.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import Final

from providers.children.bounded_log import BoundedLog

LINES_MAX: Final = 1000
"""A failed start ends with a traceback of each process, some 300 lines; the cause comes first."""

LINE_CHARACTERS_MAX: Final = 600
_CUT: Final = re.compile(rb"[\r\n]+")
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
_PREFIX: Final = re.compile(
    r"^(\([\w.-]+ (pid=\d+|[\w= ]*)\) ?)*"  # which process
    r"((DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d )?"
    r"(\[[\w.]+:\d+\] ?)?"
)


class Output:
    """Where the supervisor writes what vLLM prints.

    Args:
        log: the file.
        heard: told each line, without its prefix.
    """

    def __init__(self, log: BoundedLog, heard: Callable[[str], None]) -> None:
        self._log = log
        self._heard = heard
        self._lines: deque[str] = deque(maxlen=LINES_MAX)
        self._rest = b""

    def begin(self, title: str) -> None:
        """A new run starts: only its lines are kept at hand."""
        self._lines.clear()
        self._rest = b""
        self._log.begin(title)

    def write(self, data: bytes) -> None:
        """Take what has come, cut anywhere."""
        self._log.write(data)
        *whole, self._rest = _CUT.split(self._rest + data)
        if len(self._rest) > LINE_CHARACTERS_MAX:
            whole.append(self._rest)
            self._rest = b""
        for line in whole:
            self._take(line)

    def lines(self) -> list[str]:
        """The last lines, oldest first, the unfinished one included."""
        last = plain_line(self._rest)
        return [*self._lines, *([last] if last else [])]

    def _take(self, line: bytes) -> None:
        text = plain_line(line)
        if text:
            self._lines.append(text)
            self._heard(text)


def plain_line(line: bytes) -> str:
    """What a line says, without colours and without who says it."""
    text = _COLOUR.sub("", line[: 2 * LINE_CHARACTERS_MAX].decode("utf-8", "replace"))
    return _PREFIX.sub("", text, count=1).rstrip()[:LINE_CHARACTERS_MAX]

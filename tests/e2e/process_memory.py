"""What a process has in its memory: all that it can write, or that is no file."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

READ_BYTES = 4 << 20


def found_in_memory(pid: int, *needles: bytes) -> set[bytes]:
    """Those of the needles that are somewhere in the memory of a process.

    Skips the test where a process may not look into that of its children.
    """
    overlap = max(map(len, needles)) - 1
    found: set[bytes] = set()
    try:
        memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    except (FileNotFoundError, PermissionError) as error:
        pytest.skip(f"the memory of another process cannot be read here: {error}")
    try:
        for start, end in list(_spans(pid)):
            rest = b""
            for data in _pieces(memory, start, end):
                text = rest + data
                found.update(needle for needle in needles if needle in text)
                rest = data[-overlap:]
    finally:
        os.close(memory)
    return found


def _spans(pid: int) -> Iterator[tuple[int, int]]:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, mode, _, _, inode, *_ = line.split()
        if mode[0] == "r" and (mode[1] == "w" or inode == "0"):
            start, end = span.split("-")
            yield int(start, 16), int(end, 16)


def _pieces(memory: int, start: int, end: int) -> Iterator[bytes]:
    while start < end:
        try:
            data = os.pread(memory, min(READ_BYTES, end - start), start)
        except (OSError, OverflowError):
            return  # a guard page, the kernel's own, or gone in the meantime
        if not data:
            return
        yield data
        start += len(data)

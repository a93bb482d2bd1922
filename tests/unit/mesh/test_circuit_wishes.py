"""A relay reads no more of a stranger's wish than a wish may have."""

from __future__ import annotations

import pytest

from aimo_node.errors import NetworkError
from aimo_node.mesh.fixes.circuit_messages import read_offer, read_wish


class Endless:
    """A stream that announces a message of 8 MiB, and has it."""

    def __init__(self) -> None:
        self._prefix = b"\x80\x80\x80\x04"
        self.taken = 0

    async def read(self, count: int) -> bytes:
        data, self._prefix = self._prefix[:count], self._prefix[count:]
        data = data or b"\0" * count
        self.taken += len(data)
        return data


@pytest.mark.parametrize("read", [read_wish, read_offer])
async def test_a_message_that_is_too_long_is_not_even_read(read) -> None:
    stream = Endless()
    with pytest.raises(NetworkError, match="no message that can be read"):
        await read(stream)
    assert stream.taken < 100

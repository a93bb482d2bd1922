"""DCUtR's messages, byte for byte, and what is none."""

import pytest

from aimo_node.errors import NetworkError
from aimo_node.mesh.fixes.hole_punch_messages import (
    ADDRESSES_READ_MAX,
    await_signal,
    give_signal,
    hear_addresses,
    tell_addresses,
)
from aimo_node.mesh.fixes.library import HolePunch, Multiaddr, encode_varint_prefixed

ADDRESS = "/ip4/203.0.113.1/tcp/49248"
CONNECT = bytes.fromhex("0c 0864 1208 04cb007101 06c060")
"""Length; type 100; one address of 8 bytes: IPv4, TCP."""
SYNC = bytes.fromhex("03 08ac02")
"""Length; type 300."""


class Tape:
    """A stream that says what it was given, and keeps what is written."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = data
        self.written = b""

    async def read(self, count: int) -> bytes:
        taken, self.data = self.data[:count], self.data[count:]
        return taken

    async def write(self, data: bytes) -> None:
        self.written += data


async def test_the_messages_are_those_of_the_specification():
    tape = Tape()
    await tell_addresses(tape, [ADDRESS])
    await give_signal(tape)
    assert tape.written == CONNECT + SYNC


async def test_they_are_read_as_they_are_written():
    tape = Tape(CONNECT + SYNC)
    assert await hear_addresses(tape) == (ADDRESS,)
    await await_signal(tape)
    assert tape.data == b""


@pytest.mark.parametrize(
    ("data", "read"),
    [(SYNC, hear_addresses), (CONNECT, await_signal), (b"\x00", await_signal)],
    ids=["sync", "connect", "nothing"],
)
async def test_a_message_out_of_turn_is_refused(data, read):
    with pytest.raises(NetworkError, match="expected"):
        await read(Tape(data))


async def test_a_message_over_4_kib_is_refused():
    long = HolePunch(type=HolePunch.CONNECT, ObsAddrs=[bytes(4100)])
    with pytest.raises(NetworkError):
        await hear_addresses(Tape(encode_varint_prefixed(long.SerializeToString())))


async def test_of_many_addresses_some_are_read_and_unknown_ones_passed_over():
    raw = [b"\xff\xff", *(Multiaddr(f"/ip4/192.0.2.1/tcp/{port}").to_bytes() for port in range(99))]
    message = HolePunch(type=HolePunch.CONNECT, ObsAddrs=raw)
    heard = await hear_addresses(Tape(encode_varint_prefixed(message.SerializeToString())))
    assert len(heard) == ADDRESSES_READ_MAX - 1
    assert heard[0] == "/ip4/192.0.2.1/tcp/0"

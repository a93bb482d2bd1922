"""What a connection sees of the circuit it runs on."""

from types import SimpleNamespace

import trio

from aimo_node.mesh.fixes.circuit_stream import CircuitStream


class FullStream:
    """A stream on which there is always something to read."""

    muxed_conn = SimpleNamespace(peer_id="relay")

    async def read(self, count: int) -> bytes:
        return b"x" * min(count, 10)


async def test_a_circuit_on_which_much_has_arrived_lets_others_have_their_turn():
    """A socket does, before each burst; a stream gives all it has at once."""
    wire = CircuitStream(FullStream()).take_wire()
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        for _ in range(100):
            assert await wire.receive()
        nursery.cancel_scope.cancel()
    assert turns >= 90

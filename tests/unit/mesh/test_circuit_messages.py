"""What is read of a hostile peer's requests for circuits."""

import pytest
import trio

from aimo_node.errors import NetworkError
from aimo_node.mesh.fixes.circuit_messages import (
    Reservation,
    grant_reservation,
    read_offer,
    read_wish,
)
from aimo_node.mesh.fixes.library import (
    HopMessage,
    Multiaddr,
    StopMessage,
    encode_varint_prefixed,
)


class Stream:
    """A stream on which one message has arrived."""

    def __init__(self, message) -> None:
        self._data = encode_varint_prefixed(message.SerializeToString())

    async def read(self, count: int) -> bytes:
        data, self._data = self._data[:count], self._data[count:]
        return data


@pytest.mark.parametrize(
    ("read", "message"), [(read_wish, HopMessage), (read_offer, StopMessage)], ids=["hop", "stop"]
)
async def test_a_long_peer_id_costs_no_more_than_a_short_one(read, message):
    """Base 58 of four kilobytes takes 14 ms, and strangers may ask a hundred times a second."""
    wish = message(type=message.CONNECT, peer={"id": b"\xff" * 4000})
    started = trio.current_time()
    for _ in range(300):
        with pytest.raises(NetworkError, match="no peer id"):
            await read(Stream(wish))
    assert trio.current_time() - started < 2.0


async def test_an_address_that_cannot_be_packed_does_not_keep_a_reservation_from_being_granted():
    """The names of containers have underscores, for one; the other addresses are told."""
    sent = bytearray()

    class Answer:
        async def write(self, data: bytes) -> None:
            sent.extend(data)

    addresses = ("/dns4/my_relay/tcp/4001", "/what/ever", "/ip4/192.0.2.1/tcp/4001")
    await grant_reservation(Answer(), Reservation(1, addresses))
    answer = HopMessage.FromString(bytes(sent[1:]))
    assert [str(Multiaddr(raw)) for raw in answer.reservation.addrs] == list(addresses[2:])

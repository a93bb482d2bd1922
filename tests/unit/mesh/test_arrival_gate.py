"""Who is let in while a flood of connects is going on."""

import pytest

from aimo_node.mesh.fixes.connection_flood import ArrivalGate
from aimo_node.mesh.fixes.limits import HostLimits

LIMITS = HostLimits(
    connections_max=6,
    connections_per_address_max=4,
    handshakes_max=5,
    handshakes_per_address_max=3,
)


class FakeSocket:
    """A socket that only knows whether it has spoken and whether it is closed."""

    def __init__(self) -> None:
        self.has_spoken = False
        self.closed = False

    def close_now(self) -> None:
        self.closed = True


@pytest.fixture
def gate() -> ArrivalGate:
    return ArrivalGate(LIMITS)


def arrive(gate: ArrivalGate, address: str, *, speaks: bool = False) -> FakeSocket | None:
    """A new socket at the gate; None if it was turned away."""
    socket = FakeSocket()
    admitted = gate.admit(address, socket)
    socket.has_spoken = speaks
    return socket if admitted is not None else None


def test_the_oldest_silent_socket_of_the_address_makes_room(gate):
    first, *others = [arrive(gate, "a") for _ in range(3)]
    assert arrive(gate, "a") is not None
    assert first.closed
    assert not any(socket.closed for socket in others)


def test_who_has_spoken_is_not_closed_for_a_newcomer(gate):
    sockets = [arrive(gate, "a", speaks=True) for _ in range(3)]
    assert arrive(gate, "a") is None
    assert not any(socket.closed for socket in sockets)


def test_other_addresses_do_not_suffer_from_a_crowded_one(gate):
    for _ in range(3):
        arrive(gate, "a", speaks=True)
    assert arrive(gate, "b") is not None


def test_all_together_are_limited_too(gate):
    sockets = [arrive(gate, str(number), speaks=True) for number in range(5)]
    assert None not in sockets
    assert arrive(gate, "new") is None


def test_a_flood_from_many_addresses_gives_way_to_newcomers(gate):
    first, *_ = [arrive(gate, str(number)) for number in range(5)]
    assert arrive(gate, "new") is not None
    assert first.closed


def test_an_established_connection_no_longer_counts_as_a_handshake(gate):
    for _ in range(3):
        gate.establish(gate.admit("a", FakeSocket()))
    assert arrive(gate, "a") is not None


def test_established_connections_are_limited_per_address_and_in_all(gate):
    established = [gate.admit("a", FakeSocket()) for _ in range(3)]
    for one in established:
        gate.establish(one)
    established.append(gate.admit("a", FakeSocket()))
    gate.establish(established[-1])
    assert arrive(gate, "a") is None
    for _ in range(2):
        gate.establish(gate.admit("b", FakeSocket()))
    assert arrive(gate, "c") is None
    gate.leave(established[0])
    assert arrive(gate, "c") is not None


def test_leaving_frees_the_place_once(gate):
    one = gate.admit("a", FakeSocket())
    gate.leave(one)
    gate.leave(one)
    gate.establish(one)
    sockets = [arrive(gate, "a", speaks=True) for _ in range(3)]
    assert None not in sockets
    assert arrive(gate, "a") is None


def test_an_evicted_socket_that_leaves_later_changes_nothing(gate):
    evicted = gate.admit("a", FakeSocket())
    for _ in range(3):
        arrive(gate, "a", speaks=True)
    assert evicted.socket.closed
    gate.leave(evicted)
    assert arrive(gate, "a") is None

"""Which addresses lead through a relay, and through which."""

from aimo_node.domain.ids import PeerId
from aimo_node.mesh.circuits.client import RELAYS_PER_PEER_MAX, is_circuit, relays_in
from aimo_node.mesh.identity import KeyPair

PEER = PeerId("12D3KooWHSTewn5Y86PxNNnHkZRgBXpBHgPM1imU49neZ5Ba9wa4")
RELAY = PeerId("12D3KooWPGreadLx9nfqoQArVVMG95SG2CpQvbJGqipMVTNNu1zk")
OTHER = PeerId("12D3KooWJWoaqZhDaoEFshF7Rh1bpY9ohihFhzcW6d69Lr2NASuq")
HERE = f"/ip4/192.0.2.1/tcp/4001/p2p/{RELAY}"
NAMED = f"/dns4/relay.example.org/tcp/4001/p2p/{RELAY}"


def test_circuits_are_told_from_other_addresses():
    assert is_circuit(f"{HERE}/p2p-circuit/p2p/{PEER}")
    assert not is_circuit(f"/ip4/192.0.2.1/tcp/4001/p2p/{PEER}")


def test_circuits_are_gathered_by_relay_in_their_order():
    through = f"/ip4/192.0.2.2/tcp/1/p2p/{OTHER}"
    addresses = [f"{way}/p2p-circuit/p2p/{PEER}" for way in (HERE, through, NAMED)]
    assert list(relays_in(addresses, PEER).items()) == [(RELAY, [HERE, NAMED]), (OTHER, [through])]


def test_what_is_no_circuit_to_the_peer_is_left_out():
    strange = [
        f"{HERE}/p2p-circuit/p2p/{OTHER}",
        f"{HERE}/p2p-circuit",
        f"/ip4/192.0.2.1/tcp/4001/p2p-circuit/p2p/{PEER}",
        f"/p2p/{PEER}/p2p-circuit/p2p/{PEER}",
        f"{HERE}/p2p-circuit/p2p/{PEER}/p2p-circuit/p2p/{PEER}",
        "/p2p-circuit/p2p/",
        "",
    ]
    assert relays_in(strange, PEER) == {}


def test_only_the_first_relays_of_a_peer_are_dialled():
    """Each may be a dial of its own, to wherever the peer says."""
    relays = [KeyPair.from_seed(bytes([number] * 32)).peer_id for number in range(16)]
    addresses = [f"/ip4/192.0.2.1/tcp/1/p2p/{relay}/p2p-circuit/p2p/{PEER}" for relay in relays]
    assert list(relays_in(addresses, PEER)) == relays[:RELAYS_PER_PEER_MAX]

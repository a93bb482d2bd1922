"""Who counts as one asker when strangers ask for membership."""

from __future__ import annotations

import pytest

from aimo_node.mesh.membership.members import asker_of


@pytest.mark.parametrize(
    ("address", "asker"),
    [
        ("/ip4/192.0.2.7/tcp/4001", "/ip4/192.0.2.7"),
        ("/ip6/2001:db8:1:2:3:4:5:6/tcp/4001", "2001:db8:1:2::/64"),
        ("/ip6/2001:db8:1:2::9/tcp/1", "2001:db8:1:2::/64"),
        ("/ip6/2001:db8:1:3::9/tcp/1", "2001:db8:1:3::/64"),
        ("/ip6/::ffff:192.0.2.7/tcp/1", "/ip4/192.0.2.7"),
        ("/ip6/fe80::1%eth0/tcp/1", "fe80::/64"),
        ("/ip6/nonsense/tcp/1", "/ip6/nonsense"),
        ("", ""),
    ],
)
def test_a_network_of_one_owner_is_one_asker(address: str, asker: str) -> None:
    """Who rents one machine has 2^64 IPv6 addresses: with each an asker of its own, it could hold
    every exchange, and nobody could join."""
    assert asker_of(address) == asker

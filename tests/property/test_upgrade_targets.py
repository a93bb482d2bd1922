"""What peers say of where they may be met is hostile input, as text and as bytes."""

import ipaddress

import trio
from hypothesis import given
from hypothesis import strategies as st

from aimo_node.errors import NetworkError
from aimo_node.mesh.circuits.targets import PORT_MIN, TARGETS_MAX, Targets, worth_trying
from aimo_node.mesh.fixes.hole_punch_messages import hear_addresses
from aimo_node.mesh.fixes.library import HolePunch, encode_varint_prefixed

hosts = st.one_of(
    st.ip_addresses().map(str),
    st.sampled_from(
        ["127.0.0.1", "0.0.0.0", "0.1.2.3", "169.254.169.254", "224.0.0.1", "255.255.255.255"]
    ),
    st.sampled_from(
        ["::1", "::", "fe80::1", "fe80::1%eth0", "ff02::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"]
    ),
    st.text(max_size=8),
)
ports = st.one_of(st.integers(-1, 70_000).map(str), st.text(max_size=5))
tails = st.sampled_from(["", "/p2p/x", "/ws", "/p2p/x/p2p-circuit/p2p/y", "/"])
addresses = st.one_of(
    st.text(max_size=40),
    st.builds(
        lambda kind, host, port, tail: f"/{kind}/{host}/tcp/{port}{tail}",
        st.sampled_from(["ip4", "ip6", "dns4", "ip6zone"]),
        hosts,
        ports,
        tails,
    ),
)


def check(target: str) -> None:
    """Nothing but a plain address of some other machine, at a port that a router may choose."""
    _, kind, host, tcp, port = target.split("/")
    address = ipaddress.ip_address(host)
    assert (kind, tcp) == (f"ip{address.version}", "tcp")
    assert PORT_MIN <= int(port) <= 65_535
    assert not address.is_loopback
    assert not address.is_link_local
    assert not address.is_multicast
    assert not address.is_unspecified
    assert not address.is_reserved
    if isinstance(address, ipaddress.IPv6Address):
        assert address.ipv4_mapped is None


@given(st.lists(addresses, max_size=30))
def test_only_other_machines_are_tried_and_few(told):
    targets = worth_trying(told)
    assert len(targets) <= TARGETS_MAX
    assert len(set(targets)) == len(targets)
    for target in targets:
        check(target)
    privacy = [ipaddress.ip_address(one.split("/")[2]).is_private for one in targets]
    assert privacy == sorted(privacy), "private networks come last"


@given(st.lists(st.lists(addresses, max_size=12), max_size=6))
def test_one_round_tries_no_more_however_often_the_peer_tells(messages):
    targets = Targets(loopback=False)
    tried = {target for told in messages for target in targets.of(told)}
    assert len(tried) <= TARGETS_MAX


class Tape:
    """A stream that says what it was given."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def read(self, count: int) -> bytes:
        taken, self.data = self.data[:count], self.data[count:]
        return taken


messages = st.builds(
    lambda kind, raw: HolePunch(type=kind, ObsAddrs=raw).SerializeToString(),
    st.sampled_from([HolePunch.CONNECT, HolePunch.SYNC]),
    st.lists(
        st.builds(
            bytes.__add__, st.sampled_from([b"", b"\x04", b"\x29", b"\xa5\x03"]), st.binary()
        ),
        max_size=40,
    ),
)


@given(st.one_of(st.binary(max_size=200), messages), st.booleans())
def test_any_bytes_are_addresses_or_an_error(data, framed):
    async def read() -> None:
        try:
            told = await hear_addresses(Tape(encode_varint_prefixed(data) if framed else data))
        except NetworkError:
            return
        for target in worth_trying(told):
            check(target)

    trio.run(read)


def test_what_is_tried_and_what_is_not():
    told = [
        "/ip4/192.168.1.7/tcp/4001",
        "/ip4/93.184.216.34/tcp/49248/p2p/12D3KooW",
        "/ip4/127.0.0.1/tcp/4001",
        "/ip4/93.184.216.34/tcp/22",
        "/dns4/router.lan/tcp/8080",
        "/ip6/2606:2800:220::1/tcp/4001",
        "/ip6/::ffff:192.168.1.1/tcp/8080",
        "/ip4/93.184.216.34/udp/4001/quic-v1",
    ]
    assert worth_trying(told) == [
        "/ip4/93.184.216.34/tcp/49248",
        "/ip6/2606:2800:220::1/tcp/4001",
        "/ip4/192.168.1.7/tcp/4001",
    ]
    assert worth_trying(["/ip4/127.0.0.1/tcp/4001"], loopback=True) == ["/ip4/127.0.0.1/tcp/4001"]

"""Connections that leave from the port of another one, which is what holes are punched with."""

import socket

import pytest
import trio
import trio.testing

from aimo_node.mesh.fixes.connection_flood import ArrivalGate
from aimo_node.mesh.fixes.library import Multiaddr, OpenConnectionError
from aimo_node.mesh.fixes.limits import HostLimits
from aimo_node.mesh.fixes.tcp_listening import TcpTransport


def address(listening: socket.socket) -> Multiaddr:
    """Where it listens, as libp2p says it."""
    return Multiaddr("/ip4/{}/tcp/{}".format(*listening.getsockname()))


def local_end(connection) -> tuple[str, int]:
    """Where a connection of libp2p's leaves from."""
    return connection.stream.get_local_address()


async def connect_twice(transport, one: Multiaddr, other: Multiaddr) -> tuple:
    """Connections from one port; from another one if a stranger on this machine has it, too."""
    for _ in range(10):
        first = await transport.dial(one)
        try:
            return first, await transport.dial_with_source(other, local_end(first))
        except OpenConnectionError:
            await first.close()
    raise AssertionError("no port can be shared")


async def test_two_connections_leave_from_one_port():
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        async with trio.open_nursery() as nursery:
            transport = TcpTransport(ArrivalGate(HostLimits()), nursery)
            first, second = await connect_twice(transport, address(one), address(other))
            assert local_end(second) == local_end(first)
            accepted, seen = other.accept()
            accepted.close()
            assert seen == local_end(first)
            option = socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT
            assert second.stream.stream.socket.getsockopt(*option) == 15_000, "see _ABANDON_SECONDS"
            await first.close()
            await second.close()


async def test_a_port_that_somebody_listens_on_is_not_shared():
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        async with trio.open_nursery() as nursery:
            transport = TcpTransport(ArrivalGate(HostLimits()), nursery)
            with pytest.raises(OpenConnectionError, match="in use"):
                await transport.dial_with_source(address(other), one.getsockname())


async def test_who_is_refused_tries_again_since_the_other_end_may_not_have_begun():
    with socket.create_server(("127.0.0.1", 0)) as relay:
        late = socket.socket()
        late.bind(("127.0.0.1", 0))
        async with trio.open_nursery() as nursery:
            transport = TcpTransport(ArrivalGate(HostLimits()), nursery)
            first = await transport.dial(address(relay))

            async def meet() -> None:
                second = await transport.dial_with_source(address(late), local_end(first))
                assert local_end(second) == local_end(first)
                await second.close()

            nursery.start_soon(meet)
            await trio.testing.wait_all_tasks_blocked()
            late.listen()
        await first.close()
        late.close()


async def test_who_is_refused_for_good_says_so(autojump_clock):
    unused = socket.socket()
    unused.bind(("127.0.0.1", 0))
    with socket.create_server(("127.0.0.1", 0)) as relay:
        async with trio.open_nursery() as nursery:
            transport = TcpTransport(ArrivalGate(HostLimits()), nursery)
            first = await transport.dial(address(relay))
            with pytest.raises(OpenConnectionError, match="again and again"):
                await transport.dial_with_source(address(unused), local_end(first))
            await first.close()
    unused.close()

"""What strangers send to the libp2p port: the node lives, stays small, and serves the others."""

import os
import resource
import socket
from contextlib import AsyncExitStack, ExitStack, suppress

import pytest
import trio

from aimo_node.errors import NetworkError
from aimo_node.mesh.host import HostLimits, MeshHost
from aimo_node.mesh.identity import KeyPair
from tests.integration.libp2p_parties import Child, start_child

pytestmark = pytest.mark.alone

HANDSHAKE_SECONDS = 2.0
LIMITS = {"handshake_seconds_max": HANDSHAKE_SECONDS}
GROWTH_BYTES_MAX = 30_000_000
MULTISTREAM = b"\x13/multistream/1.0.0\n"

STRANGE_BYTES = {
    "random": os.urandom(4096),
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "tls": bytes.fromhex("1603010200010001fc0303") + os.urandom(500),
    "endless varint": b"\xff" * 4096,
    "a gigabyte announced": b"\x80\x80\x80\x80\x04" + b"A" * 100_000,
    "multistream, then too long": MULTISTREAM + b"\xff\xff\x03" + b"A" * 70_000,
    "multistream, then not UTF-8": MULTISTREAM + b"\x03\xff\xfe\n",
    "noise, then rubbish": MULTISTREAM + b"\x07/noise\n" + os.urandom(70_000),
    "noise, then an empty message": MULTISTREAM + b"\x07/noise\n\x00\x00\x00\x00",
    "the same question for ever": MULTISTREAM + b"\x03ls\n" * 5_000,
    "only the greeting": MULTISTREAM,
    "nothing": b"",
}


async def ignore(stream) -> None:
    """Take no streams."""


async def is_served(child: Child, seed: bytes = b"p" * 32) -> bool:
    """Whether an honest peer gets a working stream within three seconds."""
    identity = KeyPair.from_seed(seed)
    async with MeshHost(identity, [], limits=HostLimits(), on_stream=ignore) as host:
        with trio.fail_after(3):
            # Over loopback, so that it comes from the flooder's own address.
            stream = await host.dial(child.peer, child.addresses[-1:])
            await stream.write(b"E" + b"hello")
            return await stream.read() == b"hello"


async def read_to_the_end(connection: trio.SocketStream) -> bytes:
    received = b""
    try:
        while data := await connection.receive_some(65536):
            received += data
            assert len(received) < 10_000_000
    except trio.BrokenResourceError:
        pass
    return received


async def send_everything(connection: trio.SocketStream, data: bytes) -> None:
    with suppress(trio.BrokenResourceError):
        await connection.send_all(data)


@pytest.mark.parametrize("name", STRANGE_BYTES)
async def test_strange_bytes_are_hung_up_on(name):
    async with start_child(limits=LIMITS) as child:
        before = child.rss_bytes
        connection = await trio.open_tcp_stream("127.0.0.1", child.port)
        with trio.fail_after(HANDSHAKE_SECONDS + 3):
            async with connection, trio.open_nursery() as nursery:
                nursery.start_soon(send_everything, connection, STRANGE_BYTES[name])
                await read_to_the_end(connection)
                nursery.cancel_scope.cancel()
        assert child.is_alive
        assert await is_served(child)
        assert child.rss_bytes - before < GROWTH_BYTES_MAX


async def test_one_byte_a_second_does_not_extend_the_handshake():
    async with start_child(limits=LIMITS) as child:
        connection = await trio.open_tcp_stream("127.0.0.1", child.port)
        started = trio.current_time()

        async def drip() -> None:
            for byte in MULTISTREAM:
                await send_everything(connection, bytes([byte]))
                await trio.sleep(0.25)

        async with connection, trio.open_nursery() as nursery:
            nursery.start_soon(drip)
            await read_to_the_end(connection)
            nursery.cancel_scope.cancel()
        assert trio.current_time() - started < HANDSHAKE_SECONDS + 1.5
        assert await is_served(child)


@pytest.mark.parametrize("protocol", [b"/plaintext/2.0.0", b"/secio/1.0.0", b"/tls/1.0.0"])
async def test_only_noise_is_offered(protocol):
    """libp2p offers plaintext by default, which proves nobody's identity."""
    async with start_child(limits=LIMITS) as child:
        connection = await trio.open_tcp_stream("127.0.0.1", child.port)
        question = bytes([len(protocol) + 1]) + protocol + b"\n"
        async with connection:
            await connection.send_all(MULTISTREAM + question)
            answer = b""
            with trio.fail_after(5):
                while len(answer) < len(MULTISTREAM) + 4:
                    answer += await connection.receive_some(100)
            assert answer == MULTISTREAM + b"\x03na\n"


@pytest.mark.parametrize("flooder", ["127.0.0.1", "127.0.0.2"])
async def test_a_flood_of_silent_connects_keeps_nobody_out(flooder):
    """From another address, and from the very address of the honest peer."""
    async with start_child("/ip4/0.0.0.0/tcp/0") as child:
        before = child.rss_bytes
        with ExitStack() as stack:
            for _ in range(300):
                connect_from(stack, flooder, child.port)
            assert await is_served(child)
        assert child.is_alive
        assert child.rss_bytes - before < GROWTH_BYTES_MAX


async def test_a_flood_that_says_hello_keeps_other_addresses_served():
    async with start_child("/ip4/0.0.0.0/tcp/0") as child:
        before = child.rss_bytes
        with ExitStack() as stack:
            for _ in range(300):
                connection = connect_from(stack, "127.0.0.2", child.port)
                try:
                    connection.send(MULTISTREAM)
                except OSError:
                    continue
            assert await is_served(child)
        assert child.rss_bytes - before < GROWTH_BYTES_MAX


async def test_connections_from_one_address_are_limited():
    limits = {"connections_max": 6, "connections_per_address_max": 3}
    async with start_child(limits=limits) as child:
        async with AsyncExitStack() as stack:
            for number in range(3):
                identity = KeyPair.from_seed(bytes([number]) * 32)
                host = MeshHost(identity, [], limits=HostLimits(), on_stream=ignore)
                await stack.enter_async_context(host)
                await host.dial(child.peer, child.addresses)
            with pytest.raises(NetworkError):
                await is_served(child)
        assert await becomes_served(child)


async def becomes_served(child: Child) -> bool:
    """Whether an honest peer is served as soon as the others are gone."""
    with trio.move_on_after(5):
        while True:
            try:
                return await is_served(child)
            except NetworkError:
                await trio.sleep(0.05)
    return False


def connect_from(stack: ExitStack, address: str, port: int) -> socket.socket:
    """A TCP connect that says nothing yet."""
    connection = stack.enter_context(socket.socket())
    connection.settimeout(2)
    connection.bind((address, 0))
    connection.connect(("127.0.0.1", port))
    return connection


def test_this_process_may_open_enough_sockets():
    """The floods above would otherwise test nothing."""
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 600

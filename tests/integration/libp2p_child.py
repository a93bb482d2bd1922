"""A script: a `MeshHost` in a process of its own, which prints one JSON line when it listens.

The first byte a peer sends on a stream says what is to be done with the rest.
"""

import contextlib
import hashlib
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import trio

COUNT = struct.Struct("!Q")


async def serve_stream(stream) -> None:
    """Do what the first byte says: Echo, Sink, Numbers, Pause, eXplode."""
    received = await stream.read(1)
    match received:
        case b"E":
            while data := await stream.read():
                await stream.write(data)
        case b"S":
            await _report(stream)
        case b"N":
            number = 0
            while True:
                await stream.write(COUNT.pack(number) * 100)
                number += 1
                await trio.sleep(0.001)
        case b"P":
            (seconds,) = COUNT.unpack(await _exactly(stream, COUNT.size))
            await trio.sleep(seconds)
            await _report(stream)
        case b"X":
            raise RuntimeError("this handler always fails")


async def _report(stream) -> None:
    """Read the announced number of bytes, answer with their digest."""
    (expected,) = COUNT.unpack(await _exactly(stream, COUNT.size))
    digest = hashlib.sha256()
    while expected:
        data = await stream.read(min(expected, 65536))
        if not data:
            return
        expected -= len(data)
        digest.update(data)
    await stream.write(digest.digest())


async def _exactly(stream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await stream.read(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data


async def run_host(options: dict) -> None:
    """Run a host until killed; with a topic also gossip, driven by lines on stdin."""
    import structlog

    from aimo_node.mesh.host import HostLimits, MeshHost
    from aimo_node.mesh.identity import load_identity

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    identity = load_identity(Path(options["key"]))
    limits = HostLimits(**options.get("limits", {}))
    host = MeshHost(identity, options["listen"], limits=limits, on_stream=serve_stream)
    async with host:
        if "topic" in options:
            await _run_gossip(host, options)
        else:
            _say({"peer": host.peer_id, "addresses": host.addresses()})
            await trio.sleep_forever()


async def run_unchanged(options: dict) -> None:
    """Run libp2p as it comes, with its own Yamux, echoing what arrives on link streams."""
    import libp2p
    from libp2p.network.stream.exceptions import StreamEOF
    from multiaddr import Multiaddr

    host = libp2p.new_host()

    async def echo(stream) -> None:
        with contextlib.suppress(StreamEOF):
            while data := await stream.read(65536):
                await stream.write(data)
        await stream.close()

    host.set_stream_handler("/aimo/link/1", echo)
    async with host.run([Multiaddr(address) for address in options["listen"]]):
        addresses = [str(address) for address in host.get_addrs()]
        _say({"peer": host.get_id().to_base58(), "addresses": addresses})
        for address in options.get("dial", ()):
            await _question(host, address)
        await trio.sleep_forever()


async def _question(host, address: str) -> None:
    """Ask a node of ours to echo, and print what comes back."""
    from libp2p.peer.peerinfo import info_from_p2p_addr
    from multiaddr import Multiaddr

    info = info_from_p2p_addr(Multiaddr(address))
    await host.connect(info)
    stream = await host.new_stream(info.peer_id, ["/aimo/link/1"])
    question = bytes(range(256)) * 1000
    answer = b""
    await stream.write(question)
    while len(answer) < len(question):
        answer += await stream.read(65536)
    _say({"echoed": answer == question})


async def _run_gossip(host, options: dict) -> None:
    from aimo_node.errors import AimoError
    from aimo_node.mesh.directory.gossip import Gossip

    refused = set(options.get("refused", ()))
    topic = options["topic"]
    async with Gossip(host, accepts=lambda peer: peer not in refused) as gossip:
        await gossip.subscribe(topic)
        for address in options.get("dial", ()):
            await host.dial(address.rpartition("/")[2], [address])
        _say({"peer": host.peer_id, "addresses": host.addresses()})
        async with trio.open_nursery() as nursery:

            async def print_messages() -> None:
                while True:
                    message = await gossip.receive()
                    _say({"from": message.from_peer, "data": message.data.decode()})

            nursery.start_soon(print_messages)
            while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
                command = json.loads(line)
                if "wait_for" in command:
                    wanted = command["wait_for"]
                    await eventually(lambda: len(gossip.neighbours(topic)) >= wanted, 10)  # noqa: B023 (awaited here)
                try:
                    for text in command.get("publish", ()):
                        await gossip.publish(topic, text.encode())
                    _say({"done": True})
                except AimoError as error:
                    _say({"error": type(error).__name__})


def _say(message: dict) -> None:
    print(json.dumps(message), flush=True)  # noqa: T201 (the parent reads it)


async def eventually(condition: Callable[[], bool], seconds_max: float) -> None:
    """Poll until `condition` holds: other processes send no events."""
    with trio.fail_after(seconds_max):
        while not condition():  # noqa: ASYNC110 (for that reason)
            await trio.sleep(0.02)


def main(options: dict) -> None:
    """Run what the options say."""
    trio.run(run_unchanged if options.pop("unchanged", False) else run_host, options)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

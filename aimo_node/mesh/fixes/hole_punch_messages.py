"""Fault: libp2p's DCUtR dials whatever addresses it is told, and remembers them for later.

It also tries by itself, and leaves through a listening port that it shares silently. Its service is
therefore not used: `circuits/upgrades.py` speaks the protocol, with these messages.

https://github.com/libp2p/specs/blob/master/relay/DCUtR.md
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aimo_node.errors import NetworkError
from aimo_node.mesh.fixes.circuit_messages import packed, read_message, readable, write_message
from aimo_node.mesh.fixes.library import HolePunch
from aimo_node.mesh.fixes.yamux_stream import YamuxStream

HOLE_PUNCH_PROTOCOL: Final = "/libp2p/dcutr"

ADDRESSES_READ_MAX: Final = 32
"""Of those in one message; 4 KiB could hold five hundred."""


async def tell_addresses(stream: YamuxStream, addresses: Sequence[str]) -> None:
    """Say where this node may be met: a CONNECT.

    Raises:
        NetworkError: the stream is gone.
    """
    message = HolePunch(type=HolePunch.CONNECT)
    message.ObsAddrs.extend(packed(addresses))
    await write_message(stream, message)


async def hear_addresses(stream: YamuxStream) -> tuple[str, ...]:
    """Where the peer says it may be met; anything may be in there.

    Raises:
        NetworkError: the stream is gone, or this is no CONNECT.
    """
    message = await read_message(stream, HolePunch)
    if message.type != HolePunch.CONNECT:
        raise NetworkError("expected the peer's addresses")
    return readable(message.ObsAddrs[:ADDRESSES_READ_MAX])


async def give_signal(stream: YamuxStream) -> None:
    """Say that it starts now: a SYNC.

    Raises:
        NetworkError: the stream is gone.
    """
    await write_message(stream, HolePunch(type=HolePunch.SYNC))


async def await_signal(stream: YamuxStream) -> None:
    """Return when the peer says that it starts now.

    Raises:
        NetworkError: the stream is gone, or this is no SYNC.
    """
    message = await read_message(stream, HolePunch)
    if message.type != HolePunch.SYNC:
        raise NetworkError("expected the signal to start")

"""The one stream between two peers that carries a link, without libp2p's detours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import trio

from aimo_node.domain.ids import PeerId
from aimo_node.errors import NetworkError
from aimo_node.mesh.fixes.library import MuxedStreamEOF, MuxedStreamError
from aimo_node.mesh.fixes.tcp_addresses import socket_multiaddr
from aimo_node.mesh.fixes.yamux_stream import YamuxStream

WRITE_BYTES_MAX: Final = 64_000
"""A write of this size still fits into one Yamux frame in one Noise message."""

_WRITES_WITHOUT_YIELDING_MAX: Final = 8
"""A checkpoint costs as much as a small write, so not every write has one."""


class LinkStream:
    """A stream to one peer. One task reads, one task writes.

    Cancelling `read` loses nothing. `write` is not cancelled in the middle: it ends within the
    host's write deadline, at which it closes the connection.
    """

    def __init__(
        self,
        net_stream: Any,  # noqa: ANN401 (libp2p is not typed for us)
        *,
        initiator: bool,
        write_seconds_max: float,
    ) -> None:
        stream: YamuxStream = net_stream.muxed_stream
        self._net_stream = net_stream
        self._stream = stream
        self._write_seconds_max = write_seconds_max
        self._writes_without_yielding = 0
        self.peer = PeerId(stream.muxed_conn.peer_id.to_base58())
        self.initiator = initiator
        self.path: str = stream.muxed_conn.path
        relay = stream.muxed_conn.relay
        self.relay = None if relay is None else PeerId(relay.to_base58())
        self.reason = self._first_reason()
        address = stream.get_remote_address()
        self.remote_address = "" if address is None else str(socket_multiaddr(*address))

    def _first_reason(self) -> str:
        """What is known without having tried other paths."""
        if self.relay is None:
            return "dialled" if self.initiator else "dialled us"
        through = f"through {self.relay}"
        return f"circuit {through}" if self.initiator else f"dialled us {through}"

    async def read(self, max_bytes: int = 65536) -> bytes:
        """At least one and at most `max_bytes` bytes; empty when the peer has finished.

        Raises:
            NetworkError: the stream was reset, or the connection was lost: a killed peer shows
                here at once.
        """
        try:
            return await self._stream.read(max_bytes)
        except MuxedStreamEOF:
            return b""
        except MuxedStreamError as error:
            raise NetworkError(f"the stream to {self.peer} broke off") from error

    async def deliver(self, sink: Callable[[bytes], bool]) -> None:
        """Hand what arrives to `sink`, in whatever task has it, until `sink` returns false or the
        peer has finished. Whoever is cancelled here loses nothing.

        Args:
            sink: must not block. What it raises is raised here.

        Raises:
            NetworkError: the same as for `read`.
        """
        try:
            await self._stream.deliver(sink)
        except MuxedStreamEOF:
            return
        except MuxedStreamError as error:
            raise NetworkError(f"the stream to {self.peer} broke off") from error

    async def write(self, data: bytes) -> None:
        """Send `data`, in order and whole. Mostly returns at once, and not always a checkpoint.

        Args:
            data: at most `WRITE_BYTES_MAX` bytes.

        Raises:
            NetworkError: the stream is gone, or the peer took nothing until the write deadline.
            ValueError: `data` is too long.
        """
        if len(data) > WRITE_BYTES_MAX:
            raise ValueError(f"{len(data)} bytes in one write; at most {WRITE_BYTES_MAX}")
        try:
            if not self._stream.write_nowait(data):
                await self._write_patiently(data)
                return
        except MuxedStreamError as error:
            raise NetworkError(f"the stream to {self.peer} broke off") from error
        self._writes_without_yielding += 1
        if self._writes_without_yielding >= _WRITES_WITHOUT_YIELDING_MAX:
            self._writes_without_yielding = 0
            await trio.lowlevel.checkpoint()

    def write_nowait(self, data: bytes) -> bool:
        """Send `data` whole if that needs no waiting; whether it was sent.

        Raises:
            NetworkError: the stream is gone.
        """
        try:
            return self._stream.write_nowait(data)
        except MuxedStreamError as error:
            raise NetworkError(f"the stream to {self.peer} broke off") from error

    async def _write_patiently(self, data: bytes) -> None:
        deadline = trio.current_time() + self._write_seconds_max
        with trio.CancelScope(deadline=deadline, shield=True) as scope:
            await self._stream.write(data)
        if scope.cancelled_caught:
            self._stream.muxed_conn.close_now()
            raise NetworkError(f"{self.peer} took nothing for {self._write_seconds_max:g} s")

    async def reset(self) -> None:
        """End both directions at once. Never fails, may be repeated."""
        self._stream.reset_now()
        with trio.CancelScope(shield=True):
            await self._net_stream.reset()

    async def close(self) -> None:
        """Finish: what was written still arrives, what the peer still sends is dropped."""
        self._stream.finish(discard=True)
        with trio.CancelScope(shield=True):
            await self._net_stream.close()

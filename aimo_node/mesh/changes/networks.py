"""Notices that this machine has got other addresses or other ways out.

On Linux the kernel says so over a netlink socket; elsewhere, and where that is forbidden, the
addresses are looked at every few seconds.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Final

import trio

from aimo_node.mesh.fixes.tcp_addresses import machine_addresses

SETTLE_SECONDS: Final = 0.5
"""A change comes as a dozen messages; it is over when there was none for so long."""
SETTLE_SECONDS_MAX: Final = 2.0
POLL_SECONDS: Final = 5.0
_FAR_AWAY: Final = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Documentation addresses, which are on the default route everywhere. Nothing is sent there."""

_GROUPS: Final = 0x10 | 0x40 | 0x100 | 0x400
"""Addresses and routes, of IPv4 and IPv6 (RTMGRP_…)."""
_HEADER: Final = struct.Struct("=IHHII")
_DELETED: Final = frozenset({21, 25})
"""RTM_DELADDR, RTM_DELROUTE."""
_READ_BYTES: Final = 65_536

Snapshot = frozenset[str]


def snapshot() -> Snapshot:
    """The machine's addresses, as far as it tells, and those it uses towards the rest of the
    world."""
    found = {f"out {way}" for way in map(_way_out, _FAR_AWAY) if way}
    with contextlib.suppress(OSError):
        found.update(machine_addresses())
    return frozenset(found)


def _way_out(family: socket.AddressFamily) -> str:
    """Which of its addresses the machine would use; a datagram socket connects without a word."""
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((_FAR_AWAY[family], 9))
        return str(probe.getsockname()[0])
    return ""


def message_kinds(data: bytes) -> Iterator[int]:
    """The kinds of the netlink messages in what was read; ends where it is not understood."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind
        offset += (length + 3) & ~3


async def watch_networks(changed: Callable[[], None]) -> None:
    """Call `changed` after each change of networks, until cancelled."""
    kernel = _listen()
    if kernel is None:
        await poll_networks(changed)
        return
    with kernel:
        await _hear(kernel, changed)


def _listen() -> socket.socket | None:
    """A socket on which the kernel tells; None where it does not."""
    if sys.platform != "linux":
        return None
    with contextlib.ExitStack() as stack:
        try:
            kernel = stack.enter_context(
                socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
            )
            kernel.bind((0, _GROUPS))
        except OSError:
            return None  # a sandbox without netlink
        kernel.settimeout(0)
        stack.pop_all()
        return kernel


async def _hear(kernel: socket.socket, changed: Callable[[], None]) -> None:
    before = snapshot()
    while True:
        await trio.lowlevel.wait_readable(kernel.fileno())
        was_lost = _drain(kernel)
        with trio.move_on_after(SETTLE_SECONDS_MAX):
            was_lost |= await _settle(kernel)
        now = snapshot()
        # The same address in another network has been away in between.
        if was_lost or now != before:
            changed()
        before = now


async def _settle(kernel: socket.socket) -> bool:
    was_lost = False
    while True:
        with trio.move_on_after(SETTLE_SECONDS) as quiet:
            await trio.lowlevel.wait_readable(kernel.fileno())
        if quiet.cancelled_caught:
            return was_lost
        was_lost |= _drain(kernel)


def _drain(kernel: socket.socket) -> bool:
    """Read what is there: whether an address or a route was taken away, or the kernel had more to
    say than the socket could hold."""
    was_lost = False
    while True:
        try:
            data = kernel.recv(_READ_BYTES)
        except BlockingIOError:
            return was_lost
        except OSError:
            return True  # ENOBUFS: something was missed
        was_lost |= not _DELETED.isdisjoint(message_kinds(data))


async def poll_networks(
    changed: Callable[[], None], look: Callable[[], Snapshot] = snapshot
) -> None:
    """The same by looking every `POLL_SECONDS`, where nobody tells."""
    before = look()
    while True:
        await trio.sleep(POLL_SECONDS)
        now = look()
        if now != before:
            changed()
        before = now

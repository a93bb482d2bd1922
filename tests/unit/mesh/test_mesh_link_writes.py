"""Frames that a link writes from the task that has them, past its parked writer: what may go wrong
then must go as if the writer had written."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from aimo_node.domain.ids import PeerId
from aimo_node.mesh.fixes import yamux_frames as frames
from aimo_node.mesh.fixes.limits import HostLimits
from aimo_node.mesh.link import Link
from aimo_node.mesh.link_stream import LinkStream
from aimo_node.mesh.observer import IdleObserver
from aimo_node.protocol.events import Event, LinkClosed, PeerDraining, ProbeAnswered
from aimo_node.protocol.frames import Receipt
from aimo_node.protocol.handshake import Admission
from aimo_node.protocol.session import Session
from tests.unit.mesh.yamux_peer import Peer

NEAR, FAR = PeerId("a"), PeerId("peer")
KILOBYTE = b"x" * 1000
PLENTY = 16 * 1024 * 1024


class Wired:
    """A link on our Yamux, on a wire that the test blocks; the far side is a bare session."""

    def __init__(self) -> None:
        self.peer = Peer(HostLimits())
        self.far = Session(Admission(FAR), NEAR, 0.0)
        self.link: Link

    async def start(self, nursery: trio.Nursery) -> None:
        nursery.start_soon(self.peer.connection.start)
        await wait_all_tasks_blocked()
        muxed = await self.peer.open()
        net_stream = SimpleNamespace(muxed_stream=muxed, reset=muxed.reset, close=muxed.close)
        stream = LinkStream(net_stream, initiator=False, write_seconds_max=60.0)
        session = Session(Admission(NEAR), FAR, trio.current_time())
        self.link = Link(stream, session, IdleObserver())
        nursery.start_soon(self.link.run)
        await self.say()
        self.heard()
        assert self.link.usable

    async def say(self) -> None:
        """Send what the far session has to say."""
        await self.peer.send(frames.data(1, self.far.take_output()))

    async def grant(self) -> None:
        """Let the link send as much as it likes."""
        await self.peer.send(frames.window_update(1, PLENTY))

    def heard(self) -> list[Event]:
        """What the far session has understood since the last call."""
        sent = b"".join(body for kind, _, _, _, body in self.peer.received() if kind == frames.DATA)
        return self.far.receive_data(sent, 0.0)

    def announce(self, number: int, body: bytes = b"") -> None:
        self.link.announce(receipt(number, body))

    async def fill(self, block: str) -> int:
        """Announce until the stream takes no more, and some beyond; how many."""
        if block == "socket":
            await self.grant()
            self.peer.wire.blocked = True
        for number in range(600):
            self.announce(number, KILOBYTE)
        return 600

    async def unblock(self) -> None:
        self.peer.wire.unblock()
        await self.grant()
        await wait_all_tasks_blocked()


def receipt(number: int, body: bytes = b"") -> Receipt:
    return Receipt(number.to_bytes(4, "big") + body, b"s" * 64)


def numbers(events: list[Event]) -> list[int]:
    return [int.from_bytes(e.body[:4], "big") for e in events if isinstance(e, Receipt)]


@pytest.fixture
async def wired() -> AsyncIterator[Wired]:
    async with trio.open_nursery() as nursery:
        wired = Wired()
        await wired.start(nursery)
        yield wired
        nursery.cancel_scope.cancel()


BLOCKS = ["socket", "window"]


async def test_a_lone_frame_leaves_before_the_caller_goes_on(wired):
    wired.announce(7)
    assert numbers(wired.heard()) == [7]


async def test_a_frame_is_answered_without_waking_the_link(wired):
    """The Ping is read, answered and written in the one task that reads the connection."""
    wired.far.probe(0.0)
    woken: list[str] = []

    class Watch(trio.abc.Instrument):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            woken.append(task.name)

    trio.lowlevel.add_instrument(watch := Watch())
    await wired.say()
    trio.lowlevel.remove_instrument(watch)
    assert any(isinstance(event, ProbeAnswered) for event in wired.heard())
    assert not [name for name in woken if "mesh.link." in name]


@pytest.mark.parametrize("block", BLOCKS)
async def test_what_does_not_leave_at_once_leaves_whole_and_in_order(wired, block):
    count = await wired.fill(block)
    before = numbers(wired.heard())
    assert len(before) < count
    await wired.unblock()
    wired.announce(count)
    assert before + numbers(wired.heard()) == list(range(count + 1))
    assert wired.link.usable


@pytest.mark.parametrize("block", BLOCKS)
async def test_control_frames_still_overtake_what_waits(wired, block):
    count = await wired.fill(block)
    wired.far.probe(0.0)
    await wired.say()
    await wired.unblock()
    events = wired.heard()
    pong = next(at for at, event in enumerate(events) if isinstance(event, ProbeAnswered))
    assert numbers(events)[-1] == count - 1
    assert pong < len(events) - 1


async def test_a_frame_comes_after_those_that_the_writer_was_woken_for(wired):
    wired.link.drain()  # wakes the writer, which has not had its turn yet
    wired.announce(1)
    assert wired.heard() == []
    await wait_all_tasks_blocked()
    draining, announced, *_ = wired.heard()
    assert isinstance(draining, PeerDraining)
    assert numbers([announced]) == [1]


@pytest.mark.parametrize("block", BLOCKS)
async def test_a_link_that_is_closed_while_it_cannot_write_ends_with_a_whole_frame(wired, block):
    await wired.fill(block)
    wired.link.close()
    wired.announce(9999)
    await wired.unblock()
    events = wired.heard()
    arrived = numbers(events)
    assert arrived == list(range(arrived[0], arrived[0] + len(arrived)))
    assert isinstance(events[-1], LinkClosed)
    assert events[-1].by_peer


async def test_a_caller_that_is_cancelled_has_written_whole_frames(wired):
    with trio.CancelScope() as scope:
        scope.cancel()
        wired.announce(1, KILOBYTE)
        wired.announce(2)
        await trio.lowlevel.checkpoint()
    assert numbers(wired.heard()) == [1, 2]
    assert wired.link.usable


async def test_a_connection_that_is_gone_shows_as_a_lost_link_and_not_at_the_caller(wired):
    wired.peer.connection.close_now()
    wired.announce(1)
    assert wired.link.closed.is_set()
    assert wired.link.is_lost
    await wired.link.ended.wait()
    wired.announce(2)
    assert wired.link.is_lost

"""What a stream hands over at once, in the task that reads the connection."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from aimo_node.mesh.fixes import yamux_frames as frames
from aimo_node.mesh.fixes.library import MuxedStreamEOF, MuxedStreamReset
from aimo_node.mesh.fixes.limits import RECEIVE_WINDOW_BYTES, HostLimits
from aimo_node.mesh.fixes.yamux_stream import YamuxStream
from tests.unit.mesh.yamux_peer import Peer


@pytest.fixture
async def peer(nursery) -> Peer:
    peer = Peer(HostLimits())
    nursery.start_soon(peer.connection.start)
    await wait_all_tasks_blocked()
    return peer


class Taker:
    """Somebody who has things handed over: what came, in which task, and how it ended."""

    def __init__(self, stream: YamuxStream, wants_more: Callable[[bytes], bool]) -> None:
        self.stream = stream
        self.pieces: list[bytes] = []
        self.tasks: set[trio.lowlevel.Task] = set()
        self.own: trio.lowlevel.Task | None = None
        self.scope = trio.CancelScope()
        self.end: BaseException | None = None
        self.over = False
        self._wants_more = wants_more

    def __call__(self, data: bytes) -> bool:
        self.pieces.append(data)
        self.tasks.add(trio.lowlevel.current_task())
        return self._wants_more(data)

    async def run(self) -> None:
        self.own = trio.lowlevel.current_task()
        with self.scope:
            try:
                await self.stream.deliver(self)
            except (MuxedStreamEOF, MuxedStreamReset, RuntimeError) as error:
                self.end = error
            self.over = True


async def taker(
    nursery: trio.Nursery, stream: YamuxStream, wants_more: Callable[[bytes], bool] = lambda _: True
) -> Taker:
    one = Taker(stream, wants_more)
    nursery.start_soon(one.run)
    await wait_all_tasks_blocked()
    return one


async def test_frames_of_one_burst_are_one_piece_and_wake_nobody(peer, nursery):
    taking = await taker(nursery, await peer.open())
    await peer.send(frames.data(1, b"ab"), frames.data(1, b"cd"))
    await peer.send(frames.data(1, b"ef"))
    assert taking.pieces == [b"abcd", b"ef"]
    assert taking.own not in taking.tasks


async def test_what_came_before_is_handed_over_first(peer, nursery):
    stream = await peer.open()
    await peer.send(frames.data(1, b"early"))
    taking = await taker(nursery, stream)
    await peer.send(frames.data(1, b"late"))
    assert taking.pieces == [b"early", b"late"]


async def test_who_wants_no_more_is_released_and_the_rest_can_be_read(peer, nursery):
    taking = await taker(nursery, await peer.open(), lambda data: data != b"stop")
    await peer.send(frames.data(1, b"stop"))
    await peer.send(frames.data(1, b"rest"))
    assert taking.over
    assert taking.end is None
    assert taking.pieces == [b"stop"]
    assert await taking.stream.read() == b"rest"


async def test_bytes_between_the_last_word_and_the_release_are_kept(peer, nursery):
    """Two bursts can be parsed before the task that waited has its turn."""
    stream = await peer.open()
    taking = await taker(nursery, stream, lambda _: False)
    for data in (b"last", b"kept"):
        stream.receive(data)
        stream.hand_over()
    await wait_all_tasks_blocked()
    assert taking.pieces == [b"last"]
    assert await stream.read() == b"kept"


async def test_what_a_sink_raises_ends_its_stream_and_not_the_connection(peer, nursery):
    def fail(_: bytes) -> bool:
        raise RuntimeError("a bug")

    taking = await taker(nursery, await peer.open(1), fail)
    other = await taker(nursery, await peer.open(3))
    await peer.send(frames.data(1, b"x"), frames.data(3, b"y"))
    assert isinstance(taking.end, RuntimeError)
    assert other.pieces == [b"y"]
    assert not peer.connection.is_closed


async def test_whoever_is_cancelled_loses_nothing(peer, nursery):
    stream = await peer.open()
    taking = await taker(nursery, stream)
    taking.scope.cancel()
    stream.receive(b"in the same breath")
    stream.hand_over()
    await wait_all_tasks_blocked()
    assert taking.pieces == []
    assert await stream.read() == b"in the same breath"


@pytest.mark.parametrize(
    ("last_word", "end"),
    [
        (frames.finish(1), MuxedStreamEOF),
        (frames.go_away(frames.GoAwayCode.NORMAL), MuxedStreamReset),
        (b"\xff" * frames.HEADER_BYTES, MuxedStreamReset),
    ],
    ids=["finished", "gone", "violated"],
)
async def test_last_words_are_handed_over_before_the_end_shows(peer, nursery, last_word, end):
    taking = await taker(nursery, await peer.open())
    await peer.send(frames.data(1, b"bye"), last_word)
    assert taking.pieces == [b"bye"]
    assert isinstance(taking.end, end)


async def test_a_sink_may_close_the_connection_it_is_called_from(peer, nursery):
    def hang_up(_: bytes) -> bool:
        peer.connection.close_now()
        return True

    taking = await taker(nursery, await peer.open(1), hang_up)
    other = await taker(nursery, await peer.open(3))
    await peer.send(frames.data(1, b"x"), frames.data(3, b"y"))
    assert isinstance(taking.end, MuxedStreamReset)
    assert other.pieces == [b"y"]
    assert isinstance(other.end, MuxedStreamReset)


async def test_what_is_handed_over_gives_credit_once_per_half_window(peer, nursery):
    await taker(nursery, await peer.open())
    peer.received()
    half = b"x" * (RECEIVE_WINDOW_BYTES // 2)
    await peer.send_raw(b"".join(map(peer.seal, pieces(half[:-1]))))
    assert peer.received() == []
    await peer.send(frames.data(1, half[-1:]))
    assert [kind for kind, *_ in peer.received()] == [frames.WINDOW_UPDATE]


def pieces(data: bytes) -> list[bytes]:
    size = frames.PAYLOAD_BYTES_MAX
    return [frames.data(1, data[at : at + size]) for at in range(0, len(data), size)]


async def test_nobody_else_may_read_meanwhile(peer, nursery):
    taking = await taker(nursery, await peer.open())
    with pytest.raises(trio.BusyResourceError):
        await taking.stream.read()
    with pytest.raises(trio.BusyResourceError):
        await taking.stream.deliver(lambda _: True)
    await peer.send(frames.data(1, b"still"))
    assert taking.pieces == [b"still"]

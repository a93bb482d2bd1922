"""What our Yamux refuses from a peer, and what a stream keeps through everything."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from aimo_node.mesh.fixes import yamux_frames as frames
from aimo_node.mesh.fixes.library import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamError,
    MuxedStreamReset,
)
from aimo_node.mesh.fixes.limits import (
    RECEIVE_WINDOW_BYTES,
    RECEIVE_WINDOW_BYTES_MAX,
    SEND_BUFFER_BYTES_MAX,
    UNREAD_BYTES_MAX,
    HostLimits,
)
from tests.unit.mesh.yamux_peer import Peer


@pytest.fixture
def limits() -> HostLimits:
    return HostLimits(inbound_streams_max=4, write_seconds_max=5.0)


@pytest.fixture
async def peer(limits, nursery):
    peer = Peer(limits)
    nursery.start_soon(peer.connection.start)
    await wait_all_tasks_blocked()
    return peer


def frame(kind: int, flags: int, stream: int, length: int, version: int = 0) -> bytes:
    return frames.HEADER.pack(version, kind, flags, stream, length)


VIOLATIONS = {
    "another version": frame(frames.DATA, 0, 1, 0, version=1),
    "an unknown kind": frame(7, 0, 1, 0),
    "more data than the window": frame(frames.DATA, 0, 1, RECEIVE_WINDOW_BYTES + 1),
    "a frame beyond any window, for nobody": frame(frames.DATA, 0, 9, RECEIVE_WINDOW_BYTES_MAX + 1),
    "a stream of our side": frame(frames.WINDOW_UPDATE, frames.SYN, 2, 0),
    "stream zero": frame(frames.WINDOW_UPDATE, frames.SYN, 0, 0),
    "a stream opened twice": frame(frames.WINDOW_UPDATE, frames.SYN, 1, 0),
    "an impossible window": frame(frames.WINDOW_UPDATE, 0, 1, 0xFFFFFFFF),
}


@pytest.mark.parametrize("name", VIOLATIONS)
async def test_a_violation_ends_the_connection(peer, name):
    stream = await peer.open()
    await peer.send(VIOLATIONS[name])
    assert peer.connection.is_closed
    assert peer.wire.closed
    assert peer.received()[-1][:4] == (frames.GO_AWAY, 0, 0, frames.GoAwayCode.PROTOCOL_ERROR)
    with pytest.raises(MuxedStreamReset):
        await stream.read()
    with pytest.raises(MuxedConnUnavailable):
        await peer.connection.accept_stream()
    with pytest.raises(MuxedStreamError):
        await peer.connection.open_stream()


async def test_a_broken_seal_ends_the_connection(peer):
    await peer.send_raw(b"\x00\x20" + b"x" * 32)
    assert peer.connection.is_closed


async def test_bytes_may_arrive_in_any_pieces(peer):
    stream = await peer.open()
    sealed = peer._sealer.seal(frames.data(1, b"abc") + frames.data(1, b"defg")[:5])
    sealed += peer._sealer.seal(frames.data(1, b"defg")[5:14])
    sealed += peer._sealer.seal(frames.data(1, b"defg")[14:])
    for byte in sealed:
        await peer.send_raw(bytes([byte]))
    assert await stream.read() == b"abcdefg"


async def test_reads_take_no_more_than_asked_for(peer):
    stream = await peer.open()
    await peer.send(frames.data(1, b"abcdef"), frames.data(1, b"ghi"))
    assert await stream.read(4) == b"abcd"
    assert await stream.read(0) == b""
    assert await stream.read(4) == b"ef"
    assert await stream.read(100) == b"ghi"


async def test_what_was_sent_before_the_end_can_still_be_read(peer):
    stream = await peer.open()
    await peer.send(frames.data(1, b"last words"), frames.finish(1))
    assert await stream.read() == b"last words"
    with pytest.raises(MuxedStreamEOF):
        await stream.read()


@pytest.mark.parametrize("end", [frames.go_away(frames.GoAwayCode.NORMAL), b""])
async def test_last_words_outlive_the_connection_they_came_on(peer, end):
    """A peer that finishes and goes away does both in one breath."""
    stream = await peer.open()
    await peer.send(frames.data(1, b"last words"), frames.finish(1), end)
    if not end:
        peer.wire.close()
        await wait_all_tasks_blocked()
    assert peer.connection.is_closed
    assert await stream.read() == b"last words"
    with pytest.raises(MuxedStreamEOF):
        await stream.read()
    with pytest.raises(MuxedStreamReset):
        await stream.write(b"too late")


async def test_an_answer_that_breaks_off_is_read_before_the_loss_shows(peer):
    stream = await peer.open()
    await peer.send(frames.data(1, b"half an ans"), frames.go_away(frames.GoAwayCode.NORMAL))
    assert await stream.read() == b"half an ans"
    with pytest.raises(MuxedStreamReset):
        await stream.read()


async def test_a_reset_is_noticed_by_reader_and_writer(peer):
    stream = await peer.open()
    with pytest.RaisesGroup(MuxedStreamReset):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.read)
            await wait_all_tasks_blocked()
            await peer.send(frames.reset(1))
    with pytest.raises(MuxedStreamReset):
        await stream.write(b"x")


async def test_only_one_task_may_read(peer, nursery):
    stream = await peer.open()
    scope = trio.CancelScope()

    async def read() -> None:
        with scope:
            await stream.read()

    nursery.start_soon(read)
    await wait_all_tasks_blocked()
    with pytest.raises(trio.BusyResourceError):
        await stream.read()
    scope.cancel()
    await wait_all_tasks_blocked()
    await peer.send(frames.data(1, b"for the next"))
    assert await stream.read() == b"for the next"


async def test_streams_beyond_the_limit_are_reset_and_the_others_live(peer, limits):
    streams = [await peer.open(2 * number + 1) for number in range(limits.inbound_streams_max)]
    peer.received()
    await peer.send(frames.window_update(101, 0, frames.SYN), frames.data(101, b"ignored"))
    assert peer.received() == [(frames.WINDOW_UPDATE, frames.RST, 101, 0, b"")]
    await peer.send(frames.data(1, b"alive"))
    assert await streams[0].read() == b"alive"
    await streams[1].reset()
    await peer.open(103)


async def test_unread_bytes_of_all_streams_together_are_limited(nursery):
    peer = Peer(HostLimits(inbound_streams_max=64))
    nursery.start_soon(peer.connection.start)
    block = b"u" * (RECEIVE_WINDOW_BYTES // 8)
    for number in range(UNREAD_BYTES_MAX // RECEIVE_WINDOW_BYTES):
        stream_id = 2 * number + 1
        await peer.open(stream_id)
        for _ in range(8):
            await peer.send(frames.data(stream_id, block))
    assert not peer.connection.is_closed
    await peer.open(999)
    await peer.send(frames.data(999, b"one more"))
    assert peer.connection.is_closed


async def test_each_circuit_may_leave_a_window_unread_beside_the_others(nursery):
    """A relay holds what its ends do not take; that must not end a member's whole connection."""
    peer = Peer(HostLimits(inbound_streams_max=64))
    nursery.start_soon(peer.connection.start)
    peer.connection.allow_unread(RECEIVE_WINDOW_BYTES)
    block = b"u" * (RECEIVE_WINDOW_BYTES // 8)
    for number in range(UNREAD_BYTES_MAX // RECEIVE_WINDOW_BYTES + 1):
        stream_id = 2 * number + 1
        await peer.open(stream_id)
        for _ in range(8):
            await peer.send(frames.data(stream_id, block))
    assert not peer.connection.is_closed
    await peer.open(999)
    await peer.send(frames.data(999, b"one more"))
    assert peer.connection.is_closed


async def test_a_window_that_is_kept_never_grows(peer):
    stream = await peer.open()
    stream.keep_window()
    credit = RECEIVE_WINDOW_BYTES
    for _ in range(50):
        size = min(credit, 60_000)
        await peer.send(frames.data(1, b"e" * size))
        credit -= size
        await stream.read()
        credit += sum(one[3] for one in peer.received() if one[0] == frames.WINDOW_UPDATE)
        assert 0 < credit <= RECEIVE_WINDOW_BYTES


async def test_what_is_written_in_part_waits_for_credit_and_loses_nothing(peer, nursery):
    """A circuit hands its bytes to a stream as if that were a socket."""
    stream = await peer.open()
    data = bytes(range(256)) * 1200
    taken = 0
    while sent := stream.write_some_nowait(data[taken:]):
        taken += sent
    assert taken == RECEIVE_WINDOW_BYTES
    done = []

    async def write() -> None:
        done.append(await stream.write_some(data[taken:]))

    nursery.start_soon(write)
    await wait_all_tasks_blocked()
    assert not done
    await peer.send(frames.window_update(1, 1000))
    assert done == [1000]
    written = b"".join(one[4] for one in peer.received() if one[0] == frames.DATA)
    assert written == data[: taken + 1000]
    await peer.send(frames.reset(1))
    with pytest.raises(MuxedStreamReset):
        await stream.write_some(b"x")


async def test_reading_gives_credit_once_per_half_window(peer):
    """libp2p sends an update for nearly every read."""
    stream = await peer.open()
    peer.received()
    updates = 0
    for _ in range(100):
        await peer.send(frames.data(1, b"r" * 10_000))
        await stream.read()
        updates += len(peer.received())
    assert 1 <= updates <= 3
    assert not peer.connection.is_closed


async def test_an_endless_stream_that_is_read_never_lacks_credit(peer):
    stream = await peer.open()
    credit = RECEIVE_WINDOW_BYTES
    for _ in range(500):
        size = min(credit, 60_000)
        await peer.send(frames.data(1, b"e" * size))
        credit -= size
        await stream.read()
        credit += sum(one[3] for one in peer.received() if one[0] == frames.WINDOW_UPDATE)
        assert 0 < credit <= RECEIVE_WINDOW_BYTES_MAX
    assert not peer.connection.is_closed


async def test_a_ping_is_answered(peer):
    await peer.send(frame(frames.PING, frames.SYN, 0, 4711))
    assert peer.received() == [(frames.PING, frames.ACK, 0, 4711, b"")]


async def test_pings_of_a_peer_that_does_not_read_end_the_connection(peer, autojump_clock):
    peer.wire.blocked = True
    for _ in range(3):
        await peer.send(*[frame(frames.PING, frames.SYN, 0, number) for number in range(90)])
        await trio.sleep(1)
    assert peer.connection.is_closed


async def test_many_pings_of_a_peer_that_reads_are_fine(peer, autojump_clock):
    for _ in range(5):
        await peer.send(*[frame(frames.PING, frames.SYN, 0, number) for number in range(100)])
        await trio.sleep(1)
    assert len(peer.received()) == 500
    assert not peer.connection.is_closed


@pytest.mark.parametrize(
    ("packet", "count"),
    [
        (frame(frames.PING, frames.SYN, 0, 1), 101),
        (frame(frames.PING, frames.ACK, 0, 1), 101),
        (frame(frames.WINDOW_UPDATE, 0, 1, 1), 50_000),
        (frame(frames.DATA, 0, 1, 0), 50_000),
        (frame(frames.WINDOW_UPDATE, 0, 77, 1), 50_000),
    ],
)
async def test_frames_that_only_make_work_end_the_connection(peer, packet, count):
    await peer.open()
    for _ in range((count - 1) // 1000):
        await peer.send(packet * 1000)
    assert not peer.connection.is_closed
    await peer.send(packet * min(count, 1000))
    assert peer.connection.is_closed


async def test_streams_opened_and_reset_at_once_end_the_connection(peer):
    """Limiting how many are open would not stop this."""
    for number in range(100):
        await peer.send(
            frames.window_update(2 * number + 1, 0, frames.SYN), frames.reset(2 * number + 1)
        )
    assert not peer.connection.is_closed
    await peer.send(frames.window_update(1001, 0, frames.SYN))
    assert peer.connection.is_closed


async def test_a_goodbye_ends_the_connection(peer):
    stream = await peer.open()
    await peer.send(frames.go_away(frames.GoAwayCode.NORMAL))
    assert peer.connection.is_closed
    with pytest.raises(MuxedStreamReset):
        await stream.read()


async def test_closing_says_goodbye_after_everything_written(peer):
    stream = await peer.open()
    peer.received()
    peer.wire.blocked = True
    await stream.write(b"before")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.connection.close)
        await wait_all_tasks_blocked()
        peer.wire.unblock()
    kinds = [(one[0], one[4]) for one in peer.received()]
    assert kinds == [(frames.DATA, b"before"), (frames.GO_AWAY, b"")]


async def test_a_write_waits_for_credit_and_goes_on_when_it_comes(peer, nursery):
    stream = await peer.open()
    peer.received()
    data = bytes(range(256)) * 1200
    nursery.start_soon(stream.write, data)
    await wait_all_tasks_blocked()
    first = b"".join(one[4] for one in peer.received())
    assert len(first) == RECEIVE_WINDOW_BYTES
    await peer.send(frames.window_update(1, 100_000))
    assert first + b"".join(one[4] for one in peer.received()) == data


async def test_writers_wait_while_the_peer_takes_nothing_and_nothing_is_lost(peer, nursery):
    streams = [await peer.open(2 * number + 1) for number in range(4)]
    peer.received()
    peer.wire.blocked = True
    written = []

    async def write(number: int) -> None:
        for _ in range(4):
            await streams[number].write(bytes([number]) * 60_000)
            written.append(number)

    for number in range(4):
        nursery.start_soon(write, number)
    await wait_all_tasks_blocked()
    assert len(written) * 60_000 <= SEND_BUFFER_BYTES_MAX + 2 * 60_000
    peer.wire.unblock()
    await wait_all_tasks_blocked()
    bodies = [one[4] for one in peer.received() if one[0] == frames.DATA]
    assert sum(map(len, bodies)) == 16 * 60_000
    assert not peer.connection.is_closed


async def test_small_frames_that_had_to_wait_leave_together(peer):
    stream = await peer.open()
    peer.received()
    peer.wire.blocked = True
    for _ in range(100):
        await stream.write(b"small")
    peer.wire.unblock()
    await wait_all_tasks_blocked()
    opened = peer._opener.open(bytes(peer.wire.sent))
    assert len(opened) == 2
    assert b"".join(opened).count(b"small") == 100


async def test_a_peer_that_takes_nothing_at_all_loses_the_connection(peer, autojump_clock):
    stream = await peer.open()
    peer.wire.blocked = True
    await stream.write(b"x")
    await trio.sleep(6)
    assert peer.connection.is_closed


async def test_a_finished_stream_takes_no_more_writes(peer):
    stream = await peer.open()
    await stream.close()
    with pytest.raises(MuxedStreamClosed):
        await stream.write(b"x")


async def test_what_nobody_will_read_is_dropped_and_counts_no_more(peer, autojump_clock):
    """Else a few impolite peers would add up to the limit of unread bytes."""
    for number in range(100):
        stream_id = 2 * number + 1
        stream = await peer.open(stream_id)
        await trio.sleep(0.1)
        for _ in range(4):
            await peer.send(frames.data(stream_id, b"d" * 60_000))
        stream.finish(discard=number % 2 == 0)
        await peer.send(frames.finish(stream_id))
    assert not peer.connection.is_closed


async def test_a_stream_we_open_is_announced_and_carries_data(peer):
    stream = await peer.connection.open_stream()
    await stream.write(b"hello")
    assert peer.received() == [
        (frames.WINDOW_UPDATE, frames.SYN, 2, 0, b""),
        (frames.DATA, 0, 2, 5, b"hello"),
    ]
    await peer.send(frames.window_update(2, 0, frames.ACK), frames.data(2, b"there"))
    assert await stream.read() == b"there"

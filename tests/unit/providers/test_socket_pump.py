"""Many answers' sockets read by one task: nothing mixed, lost, leaked or held up by a neighbour."""

import random
import socket
import tempfile
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import trio
import trio.testing

from aimo_node.errors import EngineFailed
from aimo_node.testing.engine_contract import eventually
from aimo_node.testing.recording_sink import RecordingSink
from aimo_node.testing.upstream_scripts import DONE, chunk, text
from providers.http import unix_client
from providers.http.socket_pump import (
    GATHER_SECONDS,
    RECEIVE_BYTES,
    STREAMS_MANY,
    TURN_BYTES,
    SocketPump,
    socket_pump,
)
from providers.http.unix_client import UnixUpstream
from providers.http.upstream import Unreachable
from providers.openai.dialect import ask

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
SECONDS = 10


@pytest.fixture
def pair():
    """Makes connected sockets; the near one does not block."""
    with ExitStack() as stack:

        def make():
            near, far = (stack.enter_context(one) for one in socket.socketpair())
            near.setblocking(False)
            return near, far

        yield make


@pytest.fixture
def path():
    with tempfile.TemporaryDirectory(prefix="aimo") as folder:
        yield Path(folder) / "engine.sock"


async def read_until_closed(pump, near, into):
    """Everything until the peer closes."""

    def take(received):
        into.append(received)
        return bool(received)

    await pump.pour(near, take)


def in_chunks(*events):
    return b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in events)


@asynccontextmanager
async def listening(path, serve):
    """An engine; `serve` answers one connection, whose request has been read."""

    async def handle(stream):
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with stream:
                request = b""
                while b'"stream"' not in request:
                    received = await stream.receive_some()
                    if not received:
                        return
                    request += received
                await serve(stream)

    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(path))
    listener.listen(64)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, [trio.SocketListener(listener)])
        yield
        nursery.cancel_scope.cancel()


async def test_streams_cut_anywhere_do_not_mix(pair):
    chance = random.Random(3)
    wanted = {index: b"%d " % index * 500 for index in range(50)}
    pairs = {index: pair() for index in wanted}
    found = {index: [] for index in wanted}
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            for index, (near, _) in pairs.items():
                nursery.start_soon(read_until_closed, socket_pump(), near, found[index])
            left = dict(wanted)
            while left:
                index = chance.choice(list(left))
                size = chance.randint(1, 300)
                pairs[index][1].send(left[index][:size])
                left[index] = left[index][size:]
                if not left[index]:
                    del left[index]
                    pairs[index][1].close()
                await trio.lowlevel.checkpoint()
    assert {index: b"".join(pieces) for index, pieces in found.items()} == wanted


async def test_who_wants_no_more_leaves_the_rest_in_the_socket_and_stops_nobody_else(pair):
    (near, far), (other, other_far) = pair(), pair()
    found, seen = [], []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_until_closed, socket_pump(), other, found)
        far.send(b"one")
        with trio.fail_after(SECONDS):
            await socket_pump().pour(near, lambda received: bool(seen.append(received)))
        far.send(b"two")
        other_far.send(b"goes on")
        await trio.testing.wait_all_tasks_blocked()
        assert (seen, found) == ([b"one"], [b"goes on"])
        far.close()
        with trio.fail_after(SECONDS):
            await read_until_closed(socket_pump(), near, seen)
        nursery.cancel_scope.cancel()
    assert seen == [b"one", b"two", b""]


async def test_error_in_a_callback_ends_its_own_stream_only(pair):
    (near, far), (other, other_far) = pair(), pair()
    found = []

    def take(received):
        raise ValueError(received)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_until_closed, socket_pump(), other, found)
        far.send(b"bad")
        with trio.fail_after(SECONDS), pytest.raises(ValueError, match="bad"):
            await socket_pump().pour(near, take)
        other_far.send(b"good")
        other_far.close()
    assert b"".join(found) == b"good"


async def test_lost_connection_is_an_error_of_its_own_stream(pair):
    near, far = pair()
    near.send(b"never read")
    far.close()
    with trio.fail_after(SECONDS), pytest.raises(ConnectionResetError):
        await socket_pump().pour(near, bool)


async def test_cancelled_in_the_middle_of_a_turn_nothing_more_is_taken(pair):
    """The turn pauses after so many bytes; who is cancelled in the pause must be passed over."""
    scope, taken = trio.CancelScope(), []
    pump = SocketPump()
    flood, last = [pair(), pair()], pair()

    def flooding(received):
        scope.cancel()
        return True

    async def cancelled():
        with scope:
            await pump.pour(last[0], lambda received: bool(taken.append(received)) or True)

    async with trio.open_nursery() as engine:
        async with trio.open_nursery() as nursery:
            for near, far in flood:
                nursery.start_soon(pump.pour, near, flooding)
                far.send(b"x" * TURN_BYTES)
            nursery.start_soon(cancelled)
            await trio.testing.wait_all_tasks_blocked()
            last[1].send(b"too late")
            engine.start_soon(pump.run)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert scope.cancelled_caught
            assert taken == []
            assert last[0].recv(100) == b"too late"
            nursery.cancel_scope.cancel()
        engine.cancel_scope.cancel()


async def test_number_of_a_closed_socket_can_be_used_again(pair):
    near, _ = pair()
    number, old, new = near.fileno(), [], []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_until_closed, socket_pump(), near, old)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    near.close()
    again, again_far = pair()
    assert number in {again.fileno(), again_far.fileno()}  # the lowest free one
    for one, other in ((again, again_far), (again_far, again)):
        one.setblocking(False)
        other.send(b"new")
        other.shutdown(socket.SHUT_WR)
        with trio.fail_after(SECONDS):
            await read_until_closed(socket_pump(), one, new)
    assert (old, b"".join(new)) == ([], b"newnew")


async def test_flood_lets_other_tasks_run(pair):
    turns, seen = 0, []

    async def count():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    def take(received):
        seen.append((turns, len(received)))
        return True

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            near, far = pair()
            far.setblocking(False)
            far.send(b"x" * 2 * RECEIVE_BYTES)
            nursery.start_soon(socket_pump().pour, near, take)
        nursery.start_soon(count)
        with trio.fail_after(SECONDS):
            while sum(size for _, size in seen) < 8 * RECEIVE_BYTES:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    # Between two turns of the counter the pump has at most two, since trio shuffles tasks.
    for turn in {turn for turn, _ in seen}:
        assert sum(size for at, size in seen if at == turn) <= 2 * (TURN_BYTES + RECEIVE_BYTES)


async def test_lone_token_never_waits_and_quick_ones_gather(pair, mock_clock):
    """The clock stands still unless moved, so that whatever waits, waits for ever."""
    near, far = pair()
    seen = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_until_closed, socket_pump(), near, seen)
        for token in (b"1", b"2", b"3"):
            mock_clock.jump(1)
            far.send(token)
            await trio.testing.wait_all_tasks_blocked()
        assert seen == [b"1", b"2", b"3"]
        far.send(b"4")
        await trio.testing.wait_all_tasks_blocked()
        assert seen[3:] == [b"4"]
        far.send(b"5")
        await trio.testing.wait_all_tasks_blocked()
        far.send(b"6")
        await trio.testing.wait_all_tasks_blocked()
        assert seen[4:] == []
        mock_clock.jump(GATHER_SECONDS)
        await trio.testing.wait_all_tasks_blocked()
        assert seen[4:] == [b"56"]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("streams", "longer"), [(STREAMS_MANY - 1, 1), (STREAMS_MANY, 2)])
async def test_tokens_of_many_slow_streams_gather_longer(pair, mock_clock, streams, longer):
    pairs, seen = [pair() for _ in range(streams)], []
    async with trio.open_nursery() as nursery:
        for near, _ in pairs:
            nursery.start_soon(read_until_closed, socket_pump(), near, seen)
        for token in (b"1", b"2", b"3"):
            pairs[0][1].send(token)
            await trio.testing.wait_all_tasks_blocked()
        assert seen == [b"1", b"2"]
        mock_clock.jump(longer * GATHER_SECONDS * 0.99)
        await trio.testing.wait_all_tasks_blocked()
        assert seen == [b"1", b"2"]
        mock_clock.jump(GATHER_SECONDS * 0.02)
        await trio.testing.wait_all_tasks_blocked()
        assert seen == [b"1", b"2", b"3"]
        nursery.cancel_scope.cancel()


async def test_pump_that_is_cancelled_while_tokens_gather_stops(pair):
    near, far = pair()
    pump, enough = SocketPump(), trio.Event()
    seen = 0

    def take(received):
        nonlocal seen
        seen += 1
        far.send(b"more")
        if seen == 10:
            enough.set()
        return seen < 1000

    async def reading():
        with suppress(KeyError):  # the pump's selector is gone
            await pump.pour(near, take)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reading)
        async with trio.open_nursery() as engine:
            engine.start_soon(pump.run)
            far.send(b"go")
            with trio.fail_after(SECONDS):
                await enough.wait()
            engine.cancel_scope.cancel()
        assert seen < 20
        nursery.cancel_scope.cancel()


async def test_first_token_of_an_answer_does_not_wait_for_those_of_others(pair, path, mock_clock):
    near, far = pair()
    sink, flowing = RecordingSink(), trio.Event()

    async def serve(stream):
        await stream.send_all(HEAD)
        await flowing.wait()
        await stream.send_all(in_chunks(text("first")))
        await trio.sleep_forever()

    async with listening(path, serve), trio.open_nursery() as nursery:
        nursery.start_soon(ask, UnixUpstream(path), "/v1/x", {"stream": True}, sink)
        nursery.start_soon(read_until_closed, socket_pump(), near, [])
        for _ in range(2):
            far.send(b"quick")
            await trio.testing.wait_all_tasks_blocked()
        flowing.set()
        await trio.testing.wait_all_tasks_blocked()
        assert sink.written == "first"
        nursery.cancel_scope.cancel()


async def test_slow_consumer_holds_back_its_own_answer_only(path):
    slow, fast = RecordingSink(), RecordingSink()
    more = [trio.Event(), trio.Event()]
    served = iter(more)

    async def serve(stream):
        wanted = next(served)
        await stream.send_all(HEAD + in_chunks(text("a")))
        await wanted.wait()
        await stream.send_all(in_chunks(text("b")))
        await trio.testing.wait_all_tasks_blocked()
        await stream.send_all(in_chunks(text("c"), chunk({}, "stop"), DONE, b""))

    async with listening(path, serve), trio.open_nursery() as nursery:
        for sink in (slow, fast):
            nursery.start_soon(ask, UnixUpstream(path), "/v1/x", {"stream": True}, sink)
            with trio.fail_after(SECONDS):
                await sink.first.wait()
        await trio.testing.wait_all_tasks_blocked()
        slow.stall()
        for event in more:
            event.set()
        await eventually(lambda: fast.end is not None, "the fast one is through")
        assert (slow.written, fast.written) == ("ab", "abc")
        slow.flow()
    assert slow.written == "abc"
    assert slow.end is not None


@pytest.mark.parametrize("cut", range(1, 60, 7))
async def test_engine_that_breaks_off_is_a_failure(path, cut):
    async def serve(stream):
        await stream.send_all(HEAD + in_chunks(text("a")))
        await stream.send_all(in_chunks(text("b"))[:cut])

    async with listening(path, serve):
        sink = RecordingSink()
        with trio.fail_after(SECONDS), pytest.raises(EngineFailed, match="in the middle"):
            await ask(UnixUpstream(path), "/v1/x", {"stream": True}, sink)
        assert sink.written == "a"


async def test_two_hundred_answers_cancelled_anywhere_leave_no_descriptor(path):
    """Before the head, before the first token, in mid-stream, and at a congested sink."""
    sinks = [RecordingSink() for _ in range(200)]

    def written():
        return sum(len(sink.written) for sink in sinks)

    async def serve(stream):
        parts = [HEAD, in_chunks(text("a")), in_chunks(text("b"), text("c"))]
        await stream.send_all(b"".join(parts[: next(numbers) % 4]))
        assert await stream.receive_some() == b""

    numbers = iter(range(200))
    socket_pump()  # its own selector lives as long as the run
    process = psutil.Process()
    async with listening(path, serve):
        before = process.num_fds()
        async with trio.open_nursery() as nursery:
            for number, sink in enumerate(sinks):
                if number % 5 == 0:
                    sink.stall()
                nursery.start_soon(ask, UnixUpstream(path), "/v1/x", {"stream": True}, sink)
            await eventually(lambda: written() >= 100, "every state is reached")
            nursery.cancel_scope.cancel()
        await eventually(lambda: process.num_fds() == before, "both ends of each are closed")


@contextmanager
def full_queue(path):
    """A listener that accepts nothing, and whose queue has no room."""
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as stack:
        listener.bind(str(path))
        listener.listen(0)
        with suppress(BlockingIOError):
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(str(path))
        yield listener


async def test_full_queue_of_an_engine_is_waited_for(path):
    async def accept(listener):
        while True:
            await trio.lowlevel.wait_readable(listener)
            connection, _ = listener.accept()
            with connection:
                connection.setblocking(False)
                with suppress(BlockingIOError):
                    connection.recv(1000)
                    connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")

    with full_queue(path) as listener:
        async with trio.open_nursery() as nursery:
            replied = trio.Event()

            async def request():
                with suppress(EngineFailed):
                    async with UnixUpstream(path).request("GET", "/") as reply:
                        assert await reply.receive() == b"hi"
                replied.set()

            nursery.start_soon(request)
            await trio.testing.wait_all_tasks_blocked()
            assert not replied.is_set()
            nursery.start_soon(accept, listener)
            with trio.fail_after(SECONDS):
                await replied.wait()
            nursery.cancel_scope.cancel()


async def test_queue_that_stays_full_is_unreachable(path, monkeypatch):
    monkeypatch.setattr(unix_client, "CONNECT_SECONDS", 0.02)
    refused = pytest.raises(Unreachable, match="accepts no connections")
    with full_queue(path), trio.fail_after(SECONDS), refused:
        async with UnixUpstream(path).request("GET", "/"):
            pass

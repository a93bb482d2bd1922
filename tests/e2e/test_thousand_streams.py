"""A thousand consumers at a time through one edge and one provider."""

import resource

import pytest
import trio

from tests.e2e.http_client import CHAT_PATH, Stream, chat, connect, echo_text, metric

pytestmark = pytest.mark.alone

STREAMS = 1000
TOKENS = 40
DELAY_MS = 150
"""Slow enough that the first is still running when the last begins."""
ALL_SECONDS = 60.0
"""Six of them are the engine's own pace; the rest is for a busy machine."""
CONNECTING_MAX = 100
"""A listener's backlog is no part of what is tested."""


async def test_thousand_concurrent_streams_complete_in_order(shared):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert limits[0] > STREAMS + 100, "this process cannot open so many sockets"
    streams: dict[int, Stream] = {}
    connecting = trio.CapacityLimiter(CONNECTING_MAX)
    most_running = 0.0

    async def consume(number: int) -> None:
        body = chat("echo", f"consumer {number} asks", max_tokens=TOKENS, delay_ms=DELAY_MS)
        await connecting.acquire_on_behalf_of(number)
        async with connect(shared.port) as connection:
            await connection.send("POST", CHAT_PATH, body)
            connecting.release_on_behalf_of(number)
            await connection.read_head()
            streams[number] = stream = Stream(connection)
            await stream.read_to_the_end()

    async def watch() -> None:
        nonlocal most_running
        while most_running < STREAMS:
            running = await metric(shared.provider.port, "aimo_requests_running", role="provider")
            most_running = max(most_running, running)
            await trio.sleep(0.05)

    with trio.fail_after(ALL_SECONDS):
        async with trio.open_nursery() as watching:
            watching.start_soon(watch)
            async with trio.open_nursery() as nursery:
                for number in range(STREAMS):
                    nursery.start_soon(consume, number)
            watching.cancel_scope.cancel()
    wrong = {
        number: (stream.text, stream.errors)
        for number, stream in streams.items()
        if stream.text != echo_text(f"consumer {number} asks", TOKENS)
        or not stream.is_done
        or stream.errors
        or stream.finish_reason != "length"
    }
    assert wrong == {}
    assert len(streams) == STREAMS
    assert most_running == STREAMS, "they did not run at the same time"
    for node, role in ((shared.edge, "edge"), (shared.provider, "provider")):
        assert await metric(node.port, "aimo_requests_running", role=role) == 0

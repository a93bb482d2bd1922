"""The consumer leaves, and generation stops: through edge, link and provider to the engine."""

import json
import statistics

import pytest
import trio

from tests.e2e.http_client import (
    CHAT_PATH,
    chat,
    connect,
    echo_text,
    metric,
    open_stream,
    stream_chat,
)
from tests.e2e.mesh import until_known
from tests.e2e.node_process import NodeProcess, eventually
from tests.e2e.upstream import MODEL, open_upstream

pytestmark = pytest.mark.alone

STOP_SECONDS = 1.0
SOCKET_SECONDS = 0.05
"""What the project promises from the consumer's leaving to the engine's closed socket."""
TRIES = 9


async def is_running(node: NodeProcess, role: str, count: int) -> bool:
    return await metric(node.port, "aimo_requests_running", role=role) == count


async def until_running(shared, count: int, seconds: float = 5.0) -> None:
    for node, role in ((shared.provider, "provider"), (shared.edge, "edge")):
        await eventually(
            lambda node=node, role=role: is_running(node, role, count),
            seconds,
            f"not {count} requests run at the {role}",
            node,
        )


async def test_consumer_that_leaves_in_mid_stream_stops_generation(shared):
    body = chat("echo", max_tokens=10_000, delay_ms=20)
    async with open_stream(shared.port, body) as stream:
        await stream.read_until_text(3)
        await until_running(shared, 1)
    await until_running(shared, 0, STOP_SECONDS)


async def test_consumer_that_leaves_before_the_first_token_stops_generation(shared):
    async with connect(shared.port) as connection:
        await connection.send("POST", CHAT_PATH, chat("echo", max_tokens=10, delay_ms=60_000))
        await until_running(shared, 1)
    await until_running(shared, 0, STOP_SECONDS)


async def test_consumer_that_leaves_a_whole_answer_stops_generation(shared):
    async with connect(shared.port) as connection:
        body = chat("echo", max_tokens=1000, delay_ms=60) | {"stream": False}
        await connection.send("POST", CHAT_PATH, body)
        await until_running(shared, 1)
    await until_running(shared, 0, STOP_SECONDS)


async def test_hundred_consumers_that_leave_together_leave_nothing_running(shared):
    bodies = chat("echo", max_tokens=10_000, delay_ms=20)

    async def consume(leave: trio.Event) -> None:
        async with open_stream(shared.port, bodies) as stream:
            await stream.read_until_text()
            await leave.wait()

    leave = trio.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(consume, leave)
        await until_running(shared, 100, 20)
        leave.set()
    await until_running(shared, 0, STOP_SECONDS)
    assert (await stream_chat(shared.port, "echo", max_tokens=3)).is_done


async def test_slow_consumer_holds_back_its_own_stream_only(shared):
    """It stops reading; credit holds the engine back, others go on, and leaving still works."""
    async with open_stream(shared.port, chat("echo", max_tokens=100_000)) as stalled:
        await stalled.read_until_text()
        others = [await stream_chat(shared.port, "echo", max_tokens=500) for _ in range(3)]
        assert all(other.is_done for other in others)
        await until_held_back(shared.provider)
        await until_running(shared, 1)
    await until_running(shared, 0, STOP_SECONDS)


async def test_slow_consumer_that_comes_back_gets_everything(shared):
    """Stalled until every buffer on the way is full, then read to the end: nothing is lost."""
    tokens = 60_000
    async with open_stream(shared.port, chat("echo", max_tokens=tokens)) as stream:
        await stream.read_until_text()
        await until_held_back(shared.provider)
        with trio.fail_after(30):
            text = "".join([piece async for piece in stream.read_rest()])
    assert text == echo_text("Hi", tokens)
    assert stream.is_done


async def until_held_back(provider: NodeProcess) -> None:
    """Wait until the provider sends nothing but pings any more."""
    sent = [0.0]

    async def is_still() -> bool:
        await trio.sleep(0.1)
        sent.append(await metric(provider.port, "aimo_link_bytes_total", direction="sent"))
        return sent[-1] - sent[-2] < 500

    await eventually(is_still, 10, "the engine runs on although nobody reads", provider)


async def test_engines_socket_is_closed_when_the_consumer_leaves(shared, guests):
    """What costs money is the generation upstream: it sees the connection close at once."""
    async with open_upstream() as upstream:
        url = f"http://127.0.0.1:{upstream.port}/v1"
        provider = guests.provider(MODEL, "--endpoint", url, engine="openai", name="upstream")
        await until_known(shared.edge, provider)
        delays = []
        for number in range(1, TRIES + 1):
            async with open_stream(shared.port, chat(MODEL)) as stream:
                await stream.read_until_text(3)
                assert upstream.answering == 1
                left_at = trio.current_time()
            with trio.fail_after(STOP_SECONDS):
                delays.append(await upstream.wait_hung_up(number) - left_at)
        assert upstream.answering == 0
    assert statistics.median(delays) <= SOCKET_SECONDS, json.dumps(delays)

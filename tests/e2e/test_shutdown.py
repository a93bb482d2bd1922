"""SIGTERM, Ctrl-C and worse: running answers are finished, new ones refused, nothing is left."""

import signal

import pytest
import trio

from tests.e2e.http_client import (
    CHAT_PATH,
    ask,
    chat,
    connect,
    echo_text,
    metric,
    open_stream,
    stream_chat,
)
from tests.e2e.mesh import until_known, until_unknown
from tests.e2e.node_process import NodeProcess, eventually

STEADY = ("--engine-args", "--tokens 10000 --delay-ms 20")
PROMPT_EXIT_SECONDS = 3.0
"""Without anything to wait for; links and door close within a second or two."""


async def own_edge(shared, guests, *flags: str) -> NodeProcess:
    """An edge of the test's own that knows the shared provider."""
    edge = await guests.edge(*flags).ready()
    await until_known(edge, shared.provider)
    return edge


async def test_edge_that_drains_finishes_streams_and_refuses_new_requests(shared, guests):
    edge = await own_edge(shared, guests, "--grace", "20")
    body = chat("echo", max_tokens=100, delay_ms=20)
    async with open_stream(edge.port, body) as stream, connect(edge.port) as waiting:
        await stream.read_until_text()
        edge.signal(signal.SIGTERM)
        await eventually(lambda: is_unready(edge), 3, "the edge does not say it is going", edge)
        refused = await ask(edge.port, "POST", CHAT_PATH, chat("echo"))
        assert (refused.status, refused.error["code"]) == (503, "draining")
        assert int(refused.headers["retry-after"]) >= 1
        await waiting.send("POST", CHAT_PATH, chat("echo"))
        await waiting.read_head()
        assert waiting.status == 503, "also on a connection that was there before"
        await stream.read_to_the_end()
    assert (stream.text, stream.is_done) == (echo_text("Hi", 100), True)
    assert await edge.exit_code(PROMPT_EXIT_SECONDS) == 0


async def is_unready(edge: NodeProcess) -> bool:
    return (await ask(edge.port, "GET", "/readyz")).status == 503


async def test_stream_that_outlasts_the_grace_period_ends_with_an_error(shared, guests):
    edge = await own_edge(shared, guests, "--grace", "1")
    async with open_stream(edge.port, chat("echo", max_tokens=10_000, delay_ms=20)) as stream:
        await stream.read_until_text()
        edge.signal(signal.SIGTERM)
        with trio.fail_after(1 + PROMPT_EXIT_SECONDS):
            await stream.read_to_the_end()
    assert [error["code"] for error in stream.errors] == ["draining"]
    assert not stream.is_done
    assert await edge.exit_code(PROMPT_EXIT_SECONDS) == 0
    await until_idle(shared.provider)


async def until_idle(provider: NodeProcess) -> None:
    async def is_idle() -> bool:
        return not await metric(provider.port, "aimo_requests_running", role="provider")

    await eventually(is_idle, 2, "requests of an edge that has gone still run", provider)


async def test_reader_that_stalls_is_cut_when_the_grace_is_over(shared, guests):
    edge = await own_edge(shared, guests, "--grace", "1")
    async with open_stream(edge.port, chat("echo", max_tokens=100_000)) as stalled:
        await stalled.read_until_text()
        edge.signal(signal.SIGTERM)
        assert await edge.exit_code(1 + PROMPT_EXIT_SECONDS + 1) == 0
    await until_idle(shared.provider)


async def test_provider_that_drains_finishes_and_is_not_asked_again(shared, guests):
    leaving, staying = (
        guests.provider("relief", "--grace", "20", name=f"relief-{end}") for end in "ab"
    )
    await until_known(shared.edge, leaving, staying)
    body = chat(f"{leaving.peer_id}:relief", max_tokens=100, delay_ms=20)
    async with open_stream(shared.port, body) as stream:
        await stream.read_until_text()
        leaving.signal(signal.SIGTERM)
        await until_unknown(shared.edge, leaving.peer_id, seconds=3)
        for _ in range(4):
            answer = await stream_chat(shared.port, "relief", max_tokens=2)
            assert (answer.provider, answer.is_done) == (staying.peer_id, True)
            assert answer.headers["x-aimo-attempts"] == "1"
        pinned = await ask(shared.port, "POST", CHAT_PATH, body)
        assert pinned.status in {404, 503}, "nobody else may answer"
        await stream.read_to_the_end()
    assert (stream.text, stream.is_done) == (echo_text("Hi", 100), True)
    assert await leaving.exit_code(PROMPT_EXIT_SECONDS) == 0


async def test_provider_that_drains_sends_what_a_slow_consumer_has_not_taken_yet(shared, guests):
    """The engine is done before the last bytes have left: that must not be the end of the link."""
    provider = guests.provider("slow", "--grace", "20")
    await until_known(shared.edge, provider)
    tokens = 100_000
    async with open_stream(shared.port, chat("slow", max_tokens=tokens)) as stream:
        await stream.read_until_text()
        provider.signal(signal.SIGTERM)
        await until_unknown(shared.edge, provider.peer_id, seconds=3)
        text = "".join([piece async for piece in stream.read_rest()])
    assert text == echo_text("Hi", tokens)
    assert stream.is_done
    assert await provider.exit_code(PROMPT_EXIT_SECONDS) == 0


async def test_provider_that_drains_sends_a_large_answer_whole(shared, guests):
    """It travels in pieces under credit, long after the engine has returned it at once."""
    provider = guests.provider("whole", "--grace", "20", "--http", "127.0.0.1:0")
    await until_known(shared.edge, provider)
    tokens = 60_000
    body = chat("whole", max_tokens=tokens, delay_ms=0.02) | {"stream": False}
    answers = []

    async def consume() -> None:
        answers.append(await ask(shared.port, "POST", CHAT_PATH, body))

    async def has_started() -> bool:
        return await metric(provider.port, "aimo_requests_running", role="provider") == 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume)
        await eventually(has_started, 5, "the request does not start", provider)
        provider.signal(signal.SIGTERM)
    (answer,) = answers
    assert answer.status == 200, answer.body
    assert answer.json["choices"][0]["message"]["content"] == echo_text("Hi", tokens)
    assert await provider.exit_code(PROMPT_EXIT_SECONDS) == 0


async def test_relay_that_is_terminated_ends_at_once(own_mesh):
    relay = await own_mesh.relay().ready()
    relay.signal(signal.SIGTERM)
    assert await relay.exit_code(PROMPT_EXIT_SECONDS) == 0


async def test_control_c_drains_and_exits_with_130(shared, guests):
    provider = guests.provider("interrupted", "--grace", "20")
    edge = await own_edge(shared, guests, "--grace", "20")
    await until_known(edge, provider)
    body = chat("interrupted", max_tokens=50, delay_ms=20)
    async with open_stream(edge.port, body) as stream:
        await stream.read_until_text()
        provider.signal(signal.SIGINT)
        edge.signal(signal.SIGINT)
        await stream.read_to_the_end()
    assert (stream.text, stream.is_done) == (echo_text("Hi", 50), True)
    assert await edge.exit_code(PROMPT_EXIT_SECONDS) == 130
    assert await provider.exit_code(PROMPT_EXIT_SECONDS) == 130


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 1)], ids=["ctrl-c", "sigterm"]
)
async def test_second_signal_ends_at_once(shared, guests, number, code):
    """Each in its turn, since a node that loses its last stream ends in good order."""
    provider = guests.provider("stubborn", *STEADY, "--grace", "60")
    edge = await own_edge(shared, guests, "--grace", "60")
    await until_known(edge, provider)
    async with open_stream(edge.port, chat("echo", max_tokens=10_000, delay_ms=20)) as stream:
        await stream.read_until_text()
        edge.signal(number)
        await eventually(lambda: is_unready(edge), 3, "the edge does not drain", edge)
        assert edge.is_alive, "the first signal waits for the stream"
        edge.signal(number)
        assert await edge.exit_code(PROMPT_EXIT_SECONDS) == code
    await until_known(shared.edge, provider)
    async with open_stream(shared.port, chat("stubborn")) as stream:
        await stream.read_until_text()
        provider.signal(number)
        await until_unknown(shared.edge, provider.peer_id, seconds=3)
        assert provider.is_alive, "the first signal waits for the stream"
        provider.signal(number)
        assert await provider.exit_code(PROMPT_EXIT_SECONDS) == code
    await until_idle(shared.provider)


async def test_node_ends_with_whoever_holds_its_stdin(shared, guests):
    """A parent that is killed cannot tell its children."""
    edge = await own_edge(shared, guests)
    edge.popen.stdin.close()
    assert await edge.exit_code(PROMPT_EXIT_SECONDS) == 0

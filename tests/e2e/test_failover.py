"""Providers that die or freeze: invisible before the first token, one clear error after it."""

import signal
from collections.abc import Sequence

import pytest
import trio

from tests.e2e.http_client import CHAT_PATH, Stream, ask, chat, echo_text, open_stream, stream_chat
from tests.e2e.mesh import Mesh, providers_of, until_known
from tests.e2e.node_process import NodeProcess, eventually

pytestmark = pytest.mark.alone

KILLED_SECONDS = 5.0
STOPPED_SECONDS = 15.0
SLOW_START = ("--engine-args", "--tokens 3 --delay-ms 700")
"""Time to look who was chosen, and to kill it, before its first token."""
ANSWER_SECONDS = 2.1 + 2
"""What the survivor needs for its three tokens."""
STEADY = ("--engine-args", "--tokens 10000 --delay-ms 20")


async def two_providers(
    guests: Mesh, edge: NodeProcess, model: str, *flags: str
) -> list[NodeProcess]:
    """Two providers of one model, known to the edge."""
    providers = [guests.provider(model, *flags, name=f"{model}-{end}") for end in "ab"]
    await until_known(edge, *providers)
    return providers


async def chosen(edge: NodeProcess, providers: Sequence[NodeProcess]) -> NodeProcess:
    """The one of them that has a request."""
    found: list[NodeProcess] = []

    async def is_chosen() -> bool:
        views = await providers_of(edge)
        found[:] = [one for one in providers if views.get(one.peer_id, {}).get("running")]
        return bool(found)

    await eventually(is_chosen, 5, "nobody was chosen", edge)
    assert len(found) == 1
    return found[0]


async def assert_ends_with_one_error(stream: Stream, seconds: float) -> None:
    """It says once that it broke off, ends properly and never claims to be complete."""
    with trio.fail_after(seconds):
        await stream.read_to_the_end()
    assert [error["code"] for error in stream.errors] == ["stream_interrupted"]
    assert "error" in stream.events[-1]
    assert not stream.is_done
    assert stream.finish_reason is None
    tokens = stream.text.split()
    assert stream.text == echo_text("Hi", len(tokens)), "what came before it is whole"


@pytest.mark.parametrize(
    ("blow", "seconds", "is_stream"),
    [
        pytest.param(signal.SIGKILL, KILLED_SECONDS, True, id="killed"),
        pytest.param(signal.SIGKILL, KILLED_SECONDS, False, id="killed-without-stream"),
        pytest.param(signal.SIGSTOP, STOPPED_SECONDS, True, id="stopped"),
    ],
)
async def test_loss_before_the_first_token_is_invisible(shared, guests, blow, seconds, is_stream):
    model = f"fragile-{blow.name.lower()}"
    providers = await two_providers(guests, shared.edge, model, *SLOW_START)
    outcome = []

    async def consume() -> None:
        if is_stream:
            outcome.append(await stream_chat(shared.port, model))
        else:
            outcome.append(
                await ask(shared.port, "POST", CHAT_PATH, chat(model) | {"stream": False})
            )

    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume)
        victim = await chosen(shared.edge, providers)
        victim.signal(blow)
        nursery.cancel_scope.deadline = trio.current_time() + seconds + ANSWER_SECONDS
    assert outcome, "the consumer waits for ever"
    (answer,) = outcome
    survivor = next(one for one in providers if one is not victim)
    assert answer.headers["x-aimo-provider"] == survivor.peer_id
    assert answer.headers["x-aimo-attempts"] == "2"
    if is_stream:
        assert (answer.text, answer.errors, answer.is_done) == (echo_text("Hi", 3), [], True)
    else:
        assert answer.status == 200
        assert answer.json["choices"][0]["message"]["content"] == echo_text("Hi", 3)


async def test_provider_killed_in_mid_stream_gives_one_error(shared, guests):
    """A second provider does not help: what was said cannot be unsaid."""
    providers = await two_providers(guests, shared.edge, "killed", *STEADY)
    async with open_stream(shared.port, chat("killed")) as stream:
        await stream.read_until_text(5)
        victim = next(one for one in providers if one.peer_id == stream.provider)
        victim.kill()
        await assert_ends_with_one_error(stream, KILLED_SECONDS)
    survivor = next(one for one in providers if one is not victim)
    answer = await stream_chat(shared.port, "killed", max_tokens=2)
    assert (answer.provider, answer.is_done) == (survivor.peer_id, True)
    assert answer.headers["x-aimo-attempts"] == "1", "a closed link is no candidate any more"


async def test_provider_stopped_in_mid_stream_gives_one_error(shared, guests):
    """Meanwhile new requests go elsewhere, without waiting for it."""
    providers = await two_providers(guests, shared.edge, "frozen", *STEADY)
    async with open_stream(shared.port, chat("frozen")) as stream:
        await stream.read_until_text(5)
        victim = next(one for one in providers if one.peer_id == stream.provider)
        victim.signal(signal.SIGSTOP)
        with trio.fail_after(STOPPED_SECONDS):
            await assert_suspected(shared.edge, victim)
            for _ in range(3):
                answer = await stream_chat(shared.port, "frozen", max_tokens=2)
                assert (answer.is_done, answer.provider != victim.peer_id) == (True, True)
            await assert_ends_with_one_error(stream, STOPPED_SECONDS)


async def assert_suspected(edge: NodeProcess, victim: NodeProcess) -> None:
    """Silence shows before it is final."""

    async def is_suspect() -> bool:
        views = (await ask(edge.port, "GET", "/v1/providers")).json["data"]
        return any(view["id"] == victim.peer_id and view["status"] == "suspect" for view in views)

    await eventually(is_suspect, 8, "nobody notices the silence", edge)


async def test_provider_that_goes_on_after_a_pause_is_used_again(shared, guests):
    """Stopped for a while and not for ever: the edge finds it again by itself."""
    provider = guests.provider("sleeper", *STEADY)
    await until_known(shared.edge, provider)
    provider.signal(signal.SIGSTOP)
    await assert_suspected(shared.edge, provider)
    provider.signal(signal.SIGCONT)
    await until_known(shared.edge, provider)
    assert (await stream_chat(shared.port, "sleeper", max_tokens=2)).is_done


async def test_the_last_provider_lost_before_the_first_token_is_a_proper_error(shared, guests):
    provider = guests.provider("lonely", *SLOW_START)
    await until_known(shared.edge, provider)
    answers = []

    async def consume() -> None:
        answers.append(await ask(shared.port, "POST", CHAT_PATH, chat("lonely")))

    with trio.fail_after(KILLED_SECONDS + 2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(consume)
            await chosen(shared.edge, [provider])
            provider.kill()
    (answer,) = answers
    assert (answer.status, answer.error["code"]) == (502, "network_error")


async def test_busy_provider_is_passed_over(shared, guests):
    """Each takes one request: the second goes to the other, and the third is refused at once."""
    narrow = ("--requests-max", "1", "--waiting-max", "0")
    await two_providers(guests, shared.edge, "narrow", *STEADY, *narrow)
    async with (
        open_stream(shared.port, chat("narrow")) as first,
        open_stream(shared.port, chat("narrow")) as second,
    ):
        await first.read_until_text()
        await second.read_until_text()
        assert first.provider != second.provider
        with trio.fail_after(2):
            refused = await ask(shared.port, "POST", CHAT_PATH, chat("narrow"))
        assert (refused.status, refused.error["code"]) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1


async def test_request_waits_its_turn_where_nobody_else_could_answer(shared, guests):
    """Each takes one request and lets others wait: the third is answered once a place is free."""
    await two_providers(guests, shared.edge, "queue", *STEADY, "--requests-max", "1")
    answers = []

    async def wait_turn() -> None:
        answers.append(await stream_chat(shared.port, "queue", "one two", max_tokens=2))

    async with (
        trio.open_nursery() as nursery,
        open_stream(shared.port, chat("queue")) as first,
        open_stream(shared.port, chat("queue")) as second,
    ):
        await first.read_until_text()
        await second.read_until_text()
        nursery.start_soon(wait_turn)

        async def waits() -> bool:
            views = (await ask(shared.port, "GET", "/v1/providers")).json["data"]
            return any(view["waiting"] for view in views if "queue" in view["models"])

        await eventually(waits, 10, "nobody waits", shared.edge)
        assert not answers
    (answer,) = answers
    assert answer.text == echo_text("one two", 2)
    assert answer.headers["x-aimo-attempts"] == "2", "the first was asked not to let it wait"


async def test_provider_filled_by_another_edge_sends_the_request_on(shared, guests):
    """This edge learns it only from the provider's refusal, and tries the next one at once."""
    providers = await two_providers(guests, shared.edge, "rival", *STEADY, "--requests-max", "1")
    rival = await guests.edge(name="rival-edge").ready()
    await until_known(rival, *providers)
    first = await stream_chat(shared.port, "rival", max_tokens=1)
    next_one = next(one for one in providers if one.peer_id != first.provider)
    async with open_stream(rival.port, chat(f"{next_one.peer_id}:rival")) as blocking:
        await blocking.read_until_text()
        with trio.fail_after(2):
            answer = await stream_chat(shared.port, "rival", max_tokens=3)
    assert (answer.provider, answer.text) == (first.provider, echo_text("Hi", 3))
    assert answer.headers["x-aimo-attempts"] == "2"

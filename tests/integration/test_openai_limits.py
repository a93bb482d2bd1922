"""An upstream's rate limits: passed on as load, and heeded before it has to refuse."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import trio

from aimo_node.errors import Overloaded
from aimo_node.testing import upstream_scripts as scripts
from aimo_node.testing.upstream import Head, Whole, stand_in_upstream
from aimo_node.testing.upstream_scripts import exactly, models
from providers.engines.openai_http import create
from tests.integration.openai_calls import answer, refused, request, running, settings

SAID = "".join(scripts.WORDS)


@pytest.fixture
async def upstream():
    async with stand_in_upstream(scripts.answer()) as served:
        yield served


@pytest.fixture
async def engine(upstream, tmp_path):
    async with running(create(settings(tmp_path, upstream.endpoint, requests_max=10))) as started:
        yield started


def limited(limit, remaining, reset, kind="requests"):
    """The usual answer with a head that tells what is left."""
    head = Head(
        {
            f"x-ratelimit-limit-{kind}": str(limit),
            f"x-ratelimit-remaining-{kind}": str(remaining),
            f"x-ratelimit-reset-{kind}": reset,
        }
    )
    return lambda body: (head, *scripts.answer()(body))


async def test_what_is_used_of_the_limit_is_load(engine, upstream):
    assert engine.load().load == 0
    upstream.scripts.append(limited(100, 30, "6m0s"))
    assert (await answer(engine, request())).written == SAID
    assert engine.load().load == pytest.approx(0.7)
    assert engine.load().running == 0


async def test_tokens_are_a_limit_too(engine, upstream):
    upstream.scripts.append(limited(40_000, 10_000, "30s", "tokens"))
    await answer(engine, request())
    assert engine.load().load == pytest.approx(0.75)


async def test_own_places_are_load_where_they_are_the_tighter_bound(engine, upstream):
    upstream.scripts += [limited(100, 99, "60s"), *[scripts.endless] * 5]
    await answer(engine, request())
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(answer, engine, request())
        while upstream.generating < 5:  # noqa: ASYNC110 (a server's count sets no event)
            await trio.sleep(0.005)
        assert engine.load().load == pytest.approx(0.5)
        nursery.cancel_scope.cancel()


async def test_nothing_is_sent_while_nothing_is_left(engine, upstream):
    upstream.scripts.append(limited(100, 0, "30s"))
    assert (await answer(engine, request())).written == SAID
    error = await refused(engine, request(), Overloaded)
    assert 29 < error.retry_after_seconds <= 30
    assert error.retryable
    assert engine.load().load == 1
    assert len(upstream.received) == 1


async def test_it_is_open_again_after_the_reset(engine, upstream):
    upstream.scripts.append(limited(100, 0, "300ms"))
    await answer(engine, request())
    error = await refused(engine, request(), Overloaded)
    await trio.sleep(error.retry_after_seconds)
    assert (await answer(engine, request())).written == SAID
    assert engine.load().load == 0


async def test_429_keeps_later_requests_away_for_as_long_as_it_says(engine, upstream):
    upstream.scripts.append(scripts.RATE_LIMITED)
    first = await refused(engine, request(), Overloaded)
    assert first.retry_after_seconds == 7
    second = await refused(engine, request(), Overloaded)
    assert 6 < second.retry_after_seconds <= 7
    assert len(upstream.received) == 1


async def test_429_may_say_it_as_a_date(engine, upstream):
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    upstream.scripts.append(scripts.refusal(429, {"retry-after": date}, message="later"))
    error = await refused(engine, request(), Overloaded)
    assert 50 < error.retry_after_seconds <= 60
    await refused(engine, request(), Overloaded)
    assert len(upstream.received) == 1


async def test_429_that_says_nothing_keeps_nobody_away(engine, upstream):
    upstream.scripts.append(scripts.BUSY)
    assert (await refused(engine, request(), Overloaded)).retry_after_seconds is None
    assert (await answer(engine, request())).written == SAID


async def test_limits_of_one_model_do_not_close_another(upstream, tmp_path):
    upstream.models = models("a", "b")
    engine = create(settings(tmp_path, upstream.endpoint, model="*"))
    async with running(engine):
        upstream.scripts.append(limited(100, 0, "30s"))
        await answer(engine, request(model="a"))
        await refused(engine, request(model="a"), Overloaded)
        assert (await answer(engine, request(model="b"))).written == SAID


async def test_limits_are_heeded_with_whole_answers_too(engine, upstream):
    headers = {"ratelimit": '"default";r=0;t=30', "ratelimit-policy": '"default";q=10;w=60'}
    whole = scripts.whole("hi", "stop")
    upstream.scripts.append(exactly(Whole(200, whole.body, headers)))
    assert (await answer(engine, request(stream=False))).written == "hi"
    await refused(engine, request(), Overloaded)

"""Consumers that leave, stall or wait: the provider is always let go, and nobody is left in doubt.

Time is virtual here.
"""

from __future__ import annotations

import json

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from aimo_node.domain.answer import Finish, Usage
from aimo_node.domain.ids import FinishReason
from aimo_node.edge.app import create_app
from aimo_node.edge.settings import DrainSignals, EdgeSettings
from aimo_node.errors import RequestTimeout
from aimo_node.testing.fake_door import FAKE_PEER, FakeDoor, Pause, words

from .conftest import CHAT, AsgiCall

STOP = Finish(FinishReason.STOP, Usage())


async def test_consumer_that_leaves_in_mid_stream_stops_the_provider(ask_chat, door, nursery):
    pause = Pause()
    door.script = [["Hel"], pause]
    call = ask_chat(stream=True)
    nursery.start_soon(call.run)
    await pause.reached.wait()
    assert not door.answers[0].cancelled.is_set()
    call.leave()
    await door.answers[0].cancelled.wait()
    await wait_all_tasks_blocked()
    assert not call.is_complete


@pytest.mark.parametrize("stream", [True, False])
async def test_consumer_that_leaves_before_the_first_part_stops_the_provider(
    ask_chat, door, nursery, stream
):
    pause = Pause()
    door.script = [pause]
    call = ask_chat(stream=stream)
    nursery.start_soon(call.run)
    await pause.reached.wait()
    call.leave()
    await door.answers[0].cancelled.wait()
    await wait_all_tasks_blocked()
    assert call.messages == []


async def test_consumer_that_leaves_while_the_request_is_opened_cancels_that(
    ask_chat, door, nursery
):
    door.opening = Pause()
    call = ask_chat(stream=True)
    with trio.fail_after(5):
        async with trio.open_nursery() as inner:
            inner.start_soon(call.run)
            await door.opening.reached.wait()
            call.leave()
    assert door.answers == []


@pytest.mark.parametrize("stalled_from", [0, 1, 2])
async def test_consumer_that_never_reads_holds_nothing_after_it_left(
    ask_chat, door, nursery, stalled_from
):
    """Also if not even the head could be sent: the body was never asked for anything then."""
    call = ask_chat(stream=True)
    call.stalled_from = stalled_from
    nursery.start_soon(call.run)
    await call.stalled.wait()
    assert not door.answers[0].cancelled.is_set()
    call.leave()
    await door.answers[0].cancelled.wait()


async def test_provider_is_let_go_before_a_slow_consumer_has_the_end(ask_chat, door, nursery):
    call = ask_chat(stream=True)
    call.stalled_from = 3
    nursery.start_soon(call.run)
    await call.stalled.wait()
    assert door.answers[0].cancelled.is_set()
    call.leave()


async def test_end_of_a_response_is_not_cancelled_by_the_report_of_it(app, door):
    """The server says disconnect before it has made the connection ready for the next request."""
    call = AsgiCall(app, "POST", "/v1/chat/completions", CHAT)
    finished = []

    async def send(message):
        call.messages.append(message)
        if not message.get("more_body", True):
            call.leave()
            await trio.testing.wait_all_tasks_blocked()
            await trio.lowlevel.checkpoint()
            finished.append(message)

    await app(call.scope, call._receive, send)
    assert len(finished) == 1


async def test_silence_is_filled_with_comments(ask_chat, door, autojump_clock, nursery):
    pause = Pause()
    door.script = [["Hel"], pause, ["lo", STOP]]
    call = ask_chat(stream=True)
    started = trio.current_time()

    async def resume():
        await trio.sleep(50)
        pause.over.set()

    nursery.start_soon(resume)
    await call.run()
    assert trio.current_time() - started == pytest.approx(50)
    bodies = [message["body"] for message in call.messages[1:]]
    assert bodies[1:4] == [b": waiting\n\n"] * 3
    assert b"lo" in bodies[4]
    assert b"[DONE]" in bodies[4]


async def test_head_is_held_for_the_first_part_but_not_for_ever(
    ask_chat, door, autojump_clock, nursery
):
    pause = Pause()
    door.script = [pause, *words("Hi")]
    call = ask_chat(stream=True)
    nursery.start_soon(call.run)
    await trio.sleep(14.9)
    assert call.messages == []
    await trio.sleep(0.2)
    assert call.status == 200
    assert call.headers["x-aimo-provider"] == FAKE_PEER
    assert call.body == b": waiting\n\n"
    pause.over.set()
    await wait_all_tasks_blocked()
    assert call.body.endswith(b"[DONE]\n\n")


async def test_hold_counts_the_time_that_opening_took(ask_chat, door, autojump_clock, nursery):
    door.opening = Pause()
    door.script = [Pause()]
    call = ask_chat(stream=True)
    nursery.start_soon(call.run)
    await trio.sleep(10)
    door.opening.over.set()
    await trio.sleep(5.1)
    assert call.status == 200
    call.leave()


async def test_error_within_the_hold_is_a_status(ask_chat, door, autojump_clock, nursery):
    pause = Pause()
    door.script = [pause, RequestTimeout("Too late.")]

    async def resume():
        await trio.sleep(14)
        pause.over.set()

    nursery.start_soon(resume)
    call = await ask_chat(stream=True).run()
    assert call.status == 504


class Draining:
    """An application whose drain a test controls."""

    def __init__(self, door: FakeDoor, nursery: trio.Nursery) -> None:
        self.signals = DrainSignals()
        self.app = create_app(door, EdgeSettings(), drain=self.signals)
        self._nursery = nursery

    async def start(self) -> None:
        """Run the application's lifespan, as a server does."""
        to_app, from_us = trio.open_memory_channel(1)
        started = trio.Event()

        async def send(message):
            assert message["type"] == "lifespan.startup.complete"
            started.set()

        scope = {"type": "lifespan", "asgi": {"version": "3.0"}}
        self._nursery.start_soon(self.app, scope, from_us.receive, send)
        await to_app.send({"type": "lifespan.startup"})
        await started.wait()

    def chat(self, **fields) -> AsgiCall:
        return AsgiCall(self.app, "POST", "/v1/chat/completions", {**CHAT, **fields})


@pytest.fixture
async def draining(door, nursery):
    draining = Draining(door, nursery)
    await draining.start()
    yield draining
    nursery.cancel_scope.cancel()


async def test_running_streams_go_on_in_a_drain(draining, door, nursery):
    pause = Pause()
    door.script = [["Hel"], pause, ["lo", STOP]]
    call = draining.chat(stream=True)
    nursery.start_soon(call.run)
    await pause.reached.wait()
    draining.signals.begun.set()
    assert (await draining.chat(stream=True).run()).status == 503
    pause.over.set()
    await wait_all_tasks_blocked()
    assert call.body.endswith(b"[DONE]\n\n")


async def test_end_of_grace_ends_a_stream_with_an_error(draining, door, nursery):
    pause = Pause()
    door.script = [["Hel"], pause]
    call = draining.chat(stream=True)
    nursery.start_soon(call.run)
    await pause.reached.wait()
    draining.signals.grace_over.set()
    await door.answers[0].cancelled.wait()
    await wait_all_tasks_blocked()
    *_, event, rest = call.body.split(b"\n\n")
    assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "draining"
    assert rest == b""
    assert call.is_complete


async def test_end_of_grace_also_ends_what_comes(draining, door):
    draining.signals.grace_over.set()
    await wait_all_tasks_blocked()
    assert (await draining.chat().run()).status == 503
    assert door.requests == []


@pytest.mark.parametrize("stream", [True, False])
async def test_end_of_grace_before_the_first_part_is_a_status(draining, door, nursery, stream):
    pause = Pause()
    door.script = [pause]
    call = draining.chat(stream=stream)
    nursery.start_soon(call.run)
    await pause.reached.wait()
    draining.signals.grace_over.set()
    await door.answers[0].cancelled.wait()
    await wait_all_tasks_blocked()
    assert call.status == 503
    assert call.json["error"]["code"] == "draining"


async def test_end_of_grace_does_not_wait_for_a_stalled_consumer(
    draining, door, nursery, autojump_clock: MockClock
):
    call = draining.chat(stream=True)
    call.stalled_from = 2
    with trio.fail_after(5):
        async with trio.open_nursery() as inner:
            inner.start_soon(call.run)
            await call.stalled.wait()
            draining.signals.grace_over.set()
            await door.answers[0].cancelled.wait()
            call.leave()


async def test_refused_upload_is_read_a_little_so_that_the_refusal_arrives(app):
    """Closing with unread bytes makes the kernel reset the connection under the answer."""
    call = AsgiCall(app, "POST", "/v1/chat/completions", CHAT, headers=((b"host", b"evil"),))
    call._requests = [
        {"type": "http.request", "body": b"x" * 65536, "more_body": number < 100}
        for number in range(101)
    ]
    await call.run()
    assert call.status == 403
    assert call._requests == []
    assert call.is_complete


async def test_refused_upload_is_not_read_for_ever(app, autojump_clock):
    call = AsgiCall(app, "POST", "/v1/chat/completions", CHAT, headers=((b"host", b"evil"),))
    call._requests = [{"type": "http.request", "body": b"x", "more_body": True}]
    with trio.fail_after(5):
        await call.run()
    assert call.is_complete

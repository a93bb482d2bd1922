"""Requests that run are known until they end, and ended when the grace period is over."""

from __future__ import annotations

import trio

from aimo_node.dispatch.inference import InferenceRequest
from aimo_node.domain.ids import Endpoint
from aimo_node.edge.event_stream import EventStream
from aimo_node.edge.inference import Desk
from aimo_node.edge.metrics import NoMetrics
from aimo_node.edge.openai.chunks import ChunkWriter, SseRenderer
from aimo_node.edge.running import Running
from aimo_node.edge.settings import DrainSignals, EdgeSettings
from aimo_node.testing.fake_door import FakeDoor

REQUEST = InferenceRequest(Endpoint.CHAT, "fake", b"{}", stream=True, deadline_seconds=1)


async def test_stream_is_known_until_it_is_closed():
    desk = Desk(FakeDoor(), EdgeSettings(), DrainSignals(), NoMetrics())
    opened = desk.admit(REQUEST)
    await opened.start()
    renderer = SseRenderer(ChunkWriter(opened.answer.request_id, "fake", 1))
    stream = EventStream(opened, renderer, desk.running)
    assert len(desk.running) == 1
    stream.close()
    stream.close()
    assert len(desk.running) == 0


async def test_cut_ends_what_runs_and_what_comes_but_not_what_has_ended():
    running = Running()
    ended, runs = running.enter(), running.enter()
    running.leave(ended)
    running.cut()
    assert runs.cancel_called
    assert not ended.cancel_called
    assert running.enter().cancel_called
    with running.enter() as scope:
        await trio.sleep_forever()
    assert scope.cancelled_caught

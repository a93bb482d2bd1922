"""Reads an engine's answers as a provider does, and says what this process used per token."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import trio

from aimo_node.domain.answer import Usage
from aimo_node.domain.ids import Endpoint, FinishReason, ModelName, RequestId
from aimo_node.ports.engine import Engine, EngineRequest

RAMP_SECONDS = 0.2
"""The streams start apart from each other: they beat as one only if the child makes them."""

SETTLE_SECONDS = 0.5
READY_SECONDS = 60.0
STAMPS_EVERY = 16
"""Reading a stamp costs as much as a token; every first one is read, and one in so many others."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured stretch.

    Attributes:
        cpu_us: user and system time of this process per token.
        late_ms: from a token's stamp to the sink, sorted; empty when nobody stamps.
        first_ms: the same for first tokens.
    """

    per_second: float
    cpu_us: float
    late_ms: tuple[float, ...] = ()
    first_ms: tuple[float, ...] = ()


class Tally:
    """What has arrived since `begin`.

    Attributes:
        flowing: set once as many answers have begun as there are streams.
    """

    def __init__(self, streams: int) -> None:
        self.tokens = 0
        self.late: list[float] = []
        self.first: list[float] = []
        self.flowing = trio.Event()
        self._silent = streams
        self._cpu = self._began = 0.0

    def answer_begins(self) -> None:
        """One of the streams has its first token."""
        self._silent -= 1
        if not self._silent:
            self.flowing.set()

    def begin(self) -> None:
        """Count from here."""
        self.tokens = 0
        self.late.clear()
        self.first.clear()
        self._cpu, self._began = time.process_time(), time.perf_counter()

    def end(self) -> Sample:
        """What was counted."""
        cpu, took = time.process_time() - self._cpu, time.perf_counter() - self._began
        return Sample(
            per_second=self.tokens / took,
            cpu_us=1e6 * cpu / max(1, self.tokens),
            late_ms=tuple(sorted(self.late)),
            first_ms=tuple(sorted(self.first)),
        )


class CountingSink:
    """An `AnswerSink` whose consumer is always fast."""

    congested = False

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._begun = False

    def text(self, delta: str) -> None:
        """Count a token; its stamp, if it has one, is ``@MICROSECONDS``."""
        tally = self._tally
        tally.tokens += 1
        if (not self._begun or not tally.tokens % STAMPS_EVERY) and delta[0] == "@":
            late = time.monotonic() * 1e3 - int(delta[1:17].split(" ", 1)[0]) * 1e-3
            tally.late.append(late)
            if not self._begun:
                tally.first.append(late)
        if not self._begun:
            self._begun = True
            tally.answer_begins()

    def json(self, choices: bytes) -> None:
        """Count it too."""
        self._tally.tokens += 1

    def finish(self, reason: FinishReason, usage: Usage) -> None:
        """The next answer begins."""

    async def drain(self) -> None:
        """Never needed."""
        await trio.lowlevel.checkpoint()


async def read_engine(
    engine: Engine, body: Mapping[str, Any], streams: int, seconds: float
) -> Sample:
    """Ask an engine again and again, `streams` at a time; measure once all are under way."""
    async with trio.open_nursery() as nursery:
        ready = trio.Event()
        nursery.start_soon(engine.run, ready.set, lambda *_: None)
        with trio.fail_after(READY_SECONDS):
            await ready.wait()
        sample = await _read_running(engine, body, streams, seconds)
        nursery.cancel_scope.cancel()
    return sample


async def run_beside(engine: Engine, measure: Callable[[], Sample]) -> Sample:
    """Run an engine for its child's sake; `measure` blocks a thread meanwhile."""
    async with trio.open_nursery() as nursery:
        ready = trio.Event()
        nursery.start_soon(engine.run, ready.set, lambda *_: None)
        with trio.fail_after(READY_SECONDS):
            await ready.wait()
        sample = await trio.to_thread.run_sync(measure)
        nursery.cancel_scope.cancel()
    return sample


async def _read_running(
    engine: Engine, body: Mapping[str, Any], streams: int, seconds: float
) -> Sample:
    tally = Tally(streams)
    async with trio.open_nursery() as nursery:
        for index in range(streams):
            pause = RAMP_SECONDS * index / streams
            nursery.start_soon(_ask_again_and_again, engine, body, tally, pause)
        await trio.sleep(RAMP_SECONDS + SETTLE_SECONDS)
        with trio.fail_after(READY_SECONDS):
            await tally.flowing.wait()
        tally.begin()
        await trio.sleep(seconds)
        sample = tally.end()
        nursery.cancel_scope.cancel()
    return sample


async def _ask_again_and_again(
    engine: Engine, body: Mapping[str, Any], tally: Tally, pause: float
) -> None:
    await trio.sleep(pause)
    model = engine.capabilities().models[0].name
    while True:
        name = RequestId(uuid.uuid4().bytes)
        request = EngineRequest(name, Endpoint.CHAT, ModelName(model), body, salt="benchmark")
        await engine.stream(request, CountingSink(tally))

"""Two readers of the same streamed answers: an engine port, and an epoll loop that parses nothing.

Both run in this process for a fixed time and say what it used per token.
"""

from __future__ import annotations

import math
import selectors
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from aimo_node.domain.answer import Usage
from aimo_node.domain.ids import Endpoint, FinishReason, ModelName, RequestId
from aimo_node.ports.engine import Engine, EngineRequest

RECEIVE_BYTES = 65_536
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


def read_bare(path: Path, body: bytes, streams: int, seconds: float) -> Sample:
    """The same answers off the same socket with the least Python can do: epoll, recv, count."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    head += b"content-length: %d\r\n\r\n" % len(body)
    tally = Tally(streams)
    with selectors.DefaultSelector() as selector:
        starts = [RAMP_SECONDS * index / streams for index in range(streams)]
        origin = time.monotonic()
        begin_at, end_at = origin + RAMP_SECONDS + SETTLE_SECONDS, math.inf
        while (now := time.monotonic()) < end_at:
            while starts and origin + starts[0] <= now:
                starts.pop(0)
                _ask_bare(selector, path, head + body)
            if now >= begin_at:
                begin_at, end_at = math.inf, now + seconds
                tally.begin()
            for key, _ in selector.select(0.01):
                data = key.fileobj.recv(RECEIVE_BYTES)  # type: ignore[union-attr]
                if not data:
                    selector.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
                    _ask_bare(selector, path, head + body)
                elif count := data.count(b'"@'):
                    tally.tokens += count
                    if tally.tokens % STAMPS_EVERY:
                        continue
                    start = data.rfind(b'"@') + 2
                    stamp = int(data[start : data.find(b" ", start)])
                    tally.late.append(time.monotonic() * 1e3 - stamp * 1e-3)
        sample = tally.end()
        for key in list(selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
    return sample


def _ask_bare(selector: selectors.BaseSelector, path: Path, request: bytes) -> None:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    connection.sendall(request)
    connection.settimeout(0)
    selector.register(connection, selectors.EVENT_READ)

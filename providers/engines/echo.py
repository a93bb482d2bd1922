"""The echo engine: repeats the last user message word by word, then goes on ``w0 w1 w2 …``.

Deterministic, so that any loss, doubling or reordering shows, and cheap, so that a load test
measures the mesh. Each token is a word and a space; usage is exact.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import trio

from aimo_node.domain.answer import Usage
from aimo_node.domain.ids import Endpoint, FinishReason, ModelName
from aimo_node.domain.models import Health, Load, ModelInfo
from aimo_node.errors import EngineFailed, InvalidRequest, ModelNotFound
from aimo_node.ports.engine import (
    AnswerSink,
    Capabilities,
    EngineRequest,
    EngineSettings,
    Progress,
)
from providers.admission import Admission
from providers.answers import split_text
from providers.arguments import (
    EngineArguments,
    integer_between,
    number_between,
    refuse_upstream_settings,
)
from providers.pacing import Pacemaker

REQUESTS_MAX_DEFAULT: Final = 4096
"""Above what one link carries, so that the mesh and not this engine is the limit of a load test."""

TOKENS_MAX: Final = 100_000
DELAY_MS_MAX: Final = 60_000

TOKENS_PER_TURN: Final = 16
"""Tokens written before other tasks get a turn, and at most written at once to catch up."""

_KNOB: Final = re.compile(r"\bmock-(tokens|delay-us)=(\d{1,9})")


def create(settings: EngineSettings) -> EchoEngine:
    """Entry point ``echo``.

    Raises:
        ConfigError: unknown or malformed engine arguments.
    """
    refuse_upstream_settings("echo", settings)
    arguments = EngineArguments("echo")
    arguments.add_argument("--tokens", type=integer_between(1, TOKENS_MAX), default=200)
    arguments.add_argument("--delay-ms", type=number_between(0, DELAY_MS_MAX), default=0.0)
    arguments.add_argument("--stamp", action="store_true")
    found = arguments.read(settings.engine_args)
    return EchoEngine(
        name=ModelName(settings.served_name or settings.model or "echo"),
        manner=Manner(found.tokens, found.delay_ms / 1000, stamp=found.stamp),
        requests_max=settings.requests_max or REQUESTS_MAX_DEFAULT,
    )


@dataclass(frozen=True, slots=True)
class Manner:
    """How an answer is given.

    Attributes:
        delay_seconds: from one token to the next; 0 is as fast as the consumer takes them.
        stamp: each token is ``@MICROSECONDS``, CLOCK_MONOTONIC when it was due, so that a reader
            on the same machine sees how late it is.
        reason: `LENGTH` when the request limited the answer.
    """

    tokens: int
    delay_seconds: float
    stamp: bool = False
    reason: FinishReason = FinishReason.STOP


class EchoEngine:
    """See the module; `run` turns the timer that all slow streams share."""

    def __init__(self, name: ModelName, manner: Manner, requests_max: int) -> None:
        self._name = name
        self._manner = manner
        self._admission = Admission(requests_max)
        self._pacemaker = Pacemaker()
        self._paced: set[_PacedAnswer] = set()
        self._alive = False

    async def run(self, ready: Callable[[], None], progress: Progress) -> None:
        """Ready at once; ends when cancelled."""
        progress("echo engine needs no loading")
        self._alive = True
        try:
            ready()
            await self._pacemaker.run()
        finally:
            self.kill()

    async def stream(self, request: EngineRequest, sink: AnswerSink) -> None:
        """Answer; see the module.

        Raises:
            ModelNotFound, InvalidRequest, Overloaded, Draining, EngineFailed.
        """
        messages = self._messages(request)
        text = _last_user_text(messages)
        manner = _manner_of(request.body, self._manner, text)
        with self._admission.request():
            self._check_alive()
            tokens = _tokens(text, manner)
            if not request.stream:
                await self._whole("".join(tokens), manner, sink)
            elif manner.delay_seconds:
                await self._slow(tokens, manner, sink)
            else:
                await self._flat_out(tokens, sink)
            sink.finish(manner.reason, Usage(_word_count(messages), manner.tokens))

    async def count_tokens(self, request: EngineRequest) -> int:
        """Words of all messages.

        Raises:
            ModelNotFound, InvalidRequest.
        """
        return _word_count(self._messages(request))

    def capabilities(self) -> Capabilities:
        """One model, any context."""
        digest = hashlib.sha256(b"aimo echo 1").digest()
        endpoints = (Endpoint.CHAT, Endpoint.COMPLETIONS)
        model = ModelInfo(self._name, digest=digest, endpoints=endpoints)
        return Capabilities("echo", (model,), self._admission.requests_max, version="1")

    def health(self) -> Health:
        """HEALTHY while `run` runs."""
        return Health.HEALTHY if self._alive else Health.OFFLINE

    def load(self) -> Load:
        """Share of the places taken."""
        return self._admission.load()

    async def drain(self) -> None:
        """Return when no request is running; new ones raise `Draining`."""
        await self._admission.drain()

    def kill(self) -> None:
        """Let every running answer fail; idempotent."""
        self._alive = False
        for answer in self._paced:
            answer.wake.set()

    def _messages(self, request: EngineRequest) -> list[Mapping[str, Any]]:
        if request.model != self._name:
            raise ModelNotFound(f"this engine serves {self._name}, not {request.model}")
        if request.endpoint is Endpoint.CHAT:
            messages = request.body.get("messages")
            if isinstance(messages, list) and all(isinstance(one, Mapping) for one in messages):
                return messages
            raise InvalidRequest("messages must be a list of objects", param="messages")
        if request.endpoint is Endpoint.COMPLETIONS:
            return [{"role": "user", "content": request.body.get("prompt", "")}]
        raise InvalidRequest("the echo engine serves chat and completions only")

    def _check_alive(self) -> None:
        if not self._alive:
            raise EngineFailed("the echo engine is not running")

    async def _whole(self, text: str, manner: Manner, sink: AnswerSink) -> None:
        pieces = split_text(text)
        late = Manner(tokens=1, delay_seconds=manner.delay_seconds * manner.tokens)
        await self._slow(iter(pieces[:1]), late, sink)
        await self._flat_out(iter(pieces[1:]), sink)

    async def _flat_out(self, tokens: Iterator[str], sink: AnswerSink) -> None:
        for index, token in enumerate(tokens, start=1):
            sink.text(token)
            if index % TOKENS_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
                self._check_alive()
                if sink.congested:
                    await sink.drain()

    async def _slow(self, tokens: Iterator[str], manner: Manner, sink: AnswerSink) -> None:
        answer = _PacedAnswer(tokens, manner, sink)
        self._paced.add(answer)
        try:
            while True:
                self._pacemaker.add(answer)
                await answer.wake.wait()
                self._check_alive()
                if answer.error is not None:
                    raise answer.error
                if not answer.left:
                    return
                await sink.drain()
                answer.wake = trio.Event()
        finally:
            self._paced.discard(answer)
            answer.left = 0


class _PacedAnswer:
    """One slow answer. The timer's task steps it; the request's task waits for `wake`.

    Attributes:
        left: tokens still to come; 0 also when the request is gone.
        wake: set when it is at its end, failed, or when the consumer is slower than the engine.
        due: of the next token; late tokens never push it back, so that there is no drift.
    """

    __slots__ = ("_delay", "_sink", "_tokens", "due", "error", "left", "wake")

    def __init__(self, tokens: Iterator[str], manner: Manner, sink: AnswerSink) -> None:
        self._tokens = tokens
        self._sink = sink
        self._delay = manner.delay_seconds
        self.due = trio.current_time() + self._delay
        self.left = manner.tokens
        self.wake = trio.Event()
        self.error: Exception | None = None

    def step(self, now: float) -> bool:
        """Write the tokens that are due by `now`."""
        sink = self._sink
        for _ in range(min(self.left, TOKENS_PER_TURN)):
            if self.due > now:
                break
            if sink.congested:
                self.wake.set()
                return False
            try:
                sink.text(next(self._tokens))
            except Exception as error:  # noqa: BLE001 (raised again in the request's own task)
                self.error = error
                self.left = 0
                break
            self.left -= 1
            self.due += self._delay
        if not self.left:
            self.wake.set()
        return self.left > 0


def _tokens(text: str, manner: Manner) -> Iterator[str]:
    """The tokens of an answer, in order; their number is `manner.tokens`."""
    if not manner.stamp:
        return _words(text.split(), manner.tokens)
    if not manner.delay_seconds:
        return (f"@{time.monotonic_ns() // 1000} " for _ in range(manner.tokens))
    # When the tokens are due counts from now, not from when the first one is written.
    start, delay = time.monotonic(), manner.delay_seconds
    return (f"@{(start + index * delay) * 1e6:.0f} " for index in range(1, manner.tokens + 1))


def _words(words: list[str], tokens: int) -> Iterator[str]:
    for word in words[:tokens]:
        yield word + " "
    for index in range(tokens - len(words)):
        yield f"w{index} "


def _manner_of(body: Mapping[str, Any], default: Manner, text: str) -> Manner:
    """What the request asks for, in fields or as ``mock-tokens=N mock-delay-us=N`` in its text."""
    knobs = {name: int(value) for name, value in _KNOB.findall(text)} if "mock-" in text else {}
    limit = _integer(body, "max_completion_tokens") or _integer(body, "max_tokens")
    wanted = knobs.get("tokens") or limit or default.tokens
    tokens = min(wanted, limit or TOKENS_MAX)
    delay_seconds = _delay_seconds(body)
    if delay_seconds is None:
        delay_seconds = knobs.get("delay-us", default.delay_seconds * 1e6) / 1e6
    return Manner(
        tokens=tokens,
        delay_seconds=min(delay_seconds, DELAY_MS_MAX / 1000),
        stamp=default.stamp,
        reason=FinishReason.LENGTH if tokens == limit else FinishReason.STOP,
    )


def _delay_seconds(body: Mapping[str, Any]) -> float | None:
    extension = body.get("aimo")
    value = extension.get("delay_ms") if isinstance(extension, Mapping) else None
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        value = -1
    if not 0 <= value <= DELAY_MS_MAX:
        raise InvalidRequest(
            f"aimo.delay_ms must be a number from 0 to {DELAY_MS_MAX}", param="aimo.delay_ms"
        )
    return float(value) / 1000


def _integer(body: Mapping[str, Any], field: str) -> int | None:
    value = body.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidRequest(f"{field} must be a whole number from 1", param=field)
    return min(value, TOKENS_MAX)


def _last_user_text(messages: list[Mapping[str, Any]]) -> str:
    for message in reversed(messages):
        if message.get("role") == "user":
            return _text(message)
    return ""


def _text(message: Mapping[str, Any]) -> str:
    """The text of a message, whose content is a string or a list of parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = (part.get("text") for part in content if isinstance(part, Mapping))
    return " ".join(part for part in parts if isinstance(part, str))


def _word_count(messages: list[Mapping[str, Any]]) -> int:
    return sum(len(_text(message).split()) for message in messages)

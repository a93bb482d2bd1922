"""An engine: says what it was told, in capitals, a word at a time.

It runs in the node's own process, which is fine for a toy. A real engine runs a model in a child
process or asks a server; `providers/engines` has one of each.
"""

from collections.abc import Callable, Iterator

import trio

from aimo_node.domain.answer import Usage
from aimo_node.domain.ids import Endpoint, FinishReason, ModelName
from aimo_node.domain.models import Health, Load, ModelInfo
from aimo_node.errors import (
    ConfigError,
    Draining,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
)
from aimo_node.ports.engine import (
    AnswerSink,
    Capabilities,
    EngineRequest,
    EngineSettings,
    Progress,
)

REQUESTS_MAX_DEFAULT = 8
WORD_SECONDS = 0.02


def create(settings: EngineSettings) -> "ParrotEngine":
    """What the entry point names; starts nothing.

    Raises:
        ConfigError: the settings cannot work; the message names the flag and the fix.
    """
    if settings.engine_args or settings.endpoint or settings.models:
        raise ConfigError("the parrot takes no --engine-args, --endpoint or --models")
    name = settings.served_name or settings.model or "parrot"
    return ParrotEngine(ModelName(name), settings.requests_max or REQUESTS_MAX_DEFAULT)


class ParrotEngine:
    """One model, no process of its own."""

    def __init__(self, name: ModelName, requests_max: int) -> None:
        self._name = name
        self._requests_max = requests_max
        self._scopes: set[trio.CancelScope] = set()
        self._idle = trio.Event()
        self._alive = False
        self._draining = False

    async def run(self, ready: Callable[[], None], progress: Progress) -> None:
        """A real engine loads its model here, looks after it, and starts it anew when it dies."""
        progress("a parrot needs no loading")
        self._alive = True
        try:
            ready()
            await trio.sleep_forever()
        finally:
            self.kill()

    async def stream(self, request: EngineRequest, sink: AnswerSink) -> None:
        """Refuse before the first word if at all; then words, then `finish`."""
        self._admit(request)
        words = _words(request)
        wanted = request.body.get("max_tokens") or len(words)
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                for word in words[:wanted]:
                    await trio.sleep(WORD_SECONDS)
                    if sink.congested:  # the consumer is slower than we are
                        await sink.drain()
                    sink.text(word.upper() + " ")
            finally:
                self._scopes.discard(scope)
                if not self._scopes:
                    self._idle.set()
        if scope.cancelled_caught:
            raise EngineFailed("the parrot was put away")
        is_cut = wanted < len(words)
        reason = FinishReason.LENGTH if is_cut else FinishReason.STOP
        sink.finish(reason, Usage(len(words), min(wanted, len(words))))

    def _admit(self, request: EngineRequest) -> None:
        if request.model != self._name:
            raise ModelNotFound(f"there is only {self._name}", param="model")
        if request.endpoint is not Endpoint.CHAT:
            raise InvalidRequest("a parrot only talks")
        if not self._alive:
            raise EngineFailed("the parrot is not there")
        if self._draining:
            raise Draining("the parrot goes to sleep")
        if len(self._scopes) >= self._requests_max:
            raise Overloaded("too many talk to the parrot")

    async def count_tokens(self, request: EngineRequest) -> int:
        """A word is a token."""
        await trio.lowlevel.checkpoint()
        return len(_words(request))

    def capabilities(self) -> Capabilities:
        """One model. What it serves beyond chat would stand in its `endpoints`, what it can do
        beyond text in its `features`, and what makes its answers in its `digest`."""
        return Capabilities("parrot", (ModelInfo(self._name),), self._requests_max)

    def health(self) -> Health:
        """OFFLINE also while it is restarted; DEGRADED is for one that runs, but is silent."""
        return Health.HEALTHY if self._alive else Health.OFFLINE

    def load(self) -> Load:
        """From 0 to 1, and how many requests that is."""
        running = len(self._scopes)
        return Load(min(1.0, running / self._requests_max), running)

    async def drain(self) -> None:
        """Take nothing new; return when nothing runs."""
        self._draining = True
        while self._scopes:
            self._idle = trio.Event()
            await self._idle.wait()

    def kill(self) -> None:
        """End everything at once."""
        self._alive = False
        for scope in list(self._scopes):
            scope.cancel()


def _words(request: EngineRequest) -> list[str]:
    return list(_spoken(request))


def _spoken(request: EngineRequest) -> Iterator[str]:
    for message in request.body["messages"]:
        if isinstance(message.get("content"), str):
            yield from message["content"].split()

"""A dispatcher's door that plays scripts: for tests of whatever stands before it.

A script is a sequence of steps. A batch of parts is received at once, an error ends the answer, a
`Pause` is silence until the test lets it go on. Nothing depends on time or chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import trio

from aimo_node.dispatch.inference import Answer, InferenceRequest, ProviderView
from aimo_node.domain.answer import AnswerPart, Finish, Usage
from aimo_node.domain.ids import FinishReason, ModelName, PeerId, RequestId
from aimo_node.domain.models import EngineInfo, EngineState, ModelInfo
from aimo_node.errors import CodedError, ModelNotFound

FAKE_PEER = PeerId("12D3KooWFakeFakeFakeFakeFakeFakeFakeFakeFakeFakeFake")
FAKE_MODEL = ModelName("fake")
FAKE_DIGEST = b"\x0f" * 32


@dataclass(frozen=True, slots=True, eq=False)
class Pause:
    """Silence until `over` is set; `reached` tells that somebody waits for what comes after."""

    over: trio.Event = field(default_factory=trio.Event)
    reached: trio.Event = field(default_factory=trio.Event)


Step: TypeAlias = Sequence[AnswerPart] | Pause | CodedError
Script: TypeAlias = Sequence[Step]


def words(text: str, reason: FinishReason = FinishReason.STOP) -> Script:
    """A script that says `text` word by word, each in a batch of its own, and finishes."""
    parts = [word if index == 0 else f" {word}" for index, word in enumerate(text.split(" "))]
    usage = Usage(prompt_tokens=3, completion_tokens=len(parts))
    return [*([part] for part in parts), [Finish(reason, usage)]]


class FakeAnswer:
    """Plays one script; satisfies `dispatch.inference.Answer`.

    Attributes:
        cancelled: set by `cancel`.
        received: how many steps were handed out.
    """

    def __init__(self, number: int, script: Script, model: ModelName) -> None:
        self.request_id = RequestId(number.to_bytes(16, "big"))
        self.provider = FAKE_PEER
        self.path = "direct"
        self.attempts = 1
        self.model = model
        self.model_digest = FAKE_DIGEST
        self.cancelled = trio.Event()
        self.received = 0
        self._script = script

    async def receive(self, silence_seconds: float | None = None) -> Sequence[AnswerPart]:
        """The next step of the script; empty after `silence_seconds` in a pause.

        Raises:
            CodedError: the script says so.
        """
        await trio.lowlevel.checkpoint()
        step = self._script[self.received]
        if isinstance(step, Pause):
            step.reached.set()
            with trio.move_on_after(float("inf") if silence_seconds is None else silence_seconds):
                await step.over.wait()
            if not step.over.is_set():
                return []
            self.received += 1
            return await self.receive(silence_seconds)
        self.received += 1
        if isinstance(step, CodedError):
            raise step
        return step

    def cancel(self) -> None:
        """Remember that the consumer let go."""
        self.cancelled.set()


class FakeDoor:
    """Answers each request by a script; satisfies `dispatch.inference.InferenceDoor`.

    Attributes:
        script: what the next requests are answered with, or a function that chooses.
        refusal: raised by `open` while set.
        unreachable: raised by `open` while set, after it has said whom it would ask.
        opening: a pause inside `open`, if set.
        requests: what was asked, in order.
        answers: what was handed out, in order.
    """

    def __init__(self, script: Script | Callable[[InferenceRequest], Script] = ()) -> None:
        self.script = script or words("Hello there")
        self.refusal: CodedError | None = None
        self.unreachable: CodedError | None = None
        self.opening: Pause | None = None
        self.requests: list[InferenceRequest] = []
        self.answers: list[FakeAnswer] = []
        self.views: list[ProviderView] = [fake_view()]
        self.draining = False

    async def open(
        self, request: InferenceRequest, admitted: Callable[[Answer], None] | None = None
    ) -> FakeAnswer:
        """Start to play.

        Raises:
            CodedError: `refusal`, or ModelNotFound for a model no view has.
        """
        self.requests.append(request)
        await trio.lowlevel.checkpoint()
        if self.opening is not None:
            self.opening.reached.set()
            await self.opening.over.wait()
        if self.refusal is not None:
            raise self.refusal
        if request.model not in {info.name for info in self.models()}:
            raise ModelNotFound(f"The model '{request.model}' does not exist.", param="model")
        script = self.script(request) if callable(self.script) else self.script
        answer = FakeAnswer(len(self.requests), script, ModelName(request.model))
        self.answers.append(answer)
        if admitted is not None:
            admitted(answer)
        if self.unreachable is not None:
            answer.path = ""
            raise self.unreachable
        return answer

    def providers(self) -> Sequence[ProviderView]:
        """The configured views."""
        return self.views

    def models(self) -> Sequence[ModelInfo]:
        """The models of the configured views, once each."""
        return list({info.name: info for view in self.views for info in view.models}.values())


def fake_view(*models: str, peer: PeerId = FAKE_PEER) -> ProviderView:
    """A healthy, idle provider of these models."""
    names = models or (FAKE_MODEL,)
    return ProviderView(
        peer=peer,
        models=tuple(ModelInfo(ModelName(name), 4096, FAKE_DIGEST) for name in names),
        status="healthy",
        running=0,
        waiting=0,
        load=0.0,
        path="direct",
        engine="fake",
        region="",
        version="0",
        seen_seconds_ago=0.5,
        engines=(EngineInfo("fake", "fake", EngineState.RUNNING, tuple(map(ModelName, names)), 8),),
    )

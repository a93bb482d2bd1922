"""The copilot engine: the owner's own GitHub Copilot, for the owner alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from aimo_node.domain.ids import Endpoint
from aimo_node.domain.models import Health
from aimo_node.errors import (
    ConfigError,
    EngineFailed,
    EngineStartFailed,
    InvalidRequest,
    ModelNotFound,
)
from aimo_node.ports.engine import (
    AnswerSink,
    Capabilities,
    EngineRequest,
    EngineSettings,
    Progress,
)
from providers.arguments import EngineArguments, number_between
from providers.copilot.api import CopilotApi
from providers.copilot.catalogue import CHAT_PATH, CatalogueModel, choose, read_catalogue
from providers.copilot.credentials import Credential, find_credential, load_credential
from providers.copilot.github import Connect, GitHub, connect
from providers.copilot.headers import Editor, chat_headers
from providers.copilot.refusal import CopilotError, read_object
from providers.copilot.tokens import CopilotToken, Moment, TokenKeeper, read_clocks
from providers.http.upstream import ask_once
from providers.openai.dialect import ask
from providers.openai.whole import WholeAnswer
from providers.upstreams.probed_engine import ProbedEngine

REQUESTS_MAX_DEFAULT: Final = 16
PROBE_SECONDS: Final = 10.0
PROBE_AGAIN_SECONDS: Final = 2.0
"""After a failure, so that the engine is healthy again soon after Copilot is."""

DOUBT_SECONDS: Final = 1.0
"""From a request that failed to the probe: many that fail together are one doubt."""

START_RETRY_SECONDS: Final = 0.2
NOT_LOGGED_IN: Final = "nobody is logged in to Copilot: run `aimo auth copilot`"


def create(settings: EngineSettings) -> CopilotEngine:
    """Entry point ``copilot``.

    Raises:
        ConfigError: others than the owner could use it, or a setting has no meaning here.
    """
    if not settings.owner_only:
        raise ConfigError(
            "copilot serves its owner only and is never offered to a mesh: run it with"
            " `aimo up --engine copilot`, its HTTP door on loopback and behind no proxy"
        )
    if settings.endpoint or settings.api_key_file or settings.api_key_env:
        raise ConfigError(
            "copilot takes no --endpoint and no key: `aimo auth copilot` stores all it needs"
        )
    usual = Editor()
    arguments = EngineArguments("copilot")
    arguments.add_argument("--editor-version", default=usual.version)
    arguments.add_argument("--plugin-version", default=usual.plugin)
    arguments.add_argument("--start-seconds", type=number_between(0, 3600), default=30.0)
    arguments.add_argument("--probe-seconds", type=number_between(0.05, 3600), default=300.0)
    found = arguments.read(settings.engine_args)
    plan = CopilotPlan(
        settings.state_folder,
        wanted=_wanted(settings),
        requests_max=settings.requests_max or REQUESTS_MAX_DEFAULT,
        editor=Editor(found.editor_version, found.plugin_version),
        start_seconds=found.start_seconds,
        probe_every_seconds=found.probe_seconds,
    )
    return CopilotEngine(plan)


def _wanted(settings: EngineSettings) -> dict[str, str]:
    if settings.models:
        return dict(settings.models)
    if settings.served_name and not settings.model:
        raise ConfigError("--served-name needs --model: copilot serves many models by itself")
    return {settings.served_name or settings.model: settings.model} if settings.model else {}


@dataclass(frozen=True, slots=True)
class CopilotPlan:
    """What the owner configured.

    Attributes:
        folder: near which the login is kept, see `find_credential`.
        wanted: Copilot's name of each model by its name here; empty serves all that can chat.
    """

    folder: Path
    wanted: Mapping[str, str] = field(default_factory=dict)
    requests_max: int = REQUESTS_MAX_DEFAULT
    editor: Editor = field(default_factory=Editor)
    start_seconds: float = 30.0
    probe_every_seconds: float = 300.0


class CopilotEngine(ProbedEngine):
    """See the module.

    Args:
        clocks: reads both clocks; tests let the machine sleep.
        connect: makes clients of GitHub and of Copilot; tests lead them elsewhere.
    """

    name = "copilot"

    def __init__(
        self,
        plan: CopilotPlan,
        *,
        clocks: Callable[[], Moment] = read_clocks,
        connect: Connect = connect,
    ) -> None:
        super().__init__(plan.requests_max)
        self._plan = plan
        self._connect = connect
        self._keeper = TokenKeeper(self._fetch_token, clocks=clocks)
        self._api = CopilotApi(
            self._keeper, plan.editor, connect=connect, requests_max=plan.requests_max
        )
        self._models: dict[str, CatalogueModel] = {}
        self._in_doubt = trio.Event()

    async def stream(self, request: EngineRequest, sink: AnswerSink) -> None:
        """See `Engine.stream`."""
        self._check_alive()
        model = self._models.get(request.model)
        if model is None:
            raise ModelNotFound(f"copilot does not serve {request.model} here")
        if request.endpoint is not Endpoint.CHAT:
            raise InvalidRequest("the copilot engine serves chat only")
        with self._request():
            try:
                await self._ask(request, model, sink)
            except EngineFailed:
                self._in_doubt.set()
                raise

    def capabilities(self) -> Capabilities:
        """Every model that is served, for the owner's edge alone."""
        models = tuple(model.info(name) for name, model in self._models.items())
        return Capabilities(self.name, models, self._admission.requests_max, owner_only=True)

    def health(self) -> Health:
        """DEGRADED when GitHub gives no new token or Copilot was silent, OFFLINE without a token
        that is worth sending, when Copilot stays silent, before `run` and after `kill`."""
        if not self._keeper.usable:
            return Health.OFFLINE
        health = super().health()
        failing = self._keeper.failure is not None
        return Health.DEGRADED if failing and health is Health.HEALTHY else health

    async def _live(self, ready: Callable[[], None], progress: Progress) -> None:
        """Also look after the token."""
        failure: EngineStartFailed | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keeper.run)
            try:
                await super()._live(ready, progress)
            except EngineStartFailed as error:
                failure = error  # raised below, outside of the nursery's group
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _ask(self, request: EngineRequest, model: CatalogueModel, sink: AnswerSink) -> None:
        body = {
            **request.body,
            "model": model.name,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if model.answer_tokens_max and not {"max_tokens", "max_completion_tokens"} & body.keys():
            # Left to itself Copilot cuts the answers of some models short.
            body["max_tokens"] = model.answer_tokens_max
        # Whole answers are put together here: Copilot's own have text and tool calls of one
        # answer in several choices with the same number.
        into = sink if request.stream else WholeAnswer(sink)
        headers = chat_headers(body, request.request_id)
        await ask(self._api, CHAT_PATH, body, into, headers=headers)

    async def _fetch_token(self) -> CopilotToken:
        """From GitHub, with the login as it is now: the owner may have logged in again."""
        credential = self._credential()
        site = credential.site
        async with GitHub(site, editor=self._plan.editor, connect=self._connect) as github:
            return await github.copilot_token(credential.github_token)

    def _credential(self) -> Credential:
        try:
            credential = load_credential(find_credential(self._plan.folder))
        except ConfigError as error:
            raise CopilotError(str(error), final=True) from error
        if credential is None:
            raise CopilotError(NOT_LOGGED_IN, final=True)
        return credential

    async def _start(self, progress: Progress) -> None:
        deadline = trio.current_time() + self._plan.start_seconds
        told = ""
        while True:
            try:
                token = await self._keeper.first()
                if token is not None:
                    self._models = choose(self._plan.wanted, await self._list_models())
                    return
                failure = self._keeper.failure or CopilotError("GitHub does not answer")
            except EngineFailed as error:
                failure = CopilotError(error.message)
            if failure.final or trio.current_time() >= deadline:
                raise EngineStartFailed(str(failure)) from failure
            if str(failure) != told:
                told = str(failure)
                progress(f"waiting for GitHub: {told}")
            await trio.sleep(START_RETRY_SECONDS)

    async def _list_models(self) -> list[CatalogueModel]:
        status, answer = await ask_once(self._api, "/models", timeout_seconds=PROBE_SECONDS)
        if status != 200:
            raise EngineFailed(f"Copilot's model list answers with HTTP status {status}")
        return read_catalogue(read_object(answer))

    async def _pause(self) -> None:
        """Probe now and then, and soon after a failure."""
        every = self._plan.probe_every_seconds
        if self._probes_failed:
            await trio.sleep(min(every, PROBE_AGAIN_SECONDS * self._probes_failed))
        else:
            with trio.move_on_after(every):
                await self._in_doubt.wait()
                await trio.sleep(DOUBT_SECONDS)
        self._in_doubt = trio.Event()

    async def _probe(self) -> tuple[bool, bool]:
        before = self._models
        try:
            self._models = choose(self._plan.wanted, await self._list_models())
        except (EngineFailed, EngineStartFailed):
            return False, False
        return True, self._models != before

    async def _aclose(self) -> None:
        await self._api.aclose()

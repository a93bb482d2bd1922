"""The copilot engine: the owner's own GitHub Copilot, for the owner alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog
import trio

from aimo_node.domain.ids import Endpoint
from aimo_node.domain.models import Health, Load
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
from providers.admission import Admission
from providers.arguments import EngineArguments, number_between
from providers.copilot.api import CopilotApi
from providers.copilot.catalogue import CHAT_PATH, CatalogueModel, choose, read_catalogue
from providers.copilot.credentials import Credential, find_credential, load_credential
from providers.copilot.github import Connect, GitHub, connect
from providers.copilot.headers import Editor, chat_headers
from providers.copilot.refusal import CopilotError, read_object
from providers.copilot.tokens import CopilotToken, Moment, TokenKeeper, read_clocks
from providers.openai_dialect import ask
from providers.openai_whole import WholeAnswer
from providers.upstream import ask_once

REQUESTS_MAX_DEFAULT: Final = 16
PROBE_SECONDS: Final = 10.0
PROBE_AGAIN_SECONDS: Final = 2.0
"""After a failure, so that the engine is healthy again soon after Copilot is."""

PROBES_FAILED_MAX: Final = 6
DOUBT_SECONDS: Final = 1.0
"""From a request that failed to the probe: many that fail together are one doubt."""

START_RETRY_SECONDS: Final = 0.2
NOT_LOGGED_IN: Final = "nobody is logged in to Copilot: run `aimo auth copilot`"

_log: Final = structlog.get_logger()


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


class CopilotEngine:
    """See the module.

    Args:
        clocks: reads both clocks; tests let the machine sleep.
        connect: makes clients of GitHub and of Copilot; tests lead them elsewhere.
    """

    def __init__(
        self,
        plan: CopilotPlan,
        *,
        clocks: Callable[[], Moment] = read_clocks,
        connect: Connect = connect,
    ) -> None:
        self._plan = plan
        self._connect = connect
        self._keeper = TokenKeeper(self._fetch_token, clocks=clocks)
        self._api = CopilotApi(
            self._keeper, plan.editor, connect=connect, requests_max=plan.requests_max
        )
        self._admission = Admission(plan.requests_max)
        self._models: dict[str, CatalogueModel] = {}
        self._probes_failed = 0
        self._in_doubt = trio.Event()
        self._alive = False
        self._scope = trio.CancelScope()
        self._requests: set[trio.CancelScope] = set()

    async def run(self, ready: Callable[[], None], progress: Progress) -> None:
        """Get a token and the list of models, then look after both until cancelled.

        Raises:
            EngineStartFailed: not logged in, no subscription, no such model, GitHub is away.
        """
        failure: EngineStartFailed | None = None
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._keeper.run)
                    try:
                        self._models = await self._start(progress)
                        self._alive = True
                        ready()
                        await self._probe_for_ever(ready)
                    except EngineStartFailed as error:
                        failure = error  # raised below, outside of the nursery's group
                        nursery.cancel_scope.cancel()
        finally:
            self.kill()
            with trio.move_on_after(1) as scope:
                scope.shield = True
                await self._api.aclose()
        if failure is not None:
            raise failure

    async def stream(self, request: EngineRequest, sink: AnswerSink) -> None:
        """See `Engine.stream`."""
        if not self._alive:
            raise EngineFailed("the engine is not running")
        model = self._models.get(request.model)
        if model is None:
            raise ModelNotFound(f"copilot does not serve {request.model} here")
        if request.endpoint is not Endpoint.CHAT:
            raise InvalidRequest("the copilot engine serves chat only")
        with self._admission.request():
            with trio.CancelScope() as scope:
                self._requests.add(scope)
                try:
                    await self._ask(request, model, sink)
                except EngineFailed:
                    self._in_doubt.set()
                    raise
                finally:
                    self._requests.discard(scope)
            if scope.cancelled_caught:
                raise EngineFailed("the engine was stopped")

    async def count_tokens(self, request: EngineRequest) -> int:
        """Not offered: Copilot has no call for it.

        Raises:
            EngineFailed: always.
        """
        raise EngineFailed(f"Copilot does not count the tokens of {request.model}")

    def capabilities(self) -> Capabilities:
        """Every model that is served, for the owner's edge alone."""
        models = tuple(model.info(name) for name, model in self._models.items())
        return Capabilities("copilot", models, self._admission.requests_max, owner_only=True)

    def health(self) -> Health:
        """DEGRADED when GitHub gives no new token or Copilot was silent, OFFLINE without a token
        that is worth sending, when Copilot stays silent, before `run` and after `kill`."""
        if not self._alive or not self._keeper.usable or self._probes_failed >= PROBES_FAILED_MAX:
            return Health.OFFLINE
        doubtful = self._probes_failed or self._keeper.failure is not None
        return Health.DEGRADED if doubtful else Health.HEALTHY

    def load(self) -> Load:
        """Share of the places taken by this node."""
        return self._admission.load()

    async def drain(self) -> None:
        """Return when no request is running; new ones raise `Draining`."""
        await self._admission.drain()

    def kill(self) -> None:
        """Close every request's socket; idempotent."""
        self._alive = False
        self._scope.cancel()
        for scope in self._requests:
            scope.cancel()

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

    async def _start(self, progress: Progress) -> dict[str, CatalogueModel]:
        deadline = trio.current_time() + self._plan.start_seconds
        told = ""
        while True:
            try:
                token = await self._keeper.first()
                if token is not None:
                    return choose(self._plan.wanted, await self._list_models())
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

    async def _probe_for_ever(self, ready: Callable[[], None]) -> None:
        """Ask for the models now and then, and soon after a failure; new ones are offered."""
        while True:
            every = self._plan.probe_every_seconds
            if self._probes_failed:
                await trio.sleep(min(every, PROBE_AGAIN_SECONDS * self._probes_failed))
            else:
                with trio.move_on_after(every):
                    await self._in_doubt.wait()
                    await trio.sleep(DOUBT_SECONDS)
            self._in_doubt = trio.Event()
            healthy = self.health()
            try:
                models = choose(self._plan.wanted, await self._list_models())
            except (EngineFailed, EngineStartFailed):
                self._probes_failed += 1
            else:
                self._probes_failed = 0
                if models != self._models:
                    self._models = models
                    ready()
            if self.health() is not healthy:
                _log.warning("engine.health", engine="copilot", health=self.health().text)

"""An engine whose upstream lists its models, of which the owner wants some or all offered.

Requests that the upstream's rate limits would refuse are refused here, and errors are kept free of
the owner's key and of the upstream's names.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final

import structlog
import trio

from aimo_node.domain.ids import ModelName
from aimo_node.domain.models import Load, ModelInfo
from aimo_node.errors import EngineFailed, EngineStartFailed, ModelNotFound, Overloaded
from aimo_node.ports.engine import AnswerSink, Capabilities, EngineRequest, Progress
from providers.http.upstream import Heed, wall_clock
from providers.upstreams.discretion import Discretion
from providers.upstreams.model_list import ListedModel
from providers.upstreams.model_offer import (
    EVERY_MODEL,
    Offer,
    Wish,
    described,
    first_offer,
    next_offer,
    on_trust,
)
from providers.upstreams.probed_engine import CLOSE_SECONDS, ProbedEngine
from providers.upstreams.rate_limits import RateLimits
from providers.upstreams.start import wait_for_upstream

NO_ACCESS: Final = frozenset({401, 403})
_NO_LIST: Final = frozenset({404, 405})

_log: Final = structlog.get_logger()


class NoAccess(EngineStartFailed):
    """The upstream refuses the owner's key, or wants one."""


@dataclass(frozen=True, slots=True)
class UpstreamPlan:
    """What is asked of the upstream.

    Attributes:
        endpoint: as the owner gave it, for messages.
        secret: the owner's key, so that it can be kept out of messages.
    """

    endpoint: str
    wish: Wish
    start_seconds: float
    probe_every_seconds: float
    secret: str = field(default="", repr=False)


class ListingEngine(ProbedEngine):
    """See the module.

    Attributes:
        not_yet: what its list answers, by HTTP status, while the upstream loads or is busy.
        unwell: what it answers, below 500, when requests will not succeed either.
        unwell_without_list: requests will not succeed either when what it answers is no list.
    """

    not_yet: ClassVar[frozenset[int]]
    unwell: ClassVar[frozenset[int]]
    unwell_without_list: ClassVar[bool]

    def __init__(self, plan: UpstreamPlan, requests_max: int) -> None:
        super().__init__(requests_max)
        self._plan = plan
        self._offer: Offer = on_trust(plan.wish, self._unlisted)
        self._models: tuple[ModelInfo, ...] = described(plan.wish, self._offer)
        self._limits: dict[str, RateLimits] = {}
        """By the upstream's name of a model: services limit each model apart."""

    async def stream(self, request: EngineRequest, sink: AnswerSink) -> None:
        """See `Engine.stream`."""
        model = self._model_of(request)
        limits = self._limits.setdefault(model.name, RateLimits())

        def heed(status: int, headers: Mapping[str, str]) -> None:
            limits.note(status, headers, trio.current_time(), wall_clock())

        with self._request(), self._discretion(request, model):
            _check_open(limits)
            await self._ask(request, model, sink, heed)

    def capabilities(self) -> Capabilities:
        """What the upstream listed last, as far as it is wanted."""
        return Capabilities(self.name, self._models, self._admission.requests_max)

    def load(self) -> Load:
        """Share of the places taken by this node, or of the upstream's tightest rate limit."""
        own = super().load()
        now = trio.current_time()
        limited = max((limits.share(now) for limits in self._limits.values()), default=0.0)
        return replace(own, load=max(own.load, limited))

    @abstractmethod
    async def _list(self) -> tuple[int, Sequence[ListedModel]]:
        """The HTTP status, and with 200 the models.

        Raises:
            EngineFailed: no answer.
            EngineStartFailed: an answer that is no list.
        """

    @abstractmethod
    async def _ask(
        self, request: EngineRequest, model: ListedModel, sink: AnswerSink, heed: Heed
    ) -> None:
        """Put the upstream's answer into `sink`; see `Engine.stream`."""

    def _unlisted(self, name: str) -> ListedModel:
        """What is taken for granted of a model if the upstream lists nothing."""
        return ListedModel(name)

    def _model_of(self, request: EngineRequest) -> ListedModel:
        """What the upstream calls the model.

        Raises:
            EngineFailed: not running.
            ModelNotFound, InvalidRequest.
        """
        self._check_alive()
        model = self._offer.get(request.model)
        if model is None:
            raise ModelNotFound(f"this engine does not serve {request.model}")
        return model

    def _discretion(self, request: EngineRequest, model: ListedModel) -> Discretion:
        return Discretion(self._plan.secret, {model.name: request.model})

    async def _start(self, progress: Progress) -> None:
        plan, wish = self._plan, self._plan.wish
        status, listed = await wait_for_upstream(
            self._list_if_open, plan.endpoint, plan.start_seconds, progress
        )
        offer = self._first_offer(status, listed)
        if status != 200:
            names = ", ".join(wish.names)
            progress(f"the upstream lists no models; taking {names} on trust")
            return
        self._take(offer, listed)

    async def look(self) -> tuple[ModelName, ...]:
        """What the engine would offer if it started now: one try, for an engine that never runs.

        Raises:
            EngineFailed: no answer, or the upstream is not ready.
            EngineStartFailed: it would not start; `NoAccess` if the key is what is wrong.
        """
        try:
            status, listed = await self._list_if_open()
            return tuple(self._first_offer(status, listed))
        finally:
            with trio.move_on_after(CLOSE_SECONDS) as scope:
                scope.shield = True
                await self._aclose()

    def _first_offer(self, status: int, listed: Sequence[ListedModel]) -> Offer:
        wish = self._plan.wish
        if status in _NO_LIST and wish.names:
            return self._offer  # on trust, as it was made
        if status in NO_ACCESS:
            what = "refuses the key" if self._plan.secret else "wants a key"
            raise NoAccess(f"the upstream {what}: see --api-key-file and --api-key-env")
        if status != 200:
            raise EngineStartFailed(f"the upstream's model list answers with HTTP status {status}")
        return first_offer(wish, listed)

    async def _list_if_open(self) -> tuple[int, Sequence[ListedModel]]:
        status, listed = await self._list()
        if status in self.not_yet:
            raise EngineFailed(f"the model list answers with HTTP status {status}")
        return status, listed

    async def _pause(self) -> None:
        await trio.sleep(self._plan.probe_every_seconds)

    async def _probe(self) -> tuple[bool, bool]:
        try:
            status, listed = await self._list()
        except EngineFailed:
            return False, False
        except EngineStartFailed:
            return not self.unwell_without_list, False
        well = status < 500 and status not in self.unwell
        return well, status == 200 and self._refresh(listed)

    def _refresh(self, listed: Sequence[ListedModel]) -> bool:
        """Offer what a later list has; whether that is something else."""
        before = self._offer
        offer = next_offer(self._plan.wish, listed, before)
        if offer == before:
            return False
        _log.info(
            "engine.models",
            engine=self.name,
            come=sorted(offer.keys() - before.keys()),
            gone=sorted(before.keys() - offer.keys()),
        )
        self._take(offer, listed)
        return True

    def _take(self, offer: Offer, listed: Sequence[ListedModel]) -> None:
        self._offer = offer
        self._models = described(self._plan.wish, offer)
        own = {model.name for model in offer.values()}
        self._limits = {name: limits for name, limits in self._limits.items() if name in own}
        if self._plan.wish.model == EVERY_MODEL and len(offer) < len(listed):
            _log.warning(
                "engine.models_left_out",
                engine=self.name,
                offered=len(offer),
                listed=len(listed),
                fix="name the ones you want with --models",
            )


def _check_open(limits: RateLimits) -> None:
    """Refuse what the upstream would refuse.

    Raises:
        Overloaded: nothing is left of its rate limit for a while.
    """
    seconds = limits.closed_seconds(trio.current_time())
    if seconds:
        raise Overloaded(
            "the rate limit of the engine's upstream is used up",
            # A moment too early would be refused again.
            retry_after_seconds=math.ceil(seconds * 10) / 10,
        )

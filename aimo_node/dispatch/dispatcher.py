"""The edge's side of a request: admit it, choose who answers, hand out the answer.

Owns the routing table, which the mesh feeds with what it hears of providers.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence, Set
from typing import Final, Protocol

import structlog
import trio

from aimo_node.dispatch.attempts import RoutedAnswer
from aimo_node.dispatch.inference import Answer, InferenceRequest, ProviderView
from aimo_node.domain.ids import PeerId, RequestId, split_pinned
from aimo_node.domain.links import LinkFacts
from aimo_node.domain.models import Health, ModelInfo
from aimo_node.errors import (
    CodedError,
    Draining,
    ModelNotFound,
    Overloaded,
    PermissionDenied,
    ProviderNotFound,
    StreamInterrupted,
)
from aimo_node.ports.peer_network import (
    QUEUE_HEADER,
    QUEUE_NO,
    Exchange,
    OutgoingRequest,
    PeerNetwork,
)
from aimo_node.routing.policy import Candidate, Decision, RouteRequest, Verdict, choose
from aimo_node.routing.table import ProviderEntry, RoutingTable

log = structlog.get_logger()

REQUESTS_MAX: Final = 4_096
"""Requests in flight at one edge: each may hold a window of answer and a consumer's socket."""
ATTEMPTS_MAX: Final = 4
"""Candidates tried for one request: when four fail, a fifth would only add load."""
BODIES_BYTES_MAX: Final = 256 * 1024 * 1024
"""Bodies kept for the next candidate, until an answer begins."""
EXPIRE_SECONDS: Final = 1.0
_PASSING: Final = frozenset({Verdict.OFFLINE, Verdict.NOT_READY})
"""A provider of which that is said may well answer later."""


_NOT_QUEUED: Final = {QUEUE_HEADER: QUEUE_NO}


class RoutingMetrics(Protocol):
    """What routing counts."""

    attempts_total: int

    def refused(self, reason: str) -> None:
        """A request was refused before it was sent anywhere."""


class Dispatcher:
    """Admits requests, routes them and fails over. One per edge."""

    def __init__(
        self,
        network: PeerNetwork,
        table: RoutingTable,
        metrics: RoutingMetrics | None = None,
        *,
        trusted: Set[PeerId] | None = None,
    ) -> None:
        """`trusted`: the only providers that may be asked; None for all that are known."""
        self.table = table
        self._trusted = trusted
        self._network = network
        self._metrics = metrics
        self._requests: dict[RoutedAnswer, InferenceRequest | None] = {}
        """Without the request once nobody else can be asked any more."""
        self._bodies_bytes = 0
        self._draining = False
        self._idle = trio.Event()

    async def run(self) -> None:
        """Forget providers nobody reports any more; runs until cancelled."""
        while True:
            await trio.sleep(EXPIRE_SECONDS)
            for peer in self.table.expire(trio.current_time()):
                log.info("provider.forgotten", provider=peer)

    async def open(
        self, request: InferenceRequest, admitted: Callable[[Answer], None] | None = None
    ) -> RoutedAnswer:
        """See `dispatch.inference.InferenceDoor`: send it to the first candidate that takes it.

        Raises:
            CodedError: Draining, Overloaded, ModelNotFound, ProviderNotFound, or what the last
                candidate said.
        """
        try:
            answer = self._admit(request)
        except CodedError as error:
            if self._metrics is not None:
                self._metrics.refused(error.code.name)
            raise
        self._requests[answer] = request
        self._bodies_bytes += len(request.body)
        if admitted is not None:
            admitted(answer)
        try:
            await answer.attempt()
        except BaseException:
            answer.cancel()
            raise
        return answer

    def _admit(self, request: InferenceRequest) -> RoutedAnswer:
        if self._draining:
            raise Draining("this node is shutting down", retry_after_seconds=1)
        too_large = self._bodies_bytes + len(request.body) > BODIES_BYTES_MAX
        if too_large or len(self._requests) >= REQUESTS_MAX:
            raise Overloaded("this edge is at its limit", retry_after_seconds=1)
        route = self._route_of(request)
        now = trio.current_time()
        decision = choose(route, self.table, now)
        if not decision.candidates:
            raise _nobody(route, decision)
        return RoutedAnswer(
            RequestId(uuid.uuid4().bytes),
            route.model,
            decision.candidates[:ATTEMPTS_MAX],
            self,
            deadline=now + request.deadline_seconds,
        )

    async def open_exchange(self, peer: PeerId, answer: RoutedAnswer) -> Exchange:
        """Send the answer's request to `peer`.

        Raises:
            CodedError: the peer cannot be reached or does not take it.
        """
        request = self._requests[answer]
        if request is None:
            raise StreamInterrupted("the answer has begun: nobody else can go on with it")
        left = answer.deadline - trio.current_time()
        outgoing = OutgoingRequest(
            request_id=RequestId(uuid.uuid4().bytes) if answer.attempts > 1 else answer.request_id,
            endpoint=request.endpoint,
            body=request.body,
            stream=request.stream,
            deadline_ms=max(1, int(left * 1000)),
            headers={} if answer.may_queue else _NOT_QUEUED,
            public_id=request.consumer,
        )
        return await self._network.open_exchange(peer, outgoing)

    def others(self, answer: RoutedAnswer, tried: Set[PeerId]) -> Sequence[Candidate]:
        """Who may be tried instead of those that were, as things are now."""
        request = self._requests.get(answer)
        if request is None:
            return ()
        decision = choose(self._route_of(request), self.table, trio.current_time())
        untried = [one for one in decision.candidates if one.peer not in tried]
        return untried[: ATTEMPTS_MAX - answer.attempts]

    def attempt_begun(self, peer: PeerId) -> None:
        """A request goes to a provider."""
        self.table.begun(peer)
        if self._metrics is not None:
            self._metrics.attempts_total += 1

    def attempt_ended(self, peer: PeerId, *, failed: bool | None) -> None:
        """A provider is done with a request; `failed` through its own fault, None: who knows."""
        self.table.ended(peer, failed=failed, now=trio.current_time())

    def answer_begun(self, answer: RoutedAnswer) -> None:
        """The first part is here: the body is not needed any more."""
        request = self._requests[answer]
        if request is not None:
            self._requests[answer] = None
            self._bodies_bytes -= len(request.body)

    def answer_ended(self, answer: RoutedAnswer) -> None:
        """The consumer is done with the answer."""
        request = self._requests.pop(answer, None)
        if request is not None:
            self._bodies_bytes -= len(request.body)
        if not self._requests:
            self._idle.set()

    @property
    def draining(self) -> bool:
        """True once no new requests are taken."""
        return self._draining

    @property
    def running(self) -> int:
        """Requests in flight."""
        return len(self._requests)

    def drain(self) -> None:
        """Take no new requests."""
        self._draining = True

    async def wait_idle(self) -> None:
        """Return when no request is in flight."""
        while self._requests:
            self._idle = trio.Event()
            await self._idle.wait()

    def providers(self) -> Sequence[ProviderView]:
        """Everybody this node knows, also those that are offline."""
        now = trio.current_time()
        entries = sorted(self.table, key=lambda entry: entry.peer)
        facts = self._network.link_facts
        return [_view(entry, now, self._trusted, facts(entry.peer)) for entry in entries]

    def models(self) -> Sequence[ModelInfo]:
        """Each model some provider serves now, once, by name."""
        return self.table.models(self._trusted)

    def _route_of(self, request: InferenceRequest) -> RouteRequest:
        pinned, model = split_pinned(request.model)
        return RouteRequest(model, request.endpoint, request.provider or pinned, self._trusted)


def _nobody(route: RouteRequest, decision: Decision) -> CodedError:
    if route.provider is not None and not decision.provider_known:
        return ProviderNotFound(f"no provider {route.provider} is known in this mesh")
    if not decision.model_known:
        return ModelNotFound(
            f"no provider in this mesh serves the model {route.model!r}; "
            "GET /v1/models lists what is there",
            param="model",
        )
    verdicts = {verdict for _, verdict in decision.excluded}
    whom = "no provider in this mesh can" if route.provider is None else "that provider cannot"
    if route.trusted is not None and verdicts <= {Verdict.UNTRUSTED}:
        return _untrusted(route)
    if verdicts == {Verdict.WRONG_MODEL}:
        return ModelNotFound(f"that provider does not serve {route.model!r}", param="model")
    if not verdicts & _PASSING:
        what = f"answer {route.endpoint.name.lower()} with"
        return ModelNotFound(f"{whom} {what} the model {route.model!r}", param="model")
    return Overloaded(
        f"{whom} take a request for {route.model!r} now ({', '.join(sorted(verdicts))})",
        retry_after_seconds=2,
    )


def _untrusted(route: RouteRequest) -> CodedError:
    if route.provider is not None:
        return PermissionDenied(
            f"this edge does not trust the provider {route.provider}: its operator lists in"
            " edge.trust whom it may ask"
        )
    return ModelNotFound(
        f"no provider that this edge trusts serves the model {route.model!r}; GET /v1/providers"
        " shows who serves it",
        param="model",
    )


def _view(
    entry: ProviderEntry, now: float, trusted: Set[PeerId] | None, link: LinkFacts | None
) -> ProviderView:
    load = entry.load
    status = "suspect" if entry.suspect else entry.health.text
    if entry.health is Health.OFFLINE:
        status = Health.OFFLINE.text
    return ProviderView(
        peer=entry.peer,
        models=entry.descriptor.models,
        status=status,
        running=max(load.running, entry.in_flight),
        waiting=load.waiting,
        load=load.load,
        kv_used=load.kv_used,
        prefix_hits=load.prefix_hits,
        first_token_seconds=load.first_token_seconds,
        path=entry.path,
        engine=entry.descriptor.engine,
        engines=entry.descriptor.engines,
        region=entry.descriptor.region,
        version=entry.descriptor.version,
        seen_seconds_ago=max(0.0, now - entry.heard_at),
        trusted=trusted is None or entry.peer in trusted,
        link=link,
    )

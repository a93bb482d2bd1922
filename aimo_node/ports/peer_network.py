"""The peer network port: how dispatch reaches providers and how a provider hears of requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from aimo_node.domain.answer import AnswerPart, Finish
from aimo_node.domain.ids import ContentType, Endpoint, PeerId, RequestId
from aimo_node.domain.links import LinkFacts
from aimo_node.errors import CodedError

QUEUE_HEADER: Final = "queue"
QUEUE_NO: Final = "no"
"""A request with this header is refused when every place is taken: there are others to ask."""


@dataclass(frozen=True, slots=True)
class OutgoingRequest:
    """A request on its way to a provider.

    Attributes:
        body: canonical JSON, UTF-8, at most `protocol.limits.BODY_BYTES_MAX`.
        deadline_ms: what is left of the consumer's patience when it is sent.
        public_id: names the consumer without telling who it is (limits, cache salt).
    """

    request_id: RequestId
    endpoint: Endpoint
    body: bytes
    stream: bool
    deadline_ms: int
    headers: Mapping[str, str] = field(default_factory=dict)
    public_id: str = ""


class Exchange(Protocol):
    """One request in flight, seen from the edge. One task reads it."""

    path: str
    """How the provider is reached: ``local``, ``direct``, ``circuit`` or ``gossip``."""

    async def receive(self) -> Sequence[AnswerPart]:
        """All parts that have arrived, at least one; asking again acknowledges the former ones.

        Raises:
            CodedError: the provider's error, or NetworkError when the link is lost. Parts that
                arrived before the error are returned first.
        """

    def cancel(self) -> None:
        """Stop the request at the provider; safe to call at any time, also after the end."""


class PeerNetwork(Protocol):
    """Reaches peers by whatever path works."""

    async def open_exchange(self, peer: PeerId, request: OutgoingRequest) -> Exchange:
        """Send the request, dialling first if there is no link.

        Raises:
            NetworkError: the peer cannot be reached.
            Overloaded: the link carries as many requests as it may.
        """

    def link_facts(self, peer: PeerId) -> LinkFacts | None:
        """What is known of the open link to a peer; None if there is none."""


class IncomingRequest(Protocol):
    """One request in flight, seen from the provider; also where the answer goes."""

    request_id: RequestId
    peer: PeerId
    endpoint: Endpoint
    stream: bool
    deadline_ms: int
    headers: Mapping[str, str]
    public_id: str

    @property
    def inline(self) -> bool:
        """Whether the body came with the request, so that `read_body` does not wait."""

    def accept(self, model_digest: bytes = b"", queue_position: int = 0) -> None:
        """Tell the edge that the request was admitted; uploads may go on from here."""

    async def read_body(self) -> bytes:
        """The whole body, once it is here."""

    def send_text(self, delta: str) -> None:
        """Send text; stops the request when too much waits for a slow consumer."""

    def send_json(self, choices: bytes) -> None:
        """Send a JSON delta.

        Raises:
            PayloadTooLarge: over one frame.
        """

    def finish(self, finish: Finish) -> None:
        """End a streamed answer."""

    def respond(self, content_type: ContentType, payload: bytes, finish: Finish) -> None:
        """Answer a request that is not streamed, as a whole."""

    def fail(self, error: CodedError) -> None:
        """End the request with an error."""

    @property
    def backlog_bytes(self) -> int:
        """Payload bytes that wait for credit."""

    async def wait_backlog_below(self, limit_bytes: int) -> None:
        """Return when less than `limit_bytes` wait for credit."""


RequestHandler = Callable[[IncomingRequest], Awaitable[None]]
"""Runs one request from admission to its end; cancelled when the consumer or the link leaves."""

"""One link: a protocol session on one byte stream, with its reader, writer and timer.

What arrives is dealt with in the task that reads the connection, and a lone frame is written by
whoever has it: a task that is woken for either costs as much as all the rest. The writer takes what
gathers. It and the reader, which waits for the end, are not cancelled while the link lives.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol

import structlog
import trio

from aimo_node.domain.ids import PeerId, RequestId, Role
from aimo_node.errors import (
    AimoError,
    CloseCode,
    CodedError,
    Draining,
    InternalError,
    ModelNotFound,
    NetworkError,
    PermissionDenied,
)
from aimo_node.mesh.exchange import LinkExchange, Parking, ServedRequest
from aimo_node.ports.peer_network import OutgoingRequest, RequestHandler
from aimo_node.protocol import limits
from aimo_node.protocol.asking import Terms
from aimo_node.protocol.events import (
    BodyReceived,
    CreditReceived,
    Event,
    LinkClosed,
    LinkOpened,
    PartReceived,
    PeerDraining,
    PeerRecovered,
    PeerSuspect,
    ProbeAnswered,
    RequestFailed,
    RequestReceived,
    RequestWithdrawn,
)
from aimo_node.protocol.frames import Descriptor, Directory, Heartbeat, Receipt, Subscribe
from aimo_node.protocol.session import Announcement, Session

log = structlog.get_logger()

READ_BYTES: Final = 65_536
AWAY_SECONDS: Final = 3.0
"""A timer that is later than this says that this process did not run, not that the peer is gone."""
CLOSE_SECONDS: Final = 1.0
"""How long the last GoAway may take."""
LINGER_SECONDS: Final = 0.5
"""How long the peer may take to hear it: many round trips."""


class ByteStream(Protocol):
    """What a link runs on: a libp2p stream, or a pipe inside the process."""

    peer: PeerId
    initiator: bool
    remote_address: str
    path: str
    """How it reaches the peer: `direct`, `circuit` or `local`."""
    relay: PeerId | None
    """Who carries it, if it is a circuit."""
    reason: str
    """Why it is this path, in a few words."""

    async def read(self, max_bytes: int = READ_BYTES) -> bytes:
        """What has arrived; empty at the end. Raises NetworkError."""

    async def deliver(self, sink: Callable[[bytes], bool]) -> None:
        """Hand what arrives to `sink`, in whatever task has it, until that returns false or at the
        end. Whoever is cancelled here loses nothing. Raises NetworkError, and what `sink` raises.
        """

    async def write(self, data: bytes) -> None:
        """Write all of `data`. Raises NetworkError."""

    def write_nowait(self, data: bytes) -> bool:
        """Write all of `data` if that needs no waiting; whether it was written. NetworkError."""

    async def close(self) -> None:
        """End it in an orderly way."""

    async def reset(self) -> None:
        """End it at once."""


class LinkObserver(Protocol):
    """Hears what happens on links; calls must not block."""

    def link_opened(self, link: Link) -> None:
        """The peer's Hello was accepted."""

    def link_closed(self, link: Link, code: CloseCode, message: str) -> None:
        """The link has ended; also called for one that never opened."""

    def link_changed(self, link: Link) -> None:
        """The peer became suspect, recovered, or drains."""

    def announced(self, link: Link, frame: Announcement) -> None:
        """A Heartbeat, Descriptor, Directory, Subscribe or Receipt arrived."""


def _never(_link: Link) -> bool:
    return False


class Link:
    """The one link to a peer. Owned by the network; `run` is its life.

    Args:
        stream: what it runs on.
        session: the protocol on it.
        observer: hears what happens.
        handler: answers requests; None if this node serves none.
        is_needed: whether it has to stay although it drains and nothing runs on it.
    """

    def __init__(
        self,
        stream: ByteStream,
        session: Session,
        observer: LinkObserver,
        *,
        handler: RequestHandler | None = None,
        is_needed: Callable[[Link], bool] = _never,
    ) -> None:
        self.stream = stream
        self.session = session
        self.peer = stream.peer
        self.path = stream.path
        self.reason = stream.reason
        """Why it is this path; whoever tries another one may say how that went."""
        self.since = 0.0
        """When it opened, in seconds since the epoch; 0 before."""
        self.open_at = 0.0
        """The same in steady time."""
        self.opened = trio.Event()
        self.closed = trio.Event()
        self.settled = trio.Event()
        """Set once it is known whether the link opened."""
        self.welcome = trio.Event()
        """Set once the peer has answered `probe`, and when the link ends."""
        self.ended = trio.Event()
        """Set once the last word is written and the stream is closed."""
        self.close_code = CloseCode.Normal
        self.close_message = ""
        self.is_lost = False
        """Whether it ended without a GoAway from either side."""
        self._ended_by_peer = False
        self._is_over = False
        self._observer = observer
        self._handler = handler
        self._is_needed = is_needed
        self._exchanges: dict[RequestId, LinkExchange] = {}
        self._served: dict[RequestId, ServedRequest] = {}
        self._output = Parking()
        self._unwritten = b""
        self._nursery: trio.Nursery | None = None
        self._now = trio.lowlevel.current_clock().current_time
        self.bytes_in = 0
        self.bytes_out = 0

    @property
    def roles(self) -> Role:
        """What the peer says it does."""
        hello = self.session.hello
        return Role(hello.roles & int(~Role.NONE)) if hello is not None else Role.NONE

    @property
    def rights(self) -> Role:
        """The roles the peer may act in now."""
        return self.session.rights

    @property
    def usable(self) -> bool:
        """Whether new requests may go over this link."""
        return self.opened.is_set() and not self.closed.is_set() and not self.draining

    @property
    def draining(self) -> bool:
        """Whether the peer takes no new requests."""
        return self.session.remote_draining

    @property
    def round_trip_seconds(self) -> float | None:
        """As measured last; None before the first answer, milliseconds after the link opened."""
        return self.session.rtt_seconds

    async def run(self) -> None:
        """Live until the link ends, whichever side ends it; then everything on it has ended."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._write_until_closed, nursery.cancel_scope)
                nursery.start_soon(self._keep_time)
                await self._read_loop()
                nursery.cancel_scope.cancel()
        finally:
            self._end("the link was closed")
            with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_SECONDS):
                await self._say_goodbye()
            self.ended.set()

    def open_exchange(self, request: OutgoingRequest) -> LinkExchange:
        """Send a request over this link.

        Raises:
            Draining, Overloaded, PayloadTooLarge, NetworkError (the link has ended).
        """
        if self.closed.is_set():
            raise NetworkError("the link to the provider was closed")
        if self.draining:
            raise Draining("the provider is going away")
        self.session.asking.open(
            request.request_id,
            request.endpoint,
            request.body,
            stream=request.stream,
            terms=Terms(request.deadline_ms, request.headers, request.public_id),
        )
        exchange = self._exchanges[request.request_id] = LinkExchange(self, request.request_id)
        self._flush_now()
        return exchange

    def cancel(self, request_id: RequestId) -> None:
        """Stop a request this node sent; unknown ids are ignored."""
        if self._exchanges.pop(request_id, None) is not None:
            self.session.asking.cancel(request_id)
            self.flush()

    def consumed(self, request_id: RequestId, size: int) -> None:
        """The consumer took `size` payload bytes."""
        self.session.asking.consumed(request_id, size)
        if self.session.has_output:
            self.flush()

    def announce(self, frame: Announcement) -> None:
        """Send a frame that stands alone; dropped if the link is not open."""
        self.session.announce(frame)
        self._flush_now()

    def probe(self) -> None:
        """Ask the peer whether it admits us, too: see `welcome`."""
        self.session.probe(trio.current_time())
        self._flush_now()

    def expire(self) -> None:
        """What admitted the peer has ended: as `drain`, and it may act in no role any more."""
        self.session.expire()
        self.flush()

    def drain(self) -> None:
        """Take no new requests over this link; it ends with the last running one."""
        self.session.drain()
        self.flush()

    def close(self, code: CloseCode = CloseCode.Normal, message: str = "") -> None:
        """End the link."""
        self._handle(self.session.close(code, message))

    def flush(self) -> None:
        """There may be output: the writer joins what comes before its turn."""
        self._output.wake()

    def _flush_now(self) -> None:
        """There is output, probably alone: waking the writer for it costs more than writing it."""
        if self._output.task is None:
            return
        outbox = self.session.outbox
        data = outbox.take()
        try:
            if data and not self.stream.write_nowait(data):
                self._unwritten = data
        except NetworkError as error:
            self._lose(str(error))
        else:
            self.bytes_out += len(data)
        if self._unwritten or outbox:
            self._output.wake()

    async def _read_loop(self) -> None:
        try:
            await self.stream.deliver(self._take_in)
        except NetworkError as error:
            self._lose(str(error))
            return
        self._lose("the peer closed the connection")

    def _take_in(self, data: bytes) -> bool:
        """What arrived, in the task that reads the connection; whether to go on."""
        session = self.session
        self.bytes_in += len(data)
        self._handle(session.receive_data(data, self._now()))
        if session.outbox:
            self._flush_now()
        return not session.closed

    async def _write_until_closed(self, life: trio.CancelScope) -> None:
        """The reader may wait for a peer that will never speak again: end with the last write."""
        await self._write_loop()
        life.cancel()

    async def _write_loop(self) -> None:
        session, stream = self.session, self.stream
        while True:
            data = self._unwritten or session.take_output()
            if not data:
                if session.closed:
                    return
                await self._output.wait()
                continue
            try:
                await stream.write(data)
                if self._unwritten:
                    self._unwritten = b""
                    continue
            except NetworkError as error:
                self._lose(str(error))
                await stream.reset()
                return
            self.bytes_out += len(data)

    async def _keep_time(self) -> None:
        session = self.session
        while not session.closed:
            # deadlines also move closer, as when the Hello is here: look at least that often
            latest = trio.current_time() + limits.PING_SECONDS
            wake_at = min(session.next_deadline(), latest)
            await trio.sleep_until(wake_at)
            now = trio.current_time()
            if now - wake_at > AWAY_SECONDS:
                session.excuse(now)
            self._handle(session.handle_deadline(now))
            if session.draining and self.opened.is_set() and not self._is_in_use():
                self.close(CloseCode.Normal, "drained")
            self._output.wake()

    def _is_in_use(self) -> bool:
        return self.session.busy or self._is_needed(self)

    async def _say_goodbye(self) -> None:
        try:
            while data := self.session.take_output():
                await self.stream.write(data)
            if self.session.closed and not self._ended_by_peer:
                await self._linger()
            await self.stream.close()
        except AimoError as error:
            log.debug("link.goodbye_lost", peer=self.peer, error=str(error))
            await self.stream.reset()

    async def _linger(self) -> None:
        """Read on until the peer has heard the GoAway and gone: a connection that is closed with
        something unread is reset, and the reset takes along what the peer has not read yet."""
        with trio.move_on_after(LINGER_SECONDS):
            while await self.stream.read(READ_BYTES):
                pass

    def _handle(self, events: list[Event]) -> None:
        exchanges = self._exchanges
        for event in events:
            if type(event) is PartReceived:
                exchange = exchanges.get(event.request_id)
                if exchange is not None:
                    exchange.put(event)
            elif not self._is_over:  # as an event before it in the same bytes may have made it
                self._handle_rare(event)

    def _handle_rare(self, event: Event) -> None:
        match event:
            case Heartbeat() | Descriptor() | Directory() | Subscribe() | Receipt():
                self._observer.announced(self, event)
            case RequestReceived():
                self._serve(event)
            case RequestFailed():
                exchange = self._exchanges.pop(event.request_id, None)
                if exchange is not None:
                    exchange.fail(event.error)
            case CreditReceived() | BodyReceived() | RequestWithdrawn():
                self._tell_served(event)
            case LinkOpened() | ProbeAnswered():
                self._begin(event)
            case LinkClosed():
                self.close_code, self.close_message = event.close_code, event.message
                self._ended_by_peer = event.by_peer
                self._end(event.message)
            case PeerSuspect() | PeerRecovered() | PeerDraining():
                self._observer.link_changed(self)
            case _:
                return

    def _begin(self, event: LinkOpened | ProbeAnswered) -> None:
        """We admit the peer; or, heard later and only if asked for, it admits us."""
        if isinstance(event, ProbeAnswered):
            self.welcome.set()
            return
        self.since, self.open_at = time.time_ns() / 1e9, trio.current_time()
        self.opened.set()
        self.settled.set()
        self.session.measure(self.open_at)
        self._observer.link_opened(self)

    def _serve(self, event: RequestReceived) -> None:
        request_id = RequestId(event.request.request_id)
        try:
            if Role.EDGE not in self.rights:
                raise PermissionDenied("the certificate of this node is not for the role edge")
            if self._handler is None or self._nursery is None:
                raise ModelNotFound("this node serves no models")
            served = ServedRequest(self, event)
        except CodedError as error:
            self.session.answering.fail(request_id, error)
            return
        self._served[request_id] = served
        self._nursery.start_soon(self._run_handler, self._handler, served)

    async def _run_handler(self, handler: RequestHandler, served: ServedRequest) -> None:
        try:
            with served.scope:
                await handler(served)
        except CodedError as error:
            served.fail(error)
        except Exception:  # the root of a request's task: it must not take the link down
            log.exception("request.crashed", peer=self.peer, request=served.request_id.hex())
            served.fail(InternalError("the provider failed; its log says why"))
        finally:
            self._served.pop(served.request_id, None)

    def _tell_served(self, event: CreditReceived | BodyReceived | RequestWithdrawn) -> None:
        served = self._served.get(event.request_id)
        if served is None:
            return
        if isinstance(event, CreditReceived):
            served.credit_arrived()
        elif isinstance(event, BodyReceived):
            served.body_arrived(event.body)
        else:
            served.scope.cancel()

    def _lose(self, message: str) -> None:
        """The connection is gone."""
        self.is_lost |= not self.session.closed
        self._handle(self.session.connection_lost(message))

    def _end(self, message: str) -> None:
        """Fail what still runs; idempotent."""
        if self._is_over:
            return
        self._is_over = True
        self.closed.set()
        self.settled.set()
        self.welcome.set()
        how = "was lost" if self.is_lost else f"was closed: {message}"
        error = NetworkError(f"the link to the provider {how}")
        for exchange in list(self._exchanges.values()):
            exchange.fail(error)
        self._exchanges.clear()
        for served in list(self._served.values()):
            served.scope.cancel()
        self._output.wake()
        self._observer.link_closed(self, self.close_code, message)

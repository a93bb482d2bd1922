"""One link's state machine, sans-I/O: bytes and commands in, events and bytes out.

The session never blocks, reads no clock (`now` is an argument, in seconds) and calls nobody back.
After any call that may produce output, `take_output` hands out the writes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from aimo_node.domain.ids import PeerId, RequestId, Role
from aimo_node.errors import CloseCode, LocalProtocolError, RemoteProtocolError
from aimo_node.protocol import codec, limits
from aimo_node.protocol.answering import Answering
from aimo_node.protocol.asking import Asking
from aimo_node.protocol.credit import WindowBudget
from aimo_node.protocol.events import (
    Event,
    LinkClosed,
    LinkOpened,
    PeerDraining,
    PeerRecovered,
    PeerSuspect,
    ProbeAnswered,
)
from aimo_node.protocol.frames import (
    Accepted,
    Body,
    Cancel,
    Credit,
    Descriptor,
    Directory,
    Error,
    Frame,
    GoAway,
    Heartbeat,
    Hello,
    Ping,
    Pong,
    Receipt,
    Request,
    Response,
    StreamChunk,
    Subscribe,
)
from aimo_node.protocol.handshake import Doorkeeper
from aimo_node.protocol.liveness import Liveness
from aimo_node.protocol.scheduling import Outbox
from aimo_node.protocol.states import LinkState

Announcement: TypeAlias = Heartbeat | Descriptor | Directory | Subscribe | Receipt
"""Frames that stand alone: sent and received without state."""

_ROLE_TO_SAY: Final[dict[type[Frame], Role]] = {
    Heartbeat: Role.PROVIDER,
    Descriptor: Role.PROVIDER,
    Directory: Role.RELAY,
    Subscribe: Role.EDGE,
}

_Handler: TypeAlias = Callable[[Any, list[Event], float], None]
_NEVER: Final = float("inf")
_AT_ONCE: Final = float("-inf")
_TALKING: Final = (LinkState.OPEN, LinkState.DRAINING)


class Session:
    """A link between `admission.peer` and `remote`. One task owns it.

    `asking` holds the requests this node sends, `answering` those it serves; both use the same
    output and the same credit budget.
    """

    def __init__(self, admission: Doorkeeper, remote: PeerId, now: float) -> None:
        self._admission = admission
        self._remote = remote
        self._reader = codec.FrameReader(limits.HELLO_BYTES_MAX)
        self.outbox = Outbox()
        """What waits to be written; true if there is anything."""
        self._liveness = Liveness(now)
        self._hello_deadline = now + limits.HELLO_SECONDS
        budget = WindowBudget()
        self.asking = Asking(self.outbox, budget)
        self.answering = Answering(self.outbox, budget)
        self.state = LinkState.HELLO
        self.remote_draining = False
        self.draining = False
        self._is_probing = False
        self.hello: Hello | None = None
        self.rights = Role.NONE
        """The roles the peer may act in: none before its Hello was accepted, none once its proof
        has ended."""
        self._handlers: dict[type[Frame], _Handler] = self._handler_table()
        self.outbox.put_control(codec.encode(admission.hello_to(remote)))

    def _handler_table(self) -> dict[type[Frame], _Handler]:
        asking, answering = self.asking, self.answering
        table: dict[type[Frame], _Handler] = {
            Accepted: lambda frame, events, _now: asking.on_accepted(frame, events),
            Response: lambda frame, events, _now: asking.on_response(frame, events),
            Error: lambda frame, events, _now: asking.on_error(frame, events),
            Request: self._on_request,
            Cancel: lambda frame, events, _now: answering.on_cancel(frame, events),
            Body: self._on_body,
            Credit: self._on_credit,
            Ping: self._on_ping,
            Pong: self._on_pong,
            GoAway: self._on_go_away,
            Hello: self._on_second_hello,
        }
        for kind in (Heartbeat, Descriptor, Directory, Subscribe, Receipt):
            table[kind] = self._on_announcement
        return table

    def receive_data(self, data: bytes, now: float) -> list[Event]:
        """What the bytes from the peer mean. After `LinkClosed` nothing is read any more."""
        events: list[Event] = []
        if self.state is LinkState.CLOSED:
            return events
        if self._liveness.heard(now):
            events.append(PeerRecovered())
        on_chunk, handlers = self.asking.on_chunk, self._handlers
        try:
            for frame in self._reader.feed(data):
                if type(frame) is StreamChunk and self.state is not LinkState.HELLO:
                    on_chunk(frame, events)
                    continue
                if self.state is LinkState.HELLO:
                    self._on_hello(frame, events)
                else:
                    handlers[type(frame)](frame, events, now)
                if self.closed:
                    return events
            if self.outbox.overflowed:
                self._check_overflow()
        except RemoteProtocolError as error:
            self._close(error.close_code, str(error), events)
        return events

    def take_output(self) -> bytes:
        """The next write, at most `WRITE_BYTES_MAX` bytes; empty if there is none."""
        return self.outbox.take()

    @property
    def has_output(self) -> bool:
        """Whether `take_output` has something."""
        return bool(self.outbox)

    @property
    def closed(self) -> bool:
        """Whether the link has ended."""
        return self.state is LinkState.CLOSED

    @property
    def busy(self) -> bool:
        """Whether a request is running in either direction, or its last frames wait to be taken."""
        return bool(self.asking.requests or self.answering.requests or self.outbox.busy)

    @property
    def suspect(self) -> bool:
        """Whether the peer has been silent for `SUSPECT_SECONDS`."""
        return self._liveness.suspect

    @property
    def rtt_seconds(self) -> float | None:
        """The last measured round trip."""
        return self._liveness.rtt_seconds

    @property
    def heard_at(self) -> float:
        """When anything arrived last."""
        return self._liveness.heard_at

    def excuse(self, now: float) -> None:
        """This node was stopped or asleep until now, so that its deadlines passed unseen: none of
        that is the peer's silence."""
        self._liveness.excuse(now)
        self._hello_deadline = max(self._hello_deadline, now + limits.HELLO_SECONDS)

    def next_deadline(self) -> float:
        """When `handle_deadline` wants to be called, at the latest."""
        if self.state is LinkState.CLOSED:
            return _NEVER
        if self.state is LinkState.HELLO:
            return self._hello_deadline
        if self.outbox.overflowed:
            return _AT_ONCE
        return self._liveness.next_deadline()

    def handle_deadline(self, now: float) -> list[Event]:
        """Do what time demands: ping, suspect, give up."""
        events: list[Event] = []
        if self.state is LinkState.CLOSED:
            return events
        if self.state is LinkState.HELLO:
            if now >= self._hello_deadline:
                self._close(CloseCode.HelloTimeout, "no Hello in time", events)
            return events
        if self._liveness.is_dead(now):
            seconds = limits.DEAD_SECONDS
            self._close(CloseCode.PeerSilent, f"silent for {seconds:.0f} s", events)
            return events
        try:
            self._check_overflow()
        except RemoteProtocolError as error:
            self._close(error.close_code, str(error), events)
            return events
        nonce = self._liveness.ping_due(now)
        if nonce is not None:
            self.outbox.put_control(codec.encode(Ping(nonce)))
        if self._liveness.turned_suspect(now):
            events.append(PeerSuspect())
        return events

    def probe(self, now: float) -> None:
        """Send a Ping though none is due; `ProbeAnswered` says that the peer admits us, too."""
        if self.state in _TALKING:
            self._is_probing = True
            self.outbox.put_control(codec.encode(Ping(self._liveness.ping(now))))

    def measure(self, now: float) -> None:
        """Send a Ping though none is due: its answer is a first round trip."""
        if self.state in _TALKING:
            self.outbox.put_control(codec.encode(Ping(self._liveness.measure(now))))

    def announce(self, frame: Announcement) -> None:
        """Send a frame that stands alone; dropped unless the link is open.

        Raises:
            LocalProtocolError: larger than a frame may be.
        """
        if self.state not in _TALKING:
            return
        data = codec.encode(frame)
        if len(data) > limits.FRAME_BYTES_MAX:
            raise LocalProtocolError(f"a {type(frame).__name__} of {len(data)} bytes is too large")
        self.outbox.put_announcement(data)

    def readmit(self, hello: Hello) -> None:
        """Judge the peer by another Hello from now on: it has shown a new proof.

        Raises:
            RemoteProtocolError: that one would not have been accepted.
        """
        self._admission.check(hello, self._remote)
        self.hello, self.rights = hello, self._admission.rights(hello)

    def expire(self) -> None:
        """The peer's proof has ended: it may begin nothing any more, what runs may finish."""
        self.rights = Role.NONE
        self.drain()

    def drain(self) -> None:
        """Take no new requests; running ones finish."""
        if self.draining:
            return
        self.draining = True
        if self.state in _TALKING:
            self._say_draining()

    def _say_draining(self) -> None:
        self.state = LinkState.DRAINING
        self.outbox.put_control(codec.encode(GoAway(int(CloseCode.Draining), "draining")))

    def close(self, code: CloseCode = CloseCode.Normal, message: str = "") -> list[Event]:
        """End the link; a GoAway is the last output."""
        events: list[Event] = []
        if self.state is not LinkState.CLOSED:
            self._close(code, message, events)
        return events

    def connection_lost(self, message: str) -> list[Event]:
        """The transport is gone: no output any more."""
        if self.state is LinkState.CLOSED:
            return []
        self._end()
        self.outbox.drop_tail()
        return [LinkClosed(CloseCode.Normal, message, by_peer=True)]

    def _on_hello(self, frame: Frame, events: list[Event]) -> None:
        if type(frame) is GoAway:
            self._on_go_away(frame, events, 0.0)
            return
        if type(frame) is not Hello:
            raise RemoteProtocolError("the first frame is not Hello")
        version = self._admission.check(frame, self._remote)
        self._reader.frame_bytes_max = limits.FRAME_BYTES_MAX
        self.hello, self.rights = frame, self._admission.rights(frame)
        self.state = LinkState.OPEN
        self.asking.requests_max = min(frame.limits.requests, limits.REQUESTS_PER_LINK_MAX)
        events.append(LinkOpened(frame, version))
        if self.draining:
            self._say_draining()

    def _on_announcement(self, frame: Announcement, events: list[Event], _now: float) -> None:
        """What is said in a role the peer may not act in is not heard."""
        needed = _ROLE_TO_SAY.get(type(frame))
        if needed is None or needed in self.rights:
            events.append(frame)

    def _on_second_hello(self, _frame: Hello, _events: list[Event], _now: float) -> None:
        raise RemoteProtocolError("a second Hello")

    def _on_request(self, frame: Request, events: list[Event], _now: float) -> None:
        if RequestId(frame.request_id) in self.asking.requests:
            raise RemoteProtocolError("request id is in use in the other direction")
        self.answering.on_request(frame, events, draining=self.draining)

    def _on_body(self, frame: Body, events: list[Event], _now: float) -> None:
        if not self.asking.on_body(frame, events):
            self.answering.on_body(frame, events)

    def _on_credit(self, frame: Credit, events: list[Event], _now: float) -> None:
        if not self.answering.on_credit(frame, events):
            self.asking.on_credit(frame)

    def _on_ping(self, frame: Ping, _events: list[Event], _now: float) -> None:
        self.outbox.put_control(codec.encode(Pong(frame.nonce)))

    def _on_pong(self, frame: Pong, events: list[Event], now: float) -> None:
        self._liveness.pong(frame.nonce, now)
        if self._is_probing:
            self._is_probing = False
            events.append(ProbeAnswered())

    def _on_go_away(self, frame: GoAway, events: list[Event], _now: float) -> None:
        if frame.close_code == CloseCode.Draining and self.state is not LinkState.HELLO:
            if not self.remote_draining:
                self.remote_draining = True
                self.state = LinkState.DRAINING
                events.append(PeerDraining())
            return
        self._end()
        try:
            code = CloseCode(frame.close_code)
        except ValueError:
            code = CloseCode.Normal
        events.append(LinkClosed(code, frame.message, by_peer=True))

    def _close(self, code: CloseCode, message: str, events: list[Event]) -> None:
        self._end()
        text = message[: limits.MESSAGE_CHARS_MAX]
        self.outbox.put_control(codec.encode(GoAway(int(code), text)))
        events.append(LinkClosed(code, message, by_peer=False))

    def _check_overflow(self) -> None:
        """Local commands cannot raise what is the peer's fault: the next turn of the link does."""
        if self.outbox.overflowed:
            raise RemoteProtocolError("the peer does not read what it makes this node send")

    def _end(self) -> None:
        """Every request ends with the link, and nothing can be queued any more."""
        self.state = LinkState.CLOSED
        self.asking.end_all()
        self.answering.end_all()
        self.outbox.clear()

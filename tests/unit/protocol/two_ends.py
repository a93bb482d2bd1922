"""What the tests of the wire share: a session played against by hand, and two joined by a wire."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from aimo_node.domain.ids import Endpoint, PeerId, RequestId
from aimo_node.protocol import codec, limits
from aimo_node.protocol.asking import Terms
from aimo_node.protocol.events import Event
from aimo_node.protocol.frames import Frame, Hello
from aimo_node.protocol.handshake import Admission
from aimo_node.protocol.session import Session

EDGE = PeerId("12D3KooWEdge")
PROVIDER = PeerId("12D3KooWProvider")
TERMS = Terms(deadline_ms=30_000)


def request_id(number: int) -> RequestId:
    """A request id that is easy to recognise."""
    return RequestId(number.to_bytes(16, "big"))


def encoded(*frames: Frame) -> bytes:
    """The frames as they travel."""
    return b"".join(codec.encode(frame) for frame in frames)


def decoded(data: bytes) -> list[Frame]:
    """The frames that were written."""
    return list(codec.FrameReader().feed(data))


def written(session: Session) -> list[Frame]:
    """Everything the session has to say now."""
    return decoded(b"".join(drained(session)))


def drained(session: Session) -> list[bytes]:
    """The writes the session has to make now."""
    writes = []
    while data := session.take_output():
        writes.append(data)
    return writes


class Played:
    """One session under test; the test plays its peer frame by frame."""

    def __init__(self, *, opened: bool = True, now: float = 0.0) -> None:
        self.session = Session(Admission(PROVIDER), EDGE, now)
        if opened:
            self.hears(Hello([1]))
            written(self.session)

    def hears(self, *frames: Frame, now: float = 0.0) -> list[Event]:
        """The peer sends these frames in one piece."""
        return self.session.receive_data(encoded(*frames), now)

    def says(self) -> list[Frame]:
        """What goes to the peer now."""
        return written(self.session)

    def asks(self, number: int = 1, body: bytes = b"{}", *, stream: bool = True) -> RequestId:
        """Open a request of ours."""
        rid = request_id(number)
        self.session.asking.open(rid, Endpoint.CHAT, body, stream=stream, terms=TERMS)
        return rid


Cutter = Callable[[bytes], Iterable[bytes]]


def whole(data: bytes) -> Iterable[bytes]:
    """Deliver a write in one piece."""
    return (data,)


class TwoEnds:
    """An edge and a provider joined by a wire that a test moves by hand."""

    def __init__(self, *, opened: bool = True) -> None:
        self.edge = Session(Admission(EDGE), PROVIDER, 0.0)
        self.provider = Session(Admission(PROVIDER), EDGE, 0.0)
        self.at_edge: list[Event] = []
        self.at_provider: list[Event] = []
        if opened:
            self.settle()
            self.at_edge.clear()
            self.at_provider.clear()

    def to_provider(self, cut: Cutter = whole) -> int:
        """Deliver one write of the edge; its bytes."""
        data = self.edge.take_output()
        for piece in cut(data) if data else ():
            self.at_provider += self.provider.receive_data(piece, 0.0)
        return len(data)

    def to_edge(self, cut: Cutter = whole) -> int:
        """Deliver one write of the provider; its bytes."""
        data = self.provider.take_output()
        for piece in cut(data) if data else ():
            self.at_edge += self.edge.receive_data(piece, 0.0)
        return len(data)

    def settle(self) -> None:
        """Deliver until nobody has anything to say."""
        while self.to_provider() or self.to_edge():
            pass

    def open(self, number: int = 1, body: bytes = b"{}", *, stream: bool = True) -> RequestId:
        """The edge opens a request."""
        rid = request_id(number)
        self.edge.asking.open(rid, Endpoint.CHAT, body, stream=stream, terms=TERMS)
        return rid

    def accepted(self, number: int = 1, body: bytes = b"{}", *, stream: bool = True) -> RequestId:
        """The edge opens a request, and the provider has accepted it."""
        rid = self.open(number, body, stream=stream)
        self.settle()
        self.provider.answering.accept(rid, b"", 0)
        self.settle()
        return rid

    def is_clean(self) -> bool:
        """Whether no request has left anything behind at either end."""
        return all(is_clean(session) for session in (self.edge, self.provider))


def is_clean(session: Session) -> bool:
    """Whether a session holds nothing of any request: no state, no window, no upload, no output."""
    asking, answering = session.asking, session.answering
    return (
        not asking.requests
        and not answering.requests
        and asking._budget.left == limits.CREDIT_LINK_BYTES_MAX
        and asking._bodies_bytes == 0
        and answering._uploads_bytes == 0
        and not session.has_output
        and session.outbox._queued_bytes == 0
        and session.outbox._control_bytes == 0
    )

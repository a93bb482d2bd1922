"""A link's life as a dialogue: Hello, GoAway, draining, silence, the end."""

from __future__ import annotations

import pytest

from aimo_node.domain.answer import Finish, Usage
from aimo_node.domain.ids import FinishReason, PeerId, Role
from aimo_node.errors import CloseCode, LocalProtocolError, NetworkError, Overloaded
from aimo_node.protocol import codec, limits
from aimo_node.protocol.events import (
    LinkClosed,
    LinkOpened,
    PeerDraining,
    PeerRecovered,
    PeerSuspect,
)
from aimo_node.protocol.frames import (
    Directory,
    Error,
    GoAway,
    Heartbeat,
    Hello,
    Limits,
    Ping,
    Pong,
    Request,
    StreamChunk,
    Subscribe,
)
from aimo_node.protocol.handshake import Admission
from aimo_node.protocol.session import Session
from aimo_node.protocol.states import LinkState
from tests.unit.protocol.two_ends import (
    EDGE,
    PROVIDER,
    Played,
    TwoEnds,
    drained,
    encoded,
    is_clean,
    request_id,
    written,
)

REQUEST = Request(request_id(1), "", 1, 1, 1, b"{}", 0, True, {}, 1_000, "")
SECRET = bytes(range(32))


def test_both_sides_speak_first_and_open_when_heard() -> None:
    ends = TwoEnds(opened=False)
    ends.settle()
    (at_edge,), (at_provider,) = ends.at_edge, ends.at_provider
    assert isinstance(at_edge, LinkOpened)
    assert isinstance(at_provider, LinkOpened)
    assert at_edge.version == 1
    assert ends.edge.hello == at_edge.hello


def test_hello_says_who_speaks() -> None:
    session = Session(Admission(PROVIDER, roles=Role.RELAY | Role.PROVIDER, agent="aimo"), EDGE, 0)
    assert written(session) == [Hello([1], agent="aimo", roles=3)]


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (Hello([2, 3]), CloseCode.VersionMismatch),
        (Hello([1], mesh=b"x" * 16), CloseCode.WrongMesh),
        (Hello([1], proof=b"x" * 32), CloseCode.NotAdmitted),
        (Ping(1), CloseCode.ProtocolViolation),
        (REQUEST, CloseCode.ProtocolViolation),
        (StreamChunk(request_id(1), 0, 0, b"x"), CloseCode.ProtocolViolation),
        (GoAway(int(CloseCode.Draining)), CloseCode.Draining),
        (GoAway(int(CloseCode.DuplicateLink), "twice"), CloseCode.DuplicateLink),
    ],
)
def test_nothing_but_a_good_hello_opens_a_link(first: object, code: CloseCode) -> None:
    played = Played(opened=False)
    (event,) = played.hears(first, REQUEST, Hello([1]))  # type: ignore[arg-type]
    assert isinstance(event, LinkClosed)
    assert event.close_code is code
    assert played.session.closed


@pytest.mark.parametrize("after", [REQUEST, GoAway(0), Hello([1]), Ping(1), StreamChunk])
def test_nothing_is_read_after_goaway(after: object) -> None:
    """Also not what came in the same piece, and a second mistake is no bug of ours."""
    frame = StreamChunk(request_id(1), 7, 9, b"") if after is StreamChunk else after
    for opened in (False, True):
        played = Played(opened=opened)
        played.says()
        events = played.hears(GoAway(0), frame)  # type: ignore[arg-type]
        assert [type(event) for event in events] == [LinkClosed]
        assert played.session.receive_data(b"\xff" * 9, 1.0) == []
        assert not played.session.has_output


def test_a_goaway_of_an_unknown_code_still_ends_the_link() -> None:
    (event,) = Played().hears(GoAway(999, "newer"))
    assert event == LinkClosed(CloseCode.Normal, "newer", by_peer=True)


def test_a_second_hello_ends_the_link() -> None:
    played = Played()
    (event,) = played.hears(Hello([1]))
    assert isinstance(event, LinkClosed)
    assert played.says() == [GoAway(int(CloseCode.ProtocolViolation), "a second Hello")]


def test_a_stranger_gets_small_frames_only() -> None:
    played = Played(opened=False)
    header = (limits.HELLO_BYTES_MAX + 1).to_bytes(4, "big")
    (event,) = played.session.receive_data(header, 0.0)
    assert isinstance(event, LinkClosed)
    assert event.close_code is CloseCode.FrameTooLarge


def test_after_hello_larger_frames_are_read_even_in_the_same_piece() -> None:
    session = Session(Admission(PROVIDER), EDGE, 0.0)
    payload = b"x" * limits.INLINE_BYTES_MAX
    large = Request(request_id(1), "", 1, 1, 1, payload, 0, True, {}, 1_000, "")
    events = session.receive_data(encoded(Hello([1]), large), 0.0)
    assert len(events) == 2


def test_no_request_leaves_before_the_peer_has_proved_itself() -> None:
    """The prompt is not for a stranger."""
    played = Played(opened=False)
    with pytest.raises(NetworkError):
        played.asks()
    assert played.says() == [Hello([1])]


def test_a_secret_is_proved_in_both_directions() -> None:
    edge = Session(Admission(EDGE, SECRET), PROVIDER, 0.0)
    provider = Session(Admission(PROVIDER, SECRET), EDGE, 0.0)
    (at_provider,) = provider.receive_data(edge.take_output(), 0.0)
    (at_edge,) = edge.receive_data(provider.take_output(), 0.0)
    assert isinstance(at_provider, LinkOpened)
    assert isinstance(at_edge, LinkOpened)


@pytest.mark.parametrize(
    ("theirs", "code"),
    [
        (Admission(EDGE, bytes(32)), CloseCode.WrongMesh),
        (Admission(EDGE), CloseCode.WrongMesh),
        (Admission(PeerId("12D3KooWThief"), SECRET), CloseCode.NotAdmitted),
    ],
)
def test_without_the_secret_nobody_gets_in(theirs: Admission, code: CloseCode) -> None:
    """Not even with a proof that somebody else made for us."""
    provider = Session(Admission(PROVIDER, SECRET), EDGE, 0.0)
    (event,) = provider.receive_data(encoded(theirs.hello_to(PROVIDER)), 0.0)
    assert isinstance(event, LinkClosed)
    assert event.close_code is code
    assert repr(SECRET) not in repr(provider._admission)


def test_a_proof_cannot_be_sent_back_to_its_maker() -> None:
    ours = Admission(PROVIDER, SECRET)
    provider = Session(ours, EDGE, 0.0)
    (event,) = provider.receive_data(encoded(ours.hello_to(EDGE)), 0.0)
    assert isinstance(event, LinkClosed)
    assert event.close_code is CloseCode.NotAdmitted


def test_a_peer_that_sends_no_hello_is_given_up() -> None:
    session = Session(Admission(PROVIDER), EDGE, 100.0)
    assert session.next_deadline() == 100.0 + limits.HELLO_SECONDS
    assert session.handle_deadline(100.0) == []
    session.receive_data(b"\x00", 104.9)
    (event,) = session.handle_deadline(session.next_deadline())
    assert isinstance(event, LinkClosed)
    assert event.close_code is CloseCode.HelloTimeout
    assert session.next_deadline() == float("inf")


def test_silence_is_pinged_then_suspect_then_dead() -> None:
    session = Played().session
    seen: list[tuple[float, object]] = []
    now = 0.0
    while not session.closed:
        assert session.next_deadline() > now
        now = session.next_deadline()
        seen += [(now, type(event)) for event in session.handle_deadline(now)]
        seen += [(now, type(frame)) for frame in written(session)]
    pings = [at for at, what in seen if what is Ping]
    assert pings == [1.5 * n for n in range(1, 8)]
    assert [(at, what) for at, what in seen if what is not Ping] == [
        (limits.SUSPECT_SECONDS, PeerSuspect),
        (limits.DEAD_SECONDS, LinkClosed),
        (limits.DEAD_SECONDS, GoAway),
    ]
    assert session.handle_deadline(99.0) == []


def test_a_deadline_that_comes_early_does_nothing() -> None:
    played = Played()
    played.hears(Pong(7), now=1.0)
    assert played.session.handle_deadline(1.5) == []
    assert played.says() == []
    assert played.session.next_deadline() == 2.5


def test_a_suspect_peer_recovers_when_heard() -> None:
    played = Played()
    played.session.handle_deadline(5.0)
    assert played.session.suspect
    assert played.hears(Pong(7), now=5.5) == [PeerRecovered()]
    assert not played.session.suspect
    assert played.session.next_deadline() == 7.0


def test_the_round_trip_is_measured_once_for_each_ping() -> None:
    played = Played()
    assert played.hears(Pong(0), Pong(1), now=0.25) == []
    assert played.session.rtt_seconds is None
    played.session.handle_deadline(2.0)
    (ping,) = played.says()
    assert isinstance(ping, Ping)
    played.hears(Pong(ping.nonce), now=2.125)
    played.hears(Pong(ping.nonce), now=3.0)
    assert played.session.rtt_seconds == 0.125


def test_a_link_that_is_never_silent_is_measured_now_and_then() -> None:
    played = Played()
    pings = []
    for second in range(1, 31):
        played.hears(Pong(99), now=float(second))
        played.session.handle_deadline(float(second))
        pings += [(second, frame) for frame in played.says() if isinstance(frame, Ping)]
    assert [second for second, _ in pings] == [10, 20, 30]
    played.hears(Pong(pings[-1][1].nonce), now=30.5)
    assert played.session.rtt_seconds == 0.5


def test_a_round_trip_can_be_measured_at_once() -> None:
    played = Played()
    played.session.measure(2.0)
    (ping,) = played.says()
    assert isinstance(ping, Ping)
    assert played.hears(Pong(ping.nonce), now=2.25) == []
    assert played.session.rtt_seconds == 0.25
    again = []
    for second in range(3, 30):
        played.hears(Pong(99), now=float(second))
        played.session.handle_deadline(float(second))
        again += [second for frame in played.says() if isinstance(frame, Ping)]
    assert again == [4, 6, 16, 26], "soon again, for a start is noisy; then now and then"


def test_a_ping_is_answered() -> None:
    played = Played()
    assert played.hears(Ping(2**63 - 1)) == []
    assert played.says() == [Pong(2**63 - 1)]


def test_draining_lets_running_requests_finish_and_refuses_new_ones() -> None:
    ends = TwoEnds()
    running = ends.accepted(1)
    ends.provider.drain()
    ends.provider.drain()
    ends.settle()
    assert ends.at_edge.count(PeerDraining()) == 1
    assert ends.edge.remote_draining
    ends.provider.answering.send_text(running, "goes on")
    ends.at_edge.clear()
    ends.open(2)
    ends.settle()
    kinds = [type(event).__name__ for event in ends.at_edge]
    assert sorted(kinds) == ["PartReceived", "RequestFailed"]
    assert ends.provider.state is LinkState.DRAINING


def test_both_sides_may_drain() -> None:
    """Each is told of the other's, also when both say it at once."""
    ends = TwoEnds()
    ends.edge.drain()
    ends.provider.drain()
    ends.settle()
    assert ends.edge.remote_draining
    assert ends.provider.remote_draining
    assert not ends.edge.closed

    ends = TwoEnds()
    ends.edge.drain()
    ends.settle()
    ends.provider.drain()
    ends.settle()
    assert ends.edge.remote_draining


def test_a_link_that_drains_before_hello_says_so_after() -> None:
    played = Played(opened=False)
    played.session.drain()
    played.hears(Hello([1]), GoAway(int(CloseCode.Draining)), GoAway(int(CloseCode.Draining)))
    assert played.says() == [Hello([1]), GoAway(int(CloseCode.Draining), "draining")]
    assert played.session.state is LinkState.DRAINING


def test_a_link_is_busy_until_the_last_frame_was_taken() -> None:
    """Whoever drains closes an idle link: not before the answer's end is on its way."""
    ends = TwoEnds()
    rid = ends.accepted()
    ends.provider.answering.finish(rid, Finish(FinishReason.STOP, Usage()))
    assert not ends.provider.answering.requests
    assert ends.provider.busy
    ends.settle()
    assert not ends.provider.busy


def test_goaway_is_the_last_output() -> None:
    """Whatever the node still tries to say: its tasks hear of the end a little later."""
    ends = TwoEnds()
    rid = ends.accepted(1)
    waiting = ends.open(2)
    ends.settle()
    events = ends.provider.close(CloseCode.Normal, "done")
    assert events == [LinkClosed(CloseCode.Normal, "done", by_peer=False)]
    assert ends.provider.close() == []
    answering = ends.provider.answering
    answering.accept(waiting, b"", 0)
    answering.send_text(rid, "late")
    answering.fail(rid, NetworkError("late"))
    ends.provider.announce(Subscribe())
    ends.provider.drain()
    assert written(ends.provider) == [GoAway(0, "done")]
    assert is_clean(ends.provider)

    ends.edge.close()
    ends.edge.asking.consumed(rid, 1 << 20)
    ends.edge.asking.cancel(rid)
    with pytest.raises(NetworkError):
        ends.open(3)
    assert written(ends.edge) == [GoAway(0)]
    assert is_clean(ends.edge)


def test_a_lost_connection_leaves_nothing_behind() -> None:
    ends = TwoEnds()
    rid = ends.accepted(1)
    ends.provider.answering.send_json(rid, b"x" * limits.PAYLOAD_BYTES_MAX)
    ends.provider.answering.send_text(rid, "waits")
    assert len(ends.provider.take_output()) == limits.WRITE_BYTES_MAX
    (event,) = ends.provider.connection_lost("reset")
    assert event == LinkClosed(CloseCode.Normal, "reset", by_peer=True)
    assert ends.provider.connection_lost("again") == []
    assert ends.provider.handle_deadline(99.0) == []
    ends.edge.connection_lost("reset")
    assert ends.is_clean()


def test_a_frame_half_written_is_completed_before_goaway() -> None:
    ends = TwoEnds()
    rid = ends.accepted(1)
    ends.provider.answering.send_json(rid, b"x" * limits.PAYLOAD_BYTES_MAX)
    first = ends.provider.take_output()
    ends.provider.close()
    frames = list(codec.FrameReader().feed(first + b"".join(drained(ends.provider))))
    assert [type(frame) for frame in frames] == [StreamChunk, GoAway]


def test_announcements_arrive_as_they_are() -> None:
    ends = TwoEnds()
    spoken = [
        Subscribe(["tiny"]),
        Heartbeat("12D3KooWProvider", 1, 2, 0, 500, 3, 4, 250),
        Directory(full=True, gone=["12D3KooWOther"]),
    ]
    for frame in spoken:
        ends.edge.announce(frame)
    ends.settle()
    assert ends.at_provider == spoken


def test_announcements_before_hello_are_dropped() -> None:
    played = Played(opened=False)
    played.session.announce(Subscribe())
    assert played.says() == [Hello([1])]


def test_an_announcement_no_peer_would_take_is_a_bug_of_ours() -> None:
    played = Played()
    with pytest.raises(LocalProtocolError):
        played.session.announce(Subscribe(["n" * 256 for _ in range(300)]))
    assert not played.session.has_output


def test_a_whole_directory_may_wait_and_does_not_hold_up_an_answer() -> None:
    """A relay's first batches can be megabytes; a token goes out in between."""
    ends = TwoEnds()
    rid = ends.accepted()
    for _ in range(100):
        ends.provider.announce(Directory(full=False, gone=["x" * 64] * 800))
    ends.provider.answering.send_text(rid, "token")
    position = b"".join(drained(ends.provider)).index(b"token")
    assert position <= 2 * limits.WRITE_BYTES_MAX


def test_the_peer_says_how_many_requests_it_takes() -> None:
    played = Played(opened=False)
    played.hears(Hello([1], limits=Limits(requests=1)))
    played.asks(1)
    with pytest.raises(Overloaded):
        played.asks(2)


def test_errors_reach_the_edge_before_the_link_ends_with_a_bad_frame() -> None:
    played = Played()
    rid = played.asks()
    events = played.session.receive_data(
        encoded(Error(9, "full", {}, rid)) + b"\x00\x00\x00\x01\xc1", 0.0
    )
    assert [type(event).__name__ for event in events] == ["RequestFailed", "LinkClosed"]

"""Meeting relays without joining: whether they answer, let us in, and how they see this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import trio

from aimo_node.domain.ids import PeerId
from aimo_node.domain.membership import MESH_KEY_BYTES, Refusal
from aimo_node.errors import CloseCode, NetworkError, RemoteProtocolError
from aimo_node.mesh.host import HostLimits, LinkStream
from aimo_node.mesh.identity import KeyPair
from aimo_node.mesh.membership.members import ask
from aimo_node.mesh.probes.meeting import Meeting, Outcome, Word
from aimo_node.mesh.probes.probe_host import ProbeHost
from aimo_node.protocol import codec
from aimo_node.protocol.frames import GoAway, Hello, Ping, Pong
from aimo_node.protocol.handshake import Doorkeeper
from aimo_node.protocol.members import Redeem, Refused

DIAL_SECONDS: Final = 3.0
"""For all addresses of a relay together: whoever looks for faults does not wait for the slowest."""
HELLO_SECONDS: Final = 1.5
WORD_SECONDS: Final = 0.9
"""A relay may have to ask the authority in its turn."""
SIGHTING_SECONDS: Final = 1.0
_NONCE: Final = 1
_STRANGER: Final = "another peer answered"
_FORMS: Final = {0: "open", MESH_KEY_BYTES: "authority"}
"""What the length of a mesh's name says of it; any other is made from a secret."""
_MESHES: Final = {
    ("open", "secret"): Outcome.MESH_IS_CLOSED,
    ("open", "authority"): Outcome.MESH_HAS_AUTHORITY,
    ("secret", "open"): Outcome.MESH_IS_OPEN,
    ("secret", "secret"): Outcome.OTHER_MESH,
    ("secret", "authority"): Outcome.MESH_HAS_AUTHORITY,
    ("authority", "open"): Outcome.MESH_IS_OPEN,
    ("authority", "secret"): Outcome.MESH_HAS_SECRET,
    ("authority", "authority"): Outcome.OTHER_AUTHORITY,
    ("open", "open"): Outcome.OTHER_MESH,
}
"""What two different meshes are to each other: ours, and the relay's."""


async def meet_relays(
    identity: KeyPair,
    shown: Doorkeeper | None,
    relays: Mapping[PeerId, Sequence[str]],
    *,
    now_ms: int | None = None,
) -> list[Meeting]:
    """Shake hands with every relay at once, and leave again.

    Args:
        identity: as whom; a relay that has a link to the same identity would give that up.
        shown: what is said in the Hello; None for no Hello at all.
        relays: addresses by peer id.
        now_ms: this machine's clock, if the mesh has an authority: then it is asked for, too.
    """
    meetings: list[Meeting] = []
    host_limits = replace(HostLimits(), dial_seconds_max=DIAL_SECONDS)
    host = ProbeHost(identity, host_limits)
    async with host, trio.open_nursery() as nursery:

        async def meet(peer: PeerId, addresses: Sequence[str]) -> None:
            meetings.append(await _meet(host, peer, addresses, shown=shown, now_ms=now_ms))

        for peer, addresses in relays.items():
            nursery.start_soon(meet, peer, addresses)
    return sorted(meetings, key=lambda meeting: list(relays).index(meeting.peer))


async def _meet(
    host: ProbeHost,
    peer: PeerId,
    addresses: Sequence[str],
    *,
    shown: Doorkeeper | None,
    now_ms: int | None,
) -> Meeting:
    try:
        stream = await host.dial(peer, addresses)
    except NetworkError as error:
        is_stranger = _STRANGER in error.message
        outcome = Outcome.STRANGER if is_stranger else Outcome.UNREACHED
        return Meeting(peer, outcome, error.message)
    talk = _Talk(stream, shown) if shown is not None else None
    meeting = Meeting(peer, Outcome.ASKED if talk is None else Outcome.SILENT)
    sighting, word = None, None
    if now_ms is not None:
        word = await _ask_for_word(host, peer, addresses, now_ms)
    if talk is not None:
        with trio.move_on_after(HELLO_SECONDS):
            meeting = await talk.shake_hands()
    with trio.move_on_after(SIGHTING_SECONDS):
        sighting = await host.sighting(peer)
    await (talk.leave() if talk is not None else stream.reset())
    await host.disconnect(peer)
    return replace(meeting, sighting=sighting, word=word)


async def _ask_for_word(
    host: ProbeHost, peer: PeerId, addresses: Sequence[str], now_ms: int
) -> Word | None:
    """An invite that is none changes nothing, and is refused by the authority alone as such."""
    with trio.move_on_after(WORD_SECONDS):
        try:
            answer = await ask(host, peer, addresses, Redeem(b"", now_ms))
        except NetworkError:
            return None
        if isinstance(answer, Refused):
            is_busy = answer.reason == Refusal.BUSY
            has_authority = None if is_busy else answer.reason != Refusal.NOT_AUTHORITY
            return Word(has_authority, (answer.now_ms - now_ms) / 1000)
    return None


class _Talk:
    """One Hello and one Ping each way."""

    def __init__(self, stream: LinkStream, admission: Doorkeeper) -> None:
        self._stream = stream
        self._admission = admission
        self._hello: Hello | None = None

    async def shake_hands(self) -> Meeting:
        """Whether both sides admit each other."""
        peer, started = self._stream.peer, trio.current_time()
        hello = codec.encode(self._admission.hello_to(peer))
        try:
            await self._stream.write(hello + codec.encode(Ping(_NONCE)))
            last = await self._read_answer()
        except (NetworkError, RemoteProtocolError) as error:
            return self._refused_by_us() or Meeting(peer, Outcome.BROKEN, str(error))
        refused = self._refused_by_us() or self._refused_by(last)
        if refused is not None:
            return refused
        return self._meeting(Outcome.ADMITTED, "", trio.current_time() - started)

    async def leave(self) -> None:
        """Say goodbye."""
        try:
            await self._stream.write(codec.encode(GoAway(int(CloseCode.Normal), "only looking")))
        except NetworkError:
            return  # it has hung up already
        await self._stream.close()

    async def _read_answer(self) -> Pong | GoAway:
        """The end of the talk: an answer to our Ping, or a GoAway.

        Raises:
            NetworkError, RemoteProtocolError.
        """
        reader = codec.FrameReader()
        while True:
            data = await self._stream.read()
            if not data:
                raise NetworkError("it hung up without a word")
            for frame in reader.feed(data):
                if isinstance(frame, Hello):
                    self._hello = frame
                elif isinstance(frame, Pong | GoAway):
                    return frame

    def _refused_by_us(self) -> Meeting | None:
        """What this node would say to the relay's Hello."""
        if self._hello is None:
            return None
        try:
            self._admission.check(self._hello, self._stream.peer)
        except RemoteProtocolError as error:
            return self._meeting(self._outcome(error.close_code), str(error))
        return None

    def _refused_by(self, last: Pong | GoAway) -> Meeting | None:
        if isinstance(last, Pong):
            return None
        try:
            code = CloseCode(last.close_code)
        except ValueError:
            code = CloseCode.Normal
        return self._meeting(self._outcome(code), last.message)

    def _outcome(self, code: CloseCode) -> Outcome:
        if code is CloseCode.VersionMismatch:
            return Outcome.OTHER_VERSION
        if code is CloseCode.NotAdmitted:
            return Outcome.NOT_ADMITTED
        if code is not CloseCode.WrongMesh:
            return Outcome.GOING_AWAY if code is CloseCode.Draining else Outcome.BROKEN
        if self._hello is None:
            return Outcome.OTHER_MESH
        ours = len(self._admission.hello_to(self._stream.peer).mesh)
        return _MESHES[_FORMS.get(ours, "secret"), _FORMS.get(len(self._hello.mesh), "secret")]

    def _meeting(self, outcome: Outcome, said: str, seconds: float = 0.0) -> Meeting:
        hello = self._hello
        return Meeting(
            self._stream.peer,
            outcome,
            said,
            agent=hello.agent if hello is not None else "",
            versions=tuple(hello.versions) if hello is not None else (),
            round_trip_seconds=seconds,
        )

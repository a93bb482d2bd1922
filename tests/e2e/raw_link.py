"""A peer that speaks the link's frames by hand, and so can say what no honest node would."""

import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable

import trio

from aimo_node.domain.ids import Endpoint, ModelName, PeerId, Role
from aimo_node.domain.join import parse_join, peer_of_address
from aimo_node.domain.models import Descriptor, EngineState, ModelInfo
from aimo_node.errors import NetworkError
from aimo_node.mesh.host import HostLimits, LinkStream, MeshHost
from aimo_node.mesh.identity import KeyPair, sign
from aimo_node.protocol import codec, frames
from aimo_node.protocol.descriptors import describe
from aimo_node.protocol.handshake import Admission
from aimo_node.protocol.limits import WRITE_BYTES_MAX
from aimo_node.protocol.signing import descriptor_bytes_to_sign
from tests.e2e.mesh import LOOPBACK
from tests.e2e.node_process import NodeProcess

CLOSED_SECONDS = 8.0
"""The longest the node may take to hang up: it waits five seconds for a Hello."""


class RawLink:
    """One stream of the link's protocol; frames in, frames out, bytes where they must be wrong."""

    def __init__(self, stream: LinkStream, secret: bytes | None, peer: PeerId) -> None:
        self.stream = stream
        self._admission = Admission(peer, secret, Role.PROVIDER | Role.EDGE, agent="raw")
        self._reader = codec.FrameReader()
        self._frames: list[frames.Frame] = []

    def hello(self) -> frames.Hello:
        """The Hello that is accepted."""
        return self._admission.hello_to(self.stream.peer)

    async def greet(self) -> None:
        """Exchange Hellos as an honest node."""
        await self.send(self.hello())
        assert isinstance(await self.receive(), frames.Hello)

    async def send(self, *sent: frames.Frame) -> None:
        """Send frames, well-formed."""
        await self.send_bytes(b"".join(map(codec.encode, sent)))

    async def send_bytes(self, data: bytes) -> None:
        """Send anything at all."""
        for start in range(0, len(data), WRITE_BYTES_MAX):
            await self.stream.write(data[start : start + WRITE_BYTES_MAX])

    async def receive(self) -> frames.Frame:
        """The next frame.

        Raises:
            EOFError: the node has hung up.
        """
        while not self._frames:
            try:
                data = await self.stream.read()
            except NetworkError as error:
                raise EOFError from error
            if not data:
                raise EOFError
            self._frames += self._reader.feed(data)
        return self._frames.pop(0)

    async def receive_kind(self, kind: type[frames.Frame]) -> frames.Frame:
        """The next frame of that kind; the others are passed over."""
        while True:
            frame = await self.receive()
            if isinstance(frame, kind):
                return frame

    async def read_to_the_end(self, seconds: float = CLOSED_SECONDS) -> list[frames.Frame]:
        """Everything the node still says until it hangs up."""
        said = []
        with trio.fail_after(seconds):
            while True:
                try:
                    said.append(await self.receive())
                except EOFError:
                    return said

    async def close_code(self, seconds: float = CLOSED_SECONDS) -> int:
        """The close code the node says before it hangs up."""
        said = await self.read_to_the_end(seconds)
        codes = [frame.close_code for frame in said if isinstance(frame, frames.GoAway)]
        assert codes, f"it hangs up without a word after {said}"
        return codes[-1]


Serve = Callable[[RawLink], Awaitable[None]]


class RawPeer:
    """A member of the mesh with a host of its own; `serve` is called with links others open."""

    def __init__(self, join: str, serve: Serve | None = None) -> None:
        target = parse_join(join)
        self.secret = target.secret
        self.identity = KeyPair.from_seed(os.urandom(32))
        self.peer = self.identity.peer_id
        self._relay = target.addresses[0]
        self._serve = serve
        listen = [LOOPBACK] if serve is not None else []
        self.host = MeshHost(self.identity, listen, limits=HostLimits(), on_stream=self._accept)

    async def _accept(self, stream: LinkStream) -> None:
        assert self._serve is not None
        link = RawLink(stream, self.secret, self.peer)
        with contextlib.suppress(EOFError, NetworkError):  # the node had enough of it
            await self._serve(link)

    async def dial(self, node: NodeProcess) -> RawLink:
        """A link to a node, before any Hello."""
        address = node.ready_line["listen"][0]
        return await self._dial(address)

    async def _dial(self, address: str) -> RawLink:
        stream = await self.host.dial(peer_of_address(address), [address])
        return RawLink(stream, self.secret, self.peer)

    async def announce(self, model: str) -> RawLink:
        """Tell the relay that this peer serves a model; it does as long as the link lives."""
        link = await self._dial(self._relay)
        await link.greet()
        body = describe(
            Descriptor(
                self.peer,
                incarnation=1,
                revision=1,
                models=(ModelInfo(ModelName(model), endpoints=(Endpoint.CHAT,)),),
                addresses=tuple(self.host.addresses()),
                engine="raw",
                engine_state=EngineState.RUNNING,
            )
        )
        signature = sign(self.identity, descriptor_bytes_to_sign(body))
        await link.send(
            frames.Descriptor(body, signature), frames.Heartbeat(self.peer, 1, 1, 0, 0, 0, 0, 0)
        )
        return link


@contextlib.asynccontextmanager
async def raw_peer(join: str, serve: Serve | None = None) -> AsyncIterator[RawPeer]:
    """A peer that knows the mesh's secret and nothing of manners."""
    peer = RawPeer(join, serve)
    async with peer.host:
        yield peer

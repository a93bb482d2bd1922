"""Peers that break the link's rules: the node hangs up on them, stays small, serves the others."""

import contextlib
import os
from collections.abc import AsyncIterator

import msgspec
import pytest
import trio

from aimo_node.domain.ids import PeerId
from aimo_node.errors import CloseCode, NetworkError
from aimo_node.protocol import codec, frames, limits
from tests.e2e.http_client import CHAT_PATH, ask, chat, echo_text, open_stream
from tests.e2e.mesh import providers_of
from tests.e2e.node_process import NodeProcess, eventually
from tests.e2e.raw_link import RawLink, raw_peer

GROWTH_BYTES_MAX = 40_000_000
REFUSED_SECONDS = 10.0
LIE_SECONDS = 10.0
REQUEST_ID = b"\x01" * 16


@contextlib.asynccontextmanager
async def undisturbed(shared) -> AsyncIterator[None]:
    """An honest stream runs all the while, and no node grows or dies."""
    nodes: list[NodeProcess] = shared.mesh.nodes
    before = {node: node.rss_bytes for node in nodes}
    body = chat("echo", "honest", max_tokens=10_000, delay_ms=10)
    async with open_stream(shared.port, body) as stream:
        await stream.read_until_text(5)
        yield
        seen = len(stream.text.split())
        await stream.read_until_text(seen + 5)
        assert stream.text == echo_text("honest", len(stream.text.split()))
    for node in nodes:
        node.assert_alive()
        assert node.rss_bytes - before[node] < GROWTH_BYTES_MAX, node.name
        assert "Traceback" not in node.log, node.log_tail


def join_of(shared) -> str:
    return shared.relay.ready_line["join"]


def bad_hello(link: RawLink, **changes) -> bytes:
    return codec.encode(msgspec.structs.replace(link.hello(), **changes))


def length(size: int) -> bytes:
    return size.to_bytes(4, "big")


BEFORE_HELLO = {
    "a frame before Hello": (lambda _: codec.encode(frames.Ping(1)), CloseCode.ProtocolViolation),
    "a request before Hello": (lambda _: codec.encode(request()), CloseCode.ProtocolViolation),
    "no version in common": (
        lambda link: bad_hello(link, versions=[2, 99]),
        CloseCode.VersionMismatch,
    ),
    "another mesh": (lambda link: bad_hello(link, mesh=b"m" * 16), CloseCode.WrongMesh),
    "no mesh": (lambda link: bad_hello(link, mesh=b"", proof=b""), CloseCode.WrongMesh),
    "a wrong proof": (lambda link: bad_hello(link, proof=b"p" * 32), CloseCode.NotAdmitted),
    "no proof": (lambda link: bad_hello(link, proof=b""), CloseCode.NotAdmitted),
    "a large Hello": (lambda _: length(5000) + bytes(5000), CloseCode.FrameTooLarge),
    "4 GiB": (lambda _: b"\xff\xff\xff\xff" + bytes(1000), CloseCode.FrameTooLarge),
    "rubbish": (lambda _: length(64) + b"\xc1" * 64, CloseCode.ProtocolViolation),
    "an empty frame": (lambda _: length(0), CloseCode.ProtocolViolation),
}

AFTER_HELLO = {
    "truncated msgpack": (length(5) + b"\x94\x03\xc4\x10a", CloseCode.ProtocolViolation),
    "rubbish": (length(1000) + b"\xc1" * 1000, CloseCode.ProtocolViolation),
    "nested without end": (length(60_000) + b"\x91" * 60_000, CloseCode.ProtocolViolation),
    "an array of 4 G elements": (length(5) + b"\xdd\xff\xff\xff\xff", CloseCode.ProtocolViolation),
    "an unknown type": (length(2) + b"\x91\x63", CloseCode.UnknownFrame),
    "4 GiB": (b"\xff\xff\xff\xff" + bytes(50_000), CloseCode.FrameTooLarge),
    "one byte too long": (length(limits.FRAME_BYTES_MAX + 1), CloseCode.FrameTooLarge),
    "invalid UTF-8": (length(7) + b"\x93\x0d\x01\xa3a\xff\xfe", CloseCode.ProtocolViolation),
    "a second Hello": (codec.encode(frames.Hello([1])), CloseCode.ProtocolViolation),
    "a body nobody asked for": (
        codec.encode(frames.Body(REQUEST_ID, 0, b"x" * 16_384, last=False)) * 100,
        None,
    ),
    "credit for nothing": (codec.encode(frames.Credit(REQUEST_ID, 1000, 0)) * 1000, None),
    "chunks for nobody": (
        codec.encode(frames.StreamChunk(REQUEST_ID, 0, 0, b"boo")) * 1000,
        None,
    ),
}
"""What is sent, and with which close code it is answered; None: it may as well be ignored."""


def request(number: int = 0, **changes) -> frames.Request:
    """A chat with the echo engine."""
    fields = {
        "request_id": number.to_bytes(16, "big"),
        "provider_id": "",
        "endpoint": 1,
        "request_type": frames.INFERENCE,
        "content_type": 1,
        "payload": msgspec.json.encode(chat("echo", max_tokens=100_000)),
        "body_bytes": 0,
        "stream": True,
        "headers": {},
        "deadline_ms": 60_000,
        "public_id": "",
    }
    return frames.Request(**(fields | changes))


async def test_what_comes_before_a_good_hello_is_hung_up_on(shared):
    """At a provider, an edge and a relay alike; all at a time."""

    async def try_one(node: NodeProcess, kind: str) -> None:
        build, code = BEFORE_HELLO[kind]
        async with raw_peer(join_of(shared)) as peer:
            link = await peer.dial(node)
            await link.send_bytes(build(link))
            assert await link.close_code() == code, kind

    async with undisturbed(shared), trio.open_nursery() as nursery:
        for node in shared.mesh.nodes:
            for kind in BEFORE_HELLO:
                nursery.start_soon(try_one, node, kind)


async def test_peer_that_says_nothing_or_one_byte_a_second_is_hung_up_on(shared):
    async def drip(link: RawLink) -> None:
        try:
            for byte in codec.encode(link.hello()):
                await link.send_bytes(bytes([byte]))
                await trio.sleep(0.5)
        except NetworkError:
            pass

    async with (
        undisturbed(shared),
        raw_peer(join_of(shared)) as slow,
        raw_peer(join_of(shared)) as silent,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(drip, await slow.dial(shared.provider))
        link = await silent.dial(shared.provider)
        assert await link.close_code() == CloseCode.HelloTimeout
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", AFTER_HELLO)
async def test_member_that_breaks_the_protocol_is_cut_off(shared, kind):
    """It knows the secret; that does not make it trusted."""
    data, code = AFTER_HELLO[kind]

    async def try_one(node: NodeProcess) -> None:
        async with raw_peer(join_of(shared)) as peer:
            link = await peer.dial(node)
            await link.greet()
            await link.send_bytes(data)
            if code is not None:
                assert await link.close_code() == code
                return
            await link.send(frames.Ping(7))
            with contextlib.suppress(EOFError):
                pong = await link.receive_kind(frames.Pong)
                assert pong.nonce == 7

    async with undisturbed(shared), trio.open_nursery() as nursery:
        for node in shared.mesh.nodes:
            nursery.start_soon(try_one, node)


async def test_flood_of_requests_is_refused_beyond_the_limit(shared):
    """More than a link carries at a time, and nothing that comes back is read."""
    count = limits.REQUESTS_PER_LINK_MAX + 500
    async with undisturbed(shared), raw_peer(join_of(shared)) as peer:
        link = await peer.dial(shared.provider)
        await link.greet()
        slow = msgspec.json.encode(chat("echo", max_tokens=1000, delay_ms=5000))
        for number in range(count):
            await link.send(request(number, payload=slow))
        refused = 0
        with trio.fail_after(REFUSED_SECONDS):
            while refused < 500:
                frame = await link.receive()
                refused += isinstance(frame, frames.Error)
        await link.stream.reset()


async def test_reader_that_never_reads_what_it_asks_for_costs_little(shared):
    """A thousand fast answers and no credit: the engine is held back, memory stays bounded."""
    async with undisturbed(shared), raw_peer(join_of(shared)) as peer:
        link = await peer.dial(shared.provider)
        await link.greet()
        for number in range(1000):
            await link.send(request(number))
        for _ in range(1000):
            await link.receive_kind(frames.StreamChunk)
        await link.stream.reset()


async def test_nonsense_in_a_request_fails_that_request_only(shared):
    kinds = {
        "endpoint": request(1, endpoint=99),
        "type": request(2, request_type=9),
        "content type": request(3, content_type=0),
        "no JSON": request(4, payload=b"{"),
        "not UTF-8": request(5, payload=b'{"model":"\xff\xfe"}'),
        "deep": request(6, payload=b"[" * 16_000),
        "no object": request(7, payload=b"[]"),
        "model": request(8, payload=b'{"model":5,"messages":[]}'),
        "no such model": request(9, payload=msgspec.json.encode(chat("nobody"))),
    }
    async with undisturbed(shared), raw_peer(join_of(shared)) as peer:
        link = await peer.dial(shared.provider)
        await link.greet()
        await link.send(*kinds.values())
        failed = {(await link.receive_kind(frames.Error)).request_id for _ in kinds}
        assert failed == {one.request_id for one in kinds.values()}
        payload = msgspec.json.encode(chat("echo", "still here", max_tokens=2))
        await link.send(request(10, payload=payload))
        chunk = await link.receive_kind(frames.StreamChunk)
        assert chunk.payload == b"still "
        await link.stream.close()


async def test_flood_of_links_and_members_keeps_others_served(shared):
    """Fifty members at a time, each opening one link after another."""

    async def come_and_go() -> None:
        async with raw_peer(join_of(shared)) as peer:
            for _ in range(4):
                try:
                    link = await peer.dial(shared.provider)
                    await link.greet()
                except (NetworkError, EOFError):
                    continue

    async with undisturbed(shared), trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(come_and_go)


async def test_announcements_of_a_liar_reach_nobody(shared):
    """Descriptors that are not signed, not its own, too large, or not even descriptors."""
    junk = [
        frames.Descriptor(b"junk", b"s" * 64),
        frames.Descriptor(os.urandom(16_000), os.urandom(64)),
        frames.Heartbeat(shared.provider.peer_id, 2**62, 2**31, 2, 1000, 0, 0, 0),
        frames.Directory(full=True, gone=[shared.provider.peer_id]),
        frames.Subscribe(["x" * 256] * 256),
        frames.Receipt(b"r", b"s" * 64),
    ]
    async with undisturbed(shared), raw_peer(join_of(shared)) as peer:
        for node in shared.mesh.nodes:
            link = await peer.dial(node)
            await link.greet()
            await link.send(*junk)
            await link.send(frames.Ping(1))
            await link.receive_kind(frames.Pong)
        assert shared.provider.peer_id in await providers_of(shared.edge)


def chunk(request_id: bytes, index: int, payload: bytes = b"x", **changes) -> frames.StreamChunk:
    return frames.StreamChunk(request_id, index, 0, payload, **changes)


LIES = {
    "invalid UTF-8": (lambda name: [chunk(name, 0, b"\xff\xfe")], "not UTF-8"),
    "a gap": (lambda name: [chunk(name, 0), chunk(name, 2)], "chunk 2"),
    "the same again": (lambda name: [chunk(name, 0), chunk(name, 0)], "chunk 0"),
    "more than its credit": (
        lambda name: [chunk(name, index, b"x" * 8000) for index in range(400)],
        "credit",
    ),
    "crumbs without credit": (
        lambda name: [chunk(name, index, b"") for index in range(20_000)],
        "credit",
    ),
    "an unknown content type": (lambda name: [frames.StreamChunk(name, 0, 9, b"x")], "content"),
    "no JSON as JSON": (lambda name: [frames.StreamChunk(name, 0, 1, b"}{")], ""),
    "other fields as JSON": (
        lambda name: [frames.StreamChunk(name, 0, 1, b'[{"delta":{}}],"model":"gpt-9","x":[1]')],
        "",
    ),
    "an unknown reason": (
        lambda name: [chunk(name, 0, b"", is_final=True, finish_reason=77)],
        "finish reason",
    ),
    "a final chunk out of order": (
        lambda name: [chunk(name, 5, b"", is_final=True, finish_reason=1)],
        "final",
    ),
    "a body without a response": (
        lambda name: [frames.Body(name, 0, b"x" * 1000, last=True)],
        "Body",
    ),
    "a body that never comes": (
        lambda name: [
            frames.Response(name, 200, 0, b"", {}, 1, frames.UsageCount(), b"", 8_388_608),
            frames.GoAway(int(CloseCode.Normal), "had enough"),
        ],
        "had enough",
    ),
    "a header in an error": (
        lambda name: [frames.Error(9, "no\r\nx-evil: 1", {"retry_after_ms": "1\r\nx: 1"}, name)],
        "no",
    ),
    "accepted twice": (lambda name: [frames.Accepted(name)], "Accepted"),
    "goodbye": (lambda _: [frames.GoAway(int(CloseCode.Normal), "had enough")], "had enough"),
}
"""What follows the Accepted of a request by that name, and what the consumer is told of it."""


@pytest.mark.parametrize("kind", LIES)
async def test_provider_that_lies_harms_its_own_consumer_only(shared, kind):
    """Its consumer hears of an error, once; nothing it sends gets onto the consumer's wire."""

    build, reason = LIES[kind]

    async def serve(link: RawLink) -> None:
        await link.greet()
        asked = await link.receive_kind(frames.Request)
        assert isinstance(asked, frames.Request)
        await link.send(frames.Accepted(asked.request_id), *build(asked.request_id))
        await link.read_to_the_end(60)

    model = f"liar-{list(LIES).index(kind)}"
    async with undisturbed(shared), raw_peer(join_of(shared), serve) as peer:
        relay = await peer.announce(model)

        async def is_known() -> bool:
            return peer.peer in await providers_of(shared.edge, linked=False)

        await eventually(is_known, 5, "the edge does not know it", shared.edge)
        with trio.fail_after(LIE_SECONDS):
            answer = await ask(shared.port, "POST", CHAT_PATH, chat(model))
        await relay.stream.close()
    assert "x-evil" not in answer.headers
    assert b"gpt-9" not in answer.body
    assert reason.encode() in answer.body
    if answer.status == 200:
        assert answer.body.count(b'"error":') == 1
        assert b"[DONE]" not in answer.body
    else:
        assert answer.status in {502, 503}
        assert answer.error["code"]


async def test_other_peers_provider_id_cannot_be_taken(shared):
    """Noise has proved who speaks: a name in a frame does not matter."""
    async with undisturbed(shared), raw_peer(join_of(shared)) as peer:
        link = await peer.dial(shared.relay)
        await link.greet()
        forged = frames.Heartbeat(shared.provider.peer_id, 2**60, 2**31, 2, 0, 0, 0, 0)
        await link.send(forged, frames.Ping(3))
        await link.receive_kind(frames.Pong)
        view = (await providers_of(shared.edge))[PeerId(shared.provider.peer_id)]
        assert view["status"] == "healthy"

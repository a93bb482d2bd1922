"""Protocol names as strangers may send them: before anybody knows who they are."""

import pytest
import structlog
import trio

from aimo_node.mesh.fixes.library import ID, MuxedStreamError
from tests.integration.circuit_parties import LOOPBACK, parties

MULTISTREAM = b"\x13/multistream/1.0.0\n"
GREETINGS = {
    "of a gigabyte": b"\xff\xff\xff\xff\x03" + b"x" * 100_000,
    "of a gigabyte, later": MULTISTREAM + b"\xff\xff\xff\xff\x03" + b"x" * 100_000,
    "in no characters": MULTISTREAM + b"\x05\xff\xfe\xfd\xfc\n",
    "without an end": MULTISTREAM + b"\x05abcde",
}


@pytest.mark.parametrize("greeting", GREETINGS.values(), ids=GREETINGS)
async def test_a_name_no_protocol_has_ends_its_stream_at_once_and_quietly(greeting):
    """It was read for five seconds, as fast as it came, and a traceback written about it."""
    async with parties() as start:
        asked = await start("asked", listen=LOOPBACK)
        stranger = await start("stranger", secret=b"w" * 32)
        await stranger.host.dial(asked.peer, asked.host.addresses())
        (connection,) = stranger.host._live_connections(ID.from_base58(asked.peer))
        stream = await connection.muxed_conn.open_stream()
        with (
            structlog.testing.capture_logs() as events,
            trio.fail_after(3),
            pytest.raises(MuxedStreamError),
        ):
            await say(greeting, stream)
        assert not [event for event in events if event["log_level"] == "error"]


async def say(greeting: bytes, stream) -> None:
    await stream.write(greeting)
    while await stream.read(100):
        pass

"""Whatever a peer sends, the connection lives on or ends in order; nothing escapes from it."""

from types import SimpleNamespace

import trio
from hypothesis import example, given
from hypothesis import strategies as st

from aimo_node.mesh.fixes import yamux_frames as frames
from aimo_node.mesh.fixes.limits import UNREAD_BYTES_MAX, HostLimits
from aimo_node.mesh.fixes.yamux_messages import YamuxConnection, YamuxViolation

KEY = b"k" * 32

FRAMES = st.builds(
    lambda kind, flags, stream, length, body: (
        frames.HEADER.pack(0, kind, flags, stream, len(body) if length is None else length) + body
    ),
    st.integers(0, 4),
    st.integers(0, 15),
    st.integers(0, 6),
    st.none() | st.integers(0, 2**32 - 1),
    st.binary(max_size=40),
)


def build_connection() -> YamuxConnection:
    wire = SimpleNamespace(send_nowait=len, close=lambda: None)
    cipher = SimpleNamespace(k=KEY, n=0)
    ciphers = SimpleNamespace(cipher_state_encrypt=cipher, cipher_state_decrypt=cipher)
    noise = SimpleNamespace(noise_state=SimpleNamespace(noise_protocol=ciphers))
    session = SimpleNamespace(conn=noise, is_initiator=False, _drain=lambda _: b"")
    tcp = SimpleNamespace(take_wire=lambda: wire, path="direct", relay=None)
    return YamuxConnection(session, tcp, "peer", HostLimits(inbound_streams_max=3))


@example([frames.HEADER.pack(0, 0, frames.SYN, 1, 1) + b"x"], False)
@given(st.lists(st.binary(max_size=60) | FRAMES, max_size=12), st.booleans())
def test_any_bytes_are_parsed_or_refused(pieces, reset_between):
    async def feed() -> None:
        connection = build_connection()
        try:
            for piece in pieces:
                connection._parse(piece)
                assert 0 <= connection._unread_bytes <= UNREAD_BYTES_MAX
                assert 0 <= connection._inbound_open <= 3
                if reset_between:
                    for stream in list(connection._streams.values()):
                        stream.reset_now()
                    assert connection._unread_bytes == 0
        except (YamuxViolation, trio.ClosedResourceError):
            pass
        connection.close_now()
        assert connection._unread_bytes == 0
        assert connection._inbound_open == 0

    trio.run(feed)

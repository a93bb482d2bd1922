"""The drain: running requests finish, new ones are refused, nobody holds the server beyond its
time.

Each with plain connections and with TLS: Hypercorn waits for ever for a consumer that does not
read.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from aimo_node.edge.serving.limits import HttpBinding, HttpLimits
from tests.integration.probe_app import (
    HOST,
    PATIENCE_SECONDS,
    Client,
    Served,
    run_lifespan,
    serving,
    status_of,
)

pytestmark = pytest.mark.alone

GRACE_SECONDS = 0.5
LIMIT_SECONDS = GRACE_SECONDS + 2
Tls = tuple[HttpBinding, ssl.SSLContext] | None


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for loopback and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "probe")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = folder / "cert.pem", folder / "key.pem"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate_file, key_file


@pytest.fixture(params=["plain", "tls"])
def tls(request: pytest.FixtureRequest, tmp_path: Path) -> Tls:
    if request.param == "plain":
        return None
    certificate, key = make_certificate(tmp_path)
    context = ssl.create_default_context(cafile=certificate)
    return HttpBinding(HOST, 0, certificate, key), context


async def open_websocket(client: Client) -> None:
    key = base64.b64encode(b"a" * 16).decode()
    await client.send(
        b"GET /ws HTTP/1.1\r\nhost: p\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        + f"sec-websocket-version: 13\r\nsec-websocket-key: {key}\r\n\r\n".encode()
    )
    assert status_of(await client.read_until(b"\r\n\r\n")) == 101


async def test_idle_server_stops_at_once_and_closes_kept_connections(tls: Tls) -> None:
    async with serving(tls=tls, grace_seconds=5) as served, await served.connect() as kept:
        await kept.get("/json")
        await kept.answer()
        began_at = trio.current_time()
        served.stop()
        assert await kept.read_to_end() == b""
        assert await served.wait_stopped() - began_at < 1


async def test_running_stream_finishes_while_new_requests_are_refused(tls: Tls) -> None:
    async with serving(tls=tls, grace_seconds=5) as served:
        running, kept = await served.connect(), await served.connect()
        await kept.get("/json")
        await kept.answer()
        await running.get("/sse?n=10&seconds=0.05")
        await served.probe.wait_for("sse-begun")
        began_at = trio.current_time()
        served.stop()
        assert await kept.read_to_end() == b""
        assert served.probe.counts["sse-ended"] == 0
        async with await served.connect() as newcomer:
            await newcomer.get("/json")
            answer = await newcomer.answer()
            assert answer.status == 503
            assert answer.headers["retry-after"] == "5"
            assert answer.headers["connection"] == "close"
            assert await newcomer.read_to_end() == b""
        assert (await running.answer()).body.count(b"data:") == 10
        assert await running.read_to_end() == b""
        assert await served.wait_stopped() - began_at < 3
        for client in (running, kept):
            await trio.aclose_forcefully(client.stream)


async def test_stream_beyond_the_grace_period_ends_with_its_error_event(tls: Tls) -> None:
    async with (
        serving(tls=tls, grace_seconds=GRACE_SECONDS) as served,
        await served.connect() as client,
    ):
        await client.get("/polite")
        await served.probe.wait_for("polite-begun")
        began_at = trio.current_time()
        served.stop()
        body = (await client.answer()).body  # terminated: an incomplete one would raise
        assert body.endswith(b'data: {"error": "going away"}\n\n')
        assert await served.wait_stopped() - began_at < LIMIT_SECONDS


async def test_stream_that_will_not_end_is_cut_without_a_terminator(tls: Tls) -> None:
    async with (
        serving(tls=tls, grace_seconds=GRACE_SECONDS) as served,
        await served.connect() as client,
    ):
        await client.get("/sse?n=100000&seconds=0.05")
        await served.probe.wait_for("sse-begun")
        began_at = trio.current_time()
        served.stop()
        raw = await client.read_to_end()
        assert await served.wait_stopped() - began_at < LIMIT_SECONDS
        assert served.probe.counts["sse-ended"] == 1
        assert not raw.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("chunk_bytes", [1000, 65_536])
async def test_consumer_that_does_not_read_cannot_hold_the_server(
    tls: Tls, chunk_bytes: int
) -> None:
    """Its final error event leaves nevertheless, and is found when it reads at last."""
    async with (
        serving(tls=tls, grace_seconds=GRACE_SECONDS) as served,
        await served.connect(receive_buffer=4096) as client,
    ):
        await client.get(f"/polite?size={chunk_bytes}")
        await served.probe.wait_for("polite-begun")
        await trio.sleep(0.3)  # until its buffers are full
        began_at = trio.current_time()
        served.stop()
        assert await served.wait_stopped() - began_at < LIMIT_SECONDS
        assert served.probe.counts["polite-ended"] == 1
        assert (await client.answer()).body.endswith(b'data: {"error": "going away"}\n\n')


async def test_stream_cancelled_while_it_writes_still_says_its_final_words(tls: Tls) -> None:
    """An application may cancel its own stream at the end of the grace period, wherever that is."""
    writing = trio.Event()
    served: Served

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await run_lifespan(receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        async with trio.open_nursery() as nursery:

            async def cancel_at_the_end() -> None:
                await served.server.grace_over.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(cancel_at_the_end)
            while True:
                chunk = b"data: " + b"x" * 65_536 + b"\n\n"
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                writing.set()
        await send({"type": "http.response.body", "body": b"data: sorry\n\n"})

    async with (
        serving(app=app, tls=tls, grace_seconds=GRACE_SECONDS) as served,
        await served.connect(receive_buffer=4096) as client,
    ):
        await client.get("/")
        await writing.wait()
        began_at = trio.current_time()
        served.stop()
        assert await served.wait_stopped() - began_at < LIMIT_SECONDS
        assert (await client.answer()).body.endswith(b"data: sorry\n\n")


async def test_websocket_is_told_that_the_server_restarts(tls: Tls) -> None:
    async with (
        serving(tls=tls, grace_seconds=GRACE_SECONDS) as served,
        await served.connect() as client,
    ):
        await open_websocket(client)
        began_at = trio.current_time()
        served.stop()
        raw = await client.read_to_end()
        assert await served.wait_stopped() - began_at < LIMIT_SECONDS
        assert raw.endswith(b"\x88\x02\x03\xf4")  # close, two bytes, 1012
        assert served.probe.counts["ws-ended"] == 1


async def test_websocket_that_does_not_read_cannot_hold_the_server(tls: Tls) -> None:
    async with (
        serving(tls=tls, grace_seconds=GRACE_SECONDS) as served,
        await served.connect(receive_buffer=4096) as client,
    ):
        await open_websocket(client)
        await client.send(b"\x81\x85\0\0\0\0flood")
        await served.probe.wait_for("ws-sent")
        before = -1
        while before != served.probe.counts["ws-sent"]:
            before = served.probe.counts["ws-sent"]
            await trio.sleep(0.1)
        assert before * 65_536 < 2_000_000
        began_at = trio.current_time()
        served.stop()
        assert await served.wait_stopped() - began_at < LIMIT_SECONDS


async def test_unfinished_requests_and_handshakes_do_not_hold_the_server(tls: Tls) -> None:
    async with serving(tls=tls, grace_seconds=5) as served:
        silent = await trio.open_tcp_stream(HOST, served.port)
        async with await served.connect() as half:
            await half.send(b"POST /echo HTTP/1.1\r\nhost: p\r\n")
            await trio.testing.wait_all_tasks_blocked()
            began_at = trio.current_time()
            served.stop()
            assert await served.wait_stopped() - began_at < 1
        await silent.aclose()


async def test_stalled_reader_is_cut_after_its_time_in_normal_service(
    tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a system whose kernel has no such timer."""
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT", raising=False)
    limits = HttpLimits(write_stall_seconds=0.4)
    async with (
        serving(limits, tls=tls) as served,
        await served.connect(receive_buffer=4096) as client,
    ):
        await client.get("/sse?n=1000000&size=10000")
        await served.probe.wait_for("sse-begun")
        await served.probe.wait_for("sse-ended")
        with pytest.raises((trio.BrokenResourceError, AssertionError)):
            await client.read_until(b"\r\n0\r\n\r\n")


async def test_cancelled_server_stops_at_once(tls: Tls) -> None:
    """Not a drain: the node is falling."""
    with trio.fail_after(PATIENCE_SECONDS):
        async with serving(tls=tls, grace_seconds=60) as served:
            client = await served.connect(receive_buffer=4096)
            await client.get("/polite?size=65536")
            await served.probe.wait_for("polite-begun")
            await trio.sleep(0.2)
            began_at = trio.current_time()
            served.cancel()
            assert await served.wait_stopped() - began_at < 1
            await trio.aclose_forcefully(client.stream)

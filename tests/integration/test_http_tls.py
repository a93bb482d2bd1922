"""TLS on the HTTP port: what is offered, what is refused, and that no byte is lost."""

from __future__ import annotations

import json
import ssl
from pathlib import Path

import pytest
import trio

from aimo_node.edge.serving.limits import MEBIBYTE, HttpBinding, HttpLimits
from aimo_node.edge.serving.server import HttpServer
from aimo_node.errors import ConfigError
from tests.integration.probe_app import AT_ONCE_SECONDS, HOST, Probe, quickest, serving, status_of
from tests.integration.test_http_drain import Tls, make_certificate

pytestmark = pytest.mark.alone


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    certificate, key = make_certificate(tmp_path)
    context = ssl.create_default_context(cafile=certificate)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return HttpBinding(HOST, 0, certificate, key), context


async def test_only_http_1_1_is_offered(tls: Tls) -> None:
    async with serving(tls=tls) as served, await served.connect() as client:
        assert served.url.startswith("https://")
        assert isinstance(client.stream, trio.SSLStream)
        assert client.stream.selected_alpn_protocol() == "http/1.1"
        for _ in range(2):
            await client.get("/json")
            assert (await client.answer()).status == 200


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_bodies_and_streams_arrive_whole(tls: Tls, version: ssl.TLSVersion) -> None:
    assert tls is not None
    tls[1].minimum_version = tls[1].maximum_version = version
    async with serving(tls=tls) as served, await served.connect(receive_buffer=8192) as client:
        await client.send(
            b"POST /echo HTTP/1.1\r\nhost: p\r\ncontent-length: %d\r\n\r\n" % MEBIBYTE
        )
        await client.send(b"z" * MEBIBYTE)
        assert json.loads((await client.answer("POST")).body)["bytes"] == MEBIBYTE
        await client.get("/bytes?n=2560000")
        assert (await client.answer()).body == bytes(range(256)) * 10_000
        await client.get("/sse?n=200")
        assert (await client.answer()).body.count(b"data:") == 200


async def test_end_of_a_closed_connection_is_authenticated(tls: Tls) -> None:
    """Without close_notify a consumer cannot tell an end from an attack that cuts."""
    assert tls is not None
    async with serving(tls=tls) as served:
        stream = trio.SSLStream(
            await trio.open_tcp_stream(HOST, served.port), tls[1], server_hostname=HOST
        )
        await stream.send_all(b"GET /sse?n=3 HTTP/1.0\r\n\r\n")
        received = b""
        while data := await stream.receive_some():  # raises where the end is not authentic
            received += data
        assert received.count(b"data:") == 3
        await stream.aclose()


async def test_refusal_is_readable_though_the_body_is_not_read(tls: Tls) -> None:
    async with serving(tls=tls) as served, await served.connect() as client:
        await client.send(b"POST /refuse HTTP/1.1\r\nhost: p\r\ncontent-length: 3000000\r\n\r\n")
        await client.send(b"x" * 300_000)
        assert status_of(await client.read_until(b"\r\n")) == 401
        await client.send(b"x" * 300_000)  # still taken, and thrown away
        await client.send(b"x" * 300_000)
        assert await client.read_to_end()


async def test_plain_http_and_nonsense_are_refused_and_others_served(tls: Tls) -> None:
    async with serving(tls=tls) as served:
        for data in (b"GET /json HTTP/1.1\r\nhost: p\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"x" * 99):
            stream = await trio.open_tcp_stream(HOST, served.port)
            await stream.send_all(data)
            with trio.fail_after(5):
                try:
                    while await stream.receive_some():
                        pass
                except trio.BrokenResourceError:
                    pass
            await stream.aclose()
        async with await served.connect() as client:
            await client.get("/json")
            assert status_of(await client.read_until(b"\r\n\r\n")) == 200


async def test_slow_handshake_is_closed_in_time(tls: Tls) -> None:
    async with serving(HttpLimits(header_seconds=0.4), tls=tls) as served:
        stream = await trio.open_tcp_stream(HOST, served.port)
        await stream.send_all(b"\x16\x03\x01\x02\x00\x01")
        with trio.fail_after(3):
            assert await stream.receive_some() == b""
        await stream.aclose()


@pytest.mark.parametrize("is_reset", [False, True])
async def test_leaving_consumer_cancels_the_handler_at_once(tls: Tls, is_reset: bool) -> None:
    async def measure() -> float:
        async with serving(tls=tls) as served, await served.connect() as client:
            await client.get("/idle")
            await client.read_until(b"hello")
            left_at = trio.current_time()
            if is_reset:
                client.reset()
            else:
                await client.stream.aclose()
            await served.probe.wait_for("idle-ended")
            return served.probe.times["idle-ended"] - left_at

    assert await quickest(measure) < AT_ONCE_SECONDS


async def test_unusable_certificate_is_a_configuration_error(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    for cert_file, key_file, words in (
        (certificate, tmp_path / "missing.pem", "^cannot read .*: No such file or directory$"),
        (certificate, make_certificate(other)[1], "are no certificate and its key.*MISMATCH"),
        (key, key, "are no certificate and its key, both in PEM"),
        (certificate, None, "both a certificate and its key"),
        (None, key, "both a certificate and its key"),
    ):
        with pytest.raises(ConfigError, match=words):
            await HttpServer().serve(
                Probe().app,
                HttpBinding(HOST, 0, cert_file, key_file),
                HttpLimits(),
                drain=trio.Event(),
                grace_seconds=1,
            )

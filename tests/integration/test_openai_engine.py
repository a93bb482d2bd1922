"""The openai engine against the stand-in upstream: over TCP, TLS and a Unix socket."""

import datetime
import json
import math
import socket
import ssl
import tempfile
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from aimo_node.domain.answer import Usage
from aimo_node.domain.ids import Endpoint, FinishReason
from aimo_node.domain.models import Feature, Health
from aimo_node.errors import (
    ConfigError,
    ContextLengthExceeded,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
)
from aimo_node.testing import upstream_scripts as scripts
from aimo_node.testing.engine_contract import eventually
from aimo_node.testing.recording_sink import RecordingSink
from aimo_node.testing.upstream import Pause, Whole, stand_in_upstream
from aimo_node.testing.upstream_scripts import DONE, chunk, exactly, text
from providers.engines.openai_http import create
from providers.http.upstream import ANSWER_BYTES_MAX
from tests.integration.openai_calls import answer, failure, request, running, settings

SAID = "".join(scripts.WORDS)


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="aimo") as name:
        yield Path(name)


@pytest.fixture(params=["http", "unix"])
async def upstream(request, folder):
    path = folder / "up.sock" if request.param == "unix" else None
    async with stand_in_upstream(scripts.answer(), path) as served:
        yield served


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (scripts.ERROR_THEN_DONE, EngineFailed),
        (scripts.ABORTED, EngineFailed),
        (scripts.NO_REASON, EngineFailed),
        (scripts.ENDS_SILENTLY, EngineFailed),
        (scripts.DIES, EngineFailed),
        (scripts.GARBAGE, EngineFailed),
        (scripts.BROKEN, EngineFailed),
        (exactly(Whole(200, b'{"choices": []}')), EngineFailed),
        (exactly(b"data: " + b"x" * 1_100_000), EngineFailed),
        (scripts.refusal(401, message="Incorrect API key: sk-1"), EngineFailed),
        (scripts.refusal(404, message="no such model"), ModelNotFound),
        (scripts.refusal(400, message="temperature is too hot"), InvalidRequest),
        (scripts.CONTEXT_OVERFLOW, ContextLengthExceeded),
        (scripts.BUSY, Overloaded),
    ],
    ids=[
        "error-then-done",
        "abort",
        "no-reason",
        "silent-end",
        "death",
        "garbage",
        "status-500",
        "not-a-stream",
        "endless-line",
        "status-401",
        "status-404",
        "status-400",
        "context",
        "status-429",
    ],
)
async def test_every_failure_is_an_error_and_the_next_request_works(
    upstream, folder, script, error
):
    async with running(create(settings(folder, upstream.endpoint))) as engine:
        upstream.scripts.append(script)
        sink = RecordingSink()
        with trio.fail_after(30), pytest.raises(error):
            await engine.stream(request(), sink)
        assert sink.end is None
        assert (await answer(engine, request())).written == SAID


async def test_redirect_is_not_followed(upstream, folder):
    """Prompts go where the owner said and nowhere else."""
    async with running(create(settings(folder, upstream.endpoint))) as engine:
        for status in (302, 307, 308):
            upstream.scripts.append(exactly(Whole(status, b"", {"location": "/v1/completions"})))
            with pytest.raises(EngineFailed):
                await engine.stream(request(), RecordingSink())
    assert [received.path for received in upstream.received] == ["/v1/chat/completions"] * 3


async def test_whole_answer_that_is_too_long_is_not_kept(upstream, folder):
    async with running(create(settings(folder, upstream.endpoint))) as engine:
        upstream.scripts.append(exactly(Whole(200, b" " * (ANSWER_BYTES_MAX + 1))))
        with pytest.raises(EngineFailed, match="longer than"):
            await engine.stream(request(stream=False), RecordingSink())


async def test_characters_cut_between_segments_are_put_together(upstream, folder):
    upstream.usual = scripts.cut_small(scripts.answer())
    async with running(create(settings(folder, upstream.endpoint))) as engine:
        sink = await answer(engine, request())
    assert sink.parts[:-1] == list(scripts.WORDS)


async def test_tool_calls_pass_as_choices(upstream, folder):
    call = {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{"}}]}
    upstream.usual = exactly(chunk(call), chunk({}, "tool_calls"), scripts.usage(3, 4), DONE)
    async with running(create(settings(folder, upstream.endpoint))) as engine:
        sink = await answer(engine, request())
    assert sink.choices == [{"index": 0, "delta": call, "finish_reason": None}]
    assert sink.end.reason is FinishReason.TOOL_CALLS
    assert sink.end.usage == Usage(3, 4)


async def test_upstream_gets_its_own_model_name_and_is_asked_for_usage(upstream, folder):
    engine = create(settings(folder, upstream.endpoint, served_name="mine"))
    async with running(engine):
        await answer(engine, request(model="mine", salt="alice"))
        await answer(engine, request(model="mine", stream=False))
        assert [model.name for model in engine.capabilities().models] == ["mine"]
    first, second = (received.body for received in upstream.received)
    assert first["model"] == second["model"] == "stand-in"
    assert first["stream"] is True
    assert first["stream_options"] == {"include_usage": True}
    assert "cache_salt" not in first
    assert second["stream"] is False
    assert "stream_options" not in second


async def test_vllms_prompt_cache_is_salted(upstream, folder):
    listed = {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 4096}]}
    upstream.models = exactly(Whole(200, json.dumps(listed).encode()))
    async with running(create(settings(folder, upstream.endpoint))) as engine:
        await answer(engine, request(model="m", salt="alice"))
        assert engine.capabilities().models[0].context_tokens == 4096
    assert upstream.received[0].body["cache_salt"] == "alice"


async def test_completions_are_served_too(upstream, folder):
    event = scripts.event({"choices": [{"index": 0, "text": "hi", "finish_reason": "stop"}]})
    upstream.usual = exactly(event, DONE)
    async with running(create(settings(folder, upstream.endpoint))) as engine:
        sink = await answer(engine, request(endpoint=Endpoint.COMPLETIONS))
        assert sink.written == "hi"
        assert upstream.received[0].path == "/v1/completions"
        with pytest.raises(InvalidRequest):
            await engine.stream(request(endpoint=Endpoint.EMBEDDINGS), RecordingSink())


async def test_key_is_sent_and_never_shown(upstream, folder):
    key_file = folder / "key"
    key_file.write_text("sk-secret\n")
    engine = create(settings(folder, upstream.endpoint, api_key_file=key_file))
    async with running(engine):
        await answer(engine, request())
        assert upstream.received[0].headers["authorization"] == "Bearer sk-secret"
        for status in (400, 401, 404, 500):
            upstream.scripts.append(scripts.refusal(status, message="bad key sk-secret"))
            with pytest.raises((EngineFailed, ModelNotFound)) as caught:
                await engine.stream(request(), RecordingSink())
            assert "sk-secret" not in str(caught.value)
    assert "sk-secret" not in repr(engine.__dict__)


async def test_cancelled_requests_lose_no_places(upstream, folder):
    """Pools leak when a request is cancelled in the wrong moment; every moment is tried."""
    engine = create(settings(folder, upstream.endpoint, requests_max=2))
    async with running(engine):
        for delay_ms in range(60):
            upstream.scripts.append(scripts.endless)
            with trio.move_on_after(delay_ms / 5000):
                await engine.stream(request(), RecordingSink())
            upstream.scripts.clear()
        assert engine.load().running == 0
        for _ in range(4):
            assert (await answer(engine, request())).written == SAID
        await eventually(lambda: upstream.generating == 0, "nothing is generated for nobody")
        await eventually(lambda: upstream.connections <= 2, "no connection is left open")


@pytest.mark.alone
async def test_socket_is_closed_within_50_ms_of_cancelling(upstream, folder):
    async with running(create(settings(folder, upstream.endpoint))) as engine:
        upstream.scripts.append(exactly(text("one "), Pause(math.inf)))
        sink = RecordingSink()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.stream, request(), sink)
            await sink.first.wait()
            cancelled_at = trio.current_time()
            nursery.cancel_scope.cancel()
        await eventually(lambda: upstream.generating == 0, "the upstream is told")
        assert trio.current_time() - cancelled_at < 0.05


async def test_start_waits_for_an_upstream_that_comes_up_later(folder):
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{reserved.getsockname()[1]}"
    path = folder / "later.sock"
    sentence = await failure(folder, endpoint, "--start-seconds", "0")
    assert sentence.startswith(f"{endpoint} does not answer (connection refused), also after 0 s")
    told = []
    engine = create(settings(folder, f"unix:{path}"))
    async with trio.open_nursery() as nursery:
        ready = trio.Event()
        nursery.start_soon(engine.run, ready.set, lambda line, **_: told.append(line))
        await eventually(lambda: bool(told), "progress is told")
        assert told[0].startswith(f"waiting for unix:{path} (")
        async with stand_in_upstream(scripts.answer(), path):
            with trio.fail_after(10):
                await ready.wait()
        nursery.cancel_scope.cancel()


async def test_start_tells_once_why_it_waits(folder, monkeypatch):
    monkeypatch.setattr("providers.upstreams.start.RETRY_SECONDS", 0.0)
    path, tries, told = folder / "hangs-up.sock", [], []

    async def hang_up(stream: trio.SocketStream) -> None:
        tries.append(stream)
        await stream.aclose()

    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(path))
    listener.listen()
    engine = create(settings(folder, f"unix:{path}"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, hang_up, [trio.SocketListener(listener)])
        nursery.start_soon(engine.run, lambda: None, lambda line, **_: told.append(line))
        await eventually(lambda: len(tries) > 3, "it tries again")
        nursery.cancel_scope.cancel()
    assert len(told) == 1


async def test_model_that_is_not_there_is_refused_with_what_is(upstream, folder):
    sentence = await failure(folder, upstream.endpoint, model="stand-on")
    assert sentence.endswith("'stand-on' (did you mean stand-in?); it offers stand-in")


@pytest.mark.parametrize(
    ("status", "sentence"),
    [(401, "wants a key: see --api-key-file"), (500, "HTTP status 500")],
)
async def test_useless_model_list_is_refused(upstream, folder, status, sentence):
    upstream.models = scripts.refusal(status)
    assert sentence in await failure(folder, upstream.endpoint)


async def test_upstream_without_a_model_list_is_trusted(upstream, folder):
    upstream.models = None
    async with running(create(settings(folder, upstream.endpoint, model="any"))) as engine:
        await answer(engine, request(model="any"))
    assert "HTTP status 404" in await failure(folder, upstream.endpoint)


async def test_owner_may_correct_what_the_upstream_offers(upstream, folder):
    arguments = ("--context", "512", "--features", "vision,tools")
    async with running(create(settings(folder, upstream.endpoint, *arguments))) as engine:
        (model,) = engine.capabilities().models
    assert model.context_tokens == 512
    assert model.features == (Feature.VISION, Feature.TOOLS)
    with pytest.raises(ConfigError, match="--features"):
        create(settings(folder, upstream.endpoint, "--features", "magic"))


async def test_health_follows_the_upstream(upstream, folder):
    quick = ("--probe-seconds", "0.05")
    async with running(create(settings(folder, upstream.endpoint, *quick))) as engine:
        assert engine.health() is Health.HEALTHY
        honest, upstream.models = upstream.models, scripts.refusal(503)
        await eventually(lambda: engine.health() is Health.DEGRADED, "it is suspected")
        await eventually(lambda: engine.health() is Health.OFFLINE, "it is given up")
        upstream.models = honest
        await eventually(lambda: engine.health() is Health.HEALTHY, "it is back")


async def test_certificate_nobody_signed_is_refused_and_a_trusted_one_works(folder):
    certificate, server_side = make_certificate(folder)
    async with stand_in_upstream(scripts.answer(), tls=server_side) as upstream:
        # Waiting would not help, so it does not wait.
        sentence = await failure(folder, upstream.endpoint, "--start-seconds", "3600")
        assert "no certificate this node trusts" in sentence
        trusted = settings(folder, upstream.endpoint, "--ca-file", str(certificate))
        async with running(create(trusted)) as engine:
            assert (await answer(engine, request())).written == SAID


def test_useless_certificate_file_is_a_configuration_error(folder):
    with pytest.raises(ConfigError, match="--ca-file"):
        create(settings(folder, "https://localhost", "--ca-file", str(folder / "no.pem")))


def make_certificate(folder):
    """A certificate for 127.0.0.1 that signs itself, and a server's context with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "stand-in")])
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
            x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
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
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate_file, key_file)
    return certificate_file, context

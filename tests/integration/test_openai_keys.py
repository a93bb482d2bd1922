"""The owner's key: where it may come from, and that nobody else ever sees it."""

import io
import logging
import tempfile
from pathlib import Path

import pytest
import structlog

from aimo_node.errors import AimoError, ConfigError, EngineFailed
from aimo_node.testing import upstream_scripts as scripts
from aimo_node.testing.recording_sink import RecordingSink
from aimo_node.testing.upstream import stand_in_upstream
from providers.engines.openai_http import create
from providers.http.client import HttpUpstream
from providers.http.unix_client import UnixUpstream
from providers.http.upstream import ask_once
from tests.integration.openai_calls import answer, request, running, settings

KEY = "sk-very-secret-0123456789"


@pytest.fixture
async def upstream():
    async with stand_in_upstream(scripts.answer()) as served:
        yield served


@pytest.fixture
def logged():
    """Everything that this process logs, libraries included, down to debug."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    structlog.configure(
        processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()],
        logger_factory=structlog.PrintLoggerFactory(stream),
    )
    yield stream
    structlog.reset_defaults()
    root.setLevel(before)
    root.removeHandler(handler)


async def test_key_comes_from_the_environment(upstream, tmp_path, monkeypatch):
    monkeypatch.setenv("THE_KEY", f"{KEY}\n")
    engine = create(settings(tmp_path, upstream.endpoint, api_key_env="THE_KEY"))
    async with running(engine):
        await answer(engine, request())
    assert upstream.received[0].headers["authorization"] == f"Bearer {KEY}"


def test_variable_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match="NO_SUCH_KEY: there is no such environment variable"):
        create(settings(tmp_path, "http://localhost", api_key_env="NO_SUCH_KEY"))


@pytest.mark.parametrize("value", ["", " ", "two keys", "schlüssel", "k" * 8192])
def test_variable_without_one_key_is_refused(tmp_path, monkeypatch, value):
    monkeypatch.setenv("THE_KEY", value)
    with pytest.raises(ConfigError, match="THE_KEY: the variable must hold one key") as caught:
        create(settings(tmp_path, "http://localhost", api_key_env="THE_KEY"))
    assert "two" not in str(caught.value)


def test_two_places_for_one_key_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("THE_KEY", KEY)
    file = tmp_path / "key"
    file.write_text(KEY)
    with pytest.raises(ConfigError, match="not both"):
        create(settings(tmp_path, "http://x", api_key_file=file, api_key_env="THE_KEY"))


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, True), (0o604, True)])
def test_file_that_others_may_read_is_used_with_a_warning(tmp_path, logged, mode, warned):
    file = tmp_path / "key"
    file.write_text(KEY)
    file.chmod(mode)
    create(settings(tmp_path, "http://localhost", api_key_file=file))
    assert ("key_file.open_to_others" in logged.getvalue()) is warned
    assert KEY not in logged.getvalue()


async def test_key_is_nowhere_in_logs_errors_or_descriptions(upstream, tmp_path, logged):
    file = tmp_path / "key"
    file.write_text(KEY)
    engine = create(settings(tmp_path, upstream.endpoint, api_key_file=file))
    errors = []
    async with running(engine):
        await answer(engine, request())
        await answer(engine, request(stream=False))
        for status in (400, 401, 403, 404, 413, 422, 429, 500, 501, 503):
            for text in (f"bad key {KEY}", "x" * 280 + KEY, f"{KEY} is not supported"):
                upstream.scripts.append(scripts.refusal(status, message=text))
                with pytest.raises(AimoError) as caught:
                    await engine.stream(request(), RecordingSink())
                errors.append(caught.value)
        upstream.scripts += [scripts.DIES, scripts.GARBAGE, scripts.ERROR_THEN_DONE]
        for _ in range(3):
            with pytest.raises(EngineFailed) as caught:
                await engine.stream(request(), RecordingSink())
            errors.append(caught.value)
    log = structlog.get_logger()
    for error in errors:
        log.error("request.failed", exc_info=error)
    assert "request.failed" in logged.getvalue()
    assert "receive_response_headers" in logged.getvalue(), "libraries are heard at debug"
    told = [logged.getvalue(), repr(engine), repr(vars(engine)), repr(engine.capabilities())]
    told += [f"{error!r} {error} {error.__cause__!r}" for error in errors]
    assert KEY[:8] not in "\n".join(told)


async def test_upstream_that_quotes_the_key_at_the_start_is_not_quoted(upstream, tmp_path, logged):
    """The list of models is asked for with the key too."""
    file = tmp_path / "key"
    file.write_text(KEY)
    for status in (401, 500):
        upstream.models = scripts.refusal(status, message=f"bad key {KEY}")
        engine = create(settings(tmp_path, upstream.endpoint, api_key_file=file))
        with pytest.raises(AimoError) as caught:
            await engine.run(lambda: None, lambda line, **_: None)
        assert KEY not in f"{caught.value!r} {caught.value.__cause__!r}"
    assert KEY not in logged.getvalue()


async def test_headers_of_a_request_are_sent_over_a_unix_socket_too():
    with tempfile.TemporaryDirectory(prefix="aimo") as folder:  # pytest's are too deep
        path = Path(folder) / "up.sock"
        async with stand_in_upstream(scripts.exactly(scripts.whole("hi", "stop")), path) as served:
            client = UnixUpstream(path, api_key=KEY)
            asked = (("authorization", "Bearer other"), ("x-initiator", "user"))
            await ask_once(client, "/v1/chat/completions", b"{}", headers=asked)
        (received,) = served.received
        assert received.headers["authorization"] == "Bearer other"
        assert received.headers["x-initiator"] == "user"


async def test_headers_of_the_upstream_and_of_the_request_are_sent(upstream):
    own = {"x-api-key": KEY, "version": "1"}
    client = HttpUpstream(upstream.endpoint, requests_max=1, headers=own)
    upstream.usual = scripts.exactly(scripts.whole("hi", "stop"))
    path = "/v1/chat/completions"
    await ask_once(client, path, b"{}", headers=(("version", "2"), ("x-initiator", "user")))
    await ask_once(client, path, b"{}")
    first, second = (received.headers for received in upstream.received)
    assert (first["x-api-key"], first["version"], first["x-initiator"]) == (KEY, "2", "user")
    assert (second["x-api-key"], second["version"]) == (KEY, "1")
    assert "x-initiator" not in second
    assert "authorization" not in first
    assert KEY not in repr(client)
    await client.aclose()

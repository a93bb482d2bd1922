"""Connecting is tried again; a request that was sent never is."""

import socket

import pytest
import trio

from aimo_node.errors import EngineFailed, EngineStartFailed
from aimo_node.testing import upstream_scripts as scripts
from aimo_node.testing.engine_contract import eventually
from aimo_node.testing.recording_sink import RecordingSink
from aimo_node.testing.upstream import stand_in_upstream
from providers.engines.openai_http import create
from providers.http.client import HttpUpstream
from providers.http.upstream import Unreachable, ask_once
from tests.integration.openai_calls import request, running, settings

MODELS = b'{"data":[{"id":"stand-in"}]}'


@pytest.fixture
def free_port():
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        return reserved.getsockname()[1]


async def hangs_up(posts, how_much, stream):
    """Lists its model; reads a POST, answers with some bytes, and hangs up."""
    async with stream:
        head = await stream.receive_some(65_536)
        if head.startswith(b"GET"):
            await stream.send_all(
                b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
                % (len(MODELS), MODELS)
            )
            return
        posts.append(head)
        await stream.send_all(how_much)


@pytest.mark.parametrize(
    "how_much",
    [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"],
    ids=["nothing", "half-a-head", "a-head"],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_request_that_was_read_is_not_sent_again(tmp_path, how_much, stream):
    """It may have been carried out, and paid for."""
    posts = []
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]

        async def serve(connection):
            await hangs_up(posts, how_much, connection)

        nursery.start_soon(trio.serve_listeners, serve, [listener])
        async with running(create(settings(tmp_path, f"http://127.0.0.1:{port}"))) as engine:
            with trio.fail_after(10), pytest.raises(EngineFailed):
                await engine.stream(request(stream=stream), RecordingSink())
            with trio.fail_after(10), pytest.raises(EngineFailed):
                await engine.stream(request(stream=stream), RecordingSink())
        nursery.cancel_scope.cancel()
    assert len(posts) == 2


async def test_connection_that_is_refused_at_first_is_tried_again(free_port):
    upstream = HttpUpstream(f"http://127.0.0.1:{free_port}", requests_max=1)
    found = []

    async def ask():
        found.append(await ask_once(upstream, "/v1/models"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(0.1)
        assert not found
        listeners = await trio.open_tcp_listeners(free_port, host="127.0.0.1")

        async def serve(connection):
            await hangs_up([], b"", connection)

        nursery.start_soon(trio.serve_listeners, serve, listeners)
        await eventually(lambda: bool(found), "it is tried again")
        nursery.cancel_scope.cancel()
    assert found == [(200, MODELS)]
    await upstream.aclose()


async def test_reason_for_the_owner_is_not_what_consumers_read(free_port):
    upstream = HttpUpstream(f"http://127.0.0.1:{free_port}", requests_max=1)
    with pytest.raises(Unreachable) as caught:
        await ask_once(upstream, "/v1/models")
    assert caught.value.reason == "connection refused"
    assert not caught.value.lasting
    assert str(caught.value) == "the engine's upstream cannot be reached"
    await upstream.aclose()


async def test_name_nobody_has_is_told():
    upstream = HttpUpstream("http://no-such-host.invalid", requests_max=1)
    with pytest.raises(Unreachable) as caught:
        await ask_once(upstream, "/v1/models")
    assert caught.value.reason == "there is no such host"
    await upstream.aclose()


async def test_start_gives_up_in_the_time_the_owner_sets(tmp_path, free_port):
    endpoint = f"http://127.0.0.1:{free_port}"
    told = []
    engine = create(settings(tmp_path, endpoint, "--start-seconds", "1.2"))
    began = trio.current_time()
    with pytest.raises(EngineStartFailed) as caught:
        await engine.run(lambda: None, lambda line, **_: told.append(line))
    assert trio.current_time() - began < 5
    assert told == [f"waiting for {endpoint} (connection refused), 1 s left"]
    assert str(caught.value).startswith(
        f"{endpoint} does not answer (connection refused), also after 1.2 s: is it the right"
    )


async def test_time_that_is_left_is_told_again_and_again(tmp_path, free_port, monkeypatch):
    monkeypatch.setattr("providers.upstreams.start.TELL_SECONDS", 0.0)
    monkeypatch.setattr("providers.upstreams.start.RETRY_SECONDS", 0.0)
    told = []
    engine = create(settings(tmp_path, f"http://127.0.0.1:{free_port}", "--start-seconds", "600"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run, lambda: None, lambda line, **_: told.append(line))
        await eventually(lambda: len(told) >= 3, "it is told each time")
        nursery.cancel_scope.cancel()
    assert all(line.endswith(" s left") for line in told)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_server_that_still_loads_is_waited_for(tmp_path, monkeypatch, status):
    monkeypatch.setattr("providers.upstreams.start.RETRY_SECONDS", 0.01)
    told = []
    async with stand_in_upstream(scripts.answer()) as upstream, trio.open_nursery() as nursery:
        honest, upstream.models = upstream.models, scripts.refusal(status)
        engine, ready = create(settings(tmp_path, upstream.endpoint)), trio.Event()
        nursery.start_soon(engine.run, ready.set, lambda line, **_: told.append(line))
        await eventually(lambda: upstream.lists > 2, "it is asked again")
        upstream.models = honest
        with trio.fail_after(10):
            await ready.wait()
        nursery.cancel_scope.cancel()
    assert f"(the model list answers with HTTP status {status})" in told[0]

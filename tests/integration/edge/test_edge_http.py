"""The edge on a real port, spoken to with curl and with bare sockets."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess

import pytest
import trio

from aimo_node.edge.settings import EdgeSettings
from aimo_node.testing.fake_door import FAKE_PEER, FakeDoor, Pause, words

from .conftest import start_edge

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]}
MIB = 1024 * 1024


async def curl(*arguments: str) -> str:
    """Run curl; its output."""
    with trio.fail_after(20):
        done = await trio.run_process(
            ["curl", "-sS", *arguments], capture_stdout=True, capture_stderr=True, check=False
        )
    return done.stdout.decode()


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def post(path: str, body: bytes, *headers: str, host: str = "127.0.0.1") -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {host}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + body


async def read_response(stream: trio.SocketStream) -> tuple[int, dict[str, str], bytes]:
    """One response with a Content-Length."""
    data = b""
    with trio.fail_after(10):
        while b"\r\n\r\n" not in data:
            data += await read_some(stream)
        head, _, body = data.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        while len(body) < int(headers["content-length"]):
            body += await read_some(stream)
    return int(status.split()[1]), headers, body


async def read_some(stream: trio.SocketStream) -> bytes:
    data = bytes(await stream.receive_some(65536))
    if not data:
        raise EOFError
    return data


@needs_curl
async def test_curl_shows_tokens_as_they_come(edge):
    pause = Pause()
    edge.door.script = [["Hel"], pause, *words("lo")]
    process = await trio.lowlevel.open_process(
        [
            *("curl", "-sSN", f"{edge.url}/v1/chat/completions"),
            *("-H", "content-type: application/json", "-d", json.dumps({**CHAT, "stream": True})),
        ],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    seen = b""
    with trio.fail_after(20):
        while b"Hel" not in seen:
            seen += await process.stdout.receive_some()
        assert b"[DONE]" not in seen
        while b": waiting\n\n" not in seen:
            seen += await process.stdout.receive_some()
        pause.over.set()
        async for data in process.stdout:
            seen += data
        assert await process.wait() == 0
    assert seen.endswith(b"data: [DONE]\n\n")


@needs_curl
async def test_curl_sees_where_the_answer_came_from(edge):
    shown = await curl(
        *("-i", f"{edge.url}/v1/chat/completions", "-H", "content-type: application/json"),
        *("-d", json.dumps(CHAT)),
    )
    head = shown.partition("\r\n\r\n")[0].lower()
    assert f"x-aimo-provider: {FAKE_PEER}".lower() in head
    for name in ("request-id", "path", "attempts"):
        assert f"x-aimo-{name}: " in head


@needs_curl
async def test_curl_without_content_type_is_told_why(edge):
    """What `curl -d` sends by default is what a form on a page sends."""
    shown = json.loads(await curl(f"{edge.url}/v1/chat/completions", "-d", json.dumps(CHAT)))
    assert shown["error"]["code"] == "unsupported_content_type"


@needs_curl
@pytest.mark.parametrize("chunked", [True, False])
async def test_curl_with_a_body_over_8_mib_reads_413(edge, tmp_path, chunked):
    file = tmp_path / "body"
    file.write_bytes(b" " * (8 * MIB + 1))
    headers = ["-H", "transfer-encoding: chunked"] if chunked else []
    shown = await curl(
        *("-w", "%{http_code}", "-o", str(tmp_path / "out"), "--data-binary", f"@{file}"),
        *("-H", "content-type: application/json", "-H", "expect:", *headers),
        f"{edge.url}/v1/chat/completions",
    )
    assert shown == "413"
    error = json.loads((tmp_path / "out").read_bytes())["error"]
    assert error["type"] == "invalid_request_error"
    assert not edge.door.requests


async def test_body_of_8_mib_is_taken(edge):
    text = "x" * (8 * MIB - len(json.dumps(CHAT)))
    body = json.dumps({**CHAT, "messages": [{"role": "user", "content": text}]}).encode()
    assert 8 * MIB - 100 < len(body) <= 8 * MIB
    stream = await trio.open_tcp_stream("127.0.0.1", edge.port)
    async with stream:
        await stream.send_all(post("/v1/chat/completions", body))
        status, _, answer = await read_response(stream)
    assert (status, b"Hello there" in answer) == (200, True)


async def test_many_requests_on_one_connection(edge):
    stream = await trio.open_tcp_stream("127.0.0.1", edge.port)
    async with stream:
        for path, body, expected in [
            ("/v1/chat/completions", json.dumps(CHAT).encode(), 200),
            ("/v1/chat/completions", b"{", 400),
            ("/v1/chat/completions", b'{"a":' * 10_000, 400),
            ("/v1/nothing", b"{}", 404),
            ("/v1/chat/completions", json.dumps(CHAT).encode(), 200),
        ]:
            await stream.send_all(post(path, body))
            status, headers, answer = await read_response(stream)
            assert status == expected
            assert json.loads(answer)
            assert headers["content-type"] == "application/json"


async def test_refused_host_keeps_nobody_waiting(edge):
    stream = await trio.open_tcp_stream("127.0.0.1", edge.port)
    async with stream:
        await stream.send_all(post("/v1/chat/completions", b"{}", host="evil.example"))
        status, _, body = await read_response(stream)
    assert status == 403
    assert json.loads(body)["error"]["code"] == "permission_denied"


async def test_no_cross_origin_headers_are_ever_sent(edge):
    stream = await trio.open_tcp_stream("127.0.0.1", edge.port)
    async with stream:
        for origin, expected in ((f"http://127.0.0.1:{edge.port}", 200), ("http://evil", 403)):
            host = f"127.0.0.1:{edge.port}"
            await stream.send_all(
                post(
                    "/v1/chat/completions",
                    json.dumps(CHAT).encode(),
                    f"Origin: {origin}",
                    host=host,
                )
            )
            status, headers, _ = await read_response(stream)
            assert status == expected
            assert not any(name.startswith("access-control") for name in headers)


async def test_keys_are_asked_for_on_a_real_port(nursery):
    key = "sk-0123456789abcdef"
    settings = EdgeSettings(api_keys=frozenset({hashlib.sha256(key.encode()).digest()}))
    edge = await start_edge(nursery, FakeDoor(), settings)
    body = json.dumps(CHAT).encode()
    stream = await trio.open_tcp_stream("127.0.0.1", edge.port)
    async with stream:
        await stream.send_all(post("/v1/chat/completions", body))
        assert (await read_response(stream))[0] == 401
        await stream.send_all(post("/v1/chat/completions", body, f"Authorization: Bearer {key}"))
        assert (await read_response(stream))[0] == 200
    nursery.cancel_scope.cancel()


async def test_consumer_that_vanishes_stops_the_provider(edge):
    pause = Pause()
    edge.door.script = [["Hel"], pause]
    stream = await trio.open_tcp_stream("127.0.0.1", edge.port)
    body = json.dumps({**CHAT, "stream": True}).encode()
    await stream.send_all(post("/v1/chat/completions", body))
    await pause.reached.wait()
    await stream.aclose()
    with trio.fail_after(5):
        await edge.door.answers[0].cancelled.wait()


async def test_drain_finishes_what_runs_refuses_what_comes_and_ends(edge):
    pause = Pause()
    edge.door.script = [["Hel"], pause, *words("lo")]
    running = await trio.open_tcp_stream("127.0.0.1", edge.port)
    late = await trio.open_tcp_stream("127.0.0.1", edge.port)
    streamed = json.dumps({**CHAT, "stream": True}).encode()
    async with running, late:
        await running.send_all(post("/v1/chat/completions", streamed))
        await pause.reached.wait()
        head, rest = post("/v1/chat/completions", streamed).split(b"\r\n", 1)
        await late.send_all(head + b"\r\n")  # not idle: a request is on its way
        await trio.testing.wait_all_tasks_blocked()
        edge.drain.set()
        await late.send_all(rest)
        status, headers, body = await read_response(late)
        assert (status, headers["retry-after"]) == (503, "5")
        assert json.loads(body)["error"]["code"] == "draining"
        pause.over.set()
        seen = b""
        with trio.fail_after(5):
            async for data in running:
                seen += data
    assert b"data: [DONE]\n\n" in seen
    with trio.fail_after(5):
        await edge.stopped.wait()


async def test_end_of_grace_is_told_to_the_consumer_and_the_server_ends(edge):
    pause = Pause()
    edge.door.script = [["Hel"], pause]
    stream = await trio.open_tcp_stream("127.0.0.1", edge.port)
    async with stream:
        await stream.send_all(
            post("/v1/chat/completions", json.dumps({**CHAT, "stream": True}).encode())
        )
        await pause.reached.wait()
        edge.drain.set()
        seen = b""
        with trio.fail_after(5):
            async for data in stream:
                seen += data
            await edge.stopped.wait()
    assert b'"code":"draining"' in seen
    assert b"[DONE]" not in seen
    assert seen.endswith(b"0\r\n\r\n")
    assert edge.door.answers[0].cancelled.is_set()


async def test_consumer_that_does_not_read_holds_up_no_drain_and_can_still_read_the_end(edge):
    edge.door.script = [["x" * 50_000]] * 400  # far more than the kernel's buffers take
    stream = await trio.open_tcp_stream("127.0.0.1", edge.port)
    async with stream:
        await stream.send_all(
            post("/v1/chat/completions", json.dumps({**CHAT, "stream": True}).encode())
        )
        with trio.fail_after(10):
            while not edge.door.answers:  # noqa: ASYNC110 (what a socket brings has no event)
                await trio.sleep(0.01)
            received = -1
            while received != edge.door.answers[0].received:  # until it stands still
                received = edge.door.answers[0].received
                await trio.sleep(0.1)
            edge.drain.set()
            await edge.stopped.wait()
        assert edge.door.answers[0].cancelled.is_set()
        assert received < 400
        seen = b""
        with trio.fail_after(10):
            async for data in stream:
                seen += data
    assert b'"code":"draining"' in seen[-1000:]

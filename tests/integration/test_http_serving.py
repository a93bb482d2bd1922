"""What any HTTP/1.1 client may rely on: framing, keep-alive, bodies, streams, disconnects."""

from __future__ import annotations

import json
import socket
import sys
from typing import Any

import pytest
import trio
import trio.testing

from aimo_node.edge.serving import hypercorn_parts
from aimo_node.edge.serving.limits import MEBIBYTE, HttpBinding, HttpLimits
from aimo_node.edge.serving.server import HttpServer
from aimo_node.errors import ConfigError, StartError
from tests.integration.probe_app import (
    AT_ONCE_SECONDS,
    HOST,
    PATIENCE_SECONDS,
    Probe,
    quickest,
    run_lifespan,
    serving,
)

pytestmark = pytest.mark.alone


async def test_requests_follow_each_other_on_one_connection() -> None:
    async with serving() as served, await served.connect() as client:
        for number in range(3):
            await client.get(f"/json?q={number}")
            answer = await client.answer()
            assert answer.status == 200
            assert json.loads(answer.body)["query"] == str(number)
            assert answer.headers["date"].endswith("GMT")
            assert "server" not in answer.headers
            assert "connection" not in answer.headers


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with serving() as served, await served.connect() as client:
        await client.send(
            b"".join(b"GET /json?q=%d HTTP/1.1\r\nhost: probe\r\n\r\n" % n for n in range(5))
        )
        answers = [json.loads((await client.answer()).body)["query"] for _ in range(5)]
        assert answers == ["0", "1", "2", "3", "4"]


async def test_pipelined_request_in_pieces_is_answered_after_the_running_stream() -> None:
    async with serving() as served, await served.connect() as client:
        await client.get("/sse?n=3&seconds=0.05")
        await client.send(b"POST /echo HTTP/1.1\r\nhost: probe\r\ncontent-le")
        await served.probe.wait_for("sse-begun")
        await client.send(b"ngth: 5\r\n\r\nhe")
        first = await client.answer()
        await client.send(b"llo")
        second = await client.answer("POST")
        assert first.body.count(b"data:") == 3
        assert json.loads(second.body)["bytes"] == 5


async def test_large_body_pipelined_behind_a_stream_arrives_whole() -> None:
    """More than is kept: reading stops meanwhile, and goes on after the stream."""
    async with (
        serving() as served,
        await served.connect() as client,
        trio.open_nursery() as nursery,
    ):
        await client.get("/sse?n=3&seconds=0.05")
        await served.probe.wait_for("sse-begun")
        chunks = b"2\r\nxx\r\n" * 100_000 + b"0\r\n\r\n"
        head = b"POST /echo HTTP/1.1\r\nhost: p\r\ntransfer-encoding: chunked\r\n\r\n"
        nursery.start_soon(client.send, head + chunks)
        assert (await client.answer()).body.count(b"data:") == 3
        assert json.loads((await client.answer("POST")).body)["bytes"] == 200_000


async def test_expected_continue_is_granted_before_the_body() -> None:
    async with serving() as served, await served.connect() as client:
        await client.send(
            b"POST /echo HTTP/1.1\r\nhost: p\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n"
        )
        assert await client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"hello")
        assert json.loads((await client.answer("POST")).body) == {"bytes": 5, "start": "hello"}


async def test_chunked_body_arrives_whole() -> None:
    async with serving() as served, await served.connect() as client:
        await client.send(b"POST /echo HTTP/1.1\r\nhost: p\r\ntransfer-encoding: chunked\r\n\r\n")
        for chunk in (b"5\r\nhello\r\n", b"6;x=y\r\n world\r\n", b"0\r\ntrailer: 1\r\n\r\n"):
            await client.send(chunk)
            await trio.testing.wait_all_tasks_blocked()
        assert json.loads((await client.answer("POST")).body)["start"] == "hello world"


async def test_body_of_the_largest_size_arrives_whole() -> None:
    async with serving() as served, await served.connect() as client:
        await client.send(
            b"POST /echo HTTP/1.1\r\nhost: p\r\ncontent-length: %d\r\n\r\n" % (8 * MEBIBYTE)
        )
        await client.send(b"z" * (8 * MEBIBYTE))
        answer = await client.answer("POST")
        assert json.loads(answer.body)["bytes"] == 8 * MEBIBYTE
        await client.get("/json")
        assert (await client.answer()).status == 200


async def test_refusal_is_readable_though_the_body_is_not_read() -> None:
    """Closing at once would reset the connection, and the reset destroys the answer."""
    async with serving() as served, await served.connect() as client:
        await client.send(b"POST /refuse HTTP/1.1\r\nhost: p\r\ncontent-length: 3000000\r\n\r\n")
        await client.send(b"x" * 80_000)
        assert b" 401 " in await client.read_until(b"\r\n")
        await client.send(b"x" * 300_000)  # still taken, and thrown away
        assert await client.read_to_end()


async def test_http_1_0_gets_a_plain_answer_and_a_closed_connection() -> None:
    async with serving() as served:
        async with await served.connect() as client:
            await client.send(b"GET /json HTTP/1.0\r\n\r\n")
            raw = await client.read_to_end()
            assert b"connection: close" in raw
            assert raw.endswith(b"}\n")
        async with await served.connect() as client:
            await client.send(b"GET /sse?n=2 HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
            raw = await client.read_to_end()
            assert b"transfer-encoding" not in raw
            assert raw.endswith(b"\r\n\r\ndata: 0 xxxxxxxx\n\ndata: 1 xxxxxxxx\n\n")


async def test_head_and_204_have_no_body_and_keep_the_connection() -> None:
    async with serving() as served, await served.connect() as client:
        await client.get("/json", "HEAD")
        head = await client.answer("HEAD")
        assert int(head.headers["content-length"]) > 5
        await client.get("/nothing")
        assert (await client.answer()).status == 204
        await client.get("/json")
        assert (await client.answer()).status == 200


async def test_close_is_done_when_asked_for() -> None:
    async with serving() as served, await served.connect() as client:
        await client.send(b"GET /json HTTP/1.1\r\nhost: p\r\nconnection: foo, Close\r\n\r\n")
        assert b"connection: close" in await client.read_to_end()


async def test_stream_is_terminated_and_the_connection_kept() -> None:
    async with serving() as served, await served.connect() as client:
        for _ in range(2):
            await client.get("/sse?n=50")
            answer = await client.answer()
            assert answer.headers["transfer-encoding"] == "chunked"
            assert [line.split()[1] for line in answer.body.split(b"\n\n")[:-1]] == [
                b"%d" % n for n in range(50)
            ]


async def test_no_time_limit_of_the_server_cuts_a_long_stream() -> None:
    """Hypercorn's read_timeout would."""
    limits = HttpLimits(header_seconds=0.3, idle_seconds=0.3, body_seconds=0.3)
    async with serving(limits) as served, await served.connect() as client:
        await client.get("/sse?n=12&seconds=0.1")
        assert (await client.answer()).body.count(b"data:") == 12


@pytest.mark.parametrize("is_reset", [False, True])
@pytest.mark.parametrize(
    "path", ["/idle", "/slow", "/sse?n=1000000&seconds=0.01", "/sse?n=10000000"]
)
async def test_leaving_consumer_cancels_the_handler_at_once(path: str, is_reset: bool) -> None:
    name = path[1:5].rstrip("?")

    async def measure() -> float:
        async with serving() as served, await served.connect() as client:
            await client.get(path)
            await served.probe.wait_for(f"{name}-begun")
            if name == "idle":
                await client.read_until(b"hello")
            left_at = trio.current_time()
            if is_reset:
                client.reset()
            else:
                await client.stream.aclose()
            await served.probe.wait_for(f"{name}-ended")
            return served.probe.times[f"{name}-ended"] - left_at

    assert await quickest(measure) < AT_ONCE_SECONDS


async def test_application_that_never_asks_is_cancelled_when_its_consumer_leaves() -> None:
    """ASGI would have it call `receive` to learn of the disconnect; a task per request is the
    price."""
    begun, ended = trio.Event(), trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await run_lifespan(receive, send)
            return
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with serving(app=app) as served, await served.connect() as client:
        await client.get("/")
        await begun.wait()
        await client.stream.aclose()
        with trio.fail_after(PATIENCE_SECONDS):
            await ended.wait()


@pytest.mark.parametrize("early_bytes", [10, 40_000])
async def test_leaving_is_noticed_after_a_pipelined_request(early_bytes: int) -> None:
    """Hypercorn stops reading there, and an idle generator then runs on for nobody."""

    async def measure() -> float:
        async with serving() as served, await served.connect() as client:
            await client.get("/idle")
            await client.read_until(b"hello")
            await client.get("/json?q=" + "x" * early_bytes)
            await trio.testing.wait_all_tasks_blocked()
            left_at = trio.current_time()
            await client.stream.aclose()
            await served.probe.wait_for("idle-ended")
            return served.probe.times["idle-ended"] - left_at

    assert await quickest(measure) < AT_ONCE_SECONDS


@pytest.mark.skipif(sys.platform != "linux", reason="needs POLLRDHUP")
async def test_leaving_is_noticed_where_reading_has_stopped() -> None:
    """More pipelined bytes than are kept: no read can tell that the consumer is gone."""
    async with serving() as served, await served.connect() as client:
        await client.get("/idle")
        await client.read_until(b"hello")
        await client.send(b"POST /echo HTTP/1.1\r\nhost: p\r\ncontent-length: 80000\r\n\r\n")
        await client.send(b"x" * 80_000)
        await client.stream.aclose()
        await served.probe.wait_for("idle-ended")


async def test_consumer_that_does_not_read_holds_its_producer_back() -> None:
    async with serving() as served, await served.connect(receive_buffer=4096) as client:
        await client.get("/sse?n=1000000&size=65536")
        await served.probe.wait_for("sse-begun")
        before = -1
        while before != served.probe.counts["chunk"]:
            before = served.probe.counts["chunk"]
            await trio.sleep(0.1)
        assert before * 65_536 < 2 * MEBIBYTE
        client.reset()
        await served.probe.wait_for("sse-ended")


async def test_slow_reader_gets_every_byte() -> None:
    async with serving() as served, await served.connect(receive_buffer=8192) as client:
        await client.get("/bytes?n=2560000")
        answer = await client.answer()
        assert answer.body == bytes(range(256)) * 10_000
        await client.get("/json")
        assert (await client.answer()).status == 200


async def test_producer_that_never_waits_does_not_starve_others() -> None:
    """The consumer reads in a thread, so the kernel's buffer never fills and no write ever
    waits."""

    def read_all(port: int) -> int:
        total = 0
        with socket.create_connection((HOST, port), timeout=PATIENCE_SECONDS) as connected:
            connected.sendall(b"GET /sse?n=100000 HTTP/1.1\r\nhost: p\r\nconnection: close\r\n\r\n")
            while data := connected.recv(1 << 20):
                total += data.count(b"data:")
        return total

    totals: list[int] = []
    async with (
        serving() as served,
        await served.connect() as other,
        trio.open_nursery() as nursery,
    ):

        @nursery.start_soon
        async def read() -> None:
            totals.append(await trio.to_thread.run_sync(read_all, served.port))

        await served.probe.wait_for("sse-begun")
        for _ in range(3):
            await other.get("/json")
            assert (await other.answer()).status == 200
        assert served.probe.counts["sse-ended"] == 0
    assert totals == [100_000]


async def test_failing_handler_is_answered_and_failing_stream_is_cut() -> None:
    """A cut stream must not look complete: no terminator."""
    async with serving() as served:
        async with await served.connect() as client:
            await client.get("/bug")
            assert (await client.answer()).status == 500
            await client.get("/json")
            assert (await client.answer()).status == 200
        async with await served.connect() as client:
            await client.get("/break")
            raw = await client.read_to_end()
            assert b"data: 1" in raw
            assert not raw.endswith(b"0\r\n\r\n")


async def test_application_cannot_break_the_framing() -> None:
    """A header with a line break, or a body longer than announced: never on the wire."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await run_lifespan(receive, send)
        elif scope["path"] == "/header":
            headers = [(b"x-a", b"1\r\nset-cookie: evil")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
        else:
            headers = [(b"content-length", b"2")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"12HTTP/1.1 200 OK"})

    async with serving(app=app) as served:
        for path in ("/header", "/body"):
            async with await served.connect() as client:
                await client.get(path)
                raw = await client.read_to_end()
                assert raw.startswith(b"HTTP/1.1 500 ")
                assert raw.count(b"HTTP/1.1") == 1
                assert b"evil" not in raw


async def test_hooks_run_before_the_first_and_after_the_last_request() -> None:
    async with serving() as served:
        assert served.probe.counts["started"] == 1
        assert served.probe.counts["stopped"] == 0
    assert served.probe.counts["stopped"] == 1


async def test_failing_start_up_hook_is_an_error() -> None:
    """Hypercorn serves on and says so in its log only."""
    probe = Probe()

    @probe.app.before_serving
    async def fail() -> None:
        raise RuntimeError("no database")

    with pytest.raises(StartError, match="no database"):
        await HttpServer().serve(
            probe.app, HttpBinding(HOST, 0), HttpLimits(), drain=trio.Event(), grace_seconds=1
        )


async def test_address_in_use_is_a_configuration_error() -> None:
    async with serving() as served:
        with pytest.raises(ConfigError, match=rf"{served.port}: .*; choose .* --http"):
            await HttpServer().serve(
                served.probe.app,
                HttpBinding(HOST, served.port),
                HttpLimits(),
                drain=trio.Event(),
                grace_seconds=1,
            )


async def test_another_hypercorn_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hypercorn_parts, "HYPERCORN_VERSION", "0.17.0")
    with pytest.raises(StartError, match=r"pip install hypercorn==0\.17\.0"):
        await HttpServer().serve(
            Probe().app, HttpBinding(HOST, 0), HttpLimits(), drain=trio.Event(), grace_seconds=1
        )

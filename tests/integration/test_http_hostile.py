"""What strangers send to an HTTP port: slow bytes, too many bytes, nonsense, floods. Others are
served."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import pytest
import trio
import trio.testing

from aimo_node.edge.serving.accepting import admit
from aimo_node.edge.serving.connection_table import ConnectionTable, network_of
from aimo_node.edge.serving.limits import HttpLimits
from aimo_node.edge.serving.state import ServingState
from tests.integration.probe_app import PATIENCE_SECONDS, Client, Probe, Served, serving, status_of

pytestmark = pytest.mark.alone

QUICK = HttpLimits(header_seconds=0.5, idle_seconds=0.5, body_seconds=0.5)
"""A sweep comes every quarter of a second, so what takes half a second in here is over after
one."""
OVER_SECONDS = 3.0


async def drip(client: Client, data: bytes) -> bytes:
    """Sends the same bytes again and again until the server closes; what came back."""
    client.received = b""
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:

            async def send_slowly() -> None:
                try:
                    while True:
                        await trio.sleep(0.05)
                        await client.send(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass

            if data:
                nursery.start_soon(send_slowly)
            answer = await client.read_to_end()
            nursery.cancel_scope.cancel()
    return answer


async def still_serves(served: Served) -> bool:
    async with await served.connect() as client:
        await client.get("/json")
        return (await client.answer()).status == 200


@pytest.mark.parametrize(
    ("first", "more", "status"),
    [
        (b"", b"", 0),
        (b"GET / HTTP/1.1\r\n", b"", 408),
        (b"GET / HTTP/1.1\r\n", b"a: b\r\n", 408),
        (b"POST /echo HTTP/1.1\r\nhost: p\r\ncontent-length: 10000\r\n\r\n", b"x", 408),
        (b"POST /echo HTTP/1.1\r\nhost: p\r\ntransfer-encoding: chunked\r\n\r\n", b"1", 408),
        (b"GET /json HTTP/1.1\r\nhost: p\r\n\r\n", b"", 200),
        (b"GET /json HTTP/1.1\r\nhost: p\r\n\r\nGET ", b"/", 200),
    ],
    ids=["nothing", "half a head", "head", "body", "chunks", "idle", "second head"],
)
async def test_slow_sender_is_closed_in_time(first: bytes, more: bytes, status: int) -> None:
    """Hypercorn's timer never fires after the first request, and its 408 leaves the socket open."""
    async with serving(QUICK) as served, await served.connect() as client:
        began_at = trio.current_time()
        if first:
            await client.send(first)
        answer = await drip(client, more)
        assert trio.current_time() - began_at < OVER_SECONDS
        assert status_of(answer) == status


async def test_early_answer_to_an_unfinished_body_closes_the_connection() -> None:
    """Otherwise the rest of the body would be read as the next request."""
    async with serving() as served, await served.connect() as client:
        await client.send(b"POST /refuse HTTP/1.1\r\nhost: p\r\ncontent-length: 100\r\n\r\nhalf")
        raw = await client.read_to_end()
        assert status_of(raw) == 401


async def test_deadlines_end_with_the_request_that_had_them() -> None:
    async with serving(QUICK) as served, await served.connect() as client:
        await client.send(b"POST /echo HTTP/1.1\r\nhost: p\r\ncontent-length: 5\r\n\r\nhe")
        await trio.sleep(0.2)
        await client.send(b"llo")
        assert (await client.answer("POST")).status == 200
        await client.get("/sse?n=10&seconds=0.1")
        assert (await client.answer()).body.count(b"data:") == 10


@pytest.mark.parametrize(
    ("request_bytes", "statuses"),
    [
        (b"\x00\x01\x02\x03\r\n\r\n", {400}),
        (b"hello\r\n\r\n", {400}),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", {400}),
        (b"GET / HTTP/9.9\r\nhost: p\r\n\r\n", {505}),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 505}),
        (b"GET /json HTTP/1.1\r\n\r\n", {400}),
        (b"GET /json HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", {400}),
        (b"GET /json HTTP/1.1\r\nhost: \xff\xfe\r\n\r\n", {400}),
        (b"GET /json HTTP/1.1\r\nhost: [\r\n\r\n", {400}),
        (b"GET /json HTTP/1.1\r\nhost: a b\r\n\r\n", {400}),
        (b"GET /json HTTP/1.1\r\nhost: a:99999999\r\n\r\n", {400}),
        (b"GET /json HTTP/1.1\r\nhost: a@b\r\n\r\n", {400}),
        (b"GET /js\xffon HTTP/1.1\r\nhost: p\r\n\r\n", {400}),
        (b"GET /js%ffon%00 HTTP/1.1\r\nhost: p\r\n\r\n", {404}),
        (b"GET /json?q=%ff%fe HTTP/1.1\r\nhost: p\r\n\r\n", {200}),
        (b"GET /json HTTP/1.1\r\nhost: p\r\nx: \xff\xc3\x28\r\n\r\n", {200}),
        (b"GET /json HTTP/1.1\r\nhost: p\r\nx\xff: a\r\n\r\n", {400}),
        (b"GET /json HTTP/1.1\r\nhost: p\r\nx: a\x00b\r\n\r\n", {400}),
        (b"GET ?a=b HTTP/1.1\r\nhost: p\r\n\r\n", {400}),
        (b"OPTIONS * HTTP/1.1\r\nhost: p\r\n\r\n", {400}),
        (b"CONNECT p:443 HTTP/1.1\r\nhost: p\r\n\r\n", {400}),
        (b"GET http://[bad/json HTTP/1.1\r\nhost: p\r\n\r\n", {400}),
        (b"GET http://other/json HTTP/1.1\r\nhost: p\r\n\r\n", {400}),
        (b"GET http://P/json HTTP/1.1\r\nhost: p\r\n\r\n", {200}),
        (b"POST /echo HTTP/1.1\r\nhost: p\r\ncontent-length: -1\r\n\r\n", {400}),
        (b"POST /echo HTTP/1.1\r\nhost: p\r\ncontent-length: 1, 2\r\n\r\nab", {400}),
        (b"POST /echo HTTP/1.1\r\nhost: p\r\ncontent-length: " + b"9" * 40 + b"\r\n\r\n", {400}),
        (b"POST /echo HTTP/1.1\r\nhost: p\r\ntransfer-encoding: gzip, chunked\r\n\r\n", {501}),
        (b"POST /echo HTTP/1.0\r\nhost: p\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", {400}),
        (
            b"POST /echo HTTP/1.1\r\nhost: p\r\ncontent-length: 5\r\n"
            b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            {400},
        ),
        (b"POST /echo HTTP/1.1\r\nhost: p\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", {400}),
    ],
)
async def test_nonsense_is_refused_and_never_a_server_error(
    request_bytes: bytes, statuses: set[int]
) -> None:
    async with serving() as served:
        async with await served.connect() as client:
            await client.send(request_bytes)
            raw = await client.read_until(b"\r\n\r\n")
            assert status_of(raw) in statuses
            if status_of(raw) in {400, 501, 505}:
                assert b"connection: close" in raw
                await client.read_to_end()
        assert await still_serves(served)


async def test_refusals_have_the_shape_that_openai_clients_read() -> None:
    async with serving() as served, await served.connect() as client:
        await client.send(b"POST /echo HTTP/1.1\r\nhost: p\r\ncontent-length: 99999999\r\n\r\n")
        answer = await client.answer("POST")
        assert answer.status == 413
        assert answer.headers["content-type"] == "application/json"
        error = json.loads(answer.body)["error"]
        assert error["type"] == "invalid_request_error"
        assert error["code"] == "payload_too_large"
        assert "8388608 bytes" in error["message"]


async def test_http2_upgrade_is_ignored() -> None:
    async with serving() as served, await served.connect() as client:
        await client.send(
            b"GET /json HTTP/1.1\r\nhost: p\r\nconnection: upgrade, http2-settings\r\n"
            b"upgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n"
        )
        assert status_of(await client.read_until(b"\r\n\r\n")) == 200


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nhost: p\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: p\r\nx: " + b"y" * 200_000,
        b"GET / HTTP/1.1\r\nhost: p\r\n" + b"a: b\r\n" * 1000 + b"\r\n",
    ],
    ids=["target", "header", "number"],
)
async def test_too_large_head_is_refused(head: bytes) -> None:
    async with serving() as served:
        async with await served.connect() as client:
            await client.send(head)
            raw = await client.read_until(b"\r\n\r\n")
            assert status_of(raw) == 431
        assert await still_serves(served)


async def test_too_large_chunked_body_is_refused_at_the_limit() -> None:
    limits = HttpLimits(body_bytes_max=200_000)
    async with serving(limits) as served, await served.connect() as client:
        await client.send(b"POST /echo HTTP/1.1\r\nhost: p\r\ntransfer-encoding: chunked\r\n\r\n")
        async with trio.open_nursery() as nursery:

            async def send_for_ever() -> None:
                try:
                    while True:
                        await client.send(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass

            nursery.start_soon(send_for_ever)
            assert status_of(await client.read_until(b"\r\n\r\n")) == 413
            await client.read_until(b'"payload_too_large"')  # the server's own, whatever Quart does
            with trio.fail_after(PATIENCE_SECONDS):
                await client.read_to_end()
            nursery.cancel_scope.cancel()


async def test_all_bodies_together_are_bounded() -> None:
    limits = HttpLimits(bodies_bytes_max=300_000)
    head = b"POST /echo HTTP/1.1\r\nhost: p\r\ncontent-length: 200000\r\n\r\n"
    async with serving(limits) as served:
        async with await served.connect() as first, await served.connect() as second:
            await first.send(head + b"x" * 190_000)
            await served.probe.wait_for("echo")
            await trio.testing.wait_all_tasks_blocked()
            await second.send(head + b"x" * 190_000)
            raw = await second.read_until(b"\r\n\r\n")
            assert status_of(raw) == 503
            assert b"retry-after: 1" in raw
            await first.send(b"x" * 10_000)
            assert (await first.answer("POST")).status == 200
        async with await served.connect() as third:  # what they held is free again
            await third.send(head + b"x" * 200_000)
            assert (await third.answer("POST")).status == 200


class LongestStep(trio.abc.Instrument):
    """The most processor time that any task took at a stretch: what others had to wait for it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began_at = time.thread_time()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began_at = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.seconds = max(self.seconds, time.thread_time() - self._began_at)


@pytest.mark.parametrize("crumb", [b"1\r\nx\r\n", b"1;" + b"e" * 20 + b"\r\nx\r\n"])
async def test_body_in_crumbs_does_not_starve_others(crumb: bytes) -> None:
    async with serving() as served, await served.connect() as client:
        await client.send(b"POST /echo HTTP/1.1\r\nhost: p\r\ntransfer-encoding: chunked\r\n\r\n")
        await served.probe.wait_for("echo")
        longest = LongestStep()
        trio.lowlevel.add_instrument(longest)
        await client.send(crumb * 50_000 + b"0\r\n\r\n")
        assert json.loads((await client.answer("POST")).body)["bytes"] == 50_000
        trio.lowlevel.remove_instrument(longest)
        assert longest.seconds < 0.05


async def test_connection_flood_leaves_room_for_requests() -> None:
    """The connection that has waited longest without a request goes, a running one never."""
    limits = HttpLimits(connections_max=20)
    async with serving(limits) as served, await served.connect() as running:
        await running.get("/slow")
        await served.probe.wait_for("slow-begun")
        flood = [await served.connect() for _ in range(60)]
        for _ in range(5):
            assert await still_serves(served)
        served.probe.go_on.set()
        assert (await running.answer()).body == b"done"
        closed = 0
        for client in flood:
            with trio.move_on_after(0.01):
                await client.stream.receive_some(1)
                closed += 1
            await trio.aclose_forcefully(client.stream)
        assert closed >= 40


async def test_newcomer_is_refused_when_every_connection_has_a_request() -> None:
    limits = HttpLimits(connections_max=3)
    async with serving(limits) as served:
        busy = [await served.connect() for _ in range(3)]
        for client in busy:
            await client.get("/idle")
            await client.read_until(b"hello")
        async with await served.connect() as newcomer:
            raw = await newcomer.read_to_end()
            assert status_of(raw) == 503
        await busy.pop().stream.aclose()
        await served.probe.wait_for("idle-ended")
        await trio.testing.wait_all_tasks_blocked()
        assert await still_serves(served)
        for client in busy:
            await trio.aclose_forcefully(client.stream)


def test_one_address_cannot_take_all_connections() -> None:
    table: ConnectionTable[str] = ConnectionTable(connections_max=100, per_address_max=2)
    for name in ("a", "b"):
        assert table.has_room_for("203.0.113.7")
        table.add(name, "203.0.113.7")
    assert not table.has_room_for("203.0.113.7")
    assert not table.has_room_for("::ffff:203.0.113.7")
    assert table.has_room_for("203.0.113.8")
    table.remove("a")
    table.remove("a")
    assert table.has_room_for("203.0.113.7")


async def test_newcomer_from_an_address_that_has_its_share_is_closed() -> None:
    state = ServingState(Probe().app, HttpLimits(connections_per_address_max=1), {})
    first: Any = object()
    state.table.add(first, "203.0.113.7")
    for address, is_admitted in (("203.0.113.7", False), ("203.0.113.8", True)):
        accepted, consumer = socket.socketpair()
        with accepted, consumer:
            assert admit(accepted, address, None, state) == is_admitted
            assert (accepted.fileno() >= 0) == is_admitted
    assert state.refused == 1


def test_machine_is_a_64_network_with_ipv6_and_loopback_is_exempt() -> None:
    assert network_of("2001:db8:1:2::5") == network_of("2001:db8:1:2:ffff::1%eth0")
    assert network_of("2001:db8:1:2::5") != network_of("2001:db8:1:3::5")
    assert network_of("127.0.0.1") == network_of("::1") == network_of("::ffff:127.0.0.5") == ""


def test_longest_waiting_connection_makes_room() -> None:
    table: ConnectionTable[str] = ConnectionTable(connections_max=2, per_address_max=2)
    table.add("first", "127.0.0.1")
    table.add("second", "127.0.0.1")
    assert table.is_full
    assert table.waiting_longest() == "first"
    table.set_busy("first")
    assert table.waiting_longest() == "second"
    table.set_waiting("first")
    assert table.waiting_longest() == "second"
    table.set_busy("second")
    assert table.waiting_longest() == "first"

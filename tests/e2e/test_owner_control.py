"""The owner's hand on a provider: quotas by peer, who used it, pausing, and whom an edge trusts."""

import json
import os
import signal
import subprocess
import sys
from typing import Any

import trio

from tests.e2e.http_client import CHAT_PATH, ask, chat, echo_text, metric, open_stream, stream_chat
from tests.e2e.mesh import Mesh, until_known
from tests.e2e.node_process import NodeProcess, environment, eventually

LEAVES_SECONDS = 2.0
"""From the owner's command until no edge asks any more."""
COUNTED_SECONDS = 5.0
DAY_SECONDS = 86_400
SOMEBODY = "12D3KooWPGreadLx9nfqoQArVVMG95SG2CpQvbJGqipMVTNNu1zk"


def run(node: NodeProcess, *arguments: str) -> str:
    """What a command prints that ends by itself."""
    done = subprocess.run(
        [sys.executable, "-m", "aimo_node", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(node.state.parent),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def say(node: NodeProcess, *arguments: str) -> str:
    """What a command of the node's owner prints."""
    where = ("--state", str(node.state), "--config", os.devnull)
    return await trio.to_thread.run_sync(run, node, *arguments, *where)


async def tell(node: NodeProcess, *arguments: str) -> dict[str, Any]:
    """What ``aimo provider …`` says to programs."""
    return json.loads(await say(node, "provider", *arguments, "--json"))


async def used(node: NodeProcess) -> dict[tuple[str, str], tuple[int, int, int]]:
    """Requests, prompt and completion tokens by peer and model."""
    return {
        (row["peer"], row["model"]): (
            row["requests"],
            row["prompt_tokens"],
            row["completion_tokens"],
        )
        for row in (await tell(node, "who"))["usage"]
    }


async def view_of(edge: NodeProcess, peer: str) -> dict[str, Any]:
    """What the edge says of a provider; empty if it does not know it."""
    views = (await ask(edge.port, "GET", "/v1/providers")).json["data"]
    return next((view for view in views if view["id"] == peer), {})


async def until_offline(edge: NodeProcess, node: NodeProcess) -> None:
    async def is_offline() -> bool:
        return (await view_of(edge, node.peer_id)).get("status") == "offline"

    await eventually(is_offline, LEAVES_SECONDS, "a paused provider is still asked", node)


async def test_a_quota_stops_one_edge_and_not_the_other_and_who_is_exact(shared, guests: Mesh):
    """Also after the provider was killed, and for an answer that was cancelled half-way."""
    quota = ("--quota-requests-per-day", "4", "--http", "127.0.0.1:0")
    node = guests.provider("scarce", *quota)
    greedy = guests.edge(name="greedy")
    await until_known(shared.edge, node)
    await greedy.ready()
    await until_known(greedy, node)

    for _ in range(3):
        stream = await stream_chat(greedy.port, "scarce", "one two three", max_tokens=5)
        assert stream.text == echo_text("one two three", 5)
    async with open_stream(
        greedy.port, chat("scarce", "four five", max_tokens=1000, delay_ms=20)
    ) as stream:
        await stream.read_until_text(2)
    refused = await ask(greedy.port, "POST", CHAT_PATH, chat("scarce", "hi"))
    assert refused.status == 429
    assert refused.error["code"] == "rate_limit_exceeded"
    assert "4 requests a day" in refused.error["message"]
    assert 0 < int(refused.headers["retry-after"]) <= DAY_SECONDS
    assert await metric(node.port, "aimo_provider_over_quota_total") == 1

    modest = await stream_chat(shared.port, "scarce", "six", max_tokens=2)
    assert modest.text == echo_text("six", 2)

    async def is_counted() -> bool:
        rows = await used(node)
        return rows.get((greedy.peer_id, "scarce"), (0, 0, 0))[1] == 11

    await eventually(is_counted, COUNTED_SECONDS, "the cancelled prompt is not counted", node)
    rows = await used(node)
    *known, completion = rows[greedy.peer_id, "scarce"]
    assert known == [4, 3 * 3 + 2]
    assert 3 * 5 + 2 <= completion < 3 * 5 + 100
    assert rows[shared.edge.peer_id, "scarce"] == (1, 1, 2)

    node.kill()
    again = guests.provider("scarce", *quota)
    await until_known(greedy, again)
    assert await used(again) == rows
    assert (await ask(greedy.port, "POST", CHAT_PATH, chat("scarce", "hi"))).status == 429
    table = await say(again, "provider", "who")
    assert f"{shared.edge.peer_id}  scarce  1" in table
    assert "5 requests of 2 peers" in table
    told = await tell(again, "who", "--since", "7d")
    assert (told["totals"]["requests"], told["quota"]["requests_per_day"]) == (5, 4)
    ledger = b"".join(path.read_bytes() for path in again.state.glob("usage.sqlite3*"))
    assert greedy.peer_id.encode() in ledger
    assert b"three" not in ledger, "nothing of a prompt is kept"


async def test_an_answer_that_is_cut_by_the_end_of_its_provider_is_counted(shared, guests: Mesh):
    """Its last write comes after its last request."""
    node = guests.provider("cut", "--grace", "0")
    await until_known(shared.edge, node)
    async with open_stream(shared.port, chat("cut", "a b", delay_ms=20)) as stream:
        await stream.read_until_text(3)
        node.signal(signal.SIGTERM)
        assert await node.exit_code() == 0
    again = await guests.provider("cut").ready()
    (counts,) = (await used(again)).values()
    assert counts[0] == 1
    assert counts[2] >= 3


async def test_a_pause_lets_running_answers_end_and_holds_after_a_restart(shared, guests: Mesh):
    node = guests.provider("paused", "--http", "127.0.0.1:0")
    await until_known(shared.edge, node)
    tokens = 150
    slow = chat("paused", "slow", max_tokens=tokens, delay_ms=20)
    async with open_stream(shared.port, slow) as first, open_stream(shared.port, slow) as second:
        for stream in (first, second):
            await stream.read_until_text(2)
        told = await tell(node, "pause")
        assert (told["paused"], told["running"]) == (True, 2)
        await until_offline(shared.edge, node)
        refused = await ask(shared.port, "POST", CHAT_PATH, chat("paused", "hi"))
        assert refused.status == 503, refused.body
        assert int(refused.headers["retry-after"]) >= 1
        assert await metric(node.port, "aimo_provider_paused") == 1
        for stream in (first, second):
            await stream.read_to_the_end()
            assert stream.text == echo_text("slow", tokens)
            assert stream.finish_reason == "length"

    node.signal(signal.SIGTERM)
    assert await node.exit_code() == 0
    again = guests.provider("paused")
    await again.ready()
    assert again.ready_line["paused"] is True
    assert "provider.paused" in again.log
    assert (await tell(again, "who"))["paused"] is True
    assert "paused by its owner" in await say(again, "engine", "status")
    await until_offline(shared.edge, again)
    assert (await ask(shared.port, "POST", CHAT_PATH, chat("paused", "hi"))).status == 503
    assert (await tell(again, "resume"))["paused"] is False
    await until_known(shared.edge, again)
    assert (await stream_chat(shared.port, "paused", "back", max_tokens=1)).text == "back "


async def test_another_provider_takes_over_while_one_is_paused_under_load(shared, guests: Mesh):
    """Nobody hears of a pause where somebody else serves the model."""
    names = ("taken-a", "taken-b")
    nodes = [guests.provider("taken", name=name) for name in names]
    await until_known(shared.edge, *nodes)
    statuses: list[int] = []
    is_over = trio.Event()

    async def keep_asking() -> None:
        while not is_over.is_set():
            body = chat("taken", "hi", max_tokens=3, delay_ms=5)
            answer = await ask(shared.port, "POST", CHAT_PATH, body | {"stream": False})
            statuses.append(answer.status)

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(keep_asking)
        for node in nodes:
            await tell(node, "pause")
            await tell(node, "resume")
            await until_known(shared.edge, node)
        is_over.set()
    assert len(statuses) > 20
    assert set(statuses) == {200}


async def test_a_laptop_that_was_paused_starts_paused(own_mesh: Mesh):
    """It says that it is ready, though nobody can be asked. And it trusts itself always."""
    flags = ("--engine", "echo", "--model", "mine", "--http", "127.0.0.1:0", "--trust", SOMEBODY)
    node = await own_mesh.start("laptop", "up", *flags).ready()
    assert (await tell(node, "pause", "--unload"))["paused"] is True
    refused = await ask(node.port, "POST", CHAT_PATH, chat("mine", "hi"))
    assert refused.status == 503, refused.body
    node.end()
    again = await own_mesh.start("laptop", "up", *flags).ready()
    assert again.ready_line["paused"] is True
    await tell(again, "resume")

    async def answers() -> bool:
        body = chat("mine", "hi", max_tokens=1)
        return (await ask(again.port, "POST", CHAT_PATH, body)).status == 200

    await eventually(answers, COUNTED_SECONDS, "it is not served again", again)
    rows = (await tell(again, "who"))["usage"]
    assert [(row["own"], row["requests"]) for row in rows] == [(True, 1)]


async def test_an_edge_asks_only_whom_it_trusts(shared, guests: Mesh):
    friend, stranger = guests.provider("shady", name="friend"), guests.provider("shady", name="any")
    await until_known(shared.edge, friend, stranger)
    careful = await guests.edge("--trust", friend.peer_id, name="careful").ready()
    await until_known(careful, friend, stranger)
    assert (await view_of(careful, friend.peer_id))["trusted"] is True
    assert (await view_of(careful, stranger.peer_id))["trusted"] is False
    lines = (await trio.to_thread.run_sync(run, careful, "peers", "--edge", careful.url)).split(
        "\n"
    )
    assert {line.split()[0] for line in lines if "(not trusted)" in line} >= {stranger.peer_id}
    assert not any("(not trusted)" in line for line in lines if friend.peer_id in line)
    for _ in range(6):
        stream = await stream_chat(careful.port, "shady", "hi", max_tokens=1)
        assert stream.provider == friend.peer_id
    pinned = chat(f"{stranger.peer_id}:shady", "hi")
    refused = await ask(careful.port, "POST", CHAT_PATH, pinned)
    assert refused.status == 403
    assert stranger.peer_id in refused.error["message"]
    friend.end()

    async def is_left_alone() -> bool:
        answer = await ask(careful.port, "POST", CHAT_PATH, chat("shady", "hi"))
        return answer.status in {404, 503}

    await eventually(is_left_alone, COUNTED_SECONDS, "the stranger is asked", careful)
    assert (await used(stranger)) == {}

"""The first relay is gone for ever, or a process was stopped: nodes find their mesh again."""

import json
import signal

import pytest
import trio

from tests.e2e.http_client import CHAT_PATH, ask, chat, echo_text, open_stream
from tests.e2e.mesh import LOOPBACK, Mesh, providers_of, until_known
from tests.e2e.node_process import NodeProcess, eventually
from tests.e2e.test_invites import aimo

REJOIN_SECONDS = 10.0
BOOK_SECONDS = 15.0
STOPPED_SECONDS = 30.0
TOKENS = 300
DELAY_MS = 20


def echo(model: str) -> tuple[str, ...]:
    return ("--engine", "echo", "--model", model)


def hidden(mesh: Mesh, name: str, command: str, *flags: str) -> NodeProcess:
    """A node that listens nowhere: others reach it through the relay."""
    return mesh.start(name, command, "--listen", "off", "--join", f"@{mesh.join_file}", *flags)


def hidden_provider(mesh: Mesh) -> NodeProcess:
    return hidden(mesh, "hidden", "provider", *echo("hidden"))


def hidden_edge(mesh: Mesh) -> NodeProcess:
    return hidden(mesh, "edge", "edge", "--http", "127.0.0.1:0")


async def until_in_book(node: NodeProcess, *relays: NodeProcess) -> None:
    """Wait until a node has written down that it was linked to these relays."""
    path = node.state / "relays.json"

    def is_written() -> bool:
        rows = json.loads(path.read_text())["relays"] if path.exists() else []
        linked = {row["peer"] for row in rows if row["linked_ms"]}
        return linked >= {relay.peer_id for relay in relays}

    await eventually(is_written, BOOK_SECONDS, f"{node.name} keeps no book of them", node)


async def until_answers(edge: NodeProcess, model: str, *nodes: NodeProcess) -> None:
    """Wait until a chat through the edge is answered, for at most `REJOIN_SECONDS`."""

    async def answers() -> bool:
        body = chat(model, max_tokens=3) | {"stream": False}
        return (await ask(edge.port, "POST", CHAT_PATH, body)).status == 200

    await eventually(answers, REJOIN_SECONDS, f"{model} is not answered", edge, *nodes)


@pytest.mark.slow
async def test_a_relay_that_dies_for_ever_is_replaced_by_one_nobody_told_of(own_mesh):
    """Even if it was the authority of the mesh. Nodes know the other relay from it, and from their
    book when they start anew; that one is a relay by its certificate."""
    first = await own_mesh.relay("--authority").ready()
    hide = ("--listen", "off")

    async def join(name: str, role: str, *flags: str) -> NodeProcess:
        invite = await aimo(first, "invite", "--role", role)
        return own_mesh.start(name, role, "--join", invite, *flags)

    second = await join("relay2", "relay", "--listen", LOOPBACK)
    open_provider = await join("open", "provider", *echo("open"), "--listen", LOOPBACK)
    provider = await join("hidden", "provider", *echo("hidden"), *hide)
    edge = await join("edge", "edge", "--http", "127.0.0.1:0", *hide)
    for node in (second, open_provider, provider, edge):
        await node.ready()
    for node in (provider, edge):
        await until_in_book(node, first, second)
    await until_known(edge, provider, open_provider)
    known = first.ready_line["join"]
    body = chat("open", max_tokens=TOKENS, delay_ms=DELAY_MS)
    async with open_stream(edge.port, body) as stream:
        await stream.read_until_text(3)
        assert stream.headers["x-aimo-path"] == "direct"
        first.kill()
        await until_answers(edge, "hidden", provider)
        assert (await providers_of(edge))[provider.peer_id]["path"] == "circuit"
        provider.kill()
        flags = ("--join", known, *echo("hidden"), *hide)
        again = await own_mesh.start("hidden", "provider", *flags).ready()
        assert again.peer_id == provider.peer_id
        await until_answers(edge, "hidden", again)
        await stream.read_to_the_end()
    assert (stream.text, stream.errors) == (echo_text("Hi", TOKENS), []), "a direct way is its own"


@pytest.mark.slow
async def test_who_was_stopped_for_half_a_minute_is_back_in_ten_seconds(shared, guests, tmp_path):
    """A provider, an edge, and, in a mesh of its own, the only relay; all by themselves."""
    frozen = guests.provider("frozen", "--requests-max", "4")
    sleeper = guests.edge(name="sleeper")
    apart = Mesh(tmp_path / "apart")
    try:
        relay = await apart.relay().ready()
        provider, edge = hidden_provider(apart), hidden_edge(apart)
        await sleeper.ready()
        await until_known(shared.edge, frozen)
        await until_known(sleeper, frozen, shared.provider)
        await edge.ready()
        await until_known(edge, provider)
        stopped = (frozen, sleeper, relay)
        for node in stopped:
            node.signal(signal.SIGSTOP)
        woken_at = trio.current_time() + STOPPED_SECONDS
        with trio.fail_after(STOPPED_SECONDS):  # it ends while nobody answers, with one error
            answer = await ask(shared.port, "POST", CHAT_PATH, chat("frozen", max_tokens=3))
        assert (answer.status, answer.json["error"]["code"]) == (502, "network_error")
        await trio.sleep_until(woken_at)
        for node in stopped:
            node.signal(signal.SIGCONT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_answers, shared.edge, "frozen", frozen)
            nursery.start_soon(until_answers, sleeper, "echo")
            nursery.start_soon(until_answers, edge, "hidden", provider, relay)
        await until_answers(sleeper, "frozen", frozen)
        assert "node.was_away" in frozen.log
    finally:
        apart.end()

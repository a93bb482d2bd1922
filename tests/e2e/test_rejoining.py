"""The first relay is gone for ever, or a process was stopped: nodes find their mesh again."""

import json
import signal

import trio

from tests.e2e.http_client import CHAT_PATH, ask, chat, echo_text, open_stream
from tests.e2e.mesh import LOOPBACK, Mesh, providers_of, until_known
from tests.e2e.node_process import NodeProcess, eventually
from tests.e2e.test_invites import aimo

REJOIN_SECONDS = 10.0
BOOK_SECONDS = 15.0
STOPPED_SECONDS = 30.0
TOKENS = 600
DELAY_MS = 20


def second_relay(mesh: Mesh) -> NodeProcess:
    """A relay that was told of the first; nobody is told of it."""
    join = ("--join", f"@{mesh.join_file}", "--listen", LOOPBACK)
    return mesh.start("relay2", "relay", *join)


def hidden(mesh: Mesh, name: str, command: str, *flags: str) -> NodeProcess:
    """A node that listens nowhere, and was told of the first relay only."""
    return mesh.start(name, command, "--listen", "off", "--join", f"@{mesh.join_file}", *flags)


def hidden_provider(mesh: Mesh) -> NodeProcess:
    return hidden(mesh, "hidden", "provider", "--engine", "echo", "--model", "hidden")


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


async def test_a_relay_that_dies_for_ever_is_replaced_by_one_nobody_told_of(own_mesh):
    """Nodes know it from the first one, and from their book when they start anew."""
    first = await own_mesh.relay().ready()
    second = await second_relay(own_mesh).ready()
    open_provider = own_mesh.provider("open")
    provider, edge = hidden_provider(own_mesh), hidden_edge(own_mesh)
    for node in (open_provider, provider, edge):
        await node.ready()
        await until_in_book(node, first, second)
    await until_known(edge, provider, open_provider)
    body = chat("open", max_tokens=TOKENS, delay_ms=DELAY_MS)
    async with open_stream(edge.port, body) as stream:
        await stream.read_until_text(3)
        assert stream.headers["x-aimo-path"] == "direct"
        first.kill()
        await until_answers(edge, "hidden", provider)
        assert (await providers_of(edge))[provider.peer_id]["path"] == "circuit"
        provider.kill()
        again = await hidden_provider(own_mesh).ready()
        assert again.peer_id == provider.peer_id
        await until_answers(edge, "hidden", again)
        await stream.read_to_the_end()
    assert (stream.text, stream.errors) == (echo_text("Hi", TOKENS), []), "a direct way is its own"
    edge.kill()
    late = await hidden_edge(own_mesh).ready()
    await until_answers(late, "hidden", second)


async def test_members_go_on_and_start_anew_when_the_authority_was_their_only_relay(own_mesh):
    """Each was told of the authority only; a relay of that mesh is one by its certificate."""
    first = await own_mesh.relay("--authority").ready()

    async def join(name: str, role: str, *flags: str) -> NodeProcess:
        invite = await aimo(first, "invite", "--role", role)
        return own_mesh.start(name, role, "--join", invite, *flags)

    near, far = [await join(name, "relay", "--listen", LOOPBACK) for name in ("near", "far")]
    echo = ("--engine", "echo", "--model", "echo", "--listen", "off")
    provider = await join("p", "provider", *echo)
    edge = await join("e", "edge", "--http", "127.0.0.1:0", "--listen", "off")
    await until_known(await edge.ready(), provider)
    await until_in_book(near, first, far)
    await until_in_book(far, first, near)
    first.kill()
    await until_answers(edge, "echo", provider)
    for old, role, *flags in ((far, "relay", "--listen", LOOPBACK), (provider, "provider", *echo)):
        old.kill()
        known = first.ready_line["join"]
        await own_mesh.start(old.name, role, "--join", known, *flags).ready()
    await until_answers(edge, "echo")


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

"""However a node ends: no process, no socket file, no half-written state is left behind."""

import signal
import stat
from collections.abc import Callable

import psutil
import pytest
import trio

from tests.e2e.http_client import CHAT_PATH, Stream, ask, chat, connect, stream_chat
from tests.e2e.mesh import LOOPBACK, Mesh, until_known
from tests.e2e.node_process import NodeProcess, eventually

CHILD_SECONDS = 3.0
"""How soon after its node an engine's process has to be gone."""
MOMENTS = (0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.4, 2.0)
"""Seconds from the start of a process: in the interpreter, in imports, in libp2p, in the engine."""
STORY = "Tell me a sea story about Ada and a kite."
"""An answer of some length."""
ANSWERS = 12
ENDS_SECONDS = 5.0
EARLIEST_SECONDS = 0.2
"""Before that it is Python that starts, and says in its own way that it ends."""


async def llama(guests: Mesh, name: str) -> NodeProcess:
    """A provider with the embedded engine, ready."""
    flags = ("--served-name", name)
    return await guests.provider("", *flags, name=name, engine="llama").ready()


async def engine_of(provider: NodeProcess) -> psutil.Process:
    """The engine's process."""
    (child,) = provider.children_running("llama.server")
    assert child.is_running()
    return child


def sockets_of(guests: Mesh) -> list[str]:
    return [str(path) for path in guests.folder.rglob("*") if path.is_socket()]


async def until_gone(process: psutil.Process) -> None:
    def is_gone() -> bool:
        try:
            return process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    await eventually(is_gone, CHILD_SECONDS, f"{process} outlives its node")


async def test_killed_provider_leaves_no_engine_and_no_socket(shared, guests):
    """SIGKILL while it generates: nobody is left who could clean up but kernel and reaper."""
    provider = await llama(guests, "doomed")
    await until_known(shared.edge, provider)
    engine = await engine_of(provider)
    outcomes = await ask_many(shared.port, "doomed", provider.kill)
    assert "interrupted" in outcomes, "it was not generating any more"
    await until_gone(engine)
    await eventually(lambda: not sockets_of(guests), CHILD_SECONDS, "its socket is left")
    again = await llama(guests, "doomed")
    await until_known(shared.edge, again)
    assert (await stream_chat(shared.port, "doomed", "What is 3+4?")).text.strip() == "7"
    again.signal(signal.SIGTERM)
    assert await again.exit_code() == 0
    assert sockets_of(guests) == []


async def ask_many(port: int, model: str, then: Callable[[], None]) -> list[str]:
    """More long answers at a time than the engine can give; at the first token do something.

    Returns:
        How each ended: ``done``, ``interrupted`` by an error event, or ``refused``.
    """
    outcomes = []
    first = trio.Event()

    async def consume() -> None:
        async with connect(port) as connection:
            await connection.send("POST", CHAT_PATH, chat(model, STORY))
            await connection.read_head()
            if connection.status != 200:
                outcomes.append("refused")
                return
            stream = await Stream(connection).read_until_text()
            first.set()
            await stream.read_to_the_end()
            assert stream.is_done == (not stream.errors)
            outcomes.append("done" if stream.is_done else "interrupted")

    async with trio.open_nursery() as nursery:
        for _ in range(ANSWERS):
            nursery.start_soon(consume)
        await first.wait()
        then()
        nursery.cancel_scope.deadline = trio.current_time() + ENDS_SECONDS
    assert len(outcomes) == ANSWERS, "a consumer waits for ever"
    return outcomes


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["sigterm", "ctrl-c"]
)
async def test_provider_that_ends_takes_its_engine_along(shared, guests, number, code):
    provider = await llama(guests, "orderly")
    engine = await engine_of(provider)
    provider.signal(number)
    assert await provider.exit_code() == code
    await until_gone(engine)
    assert sockets_of(guests) == []


async def test_killed_engine_is_replaced(shared, guests):
    """The engine is the part that crashes: the node says so and starts another."""
    provider = await llama(guests, "phoenix")
    await until_known(shared.edge, provider)
    engine = await engine_of(provider)
    outcomes = await ask_many(shared.port, "phoenix", engine.kill)
    assert "interrupted" in outcomes, "it was not generating any more"

    async def answers() -> bool:
        body = chat("phoenix", "What is 3+4?") | {"stream": False}
        answer = await ask(shared.port, "POST", CHAT_PATH, body)
        if answer.status != 200:
            assert answer.error["code"] in {"engine_failed", "overloaded"}
            return False
        return answer.json["choices"][0]["message"]["content"].strip() == "7"

    await eventually(answers, 10, "no new engine answers", provider)
    (another,) = provider.children_running("llama.server")
    assert another.pid != engine.pid


def interrupted(node: NodeProcess, seconds: float) -> set[int]:
    """The exit codes of a node that was interrupted so long after its start.

    One that has said nothing may still be importing its own first modules: killed by the signal,
    silently, which a shell shows as 130 as well.
    """
    if seconds <= EARLIEST_SECONDS:
        return {130, 1, -signal.SIGINT}
    return {130} if node.log.strip() else {130, -signal.SIGINT}


async def test_control_c_at_any_moment_of_a_start_leaves_nothing(shared, guests):
    """A provider with an engine of its own has the most to leave behind."""

    async def interrupt(seconds: float) -> None:
        name = f"interrupted-{seconds}"
        join = ("--join", f"@{guests.join_file}", "--listen", LOOPBACK)
        node = guests.start(name, "provider", "--engine", "llama", *join)
        await trio.sleep(seconds)
        node.note_children()
        node.signal(signal.SIGINT)
        assert await node.exit_code() in interrupted(node, seconds), node.log
        await eventually(lambda: not node.leftovers(), CHILD_SECONDS, f"left: {node.leftovers()}")

    for number in range(0, len(MOMENTS), 2):
        async with trio.open_nursery() as nursery:
            for seconds in MOMENTS[number : number + 2]:
                nursery.start_soon(interrupt, seconds)
    assert sockets_of(guests) == []
    for path in guests.folder.rglob("identity.pem"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_text().strip().endswith("-----END PRIVATE KEY-----")


@pytest.mark.parametrize("command", ["relay", "edge", "up"])
async def test_control_c_while_other_roles_start_leaves_nothing(own_mesh, command):
    flags = ("--http", "127.0.0.1:0") if command != "relay" else ()
    for seconds in (0.3, 0.7, 1.2):
        node = own_mesh.start(f"{command}-{seconds}", command, "--listen", LOOPBACK, *flags)
        await trio.sleep(seconds)
        node.signal(signal.SIGINT)
        assert await node.exit_code() in interrupted(node, seconds), node.log
    await eventually(lambda: not own_mesh.leftovers(), CHILD_SECONDS, "something is left")


async def test_interrupt_while_waiting_for_a_join_string_is_heard(own_mesh):
    """No relay was ever started: the node waits half a minute for the file, but not for Ctrl-C."""
    edge = own_mesh.edge()
    await eventually(lambda: "waiting" in edge.log, 10, "it does not wait", edge)
    edge.signal(signal.SIGINT)
    assert await edge.exit_code(2) == 130

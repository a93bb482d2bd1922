"""The key of an upstream in a whole node: not in its log, its output, its state, its processes."""

import json
from collections.abc import AsyncIterator

import pytest
import trio

from aimo_node.testing import upstream_scripts as scripts
from aimo_node.testing.upstream import StandInUpstream, stand_in_upstream
from tests.e2e.http_client import CHAT_PATH, ask, chat
from tests.e2e.mesh import Mesh
from tests.e2e.node_process import NodeProcess

KEY = "sk-very-secret-0123456789"
VARIABLE = "UPSTREAM_KEY"


@pytest.fixture
async def upstream() -> AsyncIterator[StandInUpstream]:
    async with stand_in_upstream(scripts.answer()) as served:
        served.models = scripts.models("own-large", "own-small")
        yield served


def start(mesh: Mesh, upstream: StandInUpstream) -> NodeProcess:
    return mesh.start(
        *("keeper", "up", "--engine", "openai", "--endpoint", f"{upstream.endpoint}/v1"),
        *("--models", "large=own-large,small=own-small", "--api-key-env", VARIABLE),
        *("--http", "127.0.0.1:0", "--listen", "/ip4/127.0.0.1/tcp/0", "--log-level", "debug"),
        **{VARIABLE: KEY},
    )


def everywhere(node: NodeProcess) -> str:
    """All a neighbour on this machine, or a reader of its logs, could see of a node."""
    lines = [" ".join(process.cmdline()) for process in node.children]
    lines.append(" ".join(node.popen.args))
    files = [path.read_bytes() for path in node.state.rglob("*") if path.is_file()]
    seen = [node.log, node.output, *lines, *(data.decode("latin-1") for data in files)]
    return "\n".join(seen)


async def test_key_is_sent_to_the_upstream_and_shown_nowhere(
    guests: Mesh, upstream: StandInUpstream
) -> None:
    node = await start(guests, upstream).ready()
    assert set(node.ready_line["models"]) == {"large", "small"}
    said = chat("small", "hello") | {"stream": False}
    answer = await ask(node.port, "POST", CHAT_PATH, said)
    assert answer.status == 200, answer.body
    assert "own-small" not in answer.body.decode()
    (received,) = upstream.received
    assert received.headers["authorization"] == f"Bearer {KEY}"
    assert received.body["model"] == "own-small"
    answers = []
    for status in (400, 401, 500):
        upstream.scripts.extend([scripts.refusal(status, message=f"bad key {KEY}")] * 4)
        answers.append(await ask(node.port, "POST", CHAT_PATH, said))
        upstream.scripts.clear()
    assert all(answer.status >= 400 for answer in answers)
    told = json.dumps([[answer.headers, answer.body.decode()] for answer in answers])
    assert KEY not in told + everywhere(node)
    await trio.to_thread.run_sync(node.end)
    assert KEY not in everywhere(node)

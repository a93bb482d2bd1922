"""Several engines in one provider: states, idle unloading, deaths, endpoints added later."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from providers.demo_model import gguf_path
from tests.e2e.http_client import CHAT_PATH, ask, chat, echo_text, stream_chat
from tests.e2e.mesh import Mesh, providers_of, until_known, until_unknown
from tests.e2e.node_process import NodeProcess, environment, eventually

LEAVES_SECONDS = 5.0
COMES_BACK_SECONDS = 40.0
SEEN_SECONDS = 10.0

TWO_ENGINES = """
[[provider.engine]]
name = "echo"
model = "parrot-one"

[[provider.engine]]
name = "llama"
served_name = "sleepy"
idle_unload = "1s"

[[provider.engine]]
name = "echo"
model = "parrot-two"
requests_max = 3
"""


def status_of(node: NodeProcess, *more: str) -> list[dict[str, Any]]:
    """What ``aimo engine …`` prints about a node's engines."""
    arguments = more or ("status",)
    command = [sys.executable, "-m", "aimo_node", "engine", *arguments]
    command += ["--state", str(node.state), "--config", os.devnull, "--json"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(node.state.parent),
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def engine_status(node: NodeProcess, *more: str) -> dict[str, dict[str, Any]]:
    reports = await trio.to_thread.run_sync(status_of, node, *more)
    return {report["label"]: report for report in reports}


async def engines_at(edge: NodeProcess, peer: str) -> dict[str, dict[str, Any]]:
    """The engines of a provider as ``/v1/providers`` shows them."""
    views = (await ask(edge.port, "GET", "/v1/providers")).json["data"]
    view = next(view for view in views if view["id"] == peer)
    return {engine["label"]: engine for engine in view["engines"]}


async def models_at(edge: NodeProcess) -> set[str]:
    listed = (await ask(edge.port, "GET", "/v1/models")).json["data"]
    return {model["id"] for model in listed}


async def whole(edge: NodeProcess, model: str, text: str, **settings: Any) -> str:
    """The whole answer to one question."""
    body = chat(model, text, **settings) | {"stream": False}
    answer = await ask(edge.port, "POST", CHAT_PATH, body)
    assert answer.status == 200, answer.body
    return answer.json["choices"][0]["message"]["content"]


async def test_one_provider_serves_several_engines_and_unloads_idle_ones(shared, guests: Mesh):
    file = guests.folder / "several.toml"
    file.write_text(TWO_ENGINES)
    node = guests.start(
        *("several", "provider", "--config", str(file)),
        *("--join", f"@{guests.join_file}", "--listen", "/ip4/127.0.0.1/tcp/0"),
    )
    await until_known(shared.edge, node)
    assert set(node.ready_line["models"]) == {"parrot-one", "sleepy", "parrot-two"}
    for model in ("parrot-one", "parrot-two"):
        assert await whole(shared.edge, model, "one", max_tokens=2) == "one w0 "

    async def state_of_sleepy() -> str:
        return (await engines_at(shared.edge, node.peer_id))["llama"]["state"]

    async def is_stopped() -> bool:
        return await state_of_sleepy() == "stopped"

    await eventually(is_stopped, SEEN_SECONDS, "the idle engine is not unloaded", node)
    assert not node.children_running("llama.server"), "its process is gone"
    report = await engine_status(node)
    assert {label: one["state"] for label, one in report.items()} == {
        "echo": "running",
        "llama": "stopped",
        "echo-2": "running",
    }
    assert report["echo-2"]["requests_max"] == 3
    assert report["llama"]["offered"] == ["sleepy"]
    assert "sleepy" in await models_at(shared.edge), "it can be asked for"
    assert await whole(shared.edge, "sleepy", "What is 3+4?") == "7"

    loaded = await engine_status(node, "load", "llama")
    assert loaded["llama"]["state"] == "running"
    assert (await engine_status(node, "unload", "echo"))["echo"]["state"] == "stopped"

    async def is_gone() -> bool:
        return "parrot-one" not in await models_at(shared.edge)

    await eventually(is_gone, SEEN_SECONDS, "an unloaded model is still offered", node)
    assert await whole(shared.edge, "parrot-two", "one", max_tokens=2) == "one w0 "


async def test_a_dead_engine_leaves_routing_and_comes_back_by_itself(shared, guests: Mesh):
    """It cannot be started again for a while, since its weights are damaged."""
    weights = guests.folder / "weights.gguf"
    shutil.copy(gguf_path(), weights)
    flags = ("--model", str(weights), "--served-name", "mortal")
    node = guests.provider("", *flags, name="mortal", engine="llama")
    await until_known(shared.edge, node)
    whole_weights = weights.read_bytes()
    (child,) = node.children_running("llama.server")
    weights.unlink()
    weights.write_bytes(b"GGUF is not what this is")
    os.killpg(child.pid, signal.SIGKILL)
    await until_unknown(shared.edge, node.peer_id, seconds=LEAVES_SECONDS)
    assert (await engines_at(shared.edge, node.peer_id))["llama"]["state"] == "starting"
    assert "mortal" not in await models_at(shared.edge)
    refused = await ask(shared.port, "POST", CHAT_PATH, chat("mortal", "hi"))
    assert refused.status in {404, 503}
    weights.write_bytes(whole_weights)

    async def is_back() -> bool:
        return node.peer_id in await providers_of(shared.edge)

    await eventually(is_back, COMES_BACK_SECONDS, "the engine does not come back", node)
    assert await whole(shared.edge, "mortal", "What is 3+4?") == "7"


@pytest.fixture
def endpoint(tmp_path: Path):
    """Any OpenAI-compatible server: another node's edge."""
    mesh = Mesh(tmp_path / "elsewhere")
    try:
        node = mesh.start(
            "server", "up", "--engine", "echo", "--model", "guest-model", "--http", "127.0.0.1:0"
        )
        yield node.wait_ready()
    finally:
        mesh.end()


async def registered_at(edge: NodeProcess) -> list[str]:
    listed = (await ask(edge.port, "GET", "/v1/providers/register")).json["data"]
    return [one["id"] for one in listed]


async def test_an_endpoint_is_added_to_a_running_edge_and_stays(shared, guests: Mesh, endpoint):
    """It serves the whole mesh, survives a restart of the edge, and goes when it is told to."""
    edge = await guests.edge(name="adder").ready()
    wanted = {"endpoint": f"{endpoint.url}/v1", "models": {"adopted": "guest-model"}}
    answer = await ask(edge.port, "POST", "/v1/providers/register", wanted)
    assert answer.status == 201, answer.body
    assert answer.json["models"] == ["adopted"]
    assert answer.json["state"] == "running"
    assert await whole(edge, "adopted", "one", max_tokens=2) == "one w0 "

    async def is_known_elsewhere() -> bool:
        return "adopted" in await models_at(shared.edge)

    await eventually(is_known_elsewhere, SEEN_SECONDS, "the mesh does not know it", edge)
    stream = await stream_chat(shared.port, "adopted", "one two", max_tokens=4)
    assert stream.text == echo_text("one two", 4)
    assert stream.provider == edge.peer_id

    edge.kill()
    again = await guests.edge(name="adder").ready()
    assert again.peer_id == edge.peer_id
    assert await registered_at(again) == ["openai"]

    async def serves() -> bool:
        return "adopted" in await models_at(again)

    await eventually(serves, SEEN_SECONDS, "it is not served after a restart", again)
    assert await whole(again, "adopted", "one", max_tokens=2) == "one w0 "
    gone = await ask(again.port, "DELETE", "/v1/providers/register/openai")
    assert gone.status == 200, gone.body

    async def is_gone() -> bool:
        return "adopted" not in await models_at(again) | await models_at(shared.edge)

    await eventually(is_gone, SEEN_SECONDS, "it is still offered", again)
    again.end()
    last = await guests.edge(name="adder").ready()
    assert await registered_at(last) == []


async def test_an_endpoint_that_does_not_work_is_not_added(guests: Mesh, shared, endpoint):
    edge = await guests.edge(name="adder").ready()
    for wanted, words in (
        ({"endpoint": "ftp://x"}, "endpoint"),
        ({"endpoint": f"{endpoint.url}/v1", "model": "no-such"}, "no model 'no-such'"),
        ({"endpoint": f"{endpoint.url}/v1", "engine": "llama"}, "openai, anthropic"),
    ):
        answer = await ask(edge.port, "POST", "/v1/providers/register", wanted)
        assert answer.status == 400, answer.body
        assert words in answer.error["message"]
    assert await registered_at(edge) == []
    assert not (edge.state / "engine").exists() or not list((edge.state / "engine").iterdir())

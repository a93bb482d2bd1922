"""`aimo up` with the demo model, and the commands that ask an edge."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.e2e.http_client import ask, stream_chat
from tests.e2e.mesh import LOOPBACK, Mesh
from tests.e2e.node_process import NodeProcess, environment, wait_for

QUESTION = "What is 3+4?"
COMMAND_SECONDS = 30.0


def aimo(folder: Path, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    command = [sys.executable, "-m", "aimo_node", *arguments]
    return subprocess.run(
        command,
        input=text,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
        cwd=folder,
        env=environment(folder),
    )


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """`aimo up` with the demo model: one process, and that of its engine."""
    mesh = Mesh(tmp_path_factory.mktemp("laptop"))
    try:
        yield mesh.start("up", "up", "--http", "127.0.0.1:0", "--listen", LOOPBACK).wait_ready()
    finally:
        mesh.end()


def test_up_serves_the_demo_model_to_the_sdk(laptop):
    with openai.OpenAI(base_url=f"{laptop.url}/v1", api_key="unused", max_retries=0) as client:
        question = [{"role": "user", "content": QUESTION}]
        whole = client.chat.completions.create(model="tiny", messages=question)
        assert whole.choices[0].message.content.strip() == "7"
        assert whole.usage.completion_tokens > 0
        chunks = list(client.chat.completions.create(model="tiny", messages=question, stream=True))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text.strip() == "7"
        assert chunks[-1].choices[0].finish_reason == "stop"


async def test_up_is_relay_provider_and_edge_in_one(laptop):
    ready = laptop.ready_line
    assert ready["roles"] == ["relay", "provider", "edge"]
    assert ready["models"] == ["tiny"]
    assert ready["join"].startswith("aimo:")
    answer = await ask(laptop.port, "GET", "/v1/providers")
    (view,) = answer.json["data"]
    assert (view["id"], view["path"], view["status"]) == (ready["peer_id"], "local", "healthy")
    assert (await ask(laptop.port, "GET", "/readyz")).status == 200


async def test_up_answers_as_soon_as_it_says_that_it_is_ready(own_mesh):
    """Its edge hears of its own engine like of any other: that has to be over by then."""
    for number in range(3):
        flags = ("--http", "127.0.0.1:0", "--listen", LOOPBACK)
        node = await own_mesh.start(f"up-{number}", "up", *flags).ready()
        assert (await stream_chat(node.port, "tiny", QUESTION)).text.strip() == "7"


async def test_others_join_a_laptop_by_the_string_it_prints(laptop, tmp_path):
    mesh = Mesh(tmp_path)
    try:
        flags = ("--join", laptop.ready_line["join"], "--http", "127.0.0.1:0")
        edge = await mesh.start("edge", "edge", *flags, "--listen", LOOPBACK).ready()
        wait_for(
            lambda: "tiny" in aimo(tmp_path, "models", "--edge", edge.url).stdout,
            10,
            "the model of the laptop is not known",
            edge,
        )
        said = aimo(tmp_path, "chat", "tiny", "--edge", edge.url, text=f"{QUESTION}\n")
        assert said.stdout.strip() == "7", said.stderr
    finally:
        mesh.end()


def test_models_and_peers_are_listed_for_people_and_programs(laptop, tmp_path):
    models = aimo(tmp_path, "models", "--json", "--edge", laptop.url)
    assert [model["id"] for model in json.loads(models.stdout)["data"]] == ["tiny"]
    peers = aimo(tmp_path, "peers", "--json", "--edge", laptop.url)
    (peer,) = json.loads(peers.stdout)["data"]
    assert (peer["id"], peer["models"]) == (laptop.peer_id, ["tiny"])
    assert (models.returncode, peers.returncode) == (0, 0)
    assert "tiny" in aimo(tmp_path, "models", "--edge", laptop.url).stdout
    assert laptop.peer_id in aimo(tmp_path, "peers", "--edge", laptop.url).stdout


def test_chat_answers_each_line_of_a_pipe(laptop, tmp_path):
    said = aimo(tmp_path, "chat", "tiny", "--edge", laptop.url, text=f"{QUESTION}\nWhat is 2+2?\n")
    assert said.returncode == 0, said.stderr
    assert said.stdout.split() == ["7", "4"]


def test_command_that_finds_no_edge_says_so(tmp_path):
    for command in (["models"], ["peers"], ["chat", "tiny"]):
        said = aimo(tmp_path, *command, "--edge", "http://127.0.0.1:9", text="Hi\n")
        assert said.returncode == 1
        assert "no edge answers" in said.stderr
        assert not said.stdout

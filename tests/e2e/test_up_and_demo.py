"""What a newcomer types first: `aimo up`, `aimo demo`, and the commands that ask an edge."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import psutil
import pytest

from tests.e2e.http_client import ask
from tests.e2e.mesh import LOOPBACK, Mesh
from tests.e2e.node_process import NodeProcess, environment, wait_for

QUESTION = "What is 3+4?"
ANSWER_SECONDS = 30.0
DEMO_SECONDS = 60.0


def aimo(folder: Path, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    command = [sys.executable, "-m", "aimo_node", *arguments]
    return subprocess.run(
        command,
        input=text,
        capture_output=True,
        text=True,
        timeout=DEMO_SECONDS,
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


def test_demo_once_answers_and_leaves_nothing(tmp_path):
    state = tmp_path / "demo"
    shown = aimo(tmp_path, "demo", "--once", "--state", str(state))
    assert shown.returncode == 0, shown.stderr + shown.stdout
    lines = dict(re.findall(r"^(\w+) +(.*)$", shown.stdout, re.MULTILINE))
    assert lines["question"] == QUESTION
    assert lines["answer"].strip() == "7"
    assert {"relay", "provider", "edge"} <= lines.keys()
    pids = [int(pid) for pid in re.findall(r"process (\d+)", shown.stdout)]
    assert len(pids) == 3
    assert "path direct" in shown.stdout
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []
    assert [str(path) for path in state.rglob("*") if path.is_socket()] == []
    assert not (state / "join").exists(), "it carries the mesh secret"


def test_demo_tells_programs_in_json(tmp_path):
    shown = aimo(tmp_path, "demo", "--once", "--json", "--state", str(tmp_path / "demo"))
    answer = json.loads(shown.stdout)
    assert (answer["answer"].strip(), answer["finish_reason"]) == ("7", "stop")
    assert answer["first_token_ms"] > 0


def test_what_the_demo_prints_works_as_printed_until_control_c(tmp_path):
    """The shell line in a shell, the program in a fresh Python; then nothing is left."""
    output = tmp_path / "shown"
    with output.open("wb") as file:
        demo = subprocess.Popen(
            [sys.executable, "-m", "aimo_node", "demo", "--state", str(tmp_path / "demo")],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=tmp_path,
            env=environment(tmp_path) | {"PYTHONUNBUFFERED": "1"},
        )
    try:
        wait_for(
            lambda: "Ctrl-C ends" in output.read_text() or demo.poll() is not None,
            DEMO_SECONDS,
            f"the demo does not get so far: {output.read_text()}",
        )
        shown = output.read_text()
        family = psutil.Process(demo.pid).children(recursive=True)
        assert len(family) == 4, "three nodes and the engine"
        (curl,) = re.findall(r"^curl .*$", shown, re.MULTILINE)
        said = subprocess.run(
            ["sh", "-c", curl], capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True
        )
        assert '"content":"7"' in said.stdout.replace('" 7"', '"7"')
        assert said.stdout.strip().endswith("data: [DONE]")
        program = shown[shown.index("from openai import") :].partition("\n\n")[0]
        assert len(program.splitlines()) == 6
        said = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=ANSWER_SECONDS,
            check=True,
        )
        assert said.stdout.strip() == "7"
        os.killpg(demo.pid, signal.SIGINT)
        assert demo.wait(15) in {0, 130}
        assert [process for process in family if process.is_running()] == []
    finally:
        if demo.poll() is None:
            demo.terminate()
            demo.wait(15)
    assert "Traceback" not in output.read_text()
    assert [str(path) for path in tmp_path.rglob("*") if path.is_socket()] == []


def test_demo_that_is_interrupted_while_it_starts_leaves_nothing(tmp_path):
    for moment in (0.3, 0.9, 1.6):
        demo = subprocess.Popen(
            [sys.executable, "-m", "aimo_node", "demo", "--state", str(tmp_path / "demo")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd=tmp_path,
            env=environment(tmp_path),
        )
        with pytest.raises(subprocess.TimeoutExpired):
            demo.wait(moment)
        family = psutil.Process(demo.pid).children(recursive=True)
        demo.send_signal(signal.SIGINT)
        _, stderr = demo.communicate(timeout=15)
        assert demo.returncode in {130, -signal.SIGINT}, stderr
        assert [process for process in family if process.is_running()] == []
    assert [str(path) for path in tmp_path.rglob("*") if path.is_socket()] == []
    assert not (tmp_path / "demo" / "join").exists()

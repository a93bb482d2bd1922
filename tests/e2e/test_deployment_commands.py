"""The command lines of the container and service files, run as processes.

No container engine and no service manager is needed: the lines are taken from the files, and only
their folders and ports are others. What must hold in a container holds here: every role is healthy
for the files' own health check, an answer takes a key, and SIGTERM ends all of them with 0.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.e2e.http_client import CHAT_PATH, ask, chat, open_stream
from tests.e2e.mesh import KNOWN_SECONDS, Mesh
from tests.e2e.node_process import NodeProcess, eventually, wait_for
from tests.unit.test_deployment_files import DOCKER, ROLES, VARIABLES, command_lines

KEY = "a-key-for-consumers"
AUTHORIZED = {"authorization": f"Bearer {KEY}"}
QUESTION, ANSWER = "What is 3+4?", "7"
HEALTHY_SECONDS = 10.0
END_SECONDS = 15.0
"""Room for a busy machine; nothing runs that would have to be waited for."""
FAMILIES = {"compose": "compose {}", "systemd": "aimo-{}"}


def health_check() -> list[str]:
    """The command with which the image asks whether its node is ready."""
    dockerfile = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ")
    (command,) = re.findall(r"^HEALTHCHECK .* CMD (\[.*\])$", dockerfile, re.MULTILINE)
    program, script = json.loads(command)
    assert program == "python"
    return [sys.executable, str(DOCKER / Path(script).name)]


def health(node: NodeProcess) -> int:
    """Exit code of the image's health check for this node."""
    environment = {"AIMO_HEALTH_URL": f"http://127.0.0.1:{node.port}/readyz"}
    return subprocess.run(health_check(), env=environment, check=False).returncode


@dataclass
class Deployment:
    """The three roles as one of the files starts them, in folders of this test.

    Attributes:
        family: whose command lines: a key of `FAMILIES`.
        mesh: whose folder they live in, and which ends them.
    """

    family: str
    mesh: Mesh
    nodes: dict[str, NodeProcess] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._join, self._secrets = self.mesh.folder / "shared", self.mesh.folder / "secrets"
        self._join.mkdir()
        self._secrets.mkdir(mode=0o700)
        for name in ("client_keys", "client-keys"):
            keys = self._secrets / name
            keys.write_text(f"# one per line\n{KEY}\n")
            keys.chmod(0o600)

    def start(self, role: str) -> NodeProcess:
        """Start one role with the line of its file."""
        _, command, *flags = command_lines()[FAMILIES[self.family].format(role)]
        assert command == role
        here = [self._localised(flag, role) for flag in flags]
        node = NodeProcess(role, command, *here, folder=self.mesh.folder)
        self.mesh.nodes.append(node)
        self.nodes[role] = node
        return node

    def _localised(self, flag: str, role: str) -> str:
        """A flag with folders of this test and a free port instead of a fixed one."""
        folders = {
            "/join/": f"{self._join}/",
            "/run/secrets/": f"{self._secrets}/",
            VARIABLES["CREDENTIALS_DIRECTORY"]: str(self._secrets),
            VARIABLES["STATE_DIRECTORY"]: str(self.mesh.folder / role),
            "/state": str(self.mesh.folder / role),
        }
        for folder, here in folders.items():
            if flag.removeprefix("@").startswith(folder):
                return flag.replace(folder, here, 1)
        assert not flag.removeprefix("@").startswith("/") or flag.startswith("/ip4/"), flag
        return re.sub(r"(/tcp/|:)\d+$", r"\g<1>0", flag)

    def start_all(self) -> None:
        """Start the relay, the others once it is healthy: as compose does, or an administrator."""
        relay = self.start("relay").wait_ready()
        assert_healthy(relay)
        if self.family == "systemd":
            written = self.mesh.folder / "relay" / "join"
            shutil.copyfile(written, self._secrets / "join")
            (self._secrets / "join").chmod(0o600)
        for role in ("provider", "edge"):
            self.start(role)
        for node in self.nodes.values():
            node.wait_ready()


def assert_healthy(node: NodeProcess) -> None:
    """The image's health check finds it ready soon."""
    wait_for(lambda: health(node) == 0, HEALTHY_SECONDS, f"{node.name} is not healthy", node)


@pytest.fixture(params=FAMILIES)
def deployment(request: pytest.FixtureRequest, own_mesh: Mesh) -> Deployment:
    """Relay, provider and edge of one family of files, ready; ended with the test."""
    deployment = Deployment(request.param, own_mesh)
    deployment.start_all()
    return deployment


async def test_deployed_mesh_is_healthy_answers_with_a_key_and_ends_with_sigterm(
    deployment: Deployment,
) -> None:
    edge, provider = deployment.nodes["edge"], deployment.nodes["provider"]
    for node in deployment.nodes.values():
        assert_healthy(node)

    async def is_served() -> bool:
        models = (await ask(edge.port, "GET", "/v1/models", headers=AUTHORIZED)).json["data"]
        return "tiny" in [model["id"] for model in models]

    await eventually(is_served, KNOWN_SECONDS, "the edge does not know the model", edge, provider)
    without_key = await ask(edge.port, "POST", CHAT_PATH, chat("tiny", QUESTION))
    assert without_key.status == 401
    async with open_stream(edge.port, chat("tiny", QUESTION), AUTHORIZED) as stream:
        assert stream.provider == provider.peer_id
        assert (await stream.read_to_the_end()).text.strip() == ANSWER

    for node in deployment.nodes.values():
        _ = node.children
        node.signal(signal.SIGTERM)
    codes = {role: await node.exit_code(END_SECONDS) for role, node in deployment.nodes.items()}
    assert codes == dict.fromkeys(ROLES, 0)
    assert [health(node) for node in deployment.nodes.values()] == [1, 1, 1]

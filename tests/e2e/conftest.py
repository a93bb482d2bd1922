"""The mesh that most end-to-end tests share, and what a test adds to it.

A relay, an edge and a provider of the model ``echo`` run for the whole session. A test that kills,
stops or fills a provider starts one of its own under a model name of its own.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from aimo_node.domain.join import JoinTarget, format_join
from tests.e2e.mesh import LOOPBACK, Mesh, until_known
from tests.e2e.node_process import NodeProcess

STREAMS_MAX = "2000"
NOBODY = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWJWoaqZhDaoEFshF7Rh1bpY9ohihFhzcW6d69Lr2NASuq"
"""An address at which nobody listens."""


@dataclass(frozen=True)
class SharedMesh:
    """Three processes that nobody may disturb."""

    mesh: Mesh
    relay: NodeProcess
    provider: NodeProcess
    edge: NodeProcess

    @property
    def port(self) -> int:
        """Of the edge's HTTP door."""
        return self.edge.port


@pytest.fixture(scope="session")
def hopeless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[NodeProcess, float]]:
    """A node whose relay does not exist, and when it was started, in monotonic time."""
    mesh = Mesh(tmp_path_factory.mktemp("hopeless"))
    try:
        join = ("--join", format_join(JoinTarget((NOBODY,), b"s" * 32)), "--listen", LOOPBACK)
        yield mesh.start("hopeless", "edge", "--http", "127.0.0.1:0", *join), time.monotonic()
    finally:
        mesh.end()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, hopeless: object) -> Iterator[SharedMesh]:
    """The shared mesh, all three ready."""
    mesh = Mesh(tmp_path_factory.mktemp("shared"))
    try:
        relay = mesh.relay()
        provider = mesh.provider("echo", "--requests-max", STREAMS_MAX, "--http", "127.0.0.1:0")
        edge = mesh.edge()
        for node in mesh.nodes:
            node.wait_ready()
        trio.run(until_known, edge, provider)
        yield SharedMesh(mesh, relay, provider, edge)
        for node in mesh.nodes:
            node.assert_alive()
    finally:
        mesh.end()


@pytest.fixture
def guests(shared: SharedMesh, tmp_path: Path) -> Iterator[Mesh]:
    """Nodes of one test that join the shared mesh; ended with the test."""
    mesh = Mesh(tmp_path, shared.mesh.join_file)
    try:
        yield mesh
    finally:
        mesh.end()
        for node in shared.mesh.nodes:
            node.assert_alive()


@pytest.fixture
def own_mesh(tmp_path: Path) -> Iterator[Mesh]:
    """An empty mesh apart from the shared one; ended with the test."""
    mesh = Mesh(tmp_path)
    try:
        yield mesh
    finally:
        mesh.end()

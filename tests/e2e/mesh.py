"""A mesh of real processes on loopback for the end-to-end tests."""

import shutil
from pathlib import Path

from tests.e2e.http_client import ask
from tests.e2e.node_process import NodeProcess, eventually, wait_for

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
GRACE_SECONDS = 2
"""What running requests get at the end of a test: nobody reads them any more."""
KNOWN_SECONDS = 10.0


class Mesh:
    """Nodes that join each other by a file the relay writes, so that all can start at once.

    Attributes:
        nodes: those this mesh has to end.
    """

    def __init__(self, folder: Path, join_file: Path | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.join_file = join_file or folder / "join"
        self.nodes: list[NodeProcess] = []

    def start(self, name: str, command: str, *flags: str, **variables: str) -> NodeProcess:
        """Start any node; its state folder is kept from an earlier start under the same name."""
        if "--grace" not in flags:
            flags = (*flags, "--grace", str(GRACE_SECONDS))
        node = NodeProcess(name, command, *flags, folder=self.folder, variables=variables)
        self.nodes.append(node)
        return node

    def relay(self, *flags: str, name: str = "relay", listen: str = LOOPBACK) -> NodeProcess:
        """Start the relay that the others join."""
        own = ("--listen", listen, "--join-file", str(self.join_file))
        return self.start(name, "relay", *own, *flags)

    def provider(
        self, model: str, *flags: str, name: str = "", engine: str = "echo"
    ) -> NodeProcess:
        """Start a provider; the echo engine serves any name."""
        what = ("--engine", engine) + (("--model", model) if engine != "llama" else ())
        return self.start(name or f"provider-{model}", "provider", *what, *self._join, *flags)

    def edge(self, *flags: str, name: str = "edge", http: str = "127.0.0.1:0") -> NodeProcess:
        """Start an edge."""
        return self.start(name, "edge", "--http", http, *self._join, *flags)

    @property
    def _join(self) -> tuple[str, ...]:
        return ("--join", f"@{self.join_file}", "--listen", LOOPBACK)

    def end(self) -> None:
        """End all nodes, those that were started last first; nothing of them may be left."""
        for node in reversed(self.nodes):
            node.end()
        wait_for(lambda: not self.leftovers(), 3, f"left behind: {self.leftovers()}")
        for node in self.nodes:
            shutil.rmtree(node.state, ignore_errors=True)

    def leftovers(self) -> list[str]:
        """Processes, sockets and half-written files of nodes that have ended."""
        temporary = self.folder / "tmp"
        found = [str(path) for path in temporary.iterdir()] if temporary.is_dir() else []
        return [*found, *(item for node in self.nodes for item in node.leftovers())]


async def providers_of(edge: NodeProcess, *, linked: bool = True) -> dict[str, dict]:
    """What an edge says of the providers it can use, by peer id."""
    views = (await ask(edge.port, "GET", "/v1/providers")).json["data"]
    return {
        view["id"]: view
        for view in views
        if view["status"] == "healthy" and (view["path"] or not linked)
    }


async def until_known(edge: NodeProcess, *providers: NodeProcess) -> None:
    """Wait until all of them are ready and linked to the edge."""
    for provider in providers:
        await provider.ready()
    wanted = {provider.peer_id for provider in providers}

    async def is_known() -> bool:
        return wanted <= (await providers_of(edge)).keys()

    names = ", ".join(provider.name for provider in providers)
    problem = f"the edge does not know {names}"
    await eventually(is_known, KNOWN_SECONDS, problem, edge, *providers)


async def until_unknown(edge: NodeProcess, *peers: str, seconds: float = KNOWN_SECONDS) -> None:
    """Wait until the edge has forgotten these peers, or knows that they are offline."""

    async def is_unknown() -> bool:
        return not set(peers) & (await providers_of(edge, linked=False)).keys()

    await eventually(is_unknown, seconds, f"the edge still knows {peers}", edge)

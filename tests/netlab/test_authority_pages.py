"""The pages about moving and losing an authority, followed with its members behind NAT (root only).

`tests/e2e/test_authority_pages.py` does the same on loopback, and looks closer at what comes of it.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.followed_page import Page
from tests.e2e.mesh import Mesh
from tests.e2e.node_process import NodeProcess, environment, wait_for
from tests.e2e.test_authority_pages import lose
from tests.netlab.lab import PUBLIC, PUBLIC2, Lab, lab, why_not
from tests.netlab.test_networks_apart import question

ANY_PORT = "/ip4/0.0.0.0/tcp/0"
ECHO = ("--engine", "echo", "--model", "echo")
SERVED_SECONDS = 30.0
WHERE = {
    "old": "public",
    "second": "public2",
    "new": "public2",
    "provider": "home",
    "edge": "office",
    "loyal": "office",
    "late": "office",
}


def at(host: str, port: int = 4001) -> tuple[str, ...]:
    """Flags of a relay on a public host; the first two are those for `--listen`."""
    return ("--listen", f"/ip4/0.0.0.0/tcp/{port}", "--announce", f"/ip4/{host}/tcp/{port}")


class LabMesh(Mesh):
    """Nodes that run where `WHERE` says."""

    def __init__(self, folder: Path, networks: Lab) -> None:
        super().__init__(folder)
        self._networks = networks

    def start(self, name: str, command: str, *flags: str, **_variables: str) -> NodeProcess:
        """See `Mesh.start`."""
        prefix = self._networks.inside(WHERE[name])
        flags = (*flags, "--grace", "2")
        node = NodeProcess(name, command, *flags, folder=self.folder, prefix=prefix)
        self.nodes.append(node)
        return node

    def page(self, name: str, where: str) -> Page:
        """A page that is followed on that machine."""
        return Page(name, self, self._networks.inside(where))

    def invite(self, authority: NodeProcess, *flags: str) -> str:
        """What `aimo invite` prints on the authority's machine."""
        inside = self._networks.inside(WHERE[authority.name])
        command = [sys.executable, "-m", "aimo_node", "invite", "--state", str(authority.state)]
        done = subprocess.run(
            [*inside, *command, "--config", os.devnull, *flags],
            env=environment(self.folder), capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.strip()

    def member(self, name: str, *joins: str) -> NodeProcess:
        """A provider or an edge."""
        role, own = (
            ("provider", ECHO) if name == "provider" else ("edge", ("--http", "127.0.0.1:0"))
        )
        return self.start(name, role, *own, *(part for join in joins for part in ("--join", join)))

    def assert_served(self, edge: NodeProcess) -> None:
        """A chat answers through this edge."""
        found: dict = {}

        def answers() -> bool:
            found.update(question(self._networks.inside("office"), edge, self.folder))
            return bool(found["known"] and found["done"])

        wait_for(answers, SERVED_SECONDS, "no answer", *self.nodes)

    def close(self) -> None:
        """End all nodes."""
        self.end()


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[LabMesh]:
    reason = why_not(nat=True)
    if reason:
        pytest.skip(reason)
    with lab(nat=True) as networks, closing(LabMesh(tmp_path, networks)) as made:
        yield made


async def test_an_authority_is_moved_to_another_public_host(mesh: LabMesh) -> None:
    page = mesh.page("move-the-authority.md", "public2")
    old = await mesh.start("old", "relay", "--authority", *at(PUBLIC)).ready()
    second_file = mesh.folder / "second.join"
    joining = ("--join", mesh.invite(old, "--role", "relay"), "--join-file", str(second_file))
    await mesh.start("second", "relay", *joining, *at(PUBLIC2)).ready()
    invite = mesh.invite(old, "--uses", "3")
    provider = mesh.member("provider", invite, f"@{second_file}")
    edge = mesh.member("edge", invite, f"@{second_file}")
    loyal = mesh.member("loyal", invite)
    for node in (provider, edge, loyal):
        await node.ready()
    mesh.assert_served(edge)

    old.end()
    heading, names = "To another machine", {"OLD": old.state, "NEW": mesh.folder / "new"}
    for command in ("mkdir", "cp", "rm"):
        page.run(heading, command, **names)
    _, listen, *announce = at(PUBLIC2, 4002)
    join = second_file.read_text().strip()
    new = await page.start(
        heading, "aimo relay --authority", *announce, listen=listen, join=join, **names
    )
    assert edge.peer_id in page.run(heading, "aimo peers list", **names)
    assert "FAIL" not in page.run(heading, "aimo doctor", **names)
    mesh.assert_served(edge)

    heading = "The address changes"
    loyal.end()
    moved = new.ready_line["join"]
    loyal = await page.start(heading, "aimo edge", listen=ANY_PORT, STATE=loyal.state, join=moved)
    mesh.assert_served(loyal)
    late = await mesh.member("late", page.run(heading, "aimo invite", **names)).ready()
    mesh.assert_served(late)
    page.assert_followed("To another machine", heading)


async def test_a_lost_key_is_dealt_with_while_members_are_behind_nat(mesh: LabMesh) -> None:
    page = mesh.page("lose-the-authoritys-key.md", "public")
    relay = await mesh.start("old", "relay", "--authority", *at(PUBLIC)).ready()
    invite = mesh.invite(relay, "--uses", "2")
    provider, edge = mesh.member("provider", invite), mesh.member("edge", invite)
    await provider.ready()
    await edge.ready()
    names: dict[str, Path | str] = {"STATE": relay.state, "BACKUP": mesh.folder / "backup"}
    _, listen, *announce = at(PUBLIC)

    heading = "Back it up beforehand"
    for command in ("mkdir", "cp", "python3", "chmod"):
        page.run(heading, command, **names)
    relay.end()
    lose(relay, "authority.pem", "members.sqlite")
    page.run(heading, "cp", **names)
    relay = await page.start(heading, "aimo relay --authority", *announce, listen=listen, **names)
    mesh.assert_served(edge)
    page.assert_followed(heading)

    heading = "The key is gone"
    assert edge.peer_id in page.run(heading, "aimo peers list", **names)
    relay.end()
    lose(relay, "authority.pem")
    page.run(heading, "mv", **names)
    relay = await page.start(heading, "aimo relay --authority", *announce, listen=listen, **names)
    invite = page.run(heading, "aimo invite", **names)
    provider.end()
    await page.start(heading, "aimo provider", listen=ANY_PORT, MEMBER=provider.state, join=invite)
    edge.end()
    mesh.assert_served(await mesh.member("late", mesh.invite(relay)).ready())
    page.assert_followed(heading)

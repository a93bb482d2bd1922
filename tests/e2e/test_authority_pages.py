"""The pages about moving and losing an authority, followed to the letter."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from aimo_node.assembly.control_socket import ask_node
from aimo_node.domain.join import JoinTarget, format_join, parse_join
from tests.e2e.followed_page import Page
from tests.e2e.http_client import stream_chat
from tests.e2e.mesh import LOOPBACK, Mesh, until_known
from tests.e2e.node_process import NodeProcess, eventually
from tests.e2e.test_invites import REFUSED_SECONDS, complaint, members_of, start

SECONDS = 20.0


def invited(authority: NodeProcess, *roles: str) -> str:
    """What `aimo invite` prints, without a process of its own."""
    request = {
        "command": "members.invite",
        "roles": list(roles) or ["provider", "edge"],
        "expires_seconds": 3600,
        "uses": 1,
    }
    return str(ask_node(authority.state, request, SECONDS)["invite"])


async def until_taken(node: NodeProcess, *, by: Sequence[NodeProcess]) -> None:
    """Until the node has a new certificate, which it asked one of these relays for."""

    def is_taken() -> bool:
        lines = [line for line in node.log.splitlines() if "certificate.taken" in line]
        return any(relay.peer_id in line for line in lines for relay in by)

    await eventually(is_taken, SECONDS, "the certificate is not renewed", node, *by)


async def serves(edge: NodeProcess, provider: NodeProcess) -> bool:
    await until_known(edge, provider)
    return (await stream_chat(edge.port, "echo", max_tokens=3)).is_done


def address_of(node: NodeProcess) -> str:
    return node.ready_line["listen"][0].partition("/p2p/")[0]


def only_through(relay: NodeProcess, invite: str) -> str:
    """The same invite for somebody who reaches that relay and no other."""
    target = parse_join(invite)
    assert target.mesh is not None
    of_relay = tuple(one for one in target.addresses if one.endswith(relay.peer_id))
    return format_join(JoinTarget(of_relay, None, target.mesh, target.invite))


@pytest.mark.slow
async def test_the_authority_is_moved_as_its_page_says(own_mesh: Mesh) -> None:
    page, folder = Page("move-the-authority.md", own_mesh), own_mesh.folder
    old = await own_mesh.relay("--authority", name="old").ready()
    second_file = folder / "second.join"
    second = own_mesh.start(
        "second", "relay", "--listen", LOOPBACK, "--join-file", str(second_file),
        "--join", invited(old, "relay"),
    )  # fmt: skip
    await second.ready()
    also = ("--join", f"@{second_file}")
    provider_join = invited(old, "provider")
    provider = start(own_mesh, "provider", "p", provider_join, *also)
    edge = start(own_mesh, "edge", "e", invited(old), *also)
    loyal = start(own_mesh, "edge", "loyal", invited(old))
    for one in (edge, loyal):
        await until_known(await one.ready(), provider)

    old.end()
    heading, names = "To another machine", {"OLD": old.state, "NEW": folder / "new"}
    for command in ("mkdir", "cp", "rm"):
        page.run(heading, command, **names)
    second_join = second_file.read_text().strip()
    new = await page.start(heading, "aimo relay --authority", join=second_join, **names)
    assert new.peer_id == old.peer_id
    assert edge.peer_id in page.run(heading, "aimo peers list", **names)
    assert "FAIL" not in page.run(heading, "aimo doctor", **names)
    assert await serves(edge, provider)

    heading = "The address changes"
    loyal.end()
    loyal = await page.start(heading, "aimo edge", STATE=loyal.state, join=new.ready_line["join"])
    assert await serves(loyal, provider)
    provider.end()  # its join string has the address that is no more, and another relay
    provider = await start(own_mesh, "provider", "p", provider_join, *also).ready()
    await until_taken(provider, by=(second, new))
    invite = page.run(heading, "aimo invite", **names)
    pending = invited(new)
    far = await start(own_mesh, "edge", "far", only_through(second, invite)).ready()
    assert await serves(far, provider)
    page.assert_followed("To another machine", "The address changes")

    await it_moves_to_another_relay(page, new, second, pending)
    assert await serves(await start(own_mesh, "edge", "late", pending).ready(), provider)


async def it_moves_to_another_relay(
    page: Page, old: NodeProcess, new: NodeProcess, pending: str
) -> None:
    """From `old` to `new`; the invite that nobody used yet names the first of them."""
    heading, names = "To another relay of the mesh", {"OLD": old.state, "NEW": new.state}
    members = len(await members_of(old))
    assert parse_join(pending).addresses[0].endswith(old.peer_id)
    old.end()
    new.end()
    page.run(heading, "mv", **names)
    taken_over = await page.start(
        heading, "aimo relay --authority", listen=address_of(new), **names
    )
    assert taken_over.peer_id == new.peer_id
    join = taken_over.ready_line["join"]
    plain = await page.start(heading, "aimo relay", listen=address_of(old), join=join, **names)
    assert plain.peer_id == old.peer_id
    assert len(await members_of(taken_over)) == members
    page.assert_followed(heading)


@pytest.mark.slow
async def test_a_lost_key_is_dealt_with_as_its_page_says(own_mesh: Mesh) -> None:
    page, folder = Page("lose-the-authoritys-key.md", own_mesh), own_mesh.folder
    relay = await own_mesh.relay("--authority").ready()
    provider = start(own_mesh, "provider", "p", invited(relay))
    edge = start(own_mesh, "edge", "e", invited(relay))
    await until_known(await edge.ready(), provider)
    names: dict[str, Path | str] = {"STATE": relay.state, "BACKUP": folder / "backup"}

    heading = "Back it up beforehand"
    for command in ("mkdir", "cp", "python3", "chmod"):
        page.run(heading, command, **names)
    where, mesh_key = address_of(relay), parse_join(relay.ready_line["join"]).mesh
    relay.end()
    lose(relay, "authority.pem", "members.sqlite")
    assert await serves_over_its_link(edge)
    page.run(heading, "cp", **names)
    relay = await page.start(heading, "aimo relay --authority", listen=where, **names)
    assert parse_join(relay.ready_line["join"]).mesh == mesh_key
    assert {provider.peer_id, edge.peer_id} <= (await members_of(relay)).keys()

    heading = "The book is gone, the key is not"
    relay.end()
    lose(relay, "members.sqlite")
    relay = await own_mesh.relay("--authority", listen=where).ready()
    assert edge.peer_id not in await members_of(relay)
    invite = page.run(heading, "aimo invite", **names)
    edge.end()
    edge = await page.start(heading, "aimo edge", MEMBER=edge.state, join=invite)
    await until_taken(edge, by=(relay,))
    assert edge.peer_id in await members_of(relay)
    page.assert_followed("Back it up beforehand", heading)

    await a_new_mesh_is_begun(page, own_mesh, names, relay, (provider, edge))


async def a_new_mesh_is_begun(
    page: Page,
    mesh: Mesh,
    names: dict[str, Path | str],
    relay: NodeProcess,
    members: tuple[NodeProcess, NodeProcess],
) -> None:
    """The key is lost while the relay runs: it can still say who is a member."""
    provider, edge = members
    where, mesh_key = address_of(relay), parse_join(relay.ready_line["join"]).mesh
    heading = "The key is gone"
    listed = json.loads(page.run(heading, "aimo peers list", **names))
    assert edge.peer_id in {one["id"] for one in listed}
    spare = invited(relay)
    relay.end()
    lose(relay, "authority.pem")
    page.run(heading, "mv", **names)
    relay = await page.start(heading, "aimo relay --authority", listen=where, **names)
    assert parse_join(relay.ready_line["join"]).mesh != mesh_key
    invite = page.run(heading, "aimo invite", **names)
    provider.end()
    provider = await page.start(heading, "aimo provider", MEMBER=provider.state, join=invite)
    edge.end()
    edge = await start(mesh, "edge", "e", invited(relay, "edge")).ready()
    assert await serves(edge, provider)
    late = start(mesh, "edge", "late", spare)
    assert await late.exit_code(REFUSED_SECONDS) == 3
    assert "did not sign" in complaint(late)
    page.assert_followed(heading)


def lose(node: NodeProcess, *names: str) -> None:
    for name in names:
        (node.state / name).unlink()


async def serves_over_its_link(edge: NodeProcess) -> bool:
    return (await stream_chat(edge.port, "echo", max_tokens=3)).is_done

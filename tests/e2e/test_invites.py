"""A mesh with an authority, as its owner runs it: invites, bans, the authority away and back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from aimo_node.domain.join import JoinTarget, format_join, parse_join
from tests.e2e.http_client import stream_chat
from tests.e2e.mesh import LOOPBACK, Mesh, providers_of, until_known
from tests.e2e.node_process import NodeProcess, environment, eventually
from tests.e2e.raw_link import raw_peer

REFUSED_SECONDS = 15.0
BAN_SECONDS = 5.0
"""How long after `aimo peers ban` a peer may still be linked to anybody."""
ECHO = ("--engine", "echo", "--model", "echo")
ROOT = Path(__file__).parents[2]


async def aimo(node: NodeProcess, *words: str, fails: bool = False) -> str:
    """What a command about `node` prints; on stderr, if it is to fail."""
    arguments = [sys.executable, "-m", "aimo_node", *words]
    arguments += ["--state", str(node.state), "--config", os.devnull]
    done = await trio.run_process(
        arguments,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env=environment(node.state.parent),
        cwd=ROOT,
    )
    assert (done.returncode != 0) == fails, done.stderr.decode()
    return (done.stderr if fails else done.stdout).decode().strip()


async def members_of(relay: NodeProcess) -> dict[str, dict]:
    return {one["id"]: one for one in json.loads(await aimo(relay, "peers", "list", "--json"))}


def authority(mesh: Mesh, listen: str = LOOPBACK) -> NodeProcess:
    return mesh.relay("--authority", listen=listen)


def start(mesh: Mesh, command: str, name: str, join: str, *flags: str) -> NodeProcess:
    own = ECHO if command == "provider" else ("--http", "127.0.0.1:0")
    return mesh.start(name, command, *own, "--listen", LOOPBACK, "--join", join, *flags)


def complaint(node: NodeProcess) -> str:
    (line,) = [line for line in node.log.splitlines() if line.startswith("aimo: ")]
    assert "Traceback" not in node.log
    return line


async def test_invited_nodes_serve_and_a_ban_ends_that_within_seconds(own_mesh):
    relay = await authority(own_mesh).ready()
    assert parse_join(relay.ready_line["join"]).secret is None
    provider = start(own_mesh, "provider", "p", await aimo(relay, "invite", "--role", "provider"))
    edge = start(own_mesh, "edge", "e", await aimo(relay, "invite", "--role", "edge"))
    await until_known(await edge.ready(), provider)
    assert (await stream_chat(edge.port, "echo", max_tokens=2)).is_done
    listed = await members_of(relay)
    assert {peer: one["roles"] for peer, one in listed.items()} == {
        relay.peer_id: ["relay"],
        provider.peer_id: ["provider"],
        edge.peer_id: ["edge"],
    }
    assert listed[provider.peer_id]["linked"]

    await aimo(relay, "peers", "ban", provider.peer_id)

    async def is_gone() -> bool:
        linked = provider.peer_id in await providers_of(edge)
        return not linked and not (await members_of(relay))[provider.peer_id]["linked"]

    await eventually(is_gone, BAN_SECONDS, "the banned provider is still there", edge, relay)
    assert (await members_of(relay))[provider.peer_id]["banned"]
    await aimo(relay, "peers", "allow", provider.peer_id)
    await until_known(edge, provider)
    assert "no-such-peer" in await aimo(relay, "peers", "ban", "no-such-peer", fails=True)
    assert "authority's own node" in await aimo(relay, "peers", "ban", relay.peer_id, fails=True)


@pytest.mark.slow
async def test_without_its_authority_members_go_on_and_nobody_joins(own_mesh):
    """With a second relay all goes on but joining; where it was the only relay, links live on."""
    relay = await authority(own_mesh).ready()
    spare = await aimo(relay, "invite")
    address = relay.ready_line["listen"][0]
    second_file = own_mesh.folder / "second.join"
    second = own_mesh.start(
        "second", "relay", "--listen", LOOPBACK, "--join-file", str(second_file),
        "--join", await aimo(relay, "invite", "--role", "relay"),
    )  # fmt: skip
    await second.ready()
    also = ("--join", f"@{second_file}")
    provider_join = await aimo(relay, "invite")
    provider = start(own_mesh, "provider", "p", provider_join, *also)
    edge = start(own_mesh, "edge", "e", await aimo(relay, "invite"), *also)
    loyal = start(own_mesh, "edge", "loyal", await aimo(relay, "invite"))
    for one in (edge, loyal):
        await until_known(await one.ready(), provider)

    relay.kill()
    late = start(own_mesh, "edge", "late", spare)
    assert (await stream_chat(loyal.port, "echo", max_tokens=3)).is_done
    provider.end()  # a member that starts again finds the others without the authority
    provider = start(own_mesh, "provider", "p", provider_join, *also)
    await until_known(edge, provider)
    assert (await stream_chat(edge.port, "echo", max_tokens=3)).is_done
    assert await late.exit_code(45) == 3
    said = complaint(late)
    assert relay.peer_id in said, said
    assert "the authority of the mesh must answer" in said, said

    back = await authority(own_mesh, address.partition("/p2p/")[0]).ready()
    assert back.peer_id == relay.peer_id
    again = await start(own_mesh, "edge", "late", spare).ready()
    await until_known(again, provider)
    assert len(await members_of(back)) == 6


async def test_who_is_not_invited_is_told_so(own_mesh):
    relay = await authority(own_mesh).ready()
    mesh_join = parse_join(relay.ready_line["join"])
    used = await aimo(relay, "invite", "--role", "edge")
    await start(own_mesh, "edge", "first", used).ready()
    for name, command, join, code, said in (
        ("replayed", "edge", used, 3, "used up"),
        ("uninvited", "edge", relay.ready_line["join"], 2, "aimo invite --role edge"),
        ("in another role", "provider", await aimo(relay, "invite", "--role", "edge"), 2, "is for"),
        ("secret", "edge", format_join(JoinTarget(mesh_join.addresses, b"s" * 32)), 3, "mesh"),
    ):
        node = start(own_mesh, command, name.replace(" ", "-"), join)
        assert await node.exit_code(REFUSED_SECONDS) == code, (name, node.log)
        assert said in complaint(node), name


async def test_a_hostile_peer_without_a_certificate_gets_nothing(own_mesh):
    """Not with a Hello of its own making, nor by asking for membership."""
    relay = await authority(own_mesh).ready()
    join = relay.ready_line["join"]
    mesh_key = parse_join(join).mesh
    async with raw_peer(join) as peer:
        for proof in (b"", b"p" * 150):
            link = await peer.dial(relay)
            hello = link.hello()
            await link.send(type(hello)(hello.versions, mesh_key, proof, roles=4))
            assert await link.close_code() == 6


async def test_an_authority_forgotten_on_the_command_line_is_asked_for(own_mesh):
    relay = await authority(own_mesh).ready()
    relay.end()
    forgetful = own_mesh.relay()
    assert await forgetful.exit_code(REFUSED_SECONDS) == 2
    assert "--authority" in complaint(forgetful)


async def test_inviting_is_for_the_authority_alone(own_mesh):
    relay = await own_mesh.relay().ready()
    for words in (("invite",), ("peers", "list"), ("peers", "ban", relay.peer_id)):
        assert "not the authority" in await aimo(relay, *words, fails=True)


@pytest.mark.parametrize("duration", ["1w", "0d", "soon"])
def test_a_lifetime_that_is_none_is_refused(duration: str, tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "aimo_node", "invite", "--expires", duration]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert "30m, 12h or 7d" in done.stderr

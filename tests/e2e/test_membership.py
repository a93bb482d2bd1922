"""Who gets into a mesh, and how clearly those who do not are told."""

import base64
import re
import time
from pathlib import Path

from aimo_node.domain.join import JoinTarget, format_join, parse_join
from tests.e2e.http_client import ask, stream_chat
from tests.e2e.mesh import LOOPBACK, Mesh, until_known
from tests.e2e.node_process import NodeProcess

REFUSED_SECONDS = 10.0
"""Being refused is final: nobody waits half a minute to say so."""
JOIN_SECONDS = 30.0


ECHO = ("--engine", "echo", "--model", "echo")


def join_of(shared) -> JoinTarget:
    return parse_join(shared.relay.ready_line["join"])


def provider_with(guests: Mesh, *flags: str, name: str = "stranger") -> NodeProcess:
    return guests.start(name, "provider", *ECHO, "--listen", LOOPBACK, *flags)


def complaint(node: NodeProcess) -> str:
    """What the program says at last: one sentence for a person."""
    assert "Traceback" not in node.log
    assert not node.output
    (line,) = [line for line in node.log.splitlines() if line.startswith("aimo: ")]
    return line


async def test_wrong_secret_is_refused_with_exit_3(shared, guests):
    wrong = format_join(JoinTarget(join_of(shared).addresses, b"x" * 32))
    node = provider_with(guests, "--join", wrong)
    assert await node.exit_code(REFUSED_SECONDS) == 3
    assert re.search("mesh|secret|admit", complaint(node))


async def test_open_node_is_not_admitted_to_a_closed_mesh(shared, guests):
    node = provider_with(guests, "--open", "--join", join_of(shared).addresses[0])
    assert await node.exit_code(REFUSED_SECONDS) == 3
    assert "mesh" in complaint(node)


async def test_node_with_a_secret_does_not_enter_an_open_mesh(own_mesh):
    """It would believe itself among friends."""
    relay = await own_mesh.relay("--open").ready()
    (address, *_) = parse_join(relay.ready_line["join"]).addresses
    closed = provider_with(own_mesh, "--join", format_join(JoinTarget((address,), b"s" * 32)))
    opened = provider_with(own_mesh, "--open", "--join", relay.ready_line["join"], name="opened")
    assert await closed.exit_code(REFUSED_SECONDS) == 3
    assert "mesh" in complaint(closed)
    await opened.ready()


async def test_open_mesh_serves_without_any_secret(own_mesh):
    relay = await own_mesh.relay("--open").ready()
    assert parse_join(relay.ready_line["join"]).secret is None
    provider = own_mesh.provider("echo", "--open")
    edge = await own_mesh.edge("--open").ready()
    await until_known(edge, provider)
    assert (await stream_chat(edge.port, "echo", max_tokens=2)).is_done


async def test_secret_from_a_file_admits_as_well(shared, guests):
    """For those who do not want it on a command line, and join by a plain address."""
    target = join_of(shared)
    assert target.secret is not None
    file = guests.folder / "secret"
    file.touch(0o600)
    file.write_text(target.secret.hex())
    node = provider_with(
        guests, "--mesh-secret-file", str(file), "--join", target.addresses[0], name="by-file"
    )
    await until_known(shared.edge, node)
    file.chmod(0o644)
    careless = provider_with(
        guests, "--mesh-secret-file", str(file), "--join", target.addresses[0], name="careless"
    )
    assert await careless.exit_code(REFUSED_SECONDS) == 2
    assert "chmod 600" in complaint(careless)


async def test_closed_mesh_is_not_joined_without_its_secret(shared, guests):
    node = provider_with(guests, "--join", join_of(shared).addresses[0])
    assert await node.exit_code(REFUSED_SECONDS) == 2
    assert "secret" in complaint(node)


def damaged(join: str) -> dict[str, str]:
    """Join strings as they come out of a bad copy; one for each kind of damage."""
    raw = bytearray(base64.urlsafe_b64decode(join.removeprefix("aimo:") + "=="))
    raw[len(raw) // 2] ^= 1
    flipped = "aimo:" + base64.urlsafe_b64encode(raw).decode().rstrip("=")
    return {
        "cut off": join[: len(join) // 2],
        "one bit": flipped,
        "no base64": join[:-4] + "!!!!",
        "nothing": "aimo:",
        "something else": "hello",
        "no peer": "/ip4/127.0.0.1/tcp/4001",
    }


async def test_damaged_join_string_is_refused_without_showing_the_secret(shared, guests):
    join = shared.relay.ready_line["join"]
    nodes = {
        kind: provider_with(guests, "--join", text, name=f"damaged-{number}")
        for number, (kind, text) in enumerate(damaged(join).items())
    }
    for kind, node in nodes.items():
        assert await node.exit_code(REFUSED_SECONDS) == 2, kind
        assert join.removeprefix("aimo:")[20:40] not in node.log
        complaint(node)


async def test_address_of_one_peer_with_the_id_of_another_is_not_joined(shared, guests):
    """Somebody else answers there: that is no relay of ours, whatever it says."""
    target = join_of(shared)
    place = target.addresses[0].partition("/p2p/")[0]
    other = f"{place}/p2p/{shared.edge.peer_id}"
    node = provider_with(guests, "--join", format_join(JoinTarget((other,), target.secret)))
    real = provider_with(guests, "--join", shared.relay.ready_line["join"], name="real")
    await real.ready()
    assert not node.ready_line
    assert node.is_alive, "it keeps trying for half a minute"


async def test_secret_is_never_logged(shared, guests, tmp_path: Path):
    secret = join_of(shared).secret
    assert secret is not None
    join = shared.relay.ready_line["join"]
    node = provider_with(guests, "--join", join, "--log-level", "debug", name="talkative")
    await node.ready()
    assert (await ask(shared.port, "GET", "/v1/providers")).status == 200
    shown = node.log + node.output + shared.relay.log
    assert secret.hex() not in shown
    assert join not in shown
    assert repr(secret)[2:20] not in shown


async def test_relay_that_cannot_be_reached_is_given_up_after_half_a_minute(hopeless):
    """It was started with the session, so that its half minute runs beside the other tests."""
    node, started = hopeless
    left = JOIN_SECONDS - (time.monotonic() - started)
    assert node.is_alive or left <= 0
    assert await node.exit_code(max(0.0, left) + 5) == 3
    assert "join" in complaint(node)

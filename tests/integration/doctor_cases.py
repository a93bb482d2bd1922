"""What the doctor's tests share: a healthy machine, a subject, a relay that says anything."""

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import trio

from aimo_node.assembly.doctor.check import Subject
from aimo_node.assembly.doctor.checkup import CHECKS
from aimo_node.assembly.doctor.examination import examine
from aimo_node.assembly.doctor.finding import Finding, Layer, Verdict
from aimo_node.assembly.doctor.machine import DiskSpace, Machine
from aimo_node.config.loading import LoadedSettings
from aimo_node.config.settings import (
    EdgeSettings,
    MeshSettings,
    NodeSettings,
    ProviderSettings,
    Settings,
)
from aimo_node.domain.ids import Role
from aimo_node.domain.join import JoinTarget, format_join
from aimo_node.mesh.host import LINK_PROTOCOL, HostLimits, MeshHost
from aimo_node.mesh.identity import KeyPair
from aimo_node.mesh.network import MeshNetwork
from aimo_node.protocol.handshake import Admission

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
LOCK_FILE = "lock"
OPEN_FILES = 8_192
SECRET = bytes(range(32))
STRANGER = KeyPair.from_seed(b"s" * 32).peer_id
EXAMINATION_SECONDS = 25.0
"""The doctor promises twenty; the rest is for this machine."""

SOUND = {
    "clock_is_kept": lambda: True,
    "disk_space": lambda _folder: DiskSpace(50 << 30),
    "open_files_max": lambda: 1 << 20,
}
"""What a machine without faults answers, however this one is."""


def machine(**faults) -> Machine:
    """A healthy machine but for `faults`."""
    return Machine(**{**SOUND, **faults})


def subject(state: Path, *, roles: Role | None = None, faults=None, **sections) -> Subject:
    """A node with these settings, run by nobody unless the test does."""
    sections.setdefault("mesh", MeshSettings(listen=(LOOPBACK,)))
    sections.setdefault("edge", EdgeSettings(http="127.0.0.1:0"))
    settings = Settings(node=NodeSettings(state=state), **sections)
    loaded = LoadedSettings(settings, {}, None)
    return Subject(lambda: loaded, LOCK_FILE, OPEN_FILES, roles, machine(**(faults or {})))


def joining(*addresses: str, secret: bytes | None = SECRET, **more) -> MeshSettings:
    """The mesh section of a node that joins there."""
    join = format_join(JoinTarget(addresses, secret))
    return MeshSettings(join=(join,), listen=(LOOPBACK,), **more)


def provider(engine: str, **options) -> ProviderSettings:
    """The section of a provider with one engine."""
    return ProviderSettings(engine=engine, **options)


async def findings_of(patient: Subject) -> list[Finding]:
    """The whole examination; what is told must be what is returned."""
    told: list[Finding] = []
    with trio.fail_after(EXAMINATION_SECONDS):
        findings = await examine(patient, CHECKS, told.append)
    assert told == findings
    assert {finding.check for finding in findings} == {check.name for check in CHECKS}
    return findings


async def the_problem_of(patient: Subject) -> Finding:
    """The one thing that is wrong; a second problem would be a wrong diagnosis."""
    bad = [one for one in await findings_of(patient) if one.verdict is Verdict.PROBLEM]
    assert len(bad) == 1, bad
    assert bad[0].do
    return bad[0]


async def expect(patient: Subject, layer: Layer, seen: str, do: str) -> Finding:
    """Assert that exactly this layer is blamed, for that reason and with that advice."""
    found = await the_problem_of(patient)
    assert found.layer is layer, found
    assert seen in found.seen, found
    assert do in found.do, found
    return found


@contextlib.asynccontextmanager
async def relay(
    secret: bytes | None = SECRET,
    *,
    identity: KeyPair | None = None,
    protocol: str = LINK_PROTOCOL,
    **hello,
) -> AsyncIterator[str]:
    """A relay's links without its directory; its address."""
    identity = identity or KeyPair.from_seed(os.urandom(32))
    admission = Admission(identity.peer_id, secret, Role.RELAY, agent="aimo/relay", **hello)
    network = MeshNetwork(admission)
    host = MeshHost(
        identity, [LOOPBACK], limits=HostLimits(), protocol=protocol, on_stream=network.accept
    )
    async with host, trio.open_nursery() as nursery:
        nursery.start_soon(network.run, host)
        await network.running.wait()
        yield host.addresses()[0]
        nursery.cancel_scope.cancel()


@contextlib.contextmanager
def listening(backlog: int = 8) -> Iterator[socket.socket]:
    """A socket that listens on loopback."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(backlog)
        yield listener


@contextlib.contextmanager
def dropping_port() -> Iterator[int]:
    """A port whose connection attempts are dropped, as a firewall does: its queue is full."""
    with listening(0) as listener, contextlib.ExitStack() as stack:
        port = listener.getsockname()[1]
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        yield port


def relay_at(port: int, host: str = "/ip4/127.0.0.1") -> str:
    """An address of a relay that is not what it should be."""
    return f"{host}/tcp/{port}/p2p/{STRANGER}"


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

"""The doctor at nodes that run: a healthy mesh is all right, a node that lost its relay is not."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import trio

from aimo_node import __version__
from aimo_node.assembly.control_socket import ControlSocket
from aimo_node.assembly.doctor.check import Subject
from aimo_node.assembly.doctor.finding import Layer, Verdict
from aimo_node.assembly.node import run_node
from aimo_node.assembly.node_status import NODE_STATUS
from aimo_node.cli.folders import claim_folder
from aimo_node.config.settings import EdgeSettings, MeshSettings
from aimo_node.domain.ids import Role
from aimo_node.domain.ready import ReadyLine
from tests.integration.doctor_cases import (
    LOOPBACK,
    expect,
    findings_of,
    joining,
    provider,
    relay,
    subject,
)

READY_SECONDS = 20.0


@dataclass
class Running:
    """A node in this process, and the doctor's view of it."""

    patient: Subject
    ready: ReadyLine
    stop: trio.Event


@contextlib.asynccontextmanager
async def running(patient: Subject, roles: Role) -> AsyncIterator[Running]:
    """A node as the command line runs it: its folder is claimed."""
    settings = patient.load().settings.for_roles(roles)
    stop, is_ready = trio.Event(), trio.Event()
    lines: list[ReadyLine] = []

    def on_ready(line: ReadyLine) -> None:
        lines.append(line)
        is_ready.set()

    async def run() -> None:
        await run_node(settings, roles, stop=stop, on_ready=on_ready)

    with claim_folder(settings.node.state):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            with trio.fail_after(READY_SECONDS):
                await is_ready.wait()
            yield Running(patient, lines[0], stop)
            stop.set()


async def test_a_healthy_mesh_is_all_right(tmp_path) -> None:
    relay_mesh = MeshSettings(listen=(LOOPBACK,))
    hub = subject(tmp_path / "relay", mesh=relay_mesh, edge=EdgeSettings(http="off"))
    async with running(hub, Role.RELAY) as first:
        mesh = MeshSettings(join=(first.ready.join,), listen=(LOOPBACK,))
        edge = subject(tmp_path / "edge", mesh=mesh)
        serving = subject(
            tmp_path / "provider",
            mesh=mesh,
            provider=provider("echo", model="echo"),
            edge=EdgeSettings(http="off"),
        )
        async with running(edge, Role.EDGE), running(serving, Role.PROVIDER):
            for patient, roles in ((edge, "edge"), (serving, "provider"), (hub, "relay")):
                findings = await findings_of(patient)
                told = {one.check: one for one in findings}
                bad = [one for one in findings if one.verdict is not Verdict.OK]
                alone = ["nat"] if patient is hub else []  # nobody there to see it
                assert [one.check for one in bad] == alone, bad
                assert f"runs as {roles}, ready" in told["node"].seen
                if patient is not hub:
                    assert "is linked to" in told["membership"].seen
            assert (
                "running, serves echo"
                in {one.check: one.seen for one in await findings_of(serving)}["engine"]
            )


async def test_the_doctor_does_not_take_a_running_nodes_place(tmp_path) -> None:
    """It meets the relay as somebody else: a relay keeps one link per peer id."""
    async with relay() as address:
        edge = subject(tmp_path, mesh=joining(address))
        async with running(edge, Role.EDGE):
            for _ in range(2):
                findings = await findings_of(edge)
                told = {one.check: one.seen for one in findings}
                assert "1 links open" in told["node"]
                assert "is linked to" in told["membership"]


async def test_a_node_without_the_doctors_flags_tells_its_relays_itself(tmp_path) -> None:
    async with relay() as address, running(subject(tmp_path, mesh=joining(address)), Role.EDGE):
        findings = await findings_of(subject(tmp_path))
    told = {one.check: one for one in findings}
    assert "answers at" in told["reach"].seen
    assert "the running node has what it needs" in told["proof"].seen
    assert "is linked to" in told["membership"].seen
    assert {one.verdict for one in findings} == {Verdict.OK}, findings


async def test_a_running_node_that_lost_its_relay_is_named(tmp_path) -> None:
    end, ended = trio.Event(), trio.Event()

    async def live(task_status) -> None:
        async with relay() as address:
            task_status.started(address)
            await end.wait()
        ended.set()

    async with trio.open_nursery() as nursery:
        address = await nursery.start(live)
        async with running(subject(tmp_path, mesh=joining(address)), Role.EDGE):
            end.set()
            await ended.wait()
            await expect(subject(tmp_path), Layer.RELAY, "refused", "start the relay")


async def test_another_node_in_the_same_folder_is_named(tmp_path) -> None:
    hub = subject(tmp_path, edge=EdgeSettings(http="off"))
    async with running(hub, Role.RELAY):
        second = subject(tmp_path, roles=Role.EDGE)
        found = await expect(second, Layer.NODE, "runs as relay", "--state")
        assert "no edge can use that folder" in found.seen


async def test_a_running_engine_that_failed_is_named(tmp_path) -> None:
    """The doctor asks the node and looks at no engine itself: it might take the node's memory."""
    state = {"label": "llama", "state": "error", "detail": "it died five times", "offered": []}

    async def status(_request: object) -> dict[str, object]:
        listing: dict[str, object] = {"listen": [], "http": None, "relays": [], "links_open": 0}
        who = {"version": __version__, "roles": ["provider"], "ready": True}
        return {**who, **listing, "engines": [state]}

    patient = subject(tmp_path, provider=provider("llama", model="no/such/file.gguf"))
    with claim_folder(tmp_path):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ControlSocket(tmp_path, {NODE_STATUS: status}).run)
            await expect(patient, Layer.ENGINE, "llama: error; it died five times", "mend")
            nursery.cancel_scope.cancel()


async def test_an_older_node_is_a_warning(tmp_path) -> None:
    with claim_folder(tmp_path):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ControlSocket(tmp_path, {}).run)
            findings = await findings_of(subject(tmp_path))
            nursery.cancel_scope.cancel()
    told = {one.check: one for one in findings}["node"]
    assert (told.verdict, told.layer) == (Verdict.WARNING, Layer.VERSION)
    assert "restart" in told.do

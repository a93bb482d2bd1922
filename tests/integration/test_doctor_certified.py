"""The doctor in a mesh with an authority: with an invite, as a member, and with neither."""

from functools import partial
from pathlib import Path

import trio

from aimo_node.assembly.control_socket import ask_node
from aimo_node.assembly.doctor.finding import Layer, Verdict
from aimo_node.config.settings import EdgeSettings, MeshSettings
from aimo_node.domain.ids import Role
from tests.integration.doctor_cases import LOOPBACK, expect, findings_of, subject
from tests.integration.test_doctor_mesh import running

ASK = {"command": "members.invite", "roles": ["edge"], "expires_seconds": 60, "uses": 1}


async def test_a_newcomer_becomes_a_member_and_the_doctor_can_tell(tmp_path: Path) -> None:
    closed = MeshSettings(listen=(LOOPBACK,), authority=True)
    hub = subject(tmp_path / "relay", mesh=closed, edge=EdgeSettings(http="off"))
    async with running(hub, Role.RELAY) as first:
        answer = await trio.to_thread.run_sync(partial(ask_node, tmp_path / "relay", ASK, 5.0))
        mesh = MeshSettings(join=(answer["invite"],), listen=(LOOPBACK,))
        edge = subject(tmp_path / "edge", mesh=mesh)
        told = {one.check: one for one in await findings_of(edge)}
        assert "the invite is redeemed at the first start" in told["secret"].seen
        assert told["membership"].verdict is Verdict.SKIPPED

        async with running(edge, Role.EDGE):
            told = {one.check: one for one in await findings_of(edge)}
            assert "is linked to" in told["membership"].seen
        told = {one.check: one for one in await findings_of(edge)}
        assert "certificate is here" in told["secret"].seen
        assert "lets this node in" in told["membership"].seen

        told = {one.check: one for one in await findings_of(hub)}
        assert "it decides who is a member" in told["secret"].seen

        without = MeshSettings(join=(first.ready.join,), listen=(LOOPBACK,))
        patient = subject(tmp_path / "other", mesh=without)
        await expect(patient, Layer.MEMBERSHIP, "neither certificate nor invite", "aimo invite")

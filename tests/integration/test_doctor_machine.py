"""Faults of the machine and of the node's own files: the doctor names the layer and the fix."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from aimo_node.assembly.control_socket import address_of
from aimo_node.assembly.doctor.check import Subject
from aimo_node.assembly.doctor.finding import Layer, Verdict
from aimo_node.assembly.doctor.machine import DiskSpace, Machine
from aimo_node.assembly.doctor.running_node import NodeSeen, judge_node
from aimo_node.config.layers import Layer as SettingsLayer
from aimo_node.config.loading import load_settings
from aimo_node.config.settings import EdgeSettings, MeshSettings
from aimo_node.domain.ids import Role
from aimo_node.domain.join import JoinTarget, format_join
from aimo_node.mesh.identity import load_identity
from tests.integration.doctor_cases import (
    LOCK_FILE,
    LOOPBACK,
    OPEN_FILES,
    SECRET,
    expect,
    findings_of,
    free_port,
    joining,
    listening,
    machine,
    provider,
    relay_at,
    subject,
)


def from_file(path: Path, text: str) -> Subject:
    path.write_text(text)

    def load():
        return load_settings(SettingsLayer(), environ={}, file=path)

    return Subject(load, LOCK_FILE, OPEN_FILES, None, machine())


async def test_an_unknown_key_is_the_configurations_fault(tmp_path) -> None:
    patient = from_file(tmp_path / "aimo.toml", f'[node]\nstat = "{tmp_path}"\n')
    await expect(patient, Layer.CONFIG, "did you mean 'node.state'", "aimo config show")


async def test_a_join_string_that_was_cut_off_is_the_configurations_fault(tmp_path) -> None:
    whole = format_join(JoinTarget((relay_at(4001),), SECRET))
    patient = from_file(
        tmp_path / "aimo.toml",
        f'[node]\nstate = "{tmp_path}"\n[mesh]\njoin = ["{whole[:-8]}"]\n',
    )
    found = await expect(patient, Layer.CONFIG, "cut off", "mend")
    assert whole[:40] not in found.seen, "the secret is in it"


async def test_a_join_file_that_is_not_there_is_the_configurations_fault(tmp_path) -> None:
    mesh = MeshSettings(join=(f"@{tmp_path}/join",), listen=(LOOPBACK,))
    await expect(subject(tmp_path, mesh=mesh), Layer.CONFIG, "no join string", "mend")


async def test_what_needs_the_configuration_is_skipped_without_it(tmp_path) -> None:
    findings = await findings_of(from_file(tmp_path / "aimo.toml", "[node"))
    skipped = {one.check for one in findings if one.verdict is Verdict.SKIPPED}
    assert {"state", "dns", "reach", "membership", "engine", "clock"} <= skipped
    told = {one.check: one.verdict for one in findings}
    assert told["version"] is told["files"] is Verdict.OK
    assert all("config has a problem" in one.seen for one in findings if one.check == "state")


async def test_an_old_python_is_named(tmp_path) -> None:
    patient = subject(tmp_path, faults={"python": (3, 9, 2)})
    await expect(patient, Layer.VERSION, "Python 3.9.2", "install Python 3.11")


@pytest.mark.parametrize("version", ["0.9.0", None])
async def test_another_libp2p_is_named(tmp_path, version) -> None:
    patient = subject(tmp_path, faults={"version_of": lambda _package: version})
    await expect(patient, Layer.VERSION, "libp2p", "pip install libp2p==0.8.1")


async def test_a_low_limit_of_open_files_is_named(tmp_path) -> None:
    patient = subject(tmp_path, faults={"open_files_max": lambda: 256})
    await expect(patient, Layer.LIMITS, "at most 256", "LimitNOFILE")


async def test_a_limit_that_is_only_tight_is_a_warning(tmp_path) -> None:
    findings = await findings_of(subject(tmp_path, faults={"open_files_max": lambda: 4096}))
    assert [one.check for one in findings if one.verdict is Verdict.WARNING] == ["files"]


async def test_a_file_in_the_place_of_the_state_folder_is_named(tmp_path) -> None:
    (tmp_path / "state").write_text("")
    patient = subject(tmp_path / "state")
    await expect(patient, Layer.STATE, "is not a folder", "--state")


async def test_a_state_folder_that_cannot_be_written_is_named() -> None:
    """Not even root makes a file there."""
    await expect(subject(Path("/proc/aimo")), Layer.STATE, "cannot be written", "chown")


async def test_looking_leaves_no_trace(tmp_path) -> None:
    await findings_of(subject(tmp_path / "a" / "b", provider=provider("echo", model="echo")))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("space", "seen"),
    [(DiskSpace(1 << 20), "1 MB free"), (DiskSpace(1 << 40, files_free=3), "3 more files")],
)
async def test_a_full_disk_is_named(tmp_path, space, seen) -> None:
    patient = subject(tmp_path, faults={"disk_space": lambda _folder: space})
    await expect(patient, Layer.DISK, seen, "free some room")


@pytest.fixture
def full_disk(tmp_path):
    """A tiny file system without any room left."""
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    tried = mount and subprocess.run([mount, *options], check=False, capture_output=True)
    if not tried or tried.returncode:
        pytest.skip("mounting a file system takes more rights")
    try:
        (tmp_path / "big").write_bytes(b"\0" * 65_536)
        yield tmp_path
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


async def test_a_disk_that_is_really_full_is_named(full_disk) -> None:
    patient = subject(full_disk, faults={"disk_space": Machine().disk_space})
    bad = [one for one in await findings_of(patient) if one.verdict is Verdict.PROBLEM]
    assert {one.layer for one in bad} == {Layer.DISK}
    assert any("no space left" in one.seen for one in bad)


@pytest.fixture
def held(tmp_path):
    """A state folder that somebody holds."""
    with (tmp_path / LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield tmp_path


async def test_a_node_that_does_not_answer_is_named(held) -> None:
    """As one that hangs or was stopped: its socket takes connections, nobody reads them."""
    with socket.socket(socket.AF_UNIX) as stuck:
        stuck.bind(address_of(held))
        stuck.listen(1)
        with listening() as its_port:
            edge = EdgeSettings(http=f"127.0.0.1:{its_port.getsockname()[1]}")
            found = await expect(
                subject(held, edge=edge), Layer.NODE, "does not answer", "restart it"
            )
    assert str(os.getpid()) in found.seen


async def test_a_node_without_control_socket_is_named(held) -> None:
    await expect(subject(held), Layer.NODE, "does not answer", f"kill -9 {os.getpid()}")


async def test_a_lock_that_nobody_holds_is_no_node(tmp_path) -> None:
    (tmp_path / LOCK_FILE).write_text("1\n")
    findings = await findings_of(subject(tmp_path))
    assert "none runs" in next(one.seen for one in findings if one.check == "node")


@pytest.fixture
def identity(tmp_path):
    """The key of a node that has run before."""
    path = tmp_path / "identity.pem"
    load_identity(path)
    return path


async def test_an_identity_that_others_may_read_is_named(identity) -> None:
    identity.chmod(0o644)
    found = await expect(subject(identity.parent), Layer.IDENTITY, "mode 0644", "chmod 600")
    assert str(identity) in found.do


async def test_a_damaged_identity_is_named(identity) -> None:
    identity.write_bytes(identity.read_bytes()[:40])
    await expect(subject(identity.parent), Layer.IDENTITY, "does not hold", "backup")


async def test_an_identity_of_another_user_is_named(identity) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    os.chown(identity, 12_345, -1)
    await expect(subject(identity.parent), Layer.IDENTITY, "user 12345", "chown 0 ")


async def test_a_missing_secret_is_membership(tmp_path) -> None:
    mesh = MeshSettings(join=(relay_at(free_port()),), listen=(LOOPBACK,))
    findings = await findings_of(subject(tmp_path, mesh=mesh))
    told = {one.check: one for one in findings}
    assert told["proof"].verdict is Verdict.PROBLEM
    assert told["proof"].layer is Layer.MEMBERSHIP
    assert "wants its secret" in told["proof"].seen


async def test_a_secret_file_that_others_may_read_is_membership(tmp_path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("00" * 32)
    secret.chmod(0o644)
    mesh = MeshSettings(secret_file=secret, listen=(LOOPBACK,))
    await expect(subject(tmp_path, mesh=mesh), Layer.MEMBERSHIP, "chmod 600", "0600")


async def test_a_port_that_is_taken_is_named(tmp_path) -> None:
    with listening() as other:
        port = other.getsockname()[1]
        mesh = MeshSettings(listen=(f"/ip4/127.0.0.1/tcp/{port}",))
        found = await expect(subject(tmp_path, mesh=mesh), Layer.PORT, "in use", "--listen")
    assert str(port) in found.do


async def test_an_address_of_another_machine_is_named(tmp_path) -> None:
    mesh = MeshSettings(listen=("/ip4/192.0.2.1/tcp/0",))
    await expect(subject(tmp_path, mesh=mesh), Layer.PORT, "192.0.2.1", "no interface")


async def test_a_listen_address_that_is_not_tcp_is_named(tmp_path) -> None:
    mesh = MeshSettings(listen=("/ip4/127.0.0.1/udp/4001/quic-v1",))
    await expect(subject(tmp_path, mesh=mesh), Layer.PORT, "no TCP address", "--listen")


async def test_an_http_port_that_is_taken_is_named(tmp_path) -> None:
    with listening() as other:
        edge = EdgeSettings(http=f"127.0.0.1:{other.getsockname()[1]}")
        await expect(subject(tmp_path, edge=edge), Layer.PORT, "in use", "--http")


async def test_keys_of_consumers_that_others_may_read_are_named(tmp_path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-key-of-a-consumer\n")
    keys.chmod(0o644)
    edge = EdgeSettings(http="127.0.0.1:0", client_keys_file=keys)
    await expect(subject(tmp_path, edge=edge), Layer.AUTH, "chmod 600", "--client-keys-file")


async def test_a_certificate_that_is_none_is_named(tmp_path) -> None:
    pem = tmp_path / "cert.pem"
    pem.write_text("nothing")
    edge = EdgeSettings(http="127.0.0.1:0", tls_cert=pem, tls_key=pem)
    await expect(subject(tmp_path, edge=edge), Layer.AUTH, "no certificate", "--tls-cert")


def test_who_may_not_look_is_told_whom_to_be(tmp_path) -> None:
    (found,) = judge_node(NodeSeen(tmp_path, is_foreign=True))
    assert found.verdict is Verdict.WARNING
    assert "sudo -u" in found.do


async def test_a_clock_that_was_set_back_is_a_warning(identity) -> None:
    os.utime(identity, (4e9, 4e9))
    findings = await findings_of(subject(identity.parent))
    told = next(one for one in findings if one.check == "clock")
    assert (told.verdict, told.layer) == (Verdict.WARNING, Layer.CLOCK)
    assert "set back" in told.seen


async def test_a_clock_that_nothing_keeps_is_a_warning(tmp_path) -> None:
    findings = await findings_of(subject(tmp_path, faults={"clock_is_kept": lambda: False}))
    told = next(one for one in findings if one.check == "clock")
    assert told.verdict is Verdict.WARNING
    assert "NTP" in told.do


async def test_a_role_without_what_it_needs_is_the_configurations_fault(tmp_path) -> None:
    patient = subject(tmp_path, roles=Role.PROVIDER, mesh=joining(relay_at(1)))
    await expect(patient, Layer.CONFIG, "provider.engine", "mend")

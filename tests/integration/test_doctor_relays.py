"""Faults on the way to a relay and at it: the doctor names the layer and the fix."""

from __future__ import annotations

import contextlib
import time

import pytest
import trio

from aimo_node.assembly.doctor.finding import Layer, Verdict
from aimo_node.assembly.doctor.nat import Views, judge_views
from aimo_node.config.settings import MeshSettings
from aimo_node.mesh.identity import KeyPair
from aimo_node.mesh.probes.meeting import Sighting
from tests.integration.doctor_cases import (
    LOOPBACK,
    SECRET,
    STRANGER,
    dropping_port,
    expect,
    findings_of,
    free_port,
    joining,
    listening,
    relay,
    relay_at,
    subject,
)


def told_by(findings, check):
    (found,) = [one for one in findings if one.check == check]
    return found


async def test_a_relay_that_lets_us_in_is_all_right(tmp_path) -> None:
    async with relay() as address:
        findings = await findings_of(subject(tmp_path, mesh=joining(address)))
    assert {one.verdict for one in findings} == {Verdict.OK}, findings
    assert "lets this node in" in told_by(findings, "membership").seen
    assert "none: relays see" in told_by(findings, "nat").seen


async def test_a_name_that_does_not_resolve_is_dns(tmp_path) -> None:
    mesh = joining(relay_at(4001, "/dns4/relay.invalid"))
    found = await expect(subject(tmp_path, mesh=mesh), Layer.DNS, "relay.invalid", "name")
    assert "no address" in found.seen
    findings = await findings_of(subject(tmp_path, mesh=mesh))
    assert "dns has a problem" in told_by(findings, "reach").seen


async def test_a_lost_name_of_a_relay_with_other_addresses_is_a_warning(tmp_path) -> None:
    async with relay() as address:
        peer = address.rpartition("/")[2]
        mesh = joining(f"/dns4/relay.invalid/tcp/1/p2p/{peer}", address)
        findings = await findings_of(subject(tmp_path, mesh=mesh))
    assert told_by(findings, "dns").verdict is Verdict.WARNING
    assert told_by(findings, "membership").verdict is Verdict.OK


async def test_a_closed_port_is_the_relays(tmp_path) -> None:
    mesh = joining(relay_at(free_port()))
    await expect(subject(tmp_path, mesh=mesh), Layer.RELAY, "refused", "start the relay")


async def test_a_filtered_port_is_the_relays_and_a_firewalls(tmp_path) -> None:
    with dropping_port() as port:
        mesh = joining(relay_at(port))
        await expect(subject(tmp_path, mesh=mesh), Layer.RELAY, "no answer", "firewall")


async def test_an_address_without_a_route_is_the_relays(tmp_path) -> None:
    """No TCP connection leads to the broadcast address, whatever networks there are."""
    mesh = joining(relay_at(4001, "/ip4/255.255.255.255"))
    await expect(subject(tmp_path, mesh=mesh), Layer.RELAY, "unreachable", "a route to")


async def test_an_address_that_is_not_tcp_is_the_relays(tmp_path) -> None:
    mesh = joining(f"/ip4/127.0.0.1/udp/4001/quic-v1/p2p/{STRANGER}")
    await expect(subject(tmp_path, mesh=mesh), Layer.RELAY, "not a plain TCP", "join by")


async def answer_with(text: bytes, listener, gone: trio.Event) -> None:
    sockets = trio.SocketListener(trio.socket.from_stdlib_socket(listener))

    async def serve(stream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.receive_some()
            await stream.send_all(text)
            await stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [sockets])
        await gone.wait()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP server answers (HTTP/1.1 400"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "another program answers (SSH-2.0"),
        (b"", "says nothing"),
    ],
)
async def test_another_program_at_the_relays_port_is_named(tmp_path, text, seen) -> None:
    with listening() as listener:
        listener.setblocking(False)
        gone = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_with, text, listener, gone)
            mesh = joining(relay_at(listener.getsockname()[1]))
            await expect(subject(tmp_path, mesh=mesh), Layer.RELAY, seen, "libp2p port")
            gone.set()


async def test_a_listener_that_never_accepts_says_nothing(tmp_path) -> None:
    with listening() as listener:
        mesh = joining(relay_at(listener.getsockname()[1]))
        await expect(subject(tmp_path, mesh=mesh), Layer.RELAY, "says nothing", "hangs: restart")


async def test_a_relay_with_a_new_identity_is_named(tmp_path) -> None:
    async with relay() as address:
        mesh = joining(f"{address.rpartition('/')[0]}/{STRANGER}")
        found = await expect(subject(tmp_path, mesh=mesh), Layer.RELAY, "another node", "new join")
        assert STRANGER in found.seen


async def test_libp2p_that_is_no_aimo_is_named(tmp_path) -> None:
    async with relay(protocol="/other/1") as address:
        mesh = joining(address)
        await expect(subject(tmp_path, mesh=mesh), Layer.RELAY, "breaks off", "an aimo relay")


async def test_a_wrong_secret_is_membership(tmp_path) -> None:
    async with relay() as address:
        mesh = joining(address, secret=b"w" * 32)
        await expect(subject(tmp_path, mesh=mesh), Layer.MEMBERSHIP, "another mesh", "join string")


async def test_an_open_mesh_is_told_from_one_with_another_secret(tmp_path) -> None:
    async with relay(None) as address:
        mesh = joining(address)
        await expect(subject(tmp_path, mesh=mesh), Layer.MEMBERSHIP, "is open", "--open")


async def test_a_closed_mesh_is_told_from_one_with_another_secret(tmp_path) -> None:
    async with relay() as address:
        mesh = MeshSettings(join=(address,), open=True, listen=(LOOPBACK,))
        await expect(subject(tmp_path, mesh=mesh), Layer.MEMBERSHIP, "is closed", "secret")


async def test_another_version_of_the_wire_is_named(tmp_path) -> None:
    async with relay(versions=(7,)) as address:
        mesh = joining(address)
        found = await expect(subject(tmp_path, mesh=mesh), Layer.VERSION, "[7]", "same release")
        assert "aimo/relay" in found.seen


async def test_one_relay_of_two_is_blamed(tmp_path) -> None:
    async with relay() as address:
        mesh = joining(address, relay_at(free_port()))
        found = await expect(subject(tmp_path, mesh=mesh), Layer.RELAY, STRANGER, "start the relay")
        assert address.rpartition("/")[2] not in found.seen


async def test_a_clock_behind_the_relays_is_named(tmp_path) -> None:
    """The relay has signed its addresses at a time that has not come yet, by this clock."""
    async with relay() as address:
        faults = {"now": lambda: time.time_ns() / 1e9 - 3600}
        await expect(
            subject(tmp_path, mesh=joining(address), faults=faults),
            Layer.CLOCK,
            "at least 3",
            "NTP",
        )


HERE = ("192.168.1.7", 40000)


@pytest.mark.parametrize(
    ("observed", "verdict", "seen"),
    [
        ([], Verdict.SKIPPED, "no relay says"),
        ([HERE], Verdict.OK, "none: "),
        ([("198.51.100.4", 40000)], Verdict.OK, "with the same port"),
        ([("198.51.100.4", 61000)], Verdict.OK, "of unknown kind: "),
        ([("198.51.100.4", 61000)] * 2, Verdict.OK, "default (endpoint independent): "),
        ([("198.51.100.4", 61000), ("198.51.100.4", 61001)], Verdict.WARNING, "symmetric: "),
    ],
)
def test_the_kind_of_nat_follows_from_what_relays_see(observed, verdict, seen) -> None:
    (found,) = judge_views(Views(2, [Sighting(HERE, one) for one in observed]))
    assert (found.verdict, found.layer) == (verdict, Layer.NAT)
    assert seen in found.seen
    assert bool(found.do) == (
        verdict is Verdict.WARNING or "unknown" in seen or "same port" in seen
    )


def test_without_relays_nobody_knows_the_nat() -> None:
    (found,) = judge_views(Views(0, []))
    assert found.verdict is Verdict.SKIPPED


async def test_two_relays_see_the_same_local_port(tmp_path) -> None:
    """Else their views could not be compared, and every NAT would look symmetric."""
    from aimo_node.mesh.probes.probing import meet_relays
    from aimo_node.protocol.handshake import Admission

    identity = KeyPair.from_seed(b"d" * 32)
    async with relay() as one, relay() as other:
        relays = {address.rpartition("/")[2]: [address] for address in (one, other)}
        meetings = await meet_relays(identity, Admission(identity.peer_id, SECRET), relays)
    sightings = [meeting.sighting for meeting in meetings]
    assert len({sighting.local for sighting in sightings}) == 1
    assert [sighting.observed for sighting in sightings] == [sightings[0].local] * 2

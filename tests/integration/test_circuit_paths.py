"""Why a link is on a circuit, as both ends tell it; and relays that give no reservation."""

import socket

import pytest
import structlog
import trio

from aimo_node.dispatch.inference import ProviderView
from aimo_node.domain.ids import Role
from aimo_node.edge.native.providers import provider_view
from aimo_node.mesh.circuits import client
from aimo_node.mesh.circuits.hops import CircuitRelay
from aimo_node.mesh.circuits.quotas import CircuitLimits
from aimo_node.mesh.fixes.circuit_messages import HOP_PROTOCOL
from aimo_node.mesh.link_facts import facts_of
from aimo_node.testing.fake_door import fake_view
from tests.integration.circuit_parties import LOOPBACK, parties, triangle, until


async def test_both_ends_of_a_circuit_know_why_it_is_one():
    async with triangle() as (relay, provider, edge):
        link = await edge.network.connect(provider.peer)
        await until(lambda: provider.network.link(edge.peer) is not None)
        here, there = facts_of(link), provider.network.link_facts(edge.peer)
        through = f"through {relay.peer}"
        assert (here.path, here.relay, here.address) == ("circuit", relay.peer, "")
        assert here.reason == f"circuit {through}: no other address is known"
        assert (there.relay, there.reason) == (relay.peer, f"dialled us {through}")
        await until(lambda: link.round_trip_seconds is not None)
        direct = edge.network.link_facts(relay.peer)
        assert (direct.relay, direct.reason) == (None, "dialled")
        assert direct.address == relay.host.addresses()[0].partition("/p2p/")[0]
        assert relay.network.link_facts(edge.peer).reason == "dialled us"
        assert edge.network.links_by_path() == {"direct": 1, "circuit": 1, "local": 0}


async def test_a_direct_dial_that_failed_is_the_reason_for_the_circuit():
    """Its owner sees where it failed; a consumer of the edge does not see anybody's address."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        place = f"/ip4/127.0.0.1/tcp/{closed.getsockname()[1]}"
    async with triangle() as (relay, provider, edge):
        edge.network.remember(provider.peer, [place, *provider.addresses()])
        facts = facts_of(await edge.network.connect(provider.peer))
        start = f"circuit through {relay.peer}: direct dial failed: "
        assert facts.reason.startswith(f"{start}{place}: ")
        assert "refused" in facts.reason
        told = provider_view(view_with(facts))
        assert told["reason"].startswith(f"{start}its address: ")
        assert place not in str(told)


def view_with(facts) -> ProviderView:
    view = fake_view()
    return ProviderView(
        **{name: getattr(view, name) for name in ProviderView.__slots__ if name != "link"},
        link=facts,
    )


async def test_a_direct_dial_that_hangs_is_the_reason_for_the_circuit():
    silent = trio.socket.socket()
    await silent.bind(("127.0.0.1", 0))
    silent.listen()
    place = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}"
    async with triangle() as (_, provider, edge):
        edge.network.remember(provider.peer, [place, *provider.addresses()])
        link = await edge.network.connect(provider.peer)
        assert link.reason.endswith(": no direct answer in time")
    silent.close()


async def test_a_relay_that_is_full_is_asked_again_and_another_one_meanwhile(monkeypatch):
    monkeypatch.setattr(client, "RETRY_SECONDS", 0.05)
    full = CircuitLimits(reservations_max=1)
    async with parties() as start:
        first = await start("relay", Role.RELAY, listen=LOOPBACK, limits=full)
        second = await start("relay2", Role.RELAY, listen=LOOPBACK)
        holder = await start("holder", Role.PROVIDER, relays=[first])
        await holder.join(first)
        await holder.reserved(first)
        provider = await start("provider", Role.PROVIDER, relays=[first, second])
        with structlog.testing.capture_logs() as logs:
            await provider.join(first)
            await until(lambda: sum(one["event"] == "reservation.refused" for one in logs) >= 2)
        refusals = [one for one in logs if one["event"] == "reservation.refused"]
        assert {one["relay"] for one in refusals} == {first.peer}
        assert "refused" in refusals[0]["reason"]
        assert provider.addresses() == ()
        await provider.join(second)
        await provider.reserved(second)
        assert all(second.peer in address for address in provider.addresses())
        second.end()
        holder.end()
        await provider.reserved(first)


class Liar(CircuitRelay):
    """Answers who wants a reservation with `answer`, and never makes one."""

    answer = b""

    def start(self) -> None:
        self._host.serve_raw(HOP_PROTOCOL, self._lie)

    async def _lie(self, net_stream) -> None:
        stream = net_stream.muxed_stream
        await stream.read(100)
        if self.answer:
            await stream.write(self.answer)
        await trio.sleep_forever()


@pytest.mark.parametrize("answer", [b"", b"\xff" * 11, b"\x02\x08\x05", b"\x80\x80\x04"])
async def test_a_relay_that_answers_nonsense_or_nothing_costs_no_more_than_its_reservation(
    monkeypatch, answer
):
    """An honest one is used as if the other were not there."""
    monkeypatch.setattr(client, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(Liar, "answer", answer)
    async with parties() as start:
        liar = await start("relay", Role.RELAY, listen=LOOPBACK, relay_class=Liar)
        honest = await start("relay2", Role.RELAY, listen=LOOPBACK)
        provider = await start("provider", Role.PROVIDER, relays=[liar, honest])
        edge = await start("edge", Role.EDGE)
        await provider.join(liar, honest)
        await provider.reserved(honest)
        assert provider.circuits.relays == (honest.peer,)
        edge.network.remember(provider.peer, provider.addresses())
        assert len(await edge.ask(provider.peer, 3)) == 4
        assert edge.network.link_facts(provider.peer).relay == honest.peer
        assert provider.network.link(liar.peer) is not None, "the link itself is a good one"


async def test_a_reservation_outlives_its_time_by_being_renewed(monkeypatch):
    """The relay forgets it after a second; two seconds on, the provider is still reached."""
    monkeypatch.setattr("aimo_node.mesh.circuits.quotas.RESERVATION_SECONDS", 1.0)
    monkeypatch.setattr("aimo_node.mesh.circuits.hops.RESERVATION_SECONDS", 1.0)
    monkeypatch.setattr(client, "RENEW_SECONDS_MIN", 0.2)
    async with triangle() as (relay, provider, edge):
        made_until = relay.relay.book._expiries[provider.peer]
        await until(lambda: trio.current_time() > made_until + 1.0)
        assert (await edge.network.connect(provider.peer)).path == "circuit"

"""What a banned peer tries to keep of what it had."""

from __future__ import annotations

from pathlib import Path

import trio

from aimo_node.domain.ids import Endpoint, RequestId, Role
from aimo_node.ports.peer_network import OutgoingRequest
from tests.integration.certified_nodes import Mesh

BAN_SECONDS = 5.0


async def test_a_ban_also_ends_links_that_were_replaced_and_still_serve(tmp_path: Path) -> None:
    """Who links anew during a long answer would else be served to its end."""
    mesh = Mesh(tmp_path)
    provider, bad = mesh.node("provider", Role.PROVIDER), mesh.node("bad", Role.EDGE)

    async def serve(incoming) -> None:
        incoming.accept(b"")
        incoming.send_text("begun ")
        await trio.sleep_forever()

    provider.network._handler = serve
    async with mesh.relay.running(), provider.running(), bad.running():
        await mesh.relay.join(mesh.relay, b"")
        for node in (provider, bad):
            await node.join(mesh.relay, await mesh.invite())
        await provider.connect(mesh.relay)
        await bad.connect(provider)
        old = bad.network._links.pop(provider.peer)
        request = OutgoingRequest(
            RequestId(bytes(16)), Endpoint.CHAT, b"{}", stream=True, deadline_ms=60_000
        )
        assert await old.open_exchange(request).receive()
        await bad.connect(provider)
        assert bad.network.link(provider.peer) is not old
        assert not old.closed.is_set()
        await mesh.authority.set_ban(bad.peer, banned=True)
        await mesh.relay.members.tell_bans()
        with trio.fail_after(BAN_SECONDS):
            await old.closed.wait()

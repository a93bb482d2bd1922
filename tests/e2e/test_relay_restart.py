"""The relay dies and comes back: nobody has to be told, and running streams do not notice."""

import signal

import trio

from tests.e2e.http_client import ask, chat, echo_text, open_stream, stream_chat
from tests.e2e.mesh import until_known
from tests.e2e.node_process import NodeProcess, eventually

REJOIN_SECONDS = 15.0
"""The longest back-off is 5 s; the rest is the relay's own start on a busy machine."""
TOKENS = 400
DELAY_MS = 20


async def is_unready(node: NodeProcess) -> bool:
    return (await ask(node.port, "GET", "/readyz")).status == 503


async def test_killed_relay_is_rejoined_and_streams_do_not_notice(own_mesh):
    relay = own_mesh.relay()
    provider = own_mesh.provider("echo")
    edge = own_mesh.edge()
    for node in own_mesh.nodes:
        await node.ready()
    await until_known(edge, provider)
    async with open_stream(edge.port, chat("echo", max_tokens=TOKENS, delay_ms=DELAY_MS)) as stream:
        await stream.read_until_text()
        address = relay.ready_line["listen"][0].partition("/p2p/")[0]
        relay.kill()
        assert (await stream_chat(edge.port, "echo", max_tokens=2)).is_done
        returned = await own_mesh.relay(listen=address).ready()
        assert returned.peer_id == relay.peer_id
        assert returned.ready_line["join"] == relay.ready_line["join"]
        newcomer = own_mesh.provider("newcomer")
        await newcomer.ready(REJOIN_SECONDS)
        with trio.fail_after(REJOIN_SECONDS):
            await until_known(edge, newcomer, provider)
        await stream.read_to_the_end()
    assert (stream.text, stream.errors) == (echo_text("Hi", TOKENS), [])
    assert (await stream_chat(edge.port, "newcomer", max_tokens=2)).is_done
    assert (await ask(edge.port, "GET", "/readyz")).status == 200


async def test_relay_that_ends_in_order_is_rejoined_too(own_mesh):
    """Draining and closing is not the last word: the next relay with this identity is joined."""
    relay = own_mesh.relay()
    provider = own_mesh.provider("echo")
    edge = own_mesh.edge()
    for node in own_mesh.nodes:
        await node.ready()
    await until_known(edge, provider)
    address = relay.ready_line["listen"][0].partition("/p2p/")[0]
    relay.signal(signal.SIGTERM)
    assert await relay.exit_code() == 0
    assert (await ask(edge.port, "GET", "/readyz")).status == 200, "it has links that serve"
    assert (await stream_chat(edge.port, "echo", max_tokens=2)).is_done
    provider.kill()
    await eventually(lambda: is_unready(edge), 5, "an edge without any link calls itself ready")
    await own_mesh.relay(listen=address).ready()
    newcomer = own_mesh.provider("newcomer")
    with trio.fail_after(REJOIN_SECONDS):
        await until_known(edge, newcomer)
    assert (await ask(edge.port, "GET", "/readyz")).status == 200


async def test_provider_that_restarts_is_found_again(shared, guests):
    """Killed and started with the same state: the same peer id, at another port."""
    first = guests.provider("phoenix", name="phoenix")
    await until_known(shared.edge, first)
    peer = first.peer_id
    first.kill()
    second = guests.provider("phoenix", name="phoenix")
    await second.ready()
    assert second.peer_id == peer
    await until_known(shared.edge, second)
    answer = await stream_chat(shared.port, "phoenix", max_tokens=2)
    assert (answer.provider, answer.is_done) == (peer, True)

"""Three processes: a provider that cannot be dialled serves an edge through a relay's circuit."""

from tests.e2e.http_client import chat, echo_text, metric, open_stream, stream_chat
from tests.e2e.mesh import Mesh, providers_of, until_known
from tests.e2e.node_process import NodeProcess, eventually

STOP_SECONDS = 1.0
REHOME_SECONDS = 10.0
DIRECT_SECONDS = 20.0


def hidden_provider(mesh: Mesh, model: str, *joins: str) -> NodeProcess:
    """A provider that listens nowhere: nobody can dial it."""
    joins = joins or (f"@{mesh.join_file}",)
    flags = [part for join in joins for part in ("--join", join)]
    what = ("--engine", "echo", "--model", model, "--http", "127.0.0.1:0")
    return mesh.start(f"hidden-{model}", "provider", *what, "--listen", "off", *flags)


def hidden_edge(mesh: Mesh, *joins: str) -> NodeProcess:
    """An edge that listens nowhere: else a provider on a circuit would dial it, and be direct."""
    joins = joins or (f"@{mesh.join_file}",)
    flags = [part for join in joins for part in ("--join", join)]
    return mesh.start("hidden-edge", "edge", "--http", "127.0.0.1:0", "--listen", "off", *flags)


async def test_a_chat_streams_through_the_circuit_and_says_so(shared, guests):
    provider = hidden_provider(guests, "hidden")
    edge = await hidden_edge(guests).ready()
    await until_known(edge, provider, shared.provider)
    assert provider.ready_line["listen"] == []
    answer = await stream_chat(edge.port, "hidden", max_tokens=300)
    assert (answer.text, answer.is_done) == (echo_text("Hi", 300), True)
    assert answer.headers["x-aimo-path"] == "circuit"
    views = await providers_of(edge)
    assert views[provider.peer_id]["path"] == "circuit"
    assert views[shared.provider.peer_id]["path"] == "direct"


async def test_a_consumer_that_leaves_stops_generation_at_the_far_end(shared, guests):
    provider = hidden_provider(guests, "hidden-cancel")
    await until_known(shared.edge, provider)

    async def is_running(count: int) -> bool:
        return await metric(provider.port, "aimo_requests_running", role="provider") == count

    body = chat("hidden-cancel", max_tokens=10_000, delay_ms=20)
    async with open_stream(shared.port, body) as stream:
        await stream.read_until_text(3)
        await eventually(lambda: is_running(1), 5, "the request does not run", provider)
    await eventually(lambda: is_running(0), STOP_SECONDS, "it runs on", provider)


async def test_an_edge_that_can_be_dialled_is_dialled_by_who_cannot(shared, guests):
    provider = hidden_provider(guests, "hidden-dials")
    await until_known(shared.edge, provider)

    async def is_direct() -> bool:
        view = (await providers_of(shared.edge)).get(provider.peer_id)
        return view is not None and view["path"] == "direct"

    await eventually(is_direct, DIRECT_SECONDS, "it stays on the circuit", shared.edge, provider)
    answer = await stream_chat(shared.port, "hidden-dials", max_tokens=300)
    assert (answer.text, answer.is_done) == (echo_text("Hi", 300), True)
    assert answer.headers["x-aimo-path"] == "direct"


async def test_a_killed_relay_is_reported_and_replaced(own_mesh, tmp_path):
    first = own_mesh.relay()
    await first.ready()
    second_file = tmp_path / "second"
    second = own_mesh.start(
        "relay2", "relay", "--listen", "/ip4/127.0.0.1/tcp/0", "--join", f"@{own_mesh.join_file}",
        "--join-file", str(second_file),
    )  # fmt: skip
    await second.ready()
    joins = (f"@{own_mesh.join_file}", f"@{second_file}")
    provider = hidden_provider(own_mesh, "echo", *joins)
    edge = hidden_edge(own_mesh, *joins)
    await edge.ready()
    await until_known(edge, provider)
    relays = {first.peer_id: first, second.peer_id: second}
    async with open_stream(edge.port, chat("echo", max_tokens=10_000, delay_ms=20)) as stream:
        await stream.read_until_text(3)
        assert stream.headers["x-aimo-path"] == "circuit"
        carrier = next(relay for relay in relays.values() if "circuit.opened" in relay.log)
        carrier.kill()
        await stream.read_to_the_end()
    assert [error["code"] for error in stream.errors] == ["stream_interrupted"]
    assert not stream.is_done

    async def serves_again() -> bool:
        view = (await providers_of(edge)).get(provider.peer_id)
        return view is not None and view["path"] == "circuit"

    await eventually(serves_again, REHOME_SECONDS, "not reached again", edge, provider)
    answer = await stream_chat(edge.port, "echo", max_tokens=5)
    assert (answer.is_done, answer.headers["x-aimo-path"]) == (True, "circuit")
    assert "reservation.lost" in provider.log


async def test_a_lowered_limit_ends_a_stream_with_one_clean_error(own_mesh):
    relay = own_mesh.relay("--circuit-megabytes-max", "0.1")
    await relay.ready()
    provider = hidden_provider(own_mesh, "echo")
    edge = await hidden_edge(own_mesh).ready()
    await until_known(edge, provider)
    stream = await stream_chat(edge.port, "echo", max_tokens=100_000)
    assert [error["code"] for error in stream.errors] == ["stream_interrupted"]
    assert not stream.is_done
    assert echo_text("Hi", 100_000).startswith(stream.text)
    assert "circuit.cut_off" in relay.log
    await until_known(edge, provider)
    assert (await stream_chat(edge.port, "echo", max_tokens=5)).is_done


async def test_a_relay_that_listens_nowhere_is_refused(own_mesh):
    node = own_mesh.start("relay", "relay", "--listen", "off")
    assert await node.exit_code() == 2
    assert "a relay has to listen" in node.log

"""A port that somebody else has: one sentence with the fix, and an exit code."""

import socket
from collections.abc import Iterator

import pytest

from tests.e2e.mesh import LOOPBACK, Mesh


@pytest.fixture
def taken() -> Iterator[int]:
    """A port at which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("command", ["relay", "provider", "up"])
def test_a_libp2p_port_that_is_taken_is_named_with_the_flag(own_mesh: Mesh, taken, command):
    address = f"/ip4/127.0.0.1/tcp/{taken}"
    engine = () if command == "relay" else ("--engine", "llama")
    http = ("--http", "127.0.0.1:0") if command == "up" else ()
    node = own_mesh.start("late", command, "--listen", address, *engine, *http)
    assert node.wait_exit(30) == 2
    sentence = node.log.strip().splitlines()[-1]
    assert sentence.startswith(f"aimo: cannot listen on {address}: ")
    assert sentence.endswith("choose another address with --listen")
    assert not own_mesh.leftovers()


@pytest.mark.parametrize("command", ["relay", "provider", "up"])
def test_an_http_port_that_is_taken_is_named_with_the_flag(own_mesh: Mesh, taken, command):
    engine = () if command == "relay" else ("--engine", "echo")
    door = ("--listen", LOOPBACK, "--http", f"127.0.0.1:{taken}")
    node = own_mesh.start("late", command, *engine, *door)
    assert node.wait_exit(30) == 2
    sentence = node.log.strip().splitlines()[-1]
    assert sentence == (
        f"aimo: cannot listen on http 127.0.0.1:{taken}: Address already in use; choose another "
        "address with --http HOST:PORT"
    )
    assert not own_mesh.leftovers()

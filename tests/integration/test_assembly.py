"""A node put together in this process: what it tells others, how it ends, what stops its start."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from aimo_node.assembly.node import run_node
from aimo_node.config.settings import (
    EdgeSettings,
    MeshSettings,
    NodeSettings,
    ProviderSettings,
    Settings,
)
from aimo_node.domain.ids import Role
from aimo_node.domain.join import parse_join
from aimo_node.domain.ready import ReadyLine
from aimo_node.errors import ConfigError, EngineStartFailed, JoinFailed

LISTEN = ("/ip4/127.0.0.1/tcp/0",)


def settings(state: Path, roles: Role, **sections: object) -> Settings:
    made = Settings(
        node=NodeSettings(state=state),
        mesh=sections.get("mesh", MeshSettings(listen=LISTEN)),
        provider=sections.get("provider", ProviderSettings()),
        edge=sections.get("edge", EdgeSettings(http="127.0.0.1:0")),
    )
    return made.for_roles(roles)


async def start_and_stop(chosen: Settings, roles: Role) -> ReadyLine:
    """Run a node until it is ready, then tell it to stop."""
    stop, lines = trio.Event(), []

    def on_ready(line: ReadyLine) -> None:
        lines.append(line)
        stop.set()

    with trio.fail_after(20):
        await run_node(chosen, roles, stop=stop, on_ready=on_ready)
    assert len(lines) == 1
    return lines[0]


def causes(group: BaseException) -> list[BaseException]:
    if isinstance(group, BaseExceptionGroup):
        return [cause for inner in group.exceptions for cause in causes(inner)]
    return [group]


async def test_a_relay_tells_announced_addresses_before_those_it_listens_on(tmp_path) -> None:
    mesh = MeshSettings(listen=LISTEN, announce=("/dns4/relay.example/tcp/4001",))
    ready = await start_and_stop(settings(tmp_path, Role.RELAY, mesh=mesh), Role.RELAY)
    assert ready.join is not None
    target = parse_join(ready.join)
    assert target.addresses[0] == f"/dns4/relay.example/tcp/4001/p2p/{ready.peer_id}"
    assert target.addresses[1:] == ready.listen
    assert target.secret == bytes.fromhex((tmp_path / "mesh.secret").read_text())


async def test_a_relay_keeps_its_identity_and_secret_over_a_restart(tmp_path) -> None:
    chosen = settings(tmp_path, Role.RELAY)
    first = await start_and_stop(chosen, Role.RELAY)
    second = await start_and_stop(chosen, Role.RELAY)
    assert first.peer_id == second.peer_id
    assert first.join is not None
    assert second.join is not None
    assert parse_join(first.join).secret == parse_join(second.join).secret
    for name in ("identity.pem", "mesh.secret"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


async def test_an_open_relay_has_no_secret(tmp_path) -> None:
    mesh = MeshSettings(listen=LISTEN, open=True)
    ready = await start_and_stop(settings(tmp_path, Role.RELAY, mesh=mesh), Role.RELAY)
    assert ready.join is not None
    assert parse_join(ready.join).secret is None
    assert not (tmp_path / "mesh.secret").exists()


async def test_all_roles_in_one_process_serve_each_other(tmp_path) -> None:
    roles = Role.RELAY | Role.PROVIDER | Role.EDGE
    provider = ProviderSettings(engine="echo", model="echo")
    ready = await start_and_stop(settings(tmp_path, roles, provider=provider), roles)
    assert ready.models == ("echo",)
    assert ready.http is not None


async def test_a_member_without_the_secret_is_told_what_is_missing(tmp_path) -> None:
    relay = await start_and_stop(settings(tmp_path / "relay", Role.RELAY), Role.RELAY)
    mesh = MeshSettings(listen=LISTEN, join=(relay.listen[0],))
    with pytest.raises(ConfigError, match="wants its secret"):
        await start_and_stop(settings(tmp_path / "edge", Role.EDGE, mesh=mesh), Role.EDGE)


async def test_a_secret_that_others_may_read_is_refused(tmp_path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("00" * 32)
    secret.chmod(0o644)
    mesh = MeshSettings(listen=LISTEN, secret_file=secret)
    with pytest.raises(ConfigError, match="chmod 600"):
        await start_and_stop(settings(tmp_path / "relay", Role.RELAY, mesh=mesh), Role.RELAY)


async def test_a_wrong_secret_ends_the_start_at_once_and_says_so(tmp_path) -> None:
    ready, stop = trio.Event(), trio.Event()
    lines: list[ReadyLine] = []

    def on_ready(line: ReadyLine) -> None:
        lines.append(line)
        ready.set()

    async with trio.open_nursery() as nursery:

        async def relay() -> None:
            chosen = settings(tmp_path / "relay", Role.RELAY)
            await run_node(chosen, Role.RELAY, stop=stop, on_ready=on_ready)

        nursery.start_soon(relay)
        await ready.wait()
        secret = tmp_path / "secret"
        secret.touch(mode=0o600)
        secret.write_text("ab" * 32)
        mesh = MeshSettings(listen=LISTEN, join=(lines[0].listen[0],), secret_file=secret)
        with pytest.raises((JoinFailed, ExceptionGroup)) as caught:
            await start_and_stop(settings(tmp_path / "edge", Role.EDGE, mesh=mesh), Role.EDGE)
        found = causes(caught.value)
        assert [type(error) for error in found] == [JoinFailed]
        assert "another mesh" in str(found[0])
        stop.set()


async def test_an_engine_that_cannot_start_ends_the_node(tmp_path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF and nothing else")
    provider = ProviderSettings(engine="llama", model=str(broken))
    with pytest.raises((EngineStartFailed, ExceptionGroup)) as caught:
        await start_and_stop(settings(tmp_path, Role.PROVIDER, provider=provider), Role.PROVIDER)
    assert [type(error) for error in causes(caught.value)] == [EngineStartFailed]

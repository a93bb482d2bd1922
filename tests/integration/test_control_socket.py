"""The node's control socket: answers its owner, refuses nonsense, leaves nothing."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from aimo_node.assembly.control_socket import (
    CONNECTIONS_MAX,
    REQUEST_SECONDS,
    ControlSocket,
    address_of,
    ask_node,
)
from aimo_node.assembly.engine_commands import engine_commands
from aimo_node.dispatch.serving import ProviderService
from aimo_node.domain.ids import PeerId
from aimo_node.errors import ConfigError
from aimo_node.telemetry.metrics import NodeMetrics


async def echo(request: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"said": request["text"]}


async def fail(_request: Mapping[str, Any]) -> Mapping[str, Any]:
    raise ConfigError("no such engine")


async def ask(folder: Path, **request: Any) -> dict[str, Any]:
    return await trio.to_thread.run_sync(ask_node, folder, request, 10.0)


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def listening(folder: Path) -> None:
    while True:
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(address_of(folder)) == 0:
                return
        await trio.sleep(0.01)


async def test_a_command_is_answered(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ControlSocket(tmp_path, {"echo": echo, "fail": fail}).run)
        await listening(tmp_path)
        assert await ask(tmp_path, command="echo", text="höre") == {"said": "höre"}
        with pytest.raises(ConfigError, match="no such engine"):
            await ask(tmp_path, command="fail")
        with pytest.raises(ConfigError, match="does not know that command"):
            await ask(tmp_path, command="rm -rf")
        nursery.cancel_scope.cancel()
    with pytest.raises(ConfigError, match="no node runs with the state folder"):
        await ask(tmp_path, command="echo", text="")
    assert not files(tmp_path)


@pytest.mark.parametrize("line", [b"\n", b"[]\n", b"{", b"\xff\xfe\n", b'{"command": []}\n'])
async def test_nonsense_gets_an_answer_and_does_no_harm(tmp_path: Path, line: bytes) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ControlSocket(tmp_path, {"echo": echo}).run)
        await listening(tmp_path)
        async with await trio.open_unix_socket(address_of(tmp_path)) as stream:
            await stream.send_all(line)
            await stream.send_eof()
            answer = b"".join([data async for data in stream])
        assert "error" in json.loads(answer)
        assert await ask(tmp_path, command="echo", text="x") == {"said": "x"}
        nursery.cancel_scope.cancel()


async def test_who_says_nothing_is_left(tmp_path: Path, autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ControlSocket(tmp_path, {}).run)
        await trio.testing.wait_all_tasks_blocked()
        started = trio.current_time()
        async with await trio.open_unix_socket(address_of(tmp_path)) as stream:
            assert await stream.receive_some() == b""
        assert trio.current_time() - started == pytest.approx(REQUEST_SECONDS, abs=0.5)
        nursery.cancel_scope.cancel()


async def test_a_taken_name_does_not_stop_the_node(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as squatter:
        squatter.bind(address_of(tmp_path))
        with trio.fail_after(5):
            await ControlSocket(tmp_path, {}).run()


@pytest.mark.parametrize("label", [[], {}, 3, None, "", "../x", "\ud800"])
@pytest.mark.parametrize("command", ["engine.load", "engine.unload"])
async def test_a_nonsensical_label_is_refused(tmp_path: Path, command: str, label: object) -> None:
    service = ProviderService(PeerId("own"), NodeMetrics().provider)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ControlSocket(tmp_path, engine_commands(service)).run)
        await listening(tmp_path)
        request = json.dumps({"command": command, "label": label}).encode()
        async with await trio.open_unix_socket(address_of(tmp_path)) as stream:
            await stream.send_all(request + b"\n")
            answer = b"".join([data async for data in stream])
        assert "engine" in json.loads(answer)["error"]
        nursery.cancel_scope.cancel()


async def test_a_bug_in_a_command_is_an_answer_and_not_the_end_of_the_node(tmp_path: Path) -> None:
    async def buggy(_request: Mapping[str, Any]) -> Mapping[str, Any]:
        raise ZeroDivisionError

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ControlSocket(tmp_path, {"buggy": buggy, "echo": echo}).run)
        await listening(tmp_path)
        with pytest.raises(ConfigError, match="its log says why"):
            await ask(tmp_path, command="buggy")
        assert await ask(tmp_path, command="echo", text="x") == {"said": "x"}
        nursery.cancel_scope.cancel()


async def test_who_goes_away_is_not_waited_for_and_too_many_are_told(tmp_path: Path) -> None:
    """`aimo engine load` may take half an hour; its user presses Ctrl-C, again and again."""
    waiting = 0
    all_there, gone = trio.Event(), trio.Event()

    async def hang(_request: Mapping[str, Any]) -> Mapping[str, Any]:
        nonlocal waiting
        waiting += 1
        if waiting == CONNECTIONS_MAX:
            all_there.set()
        try:
            await trio.sleep_forever()
        finally:
            waiting -= 1
            if not waiting:
                gone.set()
        return {}

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ControlSocket(tmp_path, {"hang": hang, "echo": echo}).run)
        await listening(tmp_path)
        streams = []
        for _ in range(CONNECTIONS_MAX):
            streams.append(await trio.open_unix_socket(address_of(tmp_path)))
            await streams[-1].send_all(b'{"command": "hang"}\n')
        with trio.fail_after(10):
            await all_there.wait()
            with pytest.raises(ConfigError, match="busy with 16 commands"):
                await ask(tmp_path, command="echo", text="x")
            for stream in streams:
                await stream.aclose()
            await gone.wait()
            await trio.testing.wait_all_tasks_blocked()
            assert await ask(tmp_path, command="echo", text="x") == {"said": "x"}
        nursery.cancel_scope.cancel()


async def test_a_line_without_an_end_is_cut(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ControlSocket(tmp_path, {"echo": echo}).run)
        await listening(tmp_path)
        async with await trio.open_unix_socket(address_of(tmp_path)) as stream:
            with trio.fail_after(10), contextlib.suppress(trio.BrokenResourceError):
                while True:
                    await stream.send_all(b"x" * 65_536)
        assert await ask(tmp_path, command="echo", text="x") == {"said": "x"}
        nursery.cancel_scope.cancel()


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another user")
async def test_another_user_is_not_answered(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ControlSocket(tmp_path, {"echo": echo}).run)
        await listening(tmp_path)
        with socket.socket(socket.AF_UNIX) as stranger:
            os.seteuid(65_534)
            try:
                stranger.connect(address_of(tmp_path))
            finally:
                os.seteuid(0)
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(stranger.dup()))
        async with stream:
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(b'{"command": "echo", "text": "x"}\n')
                assert await stream.receive_some() == b""
        nursery.cancel_scope.cancel()


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another user")
async def test_root_believes_only_the_owner_of_the_state_folder(tmp_path: Path) -> None:
    """Anybody can take the name while no node runs, and answer with an invite of his own."""
    with socket.socket(socket.AF_UNIX) as squatter:
        os.seteuid(65_534)
        try:
            squatter.bind(address_of(tmp_path))
            squatter.listen()
        finally:
            os.seteuid(0)
        with pytest.raises(ConfigError, match="belongs to another user"):
            await ask(tmp_path, command="members.invite")
        os.chown(tmp_path, 65_534, 65_534)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_answer_once, squatter)
            assert await ask(tmp_path, command="members.invite") == {"said": "x"}


async def _answer_once(listener: socket.socket) -> None:
    """The first that says something: who was refused has left an empty connection."""
    asked = b""
    while not asked:
        connection, _ = await trio.to_thread.run_sync(listener.accept)
        with connection:
            asked = await trio.to_thread.run_sync(connection.recv, 1_000)
            if asked:
                connection.sendall(b'{"said": "x"}\n')

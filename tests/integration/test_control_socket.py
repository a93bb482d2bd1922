"""The node's control socket: answers its owner, refuses nonsense, leaves nothing."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from aimo_node.assembly.control_socket import (
    REQUEST_SECONDS,
    ControlSocket,
    address_of,
    ask_node,
)
from aimo_node.errors import ConfigError


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

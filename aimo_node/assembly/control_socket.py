"""The node's control socket: how a command of its owner on the same machine talks to it.

One JSON object per line: a request ``{"command": …}``, then one answer, then the end. On Linux the
socket's name is abstract, so that nothing is left of it whatever ends the node; elsewhere it is a
file in the state folder. Only the node's own user and root are answered.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import structlog
import trio

from aimo_node.errors import AimoError, ConfigError

log = structlog.get_logger()

LINE_BYTES_MAX: Final = 1 << 20
RECEIVE_BYTES: Final = 65_536
REQUEST_SECONDS: Final = 5.0
"""For the request to arrive, and for the answer to be taken; between them a model may load."""
CONNECTIONS_MAX: Final = 16
BACKLOG: Final = CONNECTIONS_MAX
_CREDENTIALS: Final = struct.Struct("3i")

Command: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


class ControlSocket:
    """Answers commands until cancelled.

    Args:
        state_folder: of the node; names the socket.
        commands: by name; an `AimoError` they raise becomes the answer's ``error``.
    """

    def __init__(self, state_folder: Path, commands: Mapping[str, Command]) -> None:
        self._address = address_of(state_folder)
        self._commands = commands
        self._open = 0

    async def run(self) -> None:
        """Serve; a node whose socket is taken by somebody goes on without."""
        try:
            listener = self._listen()
        except OSError as error:
            log.warning("control.unavailable", reason=str(error))
            return
        try:
            await trio.serve_listeners(self._serve, [listener])
        finally:
            self._remove_file()

    def _remove_file(self) -> None:
        if not self._address.startswith("\0"):
            Path(self._address).unlink(missing_ok=True)

    def _listen(self) -> trio.SocketListener:
        self._remove_file()
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.bind(self._address)
            if not self._address.startswith("\0"):
                Path(self._address).chmod(0o600)
            listening.listen(BACKLOG)
            listening.settimeout(0)
            return trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        except BaseException:
            listening.close()
            raise

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            if not _is_owner(stream.socket, os.geteuid()):
                return
            self._open += 1
            try:
                with trio.fail_after(REQUEST_SECONDS):
                    line = await _read_line(stream)
                answer = await self._answer(line, stream)
                with trio.fail_after(REQUEST_SECONDS):
                    await stream.send_all(answer + b"\n")
            except (trio.BrokenResourceError, trio.TooSlowError):
                return
            finally:
                self._open -= 1

    async def _answer(self, line: bytes, stream: trio.SocketStream) -> bytes:
        if self._open > CONNECTIONS_MAX:
            busy = f"the node is busy with {CONNECTIONS_MAX} commands already: wait for one to end"
            return _encode({"error": busy})
        try:
            request = json.loads(line)
            command = self._commands[request["command"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            return _encode({"error": "this node does not know that command"})
        answer = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch, stream, nursery.cancel_scope)
            answer = await _run(command, request)
            nursery.cancel_scope.cancel()
        return answer


async def _run(command: Command, request: Mapping[str, Any]) -> bytes:
    try:
        return _encode(await command(request))
    except AimoError as error:
        return _encode({"error": str(error)})
    except Exception:  # the root of a command
        log.exception("control.crashed", command=request["command"])
        return _encode({"error": "the node failed at that; its log says why"})


async def _watch(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
    """Nobody waits for a load that takes minutes when who asked for it has gone."""
    with contextlib.suppress(trio.BrokenResourceError):
        while await stream.receive_some(RECEIVE_BYTES):
            pass
    scope.cancel()


def address_of(state_folder: Path) -> str:
    """Where the node with this state folder listens."""
    if sys.platform != "linux":
        return str(state_folder / "control.sock")
    folder = os.fsencode(state_folder.resolve())
    return f"\0aimo-control-{hashlib.sha256(folder).hexdigest()[:32]}"


def ask_node(state_folder: Path, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Ask the node with this state folder; blocks.

    Raises:
        ConfigError: no node runs there, or it refuses; the message says which.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(seconds)
        try:
            connection.connect(address_of(state_folder))
            # root looks after any node, but whoever took its name is not to answer instead
            owner = state_folder.stat().st_uid if os.geteuid() == 0 else os.geteuid()
            if not _is_owner(connection, owner):
                raise ConfigError(f"the node of {state_folder} belongs to another user")
            connection.sendall(_encode(request) + b"\n")
            with connection.makefile("rb") as answers:
                line = answers.readline(LINE_BYTES_MAX)
        except (ConnectionRefusedError, FileNotFoundError) as error:
            raise ConfigError(
                f"no node runs with the state folder {state_folder}: say which with --state DIR"
            ) from error
        except OSError as error:
            raise ConfigError(f"the node of {state_folder} does not answer: {error}") from error
    try:
        answer = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"the node of {state_folder} closed the connection") from error
    if not isinstance(answer, dict) or "error" in answer:
        raise ConfigError(str(answer.get("error") if isinstance(answer, dict) else answer))
    return answer


def _is_owner(connection: Any, owner: int) -> bool:  # noqa: ANN401 (a socket, trio's or not)
    """Whether the other end is a process of the user with the id `owner`, or of root."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True  # the socket is a file with mode 0600
    size = _CREDENTIALS.size
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    _, user, _ = _CREDENTIALS.unpack(data)
    return user in {0, owner}


async def _read_line(stream: trio.SocketStream) -> bytes:
    line = b""
    while b"\n" not in line and len(line) < LINE_BYTES_MAX:
        data = await stream.receive_some(RECEIVE_BYTES)
        if not data:
            break
        line += data
    return line.partition(b"\n")[0]


def _encode(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()

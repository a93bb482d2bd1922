"""Running a node: signals drain and then cancel, errors become exit codes, ready is said once."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import structlog
import trio

from aimo_node.cli import running
from aimo_node.cli.running import Launch, NodeRunner
from aimo_node.config.settings import MeshSettings, NodeSettings, Settings
from aimo_node.domain.ids import PeerId, Role
from aimo_node.domain.join import JoinTarget, format_join
from aimo_node.domain.ready import ReadyLine
from aimo_node.errors import ConfigError, EngineStartFailed, JoinFailed, StartError

PEER = PeerId("12D3KooWPGreadLx9nfqoQArVVMG95SG2CpQvbJGqipMVTNNu1zk")
JOIN = format_join(JoinTarget((f"/ip4/192.0.2.7/tcp/4001/p2p/{PEER}",), bytes(32)))
READY = ReadyLine(peer_id=PEER, roles=Role.RELAY, join=JOIN)

Program = Callable[..., Awaitable[None]]


@pytest.fixture(autouse=True)
def logs_go_to_stderr() -> Iterator[None]:
    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))
    yield
    structlog.reset_defaults()


def settings_with(**node: float) -> Settings:
    return Settings(node=NodeSettings(**node))


def run(program: Program, launch: Launch | None = None, settings: Settings | None = None) -> int:
    runner = NodeRunner(settings or settings_with(), Role.RELAY, launch or Launch())
    return runner.run(program)


async def obedient(
    _settings: Settings,
    _roles: Role,
    *,
    stop: trio.Event,
    on_ready: Callable[[ReadyLine], None],
    sends: int = signal.SIGTERM,
) -> None:
    """A node that is told to stop once it is ready, and drains."""
    on_ready(READY)
    signal.raise_signal(sends)
    await stop.wait()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGINT, 130)]
)
def test_the_first_signal_drains_and_gives_the_exit_code(number: int, code: int) -> None:
    async def program(*args: object, **kwargs: object) -> None:
        await obedient(*args, **kwargs, sends=number)  # type: ignore[arg-type]

    assert run(program) == code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 1), (signal.SIGINT, 130)])
def test_a_second_signal_cancels_at_once(number: int, code: int) -> None:
    async def stubborn(*_: object, stop: trio.Event, **__: object) -> None:
        signal.raise_signal(number)
        await stop.wait()
        signal.raise_signal(number)
        await trio.sleep_forever()

    assert run(stubborn) == code


def test_a_drain_that_does_not_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stubborn(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        await trio.sleep_forever()

    monkeypatch.setattr(running, "DRAIN_EXTRA_SECONDS", 0.05)
    assert run(stubborn, settings=settings_with(grace_seconds=0.0)) == 1


@pytest.mark.parametrize("is_grouped", [False, True])
@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError("fix"), 2), (JoinFailed("fix"), 3), (EngineStartFailed("fix"), 4)],
)
def test_a_node_that_cannot_start_says_one_sentence(
    error: StartError, code: int, is_grouped: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Errors that come out of a nursery are in a group, often in a group of groups."""

    async def failing(*_: object, **__: object) -> None:
        if is_grouped:
            raise ExceptionGroup("", [ExceptionGroup("", [error]), ValueError()])
        raise error

    assert run(failing) == code
    assert capsys.readouterr() == ("", "aimo: fix\n")


def test_with_json_every_line_of_the_log_is_json_also_when_nothing_starts(tmp_path: Path) -> None:
    wrong = ("edge", "--http", "127.0.0.1:0", "--join", "/ip4/127.0.0.1/udp/1/p2p/" + PEER)
    unready = ("relay", "--listen", "/ip4/127.0.0.1/udp/1/quic-v1")
    late = ("edge", "--http", "127.0.0.1:0", "--join", f"@{tmp_path}/join")
    (tmp_path / "join").write_text("")
    flags = ("--state", str(tmp_path / "state"), "--log-format", "json", "--config", os.devnull)
    for arguments, stops, code in ((wrong, False, 2), (unready, False, 2), (late, True, 130)):
        process = subprocess.Popen(
            [sys.executable, "-m", "aimo_node", *arguments, *flags],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        with process:
            lines = [process.stderr.readline()]
            if stops:
                process.send_signal(signal.SIGINT)
            lines += process.stderr.readlines()
        assert process.returncode == code
        assert all("event" in json.loads(line) for line in lines), lines


def test_a_bug_exits_with_1_and_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    async def failing(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    assert run(failing) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_ready_json_is_exactly_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(obedient, Launch(ready_json=True)) == 0
    output = capsys.readouterr().out
    assert output.endswith("\n")
    assert json.loads(output) == json.loads(READY.to_json())


def test_without_ready_json_people_learn_how_others_join(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(obedient) == 0
    output = capsys.readouterr().out
    assert f"aimo edge --join {JOIN}" in output
    assert f"aimo provider --engine llama --join {JOIN}" in output


def test_the_join_file_is_whole_and_for_owner_and_group(tmp_path: Path) -> None:
    path = tmp_path / "join"
    previous = os.umask(0o077)
    try:
        assert run(obedient, Launch(join_file=path)) == 0
    finally:
        os.umask(previous)
    assert path.read_text() == JOIN + "\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_the_node_gets_what_the_join_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "join"
    path.write_text(JOIN + "\n")
    seen: list[tuple[str, ...]] = []

    async def program(settings: Settings, *_: object, **__: object) -> None:
        seen.append(settings.mesh.join)
        await trio.lowlevel.checkpoint()

    settings = Settings(mesh=MeshSettings(join=(f"@{path}", JOIN)))
    assert run(program, settings=settings) == 0
    assert seen == [(JOIN, JOIN)]


def test_sigterm_while_waiting_for_the_join_file_ends_it(tmp_path: Path) -> None:
    """Service managers stop what has not started yet."""
    path = tmp_path / "join"

    def tell(_line: str, *, err: bool) -> None:
        assert err
        signal.raise_signal(signal.SIGTERM)

    async def program(*_: object, **__: object) -> None:
        raise AssertionError("must not start")

    settings = Settings(mesh=MeshSettings(join=(f"@{path}",)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running.click, "echo", tell)
        assert run(program, settings=settings) == 0


def test_the_end_of_stdin_is_a_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parent that was killed cannot send a signal, but the pipe it held closes."""
    reader, writer = os.pipe()
    monkeypatch.setattr(running, "_STDIN_FILENO", reader)

    async def program(*_: object, stop: trio.Event, **__: object) -> None:
        os.close(writer)
        await stop.wait()

    try:
        assert run(program, Launch(watch_stdin=True)) == 0
    finally:
        os.close(reader)


@pytest.mark.parametrize(
    ("roles", "join", "is_told"),
    [
        (Role.EDGE, (), True),
        (Role.PROVIDER, (), True),
        (Role.EDGE, (JOIN,), False),
        (Role.RELAY, (), False),
        (Role.RELAY | Role.EDGE, (), False),
    ],
)
def test_a_node_that_nobody_can_find_says_so(
    roles: Role, join: tuple[str, ...], is_told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """An edge without `--join` is ready and stays empty: else people look long for the cause."""
    settings = Settings(mesh=MeshSettings(join=join))
    assert NodeRunner(settings, roles, Launch()).run(obedient) == 0
    assert ("give it --join" in capsys.readouterr().err) is is_told

"""What every long-running command shares: logs, signals, the ready line, exit codes."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import click
import structlog
import trio

from aimo_node.cli.announcement import announce
from aimo_node.cli.flags import load_from
from aimo_node.cli.folders import claim_folder, prepare_join_file, write_join_file
from aimo_node.cli.joining import resolve_joins
from aimo_node.cli.open_files import raise_limit
from aimo_node.config.settings import Settings
from aimo_node.domain.ids import Role
from aimo_node.domain.ready import ReadyLine
from aimo_node.errors import StartError
from aimo_node.telemetry.logs import configure_logging

INTERRUPTED: Final = 130

DRAIN_EXTRA_SECONDS: Final = 20.0
"""What a node may take beyond its grace to end streams, close links and stop engines; then it is
cancelled. Longer than any single time limit of the cleanup inside."""

_STDIN_FILENO: Final = 0

_log = structlog.get_logger()


class NodeProgram(Protocol):
    """A node from configuration to its end; `aimo_node.assembly.run_node` is it."""

    def __call__(
        self,
        settings: Settings,
        roles: Role,
        *,
        stop: trio.Event,
        on_ready: Callable[[ReadyLine], None],
    ) -> Awaitable[None]:
        """Run until `stop` is set and what was running has ended."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How the command was started, as far as the node need not know.

    Attributes:
        ready_json: print the ready line as JSON instead of in words.
        join_file: where to write the join string once ready.
        watch_stdin: end when stdin is closed, since whoever holds its other end is gone.
    """

    ready_json: bool = False
    join_file: Path | None = None
    watch_stdin: bool = False


def run_command(context: click.Context, roles: Role) -> int:
    """Run a node until it is told to stop; returns the exit code.

    Raises:
        ConfigError: the configuration is wrong or the state folder cannot be used.
    """
    with _leave_at_once():
        settings = load_from(context).settings.for_roles(roles)
        configure_logging(settings.log.level, settings.log.format)
        join_file = context.params.get("join_file")
        launch = Launch(
            ready_json=context.params["ready_json"],
            join_file=Path(join_file) if join_file else None,
            watch_stdin=context.params["watch_stdin"],
        )
        with claim_folder(settings.node.state):
            if launch.join_file is not None:
                prepare_join_file(launch.join_file)
            raise_limit()
            from aimo_node.assembly.node import run_node

            return NodeRunner(settings, roles, launch).run(run_node)


@contextlib.contextmanager
def _leave_at_once() -> Iterator[None]:
    """Exit on SIGTERM and Ctrl-C while modules load: there is nothing to drain yet.

    Not by KeyboardInterrupt: Python ends by the signal itself, and not with our exit code, when
    that passed through an import that runs generated code.
    """

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(INTERRUPTED if number == signal.SIGINT else 0)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class NodeRunner:
    """Runs one node in this process, from the first import to the exit code.

    The first SIGTERM, SIGINT or SIGHUP drains, the second cancels at once.
    """

    def __init__(self, settings: Settings, roles: Role, launch: Launch) -> None:
        self._settings = settings
        self._roles = roles
        self._launch = launch
        self._stop = trio.Event()
        self._scope = trio.CancelScope()
        self._signals: list[int] = []

    def run(self, program: NodeProgram) -> int:
        """Run `program` in a trio loop of its own; returns the exit code."""
        try:
            trio.run(self._main, program)
        except (Exception, KeyboardInterrupt, BaseExceptionGroup) as error:  # noqa: BLE001 (root)
            return self._explain(error)
        if signal.SIGINT in self._signals:
            return INTERRUPTED
        if self._scope.cancelled_caught:
            _log.error(
                "node.cut_off", signals=len(self._signals), limit_seconds=self._drain_seconds
            )
            return 1
        return 0

    @property
    def _drain_seconds(self) -> float:
        return self._settings.node.grace_seconds + DRAIN_EXTRA_SECONDS

    async def _main(self, program: NodeProgram) -> None:
        async with self._signals_watched():
            with self._scope:
                settings = await self._resolve_joins()
                if not settings.mesh.join and Role.RELAY not in self._roles:
                    _log.warning("mesh.alone", hint="nobody finds this node: give it --join")
                if not self._stop.is_set():
                    await program(settings, self._roles, stop=self._stop, on_ready=self._on_ready)

    @contextlib.asynccontextmanager
    async def _signals_watched(self) -> AsyncIterator[None]:
        watched = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup wants it ignored
            watched.append(signal.SIGHUP)
        with trio.open_signal_receiver(*watched) as received:
            if self._launch.watch_stdin:
                threading.Thread(target=_end_with_stdin, name="watch-stdin", daemon=True).start()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._obey, received)
                yield
                nursery.cancel_scope.cancel()

    async def _obey(self, received: AsyncIterator[int]) -> None:
        async for number in received:
            self._signals.append(number)
            if self._stop.is_set():
                self._scope.cancel()
                continue
            _log.info("node.stopping", signal=signal.Signals(number).name)
            self._stop.set()
            self._scope.deadline = trio.current_time() + self._drain_seconds

    async def _resolve_joins(self) -> Settings:
        """As `resolve_joins`, but given up when the node is told to stop meanwhile."""
        settings = self._settings

        async def give_up_on_stop() -> None:
            await self._stop.wait()
            nursery.cancel_scope.cancel()

        failure: StartError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(give_up_on_stop)
            try:
                settings = await resolve_joins(settings, self._say_waiting)
            except StartError as error:  # raised below, outside of the nursery's group
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return settings

    def _say_waiting(self, line: str) -> None:
        """For a person; as an event where a program reads the log, each of whose lines is JSON."""
        if self._settings.log.format == "json":
            _log.info("join.waiting", progress=line)
        else:
            click.echo(line, err=True)

    def _on_ready(self, ready: ReadyLine) -> None:
        if self._launch.join_file is not None and ready.join:
            write_join_file(self._launch.join_file, ready.join)
        text = ready.to_json() if self._launch.ready_json else announce(ready)
        with contextlib.suppress(BrokenPipeError):  # whoever read it has seen enough
            click.echo(text)

    def _explain(self, error: BaseException) -> int:
        start_error = _find(error, StartError)
        if isinstance(start_error, StartError):
            if self._settings.log.format == "json":
                _log.error("node.not_started", reason=str(start_error))
            else:
                click.echo(f"aimo: {start_error}", err=True)
            return start_error.exit_code
        if _find(error, KeyboardInterrupt) is not None:
            return INTERRUPTED
        _log.error("node.failed", exc_info=error)
        return 1


def _find(error: BaseException, kind: type[BaseException]) -> BaseException | None:
    """The first error of that kind in an exception or a group of them."""
    if isinstance(error, BaseExceptionGroup):
        found = (_find(inner, kind) for inner in error.exceptions)
        return next((inner for inner in found if inner is not None), None)
    return error if isinstance(error, kind) else None


def _end_with_stdin() -> None:
    """Wait for the end of stdin, then drain as on SIGTERM.

    A thread, so that it works while modules load, and even for a parent that was killed.
    """
    with contextlib.suppress(OSError):
        while os.read(_STDIN_FILENO, 4096):
            pass
    os.kill(os.getpid(), signal.SIGTERM)

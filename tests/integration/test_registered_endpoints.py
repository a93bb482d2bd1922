"""Endpoints added to a running node: whole or not at all, whatever comes between."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from aimo_node.assembly.engines import EngineMaker
from aimo_node.assembly.providing import ProviderSide
from aimo_node.assembly.registered import (
    FILE_BYTES_MAX,
    REGISTERED_FILE,
    SETTLE_SECONDS,
    RegisteredEndpoints,
)
from aimo_node.config.layers import Layer
from aimo_node.config.loading import load_settings
from aimo_node.config.provider import EngineSection
from aimo_node.dispatch.hosting import EnginePlan
from aimo_node.dispatch.registration import NewEndpoint
from aimo_node.dispatch.serving import ProviderService
from aimo_node.domain.ids import PeerId, Role
from aimo_node.errors import ConfigError, EngineStartFailed, InternalError, InvalidRequest
from aimo_node.mesh.identity import load_identity
from aimo_node.ports.engine import Progress
from aimo_node.telemetry.metrics import NodeMetrics
from aimo_node.testing.fake_engine import FakeEngine

KEY = "sk-of-nobody-else"
WANTED = NewEndpoint("http://127.0.0.1:1/v1", api_key=KEY)


class Endpoint(FakeEngine):
    """Answers after `seconds`, or fails then."""

    seconds = 1.0
    failure = ""

    async def run(self, ready: Callable[[], None], progress: Progress) -> None:
        await trio.sleep(self.seconds)
        if self.failure:
            raise EngineStartFailed(self.failure)
        await super().run(ready, progress)


class Maker(EngineMaker):
    """Remembers what is planned; the engines are fakes."""

    def __init__(self, state: Path) -> None:
        flags = Layer()
        flags.add("node.state", state, "test")
        super().__init__(load_settings(flags, environ={}).settings, Role.EDGE)
        self.sections: list[EngineSection] = []
        self.kind: type[Endpoint] = Endpoint

    def plan(self, section: EngineSection, label: str, *, essential: bool = True) -> EnginePlan:
        self.sections.append(section)
        return replace(super().plan(section, label, essential=essential), make=self.kind)


class Node:
    """The parts that registering needs."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.maker = Maker(state)
        self.service = ProviderService(PeerId("own"), NodeMetrics().provider)
        self.registered = RegisteredEndpoints(self.service, self.maker, state)

    def labels(self) -> tuple[list[str], list[str], list[str]]:
        """Of those that run, that are listed, and that are there after a restart."""
        file = self.state / REGISTERED_FILE
        return (
            [engine.plan.label for engine in self.service.engines],
            [one.label for one in self.registered.registered()],
            list(json.loads(file.read_bytes())) if file.exists() else [],
        )

    def files(self) -> list[str]:
        return [path.name for path in self.state.iterdir() if path.is_file()]

    def has_files(self, label: str) -> bool:
        return self.maker.folder(label).exists()


@asynccontextmanager
async def running(state: Path) -> AsyncIterator[Node]:
    node = Node(state)
    node.registered.read()
    node.registered.restore()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.service.run)
        yield node
        nursery.cancel_scope.cancel()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


async def test_it_is_there_after_a_restart_with_its_key(
    state: Path, autojump_clock: object
) -> None:
    async with running(state) as node:
        added = await node.registered.register(WANTED)
        assert (added.label, added.state) == ("openai", "running")
        assert node.labels() == (["openai"], ["openai"], ["openai"])
        key_file = node.maker.sections[0].api_key_file
        assert key_file is not None
        assert key_file.read_text() == KEY
        assert key_file.stat().st_mode & 0o777 == 0o600
        assert (state / REGISTERED_FILE).stat().st_mode & 0o777 == 0o600
        assert KEY not in (state / REGISTERED_FILE).read_text() + repr(added)
    async with running(state) as node:
        assert node.labels() == (["openai"], ["openai"], ["openai"])
        assert node.maker.sections[0].api_key_file == key_file
        assert await node.registered.remove("openai")
        assert node.labels() == ([], [], [])
        assert not node.has_files("openai")
        assert not await node.registered.remove("openai")


async def test_who_leaves_while_it_is_tried_leaves_nothing_behind(
    state: Path, autojump_clock: object
) -> None:
    async with running(state) as node:
        with trio.move_on_after(0.5):
            await node.registered.register(WANTED)
        assert node.labels() == ([], [], [])
        assert not node.has_files("openai")
        assert (await node.registered.register(WANTED)).label == "openai"


async def test_two_at_once_are_two(state: Path, autojump_clock: object) -> None:
    async with running(state) as node:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(node.registered.register, WANTED)
        assert node.labels() == (["openai", "openai-2"],) * 3


async def test_one_that_fails_leaves_nothing_behind(state: Path, autojump_clock: object) -> None:
    class Failing(Endpoint):
        failure = "nobody answers there"

    async with running(state) as node:
        node.maker.kind = Failing
        with pytest.raises(InvalidRequest, match="nobody answers there"):
            await node.registered.register(WANTED)
        assert node.labels() == ([], [], [])
        assert not node.has_files("openai")


async def test_one_that_takes_long_is_added_and_tried_on(
    state: Path, autojump_clock: object
) -> None:
    class Slow(Endpoint):
        seconds = SETTLE_SECONDS + 5

    async with running(state) as node:
        node.maker.kind = Slow
        assert (await node.registered.register(WANTED)).state == "starting"
        await trio.sleep(6)
        assert [one.state for one in node.registered.registered()] == ["running"]
        assert (await node.registered.register(WANTED)).state == "starting"
        assert await node.registered.remove("openai-2")
        await wait_all_tasks_blocked()
        assert node.labels() == (["openai"],) * 3


async def test_a_disk_that_is_full_leaves_nothing_behind(
    state: Path, autojump_clock: object
) -> None:
    async with running(state) as node:
        (state / REGISTERED_FILE).mkdir(parents=True)  # cannot be replaced by a file
        with pytest.raises(InternalError, match="cannot be written: Is a directory"):
            await node.registered.register(WANTED)
        assert not node.registered.registered()
        assert not node.service.engines
        assert not node.has_files("openai")
        assert node.files() == []


async def test_a_key_left_behind_is_never_sent_to_another_endpoint(
    state: Path, autojump_clock: object
) -> None:
    """The node was killed between writing the key and remembering the endpoint."""
    async with running(state) as node:
        folder = node.maker.folder("openai")
        folder.mkdir(parents=True)
        (folder / "key").write_text(KEY)
        await node.registered.register(replace(WANTED, api_key=""))
        assert node.maker.sections[0].api_key_file is None


async def test_files_of_an_engine_of_before_are_left_alone(
    state: Path, autojump_clock: object
) -> None:
    """The node had a llama engine once; whoever calls an endpoint so must not remove its files."""
    async with running(state) as node:
        weights = node.maker.folder("llama") / "weights"
        weights.parent.mkdir(parents=True)
        weights.touch()
        await node.registered.register(replace(WANTED, label="llama"))
        assert await node.registered.remove("llama")
        assert [path.name for path in weights.parent.iterdir()] == ["weights"]


@pytest.mark.parametrize("label", ["..", "../x", "a/b", ".x", "A", "x" * 41, "a\n", "a\0"])
async def test_a_label_is_a_plain_name(state: Path, label: str) -> None:
    async with running(state) as node:
        with pytest.raises(InvalidRequest, match="label") as caught:
            await node.registered.register(replace(WANTED, label=label))
        assert caught.value.param == "label"
        assert not await node.registered.remove(label)


async def test_a_reason_is_a_sentence(state: Path) -> None:
    async with running(state) as node:
        both = replace(WANTED, model="a", models={"b": "c"})
        with pytest.raises(InvalidRequest, match=r"^give either models or model"):
            await node.registered.register(both)
        with pytest.raises(InvalidRequest, match=r"^requests_max: ") as caught:
            await node.registered.register(replace(WANTED, requests_max=-1))
        assert caught.value.param == "requests_max"


async def test_no_more_is_remembered_than_is_read_again(
    state: Path, autojump_clock: object
) -> None:
    """Else the node would not start any more."""
    async with running(state) as node:
        with pytest.raises(InvalidRequest, match="too long"):
            await node.registered.register(replace(WANTED, served_name="x" * FILE_BYTES_MAX))
        assert node.labels() == ([], [], [])


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", "..", "x" * 300, "a\0"])
def test_the_name_of_an_engine_is_no_path(state: Path, name: str) -> None:
    section = EngineSection(name=name)
    with pytest.raises(ConfigError, match="is no name of an engine"):
        Maker(state).plan(section, name)
    assert not state.exists()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"openai": null}', '{"openai": {}}', '{"../x": {"name": "openai"}}'],
)
def test_a_damaged_file_is_named(state: Path, text: str) -> None:
    state.mkdir()
    (state / REGISTERED_FILE).write_text(text)
    node = Node(state)

    def read_and_restore() -> None:
        node.registered.read()
        node.registered.restore()

    with pytest.raises(ConfigError, match=REGISTERED_FILE):
        read_and_restore()
    assert not (state / "x").exists()


def test_an_engine_that_is_configured_later_gets_another_label(state: Path) -> None:
    """Whoever uses the edge knows the endpoint by its label; and the node starts."""
    state.mkdir()
    entry = {"name": "openai", "endpoint": "http://127.0.0.1:1/v1"}
    (state / REGISTERED_FILE).write_text(json.dumps({"echo": entry}))
    flags = Layer()
    flags.add("node.state", state, "test")
    flags.add("provider.engine", "echo", "test")
    settings = load_settings(flags, environ={}).settings
    roles = Role.EDGE | Role.PROVIDER
    side = ProviderSide(settings, roles, load_identity(state / "identity"), NodeMetrics())
    assert [engine.plan.label for engine in side.service.engines] == ["echo-2", "echo"]
    assert [one.label for one in side.registered.registered()] == ["echo"]

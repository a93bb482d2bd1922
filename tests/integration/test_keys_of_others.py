"""A key that one engine reads from the environment is not handed to the children of another."""

import os
import tempfile
from pathlib import Path

import psutil
import pytest

from aimo_node.assembly.engines import EngineMaker
from aimo_node.config.provider import EngineSection
from aimo_node.config.settings import NodeSettings, Settings
from aimo_node.domain.ids import Role
from providers.children.process import PythonProgram, start_child
from providers.upstreams.endpoints import read_key
from tests.integration.llama_parts import children_of, running

KEY = "sk-of-another-engine"


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="aimo") as name:
        yield Path(name)


class Unheard:
    def write(self, data):
        """Nobody reads it."""


async def test_child_started_before_the_other_engine_is_made_has_no_key(folder, monkeypatch):
    """Engines are made each in its own task, so which is first is chance."""
    monkeypatch.setenv("KEY_OF_THE_OTHER", KEY)
    monkeypatch.setenv("NO_KEY_AT_ALL", "stays")
    maker = EngineMaker(Settings(node=NodeSettings(state=folder)), Role.PROVIDER)
    llama = maker.plan(EngineSection(name="llama"), "llama")
    elsewhere = "https://api.example.com"
    maker.plan(
        EngineSection(name="openai", endpoint=elsewhere, api_key_env="KEY_OF_THE_OTHER"), "openai"
    )
    async with running(llama.make()):
        (child,) = children_of(os.getpid(), folder)
        inherited = child.environ()
    assert "KEY_OF_THE_OTHER" not in inherited
    assert KEY not in inherited.values()
    assert inherited["NO_KEY_AT_ALL"] == "stays"


async def test_variable_that_held_a_key_is_left_out_whoever_read_it(folder, monkeypatch):
    monkeypatch.setenv("KEY_READ_HERE", KEY)
    assert read_key(None, "KEY_READ_HERE") == KEY
    program = PythonProgram("http.server", ["--bind", "127.0.0.1", "0"], folder)
    child = await start_child(program, Unheard())
    try:
        assert KEY not in psutil.Process(child.pid).environ().values()
    finally:
        await child.end()
    assert read_key(None, "KEY_READ_HERE") == KEY  # engines are made again after a stop

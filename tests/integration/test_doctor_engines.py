"""Faults of engines and their upstreams: the doctor names layer and fix, and starts none."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from email.utils import formatdate
from functools import partial

import pytest
import trio

from aimo_node.assembly.doctor.finding import Layer, Verdict
from aimo_node.config.settings import EdgeSettings
from aimo_node.domain.ids import Role
from aimo_node.testing import upstream_scripts as scripts
from aimo_node.testing.upstream import stand_in_upstream
from tests.integration.doctor_cases import expect, findings_of, free_port, provider, subject


@pytest.fixture
async def upstream():
    async with stand_in_upstream(scripts.answer()) as server:
        yield server


def engine_of(tmp_path, name: str, **options):
    faults = options.pop("faults", None)
    return subject(tmp_path, provider=provider(name, **options), faults=faults)


@pytest.mark.parametrize(
    "options",
    [{"name": "echo", "model": "echo"}, {"name": "llama"}],
)
async def test_an_engine_that_could_start_is_all_right(tmp_path, options) -> None:
    findings = await findings_of(engine_of(tmp_path, **options))
    told = next(one for one in findings if one.check == "engine")
    assert told.verdict is Verdict.OK


async def test_an_engine_nobody_knows_is_named(tmp_path) -> None:
    await expect(engine_of(tmp_path, "lama"), Layer.ENGINE, "did you mean llama", "mend")


async def test_a_missing_llama_is_named(tmp_path) -> None:
    patient = engine_of(tmp_path, "llama", faults={"has_package": lambda _module: False})
    await expect(patient, Layer.ENGINE, "pip install xllamacpp", "mend")


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is here")
async def test_a_missing_vllm_is_named(tmp_path) -> None:
    patient = engine_of(tmp_path, "vllm", model="some/model")
    await expect(patient, Layer.ENGINE, "vllm: ", "mend")


async def test_a_vllm_whose_interpreter_is_not_there_is_named(tmp_path) -> None:
    arguments = ("--python", str(tmp_path / "python"))
    patient = engine_of(tmp_path, "vllm", model="some/model", engine_args=arguments)
    await expect(patient, Layer.ENGINE, "vllm: ", "mend")


async def test_a_corrupt_gguf_is_named(tmp_path) -> None:
    weights = tmp_path / "broken.gguf"
    weights.write_bytes(b"GGUF and nothing else")
    patient = engine_of(tmp_path, "llama", model=str(weights))
    await expect(patient, Layer.ENGINE, "not a usable GGUF file", "mend")


async def test_a_gguf_that_is_not_there_is_named(tmp_path) -> None:
    patient = engine_of(tmp_path, "llama", model=str(tmp_path / "none.gguf"))
    await expect(patient, Layer.ENGINE, "there is no such file", "mend")


async def test_a_dead_upstream_is_named(tmp_path) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}/v1"
    patient = engine_of(tmp_path, "openai", endpoint=endpoint, model="m")
    await expect(patient, Layer.ENGINE, "cannot be reached", endpoint)


async def test_a_model_the_upstream_does_not_have_is_named(tmp_path, upstream) -> None:
    patient = engine_of(tmp_path, "openai", endpoint=upstream.endpoint, model="no-such-model")
    await expect(patient, Layer.ENGINE, "no model 'no-such-model'", "mend")


async def test_an_upstream_that_is_well_is_all_right(tmp_path, upstream) -> None:
    findings = await findings_of(
        engine_of(tmp_path, "openai", endpoint=upstream.endpoint, model="*")
    )
    told = next(one for one in findings if one.check == "engine")
    assert told.verdict is Verdict.OK, told
    assert "serves" in told.seen


async def test_a_key_that_is_refused_is_the_layer_of_access(tmp_path, upstream) -> None:
    upstream.models = scripts.refusal(401)
    key = tmp_path / "key"
    key.write_text("the-owners-key")
    key.chmod(0o600)
    options = {"endpoint": upstream.endpoint, "model": "m", "api_key_file": key}
    found = await expect(engine_of(tmp_path, "openai", **options), Layer.AUTH, "refuses", "key")
    assert "the-owners-key" not in f"{found}"


async def test_nobody_logged_in_is_the_layer_of_access(tmp_path) -> None:
    patient = subject(
        tmp_path,
        roles=Role.PROVIDER | Role.EDGE,
        provider=provider("copilot"),
        edge=EdgeSettings(http="127.0.0.1:0"),
    )
    await expect(patient, Layer.AUTH, "nobody is logged in", "log in")


@pytest.mark.parametrize(("ahead", "word"), [(3600, "ahead of"), (-3600, "behind")])
async def test_a_clock_that_is_off_is_named(tmp_path, ahead, word) -> None:
    """The upstream's answers carry a date, whatever else they say."""
    date = formatdate(time.time_ns() / 1e9, usegmt=True)
    answer = f"HTTP/1.1 404 Not Found\r\nDate: {date}\r\nContent-Length: 0\r\n\r\n".encode()

    async def serve(stream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        endpoint = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/v1"
        faults = {"now": lambda: time.time_ns() / 1e9 + ahead}
        patient = engine_of(tmp_path, "openai", endpoint=endpoint, model="m", faults=faults)
        await expect(patient, Layer.CLOCK, word, "NTP")
        nursery.cancel_scope.cancel()

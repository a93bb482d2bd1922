"""The program with the copilot engine: its owner is served, the mesh hears nothing of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from aimo_node.testing.fake_github import fake_github
from aimo_node.testing.upstream_scripts import WORDS
from providers.copilot.credentials import CREDENTIAL_FILE, Credential, save_credential

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 60.0


@asynccontextmanager
async def node(state: Path, *arguments: str) -> AsyncIterator[dict[str, Any]]:
    """A node of its own process; its ready line."""
    environment = {name: value for name, value in os.environ.items() if "AIMO_" not in name}
    process = await trio.lowlevel.open_process(
        [
            *(sys.executable, "-m", "aimo_node", *arguments, "--state", str(state)),
            *("--config", os.devnull, "--http", "127.0.0.1:0", "--ready-json", "--watch-stdin"),
        ],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        line = b""
        with trio.fail_after(START_SECONDS):
            while not line.endswith(b"\n"):
                piece = await process.stdout.receive_some()
                assert piece, "the node did not start"
                line += piece
        yield json.loads(line)
    finally:
        process.terminate()
        with trio.move_on_after(START_SECONDS) as scope:
            scope.shield = True
            await process.wait()
        process.kill()


async def ask(url: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"content-type": "application/json"})

    def send() -> tuple[int, dict[str, Any]]:
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    return await trio.to_thread.run_sync(send)


async def known_providers(url: str) -> list[dict[str, Any]]:
    """What an edge knows, once it has heard of anybody."""
    with trio.fail_after(START_SECONDS):
        while True:
            _, answer = await ask(url, "/v1/providers")
            if answer["data"]:
                providers: list[dict[str, Any]] = answer["data"]
                return providers
            await trio.sleep(0.1)


def chat(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.slow
async def test_the_owner_is_served_and_a_member_of_the_mesh_is_not(tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    async with fake_github() as github:
        credential = Credential(github.grant_login(), github_url=github.endpoint)
        save_credential(mine / CREDENTIAL_FILE, credential)
        async with (
            node(mine, "up", "--engine", "copilot") as owner,
            node(theirs, "edge", "--join", owner["join"]) as member,
        ):
            assert owner["models"] == ["gpt-test", "claude-test"]
            status, answer = await ask(owner["http"], "/v1/chat/completions", chat("gpt-test"))
            assert status == 200
            assert answer["choices"][0]["message"]["content"] == "".join(WORDS)

            providers = await known_providers(member["http"])
            assert [provider["id"] for provider in providers] == [owner["peer_id"]]
            assert "gpt-test" not in json.dumps(providers)
            assert "copilot" not in json.dumps(providers)
            _, models = await ask(member["http"], "/v1/models")
            assert models["data"] == []
            for model in ("gpt-test", f"{owner['peer_id']}:gpt-test"):
                status, _ = await ask(member["http"], "/v1/chat/completions", chat(model))
                assert status in {404, 503}
            native = f"/v1/request/{owner['peer_id']}"
            asked = {"endpoint": "/v1/chat/completions", "body": chat("gpt-test")}
            status, _ = await ask(member["http"], native, asked)
            assert status in {404, 503}
            assert len(github.received) == 1, "only the owner's question reached Copilot"

"""`aimo demo`: relay, provider and edge as three processes, and a question through all of them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from aimo_node.cli.demo_nodes import DemoError, DemoNode, DemoNodes
from aimo_node.cli.edge_client import ChatStream, EdgeClient, EdgeError, printable
from aimo_node.cli.folders import claim_folder
from aimo_node.cli.interrupts import InterruptGate

MODEL: Final = "tiny"
QUESTION: Final = "What is 3+4?"
STORY: Final = "Tell me a sea story about Ada and a kite."

MODEL_SECONDS: Final = 30.0
"""From provider and edge being ready to the edge knowing the model: a second, usually."""

_POLL_SECONDS: Final = 0.05
_LOOPBACK: Final = "/ip4/127.0.0.1/tcp/0"


@click.command("demo")
@click.option("--once", is_flag=True, help="End after the answer instead of staying up.")
@click.option("--question", metavar="TEXT", default=QUESTION, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the answer and its timings as JSON.")
@click.option(
    "--state", metavar="DIR", help="Folder for identities and logs.  [default: XDG state, demo]"
)
def command(*, once: bool, question: str, as_json: bool, state: str | None) -> None:
    """Stream an answer from a provider across a mesh.

    Starts a relay, a provider with the demo model that ships, and an edge: three processes on
    free loopback ports. Nothing is downloaded.

    \b
    Example:
      aimo demo --once
      aimo demo --question 'What is the capital of France?'
    """
    folder = _folder(state)
    question = printable(question)
    with (
        claim_folder(folder),
        InterruptGate() as gate,
        _join_file(folder) as join_file,
        DemoNodes(folder, gate) as nodes,
    ):
        demo = Demo(nodes, as_json=as_json)
        demo.start(folder, join_file)
        answer = demo.ask(question)
        if as_json:
            click.echo(json.dumps({"question": question, **answer}, ensure_ascii=False))
        if not once:
            demo.stay_up(question)


def _folder(state: str | None) -> Path:
    from aimo_node.config.places import default_state_folder

    return (
        Path(state).expanduser().absolute() if state else default_state_folder(os.environ) / "demo"
    )


@contextlib.contextmanager
def _join_file(folder: Path) -> Iterator[Path]:
    """A path for the join string, without one of an earlier demo and gone in the end."""
    path = folder / "join"
    path.unlink(missing_ok=True)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


class Demo:
    """The course of the demo and what it prints: progress on stderr if stdout carries JSON."""

    def __init__(self, nodes: DemoNodes, *, as_json: bool) -> None:
        self._nodes = nodes
        self._to_stderr = as_json
        self._started = time.perf_counter()
        self._client = EdgeClient("http://127.0.0.1")

    def start(self, folder: Path, join_file: Path) -> None:
        """Start all three at once and wait until the edge knows the model.

        Provider and edge load their modules while the relay does, then find its join string.

        Raises:
            DemoError: one of them ended or it takes too long.
        """
        self._say("state", f"{folder} (logs: relay.log, provider.log, edge.log)")
        self._say("starting", "relay, provider and edge: three processes, loopback only")
        join = f"@{join_file}"
        self._nodes.start("relay", "--listen", _LOOPBACK, "--join-file", str(join_file))
        provider = ("--engine", "llama", "--join", join, "--listen", _LOOPBACK)
        self._nodes.start("provider", *provider)
        edge = ("--http", "127.0.0.1:0", "--join", join, "--listen", _LOOPBACK)
        self._nodes.start("edge", *edge)
        self._nodes.wait_ready(self._announce)
        self._wait_for_model()

    def ask(self, question: str) -> dict[str, Any]:
        """Ask, print the answer as it comes, and return it with its timings.

        Raises:
            DemoError: a node died, or the answer broke off.
        """
        self._say("question", question)
        self._print("answer     ", nl=False)
        pieces: list[str] = []
        try:
            with self._client.stream_chat(MODEL, [{"role": "user", "content": question}]) as answer:
                for piece in answer:
                    if not pieces:
                        since_start = time.perf_counter() - self._started
                    pieces.append(piece)
                    self._print(piece, nl=False)
        except EdgeError as error:
            self._print("")
            self._nodes.watch(1.0)  # if a node died, that is the better explanation
            raise DemoError(f"no answer: {error.message}") from error
        self._print("")
        report = _report("".join(pieces), answer, since_start if pieces else 0.0)
        self._print_report(report)
        return report

    def stay_up(self, question: str) -> None:
        """Say how to go on from here, then stay until Ctrl-C or until a node dies."""
        if question == QUESTION:
            self.ask(STORY)
        self._print(_next_steps(self._client.url))
        self._nodes.watch()

    def _announce(self, node: DemoNode) -> None:
        ready = node.ready or {}
        if node.role == "edge":
            self._client = EdgeClient(ready["http"])
            what = ready["http"]
        elif node.role == "provider":
            what = "serves " + ", ".join(ready["models"])
        else:
            what = ", ".join(ready["listen"])
        seconds = time.perf_counter() - self._started
        self._say(node.role, f"ready after {seconds:.1f} s, process {node.process.pid}, {what}")

    def _wait_for_model(self) -> None:
        deadline = time.monotonic() + MODEL_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(EdgeError):  # if the edge died, `watch` says so
                models = self._client.get("/v1/models").get("data") or []
                if any(model.get("id") == MODEL for model in models):
                    return
            self._nodes.watch(_POLL_SECONDS)
        raise DemoError(f"the edge did not hear of the provider within {MODEL_SECONDS:.0f} s")

    def _print_report(self, report: dict[str, Any]) -> None:
        self._say("", f"provider {report['provider']}, path {report['path']}")
        self._say(
            "",
            f"first token after {report['first_token_ms']:.0f} ms, all"
            f" {report['completion_tokens']} tokens after {report['total_ms']:.0f} ms,"
            f" {report['tokens_per_second']:.0f} tokens/s",
        )

    def _say(self, label: str, text: str) -> None:
        self._print(f"{label:<10} {text}")

    def _print(self, text: str, *, nl: bool = True) -> None:
        click.echo(text, nl=nl, err=self._to_stderr)


def _report(text: str, answer: ChatStream, since_start: float) -> dict[str, Any]:
    """What is known about one answer, times in milliseconds unless the name says otherwise."""
    return {
        "answer": text,
        "provider": answer.headers.get("x-aimo-provider", ""),
        "path": answer.headers.get("x-aimo-path", ""),
        "attempts": int(answer.headers.get("x-aimo-attempts", "1")),
        "request_id": answer.headers.get("x-aimo-request-id", ""),
        "finish_reason": answer.finish_reason,
        "completion_tokens": answer.completion_tokens,
        "first_token_ms": round(answer.first_token_seconds * 1000, 1),
        "total_ms": round(answer.total_seconds * 1000, 1),
        "tokens_per_second": round(answer.completion_tokens / max(answer.total_seconds, 1e-6), 1),
        "start_to_first_token_seconds": round(since_start, 2),
    }


def program_name() -> str:
    """What this person types for `aimo`; scripts/quickstart puts nothing on their path."""
    beside = Path(sys.executable).with_name("aimo")
    if shutil.which("aimo") is not None or not beside.exists():
        return "aimo"
    here = Path.cwd()
    return str(beside.relative_to(here) if beside.is_relative_to(here) else beside)


def _next_steps(url: str) -> str:
    """A shell line and a program that work as they stand, with the demo's own port."""
    body = json.dumps(
        {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": QUESTION}]}
    )
    return f"""
Try it from another terminal:

curl -N {url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'

or with the OpenAI SDK (pip install openai):

from openai import OpenAI
client = OpenAI(base_url="{url}/v1", api_key="unused")
messages = [{{"role": "user", "content": "{QUESTION}"}}]
stream = client.chat.completions.create(model="{MODEL}", messages=messages, stream=True)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)

or talk to it: {program_name()} chat {MODEL} --edge {url}

Ctrl-C ends the demo."""

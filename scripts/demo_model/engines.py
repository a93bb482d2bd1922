"""Asks a case of a real engine: llama.cpp in this process, or any OpenAI-compatible server."""

import json
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scripts.demo_model.cases import Case
from scripts.demo_model.needs import require
from scripts.demo_model.turns import Message

Body = dict[str, Any]

CONTEXT_TOKENS = 1024  # what the model was trained with
ANSWER_TOKENS_MAX = 400  # the longest story has 280
SERVER_TIMEOUT_SECONDS = 120  # a server on a slow CPU may compile before its first answer


@dataclass(frozen=True, slots=True)
class Engine:
    """How to ask, and if a continued answer comes back with its start (llama.cpp) or without."""

    ask: Callable[[Body], Body]
    stream: Callable[[Body], list[Body]]
    repeats_start: bool


def llama_cpp(path: str, threads: int, slots: int = 1) -> Engine:
    """Ask a GGUF file through xllamacpp.

    Args:
        path: the GGUF file.
        threads: CPU threads of the engine.
        slots: requests that it can answer at once.

    Raises:
        SystemExit: xllamacpp is not installed.
    """
    require("xllamacpp")
    import xllamacpp  # noqa: PLC0415 - a score over HTTP does not need it

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.n_gpu_layers = CONTEXT_TOKENS * slots, slots, 0
    params.cpuparams.n_threads = threads
    params.warmup, params.use_jinja, params.verbosity = False, True, -1
    # The engine opens a listener in any case. Nobody will connect to it, so it gets a socket file
    # that is gone at once, and not a port.
    with tempfile.TemporaryDirectory(prefix="aimo-demo-model-") as folder:
        params.hostnames = [f"{folder}/engine.sock"]
        server = xllamacpp.Server(params)

    def stream(body: Body) -> list[Body]:
        chunks: list[Body] = []

        def take(chunk: Body | list[Body]) -> bool:
            chunks.extend(chunk if isinstance(chunk, list) else [chunk])
            return False  # True would end the stream

        server.handle_chat_completions({**body, "stream": True}, take)
        return chunks

    return Engine(server.handle_chat_completions, stream, repeats_start=True)


def openai_server(url: str, model: str) -> Engine:
    """Ask an OpenAI-compatible server.

    Args:
        url: where it listens, without `/v1`.
        model: the name it serves the model under.
    """

    def post(body: Body) -> bytes:
        call = urllib.request.Request(
            f"{url}/v1/chat/completions",
            json.dumps({"model": model, **body}).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(call, timeout=SERVER_TIMEOUT_SECONDS) as response:
            answer: bytes = response.read()
        return answer

    def ask(body: Body) -> Body:
        answer: Body = json.loads(post(body))
        return answer

    def stream(body: Body) -> list[Body]:
        lines = post({**body, "stream": True}).decode().splitlines()
        return [
            json.loads(line[6:])
            for line in lines
            if line.startswith("data: ") and line != "data: [DONE]"
        ]

    return Engine(ask, stream, repeats_start=False)


def _to_openai(message: Message) -> Body:
    """A message as the API wants it: written-out tool calls become tool_calls."""
    if message["role"] == "tool":
        return {**message, "tool_call_id": "call0"}
    if not message["content"].startswith("<tool_call>"):
        return {**message}
    call = json.loads(message["content"].split("\n")[1])
    function = {"name": call["name"], "arguments": json.dumps(call["arguments"])}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call0", "type": "function", "function": function}],
    }


def _to_text(message: Body) -> str:
    """An answer as text: tool_calls are written out again."""
    if not message.get("tool_calls"):
        return message.get("content") or ""
    function = message["tool_calls"][0]["function"]
    call = {"name": function["name"], "arguments": json.loads(function["arguments"])}
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"


def _request(case: Case) -> Body:
    """The request for a greedy answer."""
    body: Body = {
        "messages": [_to_openai(message) for message in case.messages],
        "max_tokens": ANSWER_TOKENS_MAX,
        "temperature": 0,
    }
    return body | ({"tools": [tool.openai() for tool in case.tools]} if case.tools else {})


def reply(engine: Engine, case: Case, written: str | None = None) -> str:
    """The greedy answer, or what comes after the part of it that is `written`."""
    body = _request(case)
    if written is not None:
        body["messages"].append({"role": "assistant", "content": written})
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    result = engine.ask(body)
    if "choices" not in result:
        return f"error: {result}"
    text = _to_text(result["choices"][0]["message"])
    return text.removeprefix(written or "") if engine.repeats_start else text


def deltas(engine: Engine, case: Case) -> list[str]:
    """The greedy answer in the pieces in which it is streamed."""
    return [
        chunk["choices"][0]["delta"].get("content") or ""
        for chunk in engine.stream(_request(case))
        if chunk.get("choices")
    ]

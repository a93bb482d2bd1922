"""A stand-in for vLLM 0.32: the same program to start, log, socket, routes, and ways of failing.

`install` makes an "interpreter" that finds a package ``vllm`` with this server in it, so that an
engine starts it as it would start the real one. Like that, it consists of a server, an engine core
and a worker in one process group; a request names a fault by a word in its last message, such as
``standin=error-then-done``. Options of its own begin with ``--standin``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import trio

from aimo_node.testing import upstream_scripts as scripts
from aimo_node.testing.upstream import Pause, Received, Script, StandInUpstream, Step, Whole

ANSWER: Final = tuple(f"word{number} " for number in range(10))
CONTINUED_AT: Final = 3
"""Where the answer goes on if its beginning is given."""

TOKEN_SECONDS: Final = 0.01
CONTEXT_TOKENS: Final = 1024
CORE_POLL_SECONDS: Final = 0.02
WATCHDOG_SECONDS: Final = 5.0
"""The real one takes up to so long to notice that its engine core is dead, and ends then."""

START_LOG: Final = Path(__file__).with_name("vllm_start.log")
"""What the real one printed when it started."""

_ERROR: Final = {"error": {"message": "EngineCore encountered an issue.", "code": 500}}
_CALL: Final = {"index": 0, "id": "call-1", "type": "function"}


def install(folder: Path) -> Path:
    """Put the stand-in into `folder`; the path of an interpreter for ``--python``."""
    package = folder / "site" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for place in (package, package.parent, package.parent.parent):
        (place / "__init__.py").touch()
    program = f"from {__name__} import main\n\nif __name__ == '__main__':\n    main()\n"
    (package / "api_server.py").write_text(program, encoding="utf-8")
    ours = Path(__file__).resolve().parent.parent.parent
    path = shlex.quote(os.pathsep.join((str(folder / "site"), str(ours))))
    script = folder / "python"
    script.write_text(
        f'#!/bin/sh\nPYTHONPATH={path} exec {shlex.quote(sys.executable)} "$@"\n', encoding="utf-8"
    )
    script.chmod(stat.S_IRWXU)
    return script


def main() -> None:
    """Serve until told to end; as ``vllm.entrypoints.openai.api_server``."""
    options = _options(sys.argv[1:])
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(options.uds)  # vLLM takes its socket first and listens only when it is ready
    if options.standin_fail:
        _print(Path(options.standin_fail).read_text(encoding="utf-8"))
        sys.exit(1)
    if options.standin_silent:
        time.sleep(3600)
    core = _start_core()
    _print(START_LOG.read_text(encoding="utf-8"))
    bound.listen(128)
    trio.run(_serve, options, bound, core)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="api_server.py", allow_abbrev=False)
    for name in ("--model", "--served-model-name", "--uds", "--tool-call-parser"):
        parser.add_argument(name, default="")
    parser.add_argument("--shutdown-timeout", type=float, default=0)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--lora-modules", nargs="*", default=[])
    parser.add_argument("--allowed-media-domains", nargs="*", default=[])
    parser.add_argument("--runner", default="generate")
    for name in ("--disable-uvicorn-access-log", "--enable-prompt-tokens-details"):
        parser.add_argument(name, action="store_true")
    for name in ("--enable-auto-tool-choice", "--enable-lora", "--standin-silent"):
        parser.add_argument(name, action="store_true")
    parser.add_argument("--standin-fail", default="")
    parser.add_argument("--standin-token-seconds", type=float, default=TOKEN_SECONDS)
    parser.add_argument("--standin-base", action="store_true", help="a model without chat template")
    return parser.parse_args(arguments)


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _start_core() -> int:
    """Fork the engine core, which forks a worker; each lives until it is killed."""
    core = os.fork()
    if core:
        return core
    worker = os.fork()
    if worker:
        # Like vLLM's, the core ends when its worker does.
        os.waitpid(worker, 0)
        os._exit(1)
    while True:
        signal.pause()


async def _serve(options: argparse.Namespace, bound: socket.socket, core: int) -> None:
    server = VllmStandIn(options, core)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(bound))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, server.serve_connection, [listener])
        nursery.start_soon(server.watch_core, nursery.cancel_scope)
        nursery.start_soon(server.end_when_told, nursery.cancel_scope)
    server.end_core()


def _has_ended(child: int) -> bool:
    try:
        return os.waitpid(child, os.WNOHANG) != (0, 0)
    except ChildProcessError:
        return True


class VllmStandIn(StandInUpstream):
    """The server. It counts what it generates, as ``/metrics`` tells."""

    def __init__(self, options: argparse.Namespace, core: int) -> None:
        super().__init__(f"unix:{options.uds}", scripts.answer(ANSWER))
        self._options = options
        self._core = core
        self._core_dead = False
        self._draining = False
        self._aborting = False
        self._running = 0
        self._answered = 0
        self._salts: set[str] = set()
        self._hits = 0

    async def watch_core(self, scope: trio.CancelScope) -> None:
        """When the core is gone the server stays a moment, then it ends too."""
        while not self._core_dead:
            await trio.sleep(CORE_POLL_SECONDS)
            self._core_dead = _has_ended(self._core)
        await trio.sleep(WATCHDOG_SECONDS)
        scope.cancel()

    async def end_when_told(self, scope: trio.CancelScope) -> None:
        """SIGTERM: finish what runs if there is a time for it, else abort it."""
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                break
        _print("(APIServer pid=1) INFO 11-20 15:31:18 [launcher.py:1] [shutdown] triggered\n")
        self._draining = True
        self._aborting = not self._options.shutdown_timeout
        with trio.move_on_after(self._options.shutdown_timeout or 1):
            while self._running:  # noqa: ASYNC110 (generators cannot set an event safely)
                await trio.sleep(CORE_POLL_SECONDS)
        scope.cancel()

    def end_core(self) -> None:
        """End the core and its worker."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(0, signal.SIGTERM)

    def _script_for(self, received: Received) -> Script:
        pages: dict[str, Callable[[], Whole]] = {
            "/health": lambda: Whole(503 if self._core_dead else 200, b""),
            "/version": lambda: _json({"version": "0.32.0"}),
            "/v1/models": lambda: _json({"object": "list", "data": self._cards()}),
            "/metrics": self._metrics,
        }
        if received.path in pages:
            return scripts.exactly(pages[received.path]())
        if received.path == "/tokenize" and received.body:
            return scripts.exactly(self._tokenized(received.body))
        pooling = self._options.runner == "pooling"
        routes = {"/v1/embeddings"} if pooling else {"/v1/chat/completions", "/v1/completions"}
        if received.path not in routes:
            return scripts.exactly(Whole(404, b'{"detail":"Not Found"}'))
        if not received.body:
            return scripts.exactly(Whole(405, b'{"detail":"Method Not Allowed"}'))
        return self._embedded if pooling else self._generate

    def _cards(self) -> list[dict[str, Any]]:
        options = self._options
        name = options.served_model_name
        cards = [{"id": name, "root": options.model, "parent": None, "owned_by": "vllm"}]
        for module in options.lora_modules:
            adapter, _, path = module.partition("=")
            cards.append({"id": adapter, "root": path, "parent": name, "owned_by": "vllm"})
        return [{**card, "object": "model", "max_model_len": CONTEXT_TOKENS} for card in cards]

    def _metrics(self) -> Whole:
        labels = f'{{engine="0",model_name="{self._options.served_model_name}"}}'
        numbers = {
            "num_requests_running": self._running,
            "num_requests_waiting": 0,
            "kv_cache_usage_perc": min(1.0, self._running / 100),
            "prefix_cache_queries_total": self._answered * 10,
            "prefix_cache_hits_total": self._hits,
            "time_to_first_token_seconds_sum": self._answered * 0.25,
            "time_to_first_token_seconds_count": self._answered,
        }
        lines = [f"vllm:{name}{labels} {float(value)}" for name, value in numbers.items()]
        return Whole(200, ("\n".join(lines) + "\n").encode(), {"content-type": "text/plain"})

    def _tokenized(self, body: Mapping[str, Any]) -> Whole:
        if "messages" in body and self._options.standin_base:
            return _refused("As of transformers v4.44, default chat template is no longer allowed")
        return _json({"count": _prompt_tokens(body), "max_model_len": CONTEXT_TOKENS})

    def _embedded(self, body: Mapping[str, Any]) -> Iterator[Step]:
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        data = [{"index": n, "embedding": [0.5, float(n)]} for n in range(len(texts))]
        yield _json({"data": data, "usage": {"prompt_tokens": len(texts), "total_tokens": 1}})

    def _generate(self, body: Mapping[str, Any]) -> Iterator[Step]:
        """One answer; written as vLLM writes it, and refused as vLLM refuses it."""
        refusal = self._refusal(body)
        if refusal is not None:
            yield refusal
            return
        self._running += 1
        self._answered += 1
        salt = str(body.get("cache_salt", ""))
        self._hits += 8 * (salt in self._salts)
        self._salts.add(salt)
        try:
            yield from self._steps(body)
        finally:
            self._running -= 1

    def _refusal(self, body: Mapping[str, Any]) -> Whole | None:
        fault = _fault(body)
        names = {card["id"] for card in self._cards()}
        if self._core_dead or self._draining:
            return Whole(500, json.dumps(_ERROR).encode())
        if body.get("model") not in names:
            return Whole(404, b'{"error": {"message": "The model does not exist.", "code": 404}}')
        if _prompt_tokens(body) > CONTEXT_TOKENS:
            return _refused(
                f"This model's maximum context length is {CONTEXT_TOKENS} tokens. However, your "
                f"prompt contains {_prompt_tokens(body)} input tokens."
            )
        if (body.get("max_tokens") or 0) > CONTEXT_TOKENS:
            return _refused(
                f"max_tokens={body['max_tokens']} cannot be greater than "
                f"max_model_len={CONTEXT_TOKENS}. Please request fewer output tokens."
            )
        if fault == "busy":
            return Whole(503, b'{"error": {"message": "The server is overloaded.", "code": 503}}')
        return None

    def _steps(self, body: Mapping[str, Any]) -> Iterator[Step]:
        fault = _fault(body)
        if fault in _FAULTS:
            yield from _FAULTS[fault](body)
        elif fault.startswith("call-"):
            yield from _called(body, _ARGUMENTS[fault])
        elif body.get("stream"):
            yield from self._streamed(body, endless=fault == "endless")
        else:
            yield from self._whole(body, endless=fault == "endless")

    def _streamed(self, body: Mapping[str, Any], *, endless: bool) -> Iterator[Step]:
        words, reason = _words(body)
        yield scripts.chunk({"role": "assistant", "content": ""})
        said = 0
        while endless or said < len(words):
            yield Pause(self._options.standin_token_seconds)
            if self._core_dead:
                yield scripts.event(_ERROR)
                yield scripts.DONE
                return
            if self._aborting:
                reason = "abort"
                break
            yield scripts.text(words[said % len(words)])
            said += 1
        yield scripts.chunk({}, reason)
        yield scripts.event({"choices": [], "usage": _usage(body, said)})
        yield scripts.DONE

    def _whole(self, body: Mapping[str, Any], *, endless: bool) -> Iterator[Step]:
        words, reason = _words(body)
        said = 0
        while (endless or said < len(words)) and not self._aborting:
            yield Pause(self._options.standin_token_seconds)
            if self._core_dead:
                yield Whole(500, json.dumps(_ERROR).encode())
                return
            said += 1
        message = {"role": "assistant", "content": "".join(words), "tool_calls": []}
        ending = "abort" if self._aborting else reason
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": ending}
        yield _json({"choices": [choice], "usage": _usage(body, said)})


_FAULTS: Final[Mapping[str, Script]] = {
    "error-then-done": scripts.ERROR_THEN_DONE,
    "abort": scripts.ABORTED,
    "no-reason": scripts.NO_REASON,
    "silent-end": scripts.ENDS_SILENTLY,
    "garbage": scripts.GARBAGE,
    "broken": scripts.BROKEN,
}
_ARGUMENTS: Final[Mapping[str, tuple[str, str]]] = {
    "call-good": ('{"city": "Paris"}', "tool_calls"),
    "call-infinity": ('{"degrees": Infinity}', "tool_calls"),
    "call-nan": ('{"degrees": NaN}', "tool_calls"),
    "call-cut": ('{"city": "Par', "tool_calls"),
    "call-list": ("[1]", "tool_calls"),
    "call-empty": ("", "tool_calls"),
    "call-too-long": ('{"city": "Par', "length"),
}


def _called(body: Mapping[str, Any], said: tuple[str, str]) -> Iterator[Step]:
    """An answer that is a call of a function, its arguments in two pieces."""
    text, reason = said
    if not body.get("stream"):
        call = {**_CALL, "function": {"name": "get_weather", "arguments": text}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        yield _json({"choices": [choice], "usage": _usage(body, 5)})
        return
    half = len(text) // 2
    first = {**_CALL, "function": {"name": "get_weather"}}
    yield scripts.chunk({"role": "assistant", "content": ""})
    yield scripts.chunk({"content": None, "tool_calls": [first]})
    for piece in (text[:half], text[half:]):
        call = {"index": 0, "function": {"arguments": piece}}
        yield scripts.chunk({"content": None, "tool_calls": [call]})
    yield scripts.chunk({}, reason)
    yield scripts.DONE


def _words(body: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    words = ANSWER[CONTINUED_AT:] if body.get("continue_final_message") else ANSWER
    limit = body.get("max_tokens") or len(words)
    return words[:limit], "length" if limit < len(words) else "stop"


def _fault(body: Mapping[str, Any]) -> str:
    return next((w[8:] for w in _text(body).split() if w.startswith("standin=")), "")


def _text(body: Mapping[str, Any]) -> str:
    messages = body.get("messages")
    if not isinstance(messages, list):
        return str(body.get("prompt", ""))
    return " ".join(str(message.get("content")) for message in messages)


def _prompt_tokens(body: Mapping[str, Any]) -> int:
    return len(_text(body).split())


def _usage(body: Mapping[str, Any], said: int) -> dict[str, Any]:
    asked = _prompt_tokens(body)
    total = asked + said
    return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": total}


def _refused(message: str) -> Whole:
    error = {"message": message, "type": "BadRequestError", "param": None, "code": 400}
    return Whole(400, json.dumps({"error": error}).encode())


def _json(value: object) -> Whole:
    return Whole(200, json.dumps(value).encode())

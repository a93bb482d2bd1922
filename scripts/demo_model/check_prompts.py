"""Asks the model every prompt of its `prompts.json` and compares the answers with the file.

Each prompt is asked whole and streamed, some times over, alone and beside others, so that an
answer which hangs on its neighbours in a batch or on a warm cache does not pass.
"""

import argparse
import hashlib
import json
import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from scripts.demo_model.engines import ANSWER_TOKENS_MAX, Body, Engine, llama_cpp

PROMPTS_FILE = "prompts.json"
GGUF_FILE = "tiny-Q8_0.gguf"
SLOTS = (1, 4)
MARGIN_NATS_MIN = 2.5  # at every place the best token is 12 times as likely as the next


def _request(prompt: dict[str, Any]) -> Body:
    """The greedy request of a prompt."""
    body: Body = {
        "messages": prompt["messages"],
        "temperature": 0,
        "max_tokens": ANSWER_TOKENS_MAX,
    }
    return body | ({"tools": prompt["tools"]} if "tools" in prompt else {})


def _margin_nats(choice: dict[str, Any]) -> float:
    """The least distance, over all tokens, between the best and the next one."""
    least = math.inf
    for token in choice["logprobs"]["content"]:
        best, following = token["top_logprobs"]
        if following["logprob"] is not None:  # the grammar of a tool call leaves one choice
            least = min(least, best["logprob"] - following["logprob"])
    return least


def _found(engine: Engine, prompt: dict[str, Any]) -> dict[str, Any]:
    """What the engine says now, in the form of `prompts.json`."""
    # llama.cpp refuses logprobs on a stream with tools, so only whole answers have a margin.
    result = engine.ask({**_request(prompt), "logprobs": True, "top_logprobs": 2})
    choice = result["choices"][0]
    calls = choice["message"].get("tool_calls")
    found: dict[str, Any] = {}
    if calls:
        function = calls[0]["function"]
        arguments = json.loads(function["arguments"])
        found["tool_call"] = {"name": function["name"], "arguments": arguments}
    else:
        found["answer"] = choice["message"]["content"]
    return found | {
        "finish_reason": choice["finish_reason"],
        "prompt_tokens": result["usage"]["prompt_tokens"],
        "completion_tokens": result["usage"]["completion_tokens"],
        "margin_nats": round(_margin_nats(choice), 1),
    }


def _streamed(engine: Engine, prompt: dict[str, Any]) -> str:
    """The streamed answer: its text, or the arguments of its tool call as JSON."""
    text = ""
    for chunk in engine.stream(_request(prompt)):
        for choice in chunk.get("choices", ()):
            delta = choice["delta"]
            text += delta.get("content") or ""
            for call in delta.get("tool_calls", ()):
                text += call["function"].get("arguments") or ""
    return text


def _complaints(engine: Engine, prompt: dict[str, Any]) -> list[str]:
    """How the engine differs from what the file says about this prompt."""
    found, identity = _found(engine, prompt), prompt["id"]
    wrong = [
        f"{identity}: {key} is {value!r} and not {prompt.get(key)!r}"
        for key, value in found.items()
        if key != "margin_nats" and prompt.get(key) != value
    ]
    streamed = _streamed(engine, prompt)
    whole = found["answer"] if "answer" in found else json.dumps(found["tool_call"]["arguments"])
    if streamed != whole:
        wrong.append(f"{identity}: streamed as {streamed!r}")
    if found["margin_nats"] < MARGIN_NATS_MIN:
        wrong.append(f"{identity}: margin of {found['margin_nats']} nats")
    return wrong


def check(folder: Path, rounds: int) -> list[str]:
    """Ask everything `rounds` times; an empty list means that all answers are as written down."""
    sheet = json.loads((folder / PROMPTS_FILE).read_text(encoding="utf-8"))
    wrong = []
    if sheet["sha256"] != _digest(folder):
        wrong.append(f"{GGUF_FILE} is not the file that the answers were checked on")
    for slots in SLOTS:
        engine = llama_cpp(str(folder / GGUF_FILE), threads=1, slots=slots)
        with ThreadPoolExecutor(slots) as pool:
            for said in pool.map(partial(_complaints, engine), sheet["prompts"] * rounds):
                wrong += said
    return wrong


def write(folder: Path) -> None:
    """Replace the answers in the file by what the engine says now."""
    path = folder / PROMPTS_FILE
    sheet = json.loads(path.read_text(encoding="utf-8"))
    engine = llama_cpp(str(folder / GGUF_FILE), threads=1)
    kept = ("id", "messages", "tools")
    sheet["sha256"] = _digest(folder)
    sheet["prompts"] = [
        {key: prompt[key] for key in kept if key in prompt} | _found(engine, prompt)
        for prompt in sheet["prompts"]
    ]
    path.write_text(json.dumps(sheet, indent=2) + "\n", encoding="utf-8")


def _digest(folder: Path) -> str:
    """The sha256 of the GGUF file."""
    return hashlib.sha256((folder / GGUF_FILE).read_bytes()).hexdigest()


def main() -> None:
    """Check the prompts, or write their answers anew."""
    parser = argparse.ArgumentParser(description="Check the prompts of the demo model.")
    parser.add_argument("folder", type=Path, help="folder of the model")
    parser.add_argument("--rounds", type=int, default=3, help="how often to ask")
    parser.add_argument("--write", action="store_true", help="first take the answers as they are")
    args = parser.parse_args()
    if args.write:
        write(args.folder)
    wrong = check(args.folder, args.rounds)
    print(*wrong, sep="\n", end="\n" if wrong else "")
    print(f"{len(wrong)} differences")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()

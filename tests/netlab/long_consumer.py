"""A script: a consumer whose answer is still coming while its edge finds a direct way.

It prints one JSON line when the answer has begun, and one at the end.
"""

import json
import sys

import trio

from tests.e2e.http_client import ask, chat, open_stream, stream_chat

TOKENS = 12_000
"""At a millisecond each: two attempts of 5 s to get through, and some more."""


async def path_now(port: int) -> str:
    """How the edge reaches its one provider."""
    (view,) = (await ask(port, "GET", "/v1/providers")).json["data"]
    return view["path"]


async def main(port: int, model: str) -> None:
    """Ask, wait for the direct path while reading, ask again."""
    async with open_stream(port, chat(model, max_tokens=TOKENS, delay_ms=1)) as answer:
        await answer.read_until_text(10)
        print(json.dumps({"path": answer.headers["x-aimo-path"]}), flush=True)  # noqa: T201
        while await path_now(port) != "direct" and await answer.read_some():
            pass
        was_running = not answer.is_done
        await answer.read_to_the_end()
    again = await stream_chat(port, model, max_tokens=200)
    found = {
        "was_running": was_running,
        "text": answer.text,
        "errors": answer.errors + again.errors,
        "path": again.headers["x-aimo-path"],
        "again": again.text,
    }
    print(json.dumps(found))  # noqa: T201 (the test reads it)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), sys.argv[2])

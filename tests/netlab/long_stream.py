"""A script: streams a long chat from an edge in this namespace while its test does harm elsewhere.

It prints one JSON line when the first tokens are there, and one at the end.
"""

import json
import sys

import trio

from tests.e2e.http_client import chat, open_stream

FIRST_TOKENS = 3


async def main(port: int, model: str, tokens: int, delay_ms: int) -> None:
    """Stream; what is read after the first line decides nothing here."""
    async with open_stream(port, chat(model, max_tokens=tokens, delay_ms=delay_ms)) as stream:
        await stream.read_until_text(FIRST_TOKENS)
        say({"path": stream.headers["x-aimo-path"]})
        await stream.read_to_the_end()
        say({"text": stream.text, "done": stream.is_done, "errors": stream.errors})


def say(found: dict) -> None:
    print(json.dumps(found), flush=True)  # noqa: T201 (the test reads it)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))

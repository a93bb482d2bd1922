"""A script: asks an edge in this network namespace, and prints what came as one JSON line."""

import json
import sys

import trio

from tests.e2e.http_client import ask, stream_chat


async def main(port: int, model: str, tokens: int) -> None:
    """Stream a chat and list the providers."""
    views = (await ask(port, "GET", "/v1/providers")).json["data"]
    if not any(view["path"] for view in views if model in view["models"]):
        print(json.dumps({"known": False}))  # noqa: T201 (the test reads it)
        return
    answer = await stream_chat(port, model, max_tokens=tokens)
    found = {
        "known": True,
        "path": answer.headers["x-aimo-path"],
        "paths": [view["path"] for view in views],
        "text": answer.text,
        "done": answer.is_done,
        "errors": answer.errors,
    }
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))

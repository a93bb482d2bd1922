"""The bulk part of `benchmarks.distance`: a body there, and the same number of bytes back.

python -m benchmarks.distance_bulk serve HOST              plain HTTP, the baseline
python -m benchmarks.distance_bulk ask HOST PORT MODEL BYTES
"""

from __future__ import annotations

import json
import sys
import time
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer

BULK_PORT = 9101
WORD_CHARS = 1000
ANSWER_SECONDS = 300.0


class Mirror(BaseHTTPRequestHandler):
    """Reads a body to its end and sends it back."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Every path."""
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its own name)
        """Say nothing."""


def ask(host: str, port: int, model: str, count: int) -> tuple[float, float]:
    """MB/s there, until the first byte of the answer, and back, from there to its end."""
    words = count // WORD_CHARS
    text = " ".join(["x" * (WORD_CHARS - 1)] * words)
    message = {"role": "user", "content": text}
    body = json.dumps({"model": model, "messages": [message], "stream": True, "max_tokens": words})
    connection = HTTPConnection(host, port, timeout=ANSWER_SECONDS)
    headers = {"content-type": "application/json"}
    started = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", body, headers)
    answer = connection.getresponse()
    got = len(answer.read1(65_536))
    first = time.perf_counter()
    while piece := answer.read1(65_536):
        got += len(piece)
    ended = time.perf_counter()
    if answer.status != 200 or got < count:
        sys.exit(f"status {answer.status}, {got} bytes of {count}")
    return count / 1e6 / (first - started), count / 1e6 / (ended - first)


def main() -> None:
    """Be one of the two."""
    match sys.argv[1:]:
        case ["serve", host]:
            HTTPServer((host, BULK_PORT), Mirror).serve_forever()
        case ["ask", host, port, model, count]:
            print(json.dumps(ask(host, int(port), model, int(count))))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()

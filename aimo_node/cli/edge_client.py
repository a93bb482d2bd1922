"""Asking an edge over HTTP, for the commands that are consumers: chat, models, peers, demo.

Blocking and on the standard library: nothing to wait for at start, and Ctrl-C just works.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import click

from aimo_node.cli.failure import Failure

DEFAULT_EDGE: Final = "http://127.0.0.1:8000"

ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024
"""Longest answer that is read as a whole; a list of thousands of providers is shorter."""

EVENT_BYTES_MAX: Final = 1024 * 1024
"""Longest line of a stream; one token with everything around it has a few hundred bytes."""

SILENCE_SECONDS: Final = 60.0
"""An edge sends a comment every 15 s; after four of them missing it is gone."""

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class EdgeError(Failure):
    """An edge could not be asked, or it refused."""


@contextlib.contextmanager
def _translated(url: str) -> Iterator[None]:
    """Turn what the standard library raises about the connection into `EdgeError`."""
    try:
        yield
    except ConnectionRefusedError as error:
        raise EdgeError(
            f"no edge answers at {url}: start one with 'aimo up' or 'aimo edge', or say where it"
            " is with --edge URL"
        ) from error
    except TimeoutError as error:
        raise EdgeError(f"the edge at {url} went silent") from error
    except (OSError, HTTPException, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise EdgeError(
            f"the edge at {url} cannot be asked: {reason}; say where it is with --edge URL"
        ) from error


@dataclass(slots=True)
class ChatStream:
    """One streamed answer. Iterate it once; the other fields are filled meanwhile.

    Attributes:
        headers: those of the response, lower case.
        first_token_seconds, total_seconds: since the request went out; 0 until known.
        completion_tokens: by the edge's account, or the number of pieces if it gives none.
        finish_reason: empty if the answer is not complete.
    """

    headers: Mapping[str, str]
    _url: str
    _response: HTTPResponse
    _started: float
    first_token_seconds: float = 0.0
    total_seconds: float = 0.0
    completion_tokens: int = 0
    finish_reason: str = ""
    _pieces: int = field(default=0)

    def __iter__(self) -> Iterator[str]:
        """Pieces of text as they arrive, without control characters.

        Raises:
            EdgeError: the answer broke off.
        """
        for event in self._events():
            usage = event.get("usage")
            if isinstance(usage, dict):
                self.completion_tokens = int(usage.get("completion_tokens") or 0)
            for choice in event.get("choices") or ():
                self.finish_reason = choice.get("finish_reason") or self.finish_reason
                piece = (choice.get("delta") or {}).get("content")
                if piece:
                    self._pieces += 1
                    self.first_token_seconds = self.first_token_seconds or self._elapsed()
                    yield printable(piece)
        self.total_seconds = self._elapsed()
        self.completion_tokens = self.completion_tokens or self._pieces
        if not self.finish_reason:
            raise EdgeError("the answer broke off without a reason")

    def _elapsed(self) -> float:
        return time.perf_counter() - self._started

    def _events(self) -> Iterator[dict[str, Any]]:
        """The JSON objects of the stream up to `[DONE]`."""
        while True:
            with _translated(self._url):
                line = self._response.readline(EVENT_BYTES_MAX)
            if not line:
                raise EdgeError("the connection was lost in the middle of the answer")
            if not line.startswith(b"data:"):
                continue  # a comment, or the empty line between two events
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            event = _decode_object(data, self._url)
            if "error" in event:
                raise EdgeError(_error_message(event))
            yield event


class EdgeClient:
    """Asks one edge. A connection per request: nothing here is in a hurry.

    Args:
        url: such as `http://127.0.0.1:8000`, with or without `/v1`.
        key: an API key of that edge.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            self._port = parts.port
        except ValueError as error:
            raise click.UsageError(f"--edge: {error}") from error
        host = parts.hostname or ""
        if parts.scheme not in {"http", "https"} or not _is_host(host):
            raise click.UsageError(f"--edge: expected a URL such as {DEFAULT_EDGE}, not {url!r}")
        self._host = host
        self._is_https = parts.scheme == "https"
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        self._key = key
        self.url = f"{parts.scheme}://{parts.netloc}{self._prefix}"

    def get(self, path: str) -> dict[str, Any]:
        """The JSON object at a path such as `/v1/models`.

        Raises:
            EdgeError: no edge answers, or it refuses.
        """
        with self._exchange("GET", path, None) as response, _translated(self.url):
            raw = response.read(ANSWER_BYTES_MAX + 1)
        return _decode_object(raw, self.url)

    @contextlib.contextmanager
    def stream_chat(
        self, model: str, messages: Sequence[Mapping[str, str]]
    ) -> Iterator[ChatStream]:
        """Ask a model; leaving the context before the end stops the answer at its source.

        Raises:
            EdgeError: no edge answers, it refuses, or the connection is lost.
        """
        body = {
            "model": model,
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        started = time.perf_counter()
        with self._exchange("POST", "/v1/chat/completions", body) as response:
            headers = {name.lower(): value for name, value in response.getheaders()}
            yield ChatStream(headers, self.url, response, started)

    @contextlib.contextmanager
    def _exchange(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> Iterator[HTTPResponse]:
        kind = HTTPSConnection if self._is_https else HTTPConnection
        connection = kind(self._host, self._port, timeout=SILENCE_SECONDS)
        headers = {"accept": "text/event-stream, application/json"}
        if body is not None:
            headers["content-type"] = "application/json"
        if self._key is not None:
            headers["authorization"] = f"Bearer {self._key}"
        # A terminal or an argument that is not UTF-8 leaves surrogates, which no JSON may carry.
        text = None if body is None else json.dumps(body, ensure_ascii=False)
        payload = None if text is None else text.encode("utf-8", "replace")
        try:
            with _translated(self.url):
                connection.request(method, self._prefix + path, payload, headers)
                response = connection.getresponse()
            if response.status >= 400:
                raise EdgeError(self._refusal(response))
            yield response
        finally:
            connection.close()

    def _refusal(self, response: HTTPResponse) -> str:
        if response.status == HTTPStatus.UNAUTHORIZED and self._key is None:
            return "the edge wants an API key: give a file that holds one with --key-file F"
        if response.status == HTTPStatus.UNAUTHORIZED:
            return "the edge does not know this API key: is --key-file the right one?"
        return _refusal(response)


def read_key(file: str | None) -> str | None:
    """The API key in a file: its first line that is neither empty nor a comment.

    Raises:
        UsageError: the file cannot be read or holds no key.
    """
    if file is None:
        return None
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise click.UsageError(f"--key-file: cannot read {file}: {reason}") from error
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys or not keys[0].isascii() or not keys[0].isprintable():
        raise click.UsageError(f"--key-file: {file} holds no key")
    return keys[0]


def printable(text: str) -> str:
    """The text without what would move the cursor, drive the terminal or be no text."""
    return _CONTROL.sub("\ufffd", text)


def _is_host(text: str) -> bool:
    return bool(text) and text.isprintable() and " " not in text


def _decode_object(raw: bytes, url: str) -> dict[str, Any]:
    try:
        document = json.loads(raw)
    except ValueError:
        document = None
    if not isinstance(document, dict) or len(raw) > ANSWER_BYTES_MAX:
        raise EdgeError(f"what answers at {url} is not an edge")
    return document


def _refusal(response: HTTPResponse) -> str:
    try:
        document = json.loads(response.read(EVENT_BYTES_MAX))
    except (OSError, HTTPException, ValueError):
        document = None
    if isinstance(document, dict):
        return _error_message(document)
    return f"the edge refuses: {response.status} {response.reason}"


def _error_message(document: Mapping[str, Any]) -> str:
    error = document.get("error")
    if isinstance(error, dict) and error.get("message"):
        return printable(str(error["message"]))
    return "the edge reports an error without saying which"


edge_flag = click.option(
    "--edge",
    metavar="URL",
    default=DEFAULT_EDGE,
    show_default=True,
    help="The edge to ask.",
)
key_file_flag = click.option(
    "--key-file", metavar="F", help="File with an API key of that edge, if it wants one."
)
